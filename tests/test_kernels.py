"""The Numba twins against the specification, bit by bit: values of every scale, odd sizes, every weight type."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mtpref import kernels, spec
from mtpref.base.errors import MtprefError
from mtpref.spec import quants
from tests.blocks import BLOCK, HALVES, random_bytes, set_halves

pytestmark = pytest.mark.skipif(not kernels.available(), reason="NUMBA_DISABLE_JIT is set: no kernels to compare")

SCALES = ("unit", "mixed", "tiny", "huge", "zeros", "nan")
TYPES = tuple(spec.GGML_PRODUCTS)
TOKENS = (1, 2, 3, 8)
NUMERICS = [pytest.param(spec.dot32, False, id="ggml"), pytest.param(spec.dot64, True, id="exact")]
# Float16 scales: ordinary ones of both signs, 0 and -0, the smallest and the greatest subnormal.
SCALE_BITS = np.array([0x2400, 0x9C00, 0x1234, 0x0000, 0x8000, 0x0001, 0x03FF, 0x8200], "<u2")


def values(rng: np.random.Generator, shape: tuple[int, ...], scale: str) -> np.ndarray:
    """Random float32: unit normal; 1e-30 .. 1e30; subnormal; near the limit; mostly signed zeros; with inf and NaN."""
    x = rng.standard_normal(shape)
    with np.errstate(all="ignore"):
        if scale in ("mixed", "nan"):
            x = x * 10.0 ** rng.uniform(-30, 30, shape)
        elif scale == "tiny":
            x = x * 10.0 ** rng.uniform(-46, -36, shape)
        elif scale == "huge":
            x = x * 10.0 ** rng.uniform(18, 38, shape)
        elif scale == "zeros":
            x = np.where(rng.random(shape) < 0.8, np.copysign(0.0, x), x)
        x = x.astype(np.float32)
    if scale == "nan":
        odd = np.array([np.nan, np.inf, -np.inf, 0.0], np.float32)
        x = np.where(rng.random(shape) < 0.02, odd[rng.integers(0, 4, shape)], x)
    return x


def unit_values(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return values(rng, shape, "unit")


def matrix(rng: np.random.Generator, type_name: str, n_out: int, n_in: int, scale: str = "unit") -> spec.Matrix:
    """A random matrix: random codes with sane scales, or random floats; its bytes are read-only and unaligned."""
    if type_name in HALVES:
        raw = random_bytes(rng, type_name, n_out, n_in)
        set_halves(raw, type_name, rng.permutation(np.resize(SCALE_BITS, raw.size // n_out + 8)).view(np.float16))
    else:
        weights = values(rng, (n_out, n_in), scale)
        raw = quants.quantize(type_name, weights)
    shifted = np.concatenate([np.zeros(1, np.uint8), raw.reshape(-1)])
    shifted.flags.writeable = False
    return spec.Matrix("w", type_name, n_out, n_in, shifted[1:])


def assert_same(expected: object, found: object) -> None:
    """Equal types, shapes and bits; NaN equals NaN, since its sign and payload are the processor's."""
    if isinstance(expected, tuple):
        assert len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            assert_same(one, other)
        return
    expected, found = np.asarray(expected), np.asarray(found)
    assert (expected.dtype, expected.shape) == (found.dtype, found.shape)
    if expected.dtype.kind == "f":
        nan = np.isnan(expected)
        np.testing.assert_array_equal(nan, np.isnan(found))
        integer = np.dtype(f"u{expected.dtype.itemsize}")
        expected, found = expected.view(integer)[~nan], np.ascontiguousarray(found).view(integer)[~nan]
    np.testing.assert_array_equal(expected, found)


def check(name: str, *args: object, dot: object = None, wide: bool | None = None) -> None:
    """The twin gives the specification's bits."""
    with np.errstate(all="ignore"):
        expected = getattr(spec, name)(*args) if dot is None else getattr(spec, name)(*args, dot)
    found = getattr(kernels, name)(*args) if wide is None else getattr(kernels, name)(*args, wide)
    assert_same(expected, found)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261121)


# --------------------------------------------------------------------------------------- arithmetic


def hard_sums(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """a, b, c with a * b near -c, near half an ulp of c, and far from it: where a second rounding would show."""
    a, b = values(rng, (n,), "mixed"), values(rng, (n,), "mixed")
    with np.errstate(all="ignore"):
        product = a.astype(np.float64) * b
        factor = 10.0 ** rng.integers(-9, 10, n) * rng.choice([-1.0, 1.0, 0.5, -0.5], n)
        c = (product * np.where(rng.random(n) < 0.5, -1.0, factor)).astype(np.float32)
        ulps = rng.integers(-2, 3, n).astype(np.int32)
    return [a, b, np.where(np.isfinite(c), (c.view(np.int32) + ulps).view(np.float32), c)]


@pytest.mark.parametrize("scale", [*SCALES, "hard"])
def test_fma32_is_the_specifications(rng: np.random.Generator, scale: str) -> None:
    from numba import njit

    from mtpref.kernels.arithmetic import scalars

    @njit
    def apply(a, b, c):
        out = np.empty_like(a)
        for i in range(len(a)):
            out[i] = scalars.fma32(a[i], b[i], c[i])
        return out

    n = 4000
    a, b, c = hard_sums(rng, n) if scale == "hard" else [values(rng, (n,), scale) for _ in range(3)]
    with np.errstate(all="ignore"):
        assert_same(spec.fma32(a, b, c), apply(a, b, c))


def edge_arguments(rng: np.random.Generator) -> np.ndarray:
    """Every binade of float32, the neighbourhoods of the limits of exp, softplus and float32, zeros, inf, NaN."""
    near = np.array([0.0, 20.0, 88.72, 103.97, 104.0, 700.0, 701.0, 1e30, np.log(2) / 2], np.float32)
    near = np.concatenate([near, np.nextafter(near, np.inf), np.nextafter(near, -np.inf)])
    binades = (10.0 ** rng.uniform(-45, 38, 3000)).astype(np.float32)
    x = np.concatenate([near, binades, rng.uniform(-110, 110, 5000).astype(np.float32)])
    return np.concatenate([x, -x, np.array([np.inf, -np.inf, np.nan], np.float32)])


@pytest.mark.parametrize("name", ["exp64", "log1p64", "sincos64", "exp", "sigmoid", "silu", "softplus"])
def test_elementary_functions_are_the_specifications(rng: np.random.Generator, name: str) -> None:
    from numba import njit

    from mtpref.kernels.arithmetic import arith

    function = getattr(arith, name)

    @njit
    def apply(x, out):
        for i in range(len(x)):
            out[i] = function(x[i])

    x = edge_arguments(rng)
    if name == "log1p64":
        x = np.abs(x[np.isfinite(x)])  # it reads the bits of its argument: numbers only
    if name == "sincos64":
        x = np.abs(x[np.abs(x) < 2**20])
    x = x.astype(np.float64) if name.endswith("64") else x
    with np.errstate(all="ignore"):
        expected = np.stack(getattr(spec, name)(x), axis=-1) if name == "sincos64" else getattr(spec, name)(x)
    found = np.empty_like(expected)
    apply(x, found)
    assert_same(expected, found)


def test_sixteen_bit_floats_convert_exactly(rng: np.random.Generator) -> None:
    from numba import njit

    from mtpref.kernels.arithmetic import arith, scalars

    @njit
    def widen(bits):
        return [scalars.f32_of_f16(b) for b in bits]

    @njit
    def rounded(x):
        return [(arith.round_f16(v), arith.round_bf16(v)) for v in x]

    bits = np.arange(65536, dtype=np.uint16)
    assert_same(bits.view(np.float16).astype(np.float32), np.array(widen(bits), np.float32))
    halves = bits.view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    ties = (halves[1:].astype(np.float64) / 2 + halves[:-1].astype(np.float64) / 2).astype(np.float32)
    x = np.concatenate([ties, np.nextafter(ties, np.float32(np.inf)), edge_arguments(rng), halves])
    x = np.concatenate([x, np.array([65519.0, 65520.0, 65536.0, 3e-8, 2.0**-25], np.float32)])
    found = np.array(rounded(x), np.float32)
    assert_same(spec.round_f16(x), found[:, 0])
    assert_same(spec.round_bf16(x), found[:, 1])


# ------------------------------------------------------------------------------------- matrix products


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("n_tokens", [1, 3])
def test_quantisers_are_the_specifications(rng: np.random.Generator, scale: str, n_tokens: int) -> None:
    x = values(rng, (n_tokens, 2560), scale)
    x[0, :256] = np.float32(0)
    x[0, 256:512] = x[0, 256] * 2.0 ** -rng.integers(0, 9, 256)  # exact halves for the rounding to meet
    if scale == "nan":
        x[:, 512:768] = np.where(np.isfinite(x[:, 512:768]), x[:, 512:768], 1)
        with np.errstate(all="ignore"):
            codes, scales, _ = spec.quantize_q8_k(x)
        found = kernels.quantize_q8_k(x)
        keep = np.isfinite(scales).repeat(256, axis=1)  # codes beside a NaN scale have no meaning
        assert_same(scales, found[1])
        assert_same(codes[keep], found[0][keep])
    else:
        with np.errstate(all="ignore"):
            check("quantize_q8_k", x)
    with np.errstate(all="ignore"):
        check("quantize_q8_0", x)
        check("quantize_q8_1", x)


@pytest.mark.parametrize("n_tokens", TOKENS)
@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("name", ["mul_mat_exact", "mul_mat_ggml"])
@pytest.mark.covering(2)
def test_products_are_the_specifications(rng: np.random.Generator, name: str, type_name: str, n_tokens: int) -> None:
    n_in = {1: 77, 32: 96, 64: 192, 128: 384, 256: 512}[BLOCK[type_name]]
    for scale in SCALES:
        w = matrix(rng, type_name, 5, n_in, scale)
        check(name, w, values(rng, (n_tokens, n_in), scale))


@pytest.mark.parametrize("type_name", TYPES)
def test_a_view_of_rows_and_a_strided_activation_give_the_same_product(
    rng: np.random.Generator, type_name: str
) -> None:
    w = matrix(rng, type_name, 9, 256)
    x = unit_values(rng, 6, 256)
    for product in (kernels.mul_mat_exact, kernels.mul_mat_ggml):
        assert_same(product(w, x)[::2, 2:7], product(w.rows(2, 7), x[::2]))


@pytest.mark.parametrize("n_in", [1, 32, 33, 64])
def test_products_that_underflow_keep_their_sign(n_in: int) -> None:
    weights, x = np.full((1, n_in), -1e-40, np.float32), np.full((1, n_in), 1e-40, np.float32)
    w = spec.Matrix("w", "F32", 1, n_in, weights.view(np.uint8).reshape(-1))
    assert np.signbit(spec.mul_mat_ggml(w, x)[0, 0]) == (n_in >= 32)  # below 32 a lane holds +0
    check("mul_mat_ggml", w, x)
    check("mul_mat_exact", w, x)


def test_a_type_without_a_product_is_refused() -> None:
    w = spec.Matrix("blk.0.ffn_up.weight", "Q8_1", 1, 256, np.zeros(288, np.uint8))
    for product in (kernels.mul_mat_exact, kernels.mul_mat_ggml):
        with pytest.raises(MtprefError, match=r"blk\.0\.ffn_up\.weight.*Q8_1.*Q8_0.*requantise"):
            product(w, np.zeros((1, 256), np.float32))


@pytest.mark.parametrize("type_name", TYPES)
def test_random_bytes_give_the_specifications_product(rng: np.random.Generator, type_name: str) -> None:
    """Scales of any bits, infinite and NaN among them."""
    w = spec.Matrix("w", type_name, 24, 512, random_bytes(rng, type_name, 24, 512).reshape(-1))
    with np.errstate(all="ignore"):
        check("mul_mat_ggml", w, unit_values(rng, 2, 512))
        check("mul_mat_exact", w, unit_values(rng, 2, 512))


def test_a_tiled_product_of_several_tiles_is_the_specifications(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtpref.spec.products.TILE_ELEMENTS", 3 * 256)
    w, x = matrix(rng, "IQ4_XS", 8, 256), unit_values(rng, 3, 256)
    for name in ("mul_mat_ggml", "mul_mat_exact"):
        check(name, w, x)
        several = getattr(kernels, name)(w, x)
        monkeypatch.undo()
        assert_same(getattr(kernels, name)(w, x), several)
        monkeypatch.setattr("mtpref.spec.products.TILE_ELEMENTS", 3 * 256)


@pytest.mark.parametrize("type_name", TYPES)
def test_get_rows_is_the_specifications(rng: np.random.Generator, type_name: str) -> None:
    check("get_rows", matrix(rng, type_name, 7, 256), np.array([6, 0, 6], np.int32))


# ---------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("n", [1, 31, 32, 33, 100, 256])
def test_norms_are_the_specifications(rng: np.random.Generator, scale: str, n: int) -> None:
    for shape in ((1, n), (3, n), (2, 4, n)):
        x, z = values(rng, shape, scale), values(rng, shape, "unit")
        check("rms_norm", x, values(rng, (n,), "mixed"), 1e-6)
        check("l2_norm", x, 1e-6)
        check("gated_norm", x, z, values(rng, (n,), "unit"), 1e-6)
        check("gated_norm", z, x, values(rng, (n,), "unit"), 1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_gates_are_the_specifications(rng: np.random.Generator, scale: str) -> None:
    for n_tokens in TOKENS:
        x, y = values(rng, (n_tokens, 4, 33), scale), values(rng, (n_tokens, 4, 33), scale)
        check("swiglu", x, y)
        check("attn_gate", x, y)
        alpha, bias = values(rng, (n_tokens, 6), scale), values(rng, (6,), "unit")
        check("delta_gates", alpha, -alpha, bias, -np.abs(bias))


def test_gates_take_the_interleaved_views(rng: np.random.Generator) -> None:
    q, gate = spec.split_q_gate(unit_values(rng, 3, 4 * 2 * 16), 4)
    check("attn_gate", q, gate)


def test_rope_is_the_specifications(rng: np.random.Generator) -> None:
    frequencies = spec.rope_frequencies(32, 1e7)
    pos = np.array([-3, 0, 1, 2, 31, 4095, 262143, 1048575], np.int32)
    for has_position in (np.ones(16, np.bool_), spec.imrope_has_position(32, (3, 2, 2, 0))):
        for magnitude in (1.0, 1.1386294, 0.7):
            check("rope_table", pos, frequencies, has_position, magnitude)
        check("rope_table", pos, frequencies, has_position)
    cos, sin = spec.rope_table(pos, frequencies, has_position)
    for scale in SCALES:
        check("rope", values(rng, (8, 3, 50), scale), cos, sin)


@pytest.mark.parametrize(("dot", "wide"), NUMERICS)
@pytest.mark.parametrize("d_conv", [1, 3, 4, 7])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.covering(2)
def test_convolution_is_the_specifications(
    rng: np.random.Generator, scale: str, d_conv: int, dot: object, wide: bool
) -> None:
    for n_tokens in TOKENS:
        window = values(rng, (d_conv - 1 + n_tokens, 19), scale)
        check("conv_silu", window, values(rng, (19, d_conv), "unit"), dot=dot, wide=wide)
        # Here all products underflow to a signed zero.
        check("conv_silu", window, values(rng, (19, d_conv), "tiny"), dot=dot, wide=wide)


@pytest.mark.parametrize(("dot", "wide"), NUMERICS)
@pytest.mark.parametrize("size", [8, 32, 45])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.covering(2)
def test_delta_rule_is_the_specifications(
    rng: np.random.Generator, scale: str, size: int, dot: object, wide: bool
) -> None:
    for n_tokens, n_k_head, keep in ((1, 2, 1), (2, 4, 1), (3, 1, 3), (8, 2, 5)):
        q, k = (values(rng, (n_tokens, n_k_head, size), scale) for _ in range(2))
        v, g = values(rng, (n_tokens, 4, size), scale), -np.abs(unit_values(rng, n_tokens, 4))
        beta = np.abs(unit_values(rng, n_tokens, 4))
        state = values(rng, (4, size, size), scale)
        check("delta_rule", q, k, v, g, beta, state, keep, dot=dot, wide=wide)


def test_delta_rule_refuses_what_the_specification_refuses(rng: np.random.Generator) -> None:
    for n_k_head, keep in ((3, 1), (2, 0), (2, 3)):
        q, v, g = unit_values(rng, 2, n_k_head, 8), unit_values(rng, 2, 4, 8), unit_values(rng, 2, 4)
        args = (q, q, v, g, g, unit_values(rng, 4, 8, 8), keep)
        for call in (partial(spec.delta_rule, dot=spec.dot32), partial(kernels.delta_rule, wide=False)):
            with pytest.raises(ValueError, match="delta_rule: H_v 4"):
                call(*args)


@pytest.mark.parametrize(("dot", "wide"), NUMERICS)
@pytest.mark.parametrize("kv_type", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.covering(2)
def test_attention_is_the_specifications(
    rng: np.random.Generator, scale: str, kv_type: str, dot: object, wide: bool
) -> None:
    for n_tokens, first, size in ((1, 0, 16), (2, 31, 40), (3, 64, 33), (8, 90, 64), (19, 5, 32)):
        q = values(rng, (n_tokens, 4, size), scale)
        with np.errstate(all="ignore"):
            k = spec.store_kv(values(rng, (first + n_tokens, 2, size), scale), kv_type)
            v = spec.store_kv(values(rng, (first + n_tokens, 2, size), scale), kv_type)
        check("attention", q, k, v, kv_type, first, dot=dot, wide=wide)


# --------------------------------------------------------------------------------------------- choices


@pytest.mark.parametrize("n_vocab", [1, 9, 10, 11, 1000])
@pytest.mark.parametrize("scale", SCALES)
def test_choices_are_the_specifications(rng: np.random.Generator, scale: str, n_vocab: int) -> None:
    logits = values(rng, (3, n_vocab), scale)
    with np.errstate(all="ignore"):
        logits[1] = np.round(logits[1] / np.abs(logits[1]).max())  # ties
    logits[2, ::2] = np.nan
    check("argmax", logits)
    for row in logits:
        check("top_candidates", row)


def test_rows_of_nothing_but_nan_or_minus_infinity_choose_the_lowest_ids() -> None:
    for value in (np.nan, -np.inf, np.inf, 0.0):
        logits = np.full((2, 30), value, np.float32)
        check("argmax", logits)
        with np.errstate(all="ignore"):
            check("top_candidates", logits[0])


# ------------------------------------------------------------------------------- threads and batches


@pytest.fixture
def always_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product, however small, takes the parallel path when more than one thread is set."""
    from mtpref.kernels.compiling import compile
    from mtpref.kernels.fused import delta_mixer
    from mtpref.kernels.layers import attend, delta, norms
    from mtpref.kernels.products import matmul, mul_mats

    if compile.settings.NUMBA_NUM_THREADS < 2:
        pytest.skip("Numba has one thread here: nothing to split")
    before = kernels.n_threads()
    for module in (attend, delta, delta_mixer, matmul, mul_mats, norms):
        monkeypatch.setattr(module, "PARALLEL_FROM", 0)
    yield
    kernels.set_threads(before)


@pytest.mark.usefixtures("always_parallel")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_number_of_threads_changes_no_bit(rng: np.random.Generator, n_threads: int) -> None:
    kernels.set_threads(n_threads)
    assert kernels.n_threads() == n_threads
    x = unit_values(rng, 3, 256)
    for type_name in TYPES:
        for n_out in (1, 5):
            w = matrix(rng, type_name, n_out, 256)
            check("mul_mat_ggml", w, x)
            check("mul_mat_exact", w, x)
    q, v, g = unit_values(rng, 3, 1, 32), unit_values(rng, 3, 3, 32), unit_values(rng, 3, 3)
    check("delta_rule", q, q, v, -g * g, g, unit_values(rng, 3, 32, 32), 2, dot=spec.dot32, wide=False)
    cells = unit_values(rng, 40, 1, 32)
    check("attention", q, cells, cells, "F32", 37, dot=spec.dot32, wide=False)
    check("attention", q, cells, cells, "F32", 37, dot=spec.dot64, wide=True)
    check("swiglu", x, x + 1)
    check("rms_norm", x, x[0], 1e-6)


@pytest.mark.parametrize(("dot", "wide"), NUMERICS)
def test_a_token_has_the_same_bits_alone_and_in_a_batch(rng: np.random.Generator, dot: object, wide: bool) -> None:
    n = 9
    x = unit_values(rng, n, 256)
    product = kernels.mul_mat_exact if wide else kernels.mul_mat_ggml
    for type_name in TYPES:
        w = matrix(rng, type_name, 7, 256)
        assert_same(product(w, x), np.concatenate([product(w, x[t : t + 1]) for t in range(n)]))
    cells, q = unit_values(rng, 50 + n, 2, 32), unit_values(rng, n, 4, 32)
    alone = [kernels.attention(q[t : t + 1], cells, cells, "F32", 50 + t, wide) for t in range(n)]
    assert_same(kernels.attention(q, cells, cells, "F32", 50, wide), np.concatenate(alone))
    state, g = unit_values(rng, 4, 32, 32), -np.abs(unit_values(rng, n, 4))
    out, states = kernels.delta_rule(cells[:n], cells[n : 2 * n], q, g, -g, state, n, wide)
    for t in range(n):
        one = slice(t, t + 1)
        args = (cells[one], cells[n + t : n + t + 1], q[one], g[one], -g[one], state, 1, wide)
        found, after = kernels.delta_rule(*args)
        assert_same((out[one], states[one]), (found, after))
        state = after[0]


# --------------------------------------------------------------------------------------- the package


def python(code: str, **environment: str) -> str:
    root = str(Path(__file__).resolve().parent.parent)
    env = {**os.environ, "PYTHONPATH": root, **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_jit_nothing_heavy_is_imported_and_a_kernel_is_refused() -> None:
    code = (
        "import sys, mtpref.kernels as k\n"
        "from mtpref.base.errors import MtprefError\n"
        "try: k.rms_norm\n"
        "except MtprefError as error: print(k.available(), 'numba' in sys.modules, 'NUMBA_DISABLE_JIT' in str(error))"
    )
    assert python(code, NUMBA_DISABLE_JIT="1") == "False False True"


def test_the_cache_is_cold_once_and_lies_where_it_is_told(tmp_path: Path) -> None:
    code = (
        "import numpy as np, mtpref.kernels as k\n"
        "cold = k.is_cold(); k.argmax(np.zeros((1, 4), np.float32)); print(cold, k.is_cold(), k.cache_folder())"
    )
    for cold in ("True", "False"):
        first, second, folder = python(code, NUMBA_CACHE_DIR=str(tmp_path)).split(" ", 2)
        assert (first, second) == (cold, "False")
        assert Path(folder).parent == tmp_path / "mtpref"


def test_a_folder_that_cannot_be_written_is_replaced(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    code = "import mtpref.kernels as k; k.argmax; print(k.cache_folder())"
    folder = Path(python(code, NUMBA_CACHE_DIR=str(blocker), TMPDIR=str(tmp_path)))
    assert folder.is_relative_to(tmp_path)
    assert not folder.is_relative_to(blocker)
