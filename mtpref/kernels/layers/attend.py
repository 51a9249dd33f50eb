"""S16: causal attention over a cache in float32, float16 or bfloat16.

Owns the twin of `spec.attention`. One task is one token and one kv-head: it decodes each key and value once for all
query heads that share it. Tasks do not read each other, so they are split over threads.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import NamedTuple

import numpy as np
from numba import prange
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels.arithmetic.arith import f32_of_bf16, one_over_root
from mtpref.kernels.arithmetic.lanes import N_LANES, dot
from mtpref.kernels.arithmetic.scalars import f32_of_f16, fma32, never_inline
from mtpref.kernels.compiling import compile
from mtpref.kernels.compiling.calls import caller
from mtpref.kernels.compiling.compile import FLAG, INT, helper, kernel, source, target
from mtpref.kernels.compiling.records import record
from mtpref.kernels.layers.attend_tiles import TOKENS, attend, numerators
from mtpref.kernels.quants import activations

F32 = NDArray[np.float32]

KINDS = {"F32": activations.KEEP, "F16": activations.TO_F16, "BF16": activations.TO_BF16}

# Multiplications and additions below which one thread does all tasks.
PARALLEL_FROM = 1 << 19


class Cache(NamedTuple):
    """Keys and values, (n_cells, n_head_kv, D) each: float32 in the wide ones where kind is KEEP, else 16 bits in the
    half ones. The other two are empty."""

    kind: int
    k_wide: F32
    k_half: NDArray[np.uint16]
    v_wide: F32
    v_half: NDArray[np.uint16]


@helper
def _load_cell(wide_cache, half_cache, kind, j, head, out):
    """Key or value j of a head as float32. An F32 cache is `wide_cache`, the 16 bits of the others `half_cache`."""
    never_inline()
    if kind == activations.KEEP:
        cell = wide_cache[j, head]
        for i in range(len(out)):
            out[i] = cell[i]
    elif kind == activations.TO_F16:
        half = half_cache[j, head]
        for i in range(len(out)):
            out[i] = f32_of_f16(half[i])
    else:
        half = half_cache[j, head]
        for i in range(len(out)):
            out[i] = f32_of_bf16(half[i])


@helper
def _add_value_lanes(lanes, out, total):
    """The final tree over the lanes of each column of (32, D), given flat; then the division by the total."""
    never_inline()
    size = len(out)
    half = len(lanes) // (2 * size)
    while half:
        # Lane l + half lies half rows after lane l.
        for i in range(half * size):
            lanes[i] = lanes[i] + lanes[half * size + i]
        half //= 2
    for i in range(size):
        out[i] = np.float32(lanes[i]) / total


_WIDE, _HALF = source(types.float32, 3), source(types.uint16, 3)
_CACHE = record(Cache, kind=INT, k_wide=_WIDE, k_half=_HALF, v_wide=_WIDE, v_half=_HALF)
_ARGS = (_WIDE, _CACHE, INT, FLAG, types.float32, target(types.float32, 3))


@kernel(*_ARGS, INT, INT)
def _attention_tasks(q, cache, first, wide, scale, out, first_task, last_task):
    n_heads, size = q.shape[1], q.shape[2]
    n_kv_heads = max(cache.k_wide.shape[1], cache.k_half.shape[1])
    group = n_heads // n_kv_heads
    most_cells = first + q.shape[0]
    score = np.empty((group, most_cells), np.float32)
    ones, cell = np.ones(most_cells, np.float32), np.empty(size, np.float32)
    lanes32 = np.empty((1 if wide else group, N_LANES, size), np.float32)
    lanes64 = np.empty((group if wide else 1, N_LANES, size), np.float64)
    for task in range(first_task, last_task):
        t, kv_head = task // n_kv_heads, task % n_kv_heads
        n_cells = first + t + 1
        for j in range(n_cells):
            _load_cell(cache.k_wide, cache.k_half, cache.kind, j, kv_head, cell)
            for h in range(group):
                at_query = (t * n_heads + kv_head * group + h) * size
                score[h, j] = dot(q, at_query, cell, 0, size, wide) * scale
        for h in range(group):
            numerators(score[h], n_cells)
        lanes32[:] = np.float32(0)
        lanes64[:] = 0.0
        # Cell j is in lane j % 32. Lane by lane, so that the sums of one lane stay in the cache.
        for lane in range(min(N_LANES, n_cells)):
            for j in range(lane, n_cells, N_LANES):
                _load_cell(cache.v_wide, cache.v_half, cache.kind, j, kv_head, cell)
                for h in range(group):
                    e = score[h, j]
                    if wide:
                        sums64 = lanes64[h, lane]
                        for i in range(size):
                            sums64[i] = sums64[i] + np.float64(e) * np.float64(cell[i])
                    else:
                        sums32 = lanes32[h, lane]
                        for i in range(size):
                            sums32[i] = fma32(e, cell[i], sums32[i])
        for h in range(group):
            total = dot(score, h * most_cells, ones, 0, n_cells, wide)
            head_out = out[t, kv_head * group + h]
            if wide:
                _add_value_lanes(lanes64[h].reshape(-1), head_out, total)
            else:
                _add_value_lanes(lanes32[h].reshape(-1), head_out, total)


@kernel(*_ARGS, INT, INT)
def _attention_tiles(q, cache, first, wide, scale, out, part, n_parts):
    """Every n_parts-th block of tokens of each kv-head, from `part` on: later tokens have more cells."""
    n_kv_heads = max(cache.k_wide.shape[1], cache.k_half.shape[1])
    n_tokens = len(q)
    n_tasks = n_kv_heads * ((n_tokens + TOKENS - 1) // TOKENS)
    for task in range(part, n_tasks, n_parts):
        begin = task // n_kv_heads * TOKENS
        end = min(n_tokens, begin + TOKENS)
        attend(q, cache, task % n_kv_heads, first, begin, end, scale, out)


_call = caller(*_ARGS, INT, INT)


@kernel(INT, *_ARGS, INT, parallel=True)
def _all_attention_tiles(tiles, q, cache, first, wide, scale, out, n_parts):
    """All tiles, with the kernel at this address."""
    for p in prange(n_parts):
        _call(tiles, (q, cache, first, wide, scale, out, p, n_parts))


@kernel(INT, *_ARGS, INT, parallel=True)
def _all_attention_tasks(tasks, q, cache, first, wide, scale, out, n_parts):
    """All tasks, with the kernel at this address."""
    n = q.shape[0] * max(cache.k_wide.shape[1], cache.k_half.shape[1])
    for p in prange(n_parts):
        begin, end = p * n // n_parts, (p + 1) * n // n_parts
        _call(tasks, (q, cache, first, wide, scale, out, begin, end))


_NO_WIDE, _NO_HALF = np.empty((0, 0, 0), np.float32), np.empty((0, 0, 0), np.uint16)


def attention(q: F32, k_cache: NDArray, v_cache: NDArray, kv_type: str, first: int, wide: bool) -> F32:
    """S16. The bits of `spec.attention` with dot64 (wide) or dot32: q (T, n_head, D) -> (T, n_head, D).

    k_cache, v_cache: (n_cells, n_head_kv, D) with n_cells >= first + T, float32 (F32) or uint16 (F16, BF16)
    """
    q, kind = np.ascontiguousarray(q), KINDS[kv_type]
    k_cache, v_cache = np.ascontiguousarray(k_cache), np.ascontiguousarray(v_cache)
    if kind == activations.KEEP:
        cache = Cache(kind, k_cache, _NO_HALF, v_cache, _NO_HALF)
    else:
        cache = Cache(kind, _NO_WIDE, k_cache, _NO_WIDE, v_cache)
        rounded = np.empty_like(q)
        activations.round_to(q.reshape(-1), kind, rounded.reshape(-1))
        q = rounded
    n_tokens, n_head, size = q.shape
    scale = one_over_root(size)
    out = np.empty_like(q)
    is_serial = compile.n_threads() == 1 or 2 * n_tokens * n_head * size * (first + n_tokens) < PARALLEL_FROM
    args = q, cache, first, wide, scale, out
    if not wide and size % N_LANES == 0:
        if is_serial:
            _attention_tiles(*args, 0, 1)
        else:
            _all_attention_tiles(_attention_tiles.address(), *args, compile.start_threads())
    elif is_serial:
        _attention_tasks(*args, 0, n_tokens * k_cache.shape[1])
    else:
        _all_attention_tasks(_attention_tasks.address(), *args, compile.start_threads())
    return out
