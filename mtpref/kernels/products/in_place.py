"""S6 for quantised rows as they lie in the file, and for `exact` numerics, behind the signatures of product.py.

Owns what lets one loop multiply rows of any type by address: the row kernels of rows.py with their activations as
words, scales and sums. Types of 32 or 256 columns a block are told apart by the bytes of a block, since a kernel of
product.py is not told the type. Types that are dequantised a tile at a time have none.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np

from mtpref.kernels.arithmetic.vectors import ROWS
from mtpref.kernels.compiling.compile import helper, kernel
from mtpref.kernels.products import rows
from mtpref.kernels.products.product import PREPARE, ROWS_ARGS, Product
from mtpref.kernels.quants import activations
from mtpref.kernels.quants.unpack import (
    BF16,
    F16,
    F32,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
)

_quantize_q8_1, _quantize_q8_k = activations.quantize_q8_1.dispatcher, activations.quantize_q8_k.dispatcher
_rows_float, _rows_blocks = rows.rows_float.dispatcher, rows.rows_blocks.dispatcher
_rows_q8_0, _rows_legacy = rows.rows_q8_0.dispatcher, rows.rows_legacy.dispatcher
_rows_k_32, _rows_k_16 = rows.rows_k_32.dispatcher, rows.rows_k_16.dispatcher


@helper
def _legacy_type(block_bytes):
    """The type of blocks of 32 columns."""
    if block_bytes == 18:
        return Q4_0
    if block_bytes == 20:
        return Q4_1
    if block_bytes == 22:
        return Q5_0
    return Q5_1 if block_bytes == 24 else Q8_0


@helper
def _k_type(block_bytes):
    """The type of blocks of 256 columns."""
    if block_bytes == 84:
        return Q2_K
    if block_bytes == 110:
        return Q3_K
    if block_bytes == 144:
        return Q4_K
    return Q5_K if block_bytes == 176 else Q6_K


# ACTIVATIONS


@kernel(*PREPARE)
def prepare_codes_8_1(x, is_unsigned, words, scales, sums, first, last):
    """S5. Tokens first .. last - 1 in Q8_1: four codes a word, scales (T, n / 32), sums (T, n / 32) as the bits of
    float32."""
    codes, floats = words.view(np.int8), sums.view(np.float32)
    for t in range(first, last):
        _quantize_q8_1(x[t], codes[t], scales[t], floats[t])


@kernel(*PREPARE)
def prepare_codes_k(x, is_unsigned, words, scales, sums, first, last):
    """S5. Tokens first .. last - 1 in Q8_K: four codes a word, scales (T, n / 256), sums of 16 codes (T, n / 16), or of
    32 (T, n / 32)."""
    n = x.shape[1]
    codes, of_16 = words.view(np.int8), np.empty(n // 16, np.int32)
    n_added = n // 16 // sums.shape[1]
    for t in range(first, last):
        _quantize_q8_k(x[t], codes[t], scales[t], of_16)
        for j in range(sums.shape[1]):
            total = np.int32(0)
            for i in range(n_added):
                total += of_16[n_added * j + i]
            sums[t, j] = total


@kernel(*PREPARE)
def prepare_exact(x, is_unsigned, words, scales, sums, first, last):
    """Tokens first .. last - 1 as they are, in place of scales; words and sums are not used."""
    for t in range(first, last):
        for i in range(x.shape[1]):
            scales[t, i] = x[t, i]


# ROWS


@helper
def _last(last, n_out):
    return last * ROWS if last * ROWS < n_out else n_out


@kernel(*ROWS_ARGS)
def rows_of_q8_0(raw, words, scales, sums, y, first, last):
    """Groups first .. last - 1 of 16 rows of Q8_0 times all tokens."""
    n_out = y.shape[1]
    _rows_q8_0(raw, len(raw) // n_out, words.view(np.int8), scales, y, first * ROWS, _last(last, n_out))


@kernel(*ROWS_ARGS)
def rows_of_legacy(raw, words, scales, sums, y, first, last):
    """Groups first .. last - 1 of 16 rows of Q4_0, Q4_1, Q5_0 or Q5_1 times all tokens."""
    n_out = y.shape[1]
    row_bytes, codes = len(raw) // n_out, words.view(np.int8)
    kind = _legacy_type(row_bytes // scales.shape[1])
    to = _last(last, n_out)
    _rows_legacy(kind, raw, row_bytes, codes, scales, sums.view(np.float32), y, first * ROWS, to)


@kernel(*ROWS_ARGS)
def rows_of_k_32(raw, words, scales, sums, y, first, last):
    """Groups first .. last - 1 of 16 rows of Q4_K or Q5_K times all tokens; sums of 32 codes."""
    n_out = y.shape[1]
    row_bytes, codes = len(raw) // n_out, words.view(np.int8)
    kind = _k_type(row_bytes // scales.shape[1])
    _rows_k_32(kind, raw, row_bytes, codes, scales, sums, y, first * ROWS, _last(last, n_out))


@kernel(*ROWS_ARGS)
def rows_of_k_16(raw, words, scales, sums, y, first, last):
    """Groups first .. last - 1 of 16 rows of Q2_K, Q3_K or Q6_K times all tokens; sums of 16 codes."""
    n_out = y.shape[1]
    row_bytes, codes = len(raw) // n_out, words.view(np.int8)
    kind = _k_type(row_bytes // scales.shape[1])
    _rows_k_16(kind, raw, row_bytes, codes, scales, sums, y, first * ROWS, _last(last, n_out))


@kernel(*ROWS_ARGS)
def exact_rows_f32(raw, words, x, sums, y, first, last):
    """Groups first .. last - 1 of 16 rows of F32 times all tokens, as dot64."""
    n_out = y.shape[1]
    _rows_float(F32, raw, len(raw) // n_out, x, y, first * ROWS, _last(last, n_out))


@kernel(*ROWS_ARGS)
def exact_rows_f16(raw, words, x, sums, y, first, last):
    """Groups first .. last - 1 of 16 rows of F16 times all tokens, as dot64."""
    n_out = y.shape[1]
    _rows_float(F16, raw, len(raw) // n_out, x, y, first * ROWS, _last(last, n_out))


@kernel(*ROWS_ARGS)
def exact_rows_bf16(raw, words, x, sums, y, first, last):
    """Groups first .. last - 1 of 16 rows of BF16 times all tokens, as dot64."""
    n_out = y.shape[1]
    _rows_float(BF16, raw, len(raw) // n_out, x, y, first * ROWS, _last(last, n_out))


@kernel(*ROWS_ARGS)
def exact_rows_legacy(raw, words, x, sums, y, first, last):
    """Groups first .. last - 1 of 16 rows of Q4_0 .. Q8_0 times all tokens, as dot64."""
    n_out = y.shape[1]
    row_bytes = len(raw) // n_out
    kind = _legacy_type(row_bytes // (x.shape[1] // 32))
    _rows_blocks(kind, raw, row_bytes, x, y, first * ROWS, _last(last, n_out))


@kernel(*ROWS_ARGS)
def exact_rows_k(raw, words, x, sums, y, first, last):
    """Groups first .. last - 1 of 16 rows of Q2_K .. Q6_K times all tokens, as dot64."""
    n_out = y.shape[1]
    row_bytes = len(raw) // n_out
    kind = _k_type(row_bytes // (x.shape[1] // 256))
    _rows_blocks(kind, raw, row_bytes, x, y, first * ROWS, _last(last, n_out))


_LEGACY, _K = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"), ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
PRODUCTS = {
    **dict.fromkeys(_LEGACY[:-1], Product(4, 32, 32, False, prepare_codes_8_1, rows_of_legacy)),
    "Q8_0": Product(4, 32, 32, False, prepare_codes_8_1, rows_of_q8_0),
    **dict.fromkeys(("Q4_K", "Q5_K"), Product(4, 256, 32, False, prepare_codes_k, rows_of_k_32)),
    **dict.fromkeys(("Q2_K", "Q3_K", "Q6_K"), Product(4, 256, 16, False, prepare_codes_k, rows_of_k_16)),
}
EXACT_PRODUCTS = {
    "F32": Product(0, 1, 0, False, prepare_exact, exact_rows_f32),
    "F16": Product(0, 1, 0, False, prepare_exact, exact_rows_f16),
    "BF16": Product(0, 1, 0, False, prepare_exact, exact_rows_bf16),
    **dict.fromkeys(_LEGACY, Product(0, 1, 0, False, prepare_exact, exact_rows_legacy)),
    **dict.fromkeys(_K, Product(0, 1, 0, False, prepare_exact, exact_rows_k)),
}
