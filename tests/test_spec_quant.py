"""S5 to S7: ggml's quantisers bit by bit, matrix products against float64."""

import ctypes
import os
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpref import kernels, spec
from mtpref.base.errors import MtprefError
from mtpref.spec import products, quants
from tests import naive
from tests.blocks import QUANTISED, sane_matrix
from tests.random_weights import normal
from tests.samples import one_in
from tools import record_quantisers

PATH = Path(__file__).parent / "data" / "quantisers.npz"


@pytest.fixture(scope="module")
def recorded():
    with np.load(PATH) as file:
        return dict(file)


def matrix(type_name, n_out, n_in, seed=1, scale=1.0):
    """A matrix of the type: encoded normals, or random blocks with sane scales."""
    if type_name in quants.QUANTIZABLE:
        x = (scale * normal(seed, "w", n_out * n_in)).astype(np.float32).reshape(n_out, n_in)
        return spec.Matrix("w", type_name, n_out, n_in, quants.quantize(type_name, x).reshape(-1).view(np.uint8))
    return sane_matrix(np.random.default_rng(seed), type_name, n_out, n_in, scale)


def activation(n_tokens, n_in, seed=2, scale=1.0):
    return (scale * normal(seed, "x", n_tokens * n_in)).astype(np.float32).reshape(n_tokens, n_in)


def as_ggml_sees(type_name, x):
    """The activation after the round trip through the type that ggml pairs with the weights, in float64."""
    if type_name == "F32":
        return x.astype(np.float64)
    if type_name in ("F16", "BF16"):
        return (spec.round_f16(x) if type_name == "F16" else spec.round_bf16(x)).astype(np.float64)
    of_32 = spec.ACTIVATION_TYPES[type_name] in ("Q8_0", "Q8_1")
    codes, d = spec.quantize_q8_0(x) if of_32 else spec.quantize_q8_k(x)[:2]
    return codes.astype(np.float64) * np.repeat(d.astype(np.float64), 32 if of_32 else 256, axis=-1)


def sum_rounding(w, x):
    """What Q4_1 and Q5_1 add: each minimum times (the stored sum of a block less the sum of its codes * d)."""
    codes, d, s = (part.astype(np.float64) for part in spec.quantize_q8_1(x))
    rest = s - codes.reshape(*d.shape, 32).sum(axis=-1) * d
    return rest @ quants.unpack_legacy(w.type_name, w.raw).m.reshape(w.n_out, -1).astype(np.float64).T


# S5, BITS


def test_recorded_inputs_are_those_of_the_recorder(recorded):
    assert np.array_equal(recorded["blocks"].view(np.uint32), record_quantisers.blocks().view(np.uint32))
    assert np.array_equal(recorded["values"].view(np.uint32), record_quantisers.values().view(np.uint32))


def assert_quantisers(recorded):
    x = recorded["blocks"]
    codes, d, s = spec.quantize_q8_1(x)
    assert all(np.array_equal(a, b) for a, b in zip(spec.quantize_q8_0(x), (codes, d), strict=True))
    halves = [part.astype(np.float16).reshape(-1, 1).view(np.uint8) for part in (d, s)]
    codes = codes.reshape(-1, 32).view(np.uint8)
    assert np.array_equal(np.concatenate([halves[0], codes], axis=1), recorded["q8_0"])
    assert np.array_equal(np.concatenate([*halves, codes], axis=1), recorded["q8_1"])
    codes, d, sums = spec.quantize_q8_k(x)
    parts = (d.view(np.uint8), codes.view(np.uint8), sums.astype(np.int16).view(np.uint8))
    assert np.array_equal(np.concatenate(parts, axis=1), recorded["q8_k"])
    values = recorded["values"]
    assert np.array_equal(spec.bf16_bits(values), recorded["bf16"])
    assert np.array_equal(spec.store_kv(values, "F16"), recorded["f16"])
    assert_weight_quantisers(recorded)


def assert_weight_quantisers(recorded):
    """Byte by byte, on all blocks whose scales a float16 can hold."""
    for name in ("q4_0", "q4_1", "q5_0", "q5_1"):
        theirs = recorded[name]
        halves = np.ascontiguousarray(theirs[:, : 4 if name.endswith("1") else 2]).view(np.float16)
        fits = np.isfinite(halves).all(axis=1)
        assert 0.5 < fits.mean() < 1
        ours = quants.quantize(name.upper(), recorded["blocks"].reshape(-1, 32)[fits])
        assert np.array_equal(ours, theirs[fits]), name


def test_quantisers_equal_ggmls_scalar_reference(recorded):
    assert_quantisers(recorded)


def test_quantisers_equal_a_live_ggml():
    root = os.environ.get("MTPREF_LLAMA_CPP")
    if not root:
        pytest.skip("set MTPREF_LLAMA_CPP=DIR to a llama.cpp tree that was built in DIR/build")
    assert_quantisers(record_quantisers.record(record_quantisers.find_library(Path(root) / "build")))


def test_recorded_inputs_tell_the_rules_apart(recorded):
    """Each rule that ggml's other code paths follow gives other codes somewhere in the recorded inputs."""
    x = recorded["blocks"].reshape(-1, 32)
    theirs = recorded["q8_0"][:, 2:].view(np.int8)
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
    assert np.any(np.rint(x * inverse) != theirs)
    rows, codes_k = recorded["blocks"], recorded["q8_k"][:, 4:260].view(np.int8)
    m = np.take_along_axis(rows, np.argmax(np.abs(rows), axis=1)[:, None], axis=1)
    inverse = np.divide(np.float32(-127), m, out=np.zeros_like(m), where=m != 0)
    fused = spec.fma32(inverse, rows, np.float32(12582912.0)) - np.float32(12582912.0)
    assert np.any(fused != codes_k)


def test_q8_0_codes_use_the_scale_before_its_rounding_to_float16():
    x = np.full(32, 0.5, np.float32)
    x[0] = 1.0
    codes, d = spec.quantize_q8_0(x)
    assert codes[0] == 127
    assert codes[1] == 64  # 0.5 * 127 = 63.5, away from zero
    assert d[0] == np.float32(np.float16(np.float32(1) / np.float32(127))) != np.float32(1) / np.float32(127)


def test_q8_k_takes_the_sign_of_the_first_greatest_element():
    x = np.zeros(256, np.float32)
    x[[3, 9]] = 2.0, -2.0
    codes, d, sums = spec.quantize_q8_k(x)
    assert (codes[3], codes[9], d[0]) == (-127, 127, np.float32(1) / (np.float32(-127) / np.float32(2)))
    codes, d, sums = spec.quantize_q8_k(-x)
    assert (codes[3], codes[9]) == (-127, 127)
    assert d[0] > 0
    assert sums.tolist() == [0] * 16


def test_scales_of_a_zero_block_are_zero():
    codes, d = spec.quantize_q8_0(np.zeros((2, 64), np.float32))
    assert not np.any(codes)
    assert d.shape == (2, 2)
    assert not np.any(d)
    codes, d, sums = spec.quantize_q8_k(np.zeros(512, np.float32))
    assert not np.any(codes)
    assert not np.any(d)
    assert sums.shape == (32,)


@pytest.mark.parametrize("scale", [1e-44, 1e-40, 3e-38])
def test_block_too_small_for_its_inverse_scale_contributes_nothing(scale):
    """1 / d overflows, the float16 scale is 0: whatever the codes are, the product is 0 and finite."""
    x = np.full((1, 256), scale, np.float32)
    for type_name in QUANTISED:
        y = spec.mul_mat_ggml(matrix(type_name, 3, 256), x)
        assert np.all(np.abs(y) <= 1e-34), type_name


def test_float16_scale_of_q8_0_ends_at_small_and_large_blocks():
    one = np.ones(32, np.float32)
    assert spec.quantize_q8_0(np.float32(3.7e-6) * one)[1] == 0
    assert spec.quantize_q8_0(np.float32(3.9e-6) * one)[1] > 0
    assert np.isfinite(spec.quantize_q8_0(np.float32(8.3e6) * one)[1])
    assert np.isinf(spec.quantize_q8_0(np.float32(8.4e6) * one)[1])


@settings(derandomize=True, max_examples=60, deadline=None)
@given(exponent=st.integers(-110, 110), seed=st.integers(0, 1000))
def test_quantisation_error_is_half_a_step(exponent, seed):
    x = np.ldexp(normal(seed, "x", 256), exponent).astype(np.float32)
    codes, d = spec.quantize_q8_0(x)
    exact_d = np.abs(x.reshape(-1, 32)).max(axis=1).astype(np.float64) / 127
    error = np.abs(codes.reshape(-1, 32) * exact_d[:, None] - x.reshape(-1, 32).astype(np.float64))
    assert np.all(error <= 0.50001 * exact_d[:, None])
    codes, d, _ = spec.quantize_q8_k(x)
    assert np.all(np.abs(codes * d.astype(np.float64) - x) <= 0.50001 * np.abs(d))


def test_rounding_to_bfloat16_keeps_a_nan_and_reaches_infinity():
    nan = np.array([0x7F800001, 0xFFFFFFFF, 0x7F7FFFFF, 0xFF7FFFFF], np.uint32).view(np.float32)
    rounded = spec.round_bf16(nan)
    assert np.isnan(rounded[:2]).all()
    assert rounded[2:].tolist() == [np.inf, -np.inf]
    assert spec.round_f16(np.array([65519.99, 65520.0, -1e30], np.float32)).tolist() == [65504.0, np.inf, -np.inf]


# S6, PRODUCTS


@pytest.mark.parametrize("type_name", spec.GGML_PRODUCTS)
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e3, 1e30])
@pytest.mark.covering
def test_exact_product_equals_float64(type_name, scale):
    w, x = matrix(type_name, 7, 512), activation(3, 512, scale=scale)
    truth = naive.matmul(w.dequantize(), x)
    y = spec.mul_mat_exact(w, x)
    assert y.dtype == np.float32
    # one rounding: half an ulp of each element
    assert np.all(np.abs(y - truth) <= 2.0**-24 * np.abs(truth) + 1e-13 * np.abs(truth).max() + 1e-45)


@pytest.mark.parametrize("type_name", spec.GGML_PRODUCTS)
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
@pytest.mark.covering
def test_ggml_product_equals_float64_on_quantised_activations(type_name, scale):
    w, x = matrix(type_name, 7, 512), activation(3, 512, scale=scale)
    y = spec.mul_mat_ggml(w, x)
    assert y.dtype == np.float32
    truth = naive.matmul(w.dequantize(), as_ggml_sees(type_name, x))
    if type_name.endswith("_1"):
        truth = truth + sum_rounding(w, x)
    assert naive.nmse(truth, y) < 1e-13  # measured up to 1.4e-14


PRICES = {"F32": 1e-13, "F16": 2e-7, "BF16": 1e-5, "Q8_0": 2e-4} | dict.fromkeys(QUANTISED, 0.0004)


def activation_blocks(type_name, x):
    """One row of activations as ggml's blocks of that type."""
    if type_name == "Q8_K":
        codes, d, sums = spec.quantize_q8_k(x)
        parts = [d.reshape(-1, 1).view(np.uint8), codes.reshape(-1, 256).view(np.uint8)]
        parts.append(sums.astype(np.int16).reshape(-1, 16).view(np.uint8))
    else:
        codes, *halves = spec.quantize_q8_1(x)
        halves = halves[: 1 if type_name == "Q8_0" else 2]
        parts = [half.astype(np.float16).reshape(-1, 1).view(np.uint8) for half in halves]
        parts.append(codes.reshape(-1, 32).view(np.uint8))
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


@pytest.mark.parametrize("type_name", QUANTISED)
def test_products_equal_a_live_ggml(type_name):
    """ggml's own dot product of the same blocks: the same number up to the order of float32 additions."""
    root = os.environ.get("MTPREF_LLAMA_CPP")
    if not root:
        pytest.skip("set MTPREF_LLAMA_CPP=DIR to a llama.cpp tree that was built in DIR/build")
    library = record_quantisers.find_library(Path(root) / "build", "ggml-cpu")
    library.ggml_cpu_init()
    kind = spec.ACTIVATION_TYPES[type_name]
    dot = getattr(library, f"ggml_vec_dot_{type_name.lower().replace('_k', '_K')}_{kind.lower().replace('_k', '_K')}")
    dot.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        *[ctypes.c_size_t, ctypes.c_void_p] * 2,
        ctypes.c_size_t,
        ctypes.c_int,
    ]
    w, x = matrix(type_name, 40, 1024), activation(1, 1024)
    blocks, theirs = activation_blocks(kind, x), np.zeros(40, np.float32)
    for r in range(40):
        row = np.ascontiguousarray(w.rows(r, r + 1).raw)
        dot(1024, theirs[r:].ctypes.data, 0, row.ctypes.data, 0, blocks.ctypes.data, 0, 1)
    assert naive.nmse(spec.mul_mat_ggml(w, x)[0], theirs) < 1e-12


@pytest.mark.parametrize("type_name", PRICES)
def test_price_of_quantising_activations(type_name):
    w, x = matrix(type_name, 64, 1024), activation(4, 1024)
    error = naive.nmse(spec.mul_mat_exact(w, x), spec.mul_mat_ggml(w, x))
    limit = PRICES[type_name]
    assert limit / 1000 < error + (type_name == "F32") < limit + (type_name == "F32")


def test_q8_0_product_is_an_exact_integer_and_one_fma_for_each_block():
    w, x = matrix("Q8_0", 3, 96), activation(2, 96)
    codes_x, d_x = spec.quantize_q8_0(x)
    blocks = w.raw.reshape(3, 3, 34)
    d_w = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0].astype(np.float32)
    codes_w = blocks[..., 2:].view(np.int8).astype(int)
    y = spec.mul_mat_ggml(w, x)
    for t in range(2):
        for r in range(3):
            acc = np.float32(0)
            for b in range(3):
                integer = int(np.dot(codes_w[r, b], codes_x[t, 32 * b : 32 * b + 32].astype(int)))
                exact = Fraction(integer) * Fraction(float(d_w[r, b] * d_x[t, b])) + Fraction(float(acc))
                acc = round_to_f32(exact)
            assert y[t, r] == acc


def test_q4_1_product_adds_the_minimum_times_the_stored_sum():
    w, x = matrix("Q4_1", 1, 32), activation(1, 32)
    codes_x, d_x, s_x = spec.quantize_q8_1(x)
    block = quants.unpack_legacy("Q4_1", w.raw)
    integer = int(block.q[0].astype(int) @ codes_x[0].astype(int))
    acc = round_to_f32(Fraction(integer) * Fraction(float(block.d[0, 0] * d_x[0, 0])))
    exact = Fraction(float(block.m[0, 0])) * Fraction(float(s_x[0, 0])) + Fraction(float(acc))
    assert spec.mul_mat_ggml(w, x)[0, 0] == round_to_f32(exact)


def test_sum_of_q8_1_uses_the_scale_before_its_rounding():
    x = np.abs(activation(200, 32))
    codes, d, s = spec.quantize_q8_1(x)
    unrounded = x.max(axis=1) / np.float32(127)
    totals = codes.sum(axis=1, dtype=np.int32).astype(np.float32)
    assert np.array_equal(s[:, 0], spec.round_f16(totals * unrounded))
    assert np.any(s[:, 0] != spec.round_f16(totals * d[:, 0]))


def round_to_f32(x):
    """A fraction of ordinary size rounded to float32, ties to even, by integers alone."""
    if x == 0:
        return np.float32(0)
    sign, x, exponent = (-1 if x < 0 else 1), abs(x), 0
    while x * Fraction(2) ** -exponent >= 2**24:
        exponent += 1
    while x * Fraction(2) ** -exponent < 2**23:
        exponent -= 1
    return np.float32(sign * float(round(x * Fraction(2) ** -exponent) * Fraction(2) ** exponent))


@pytest.mark.parametrize("type_name", spec.GGML_PRODUCTS)
@pytest.mark.parametrize("product", [spec.mul_mat_exact, spec.mul_mat_ggml])
@pytest.mark.covering
def test_product_of_a_token_does_not_depend_on_its_batch(type_name, product):
    w, x = matrix(type_name, 5, 256), activation(6, 256)
    whole = product(w, x)
    for t in range(6):
        assert np.array_equal(product(w, x[t : t + 1])[0].view(np.uint32), whole[t].view(np.uint32))
    assert np.array_equal(product(w.rows(1, 4), x).view(np.uint32), whole[:, 1:4].copy().view(np.uint32))


@pytest.mark.parametrize("n_in", [1, 31, 33, 100])
def test_rows_need_not_be_a_multiple_of_the_lanes(n_in):
    w, x = matrix("F32", 4, n_in), activation(2, n_in)
    truth = naive.matmul(w.dequantize(), x)
    assert naive.nmse(truth, spec.mul_mat_exact(w, x)) < 1e-14
    assert naive.nmse(truth, spec.mul_mat_ggml(w, x)) < 1e-13


@pytest.mark.parametrize("type_name", quants.K_TYPES)
def test_integer_dots_do_not_overflow(type_name):
    """The greatest integers of each type (all bits set, or Q6_K's least), against whole numbers."""
    raw = np.full((1, quants.row_bytes(type_name, 256)), 255, np.uint8)
    if type_name == "Q6_K":
        raw[:, 192:208] = 128  # scale -128
    for at in {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(type_name, (0, 2)):
        raw[:, at : at + 2] = np.array([1.0], np.float16).view(np.uint8)
    w = spec.Matrix("w", type_name, 1, 256, raw.reshape(-1))
    y = spec.mul_mat_ggml(w, np.full((1, 256), 127, np.float32))
    assert y[0, 0] == 127 * w.dequantize().astype(np.float64).sum()


@pytest.mark.parametrize("type_name", ["Q8_K", "Q8_1", "I32", "F64"])
def test_weight_type_without_a_product_is_one_clear_line(type_name):
    w = spec.Matrix("blk.0.attn_q.weight", type_name, 1, 256, np.zeros(74, np.uint8))
    expected = rf"blk\.0\.attn_q\.weight: no matrix product for type {type_name}, expected one of F32.*requantise"
    for product in (spec.mul_mat_ggml, spec.mul_mat_exact):
        with pytest.raises(MtprefError, match=expected):
            product(w, np.zeros((1, 256), np.float32))


# S6, TILES


def test_every_type_that_is_decoded_has_a_product_and_an_activation_type():
    assert set(spec.GGML_PRODUCTS) == set(spec.ACTIVATION_TYPES) == set(quants.DEQUANTIZABLE)
    assert set(spec.TILE_TYPES) == set(QUANTISED) - set(quants.LEGACY_TYPES) - set(quants.K_TYPES)


def test_tiles_cover_all_rows_once(monkeypatch):
    w, x = matrix("IQ4_XS", 11, 256), activation(2, 256)
    whole = [product(w, x) for product in (spec.mul_mat_exact, spec.mul_mat_ggml)]
    for n_rows in (1, 3, 11, 50):
        monkeypatch.setattr(products, "TILE_ELEMENTS", 256 * n_rows)
        assert [tile.n_out for _, tile in w.tiles()] == [min(n_rows, 11 - i) for i in range(0, 11, n_rows)]
        for y, product in zip(whole, (spec.mul_mat_exact, spec.mul_mat_ggml), strict=True):
            assert np.array_equal(product(w, x).view(np.uint32), y.view(np.uint32))
    monkeypatch.setattr(products, "TILE_ELEMENTS", 100)  # less than a row
    assert len(list(w.tiles())) == 11


@pytest.mark.parametrize("type_name", one_in(3, spec.TILE_TYPES))
def test_peak_memory_of_a_tiled_type_does_not_grow_with_the_matrix(type_name):
    """A tile is 1 MiB, and decoding it needs a few times as much (measured: at most 3.4 MiB)."""
    n_in, n_out = 1024, 16384 if kernels.available() else 2048  # 64 or 8 MiB as float32
    one = matrix(type_name, 16, n_in)
    w = spec.Matrix("w", type_name, n_out, n_in, np.tile(one.raw.reshape(16, -1), (n_out // 16, 1)).reshape(-1))
    x = activation(1, n_in)
    product = kernels.mul_mat_ggml if kernels.available() else spec.mul_mat_ggml
    product(one, x)  # what is compiled or imported once does not count
    tracemalloc.start()
    try:
        product(w, x)
        spec.get_rows(w, np.array([0, n_out - 1], np.int32))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 << 20, f"{peak / 2**20:.1f} MiB"


# S7


@pytest.mark.parametrize("type_name", spec.GGML_PRODUCTS)
def test_embedding_rows_are_the_dequantised_rows(type_name):
    w = matrix(type_name, 9, 256)
    ids = np.array([8, 0, 3, 3], np.int32)
    assert np.array_equal(spec.get_rows(w, ids), w.dequantize()[ids])
