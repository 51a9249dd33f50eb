"""S55 to S57: attention through a latent row in `ggml` numerics, from the queries' product to the output's.

Owns the fused twin of compose_latent.py's `latent_attn_layer`. One task is a block of tokens and a block of heads:
queries are absorbed and turned, meet the cached rows, and what they gather is brought back to the heads' values, all
while it is in the cache. Cached rows lie as a matrix of floats does, so scores are its product with the queries: a
product with F32, F16 or BF16 (S6) has the rounding and the sums of attention (S16). Tasks do not read each other, so
they are split over threads.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels.arithmetic.lanes import N_LANES
from mtpref.kernels.arithmetic.scalars import never_inline
from mtpref.kernels.arithmetic.vectors import ROWS
from mtpref.kernels.compiling import compile
from mtpref.kernels.compiling.calls import caller
from mtpref.kernels.compiling.compile import INT, helper, kernel, source, target
from mtpref.kernels.compiling.records import record
from mtpref.kernels.fused.nets import NET, net_of
from mtpref.kernels.layers.attend_cells import READING, attend_cells, call_attend, reading
from mtpref.kernels.products import mul_mats
from mtpref.kernels.products.product import WEIGHTS, call_prepare, call_rows, room
from mtpref.spec.ops.compose import discard

F32 = NDArray[np.float32]

TOKENS = 8  # of a task
PAIRS = 128  # of a token and a head in a task, at most: their scores stay in the cache


class Queries(NamedTuple):
    """Queries (T, n_head, n_nope + n_rot), the cosines and sines of their positions (T, n_rot/2), and their
    latent scale (S54)."""

    q: F32
    cos: F32
    sin: F32
    scale: np.float32


class Cells(NamedTuple):
    """Cached rows: their bytes, and tokens before the batch. attend: address of attend_cells"""

    attend: int
    raw: NDArray[np.uint8]
    first: int


_CUBE = source(types.float32, 3)
_TABLE = source(types.float32, 2)
_QUERIES = record(Queries, q=_CUBE, cos=_TABLE, sin=_TABLE, scale=types.float32)
_CELLS = record(Cells, attend=INT, raw=WEIGHTS, first=INT)
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
    """S53, S54, S56. rows[t, h] = [attn_k_b q_nope | q_pe, turned] * scale, of tokens from `begin` and heads from
    `head` on."""
    never_inline()
    n_rot = 2 * queries.cos.shape[1]
    n_nope, n_latent, scale = queries.q.shape[2] - n_rot, rows.shape[2] - n_rot, queries.scale
    x, y = np.empty((n_tokens, n_nope), np.float32), np.empty((n_tokens, n_latent), np.float32)
    for h in range(n_heads):
        for t in range(n_tokens):
            x[t] = queries.q[begin + t, head + h, :n_nope]
        _product(k_b, head + h, x, y)
        for t in range(n_tokens):
            row, turned = rows[t, h], queries.q[begin + t, head + h, n_nope:]
            cos, sin = queries.cos[begin + t], queries.sin[begin + t]
            for i in range(n_latent):
                row[i] = y[t, i] * scale
            for i in range(n_rot // 2):
                a, b = turned[2 * i], turned[2 * i + 1]
                row[n_latent + 2 * i] = (a * cos[i] - b * sin[i]) * scale
                row[n_latent + 2 * i + 1] = (a * sin[i] + b * cos[i]) * scale


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
    n_tokens, n_head = queries.q.shape[0], queries.q.shape[1]
    n_row, n_rot = k_b.n_out + 2 * queries.cos.shape[1], 2 * queries.cos.shape[1]
    n_blocks = -(-n_tokens // TOKENS)
    # As many heads as fit, and as leave a task for each part.
    n_heads = min(max(1, PAIRS // min(n_tokens, TOKENS)), -(-n_head // -(-n_parts // n_blocks)))
    n_shares, no_sinks = -(-n_head // n_heads), np.empty(0, np.float32)
    for task in range(part, n_blocks * n_shares, n_parts):
        begin, head = task // n_shares * TOKENS, task % n_shares * n_heads
        n, heads = min(TOKENS, n_tokens - begin), min(n_heads, n_head - head)
        rows = np.empty((n, heads, n_row), np.float32)
        gathered = np.empty((n, heads, n_row - n_rot), np.float32)
        _absorb(k_b, queries, begin, n, head, heads, rows)
        call_attend(cells.attend, (how, cells.raw, rows, no_sinks, cells.first + begin, gathered))
        _bring_back(v_b, gathered, begin, head, out)


_call = caller(*_ARGS, INT, INT)


@kernel(INT, *_ARGS, INT, parallel=True)
def all_latent_tasks(tasks, k_b, v_b, queries, how, cells, out, n_parts):
    """All tasks, with the kernel at this address."""
    for p in prange(n_parts):
        _call(tasks, (k_b, v_b, queries, how, cells, out, p, n_parts))


# PYTHON'S SIDE


def _input(ops: Any, w: Any, cfg: Any, x: F32, rope_cos_sin: tuple[F32, F32]) -> tuple[F32, F32, F32]:
    """S55. Queries (T, n_head, n_key), not yet turned; c and k_pe."""
    name = "attn_q_a.weight" if "attn_q_a.weight" in w else "attn_q.weight"
    q, both = mul_mats.mul_mats(ops, [w[name], w["attn_kv_a_mqa.weight"]], x)
    if name == "attn_q_a.weight":
        q = ops.mul_mat(w["attn_q_b.weight"], ops.rms_norm(q, w["attn_q_a_norm.weight"], cfg.rms_eps))
    c = ops.rms_norm(both[:, : cfg.n_latent], w["attn_kv_a_norm.weight"], cfg.rms_eps)
    k_pe = ops.rope_interleaved(both[:, None, cfg.n_latent :], *rope_cos_sin)[:, 0]
    return q.reshape(len(x), cfg.n_head, cfg.n_key), c, k_pe


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
    k_b, v_b = (None if wide else net_of(w[name], False) for name in ("attn_k_b.weight", "attn_v_b.weight"))
    is_whole = 2 * rope_cos_sin[0].shape[1] == cfg.n_rot  # a table of fewer pairs turns a part (S53)
    if tap is not discard or k_b is None or v_b is None or cfg.n_latent % N_LANES or not is_whole:
        result: F32 = ops.composed["latent_attn_layer"](ops, w, cfg, x, cells, kv_type, first, rope_cos_sin, tap)
        return result
    n_tokens = len(x)
    q, c, k_pe = _input(ops, w, cfg, x, rope_cos_sin)
    cells[first:] = ops.store_kv(np.concatenate([c, k_pe], axis=-1)[:, None], kv_type)
    raw = np.ascontiguousarray(cells).reshape(-1).view(np.uint8)
    given = reading(kv_type, cfg.n_row), Cells(attend_cells.address(), raw, first)
    cos, sin = (np.ascontiguousarray(table) for table in rope_cos_sin)
    out = np.empty((n_tokens, cfg.n_head, cfg.n_value), np.float32)
    args = k_b, v_b, Queries(q, cos, sin, np.float32(cfg.scale)), *given, out
    n_values = cfg.n_head * (cfg.n_latent * (cfg.n_key + cfg.n_value) + cfg.n_row * (first + n_tokens))
    if compile.n_threads() == 1 or n_tokens * n_values < mul_mats.PARALLEL_FROM:
        latent_tasks(*args, 0, 1)
    else:
        all_latent_tasks(latent_tasks.address(), *args, compile.start_threads())
    y: F32 = ops.mul_mat(w["attn_output.weight"], out.reshape(n_tokens, -1))
    return y
