"""S16 in `ggml` numerics for heads whose size is a multiple of 32: keys and values are decoded once for several tokens.

Owns the inner loops of attention; attend.py says which tokens and heads. A task is a kv-head and up to TOKENS tokens.
Time and scratch memory grow linearly with the cells. Values are taken 32 columns at a time and lane by lane, so that
the sums of two heads stay in registers for all cells of a lane.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np

from mtpref.kernels.arithmetic.arith import exp
from mtpref.kernels.arithmetic.floats import (
    N_FLOATS,
    divided,
    exp16,
    fused,
    load16,
    load32,
    load_bf16,
    load_f16,
    plus,
    store,
)
from mtpref.kernels.arithmetic.lanes import N_LANES, dot32, zeros32
from mtpref.kernels.arithmetic.scalars import never_inline
from mtpref.kernels.compiling.compile import helper
from mtpref.kernels.quants import activations

TOKENS = 8


@helper
def _decode(wide_cache, half_cache, kind, at, n, out, to):
    """n elements of a cache as float32: out.flat[to : to + n]. An F32 cache is wide_cache, the others half_cache."""
    if kind == activations.KEEP:
        for i in range(0, n, N_FLOATS):
            store(out, to + i, load16(wide_cache, at + i))
    elif kind == activations.TO_F16:
        for i in range(0, n, N_FLOATS):
            store(out, to + i, load_f16(half_cache, at + i))
    else:
        for i in range(0, n, N_FLOATS):
            store(out, to + i, load_bf16(half_cache, at + i))


@helper
def _scores(q, k_wide, k_half, kind, kv_head, n_kv_heads, group, first, begin, end, scale, score):
    """score[row of token and head, j] = dot32(query, key j) * scale, a tile of 32 keys after the other."""
    never_inline()
    n_heads, size = q.shape[1], q.shape[2]
    most = first + end
    tile = np.empty((N_LANES, size), np.float32)
    for start in range(0, most, N_LANES):
        stop = min(most, start + N_LANES)
        for j in range(start, stop):
            _decode(k_wide, k_half, kind, (j * n_kv_heads + kv_head) * size, size, tile, (j - start) * size)
        for t in range(begin, end):
            for h in range(group):
                at_query = (t * n_heads + kv_head * group + h) * size
                row = score[(t - begin) * group + h]
                for j in range(start, min(stop, first + t + 1)):
                    row[j] = dot32(q, at_query, tile, (j - start) * size, size) * scale


@helper
def numerators_from(score, n, greatest):
    """score[j] becomes exp(score[j] - m), m the greatest of all and of `greatest`, which is the result; a NaN makes all
    NaN, as it does for np.max."""
    never_inline()
    for j in range(n):
        if score[j] > greatest or score[j] != score[j]:
            greatest = score[j]
    whole = n // N_FLOATS * N_FLOATS
    for j in range(0, whole, N_FLOATS):
        store(score, j, exp16(plus(load16(score, j), -greatest)))
    for j in range(whole, n):
        score[j] = exp(score[j] - greatest)
    return greatest


@helper
def numerators(score, n):
    """score[j] becomes exp(score[j] - max)."""
    numerators_from(score, n, score[0])


@helper
def _weigh(by_lane, a, b, at_lane, n, cells, lanes, lane):
    """lanes[a, lane] = the sum of by_lane[a, at_lane + i] * cell i over the n cells of a lane; the same for row b."""
    sum_a, sum_b = zeros32(), zeros32()
    row_a, row_b = by_lane[a], by_lane[b]
    for i in range(n):
        cell = load32(cells, i * N_LANES)
        sum_a, sum_b = fused(row_a[at_lane + i], cell, sum_a), fused(row_b[at_lane + i], cell, sum_b)
    store(lanes, (a * N_LANES + lane) * N_LANES, sum_a)
    store(lanes, (b * N_LANES + lane) * N_LANES, sum_b)


@helper
def values(v_wide, v_half, kind, kv_head, n_kv_heads, width, group, first, begin, end, score, totals, out):
    """out[t, head] = the scores' sum over values, by lanes and the final tree over them, divided by the total.

    A value is the first out.shape[2] elements of a cell of `width`.
    """
    never_inline()
    n_heads, size = out.shape[1], out.shape[2]
    most = first + end
    n_of_lane = (most + N_LANES - 1) // N_LANES
    cells = np.empty((n_of_lane, N_LANES), np.float32)
    # Scores of a lane beside each other: a value is read once, they are for each vector of columns.
    n_rows = (end - begin) * group
    by_lane = np.empty((n_rows, N_LANES * n_of_lane), np.float32)
    for row in range(n_rows):
        for j in range(first + begin + row // group + 1):
            by_lane[row, j % N_LANES * n_of_lane + j // N_LANES] = score[row, j]
    lanes = np.empty((n_rows, N_LANES, N_LANES), np.float32)
    for column in range(0, size, N_LANES):
        for lane in range(N_LANES):
            for i in range((most - lane + N_LANES - 1) // N_LANES):
                at = ((lane + N_LANES * i) * n_kv_heads + kv_head) * width + column
                _decode(v_wide, v_half, kind, at, N_LANES, cells, i * N_LANES)
            for t in range(begin, end):
                row = (t - begin) * group
                n = (first + t + 1 - lane + N_LANES - 1) // N_LANES
                for h in range(0, group, 2):
                    other = row + min(h + 1, group - 1)
                    _weigh(by_lane, row + h, other, lane * n_of_lane, n, cells, lanes, lane)
        for row in range(n_rows):
            at = row * N_LANES * N_LANES
            half = N_LANES // 2
            while half:
                for i in range(half):
                    low, high = at + i * N_LANES, at + (i + half) * N_LANES
                    store(lanes, low, plus(load32(lanes, low), load32(lanes, high)))
                half //= 2
            head = ((begin + row // group) * n_heads + kv_head * group + row % group) * size
            store(out, head + column, divided(load32(lanes, at), totals[row]))


@helper
def attend(q, cache, kv_head, first, begin, end, scale, out):
    """Tokens begin .. end - 1 of one kv-head's query heads."""
    never_inline()
    n_kv_heads = max(cache.k_wide.shape[1], cache.k_half.shape[1])
    group = q.shape[1] // n_kv_heads
    n_rows, most = (end - begin) * group, first + end
    score, totals, ones = np.empty((n_rows, most), np.float32), np.empty(n_rows, np.float32), np.ones(most, np.float32)
    _scores(q, cache.k_wide, cache.k_half, cache.kind, kv_head, n_kv_heads, group, first, begin, end, scale, score)
    for row in range(n_rows):
        n_cells = first + begin + row // group + 1
        numerators(score[row], n_cells)
        totals[row] = dot32(score, row * most, ones, 0, n_cells)
    width = out.shape[2]
    values(
        cache.v_wide, cache.v_half, cache.kind, kv_head, n_kv_heads, width, group, first, begin, end, score, totals, out
    )
