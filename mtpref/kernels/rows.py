"""S5 and S6: rows of a weight matrix, read from the raw bytes of the file.

Owns the decoders of one row to float32 and of the integers of K-quants, and the product of a range of rows with T
prepared activations, one function per family of types. A row is unpacked once and used for all T tokens; a matrix is
never unpacked as a whole. Layouts are those of `mtpref.quants`. Bytes may lie at any alignment.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np
from numba.core import types

from mtpref.kernels.arith import f32_of_bf16
from mtpref.kernels.compile import FLAG, INT, helper, kernel, source, target
from mtpref.kernels.lanes import dot, int_dot_16, int_dot_32
from mtpref.kernels.scalars import at, f32_in, f32_of_f16, fma32, u16_in

F32, F16, BF16, Q8_0, Q4_K, Q6_K = range(6)
TYPE_CODES = {"F32": F32, "F16": F16, "BF16": BF16, "Q8_0": Q8_0, "Q4_K": Q4_K, "Q6_K": Q6_K}


@helper
def _half(raw, i):
    return f32_of_f16(u16_in(raw, i))


@helper
def _i8(raw, i):
    return np.int8(at(raw, i))


@helper
def _q4_k_scale(raw, block, j):
    """Scale and minimum of sub-block j of a Q4_K block: 6 bits each, see `quants.q4_k_scales`."""
    s = block + 4
    if j < 4:
        return at(raw, s + j) & 63, at(raw, s + j + 4) & 63
    high, scale, minimum = at(raw, s + j + 4), at(raw, s + j - 4), at(raw, s + j)
    return (high & 15) | ((scale >> 6) << 4), (high >> 4) | ((minimum >> 6) << 4)


@helper
def _q4_k_codes(raw, block, codes, first):
    """The 256 codes 0 .. 15 of a Q4_K block to codes[first : first + 256]."""
    for g in range(4):
        low, high = codes[first + 64 * g : first + 64 * g + 32], codes[first + 64 * g + 32 : first + 64 * g + 64]
        packed = raw[block + 16 + 32 * g : block + 48 + 32 * g]
        for i in range(32):
            low[i] = packed[i] & 15
        for i in range(32):
            high[i] = packed[i] >> 4


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
def _decode_q8_0(raw, start, n, out):
    for b in range(n // 32):
        block = start + 34 * b
        d = _half(raw, block)
        codes, values = raw[block + 2 : block + 34], out[32 * b : 32 * b + 32]
        for i in range(32):
            values[i] = d * np.float32(np.int8(codes[i]))


@helper
def _decode_q4_k(raw, start, n, out, codes):
    for b in range(n // 256):
        block = start + 144 * b
        d, dmin = _half(raw, block), _half(raw, block + 2)
        _q4_k_codes(raw, block, codes, 0)
        for j in range(8):
            scale, minimum = _q4_k_scale(raw, block, j)
            step, low = d * np.float32(scale), dmin * np.float32(minimum)
            values, part = out[256 * b + 32 * j : 256 * b + 32 * j + 32], codes[32 * j : 32 * j + 32]
            for i in range(32):
                values[i] = step * np.float32(part[i]) - low


@helper
def _decode_q6_k(raw, start, n, out, codes):
    for b in range(n // 256):
        block = start + 210 * b
        d = _half(raw, block + 208)
        _q6_k_codes(raw, block, codes, 0)
        for j in range(16):
            step = d * np.float32(_i8(raw, block + 192 + j))
            values, part = out[256 * b + 16 * j : 256 * b + 16 * j + 16], codes[16 * j : 16 * j + 16]
            for i in range(16):
                values[i] = step * np.float32(part[i])


@helper
def _decode_float(type_code, raw, start, n, out):
    """The n weights of the row that starts at byte `start`, as `quants.dequantize` gives them."""
    if type_code == F32:
        for i in range(n):
            out[i] = f32_in(raw, start + 4 * i)
    elif type_code == F16:
        for i in range(n):
            out[i] = _half(raw, start + 2 * i)
    else:
        for i in range(n):
            out[i] = f32_of_bf16(u16_in(raw, start + 2 * i))


@helper
def _decode_blocks(type_code, raw, start, n, out, codes):
    """The n weights of the row that starts at byte `start`, as `quants.dequantize` gives them."""
    if type_code == Q8_0:
        _decode_q8_0(raw, start, n, out)
    elif type_code == Q4_K:
        _decode_q4_k(raw, start, n, out, codes)
    else:
        _decode_q6_k(raw, start, n, out, codes)


_RAW, _MATRIX = source(types.uint8, 1), source(types.float32, 2)
_CODES, _OUT = source(types.int8, 2), target(types.float32, 2)
FLOAT_ARGS = (INT, _RAW, INT, _MATRIX, FLAG, _OUT)
BLOCKS_ARGS = (INT, _RAW, INT, _MATRIX, _OUT)
Q8_0_ARGS = (_RAW, INT, _CODES, _MATRIX, _OUT)
Q4_K_ARGS = (_RAW, INT, _CODES, _MATRIX, source(types.int32, 2), _OUT)
Q6_K_ARGS = Q8_0_ARGS


@kernel(*FLOAT_ARGS, INT, INT)
def rows_float(type_code, raw, row_bytes, x, wide, y, first, last):
    """S6. y[t, r] = dot(row r, x[t]) for r in first .. last - 1 of F32, F16 and BF16, exact or ggml numerics."""
    n_tokens, n = x.shape
    row = np.empty(n, np.float32)
    for r in range(first, last):
        _decode_float(type_code, raw, r * row_bytes, n, row)
        for t in range(n_tokens):
            y[t, r] = dot(row, 0, x, t * n, n, wide)


@kernel(*BLOCKS_ARGS, INT, INT)
def rows_blocks(type_code, raw, row_bytes, x, y, first, last):
    """S6. y[t, r] = dot64(dequantised row r, x[t]) for r in first .. last - 1 of quantised types: exact numerics."""
    n_tokens, n = x.shape
    row, codes = np.empty(n, np.float32), np.empty(256, np.int8)
    for r in range(first, last):
        _decode_blocks(type_code, raw, r * row_bytes, n, row, codes)
        for t in range(n_tokens):
            y[t, r] = dot(row, 0, x, t * n, n, True)


@kernel(*Q8_0_ARGS, INT, INT)
def rows_q8_0(raw, row_bytes, codes_x, d_x, y, first, last):
    """S6. Q8_0 rows first .. last - 1 times T activations in Q8_0: codes_x (T, n), d_x (T, n / 32)."""
    n_tokens, n_blocks = d_x.shape
    d = np.empty(n_blocks, np.float32)
    for r in range(first, last):
        row = r * row_bytes
        for b in range(n_blocks):
            d[b] = _half(raw, row + 34 * b)
        for t in range(n_tokens):
            acc = np.float32(0)
            for b in range(n_blocks):
                integer = int_dot_32(raw, row + 34 * b + 2, codes_x, 32 * (t * n_blocks + b))
                acc = fma32(np.float32(integer), d[b] * at(d_x, t * n_blocks + b), acc)
            y[t, r] = acc


@kernel(*Q4_K_ARGS, INT, INT)
def rows_q4_k(raw, row_bytes, codes_x, d_x, sums, y, first, last):
    """S6. Q4_K rows first .. last - 1 times T activations in Q8_K; sums (T, n / 32): of 32 codes each."""
    n_tokens, n_blocks = d_x.shape
    codes = np.empty(256 * n_blocks, np.int8)
    scales, mins = np.empty(8 * n_blocks, np.int32), np.empty(8 * n_blocks, np.int32)
    d, dmin = np.empty(n_blocks, np.float32), np.empty(n_blocks, np.float32)
    for r in range(first, last):
        for b in range(n_blocks):
            block = r * row_bytes + 144 * b
            d[b], dmin[b] = _half(raw, block), _half(raw, block + 2)
            for j in range(8):
                scale, minimum = _q4_k_scale(raw, block, j)
                scales[8 * b + j], mins[8 * b + j] = np.int32(scale), np.int32(minimum)
            _q4_k_codes(raw, block, codes, 256 * b)
        for t in range(n_tokens):
            acc = np.float32(0)
            for b in range(n_blocks):
                integer, minimum = np.int32(0), np.int32(0)
                x_block = t * n_blocks + b
                for j in range(8):
                    k = 8 * b + j
                    integer += at(scales, k) * int_dot_32(codes, 32 * k, codes_x, 256 * x_block + 32 * j)
                    minimum += at(mins, k) * at(sums, 8 * x_block + j)
                scale_x = at(d_x, x_block)
                acc = fma32(np.float32(integer), scale_x * d[b], acc)
                acc = fma32(np.float32(minimum), -(scale_x * dmin[b]), acc)
            y[t, r] = acc


@kernel(*Q6_K_ARGS, INT, INT)
def rows_q6_k(raw, row_bytes, codes_x, d_x, y, first, last):
    """S6. Q6_K rows first .. last - 1 times T activations in Q8_K."""
    n_tokens, n_blocks = d_x.shape
    codes, scales = np.empty(256 * n_blocks, np.int8), np.empty(16 * n_blocks, np.int32)
    d = np.empty(n_blocks, np.float32)
    for r in range(first, last):
        for b in range(n_blocks):
            block = r * row_bytes + 210 * b
            d[b] = _half(raw, block + 208)
            for j in range(16):
                scales[16 * b + j] = np.int32(_i8(raw, block + 192 + j))
            _q6_k_codes(raw, block, codes, 256 * b)
        for t in range(n_tokens):
            acc = np.float32(0)
            for b in range(n_blocks):
                integer = np.int32(0)
                x_block = t * n_blocks + b
                for j in range(16):
                    k = 16 * b + j
                    integer += at(scales, k) * int_dot_16(codes, 16 * k, codes_x, 256 * x_block + 16 * j)
                acc = fma32(np.float32(integer), at(d_x, x_block) * d[b], acc)
            y[t, r] = acc
