"""S56, S57, S66: attention through a latent row in `ggml` numerics, between its inputs (S55) and the output's product.

Owns the fused twins of compose_latent.py's `latent_attn_layer` and compose_indexer.py's `indexed_attn_layer`. One task
is a block of tokens and a block of heads: queries are absorbed, meet the cached rows, and what they gather is brought
back to the heads' values, all while it is in the cache. Where an indexer has chosen cells, a task is one token, whose
cells are copied beside each other. Tasks do not read each other, so they are split over threads.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels.arithmetic.scalars import never_inline
from mtpref.kernels.arithmetic.vectors import ROWS
from mtpref.kernels.compiling import compile
from mtpref.kernels.compiling.calls import caller
from mtpref.kernels.compiling.compile import INT, helper, kernel, source, target
from mtpref.kernels.compiling.records import record
from mtpref.kernels.fused.nets import NET, Net, net_of
from mtpref.kernels.layers.attend_cells import READING, TILES, attend_cells, call_attend, reading, take
from mtpref.kernels.products import mul_mats
from mtpref.kernels.products.product import WEIGHTS, call_prepare, call_rows, room
from mtpref.spec.ops.compose import discard

F32 = NDArray[np.float32]
IDS = NDArray[np.int64]

TOKENS = 8  # of a task
PAIRS = 128  # of a token and a head in a task, at most: their scores stay in the cache


class Queries(NamedTuple):
    """q_nope (T, n_head, n_nope) and q_pe (T, n_head, n_rot), which is turned, and their latent scale (S54)."""

    q_nope: F32
    q_pe: F32
    scale: np.float32


class Cells(NamedTuple):
    """Cached rows: their bytes, and tokens before the batch. attend: address of attend_cells

    n_all   tokens of the batch that see every cell, their own and those before it
    chosen  (T, n), rising, NO_CELL after the last: the cells of the others
    """

    attend: int
    raw: NDArray[np.uint8]
    first: int
    n_all: int
    chosen: NDArray[np.int64]


_CUBE = source(types.float32, 3)
_QUERIES = record(Queries, q_nope=_CUBE, q_pe=_CUBE, scale=types.float32)
_CELLS = record(Cells, attend=INT, raw=WEIGHTS, first=INT, n_all=INT, chosen=source(types.int64, 2))
_ARGS = (NET, NET, _QUERIES, READING, _CELLS, target(types.float32, 3))


@helper
def _product(net, h, x, y):
    """S6. y = x times matrix h of a stack."""
    never_inline()
    words, scales, sums = room(net, *x.shape)
    call_prepare(net.prepare, (x, net.is_unsigned, words, scales, sums, 0, len(x)))
    start = h * net.stride
    call_rows(net.rows, (net.weights[start : start + net.n_bytes], words, scales, sums, y, 0, -(-y.shape[1] // ROWS)))


@helper
def _absorb(k_b, queries, begin, n_tokens, head, n_heads, rows):
    """S54, S56. rows[t, h] = [attn_k_b q_nope | q_pe] * scale, of tokens from `begin` and heads from `head` on."""
    never_inline()
    n_rot, n_nope, scale = queries.q_pe.shape[2], queries.q_nope.shape[2], queries.scale
    n_latent = rows.shape[2] - n_rot
    x, y = np.empty((n_tokens, n_nope), np.float32), np.empty((n_tokens, n_latent), np.float32)
    for h in range(n_heads):
        for t in range(n_tokens):
            x[t] = queries.q_nope[begin + t, head + h]
        _product(k_b, head + h, x, y)
        for t in range(n_tokens):
            row, turned = rows[t, h], queries.q_pe[begin + t, head + h]
            for i in range(n_latent):
                row[i] = y[t, i] * scale
            for i in range(n_rot):
                row[n_latent + i] = turned[i] * scale


@helper
def _attend(how, cells, begin, rows, out):
    """S16, S64. rows: queries (n, heads, n_row) of tokens from `begin` on; out: (n, heads, n_latent)."""
    never_inline()
    n_all, no_sinks = min(len(rows), max(0, cells.n_all - begin)), np.empty(0, np.float32)
    if n_all > 0:
        call_attend(cells.attend, (how, cells.raw, rows[:n_all], no_sinks, cells.first + begin, out[:n_all]))
    for t in range(n_all, len(rows)):
        own, n = cells.chosen[begin + t], cells.chosen.shape[1]
        while own[n - 1] < 0:
            n -= 1
        raw = np.empty(n * how.row_bytes, np.uint8)
        take(cells.raw, how.row_bytes, own, 0, n, raw, 0)
        call_attend(cells.attend, (how, raw, rows[t : t + 1], no_sinks, n - 1, out[t : t + 1]))


@helper
def _bring_back(v_b, gathered, begin, head, out):
    """S56. out[t, head] = attn_v_b gathered, (T, n_head, n_value)."""
    never_inline()
    n_tokens, n_heads, n_latent = gathered.shape
    x, y = np.empty((n_tokens, n_latent), np.float32), np.empty((n_tokens, out.shape[2]), np.float32)
    for h in range(n_heads):
        for t in range(n_tokens):
            x[t] = gathered[t, h]
        _product(v_b, head + h, x, y)
        for t in range(n_tokens):
            out[begin + t, head + h] = y[t]


@kernel(*_ARGS, INT, INT)
def latent_tasks(k_b, v_b, queries, how, cells, out, part, n_parts):
    """Every n_parts-th task, from `part` on: later tokens have more cells."""
    n_tokens, n_head, n_rot = queries.q_pe.shape
    n_row, together = k_b.n_out + n_rot, TOKENS if cells.n_all == n_tokens else 1
    n_blocks = -(-n_tokens // together)
    # As many heads as fit, and as leave a task for each part.
    n_heads = min(max(1, PAIRS // min(n_tokens, together)), -(-n_head // -(-n_parts // n_blocks)))
    n_shares = -(-n_head // n_heads)
    for task in range(part, n_blocks * n_shares, n_parts):
        begin, head = task // n_shares * together, task % n_shares * n_heads
        n, heads = min(together, n_tokens - begin), min(n_heads, n_head - head)
        rows = np.empty((n, heads, n_row), np.float32)
        gathered = np.empty((n, heads, n_row - n_rot), np.float32)
        _absorb(k_b, queries, begin, n, head, heads, rows)
        _attend(how, cells, begin, rows, gathered)
        _bring_back(v_b, gathered, begin, head, out)


_call = caller(*_ARGS, INT, INT)


@kernel(INT, *_ARGS, INT, parallel=True)
def all_latent_tasks(tasks, k_b, v_b, queries, how, cells, out, n_parts):
    """All tasks, with the kernel at this address."""
    for p in prange(n_parts):
        _call(tasks, (k_b, v_b, queries, how, cells, out, p, n_parts))


# PYTHON'S SIDE

_NO_CHOICE = np.empty((0, 0), np.int64)


def _nets(w: Any, cfg: Any, tap: Any, wide: bool) -> tuple[Net, Net] | None:
    """The expansions of keys and of values; None where a tap looks on, or for sizes and types that have no kernel."""
    if wide or tap is not discard or cfg.n_latent % TILES:
        return None
    k_b, v_b = net_of(w["attn_k_b.weight"], False), net_of(w["attn_v_b.weight"], False)
    return None if k_b is None or v_b is None else (k_b, v_b)


def _layer(
    ops: Any,
    w: Any,
    cfg: Any,
    x: F32,
    cells: NDArray[Any],
    kv_type: str,
    first: int,
    rope_cos_sin: tuple[F32, F32],
    nets: tuple[Net, Net],
    chosen: IDS | None,
) -> F32:
    n_tokens = len(x)
    q_nope, q_pe, c, k_pe = ops.latent_input(ops, w, cfg, x, rope_cos_sin, discard)
    cells[first:] = ops.store_kv(np.concatenate([c, k_pe], axis=-1)[:, None], kv_type)
    n_all = n_tokens if chosen is None else min(n_tokens, max(0, chosen.shape[1] - first))
    chosen = _NO_CHOICE if chosen is None else np.ascontiguousarray(chosen)
    raw = np.ascontiguousarray(cells).reshape(-1).view(np.uint8)
    given = reading(kv_type, cfg.n_row), Cells(attend_cells.address(), raw, first, n_all, chosen)
    queries = Queries(np.ascontiguousarray(q_nope), np.ascontiguousarray(q_pe), np.float32(cfg.scale))
    out = np.empty((n_tokens, cfg.n_head, cfg.n_value), np.float32)
    args = *nets, queries, *given, out
    n_cells = first + n_tokens if n_all == n_tokens else chosen.shape[1]
    n_values = cfg.n_head * (cfg.n_latent * (cfg.n_key + cfg.n_value) + cfg.n_row * n_cells)
    if compile.n_threads() == 1 or n_tokens * n_values < mul_mats.PARALLEL_FROM:
        latent_tasks(*args, 0, 1)
    else:
        all_latent_tasks(latent_tasks.address(), *args, compile.start_threads())
    if "attn_gate.weight" in w:
        out = ops.head_gate(out, ops.mul_mat(w["attn_gate.weight"], x))
    y: F32 = ops.mul_mat(w["attn_output.weight"], out.reshape(n_tokens, -1))
    return y


def latent_attn_layer(
    ops: Any,
    w: Any,
    cfg: Any,
    x: F32,
    cells: NDArray[Any],
    kv_type: str,
    first: int,
    rope_cos_sin: tuple[F32, F32],
    tap: Any,
    *,
    wide: bool,
) -> F32:
    """The bits of `compose_latent.latent_attn_layer`. Where a tap looks on, or for sizes and types that have no kernel,
    the composition runs."""
    args, nets = (ops, w, cfg, x, cells, kv_type, first, rope_cos_sin), _nets(w, cfg, tap, wide)
    if nets is None:
        result: F32 = ops.composed["latent_attn_layer"](*args, tap)
        return result
    return _layer(*args, nets, None)


def indexed_attn_layer(
    ops: Any,
    w: Any,
    cfg: Any,
    x: F32,
    cells: NDArray[Any],
    kv_type: str,
    first: int,
    rope_cos_sin: tuple[F32, F32],
    chosen: IDS,
    tap: Any,
    *,
    wide: bool,
) -> F32:
    """The bits of `compose_indexer.indexed_attn_layer`. Where a tap looks on, or for sizes and types that have no
    kernel, the composition runs."""
    args, nets = (ops, w, cfg, x, cells, kv_type, first, rope_cos_sin), _nets(w, cfg, tap, wide)
    if nets is None:
        result: F32 = ops.composed["indexed_attn_layer"](*args, chosen, tap)
        return result
    return _layer(*args, nets, chosen)
