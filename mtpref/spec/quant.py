"""S5: rounding to a 16-bit type, and the quantisers that ggml applies to activations.

Read next: products.py, where activations meet weights.
"""

import numpy as np
from numpy.typing import NDArray

from mtpref.spec.arith import F32

Q8_0_BLOCK = 32
Q8_K_BLOCK = 256

# ggml's nearest_int adds 1.5 * 2**23 and takes the 23 mantissa bits of the sum, less those of the addend.
NEAREST_INT_MAGIC = np.float32(12582912.0)
MANTISSA_MASK = np.int32(0x007FFFFF)
NEAREST_INT_BITS = np.int32(0x00400000)


def round_f16(x: F32) -> F32:
    """S5. x rounded to float16 (ties to even; infinity from 65520 up), returned as float32."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.asarray(np.asarray(x, np.float32).astype(np.float16).astype(np.float32))


def bf16_bits(x: F32) -> NDArray[np.uint16]:
    """S5. x rounded to bfloat16 (ties to even), as its 16 bits; a NaN stays NaN, made quiet."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(64)
    return np.asarray(np.where(is_nan, quiet, rounded).astype(np.uint16))


def round_bf16(x: F32) -> F32:
    """S5. x rounded to bfloat16, returned as float32."""
    return np.asarray((bf16_bits(x).astype(np.uint32) << np.uint32(16)).view(np.float32))


def quantize_q8_0(x: F32) -> tuple[NDArray[np.int8], F32]:
    """S5. ggml's scalar Q8_0 activation quantiser, one block of 32.

    Rule     d = max|x| / 127; inv = 1 / d, or 0 where d = 0; code = round(x * inv), halves away from zero;
             d is stored as float16, the codes are made with the unrounded d
    Shapes   x: (..., n), n % 32 == 0 -> codes (..., n) int8, d (..., n / 32) float32 (a float16 value)
    Dtypes   float32 throughout
    Errors   none; a code is 0 where x * inv is not finite (1 / d overflows, or x is not a number)
    Source   ggml-quants.c, quantize_row_q8_0_ref. Its AVX2 twin rounds halves to even and multiplies by
             127 / max|x|: it differs from this rule in the last bit now and then.
    """
    codes, d = _codes_of_32(x)
    return codes, round_f16(d)


def quantize_q8_1(x: F32) -> tuple[NDArray[np.int8], F32, F32]:
    """S5. ggml's scalar Q8_1 activation quantiser, one block of 32: Q8_0, and the block's sum.

    Rule     codes and d as in `quantize_q8_0`; s = (sum of the codes) * d with the unrounded d, one float32
             product, stored as float16
    Shapes   x: (..., n), n % 32 == 0 -> codes (..., n) int8, d and s (..., n / 32) float32 (float16 values)
    Dtypes   float32 throughout
    Source   ggml-quants.c, quantize_row_q8_1_ref
    """
    codes, d = _codes_of_32(x)
    sums = codes.reshape(*d.shape, Q8_0_BLOCK).sum(axis=-1, dtype=np.int32)
    with np.errstate(over="ignore", invalid="ignore"):
        s = sums.astype(np.float32) * d
    return codes, round_f16(d), round_f16(s)


def _codes_of_32(x: F32) -> tuple[NDArray[np.int8], F32]:
    """The codes of Q8_0 and Q8_1 and the scale before it is rounded."""
    blocks = x.reshape(*x.shape[:-1], -1, Q8_0_BLOCK)
    d = np.max(np.abs(blocks), axis=-1) / np.float32(127)
    with np.errstate(over="ignore", invalid="ignore"):
        inv = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
        scaled = blocks * inv[..., None]
    scaled = np.where(np.isfinite(scaled), scaled, np.float32(0))
    codes = np.trunc(scaled)
    codes += np.where(np.abs(scaled - codes) >= 0.5, np.sign(scaled), np.float32(0))
    return _to_int8(codes).reshape(x.shape), d


def quantize_q8_k(x: F32) -> tuple[NDArray[np.int8], F32, NDArray[np.int32]]:
    """S5. ggml's Q8_K activation quantiser, one block of 256.

    Rule     m = the element of the greatest magnitude (the first one, with its sign); inv = -127 / m;
             code = min(127, round(inv * x)), halves to even; d = 1 / inv; all 0 where m = 0
    Shapes   x: (..., n), n % 256 == 0 -> codes (..., n) int8, d (..., n / 256) float32,
             sums of 16 codes (..., n / 16) int32
    Dtypes   float32 throughout
    Source   ggml-quants.c, quantize_row_q8_K_ref
    """
    blocks = x.reshape(*x.shape[:-1], -1, Q8_K_BLOCK)
    at = np.argmax(np.abs(blocks), axis=-1)
    m = np.take_along_axis(blocks, at[..., None], axis=-1)[..., 0]
    with np.errstate(over="ignore", invalid="ignore"):
        inv = np.divide(np.float32(-127), m, out=np.zeros_like(m), where=m != 0)
        shifted = np.asarray(inv[..., None] * blocks + NEAREST_INT_MAGIC)
    rounded = (shifted.view(np.int32) & MANTISSA_MASK) - NEAREST_INT_BITS
    codes = np.minimum(rounded, 127).astype(np.int8).reshape(x.shape)
    d = np.divide(np.float32(1), inv, out=np.zeros_like(inv), where=inv != 0)
    sums = codes.reshape(*x.shape[:-1], -1, 16).sum(axis=-1, dtype=np.int32)
    return codes, d, sums


def _to_int8(x: F32) -> NDArray[np.int8]:
    with np.errstate(invalid="ignore"):
        return np.asarray(x.astype(np.int8))
