"""S3 to S5 for one value: elementary functions, activation functions, 16-bit floats.

Owns the scalar twins of `mtpref.spec.arith` and of the roundings of `mtpref.spec.quant`, operation by operation in
the same order; constants are the specification's own. Without fastmath, LLVM neither fuses nor reorders them.
"""

# Kernels are typed by Numba, not by annotations.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from functools import cache

import numpy as np

from mtpref.kernels.arithmetic.scalars import bits_of_f32, bits_of_f64, f32_of_bits, f32_of_f16, f64_of_bits
from mtpref.kernels.compiling.compile import helper
from mtpref.spec import arith as spec

ROUND_MAGIC = float(spec.ROUND_MAGIC)
ROUND_MAGIC_BITS = int(spec.ROUND_MAGIC_BITS)
LOG2_E, LN2_HI, LN2_LO, EXP_LIMIT = (float(c) for c in (spec.LOG2_E, spec.LN2_HI, spec.LN2_LO, spec.EXP_LIMIT))
TWO_OVER_PI, PIO2_1, PIO2_2, PIO2_3 = (float(c) for c in (spec.TWO_OVER_PI, spec.PIO2_1, spec.PIO2_2, spec.PIO2_3))
SQRT_HALF_BITS = int(spec.SQRT_HALF_BITS)
INV_FACTORIAL = spec.INV_FACTORIAL
INV_ODD = tuple(1.0 / (2 * i + 1) for i in range(spec.LOG_TERMS))
EXP_DEGREE, SIN_DEGREE, COS_DEGREE, LOG_TERMS = (
    spec.EXP_DEGREE,
    spec.SIN_DEGREE,
    spec.COS_DEGREE,
    spec.LOG_TERMS,
)


@cache
def one_over_root(size: int) -> np.float32:
    """1 / sqrt(size), as scores of attention and of the delta rule are scaled."""
    return np.float32(spec.rsqrt64(np.array(size, np.float64)))


@helper
def exp64(x):
    """S3. `spec.exp64`. The comparisons let a NaN pass, as NumPy's clip does."""
    if x < -EXP_LIMIT:
        x = -EXP_LIMIT
    if x > EXP_LIMIT:
        x = EXP_LIMIT
    shifted = x * LOG2_E + ROUND_MAGIC
    k = shifted - ROUND_MAGIC
    r = (x - k * LN2_HI) - k * LN2_LO
    poly = INV_FACTORIAL[EXP_DEGREE]
    for i in range(EXP_DEGREE - 1, -1, -1):
        poly = poly * r + INV_FACTORIAL[i]
    return poly * f64_of_bits((bits_of_f64(shifted) - ROUND_MAGIC_BITS + 1023) << 52)


@helper
def log1p64(y):
    """S3. `spec.log1p64`."""
    x = 1.0 + y
    bits = bits_of_f64(x)
    e = (bits - SQRT_HALF_BITS) >> 52
    m = f64_of_bits(bits - (e << 52))
    s = y / (2.0 + y) if e == 0 else (m - 1.0) / (m + 1.0)
    square = s * s
    poly = INV_ODD[LOG_TERMS - 1]
    for i in range(LOG_TERMS - 2, -1, -1):
        poly = poly * square + INV_ODD[i]
    e64 = np.float64(e)
    return e64 * LN2_HI + (2.0 * s * poly + e64 * LN2_LO)


@helper
def sincos64(theta):
    """S3. `spec.sincos64`: the sine and the cosine."""
    shifted = theta * TWO_OVER_PI + ROUND_MAGIC
    k = shifted - ROUND_MAGIC
    quadrant = bits_of_f64(shifted) & 3
    r = ((theta - k * PIO2_1) - k * PIO2_2) - k * PIO2_3
    square = r * r
    sin_r = INV_FACTORIAL[SIN_DEGREE]
    for n in range(SIN_DEGREE - 2, 0, -2):
        sin_r = INV_FACTORIAL[n] - sin_r * square
    sin_r = sin_r * r
    cos_r = INV_FACTORIAL[COS_DEGREE]
    for n in range(COS_DEGREE - 2, -1, -2):
        cos_r = INV_FACTORIAL[n] - cos_r * square
    sin = cos_r if quadrant & 1 else sin_r
    cos = sin_r if quadrant & 1 else cos_r
    return -sin if quadrant & 2 else sin, -cos if (quadrant + 1) & 2 else cos


@helper
def exp(x):
    """S4. `spec.exp` of a float32."""
    return np.float32(exp64(np.float64(x)))


@helper
def sigmoid(x):
    """S4. `spec.sigmoid` of a float32."""
    return np.float32(1.0 / (1.0 + exp64(-np.float64(x))))


@helper
def silu(x):
    """S4. `spec.silu` of a float32."""
    x64 = np.float64(x)
    return np.float32(x64 / (1.0 + exp64(-x64)))


@helper
def softplus(x):
    """S4. `spec.softplus` of a float32. A NaN fails the comparison and passes through."""
    x64 = np.float64(x)
    if x64 <= 20.0:
        return np.float32(log1p64(exp64(x64)))
    return x


@helper
def f16_of_f32(x):
    """S5. The 16 bits of x rounded to float16, ties to even; infinity from 65520 up.

    Below 2**-14 the addition of 0.5, whose last bit is 2**-24, rounds to the subnormal grid.
    """
    bits = bits_of_f32(x)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    normal = (magnitude - np.uint32(0x37FFF001) + ((magnitude >> np.uint32(13)) & np.uint32(1))) >> np.uint32(13)
    half = f32_of_bits(np.uint32(0x3F000000))
    small = bits_of_f32(f32_of_bits(magnitude) + half) - np.uint32(0x3F000000)
    result = small if magnitude < np.uint32(0x38800000) else normal
    if magnitude >= np.uint32(0x47800000):
        result = np.uint32(0x7E00) if magnitude > np.uint32(0x7F800000) else np.uint32(0x7C00)
    return np.uint16(result | ((bits >> np.uint32(16)) & np.uint32(0x8000)))


@helper
def round_f16(x):
    """S5. `spec.round_f16` of a float32."""
    return f32_of_f16(f16_of_f32(x))


@helper
def f32_of_bf16(bits):
    """S5. The float32 value of the 16 bits of a bfloat16 (a uint16)."""
    return f32_of_bits(np.uint32(bits) << np.uint32(16))


@helper
def round_bf16(x):
    """S5. `spec.round_bf16` of a float32."""
    bits = bits_of_f32(x)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    if (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        rounded = (bits >> np.uint32(16)) | np.uint32(64)
    return f32_of_bits(rounded << np.uint32(16))
