"""S87, S88: attention over a window and compressed rows, and the rows that an indexer chooses.

Owns the fused twins of compose_compressed.py's `window_attention`, in `ggml` numerics, and `chosen_rows`. A task is a
token and a share of its heads: the cells that it sees are copied beside each other, so that its scores are one product.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels.arithmetic.scalars import copy_bytes
from mtpref.kernels.compiling import compile
from mtpref.kernels.compiling.calls import caller
from mtpref.kernels.compiling.compile import INT, kernel, source, target
from mtpref.kernels.compiling.records import record
from mtpref.kernels.layers.attend_cells import READING, TILES, attend_cells, call_attend, reading, take
from mtpref.kernels.layers.choose import IDS, choose_rows
from mtpref.kernels.products import mul_mats
from mtpref.kernels.products.product import WEIGHTS
from mtpref.spec import hadamard, load_kv, rotation_of

F32 = NDArray[np.float32]


class Sight(NamedTuple):
    """What tokens see. attend: address of attend_cells

    raw         bytes of the window's rows         start, end    (T,): of each token those from .. to - 1
    compressed  bytes of the compressed rows       rows          ids of rows, those of a token beside each other
    first, last  (T,): of each token its ids from .. to - 1
    """

    attend: int
    raw: NDArray[np.uint8]
    compressed: NDArray[np.uint8]
    start: IDS
    end: IDS
    rows: IDS
    first: IDS
    last: IDS


_IDS = source(types.int64, 1)
_SIGHT = record(
    Sight, attend=INT, raw=WEIGHTS, compressed=WEIGHTS, start=_IDS, end=_IDS, rows=_IDS, first=_IDS, last=_IDS
)
_ARGS = (READING, _SIGHT, source(types.float32, 3), source(types.float32, 1), target(types.float32, 3), INT, INT)


@kernel(*_ARGS)
def window_tasks(how, sight, q, sinks, out, part, n_parts):
    """Every n_parts-th task, from `part` on."""
    n_tokens, n_head, size = q.shape
    n_heads = -(-n_head // -(-n_parts // n_tokens))  # as many as leave a task for each part
    n_shares, n_bytes = -(-n_head // n_heads), how.row_bytes
    for task in range(part, n_tokens * n_shares, n_parts):
        t, head = task // n_shares, task % n_shares * n_heads
        heads = min(n_heads, n_head - head)
        start, n_raw = sight.start[t], sight.end[t] - sight.start[t]
        n_cells = n_raw + sight.last[t] - sight.first[t]
        cells = np.empty(n_cells * n_bytes, np.uint8)
        copy_bytes(sight.raw, start * n_bytes, cells, 0, n_raw * n_bytes)
        take(sight.compressed, n_bytes, sight.rows, sight.first[t], sight.last[t], cells, n_raw)
        # One token, beside each other its heads.
        own, gathered = np.empty((1, heads, size), np.float32), np.empty((1, heads, size), np.float32)
        own[0] = q[t, head : head + heads]
        call_attend(sight.attend, (how, cells, own, sinks[head : head + heads], n_cells - 1, gathered))
        out[t, head : head + heads] = gathered[0]


_call = caller(*_ARGS)


@kernel(INT, *_ARGS[:-2], INT, parallel=True)
def all_window_tasks(tasks, how, sight, q, sinks, out, n_parts):
    """All tasks, with the kernel at this address."""
    for p in prange(n_parts):
        _call(tasks, (how, sight, q, sinks, out, p, n_parts))


_CHOICE = choose_rows.signature
_call_choose = caller(*_CHOICE)


@kernel(INT, *_CHOICE[:-2], INT, parallel=True)
def all_choose_rows(some, q, rows, weights, chosen, n_chosen, n_parts):
    """All tokens, with the kernel at this address."""
    for p in prange(n_parts):
        _call_choose(some, (q, rows, weights, chosen, n_chosen, p, n_parts))


# PYTHON'S SIDE


def _sight(ops: Any, cfg: Any, n_tokens: int, raw: NDArray[Any], compressed: NDArray[Any], seen: Any, first: int
           ) -> Sight:  # fmt: skip
    """S76. The window of each token, and its compressed rows."""
    n_before, positions = len(raw) - n_tokens, range(first, first + n_tokens)
    start = [max(0, n_before - first, ops.window_start(pos, cfg.n_window) - first + n_before) for pos in positions]
    end = np.arange(n_before + 1, n_before + n_tokens + 1)
    if not cfg.ratio:
        rows, begin, last = np.arange(0), np.zeros(n_tokens, np.int64), np.zeros(n_tokens, np.int64)
    elif seen is None:
        last = np.array([ops.n_compressed(pos + 1, cfg.ratio) for pos in positions], np.int64)
        rows, begin = np.arange(last[-1]), np.zeros(n_tokens, np.int64)
    else:
        last = np.cumsum([len(own) for own in seen], dtype=np.int64)
        rows, begin = np.concatenate(seen), np.concatenate([[0], last[:-1]])
    return Sight(attend_cells.address(), _bytes(raw), _bytes(compressed), np.array(start, np.int64), end, rows, begin,
                 last)  # fmt: skip


def _bytes(cells: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(cells).reshape(-1).view(np.uint8)


def window_attention(
    ops: Any,
    w: Any,
    cfg: Any,
    q: F32,
    raw: NDArray[Any],
    compressed: NDArray[Any],
    seen: list[IDS] | None,
    kv_type: str,
    first: int,
    *,
    wide: bool,
) -> F32:
    """The bits of `compose_compressed.window_attention`; in `exact` numerics, or for heads that fill no vectors, the
    composition runs."""
    n_tokens, n_head, size = q.shape
    if wide or size % TILES:
        result: F32 = ops.composed["window_attention"](ops, w, cfg, q, raw, compressed, seen, kv_type, first)
        return result
    sight, out = _sight(ops, cfg, n_tokens, raw, compressed, seen, first), np.empty(q.shape, np.float32)
    args = reading(kv_type, size), sight, np.ascontiguousarray(q), w["attn_sinks.weight"], out
    n_cells = int(np.sum(sight.end - sight.start + sight.last - sight.first))
    if compile.n_threads() == 1 or 2 * n_head * size * n_cells < mul_mats.PARALLEL_FROM:
        window_tasks(*args, 0, 1)
    else:
        all_window_tasks(window_tasks.address(), *args, compile.start_threads())
    return out


def chosen_rows(
    ops: Any,
    w: Any,
    cfg: Any,
    x: F32,
    latent: F32,
    cells: NDArray[Any],
    kv_type: str,
    first: int,
    rope_cos_sin: tuple[F32, F32],
    tap: Any,
) -> list[IDS]:
    """What `compose_compressed.chosen_rows` chooses."""
    n_tokens = len(x)
    q = ops.mul_mat(w["indexer.attn_q_b.weight"], latent).reshape(n_tokens, cfg.n_index_head, cfg.n_index)
    q = ops.rope_last(q, *rope_cos_sin)
    tap("lid_q_rope", q)
    size = rotation_of(cfg.n_index)
    q = ops.mul_mat(hadamard(size), q.reshape(-1, size)).reshape(q.shape)
    scale = np.float32(1.0 / np.sqrt(np.float64(cfg.n_index_head * cfg.n_index)))
    weights = ops.mul_mat(w["indexer.proj.weight"], x) * scale
    tap("lid_weights", weights)
    n_chosen = np.array([ops.n_compressed(first + t + 1, cfg.ratio) for t in range(n_tokens)], np.int64)
    n_products = int(n_chosen.sum()) * q[0].size
    chosen = np.empty((n_tokens, min(cfg.n_best, n_chosen[-1])), np.int64)
    rows = np.ascontiguousarray(load_kv(cells, kv_type))
    args = np.ascontiguousarray(q), rows, weights, chosen, n_chosen
    if compile.n_threads() == 1 or n_products < mul_mats.PARALLEL_FROM:
        choose_rows(*args, 0, 1)
    else:
        all_choose_rows(choose_rows.address(), *args, compile.start_threads())
    return [own[:n] for own, n in zip(chosen, n_chosen, strict=True)]
