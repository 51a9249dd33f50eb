"""S5: an activation brought to the type that ggml pairs with a weight's type.

Owns the twins of `spec.quantize_q8_0`, `spec.quantize_q8_1`, `spec.quantize_q8_k` and of the float16 and bfloat16
roundings of whole arrays. An activation is quantised once per matrix product, whatever the number of rows.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np
from numba.core import types

from mtpref.kernels.arith import round_bf16, round_f16
from mtpref.kernels.compile import INT, kernel, source, target
from mtpref.kernels.scalars import bits_of_f32
from mtpref.spec.quant import MANTISSA_MASK, NEAREST_INT_BITS, NEAREST_INT_MAGIC

MAGIC_BITS = np.int64(NEAREST_INT_BITS)
MASK = np.int64(MANTISSA_MASK)

# How the activation of a float product is prepared.
KEEP, TO_F16, TO_BF16 = 0, 1, 2


@kernel(source(types.float32, 1), INT, target(types.float32, 1))
def round_to(x, kind, out):
    """S5. x rounded to float16 (TO_F16) or bfloat16 (TO_BF16), as float32."""
    if kind == TO_F16:
        for i in range(len(x)):
            out[i] = round_f16(x[i])
    else:
        for i in range(len(x)):
            out[i] = round_bf16(x[i])


@kernel(source(types.float32, 1), target(types.int8, 1), target(types.float32, 1), target(types.float32, 1))
def quantize_q8_1(x, codes, scales, sums):
    """S5. `spec.quantize_q8_1` of whole blocks of 32; without the sums it is `spec.quantize_q8_0`.

    Where 1 / d overflows, or the block holds a NaN, x * inv is not finite: such a code is 0. A code beyond int8
    (d subnormal) wraps, as the conversion through int32 does.
    """
    one, half, limit = np.float32(1), np.float32(0.5), np.float32(2147483648.0)
    for b in range(len(scales)):
        block = x[32 * b : 32 * b + 32]
        greatest = np.float32(0)
        for i in range(32):
            magnitude = abs(block[i])
            # Once NaN, it stays: NaN is greater than nothing, and nothing replaces it but a NaN.
            if magnitude > greatest or magnitude != magnitude:
                greatest = magnitude
        d = greatest / np.float32(127)
        inv = one / d if d != 0 else np.float32(0)
        total = np.int32(0)
        for i in range(32):
            scaled = block[i] * inv
            whole = np.trunc(scaled)
            if abs(scaled - whole) >= half:
                whole += one if scaled > 0 else -one
            codes[32 * b + i] = np.int8(np.int32(whole)) if abs(whole) < limit else np.int8(0)
            total += np.int32(codes[32 * b + i])
        scales[b] = round_f16(d)
        sums[b] = round_f16(np.float32(total) * d)


@kernel(source(types.float32, 1), target(types.int8, 1), target(types.float32, 1), target(types.int32, 1))
def quantize_q8_k(x, codes, scales, sums):
    """S5. `spec.quantize_q8_k` of whole blocks of 256. The first NaN, if any, is the greatest, as for argmax."""
    one, magic = np.float32(1), np.float32(NEAREST_INT_MAGIC)
    for b in range(len(scales)):
        block = x[256 * b : 256 * b + 256]
        greatest, m = abs(block[0]), block[0]
        for i in range(1, 256):
            magnitude = abs(block[i])
            if magnitude > greatest or (magnitude != magnitude and greatest == greatest):
                greatest, m = magnitude, block[i]
        inv = np.float32(-127) / m if m != 0 else np.float32(0)
        for i in range(256):
            # Out of range only where inv overflows; then the conversion to int8 takes the low byte, as in C.
            rounded = np.int32((np.int64(bits_of_f32(inv * block[i] + magic)) & MASK) - MAGIC_BITS)
            codes[256 * b + i] = np.int8(min(rounded, np.int32(127)))
        for s in range(16):
            total = np.int32(0)
            for i in range(16):
                total += np.int32(codes[256 * b + 16 * s + i])
            sums[16 * b + s] = total
        scales[b] = one / inv if inv != 0 else np.float32(0)
