"""Whole models on the readable specification: against the naive oracle and against transformers, tensor by tensor,
and against themselves in other batches, bit by bit.

The weights are the random-weight cases of tests/hf_cases.py (and the shipped tiny model's, where there is one);
nothing here runs a kernel.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.spec.contract import PRESETS
from mtpref.spec.state import ModelState
from tests import naive, naive_model
from tests.gguf_from_weights import write_model
from tests.hf_cases import CASES, build, shape
from tests.random_weights import random_tokens, random_weights

DATA = Path(__file__).parent / "data"
TINY = Path(__file__).parent.parent / "mtpref" / "data" / "tiny.gguf"
# worst measured over all cases and tensors: exact 1.2e-12, ggml 4.5e-12 on F32 weights
LIMIT = {"exact": 1e-10, "ggml": 1e-9}


@pytest.fixture(scope="module")
def recorded():
    with np.load(DATA / "hf_reference.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The case's GGUF file, written once."""
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for case in CASES:
        weights, hparams, _, _ = build(case)
        paths[case] = write_model(folder / f"{case}.gguf", weights, hparams)
    return paths


class Taken(dict):
    """A tap that keeps copies."""

    def __call__(self, name, array):
        self[name] = np.array(array)


def open_model(path, numerics, contract="llama.cpp", kv_type="F32"):
    recipe = make_recipe(numerics, PRESETS[contract], use_kernels=False)
    return load(path, recipe, kv_type=kv_type, kv_type_draft=kv_type)


def run_trunk(model, tokens):
    taken = Taken()
    out = model.trunk(model.new_state(), tokens, n_logits=len(tokens), tap=taken)
    return out, taken


# Taps of the MTP block whose name the oracle and transformers' recorded values lack or shorten.
ORACLE_NAMES = {
    "mtp_h_nextn": "h_nextn",
    "mtp_result_output": "result_output",
    "mtp_Qcur": "Qcur",
    "mtp_Kcur": "Kcur",
    "mtp_attn_gated": "attn_gated",
    "mtp_l_out": "mtp_post_ffn",
}


def run_mtp(model, tokens):
    """The MTP block over the whole sequence, fed as the model's contract says."""
    recipe, taken = model.recipe, Taken()
    state = model.new_state()
    out = model.trunk(state, tokens, n_logits=0)
    hidden = recipe.steps.target_hidden(out.hidden, recipe.contract)
    rows = recipe.steps.pair_hidden(hidden, state.pending_h)
    first = recipe.contract.first_pos
    n_rows = len(tokens) - first
    model.mtp(state, tokens[first:], rows[first:], first, n_logits=n_rows, tap=taken)
    assert set(ORACLE_NAMES) <= {name.split("-")[0] for name in taken}
    return Taken({oracle_name(name): x for name, x in taken.items()})


def oracle_name(tap_name):
    name, dash, il = tap_name.partition("-")
    return ORACLE_NAMES.get(name, name) + dash + il


def with_ffn_parts(weights, tensors):
    """The oracle's tensors and the inner ones of its feed-forward networks, which it does not name."""
    for name in list(tensors):
        if "attn_post_norm-" not in name:
            continue
        prefix, il = name.split("attn_post_norm-")
        gate, up = (naive.matmul(weights[f"blk.{il}.ffn_{part}.weight"], tensors[name]) for part in ("gate", "up"))
        parts = {"ffn_gate": gate, "ffn_up": up, "ffn_swiglu": naive.silu(gate) * up}
        tensors.update({f"{prefix}{part}-{il}": x for part, x in parts.items()})
    return tensors


def naive_mtp(weights, hparams, tokens, h_post, contract):
    if contract == "training":
        return naive_model.mtp(weights, hparams, tokens[1:], h_post[:-1], list(range(len(tokens) - 1)))
    shifted = np.concatenate([np.zeros((1, h_post.shape[1])), h_post[:-1]])
    return naive_model.mtp(weights, hparams, tokens, shifted, list(range(len(tokens))))


# Taps that show a state before a batch; the oracle starts from nothing.
STATE_TAPS = ("conv_states", "state_predelta")


def assert_taps(taken, tensors, limit):
    """Every tapped tensor equals the oracle's of the same name."""
    shown = {name: x for name, x in taken.items() if not name.startswith(STATE_TAPS)}
    missing = sorted(set(shown) - set(tensors))
    assert not missing, f"taps without an oracle tensor: {missing}"
    errors = {n: naive.nmse(tensors[n], x.reshape(tensors[n].shape)) for n, x in shown.items()}
    print(f"worst NMSE {max(errors.values()):.1e} of {len(errors)} tensors")
    assert not {name: e for name, e in errors.items() if not e <= limit}


# THE ORACLE


@pytest.mark.parametrize("numerics", ["exact", "ggml"])
@pytest.mark.parametrize("case", CASES)
def test_trunk_equals_the_naive_oracle_in_every_tensor(files, case, numerics):
    weights, hparams, _, tokens = build(case)
    out, taken = run_trunk(open_model(files[case], numerics), tokens)
    theirs = naive_model.trunk(weights, hparams, tokens)
    assert len(taken) > 15 * naive_model.n_layer(hparams)
    assert_taps(taken, with_ffn_parts(weights, theirs.tensors), LIMIT[numerics])
    assert naive.nmse(theirs.logits, out.logits) <= LIMIT[numerics]
    assert naive.nmse(theirs.h_pre, out.hidden.pre) <= LIMIT[numerics]
    assert np.array_equal(out.hidden.post, taken["result_norm"])


@pytest.mark.parametrize("numerics", ["exact", "ggml"])
@pytest.mark.parametrize("contract", ["llama.cpp", "training"])
@pytest.mark.parametrize("case", CASES)
def test_mtp_block_equals_the_naive_oracle_in_every_tensor(files, case, contract, numerics):
    weights, hparams, _, tokens = build(case)
    taken = run_mtp(open_model(files[case], numerics, contract), tokens)
    h_post = naive_model.trunk(weights, hparams, tokens).h_post
    theirs = naive_mtp(weights, hparams, tokens, h_post, contract)
    assert len(taken) > 20
    assert_taps(taken, with_ffn_parts(weights, theirs.tensors), LIMIT[numerics])


def test_cell_0_sees_the_embedding_alone(files):
    _, hparams, _, tokens = build("plain")
    taken = run_mtp(open_model(files["plain"], "exact"), tokens)
    il = naive_model.n_layer(hparams)
    assert not np.any(taken[f"mtp_hnorm-{il}"][0])
    assert np.any(taken[f"mtp_enorm-{il}"][0])
    assert np.all(np.any(taken[f"mtp_hnorm-{il}"][1:], axis=-1))


def test_contracts_differ_only_by_cell_0(files):
    """RoPE is relative: positions one lower and no cell 0 change nothing but what cell 0 adds."""
    _, _, _, tokens = build("plain")
    model = open_model(files["plain"], "exact")
    h = model.trunk(model.new_state(), tokens, n_logits=0).hidden.post
    logits = []
    for first in (0, 7):
        out = model.mtp(model.new_state(), tokens[1:], h[:-1], first, n_logits=len(tokens) - 1)
        logits.append(out.logits)
    assert naive.nmse(logits[0], logits[1]) < 1e-10
    assert naive.nmse(run_mtp(model, tokens)["result_output"][1:], logits[0]) > 1e-6


# TRANSFORMERS


def assert_recorded(recorded, prefix, taken, n_least, limit=1e-10):
    """Every recorded tensor under the prefix at its kept rows, and its sum of squares over all rows."""
    rows = recorded[prefix + "rows"]
    names = [key[len(prefix + "power.") :] for key in recorded if key.startswith(prefix + "power.")]
    assert len(names) >= n_least
    errors = {}
    for name in names:
        ours = taken[name].reshape(len(taken[name]), -1)
        errors[name] = naive.nmse(recorded[prefix + name], ours[rows])
        power = float(np.sum(ours.astype(np.float64) ** 2))
        assert power == pytest.approx(float(recorded[prefix + "power." + name]), rel=1e-4), name
    print(f"{prefix} worst NMSE {max(errors.values()):.1e} of {len(errors)} tensors")
    assert not {name: e for name, e in errors.items() if not e <= limit}


@pytest.mark.parametrize("case", CASES)
def test_trunk_equals_transformers_recorded_values_in_every_layer(files, recorded, case):
    _, hparams, _, tokens = build(case)
    assert recorded[f"{case}.tokens"].tolist() == tokens
    _, taken = run_trunk(open_model(files[case], "exact"), tokens)
    assert_recorded(recorded, f"{case}.", taken, 2 * hparams["block_count"])


@pytest.mark.parametrize("contract", ["training", "llama.cpp"])
@pytest.mark.parametrize("case", CASES)
def test_mtp_block_equals_transformers_recorded_values(files, recorded, case, contract):
    _, _, _, tokens = build(case)
    taken = run_mtp(open_model(files[case], "exact", contract), tokens)
    assert_recorded(recorded, f"{case}.mtp_{contract.replace('.', '_')}.", taken, 4)


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_model_equals_transformers_live(files, case):
    pytest.importorskip("torch", reason="torch is not installed (extra: oracle)")
    reason = "transformers with Qwen3.5 is not installed (extra: oracle)"
    pytest.importorskip("transformers.models.qwen3_5", reason=reason)
    from tests.oracle_hf import Oracle

    weights, hparams, flags, tokens = build(case)
    oracle = Oracle(weights, hparams, flags, "float64", "recurrent")
    _, h, theirs = oracle.trunk(tokens)
    _, taken = run_trunk(open_model(files[case], "exact"), tokens)
    errors = {name: naive.nmse(x, taken[name]) for name, x in theirs.items()}
    logits, _, theirs = oracle.mtp(tokens[1:], h[:-1], list(range(len(tokens) - 1)))
    taken = run_mtp(open_model(files[case], "exact", "training"), tokens)
    errors.update({name: naive.nmse(x, taken[name]) for name, x in theirs.items()})
    errors["mtp logits"] = naive.nmse(logits, taken["result_output"])
    assert len(errors) > 5 * oracle.n_layer
    assert not {name: e for name, e in errors.items() if not e <= 1e-10}


def test_tiny_model_equals_transformers_recorded_values():
    path = DATA / "hf_tiny.npz"
    for needed in (TINY, path):
        if not needed.exists():
            pytest.skip(f"no {needed.name}; recorded by tools/record_hf.py --gguf tiny.gguf --rows 2 --out hf_tiny.npz")
    with np.load(path) as file:
        recorded = dict(file)
    assert hashlib.sha256(TINY.read_bytes()).hexdigest() == str(recorded["sha256"]), "recorded from another file"
    prompts = sorted({key.split(".")[0] for key in recorded if key.startswith("prompt")})
    assert prompts
    for prompt in prompts:
        tokens = recorded[f"{prompt}.tokens"].tolist()
        model = open_model(TINY, "exact", "training")
        _, taken = run_trunk(model, tokens)
        assert_recorded(recorded, f"{prompt}.", taken, 8)
        assert_recorded(recorded, f"{prompt}.mtp_training.", run_mtp(model, tokens), 4)


# BATCH INVARIANCE

TYPES = ("F32", "F16", "BF16", "Q8_0")
# rows that are multiples of 32, so that Q8_0 fits: n_embd 32, n_ff 64, n_v 32, heads 2 * 16
MICRO = shape(
    block_count=4,
    full_attention_interval=3,
    embedding_length=32,
    feed_forward_length=64,
    attention__head_count=2,
    attention__head_count_kv=1,
    ssm__group_count=2,
    ssm__time_step_rank=4,
    ssm__inner_size=32,
    n_vocab=40,
)
N_TOKENS = 9


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    folder = tmp_path_factory.mktemp("micro")
    weights = random_weights(11, MICRO)
    return {t: write_model(folder / f"{t}.gguf", weights, MICRO, t) for t in TYPES}


def run_in_chunks(model, tokens, sizes):
    """Trunk and head over batches of the given sizes; logits of every position, hidden rows, the state."""
    state: ModelState = model.new_state(poison=True)
    recipe = model.recipe
    trunk_logits, mtp_logits, at = [], [], 0
    for size in sizes:
        batch = tokens[at : at + size]
        out = model.trunk(state, batch, n_logits=len(batch), keep=len(batch))
        hidden = recipe.steps.target_hidden(out.hidden, recipe.contract)
        rows = recipe.steps.pair_hidden(hidden, state.pending_h)
        skip = max(0, recipe.contract.first_pos - at)
        if len(batch) > skip:
            head = model.mtp(state, batch[skip:], rows[skip:], at + skip, n_logits=len(batch) - skip)
            mtp_logits.append(head.logits)
        state.pending_h = hidden[-1].copy()
        trunk_logits.append(out.logits)
        at += len(batch)
    assert at == len(tokens)
    return np.concatenate(trunk_logits), np.concatenate(mtp_logits), state


def chunks(size, n):
    return [min(size, n - start) for start in range(0, n, size)]


def assert_same_bits(a, b):
    assert a.dtype == b.dtype == np.float32
    assert np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("numerics", ["exact", "ggml"])
def test_bits_do_not_depend_on_the_chunking(micro, numerics, type_name):
    kv_type = {"F16": "F16", "BF16": "BF16"}.get(type_name, "F32")
    model = open_model(micro[type_name], numerics, kv_type=kv_type)
    tokens = random_tokens(11, N_TOKENS, MICRO["n_vocab"])
    logits, mtp_logits, state = run_in_chunks(model, tokens, [N_TOKENS])
    assert np.all(np.isfinite(logits))
    assert np.all(np.isfinite(mtp_logits))
    for sizes in (*(chunks(n, N_TOKENS) for n in (1, 2, 3, 7)), [1, 4, 1, 3]):
        others = run_in_chunks(model, tokens, sizes)
        assert_same_bits(logits, others[0])
        assert_same_bits(mtp_logits, others[1])
        assert others[2].digest() == state.digest(), sizes


@pytest.mark.parametrize("numerics", ["exact", "ggml"])
def test_bits_do_not_depend_on_the_verify_width_nor_on_rejected_tokens(micro, numerics):
    """A verify batch of any width, rolled back by planes, leaves what one-by-one decoding leaves."""
    model = open_model(micro["Q8_0"], numerics, kv_type="F16")
    tokens = random_tokens(11, N_TOKENS, MICRO["n_vocab"])
    plain, digests, rows = model.new_state(), [], []
    for token in tokens:
        rows.append(model.trunk(plain, [token], n_logits=1).logits[0])
        digests.append(plain.digest())
    for width in range(1, 9):
        for n_right in {1, (width + 1) // 2, width}:
            batch = [t if i < n_right else (t + 1) % MICRO["n_vocab"] for i, t in enumerate(tokens[1 : 1 + width])]
            state = model.new_state(poison=True)
            model.trunk(state, tokens[:1], n_logits=0)
            out = model.trunk(state, batch, n_logits=width, keep=width)
            assert_same_bits(out.logits[:n_right], np.stack(rows[1 : 1 + n_right]))
            state.choose_plane(width - n_right)
            assert state.digest() == digests[n_right], (width, n_right)


def test_the_two_numerics_differ_in_bits_and_agree_in_value(micro):
    tokens = random_tokens(11, N_TOKENS, MICRO["n_vocab"])
    logits = {}
    for numerics in ("exact", "ggml"):
        logits[numerics], _, _ = run_in_chunks(open_model(micro["Q8_0"], numerics), tokens, [N_TOKENS])
    assert 1e-10 < naive.nmse(logits["exact"], logits["ggml"]) < 1e-2
