"""S5 and S6: the integers and scales of a weight row, read from the raw bytes of the file.

Owns the twins of `quants.unpack_legacy`, `quants.unpack_k` and of the 16-bit decoders: layouts are stated there. A row
is unpacked as a whole, into buffers of the caller. Bytes may lie at any alignment.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np

from mtpref.kernels.arithmetic import lanes
from mtpref.kernels.arithmetic.arith import f32_of_bf16
from mtpref.kernels.arithmetic.scalars import at, f32_in, f32_of_f16, never_inline, u16_in
from mtpref.kernels.compiling.compile import helper

F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K = range(13)
TYPE_CODES = {
    "F32": F32, "F16": F16, "BF16": BF16, "Q4_0": Q4_0, "Q4_1": Q4_1, "Q5_0": Q5_0, "Q5_1": Q5_1, "Q8_0": Q8_0,
    "Q2_K": Q2_K, "Q3_K": Q3_K, "Q4_K": Q4_K, "Q5_K": Q5_K, "Q6_K": Q6_K,
}  # fmt: skip


@helper
def half(raw, i):
    """The float16 at byte i as float32."""
    return f32_of_f16(u16_in(raw, i))


@helper
def decode_float(type_code, raw, start, n, out):
    """The n weights of an F32, F16 or BF16 row that starts at byte `start`, as float32."""
    if type_code == F32:
        for i in range(n):
            out[i] = f32_in(raw, start + 4 * i)
    elif type_code == F16:
        for i in range(n):
            out[i] = half(raw, start + 2 * i)
    else:
        for i in range(n):
            out[i] = f32_of_bf16(u16_in(raw, start + 2 * i))


# LEGACY: BLOCKS OF 32


@helper
def has_minimum(type_code):
    """Whether a block has a minimum beside its scale."""
    return type_code in (Q4_1, Q5_1, Q2_K, Q4_K, Q5_K)


@helper
def unpack_legacy(type_code, raw, start, n_blocks, codes, d, m):
    """A row of Q4_0 .. Q8_0: codes (32 n_blocks,) int8, d and m (n_blocks,) float32; m only where there is one."""
    never_inline()
    for b in range(n_blocks):
        if type_code == Q4_0:
            block = start + 18 * b
            lanes.nibble_codes(raw, block + 2, np.int8(8), codes, 32 * b)
        elif type_code == Q4_1:
            block = start + 20 * b
            m[b] = half(raw, block + 2)
            lanes.nibble_codes(raw, block + 4, np.int8(0), codes, 32 * b)
        elif type_code == Q5_0:
            block = start + 22 * b
            lanes.nibble_codes(raw, block + 6, np.int8(16), codes, 32 * b)
            lanes.add_bits(raw, block + 2, np.int8(16), codes, 32 * b)
        elif type_code == Q5_1:
            block = start + 24 * b
            m[b] = half(raw, block + 2)
            lanes.nibble_codes(raw, block + 8, np.int8(0), codes, 32 * b)
            lanes.add_bits(raw, block + 4, np.int8(16), codes, 32 * b)
        else:
            block = start + 34 * b
            part, packed = codes[32 * b : 32 * b + 32], raw[block + 2 : block + 34]
            for i in range(32):
                part[i] = np.int8(packed[i])
        d[b] = half(raw, block)


# K-QUANTS: BLOCKS OF 256


@helper
def _two_bit_codes(raw, first_byte, codes, first):
    """64 bytes to 256 codes 0 .. 3: element 128 h + 32 g + i is bits 2 g and 2 g + 1 of byte 32 h + i."""
    for h in range(2):
        packed = raw[first_byte + 32 * h : first_byte + 32 * h + 32]
        for g in range(4):
            part = codes[first + 128 * h + 32 * g : first + 128 * h + 32 * g + 32]
            for i in range(32):
                part[i] = np.int8((packed[i] >> (2 * g)) & 3)


@helper
def _four_bit_codes(raw, first_byte, codes, first):
    """128 bytes to 256 codes 0 .. 15: byte i of group g holds elements 64 g + i and 64 g + 32 + i."""
    for g in range(4):
        low, high = codes[first + 64 * g : first + 64 * g + 32], codes[first + 64 * g + 32 : first + 64 * g + 64]
        packed = raw[first_byte + 32 * g : first_byte + 32 * g + 32]
        for i in range(32):
            low[i] = packed[i] & 15
        for i in range(32):
            high[i] = packed[i] >> 4


@helper
def _add_high_bits(raw, first_byte, value, codes, first):
    """Adds `value` where the bit of the element is set: element 32 g + i is bit g of byte i of 32."""
    lanes.add_bit_0(raw, first_byte, value, codes, first)
    lanes.add_bit_1(raw, first_byte, value, codes, first + 32)
    lanes.add_bit_2(raw, first_byte, value, codes, first + 64)
    lanes.add_bit_3(raw, first_byte, value, codes, first + 96)
    lanes.add_bit_4(raw, first_byte, value, codes, first + 128)
    lanes.add_bit_5(raw, first_byte, value, codes, first + 160)
    lanes.add_bit_6(raw, first_byte, value, codes, first + 192)
    lanes.add_bit_7(raw, first_byte, value, codes, first + 224)


@helper
def _q6_k_codes(raw, block, codes, first):
    """The 256 codes -32 .. 31 of a Q6_K block to codes[first : first + 256]."""
    for h in range(2):
        low, upper = raw[block + 64 * h : block + 64 * h + 64], raw[block + 128 + 32 * h : block + 160 + 32 * h]
        out = codes[first + 128 * h : first + 128 * h + 128]
        for i in range(32):
            out[i] = np.int8((low[i] & 15) | ((upper[i] & 3) << 4)) - 32
        for i in range(32):
            out[32 + i] = np.int8((low[32 + i] & 15) | (((upper[i] >> 2) & 3) << 4)) - 32
        for i in range(32):
            out[64 + i] = np.int8((low[i] >> 4) | (((upper[i] >> 4) & 3) << 4)) - 32
        for i in range(32):
            out[96 + i] = np.int8((low[32 + i] >> 4) | ((upper[i] >> 6) << 4)) - 32


@helper
def six_bit_scale(raw, block, j):
    """Scale and minimum of sub-block j (0 .. 7) of a Q4_K or Q5_K block: 6 bits each, see `quants.q4_k_scales`."""
    s = block + 4
    if j < 4:
        return at(raw, s + j) & 63, at(raw, s + j + 4) & 63
    high, scale, minimum = at(raw, s + j + 4), at(raw, s + j - 4), at(raw, s + j)
    return (high & 15) | ((scale >> 6) << 4), (high >> 4) | ((minimum >> 6) << 4)


@helper
def _scale_and_minimum(type_code, raw, block, j):
    """Of sub-block j (0 .. 15, of 16 elements) of a K-quant block; the minimum is 0 where there is none."""
    if type_code in (Q4_K, Q5_K):
        scale, minimum = six_bit_scale(raw, block, j // 2)
        return np.int32(scale), np.int32(minimum)
    if type_code == Q2_K:
        packed = at(raw, block + j)
        return np.int32(packed & 15), np.int32(packed >> 4)
    if type_code == Q3_K:
        low = (at(raw, block + 96 + j % 8) >> (4 * (j // 8))) & 15
        high = (at(raw, block + 104 + j % 4) >> (2 * (j // 4))) & 3
        return np.int32((low | (high << 4)) - 32), np.int32(0)
    return np.int32(np.int8(at(raw, block + 192 + j))), np.int32(0)


@helper
def unpack_k(type_code, raw, start, n_blocks, codes, scales, mins, d, dmin):
    """A row of Q2_K .. Q6_K: codes (256 n_blocks,) int8; scales, mins (16 n_blocks,) int32, one for 16 elements
    (Q4_K and Q5_K have each twice); d, dmin (n_blocks,) float32, dmin only where there is one.
    """
    never_inline()
    for b in range(n_blocks):
        first = 256 * b
        if type_code == Q4_K:
            block = start + 144 * b
            d[b], dmin[b] = half(raw, block), half(raw, block + 2)
            _four_bit_codes(raw, block + 16, codes, first)
        elif type_code == Q5_K:
            block = start + 176 * b
            d[b], dmin[b] = half(raw, block), half(raw, block + 2)
            _four_bit_codes(raw, block + 48, codes, first)
            _add_high_bits(raw, block + 16, np.int8(16), codes, first)
        elif type_code == Q2_K:
            block = start + 84 * b
            d[b], dmin[b] = half(raw, block + 80), half(raw, block + 82)
            _two_bit_codes(raw, block + 16, codes, first)
        elif type_code == Q3_K:
            block = start + 110 * b
            d[b] = half(raw, block + 108)
            _two_bit_codes(raw, block + 32, codes, first)
            _add_high_bits(raw, block, np.int8(4), codes, first)
            part = codes[first : first + 256]
            for i in range(256):
                part[i] -= np.int8(4)
        else:
            block = start + 210 * b
            d[b] = half(raw, block + 208)
            _q6_k_codes(raw, block, codes, first)
        for j in range(16):
            scales[16 * b + j], mins[16 * b + j] = _scale_and_minimum(type_code, raw, block, j)
