"""S62, S63, S77: scores of an indexer, and the cells or rows of the greatest.

Owns the twins of the choice. It goes by keys: whole numbers in the order of the scores. A histogram of their leading
bits says in which of its bins the last of the chosen lies, that of the next bits narrows it down, and after three the
least key of those chosen is known; then one pass takes what is above it, and of its equals the first. So time grows
linearly with the cells.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels.arithmetic.lanes import lane_sum_products
from mtpref.kernels.arithmetic.scalars import bits_of_f32, never_inline
from mtpref.kernels.compiling.compile import INT, helper, kernel, source, target
from mtpref.spec.indexer import NO_CELL

F32 = NDArray[np.float32]
IDS = NDArray[np.int64]

_MATRIX, _CUBE = source(types.float32, 2), source(types.float32, 3)
_BITS = 11
_LOWEST = np.int64(0x007FFFFF)  # the key of -infinity


@helper
def _key(score):
    """Keys rise with scores, -0 is 0; that of a NaN is below all."""
    if score != score:
        return np.int64(0)
    bits = np.int64(bits_of_f32(score + np.float32(0)))
    return bits ^ np.int64(0xFFFFFFFF) if bits >> 31 else bits | np.int64(0x80000000)


@helper
def _least_key(keys, n, n_best):
    """The n_best-th greatest of n keys, and how many of its equals are among the n_best greatest."""
    never_inline()
    counts, left, prefix = np.empty(1 << _BITS, np.int64), n_best, np.int64(0)
    for step in range(3):
        shift = 33 - _BITS * (step + 1)
        counts[:] = 0
        for i in range(n):
            if keys[i] >> (shift + _BITS) == prefix:
                counts[(keys[i] >> shift) & ((1 << _BITS) - 1)] += 1
        b = (1 << _BITS) - 1
        while counts[b] < left:
            left -= counts[b]
            b -= 1
        prefix = (prefix << _BITS) | b
    return prefix, left


@helper
def choose(keys, n, n_best, out):
    """The places of the n_best greatest of n keys, of equals the first, rising; all where they are few. Their
    number."""
    never_inline()
    if n <= n_best:
        for i in range(n):
            out[i] = i
        return n
    least, n_equal = _least_key(keys, n, n_best)
    n_found = 0
    for i in range(n):
        if keys[i] > least or (keys[i] == least and n_equal > 0):
            n_equal -= 1 if keys[i] == least else 0
            out[n_found] = i
            n_found += 1
    return n_found


@kernel(_CUBE, _MATRIX, _MATRIX, target(types.int64, 2), target(types.int64, 1), INT, INT)
def choose_rows(q, rows, weights, chosen, n_chosen, part, n_parts):
    """S77, S77. Every n_parts-th token, from `part` on: later ones see more rows.

    q         (T, n_head, D)     rows  (R, D)     weights (T, n_head)
    n_chosen  of each token: the rows that it sees, and then how many were chosen     chosen  (T, n_best) to fill
    """
    n_heads, size = q.shape[1], q.shape[2]
    keys = np.empty(len(rows), np.int64)
    for t in range(part, len(q), n_parts):
        n_seen = n_chosen[t]
        if n_seen > chosen.shape[1]:
            for r in range(n_seen):
                total = np.float32(0)
                for h in range(n_heads):
                    p = np.float32(lane_sum_products(q, (t * n_heads + h) * size, rows, r * size, size))
                    total = total + (np.float32(0) if p < np.float32(0) else p) * weights[t, h]
                keys[r] = _key(total)
        n_chosen[t] = choose(keys, n_seen, chosen.shape[1], chosen[t])


@kernel(_CUBE, _MATRIX, INT, target(types.float32, 2))
def _index_scores(products, weights, first, out):
    n_tokens, n_heads, n_cells = products.shape
    for t in range(n_tokens):
        row = out[t]
        n_seen = min(n_cells, first + t + 1)
        row[:n_seen] = np.float32(0)
        row[n_seen:] = np.float32(-np.inf)
        for h in range(n_heads):
            of_head, weight = products[t, h], weights[t, h]
            for j in range(n_seen):
                p = of_head[j]
                row[j] = row[j] + (np.float32(0) if p < np.float32(0) else p) * weight


@kernel(_MATRIX, INT, target(types.int64, 2))
def _select_cells(scores, first, out):
    n_tokens, n_cells = scores.shape
    keys = np.empty(n_cells, np.int64)
    for t in range(n_tokens):
        n_seen = min(n_cells, first + t + 1)
        for j in range(n_seen):
            keys[j] = max(_key(scores[t, j]), _LOWEST)
        n_found = choose(keys, n_seen, out.shape[1], out[t])
        out[t, n_found:] = NO_CELL


@kernel(_MATRIX, source(types.int64, 2), INT, target(types.float32, 1))
def _selection_gap(scores, cells, first, out):
    n_tokens, n_cells = scores.shape
    lowest = np.float32(-np.inf)
    for t in range(n_tokens):
        least, rest, largest, at = np.float32(np.inf), lowest, np.float32(0), 0
        n_seen = min(n_cells, first + t + 1)
        for j in range(n_seen):
            score = scores[t, j] if scores[t, j] == scores[t, j] else lowest
            if abs(score) > largest and abs(score) < np.float32(np.inf):
                largest = abs(score)
            if at < cells.shape[1] and cells[t, at] == j:
                at += 1
                least = score if score < least else least
            elif score > rest:
                rest = score
        if at == n_seen:
            out[t] = np.float32(np.inf)
            continue
        between = least - rest
        out[t] = between / largest if largest > np.float32(0) and between > np.float32(0) else np.float32(0)


def index_scores(products: F32, weights: F32, first: int) -> F32:
    """S62. The bits of `spec.index_scores`: products (T, n_head, n_cells), weights (T, n_head) -> (T, n_cells)."""
    out = np.empty((len(products), products.shape[2]), np.float32)
    _index_scores(np.ascontiguousarray(products), np.ascontiguousarray(weights), first, out)
    return out


def select_cells(scores: F32, first: int, n_top: int) -> IDS:
    """S63. What `spec.select_cells` chooses: scores (T, n_cells) -> (T, min(n_top, n_cells)), rising."""
    out = np.empty((len(scores), min(n_top, scores.shape[1])), np.int64)
    _select_cells(np.ascontiguousarray(scores), first, out)
    return out


def selection_gap(scores: F32, cells: IDS, first: int) -> F32:
    """S63. The bits of `spec.selection_gap`: scores (T, n_cells), cells (T, n) as chosen -> (T,)."""
    out = np.empty(len(scores), np.float32)
    _selection_gap(np.ascontiguousarray(scores), np.ascontiguousarray(cells), first, out)
    return out
