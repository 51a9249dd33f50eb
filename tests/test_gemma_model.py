"""gemma4 and its assistant, S100 to S109: against the naive oracle, rolled back in every way, kept and used again, and
what is refused."""

import hashlib
from functools import lru_cache

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted
from mtpref.base.settings import SettingError
from mtpref.engine.model import load, run_heads
from mtpref.engine.model.walk import Pairs
from mtpref.engine.recipe import make_recipe
from mtpref.engine.session import Session
from mtpref.files import gguf
from mtpref.spec.contract import parse_contract
from tests import naive, naive_gemma
from tests.gguf_copy import copy_of
from tests.micro_moe import (
    GEMMA,
    GemmaShape,
    assistant,
    assistant_keys,
    make_micro_gemma,
    plant_assistant,
    plant_target,
    standard,
    target_keys,
    typed,
    write_gguf,
)
from tests.models import decode_plainly, run_decoder
from tests.test_moe_model import edited
from tests.test_session import check_same, new_session, options_of, run_in

PLAIN, EDGE, MOE, APART = (f"micro-gemma4-{n}f32" for n in ("", "edge-30-", "moe-", "apart-90-"))
EXACT = (PLAIN, EDGE, MOE, APART)
PROMPT = [17, 40, 3, 255, 12, 12, 9, 200, 30, 1, 77, 5, 91]


@lru_cache
def model_of(name, numerics="ggml", kv_type="F32", contract="llama.cpp"):
    recipe = make_recipe(numerics, parse_contract(contract))
    return load(standard(name), recipe, kv_type=kv_type, model_draft=assistant(name))


@lru_cache
def oracle(name):
    hparams, weights = naive_gemma.load(standard(name))
    return hparams | {"final_logit_softcapping": hparams.get("final_logit_softcapping", 30.0)}, weights


@lru_cache
def assistant_oracle(name):
    return naive_gemma.load(assistant(name))


def compared(wanted, taken, names, limit):
    for key, one in wanted.items():
        name, _, il = key.rpartition("-")
        name, il = (name, f"-{il}") if il.isdigit() else (key, "")
        prefix = "mtp_" if name.startswith("mtp_") else ""
        name = names.get(name.removeprefix("mtp_"), name.removeprefix("mtp_"))
        name = {"Qcur": "Qcur_pos"}.get(name, name)
        ours = taken[f"{prefix}{name}{il}"]
        if name == "ffn_moe_topk":
            assert np.array_equal(one, ours), key
        else:
            assert naive.nmse(one, ours.reshape(one.shape)) < limit, key


@pytest.mark.parametrize("name", EXACT)
def test_every_activation_of_target_and_assistant_equals_the_oracle(name):
    """In exact numerics; what a table of GELU makes of them in the others: test_llama_gemma.py."""
    (hparams, weights), own = oracle(name), assistant_oracle(name)
    (wanted, cells), taken, model = naive_gemma.run(weights, hparams, PROMPT), {}, model_of(name, "exact")
    state = model.new_state(poison=True)

    def tap(name, x):
        taken.setdefault(name, np.array(x))

    out = model.trunk(state, PROMPT, n_logits=len(PROMPT), tap=tap)
    assert naive.nmse(wanted.logits, out.logits) < 1e-12
    assert naive.nmse(wanted.h_post, out.hidden.post) < 1e-12
    names = dict(model.arch.cb)
    compared(wanted.tensors, taken, names, 1e-12)
    token, row = 33, wanted.h_post[-1]
    for _ in range(3):  # each step takes the row that the one before it gave
        step = naive_gemma.assistant(own, (hparams, weights), token, row, cells, len(PROMPT))
        taken.clear()
        got = model.mtp(state, [token], row.astype(np.float32)[None], len(PROMPT), n_logits=1, tap=tap)
        assert naive.nmse(step.logits, got.logits[0]) < 1e-11
        assert naive.nmse(step.h_nextn, got.hidden.post[0]) < 1e-11
        compared(step.tensors, taken, dict(model.arch.cb_head), 1e-11)
        token, row = naive.argmax(step.logits), step.h_nextn
    assert state.n_past == len(PROMPT)


@pytest.mark.parametrize("name", EXACT)
def test_drafts_equal_those_of_the_oracle(name):
    target, own = oracle(name), assistant_oracle(name)
    run = run_decoder(model_of(name, "exact"), PROMPT, 14, n_max=4)
    text = PROMPT + run.ids
    rounds = [event for event in run.events if isinstance(event, Drafted)]
    for drafted in rounds:
        ids = [step.candidates[0] for step in drafted.steps]
        wanted = naive_gemma.draft(own, target, text[: drafted.pos0 + 1], len(ids))
        assert ids == [naive.argmax(step.logits) for step in wanted]
        assert [step.pos for step in drafted.steps] == [drafted.pos0 + 1 + i for i in range(len(ids))]
    assert len(rounds[0].steps) == 4  # as many as are asked for, whatever layers it has
    assert run.statistics["tokens"].get("mtp_catch_up", 0) == 0
    assert run.statistics["tokens"].get("mtp_prompt", 0) == 0


def test_a_draft_at_position_0_has_no_cell_to_read_and_none_is_made():
    """llama.cpp's logits are NaN there, and it drafts by them."""
    model = model_of(PLAIN)
    run = run_decoder(model, [17], 12, n_max=3)
    rounds = [event for event in run.events if isinstance(event, Drafted)]
    assert [len(event.steps) > 0 for event in rounds[:2]] == [False, True]
    assert run.ids == decode_plainly(model, [17], 13, warm_head=True).ids[1:13]
    with pytest.raises(ValueError, match="the state holds none"):
        model.mtp(model.new_state(), [17], np.zeros((1, 64), np.float32), 0, n_logits=1)


def test_an_assistant_keeps_nothing_and_is_not_caught_up():
    model = model_of(PLAIN)
    state = model.new_state()
    model.trunk(state, PROMPT, n_logits=0)
    before = state.digest()
    assert run_heads(model, state, Pairs(PROMPT, np.zeros((13, 64), np.float32), 0)) == []
    model.mtp(state, [5], np.ones((1, 64), np.float32), state.n_past, n_logits=1)
    assert state.digest() == before
    assert all(not head.layer.specs for head in state.heads)
    alone = load(standard(PLAIN), make_recipe("ggml"), kv_type="F32").new_state()
    assert [[s.name for s in layer.specs] for layer in alone.layers] == [
        [s.name for s in la.specs] for la in state.layers
    ]


# BITS


@pytest.mark.parametrize("name", [PLAIN, EDGE, MOE])
@pytest.mark.parametrize("chunks", [(1,) * 13, (3, 1, 4, 5), (12, 1)])
@pytest.mark.covering
def test_how_a_prompt_is_cut_changes_no_bit(name, chunks):
    model = model_of(name, kv_type="F16")
    whole, cut = model.new_state(), model.new_state(poison=True)
    wanted, found = model.trunk(whole, PROMPT, n_logits=13), []
    for size in chunks:
        at = cut.n_past
        found.append(model.trunk(cut, PROMPT[at : at + size], n_logits=size, keep=2).logits)
    assert np.array_equal(wanted.logits, np.concatenate(found))
    assert whole.digest() == cut.digest()
    rows = np.ones((1, 64), np.float32)
    a, b = (model.mtp(one, [5], rows, 13, n_logits=1) for one in (whole, cut))
    assert np.array_equal(a.logits, b.logits)


def windowed(name, n_window, folder, **more):
    """Target and assistant with another window."""
    paths = [folder / f"{part}-w{n_window}.gguf" for part in ("t", "a")]
    for path, source in zip(paths, (standard(name), assistant(name)), strict=True):
        if not path.exists():
            edited(source, path, {"attention.sliding_window": (n_window, "u32")})
    return load(paths[0], make_recipe("ggml"), model_draft=paths[1], **more)


@pytest.mark.parametrize(("name", "n_window"), [(PLAIN, 2), (EDGE, 3), (MOE, 5)])
def test_a_plane_is_the_state_that_never_saw_the_dropped_tokens(name, n_window, tmp_path):
    """Drafts longer than the window, before and after the first time that it is full; the assistant reads the same."""
    model = windowed(name, n_window, tmp_path, kv_type="F32")
    for n_before in (0, n_window, 9):
        for n_drop in (1, 3, 6):
            state, other = model.new_state(poison=True), model.new_state(poison=True)
            for one in (state, other):
                if n_before:
                    model.trunk(one, PROMPT[:n_before], n_logits=0)
            saved = state.checkpoint()
            batch = [*PROMPT[4:10], 9]
            model.trunk(state, batch, n_logits=0, keep=7)
            state.choose_plane(n_drop)
            model.trunk(other, batch[: 7 - n_drop], n_logits=0)
            assert state.digest() == other.digest(), (n_before, n_drop)
            row = np.ones((1, 64), np.float32)
            a, b = (model.mtp(one, [3], row, one.n_past, n_logits=1).logits for one in (state, other))
            assert np.array_equal(a, b)
            state.restore(saved)
            model.trunk(state, batch[: 7 - n_drop], n_logits=0)
            assert state.digest() == other.digest()


ROLLBACKS = ("snapshot", "replay", "two-phase")
WINDOWS = ((PLAIN, 6, "F16"), (EDGE, 2, "F32"), (MOE, 3, "BF16"))


@pytest.mark.parametrize(
    ("rollback", "name", "n_window", "kv_type"),
    [
        pytest.param(how, *which, marks=() if i == j or which[0] == EDGE else pytest.mark.slow)
        for i, how in enumerate(ROLLBACKS)
        for j, which in enumerate(WINDOWS)
    ],
)
def test_drafted_text_and_state_are_those_of_plain_decoding(rollback, name, n_window, kv_type, tmp_path):
    model = windowed(name, n_window, tmp_path, kv_type=kv_type)
    plain = decode_plainly(model, PROMPT, 27, warm_head=True)
    run = run_decoder(model, PROMPT, 26, n_max=3, rollback=rollback)
    assert run.ids == plain.ids[len(PROMPT) : len(PROMPT) + 26]
    assert run.decoder.state.digest() == plain.digests[run.decoder.state.n_past]
    assert 0 < run.statistics["n_accept"] < run.statistics["n_drafted"]


@pytest.mark.parametrize("name", [PLAIN, "micro-gemma4-moe-q8_0"])
def test_the_readable_rules_and_the_kernels_give_the_same_bits(name):
    slow, fast = (
        load(standard(name), make_recipe("ggml", use_kernels=kernels), model_draft=assistant(name))
        for kernels in (False, True)
    )
    a, b = (run_decoder(model, PROMPT, 8, n_max=3) for model in (slow, fast))
    assert a.ids == b.ids
    assert a.decoder.state.digest() == b.decoder.state.digest()
    steps = [[(s.candidates, s.p) for e in run.events if isinstance(e, Drafted) for s in e.steps] for run in (a, b)]
    assert steps[0] == steps[1]


# KEPT AND USED AGAIN


def test_a_prefix_is_used_again_with_an_assistant_as_without():
    """Nothing of an assistant must be there: a checkpoint of the trunk and its pending row are all."""
    core = model_of(EDGE, kv_type="F16")
    session = new_session(core, checkpoint_every=5, n_checkpoints=20)
    first = check_same(session, PROMPT, options_of(8), 0)
    check_same(session, [*PROMPT, *first.ids, 7, 8], options_of(8), len(PROMPT) + len(first.ids) - 1)
    check_same(session, [*PROMPT[:11], 4, 4, 4], options_of(8), 10)


def test_a_state_belongs_to_the_target_whoever_drafts(tmp_path):
    """Saved with one assistant, used with it, with another one, and with none; saved without, used with."""
    core, path = model_of(PLAIN, kv_type="F16"), tmp_path / "s.gguf"
    other = tmp_path / "other.gguf"
    make_micro_gemma(other, 5, 60, part="assistant-")
    cores = [core, *(load(standard(PLAIN), core.recipe, kv_type="F16", model_draft=md) for md in (other, None))]
    sessions = [new_session(one, checkpoint_every=5) for one in cores]
    runs = [
        run_in(session, PROMPT, options_of(spec_type="draft-mtp" if one.has_mtp else "none"))
        for session, one in zip(sessions, cores, strict=True)
    ]
    assert runs[0].ids == runs[1].ids == runs[2].ids
    drafts = [[e.ids for e in run.events if isinstance(e, Drafted)] for run in runs[:2]]
    assert drafts[0] != drafts[1]  # the other one drafts otherwise
    for session in sessions:
        session.save(path)
        for one in cores:
            back = Session.load(one, path, poison=True)
            held = [[(name, x.tobytes()) for name, x in one.state.live_arrays()] for one in (back, session)]
            assert held[0] == held[1]
            assert [c.n_past for c in back.checkpoints] == [c.n_past for c in session.checkpoints]
            options = options_of(spec_type="draft-mtp" if one.has_mtp else "none")
            assert check_same(back, [*PROMPT, *runs[0].ids, 3], options, len(back.ids)).ids


# WHAT IS REFUSED

BAD = {
    "no pattern": ({"attention.sliding_window_pattern": None}, r"sliding_window_pattern is missing"),
    "a short pattern": ({"attention.sliding_window_pattern": ([True, False], "arr:bool")}, "array of 5 integers"),
    "no window": ({"attention.sliding_window": None}, r"sliding_window is missing"),
    "heads in thirds": ({"attention.head_count_kv": ([3] * 5, "arr:i32")}, r"head_count is 4, expected a multiple"),
    "an odd turn": ({"rope.dimension_count": (31, "u32")}, r"dimension_count is 31, expected an even count of"),
    "a wider turn": ({"rope.dimension_count_swa": (18, "u32")}, "an even count of at most 16"),
    "values of another width": ({"attention.value_length_swa": (8, "u32")}, r"value_length_swa is 8, expected 16"),
    "no width of windows": ({"attention.key_length_swa": None}, "key_length_swa is missing"),
    "too many that share": ({"attention.shared_kv_layers": (4, "u32")}, "makes layer 1 the first that shares cells"),
    "sharing of another order": ({"attention.shared_kv_layers": (3, "u32")}, "expected a layer with a window and one"),
    "inputs without tensors": ({"embedding_length_per_layer_input": (32, "u32")}, r"blk\.0\.inp_gate\.weight is"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_keys_are_refused_in_one_line(case, tmp_path):
    keys, message = BAD[case]
    with pytest.raises(MtprefError, match=message) as refused:
        load(edited(standard(PLAIN), tmp_path / "bad.gguf", keys))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["rope_freqs", "blk.1.post_ffw_norm", "blk.0.attn_k.", "blk.2.attn_k_norm"])
def test_a_missing_tensor_is_named(name, tmp_path):
    with pytest.raises(MtprefError, match=rf"tensor {name}\S* is missing"):
        load(edited(standard(PLAIN), tmp_path / "bad.gguf", {}, drop=(name,)))


MISFITS = {
    "of another width": ({"embedding_length_out": (32, "u32")}, "embedding_length_out is 32, expected 64"),
    "as wide as its target": ({"embedding_length": (64, "u32")}, "expected another number than embedding_length_out"),
    "not all counted": ({"nextn_predict_layers": (1, "u32")}, "nextn_predict_layers is 1, expected 3 = block_count"),
    "other heads": ({"attention.head_count_kv": ([2, 2, 2], "arr:i32")}, r"head_count_kv is 2, expected '1 \(of layer"),
    "other keys": ({"attention.key_length_swa": (32, "u32"), "attention.value_length_swa": (32, "u32")},
                   r"width of keys is 32, expected '16 \(of layer 3\)"),
    "another window": ({"attention.sliding_window": (9, "u32")}, r"sliding_window is 9, expected '6 \(of layer 3\)"),
    "another base": ({"rope.freq_base_swa": (5000.0, "f32")}, r"RoPE base is 5000\.0, expected '10000\.0 \(of"),
    "another scaling": ({"rope.scaling.factor": (2.0, "f32")}, "RoPE scaling is"),
    "another vocabulary": ({}, "token 7"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_an_assistant_of_another_target_is_refused_in_one_line(case, tmp_path):
    keys, message = MISFITS[case]
    path = edited(assistant(PLAIN), tmp_path / "a.gguf", keys)
    if case == "another vocabulary":
        tokens = [f"{i:x}" if i != 7 else "seven" for i in range(256)]
        path = edited(assistant(PLAIN), tmp_path / "a.gguf", {})
        kv, tensors = copy_of(path)
        kv = [(k, tokens if k == "tokenizer.ggml.tokens" else v, kind) for k, v, kind in kv]
        path = tmp_path / "b.gguf"
        gguf.write_gguf(path, kv, tensors)
    with pytest.raises(MtprefError, match=message) as refused:
        load(standard(PLAIN), model_draft=path)
    assert "\n" not in str(refused.value)


def test_an_assistant_needs_a_target_of_its_architecture():
    with pytest.raises(MtprefError, match=r"this is an assistant of gemma4 models, and .* is qwen35, expected a"):
        load("tests/data/micro/micro-60-q8_0.gguf", model_draft=assistant(PLAIN))
    with pytest.raises(MtprefError, match=r"an assistant of gemma4 models.*give its target with -m and this"):
        load(assistant(PLAIN))
    with pytest.raises(MtprefError, match="no MTP head"):
        load(standard(PLAIN), model_draft=standard(PLAIN))


def test_the_last_two_layers_of_a_target_are_those_that_are_read(tmp_path):
    """A target whose last two layers both have a window; its shapes are as they should be."""
    shape = GemmaShape(windowed=(1, 0, 1, 1), n_head_kv=(2, 2))
    write_gguf(tmp_path / "t.gguf", target_keys(shape), typed(plant_target(1, 0.3, shape), "F32"))
    write_gguf(tmp_path / "a.gguf", assistant_keys(shape), typed(plant_assistant(1, 0.3, shape), "F32"))
    assert load(tmp_path / "t.gguf").layers
    with pytest.raises(MtprefError, match="its last two layers are not one with a window and one without"):
        load(tmp_path / "t.gguf", model_draft=tmp_path / "a.gguf")


def test_a_contract_of_rows_that_an_assistant_has_not_is_refused():
    with pytest.raises(SettingError, match="chain is pre, expected post: an assistant has one row"):
        model_of(PLAIN, contract="chain=pre")
    assert model_of(PLAIN, contract="hidden=pre").recipe.contract.hidden == "pre"


def test_contracts_change_drafts_and_never_the_text():
    own = run_decoder(model_of(PLAIN), PROMPT, 24, n_max=3)
    for contract in ("hidden=pre", "concat=he", "training"):
        other = run_decoder(model_of(PLAIN, contract=contract), PROMPT, 24, n_max=3)
        assert own.ids == other.ids
        drafts = [[e.ids for e in run.events if isinstance(e, Drafted)] for run in (own, other)]
        assert drafts[0] != drafts[1]


HASHES = {PLAIN: "a81d60da654b3be0", EDGE: "99a2342224fb9896", MOE: "0de92dc73f332734", APART: "a4ea06f0cb478e55"}


def test_the_planted_models_are_the_same_bytes_everywhere():
    found = {name: hashlib.sha256(standard(name).read_bytes() + assistant(name).read_bytes()).hexdigest()[:16]
             for name in HASHES}  # fmt: skip
    assert found == HASHES


def test_standard_models_cover_both_types():
    assert {name.rpartition("-")[2] for name in GEMMA} == {"f32", "q8_0"}
