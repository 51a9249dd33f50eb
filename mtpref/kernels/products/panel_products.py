"""S6 on panels: the matrix products of PackedMatrix, the bits of `spec.mul_mat_ggml`.

Owns the preparation of activations for the tiles, and the order in which tiles are visited.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from mtpref.kernels.arithmetic.arith import round_f16
from mtpref.kernels.arithmetic.vectors import GROUP, ROWS
from mtpref.kernels.compiling import compile
from mtpref.kernels.compiling.compile import helper, kernel
from mtpref.kernels.products.blocks import TILES
from mtpref.kernels.products.product import PREPARE, ROWS_ARGS, Product
from mtpref.kernels.quants import activations

# Bytes of the words of the tokens that a thread takes through all its panels before it turns to the next tokens: they
# stay in the second-level cache beside a panel.
WORDS_IN_CACHE = 1 << 18

_quantize_q8_k = activations.quantize_q8_k.dispatcher


# ACTIVATIONS


@helper
def _spread(codes, is_unsigned, words):
    """A token's codes as words. GROUP 4: four int8. GROUP 2: two int16, or where the weights' codes are unsigned the
    two int8 twice."""
    out, out16 = words.view(np.int8), words.view(np.int16)
    if GROUP == 4:
        for i in range(len(codes)):
            out[i] = codes[i]
    elif is_unsigned:
        pairs = codes.view(np.int16)
        for i in range(len(pairs)):
            out16[2 * i] = pairs[i]
            out16[2 * i + 1] = pairs[i]
    else:
        for i in range(len(codes)):
            out16[i] = codes[i]


@kernel(*PREPARE)
def prepare_q8_0(x, is_unsigned, words, scales, sums, first, last):
    """S5. Tokens first .. last - 1 in Q8_0: words (T, n / GROUP), scales (T, n / 32), sums of 32 codes (T, n / 32)."""
    n = x.shape[1]
    codes = np.empty(n, np.int8)
    for t in range(first, last):
        for b in range(n // 32):
            d, sums[t, b] = activations.quantize_32(x[t], codes, 32 * b)
            scales[t, b] = round_f16(d)
        _spread(codes, is_unsigned, words[t])


@kernel(*PREPARE)
def prepare_q8_k(x, is_unsigned, words, scales, sums, first, last):
    """S5. Tokens first .. last - 1 in Q8_K: words (T, n / GROUP), scales (T, n / 256), and the sums of the codes of
    sub-blocks, two int16 in a word: of 32 (T, n / 64) or 16 columns (T, n / 32)."""
    n = x.shape[1]
    codes, of_16 = np.empty(n, np.int8), np.empty(n // 16, np.int32)
    n_added = n // 32 // sums.shape[1]
    for t in range(first, last):
        _quantize_q8_k(x[t], codes, scales[t], of_16)
        _spread(codes, is_unsigned, words[t])
        out = sums[t].view(np.int16)
        for j in range(len(out)):
            total = np.int32(0)
            for i in range(n_added):
                total += of_16[n_added * j + i]
            out[j] = total


# ROWS


def _rows_of(name: str) -> Any:
    """An intrinsic (panels, words, scales, sums, y, first, last): panels first .. last - 1 times all tokens."""
    tile_4, tile_2, tile_1 = TILES[name]

    def rows(panels, words, scales, sums, y, first, last):
        n_tokens, n_out = y.shape
        n_panels = (n_out + ROWS - 1) // ROWS
        panel_bytes = len(panels) // n_panels
        n_cached = WORDS_IN_CACHE // (16 * words.shape[1]) * 4 + 4
        spare = np.empty((4, ROWS), np.float32)
        for start in range(0, n_tokens, n_cached):
            end = start + n_cached if start + n_cached < n_tokens else n_tokens
            for p in range(first, last):
                n_rows = ROWS if p < n_panels - 1 else n_out - ROWS * p
                t = start
                while t < end:
                    # Whole panels go straight to y, the rows of the last one by way of `spare`.
                    out, k, step = spare, 0, ROWS
                    if n_rows == ROWS:
                        out, k, step = y, t * n_out + ROWS * p, n_out
                    width = 4 if end - t >= 4 else 2 if end - t >= 2 else 1
                    if width == 4:
                        tile_4(panels, p * panel_bytes, words, scales, sums, t, out, k, step)
                    elif width == 2:
                        tile_2(panels, p * panel_bytes, words, scales, sums, t, out, k, step)
                    else:
                        tile_1(panels, p * panel_bytes, words, scales, sums, t, out, k, step)
                    if n_rows < ROWS:
                        for i in range(width):
                            for r in range(n_rows):
                                y[t + i, ROWS * p + r] = spare[i, r]
                    t += width

    compile.name_symbol(rows, f"rows_of_{name}")

    @intrinsic
    def call(typingctx, panels, words, scales, sums, y, first, last):
        def codegen(context, builder, sig, args):
            return context.compile_internal(builder, rows, sig, args)

        return types.none(panels, words, scales, sums, y, types.intp, types.intp), codegen

    return call


_rows_of_q8_0, _rows_of_q4_0 = _rows_of("Q8_0"), _rows_of("Q4_0")
_rows_of_q4_k, _rows_of_q5_k, _rows_of_q6_k = (_rows_of(name) for name in ("Q4_K", "Q5_K", "Q6_K"))


@kernel(*ROWS_ARGS)
def rows_q8_0(panels, words, scales, sums, y, first, last):
    """Panels first .. last - 1 of Q8_0 times all tokens."""
    _rows_of_q8_0(panels, words, scales, sums, y, first, last)


@kernel(*ROWS_ARGS)
def rows_q4_0(panels, words, scales, sums, y, first, last):
    """Panels first .. last - 1 of Q4_0 times all tokens."""
    _rows_of_q4_0(panels, words, scales, sums, y, first, last)


@kernel(*ROWS_ARGS)
def rows_q4_k(panels, words, scales, sums, y, first, last):
    """Panels first .. last - 1 of Q4_K times all tokens."""
    _rows_of_q4_k(panels, words, scales, sums, y, first, last)


@kernel(*ROWS_ARGS)
def rows_q5_k(panels, words, scales, sums, y, first, last):
    """Panels first .. last - 1 of Q5_K times all tokens."""
    _rows_of_q5_k(panels, words, scales, sums, y, first, last)


@kernel(*ROWS_ARGS)
def rows_q6_k(panels, words, scales, sums, y, first, last):
    """Panels first .. last - 1 of Q6_K times all tokens."""
    _rows_of_q6_k(panels, words, scales, sums, y, first, last)


PRODUCTS = {
    "Q8_0": Product(GROUP, 32, 32, False, prepare_q8_0, rows_q8_0),
    "Q4_0": Product(GROUP, 32, 32, True, prepare_q8_0, rows_q4_0),
    "Q4_K": Product(GROUP, 256, 64, True, prepare_q8_k, rows_q4_k),
    "Q5_K": Product(GROUP, 256, 64, True, prepare_q8_k, rows_q5_k),
    "Q6_K": Product(GROUP, 256, 32, True, prepare_q8_k, rows_q6_k),
}
