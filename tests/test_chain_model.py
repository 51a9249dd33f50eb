"""step35 and mimo2, S76 and S94 to S99: against the naive oracle, rolled back in every way, and what is refused."""

import hashlib
from functools import lru_cache

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, RunStarted
from mtpref.engine.model import load, pair, run_heads
from mtpref.engine.recipe import make_recipe
from mtpref.engine.session import Session
from mtpref.spec.contract import parse_contract
from tests import naive, naive_chain, naive_moe
from tests.micro_moe import CHAINS, MOE_CHAINS, standard
from tests.models import decode_plainly, run_decoder
from tests.roll_backs import check_planes
from tests.test_moe_model import edited
from tests.test_session import check_same, new_session, options_of, run_in
from tests.test_session_file import same_checkpoints

STEP, FUSED, ONE = (f"micro-step35-{n}f32" for n in ("", "90-fused-", "30-one-"))
MIMO, OWN = "micro-mimo2-f32", "micro-mimo2-90-own-f32"
EXACT = (STEP, FUSED, ONE, MIMO, OWN)
PROMPT = [17, 40, 3, 255, 12, 12, 9, 200, 30, 1, 77, 5, 91]


@lru_cache
def model_of(name, numerics="ggml", kv_type="F32", contract="llama.cpp"):
    recipe = make_recipe(numerics, parse_contract(contract))
    return load(standard(name), recipe, kv_type=kv_type, kv_type_draft=kv_type)


@lru_cache
def oracle(name):
    return naive_chain.load(standard(name))


@pytest.mark.parametrize("numerics", ["exact", "ggml"])
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.covering
def test_every_activation_and_every_head_equals_the_oracle(name, numerics):
    hparams, weights = oracle(name)
    wanted, taken, model = naive_chain.trunk(weights, hparams, PROMPT), {}, model_of(name, numerics)
    state = model.new_state(poison=True)
    out = model.trunk(state, PROMPT, n_logits=len(PROMPT), tap=lambda n, x: taken.setdefault(n, np.array(x)))
    assert naive.nmse(wanted.logits, out.logits) < 1e-10
    assert naive.nmse(wanted.h_pre, out.hidden.pre) < 1e-10
    names = dict(model.arch.cb)
    for key, one in wanted.tensors.items():
        name, _, il = key.rpartition("-")
        name = {"attn_pregate": "kqv_out"}.get(name, name)
        ours = taken[f"{names.get(name, name)}-{il}"]
        if name == "ffn_moe_topk":
            assert np.array_equal(one, ours), key
        else:
            assert naive.nmse(one, ours.reshape(one.shape)) < 1e-9, key
    pairs = pair(model, PROMPT, out.hidden.pre, 0, state.pending_h)
    heads = run_heads(model, state, pairs, with_logits=True)
    shifted = np.concatenate([np.zeros((1, wanted.h_pre.shape[1])), wanted.h_pre[:-1]])
    assert len(heads) == hparams["nextn_predict_layers"]
    for i, head in enumerate(heads):
        own = naive_chain.mtp(weights, hparams, PROMPT, shifted, list(range(len(PROMPT))), i)
        assert naive.nmse(own.logits, head.logits) < 1e-9, i
        assert naive.nmse(own.h_pre, head.hidden.pre) < 1e-9, i


@pytest.mark.parametrize("name", EXACT)
def test_drafts_equal_those_of_the_oracle(name):
    hparams, weights = oracle(name)
    run = run_decoder(model_of(name, "exact"), PROMPT, 20, n_max=4)
    text = PROMPT + run.ids
    rounds = [event for event in run.events if isinstance(event, Drafted)]
    for drafted in rounds:
        ids = [step.candidates[0] for step in drafted.steps]
        wanted = naive_chain.draft(weights, hparams, text[: drafted.pos0 + 1], 4)
        assert ids == wanted[: len(ids)]  # the budget cuts the last ones
        expected = [None] * 4 if name == ONE else [0, 1, 2]
        assert [step.head for step in drafted.steps] == expected[: len(ids)]
    assert len(rounds[0].steps) == (4 if name == ONE else 3)
    assert len(rounds) > 3


@pytest.mark.parametrize("name", MOE_CHAINS)
def test_drafts_of_hy_v3_with_several_heads_equal_those_of_the_oracle(name):
    """Rows after the norm, and of each step the last one."""
    hparams, weights = naive_moe.load(standard(name))
    model = model_of(name, "exact")
    run = run_decoder(model, PROMPT, 12, n_max=4)
    text = PROMPT + run.ids
    rounds = [event for event in run.events if isinstance(event, Drafted)]
    for drafted in rounds:
        ids = [step.candidates[0] for step in drafted.steps]
        runs = naive_moe.trunk, naive_moe.mtp
        wanted = naive_chain.draft(weights, hparams, text[: drafted.pos0 + 1], 4, runs, lambda result: result[1])
        assert ids == wanted[: len(ids)]
        assert [step.head for step in drafted.steps] == list(range(len(ids)))
    assert len(rounds[0].steps) == len(model.heads) == {"micro-hy_v3-chain-f32": 3}.get(name, 2)


def test_more_tokens_than_heads_are_capped_and_that_is_said():
    run = run_decoder(model_of(STEP), PROMPT, 12, n_max=5)
    assert max(len(event.ids) for event in run.events if isinstance(event, Drafted)) == 3
    (started,) = (event for event in run.events if isinstance(event, RunStarted))
    (note,) = started.notes
    assert all(words in note for words in ("n_max 5", "3 heads", "at most 3"))
    assert run.statistics["head_per_pos"] == [0, 1, 2]
    assert not run_decoder(model_of(ONE), PROMPT, 4, n_max=5).events[0].notes
    assert "head_per_pos" not in run_decoder(model_of(ONE), PROMPT, 4, n_max=5).statistics


def test_a_round_costs_what_the_rule_says():
    """M (n + 1) rows of catching up in a round whose whole draft is accepted, n (n + 1) / 2 of drafting in any."""
    run = run_decoder(model_of(OWN), PROMPT, 40, n_max=2)
    stats, rounds = run.statistics, [e for e in run.events if isinstance(e, Drafted) and len(e.steps) == 2]
    ones = [e for e in run.events if isinstance(e, Drafted) and len(e.steps) == 1]
    assert stats["tokens"]["mtp_draft"] == 3 * len(rounds) + len(ones)
    kept = len(run.ids)  # every token that stays is caught up with once by each head
    assert stats["tokens"]["mtp_catch_up"] in (3 * kept, 3 * (kept + 1), 3 * (kept - 1))


CONTRACTS = ("heads=first", "chain_end=reuse", "catch_up=chain", "hidden=post", "chain=post", "chain_row=first",
             "chain_end=wrap", "catch_up=delayed")  # fmt: skip


@pytest.mark.parametrize("contract", CONTRACTS)
def test_another_contract_changes_drafts_and_never_the_text(contract):
    plain = decode_plainly(model_of(STEP), PROMPT, 25, warm_head=False).ids[len(PROMPT) :]
    own = run_decoder(model_of(STEP), PROMPT, 24, n_max=5)
    other = run_decoder(model_of(STEP, contract=contract), PROMPT, 24, n_max=5)
    assert own.ids == other.ids == plain[:24]
    drafts = [[e.steps[i].candidates for i in range(len(e.steps))] for e in other.events if isinstance(e, Drafted)]
    assert drafts != [[s.candidates for s in e.steps] for e in own.events if isinstance(e, Drafted)]
    longest = max(len(e.ids) for e in other.events if isinstance(e, Drafted))
    assert longest == (5 if contract in ("heads=first", "chain_end=reuse", "chain_end=wrap") else 3)


@pytest.mark.parametrize("rollback", ["snapshot", "replay", "two-phase"])
@pytest.mark.parametrize("catch_up", ["chain", "delayed"])
def test_heads_that_are_given_rows_late_draft_as_the_oracle_does(catch_up, rollback):
    hparams, weights = oracle(STEP)
    model = model_of(STEP, "exact", contract=f"catch_up={catch_up}")
    run = run_decoder(model, PROMPT, 14, n_max=3, rollback=rollback, n_batch=4)
    text, rounds = PROMPT + run.ids, [event for event in run.events if isinstance(event, Drafted)]
    for drafted in rounds:
        ids = [step.candidates[0] for step in drafted.steps]
        assert ids == naive_chain.draft_late(weights, hparams, text[: drafted.pos0 + 1], catch_up)[: len(ids)]
    assert len(rounds) > 3
    held = [head.held is None or head.held.shape[0] for head in run.decoder.state.heads]
    assert held == [True, 1, 1 if catch_up == "chain" else 2]


def test_a_session_goes_back_to_the_rows_that_heads_hold_and_has_no_file_for_them(tmp_path):
    model = model_of(STEP, contract="catch_up=delayed")
    session = new_session(model)
    check_same(session, [*PROMPT, 4, 9, 2], options_of(), 0, checkpoint_at=[len(PROMPT)])
    check_same(session, [*PROMPT, 4], options_of(), len(PROMPT))
    check_same(session, [*session.ids, 7], options_of())
    with pytest.raises(MtprefError, match="catch_up is delayed, expected target"):
        session.save(tmp_path / "s.gguf")


def test_after_the_last_head_the_first_one_follows_where_the_contract_wraps():
    run = run_decoder(model_of(STEP, contract="chain_end=wrap"), PROMPT, 12, n_max=5)
    assert run.statistics["head_per_pos"] == [0, 1, 2, 0, 1]


# BITS


@pytest.mark.parametrize("name", [STEP, OWN])
@pytest.mark.parametrize("chunks", [(13,), (1,) * 13, (3, 1, 4, 5), (12, 1), (2, 11)])
@pytest.mark.covering
def test_how_a_prompt_is_cut_changes_no_bit(name, chunks):
    model = model_of(name, kv_type="F16")
    whole, cut = model.new_state(), model.new_state(poison=True)
    wanted, found = model.trunk(whole, PROMPT, n_logits=13), []
    heads = [[] for _ in model.heads]
    pairs = pair(model, PROMPT, wanted.hidden.pre, 0, whole.pending_h)
    once = run_heads(model, whole, pairs, with_logits=True)
    for size in chunks:
        at = cut.n_past
        out = model.trunk(cut, PROMPT[at : at + size], n_logits=size, keep=2)
        found.append(out.logits)
        some = pair(model, PROMPT[at : at + size], out.hidden.pre, at, cut.pending_h)
        for i, one in enumerate(run_heads(model, cut, some, with_logits=True)):
            heads[i].append(one.logits)
        cut.pending_h = out.hidden.pre[-1].copy()
    whole.pending_h = wanted.hidden.pre[-1].copy()
    assert np.array_equal(wanted.logits, np.concatenate(found))
    for i, one in enumerate(once):
        assert np.array_equal(one.logits, np.concatenate(heads[i]))
    assert whole.digest() == cut.digest()


def windowed(name, n_window, tmp_path):
    """The model with another window."""
    path = tmp_path / f"w{n_window}.gguf"
    if not path.exists():
        edited(standard(name), path, {"attention.sliding_window": (n_window, "u32")})
    return load(path, make_recipe("ggml"), kv_type="F32", kv_type_draft="F32")


@pytest.mark.parametrize("n_window", [1, 2, 3, 5])
@pytest.mark.parametrize("name", [STEP, MIMO])
@pytest.mark.covering
def test_a_plane_is_the_state_that_never_saw_the_dropped_tokens(name, n_window, tmp_path):
    """Windows from one token on, drafts longer than the window, before and after the first time that it is full."""
    counts = (0, 1, n_window - 1, n_window, n_window + 1, 9)
    check_planes(windowed(name, n_window, tmp_path), PROMPT, counts)


@pytest.mark.parametrize("rollback", ["snapshot", "replay", "two-phase"])
@pytest.mark.parametrize(("name", "n_window", "kv_type"), [(STEP, 5, "F16"), (STEP, 1, "F32"), (MIMO, 2, "BF16"),
                                                          (OWN, 2, "F32"), (FUSED, 3, "F16")])  # fmt: skip
@pytest.mark.covering
def test_drafted_text_and_state_are_those_of_plain_decoding(rollback, name, n_window, kv_type, tmp_path):
    path = edited(standard(name), tmp_path / "m.gguf", {"attention.sliding_window": (n_window, "u32")})
    model = load(path, kv_type=kv_type, kv_type_draft=kv_type)
    plain = decode_plainly(model, PROMPT, 37, warm_head=True)
    run = run_decoder(model, PROMPT, 36, n_max=3, rollback=rollback)
    assert run.ids == plain.ids[len(PROMPT) : len(PROMPT) + 36]
    assert run.decoder.state.digest() == plain.digests[run.decoder.state.n_past]
    assert 0 < run.statistics["n_accept"] < run.statistics["n_drafted"]


def test_a_state_is_saved_and_read_bit_by_bit(tmp_path):
    core = model_of(STEP, kv_type="F16")
    session = new_session(core, checkpoint_every=5)
    run_in(session, PROMPT, options_of())
    session.save(tmp_path / "s.gguf")
    back = Session.load(core, tmp_path / "s.gguf", poison=True)
    assert back.state.digest() == session.state.digest()
    same_checkpoints(session, back)


# WHAT IS REFUSED

BAD = {
    "no pattern": ({"attention.sliding_window_pattern": None}, r"sliding_window_pattern is missing"),
    "a short pattern": ({"attention.sliding_window_pattern": ([True, False], "arr:bool")}, "array of 7 integers"),
    "no window": ({"attention.sliding_window": None}, r"sliding_window is missing"),
    "a window of none": ({"attention.sliding_window": (0, "u32")}, r"sliding_window is 0"),
    "heads in thirds": ({"attention.head_count_kv": ([3] * 7, "arr:i32")}, r"head_count is 4, expected a multiple"),
    "an odd half": ({"rope.dimension_count": (10, "u32")}, "makes 5 turned dimensions of a layer without a window"),
    "a wider turn": ({"rope.dimension_count": (18, "u32")}, "an even count of at most 16"),
    "other widths in windows": ({"attention.key_length_swa": (8, "u32")}, r"key_length_swa is 8, expected 16"),
    "a clamp for two": ({"swiglu_clamp_exp": ([1.0, 2.0], "arr:f32")}, "array of 7 numbers"),
    "another gating": ({"expert_gating_func": (4, "u32")}, r"gating_func is 4, expected 1 \(softmax"),
    "no key length": ({"attention.key_length": None}, r"key_length is missing"),
    "too many heads": ({"block_count": (60, "u32"), "nextn_predict_layers": (50, "u32")}, "."),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_keys_are_refused_in_one_line(case, tmp_path):
    keys, message = BAD[case]
    with pytest.raises(MtprefError, match=message) as refused:
        load(edited(standard(STEP), tmp_path / "bad.gguf", keys))
    assert "\n" not in str(refused.value)


def test_an_output_of_its_own_is_required(tmp_path):
    with pytest.raises(MtprefError, match=r"tensor output\.weight is missing"):
        load(edited(standard(STEP), tmp_path / "bad.gguf", {}, drop=("output.weight",)))


def test_a_head_that_is_missing_in_the_chain_is_named(tmp_path):
    with pytest.raises(MtprefError, match=r"blk\.5\..* is missing"):
        load(edited(standard(STEP), tmp_path / "bad.gguf", {}, drop=("blk.5.",)))


def test_a_mimo_head_with_queries_apart_is_refused(tmp_path):
    """llama.cpp's graph of a head asserts the fused tensor."""
    with pytest.raises(MtprefError, match=r"blk\.4\.attn_qkv\.weight is missing"):
        load(edited(standard(MIMO), tmp_path / "bad.gguf", {}, drop=("blk.4.attn_qkv",)))


HASHES = {STEP: "f0f9012c4520aa42", MIMO: "782c2f17518f461a"}


@pytest.mark.parametrize("name", HASHES)
def test_the_planted_models_are_the_same_bytes_everywhere(name):
    assert hashlib.sha256(standard(name).read_bytes()).hexdigest().startswith(HASHES[name])


def test_standard_models_cover_both_architectures_and_types():
    assert {name.split("-")[1] for name in CHAINS} == {"step35", "mimo2"}
    assert {name.rpartition("-")[2] for name in CHAINS} == {"f32", "q8_0"}


@pytest.mark.parametrize("name", [STEP, OWN, "micro-mimo2-q8_0", "micro-step35-q8_0"])
def test_the_readable_rules_and_the_kernels_give_the_same_bits(name):
    slow = load(standard(name), make_recipe("ggml", use_kernels=False))
    fast = load(standard(name), make_recipe("ggml"))
    a, b = (run_decoder(model, PROMPT, 8, n_max=3) for model in (slow, fast))
    assert a.ids == b.ids
    assert a.decoder.state.digest() == b.decoder.state.digest()
