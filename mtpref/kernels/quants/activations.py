"""S5: an activation brought to the type that ggml pairs with a weight's type.

Owns the twins of `spec.quantize_q8_0`, `spec.quantize_q8_1`, `spec.quantize_q8_k` and of the float16 and bfloat16
roundings of whole arrays. An activation is quantised once per matrix product, whatever the number of rows.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np
from numba.core import types

from mtpref.kernels.arithmetic.arith import round_bf16, round_f16
from mtpref.kernels.compiling.compile import INT, helper, kernel, source, target
from mtpref.kernels.quants.quantise import codes_rounded_away, codes_rounded_even, greatest_of, lowest_bit, places_of

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


@helper
def quantize_32(x, codes, i):
    """codes[i : i + 32] of x[i : i + 32] in Q8_0 or Q8_1; the scale before it is rounded, and the sum of the codes."""
    d = greatest_of(x, i, 32) / np.float32(127)
    inv = np.float32(1) / d if d != 0 else np.float32(0)
    return d, codes_rounded_away(x, i, inv, codes, i)


@kernel(source(types.float32, 1), target(types.int8, 1), target(types.float32, 1), target(types.float32, 1))
def quantize_q8_1(x, codes, scales, sums):
    """S5. `spec.quantize_q8_1` of whole blocks of 32; without the sums it is `spec.quantize_q8_0`.

    Where 1 / d overflows, or the block holds a NaN, x * inv is not finite: such a code is 0. A code beyond int8
    (d subnormal) wraps, as the conversion through int32 does.
    """
    for b in range(len(scales)):
        d, total = quantize_32(x, codes, 32 * b)
        scales[b] = round_f16(d)
        sums[b] = round_f16(np.float32(total) * d)


@kernel(source(types.float32, 1), target(types.int8, 1), target(types.float32, 1), target(types.int32, 1))
def quantize_q8_k(x, codes, scales, sums):
    """S5. `spec.quantize_q8_k` of whole blocks of 256. The first NaN, if any, is the greatest, as for argmax."""
    one = np.float32(1)
    for b in range(len(scales)):
        greatest, place = greatest_of(x, 256 * b, 256), 256 * b
        while place < 256 * b + 224 and places_of(x, place, greatest) == 0:
            place += 32
        # The first element of that magnitude, with its sign. NaN has many bits: then any NaN serves.
        first = lowest_bit(places_of(x, place, greatest))
        m = x[place + first] if first < 32 else greatest
        inv = np.float32(-127) / m if m != 0 else np.float32(0)
        for i in range(0, 256, 32):
            # Out of range only where inv overflows; then the low byte is the code, as in C.
            codes_rounded_even(x, 256 * b + i, inv, codes, 256 * b + i, sums, 16 * b + i // 16)
        scales[b] = one / inv if inv != 0 else np.float32(0)
