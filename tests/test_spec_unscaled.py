"""S100 to S108 on arrays: unscaled attention, GELU, the cap, inputs of layers and an assistant's ends, against the
float64 oracle. Whole models: test_gemma_model.py."""

import hashlib
import math

import numpy as np
import pytest

from mtpref import spec
from mtpref.spec.config import UnscaledConfig
from mtpref.spec.ops import discard, spec_ops
from tests import naive, naive_gemma
from tests.test_spec_windowed import bound

F32 = np.float32
EDGES = np.array([0.0, -0.0, 1e-30, -1e-30, 1e-7, -1e-7, 0.5, -0.5, 2.9, -2.9, 9.99, -9.99, 10.0, -10.0, 10.01, -10.01,
                  80.0, -80.0, 1e20, -1e20], F32)  # fmt: skip
WIDE = np.linspace(-12, 12, 4001, dtype=F32)
NARROW = (np.random.default_rng(0).standard_normal(2000) * 10.0 ** np.linspace(-9, 1, 2000)).astype(F32)


@pytest.mark.parametrize("x", [EDGES, WIDE, NARROW], ids=["edges", "wide", "narrow"])
def test_gelu_is_that_of_the_oracle_within_a_unit_of_the_last_place(x):
    found, wanted = spec.gelu(x), naive_gemma.gelu(np.where(np.abs(x) > 1e6, np.sign(x) * 1e6, x))
    wanted = np.where(np.abs(x) > 1e6, np.maximum(x, 0), wanted)
    # Where the exact value is next to 0 the oracle's 1 + tanh cancels.
    assert np.all(np.abs(found - wanted) <= np.spacing(np.abs(wanted).astype(F32)) + 1e-15 * np.abs(x))


def test_gelu_of_x_less_that_of_minus_x_is_x():
    assert np.allclose(spec.gelu(WIDE) - spec.gelu(-WIDE), WIDE, atol=2e-6)


# SHA-256 of ggml_table_gelu_f16 of llama.cpp 0c1e57098, built by GCC with AVX2: the places of finite numbers below 10
# in size, in the order of their bits. That compiler contracts 1 + b h h, which moves one place.
GGML_TABLE, CONTRACTED = "941d5b3ccda9cd5ca0a10eb534559bb12b9a4512387d4ba59e4532bb9644d812", {35071: 43475}


def test_the_table_is_ggmls_bit_by_bit_but_for_one_place():
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    gate = x[np.isfinite(x) & (np.abs(x) < 10)].astype(F32)
    places = spec.geglu_f16(gate, np.ones_like(gate)).astype(np.float16).view(np.uint16)
    for place, bits in CONTRACTED.items():
        assert abs(int(places[place]) - bits) == 1
        places[place] = bits
    assert hashlib.sha256(places.tobytes()).hexdigest() == GGML_TABLE


def test_what_lies_beside_the_table():
    one = np.ones(2, F32)
    assert spec.geglu_f16(np.array([10, 11, -10, -50], F32), np.full(4, 3, F32)).tolist() == [30, 33, 0, 0]
    between = np.array([1.00001, -0.70003], F32)  # no number of 16 bits
    assert np.array_equal(spec.geglu_f16(between, one), spec.geglu_f16(spec.round_f16(between), one))
    assert not np.array_equal(spec.geglu_f16(between, one), spec.geglu(between, one))


def test_tanh_and_the_cap_are_the_oracles():
    x = np.concatenate([WIDE, NARROW, EDGES]).astype(np.float64)
    wanted = np.array([math.tanh(v) for v in x])
    assert np.all(np.abs(spec.tanh64(x) - wanted) <= 1e-13 * np.abs(wanted))
    logits = (np.random.default_rng(1).standard_normal((3, 50)) * 40).astype(F32)
    for cap in (30.0, 1.5):
        assert naive.nmse(np.tanh(logits.astype(np.float64) / cap) * cap, spec.soft_cap(logits, cap)) < 1e-13
        assert np.abs(spec.soft_cap(logits, cap)).max() <= cap
    assert spec.soft_cap(logits, 0.0) is logits
    order = np.argsort(logits, axis=1)
    capped = np.take_along_axis(spec.soft_cap(logits, 30.0), order, axis=1)
    assert np.all(np.diff(capped, axis=1) >= 0)


def test_embeddings_are_scaled_by_the_root_of_their_width():
    x = np.random.default_rng(2).standard_normal((4, 48)).astype(F32)
    assert np.array_equal(spec.scaled_embedding(x), x * F32(math.sqrt(48)))


def config(n_window=0, n_head=4, n_head_kv=2, has_cells=True):
    return UnscaledConfig(24, n_head, n_head_kv, 10, n_window, 10, 1e4, 1e-6, has_cells=has_cells)


@pytest.mark.parametrize("kv_type", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("n_window", [0, 1, 3, 50])
@pytest.mark.parametrize("is_before", [False, True], ids=["its own cell too", "cells before it"])
def test_tokens_see_the_cells_of_the_window_and_scores_are_not_scaled(is_before, n_window, kv_type):
    """The last cells only, as a layer with a window keeps them; or, of an assistant, none of its position."""
    rng, n = np.random.default_rng(n_window), 9
    if is_before and n_window == 1:
        pytest.skip("a window of one token holds no cell of another")
    cells = [spec.load_kv(spec.store_kv(rng.standard_normal((n, 2, 10)).astype(F32), kv_type), kv_type) for _ in "kv"]
    pos = np.array([n] * 2 if is_before else range(n), np.int32)
    q = rng.standard_normal((len(pos), 4, 10)).astype(F32)
    hparams = {"attention.sliding_window": n_window or 1, "attention.sliding_window_pattern": [bool(n_window)]}
    rounded = spec.load_kv(spec.store_kv(q, kv_type), kv_type)
    wanted = naive_gemma.attend(hparams, 0, rounded.astype(np.float64), pos.tolist(), naive_gemma.Cells(*cells))
    stored = [spec.store_kv(x, kv_type) for x in cells]
    for numerics in ("exact", "ggml"):
        ops = spec_ops(numerics)
        found = ops.unscaled_seen(ops, config(n_window), q, *stored, kv_type, pos, n - 1)
        assert naive.nmse(wanted, found.reshape(len(pos), -1)) < 1e-13
        if n_window > 1 and is_before:  # the cells before the window are not there at all
            kept = [x[-(n_window - 1) :] for x in stored]
            again = ops.unscaled_seen(ops, config(n_window), q, *kept, kv_type, pos, n - 1)
            assert np.array_equal(found, again)


def weights(rng, names):
    shapes = {"attn_q": (40, 24), "attn_k": (20, 24), "attn_v": (20, 24), "attn_output": (24, 40), "attn_q_norm": (10,),
              "attn_k_norm": (10,)}  # fmt: skip
    return {f"blk.0.{n}.weight": rng.standard_normal(shapes[n]).astype(F32) for n in names}


BASE = {"attention.layer_norm_rms_epsilon": 1e-6, "attention.head_count": 4, "attention.head_count_kv": 2,
        "attention.key_length": 10, "attention.key_length_swa": 10, "rope.dimension_count": 10, "context_length": 64,
        "rope.freq_base": 1e4, "attention.sliding_window": 4}  # fmt: skip


@pytest.mark.parametrize("has_values", [True, False])
@pytest.mark.parametrize("numerics", ["exact", "ggml"])
def test_a_layer_with_cells_of_its_own_is_the_oracles(has_values, numerics):
    rng = np.random.default_rng(3)
    names = ["attn_q", "attn_k", "attn_output", "attn_q_norm", "attn_k_norm", *(["attn_v"] if has_values else [])]
    w = weights(rng, names)
    factors = np.array([1, 1, 2, 1e30, 1e30], F32)
    x = rng.standard_normal((6, 24)).astype(F32)
    hparams, positions = BASE | {"attention.sliding_window_pattern": [False]}, list(range(6))
    full = {**w, "rope_freqs.weight": factors}
    cells = naive_gemma.own_cells(full, hparams, 0, x, positions)
    q = naive_gemma.queries(full, hparams, 0, x, positions)
    wanted = naive.matmul(w["blk.0.attn_output.weight"], naive_gemma.attend(hparams, 0, q, positions, cells))
    ops, cfg = spec_ops(numerics), config()
    pos = np.arange(6, dtype=np.int32)
    frequencies = spec.divided_frequencies(spec.rope_frequencies(10, 1e4), factors)
    table = ops.rope_table(pos, frequencies, np.ones(5, np.bool_), 1.0)
    k, v = (np.full((6, 2, 10), np.nan, F32) for _ in "kv")
    found = ops.unscaled_attn_layer(ops, bound(w), cfg, x, k, v, "F32", pos, 5, table, discard)
    assert naive.nmse(wanted, found) < 1e-12
    assert naive.nmse(cells.k, k) < 1e-12
    assert naive.nmse(cells.v, v) < 1e-12
    # Without cells of its own it reads what is there, and writes nothing.
    before = k.copy(), v.copy()
    reading = {name: x for name, x in bound(w).items() if name not in ("attn_k.weight", "attn_v.weight")}
    again = ops.unscaled_attn_layer(ops, reading, config(has_cells=False), x, k, v, "F32", pos, 5, table, discard)
    assert np.array_equal(found, again)
    assert np.array_equal(before[0], k)
    assert np.array_equal(before[1], v)
