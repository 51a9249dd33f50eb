"""S6 on panels: the matrix products of PackedMatrix, the bits of `spec.mul_mat_ggml`.

Owns the preparation of activations for the tiles, the order in which tiles are visited, and the split over threads.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import Any

import numpy as np
from numba import prange
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from mtpref.kernels import activations, compile, tiles
from mtpref.kernels.compile import INT, helper, kernel, source, target
from mtpref.kernels.packed import PackedMatrix
from mtpref.kernels.vectors import GROUP, ROWS

F32 = NDArray[np.float32]

# Multiplications and additions below which one thread does the whole product: some tens of microseconds.
PARALLEL_FROM = 1 << 20
# Bytes of the words of the tokens that a thread takes through all its panels before it turns to the next tokens: they
# stay in the second-level cache beside a panel.
WORDS_IN_CACHE = 1 << 18

_quantize_q8_1 = activations.quantize_q8_1.dispatcher


# ACTIVATIONS


@helper
def _spread(codes, words):
    """Words of int16 pairs (GROUP 2) or of four int8 (GROUP 4) of consecutive codes."""
    if GROUP == 4:
        out = words.view(np.int8)
        for i in range(len(codes)):
            out[i] = codes[i]
    else:
        out16 = words.view(np.int16)
        for i in range(len(codes)):
            out16[i] = codes[i]


@kernel(source(types.float32, 2), target(types.int32, 2), target(types.float32, 2), target(types.int32, 2), INT, INT)
def prepare_q8_0(x, words, scales, sums, first, last):
    """S5. Tokens first .. last - 1 in Q8_0: words (T, n / GROUP), scales (T, n / 32), sums of 32 codes (T, n / 32)."""
    n = x.shape[1]
    codes, unused = np.empty(n, np.int8), np.empty(n // 32, np.float32)
    for t in range(first, last):
        _quantize_q8_1(x[t], codes, scales[t], unused)
        _spread(codes, words[t])
        for b in range(n // 32):
            total = np.int32(0)
            for i in range(32):
                total += np.int32(codes[32 * b + i])
            sums[t, b] = total


# ROWS


def _rows_by(tile_4: Any, tile_2: Any, tile_1: Any) -> Any:
    """An intrinsic (panels, words, scales, sums, y, first, last): panels first .. last - 1 times all tokens."""

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

    @intrinsic
    def call(typingctx, panels, words, scales, sums, y, first, last):
        def codegen(context, builder, sig, args):
            return context.compile_internal(builder, rows, sig, args)

        return types.none(panels, words, scales, sums, y, types.intp, types.intp), codegen

    return call


_rows_of_q8_0 = _rows_by(tiles.q8_0_4, tiles.q8_0_2, tiles.q8_0_1)

_PANELS, _X, _OUT = source(types.uint8, 1), source(types.float32, 2), target(types.float32, 2)
_PREPARED = (_PANELS, source(types.int32, 2), source(types.float32, 2), source(types.int32, 2))


@kernel(*_PREPARED, _OUT, INT, INT)
def rows_q8_0(panels, words, scales, sums, y, first, last):
    """Panels first .. last - 1 of Q8_0."""
    _rows_of_q8_0(panels, words, scales, sums, y, first, last)


_rows_q8_0, _prepare_q8_0 = rows_q8_0.dispatcher, prepare_q8_0.dispatcher


@kernel(_PANELS, _X, target(types.int32, 2), target(types.float32, 2), target(types.int32, 2), _OUT, INT, parallel=True)
def all_rows_q8_0(panels, x, words, scales, sums, y, n_parts):
    n_tokens, n = len(x), -(-y.shape[1] // ROWS)
    for p in prange(n_parts):
        _prepare_q8_0(x, words, scales, sums, p * n_tokens // n_parts, (p + 1) * n_tokens // n_parts)
    for p in prange(n_parts):
        _rows_q8_0(panels, words, scales, sums, y, p * n // n_parts, (p + 1) * n // n_parts)


def mul_mat(w: PackedMatrix, x: F32) -> F32:
    """S6. y = W x, (T, n_in) -> (T, n_out), in `ggml` numerics, for a matrix that has panels."""
    n_tokens, n_in = x.shape
    n_blocks = n_in // 32
    y = np.empty((n_tokens, w.n_out), np.float32)
    words = np.empty((n_tokens, n_in // GROUP), np.int32)
    scales, sums = np.empty((n_tokens, n_blocks), np.float32), np.empty((n_tokens, n_blocks), np.int32)
    if compile.n_threads() == 1 or w.n_out * n_in * n_tokens < PARALLEL_FROM:
        prepare_q8_0(x, words, scales, sums, 0, n_tokens)
        rows_q8_0(w.panels, words, scales, sums, y, 0, -(-w.n_out // ROWS))
    else:
        all_rows_q8_0(w.panels, x, words, scales, sums, y, compile.start_threads())
    return y
