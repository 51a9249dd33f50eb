"""S1 to S4: the arithmetic that every other rule stands on.

Owns the fused multiply-add, the one summation order, the elementary functions and the activation functions.
It must not know what a layer or a tensor name is. Read next: quant.py, then layers.py.

Everything here is defined by IEEE 754 operations that round the same way on every machine (add, subtract,
multiply, divide, square root, and conversion, in float64 and float32). Nothing calls a mathematical library,
because those differ in the last bit between versions and processors.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Dot = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]

N_LANES = 32

# Adding and subtracting 1.5 * 2**52 rounds a float64 of magnitude below 2**51 to the nearest integer, ties to
# even, and leaves that integer in the low bits of the sum.
ROUND_MAGIC = np.float64(6755399441055744.0)
ROUND_MAGIC_BITS = np.int64(0x4338000000000000)

LOG2_E = np.float64(1.4426950408889634)
LN2_HI = np.float64(float.fromhex("0x1.62e42feep-1"))  # the leading 32 bits of ln 2: k * LN2_HI is exact
LN2_LO = np.float64(float.fromhex("0x1.a39ef35793c76p-33"))
EXP_LIMIT = np.float64(700.0)

TWO_OVER_PI = np.float64(0.6366197723675814)
# pi/2 in three parts of 33, 33 and 53 bits: k * PIO2_1 and k * PIO2_2 are exact for k < 2**20.
PIO2_1 = np.float64(float.fromhex("0x1.921fb544p+0"))
PIO2_2 = np.float64(float.fromhex("0x1.0b4611a6p-34"))
PIO2_3 = np.float64(float.fromhex("0x1.3198a2e037073p-69"))

SQRT_HALF_BITS = np.int64(0x3FE6A09E667F3BCD)

# 1/n!, the Taylor coefficients of exp, sin and cos. Quotients of exact integers, so correctly rounded.
INV_FACTORIAL = tuple(1.0 / f for f in (1, 1, 2, 6, 24, 120, 720, 5040, 40320, 362880, 3628800, 39916800,
                                        479001600, 6227020800, 87178291200, 1307674368000,
                                        20922789888000, 355687428096000))  # fmt: skip
EXP_DEGREE = 13
SIN_DEGREE = 17
COS_DEGREE = 16
LOG_TERMS = 12


def fma32(a: F32, b: F32, c: F32) -> F32:
    """S1. Fused multiply-add: a * b + c, rounded once to float32.

    Formula  round32(a * b + c), ties to even
    Shapes   any, broadcast together
    Dtypes   float32 in and out. The product is exact in float64. The sum s and its rounding error e come from
             the two-sum of Knuth; where e is not 0 and the last bit of s is 0, s moves one step towards e, so
             that its last bit is 1 ("round to odd"). 53 bits >= 24 + 2, so the last rounding is the only one.
    Errors   none; infinities and NaN follow IEEE 754
    Source   Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", IEEE TC 57(4), 2008
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
        addend = np.asarray(c, np.float64)
        total = np.asarray(product + addend)
        back = total - product
        error = (product - (total - back)) + (addend - back)
        bits = total.view(np.int64)
        is_inexact = (error != 0) & ((bits & 1) == 0) & np.isfinite(total)
        step = np.where((error > 0) == (total > 0), 1, -1)
        odd = np.where(is_inexact, bits + step, bits)
        return np.asarray(odd.view(np.float64).astype(np.float32))


def lane_sum_products(a: F32, b: F32) -> F64:
    """S2. The sum of products over the last axis, in float64, in the lane order.

    Rule     lane l (of 32) adds the products of elements l, l + 32, l + 64, ... in this order, starting at 0;
             then lanes l and l + 16 are added, then l and l + 8, 4, 2, 1
    Shapes   a, b: (..., n), broadcast together -> (...); any n (missing elements count as 0)
    Dtypes   float32 in, float64 out. The product of two float32 is exact in float64, so a fused multiply-add
             gives the same bits as a multiplication and an addition.
    Source   design of this project: the order is free of the vector width, the thread count and the batch
    """
    shape = np.broadcast_shapes(a.shape, b.shape)
    lanes = np.zeros((*shape[:-1], N_LANES), np.float64)
    with np.errstate(invalid="ignore"):
        for start in range(0, shape[-1], N_LANES):
            chunk_a = a[..., start : start + N_LANES].astype(np.float64)
            chunk = chunk_a * b[..., start : start + N_LANES].astype(np.float64)
            lanes[..., : chunk.shape[-1]] += chunk
        return _add_lanes(lanes)


def dot64(a: F32, b: F32) -> F32:
    """S2. The dot product of `exact` numerics: `lane_sum_products`, rounded once to float32."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(lane_sum_products(a, b).astype(np.float32))


def dot32(a: F32, b: F32) -> F32:
    """S2. The dot product of `ggml` numerics: the lane order of `lane_sum_products` in float32.

    Rule     lane l: acc = fma32(a_i, b_i, acc) for i = l, l + 32, ...; then the same tree, in float32
    Shapes   a, b: (..., n), broadcast together -> (...)
    Dtypes   float32 in, out and accumulated
    """
    shape = np.broadcast_shapes(a.shape, b.shape)
    lanes = np.zeros((*shape[:-1], N_LANES), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, shape[-1], N_LANES):
            n = min(N_LANES, shape[-1] - start)
            chunk_a, chunk_b = a[..., start : start + n], b[..., start : start + n]
            lanes[..., :n] = fma32(chunk_a, chunk_b, lanes[..., :n])
        return _add_lanes(lanes)


def _add_lanes(lanes: NDArray) -> NDArray:
    half = N_LANES // 2
    while half:
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        half //= 2
    return np.asarray(lanes[..., 0])


def exp64(x: F64) -> F64:
    """S3. The exponential in float64: the one definition behind exp, sigmoid, silu, softplus and softmax.

    Formula  exp(x) = 2**k * exp(r), k = rint(x * log2(e)), r = (x - k * LN2_HI) - k * LN2_LO, |r| <= 0.3466;
             exp(r) by the Taylor polynomial of degree 13, Horner's scheme, multiply and add rounded apart
    Shapes   any
    Dtypes   float64; x is clamped to [-700, 700] first, so the result is a normal number
    Errors   relative error below 4e-16, hence within 1 ulp of the correctly rounded value in float32
    """
    with np.errstate(invalid="ignore"):
        x = np.asarray(np.clip(x, -EXP_LIMIT, EXP_LIMIT), np.float64)
        shifted = np.asarray(x * LOG2_E + ROUND_MAGIC)
        k = shifted - ROUND_MAGIC
        r = (x - k * LN2_HI) - k * LN2_LO
        poly = np.full_like(r, INV_FACTORIAL[EXP_DEGREE])
        for i in range(EXP_DEGREE - 1, -1, -1):
            poly = poly * r + INV_FACTORIAL[i]
        scale = np.asarray((shifted.view(np.int64) - ROUND_MAGIC_BITS + 1023) << 52).view(np.float64)
        return np.asarray(poly * scale)


def log64(x: F64) -> F64:
    """S3. The natural logarithm in float64.

    Formula  x = m * 2**e with sqrt(1/2) <= m < sqrt(2); s = (m - 1) / (m + 1);
             log(x) = e * LN2_HI + (2 * s * (1 + s^2/3 + s^4/5 + ... + s^22/23) + e * LN2_LO)
    Shapes   any
    Dtypes   float64; x must be a positive normal number
    Errors   relative error below 1e-15 away from x = 1, absolute 1e-16 near it
    """
    e, m = _split_exponent(x)
    return _log_series((m - 1.0) / (m + 1.0), e)


def log1p64(y: F64) -> F64:
    """S3. log(1 + y) in float64, for y >= 0: `log64`, but s = y / (2 + y) where 1 + y < sqrt(2).

    Errors   relative error below 1e-15 (the sum 1 + y alone would lose a small y)
    """
    y = np.asarray(y, np.float64)
    e, m = _split_exponent(1.0 + y)
    return _log_series(np.where(e == 0, y / (2.0 + y), (m - 1.0) / (m + 1.0)), e)


def _split_exponent(x: F64) -> tuple[NDArray[np.int64], F64]:
    bits = np.asarray(x, np.float64).view(np.int64)
    e = (bits - SQRT_HALF_BITS) >> 52
    return e, np.asarray(bits - (e << 52)).view(np.float64)


def _log_series(s: F64, e: NDArray[np.int64]) -> F64:
    square = s * s
    poly = np.full_like(s, 1.0 / (2 * LOG_TERMS - 1))
    for i in range(LOG_TERMS - 2, -1, -1):
        poly = poly * square + 1.0 / (2 * i + 1)
    e64 = e.astype(np.float64)
    return np.asarray(e64 * LN2_HI + (2.0 * s * poly + e64 * LN2_LO))


def sincos64(theta: F64) -> tuple[F64, F64]:
    """S3. Sine and cosine in float64, for angles of 0 <= theta < 2**20.

    Formula  k = rint(theta * 2/pi), r = theta - k * pi/2 (pi/2 in three parts), |r| <= pi/4;
             Taylor polynomials of degree 17 and 16 in r; the quadrant k mod 4 picks the function and the sign
    Shapes   any
    Dtypes   float64
    Errors   absolute error below 1e-15
    """
    shifted = np.asarray(theta * TWO_OVER_PI + ROUND_MAGIC)
    k = shifted - ROUND_MAGIC
    quadrant = shifted.view(np.int64) & 3
    r = ((theta - k * PIO2_1) - k * PIO2_2) - k * PIO2_3
    square = r * r
    sin_r = np.full_like(r, INV_FACTORIAL[SIN_DEGREE])
    for n in range(SIN_DEGREE - 2, 0, -2):
        sin_r = INV_FACTORIAL[n] - sin_r * square
    sin_r = sin_r * r
    cos_r = np.full_like(r, INV_FACTORIAL[COS_DEGREE])
    for n in range(COS_DEGREE - 2, -1, -2):
        cos_r = INV_FACTORIAL[n] - cos_r * square
    sin = np.where(quadrant & 1, cos_r, sin_r)
    cos = np.where(quadrant & 1, sin_r, cos_r)
    return np.where(quadrant & 2, -sin, sin), np.where((quadrant + 1) & 2, -cos, cos)


def rsqrt64(x: F64) -> F64:
    """S3. 1 / sqrt(x) in float64: one correctly rounded square root, one correctly rounded division."""
    return np.asarray(1.0 / np.sqrt(x))


def exp(x: F32) -> F32:
    """S4. exp(x): `exp64` rounded to float32 (infinity above 88.72, 0 below -103.97)."""
    return _round32(exp64(np.asarray(x, np.float64)))


def sigmoid(x: F32) -> F32:
    """S4. 1 / (1 + exp(-x)), evaluated in float64 with `exp64`, rounded once to float32."""
    return _round32(1.0 / (1.0 + exp64(-np.asarray(x, np.float64))))


def silu(x: F32) -> F32:
    """S4. x / (1 + exp(-x)), evaluated in float64 with `exp64`, rounded once to float32."""
    x64 = np.asarray(x, np.float64)
    with np.errstate(invalid="ignore"):
        return _round32(x64 / (1.0 + exp64(-x64)))


def softplus(x: F32) -> F32:
    """S4. x where x > 20, else log(1 + exp(x)) by `log1p64`; float64 inside, rounded once to float32.

    Source   the threshold is ggml's; log(1 + exp(20)) - 20 = 2e-9 is below half a float32 ulp of 20
    """
    x64 = np.asarray(x, np.float64)
    is_small = x64 <= 20.0  # False for a NaN, which passes through
    return np.where(is_small, _round32(log1p64(exp64(np.where(is_small, x64, 0.0)))), np.asarray(x, np.float32))


def _round32(x: F64) -> F32:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.asarray(x).astype(np.float32)
