"""S6: products of a range of rows of a weight matrix with T prepared activations, one kernel per family of types.

A row is unpacked once (unpack.py) and used for all T tokens; a matrix is never unpacked as a whole. Scales, codes and
sums of the activations come from activations.py.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np
from numba.core import types

from mtpref.kernels.arithmetic.lanes import dot, int_dot_16, int_dot_32
from mtpref.kernels.arithmetic.scalars import at, fma32
from mtpref.kernels.compiling.compile import INT, helper, kernel, source, target
from mtpref.kernels.quants.unpack import Q8_0, decode_float, half, has_minimum, unpack_k, unpack_legacy

_RAW, _MATRIX = source(types.uint8, 1), source(types.float32, 2)
_CODES, _OUT = source(types.int8, 2), target(types.float32, 2)
EXACT_ARGS = (INT, _RAW, INT, _MATRIX, _OUT)
Q8_0_ARGS = (_RAW, INT, _CODES, _MATRIX, _OUT)
LEGACY_ARGS = (INT, _RAW, INT, _CODES, _MATRIX, _MATRIX, _OUT)
K_ARGS = (INT, _RAW, INT, _CODES, _MATRIX, source(types.int32, 2), _OUT)


@kernel(*EXACT_ARGS, INT, INT)
def rows_float(type_code, raw, row_bytes, x, y, first, last):
    """S6. y[t, r] = dot64(row r, x[t]) for r in first .. last - 1 of F32, F16 and BF16: exact numerics."""
    n_tokens, n = x.shape
    row = np.empty(n, np.float32)
    for r in range(first, last):
        decode_float(type_code, raw, r * row_bytes, n, row)
        for t in range(n_tokens):
            y[t, r] = dot(row, 0, x, t * n, n, True)


@helper
def _decode_blocks(codes, size, step, low, with_low, out):
    """out = step * code, or step * code - low, for consecutive groups of `size` codes."""
    for j in range(len(codes) // size):
        part, values, scale, minimum = (
            codes[size * j : size * j + size],
            out[size * j : size * j + size],
            step[j],
            low[j],
        )
        if with_low:
            for i in range(size):
                values[i] = scale * np.float32(part[i]) - minimum
        else:
            for i in range(size):
                values[i] = scale * np.float32(part[i])


@kernel(*EXACT_ARGS, INT, INT)
def rows_blocks(type_code, raw, row_bytes, x, y, first, last):
    """S6. y[t, r] = dot64(dequantised row r, x[t]) for r in first .. last - 1 of quantised types: exact numerics."""
    n_tokens, n = x.shape
    is_legacy, with_low = type_code <= Q8_0, has_minimum(type_code)
    row, codes = np.empty(n, np.float32), np.empty(n, np.int8)
    size = 32 if is_legacy else 16
    step, low = np.zeros(n // size, np.float32), np.zeros(n // size, np.float32)
    scales, mins = np.empty(n // 16, np.int32), np.empty(n // 16, np.int32)
    d, dmin = np.empty(n // 32, np.float32), np.empty(n // 32, np.float32)
    for r in range(first, last):
        if is_legacy:
            unpack_legacy(type_code, raw, r * row_bytes, n // 32, codes, step, low)
            for j in range(n // 32):
                low[j] = -low[j]  # y = d * q + m
        else:
            unpack_k(type_code, raw, r * row_bytes, n // 256, codes, scales, mins, d, dmin)
            for j in range(n // 16):
                step[j] = d[j // 16] * np.float32(scales[j])
                if with_low:
                    low[j] = dmin[j // 16] * np.float32(mins[j])
        _decode_blocks(codes, size, step, low, with_low, row)
        for t in range(n_tokens):
            y[t, r] = dot(row, 0, x, t * n, n, True)


@kernel(*Q8_0_ARGS, INT, INT)
def rows_q8_0(raw, row_bytes, codes_x, d_x, y, first, last):
    """S6. Q8_0 rows first .. last - 1, read in place, times T activations in Q8_0: codes_x (T, n), d_x (T, n / 32)."""
    n_tokens, n_blocks = d_x.shape
    d = np.empty(n_blocks, np.float32)
    for r in range(first, last):
        row = r * row_bytes
        for b in range(n_blocks):
            d[b] = half(raw, row + 34 * b)
        for t in range(n_tokens):
            acc = np.float32(0)
            for b in range(n_blocks):
                integer = int_dot_32(raw, row + 34 * b + 2, codes_x, 32 * (t * n_blocks + b))
                acc = fma32(np.float32(integer), d[b] * at(d_x, t * n_blocks + b), acc)
            y[t, r] = acc


@kernel(*LEGACY_ARGS, INT, INT)
def rows_legacy(type_code, raw, row_bytes, codes_x, d_x, s_x, y, first, last):
    """S6. Q4_0, Q4_1, Q5_0, Q5_1 rows first .. last - 1 times T activations in Q8_1; s_x (T, n / 32)."""
    n_tokens, n_blocks = d_x.shape
    codes = np.empty(32 * n_blocks, np.int8)
    d, m = np.empty(n_blocks, np.float32), np.empty(n_blocks, np.float32)
    with_minimum = has_minimum(type_code)
    for r in range(first, last):
        unpack_legacy(type_code, raw, r * row_bytes, n_blocks, codes, d, m)
        for t in range(n_tokens):
            acc = np.float32(0)
            for b in range(n_blocks):
                x_block = t * n_blocks + b
                integer = int_dot_32(codes, 32 * b, codes_x, 32 * x_block)
                acc = fma32(np.float32(integer), at(d_x, x_block) * d[b], acc)
                if with_minimum:
                    acc = fma32(m[b], at(s_x, x_block), acc)
            y[t, r] = acc


@kernel(*K_ARGS, INT, INT)
def rows_k_32(type_code, raw, row_bytes, codes_x, d_x, sums, y, first, last):
    """S6. Q4_K and Q5_K rows first .. last - 1 times T activations in Q8_K; sums (T, n / 32): of 32 codes each."""
    n_tokens, n_blocks = d_x.shape
    codes = np.empty(256 * n_blocks, np.int8)
    scales, mins = np.empty(16 * n_blocks, np.int32), np.empty(16 * n_blocks, np.int32)
    d, dmin = np.empty(n_blocks, np.float32), np.empty(n_blocks, np.float32)
    for r in range(first, last):
        unpack_k(type_code, raw, r * row_bytes, n_blocks, codes, scales, mins, d, dmin)
        for t in range(n_tokens):
            acc = np.float32(0)
            for b in range(n_blocks):
                integer, minimum = np.int32(0), np.int32(0)
                x_block = t * n_blocks + b
                for j in range(8):
                    k = 8 * b + j
                    integer += at(scales, 2 * k) * int_dot_32(codes, 32 * k, codes_x, 256 * x_block + 32 * j)
                    minimum += at(mins, 2 * k) * at(sums, 8 * x_block + j)
                scale_x = at(d_x, x_block)
                acc = fma32(np.float32(integer), scale_x * d[b], acc)
                acc = fma32(np.float32(minimum), -(scale_x * dmin[b]), acc)
            y[t, r] = acc


@kernel(*K_ARGS, INT, INT)
def rows_k_16(type_code, raw, row_bytes, codes_x, d_x, sums, y, first, last):
    """S6. Q2_K, Q3_K, Q6_K rows first .. last - 1 times T activations in Q8_K; sums (T, n / 16): of 16 codes each."""
    n_tokens, n_blocks = d_x.shape
    codes = np.empty(256 * n_blocks, np.int8)
    scales, mins = np.empty(16 * n_blocks, np.int32), np.empty(16 * n_blocks, np.int32)
    d, dmin = np.empty(n_blocks, np.float32), np.empty(n_blocks, np.float32)
    with_minimum = has_minimum(type_code)
    for r in range(first, last):
        unpack_k(type_code, raw, r * row_bytes, n_blocks, codes, scales, mins, d, dmin)
        for t in range(n_tokens):
            acc = np.float32(0)
            for b in range(n_blocks):
                integer, minimum = np.int32(0), np.int32(0)
                x_block = t * n_blocks + b
                for j in range(16):
                    k = 16 * b + j
                    integer += at(scales, k) * int_dot_16(codes, 16 * k, codes_x, 256 * x_block + 16 * j)
                    minimum += at(mins, k) * at(sums, 16 * x_block + j)
                scale_x = at(d_x, x_block)
                acc = fma32(np.float32(integer), scale_x * d[b], acc)
                if with_minimum:
                    acc = fma32(np.float32(minimum), -(scale_x * dmin[b]), acc)
            y[t, r] = acc
