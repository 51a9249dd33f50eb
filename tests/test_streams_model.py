"""deepseek4's models, S70 to S93: against the naive oracle, rolled back in every way, and what is refused."""

import hashlib
from functools import lru_cache

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.engine.memory import head_memory
from mtpref.engine.model import load, pair
from mtpref.engine.recipe import make_recipe
from mtpref.engine.session import Session
from tests import naive, naive_dsv4
from tests.micro_moe import standard
from tests.models import decode_plainly, run_decoder
from tests.test_moe_model import edited
from tests.test_session import new_session, options_of, run_in
from tests.test_session_file import same_checkpoints

PLAIN, OWN, TRUNK, HEAD = (f"micro-deepseek4-{n}-f32" for n in ("", "own", "trunk", "head"))
PLAIN = PLAIN.replace("--", "-")
# Longer than two blocks of 128 tokens is too long for the oracle; a little more than one is not.
PROMPT = [(i * 37 + 11) % 256 for i in range(131)]
NEAR_128 = PROMPT[:124]  # drafts that follow close the block


@lru_cache
def model_of(name, numerics="ggml", kv_type="F32", draft=None):
    head = standard(draft) if draft else None
    return load(standard(name), make_recipe(numerics), kv_type=kv_type, kv_type_draft=kv_type, model_draft=head)


@lru_cache
def oracle(name):
    return naive_dsv4.load(standard(name))


@lru_cache
def theirs(name):
    hparams, weights = oracle(name)
    return naive_dsv4.trunk(weights, hparams, PROMPT)


OF_LAYER = {"hc_attn_pre": "hc_attn_pre", "qr_norm": "qr_norm", "q": "q", "kv": "kv", "attn_derope": "attn_derope",
            "attn_out": "attn_out", "hc_attn_post": "hc_attn_post", "hc_ffn_pre": "hc_ffn_pre", "ffn_out": "ffn_out",
            "l_out": "l_last"}  # fmt: skip


@pytest.mark.parametrize("numerics", ["exact", "ggml"])
@pytest.mark.parametrize("name", [PLAIN, OWN])
def test_every_activation_equals_the_oracle(name, numerics):
    hparams, weights = oracle(name)
    taken, model, wanted = {}, model_of(name, numerics), theirs(name)
    state = model.new_state(poison=True)
    out = model.trunk(state, PROMPT, n_logits=len(PROMPT), tap=lambda n, x: taken.setdefault(n, np.array(x)))
    assert naive.nmse(wanted.logits, out.logits) < 1e-9
    assert naive.nmse(wanted.h_pre, out.hidden.pre) < 1e-9
    for il in range(4):
        for tensor, ours in OF_LAYER.items():
            one = wanted.tensors[f"{tensor}-{il}"]
            assert naive.nmse(one, taken[f"{ours}-{il}"].reshape(one.shape)) < 1e-9, (tensor, il)
        assert np.array_equal(wanted.tensors[f"ffn_moe_topk-{il}"], taken[f"ffn_moe_topk-{il}"])
    pairs = pair(model, PROMPT, out.hidden.pre, 0, state.pending_h)
    head = model.mtp(state, pairs.ids, pairs.rows, 0, n_logits=len(PROMPT))
    shifted = np.concatenate([np.zeros((1, wanted.h_pre.shape[1])), wanted.h_pre[:-1]])
    own = naive_dsv4.mtp(weights, hparams, PROMPT, shifted, list(range(len(PROMPT))))
    assert naive.nmse(own.logits, head.logits) < 1e-9
    assert naive.nmse(own.h_pre, head.hidden.pre) < 1e-9


def test_the_indexer_leaves_rows_out_and_blocks_of_128_are_closed():
    """Without it the tests above would say little of either."""
    model = model_of(PLAIN)
    state = model.new_state()
    model.trunk(state, PROMPT, n_logits=0)
    assert len(PROMPT) // 4 > 5 * model.layers[0].cfg.n_best
    assert {layer.cfg.ratio: s.arrays["comp_k"].shape[0] for layer, s in zip(model.layers, state.layers, strict=True)
            if layer.cfg.ratio}.keys() == {4, 128}  # fmt: skip
    assert np.abs(state.layers[1].arrays["comp_k"][0]).max() > 0


@pytest.mark.parametrize("chunks", [(131,), (1,) * 131, (3, 1, 4, 7, 113, 2, 1), (127, 1, 1, 2)])
def test_how_a_prompt_is_cut_changes_no_bit(chunks):
    model = model_of(PLAIN, kv_type="F16")
    whole, cut = model.new_state(), model.new_state(poison=True)
    wanted, found = model.trunk(whole, PROMPT, n_logits=131), []
    for n in chunks:
        at = cut.n_past
        found.append(model.trunk(cut, PROMPT[at : at + n], n_logits=n, keep=2).logits)
    assert np.array_equal(wanted.logits, np.concatenate(found))
    assert whole.digest() == cut.digest()


@pytest.mark.parametrize("n_drop", [1, 2, 3, 4])
@pytest.mark.parametrize("n_before", [0, 1, 3, 4, 5, 124, 126, 127])
@pytest.mark.covering
def test_a_plane_is_the_state_that_never_saw_the_dropped_tokens(n_before, n_drop):
    """Windows that have lost rows, blocks begun, ended and undone: all come back bit by bit."""
    model = model_of(PLAIN)
    state, other = model.new_state(poison=True), model.new_state(poison=True)
    for one in (state, other):
        if n_before:
            model.trunk(one, PROMPT[:n_before], n_logits=0)
    model.trunk(state, PROMPT[n_before : n_before + 4] + [9], n_logits=0, keep=5)
    state.choose_plane(n_drop)
    model.trunk(other, PROMPT[n_before : n_before + 5 - n_drop], n_logits=0)
    assert state.digest() == other.digest()
    a, b = (model.trunk(one, [3, 5, 7, 200], n_logits=4).logits for one in (state, other))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("kv_type", ["F32", "F16"])
@pytest.mark.parametrize("rollback", ["snapshot", "replay", "two-phase"])
def test_drafted_text_and_state_are_those_of_plain_decoding(rollback, kv_type):
    model = model_of(PLAIN, kv_type=kv_type)
    plain = plainly(kv_type)
    run = run_decoder(model, NEAR_128, 14, n_max=3, rollback=rollback)
    assert run.ids == plain.ids[len(NEAR_128) : len(NEAR_128) + 14]
    assert run.decoder.state.digest() == plain.digests[len(NEAR_128) + 13]
    stats = run.decoder.statistics.to_json()
    assert 0 < stats["n_accept"] < stats["n_drafted"]


@lru_cache
def plainly(kv_type):
    return decode_plainly(model_of(PLAIN, kv_type=kv_type), NEAR_128, 15, warm_head=True)


def test_a_state_is_saved_and_read_bit_by_bit(tmp_path):
    core = model_of(PLAIN, kv_type="F16")
    session = new_session(core, checkpoint_every=50)
    run_in(session, NEAR_128, options_of())
    session.save(tmp_path / "s.gguf")
    back = Session.load(core, tmp_path / "s.gguf", poison=True)
    assert back.state.digest() == session.state.digest()
    same_checkpoints(session, back)


# A WINDOW OF ONE TOKEN


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """No row of another token is kept: llama.cpp runs it."""
    path = tmp_path_factory.mktemp("narrow") / "m.gguf"
    return edited(standard(PLAIN), path, {"attention.sliding_window": (1, "u32")})


def test_a_window_of_one_token_is_the_oracles(narrow):
    hparams, weights = naive_dsv4.load(narrow)
    model, ids = load(narrow, make_recipe("exact")), PROMPT[:14]
    wanted = naive_dsv4.trunk(weights, hparams, ids)
    assert naive.nmse(wanted.logits, model.trunk(model.new_state(), ids, n_logits=len(ids)).logits) < 1e-9


@pytest.mark.parametrize("rollback", ["snapshot", "replay", "two-phase"])
def test_drafts_beside_a_window_of_one_token_leave_the_state_of_plain_decoding(narrow, rollback, tmp_path):
    model = load(narrow, make_recipe("ggml"), kv_type="F16", kv_type_draft="F16")
    plain = decode_plainly(model, PROMPT[:6], 13, warm_head=True)
    run = run_decoder(model, PROMPT[:6], 12, n_max=3, rollback=rollback)
    assert run.ids == plain.ids[6:18]
    assert run.decoder.state.digest() == plain.digests[6 + 11]
    session = new_session(model, checkpoint_every=4)
    run_in(session, PROMPT[:6], options_of())
    session.save(tmp_path / "s.gguf")
    assert Session.load(model, tmp_path / "s.gguf", poison=True).state.digest() == session.state.digest()


def test_two_files_give_the_heads_own_streams_and_one_file_those_of_the_trunk():
    two, one = model_of(TRUNK, draft=HEAD), model_of(PLAIN)
    assert two.mtp_status == "file"
    name = "output_hc_base.weight"
    assert not np.array_equal(two.heads[0].weights.roots[name], two.weights.roots[name])
    assert one.heads[0].weights.roots[name] is one.weights.roots[name]


def test_memory_is_four_streams_wide():
    model = model_of(PLAIN, kv_type="F16")
    memory = head_memory(model)
    assert (memory.pending, memory.kv_cell) == (4 * 4 * 64, 2 * 32)
    assert model.new_state().pending_h.shape == (256,)


def test_a_contract_that_hands_over_normed_rows_is_refused():
    from mtpref.spec.contract import MtpContract

    with pytest.raises(MtprefError, match=r"hidden is post, expected pre: .* 256 values"):
        load(standard(PLAIN), make_recipe("ggml", MtpContract(hidden="post")))


BAD = {
    "a ratio of its own": ({"attention.compress_ratios": ([4, 8, 0, 4, 0], "arr:i32")}, r"is 8 for layer 1"),
    "too few ratios": ({"attention.compress_ratios": ([4, 128, 0], "arr:i32")}, "array of 4 integers"),
    "a head with rows": (
        {"attention.compress_ratios": ([4, 128, 0, 4, 4], "arr:i32")},
        "for the MTP block, expected 0",
    ),
    "five streams": ({"hyper_connection.count": (5, "u32")}, "from 4 to 4"),
    "another gating": ({"expert_gating_func": (2, "u32")}, r"is 2, expected 4 \(sqrt"),
    "groups": ({"attention.output_group_count": (3, "u32")}, "a divisor of 4 heads"),
    "a wider turned part": ({"rope.dimension_count": (34, "u32")}, "an even count of at most 32"),
    "two rows a token": ({"attention.head_count_kv": (2, "u32")}, "one row serves all heads"),
    "another value": ({"attention.value_length": (16, "u32")}, r"expected 32 = attention\.key_length"),
    "no clamp": ({"swiglu_clamp_exp": None}, r"swiglu_clamp_exp is missing"),
    "clamps of four": ({"swiglu_clamp_exp": ([1.0] * 4, "arr:f32")}, "array of 5 numbers"),
    "a clamp below 0": ({"swiglu_clamp_exp": ([-1.0] * 5, "arr:f32")}, r"item 0"),
    "a window of each layer": ({"attention.sliding_window": ([8] * 5, "arr:i32")}, "is an array of 5, expected an int"),
    "no window": ({"attention.sliding_window": None}, r"sliding_window is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_keys_are_refused_in_one_line(case, tmp_path):
    keys, message = BAD[case]
    with pytest.raises(MtprefError, match=message) as refused:
        load(edited(standard(PLAIN), tmp_path / "bad.gguf", keys))
    assert "\n" not in str(refused.value)


def test_the_planted_models_are_the_same_bytes_everywhere():
    assert hashlib.sha256(standard(PLAIN).read_bytes()).hexdigest().startswith("1019e53644f14cbc")
