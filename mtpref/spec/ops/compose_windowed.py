"""Coarse operations of attention layers with a window, sinks or gates of heads, and the table of limited networks.

Owns their order, and the cb() names under which a tap sees results; see compose.py.
"""

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mtpref.spec.config import WindowedConfig
from mtpref.spec.ops.table import Ops
from mtpref.spec.ops.types import F32, LayerTap, LayerWeights
from mtpref.spec.windowed import LEAST_LIMIT


def limited_ops(ops: Ops, limit: float, limit_shared: float = 0.0) -> Ops:
    """S96. The table that a network with limits runs on: S96.

    Rule     the limited activation stands in for swiglu (S18), of the shared expert with a limit of its own; without
             limits it is the table itself, and the networks are those of a block (S30) and of experts (S48)
    """
    if max(limit, limit_shared) <= LEAST_LIMIT:
        return ops
    shared_ops = ops.replaced(swiglu=partial(_limited, ops, limit_shared))

    def shared_expert(_: Ops, w: LayerWeights, x: F32, tap: LayerTap) -> F32:
        return shared_ops.shared_expert(shared_ops, w, x, tap)

    return replace(ops.replaced(swiglu=partial(_limited, ops, limit)), shared_expert=shared_expert)


def _limited(ops: Ops, limit: float, gate: F32, up: F32) -> F32:
    return ops.limited_swiglu(gate, up, limit) if limit > LEAST_LIMIT else ops.swiglu(gate, up)


def seen_attention(
    ops: Ops, cfg: WindowedConfig, q: F32, k: NDArray, v: NDArray, sinks: F32 | None, kv_type: str, first: int
) -> F32:
    """S98. Every token over the cells that it sees: S16, S76, S16, S95.

    Rule     S16 where keys and values are of one width and there are no sinks, over all cells or, token by token, over
             the window's; else S95. Either way the oldest cell that a token sees is the first
    Shapes   q: (T, n_head, D); k, v: the last cells, those of the batch last; the batch begins at position `first`
             -> (T, n_head, D_v)
    """
    is_plain = sinks is None and cfg.n_key == cfg.n_value
    if is_plain and not cfg.n_window:
        return ops.attention(q, k, v, kv_type, first)
    out = np.empty((*q.shape[:2], cfg.n_value), np.float32)
    n_before = len(k) - len(q)  # cells before the batch: cell c is position first - n_before + c
    for t in range(len(q)):
        start = ops.window_start(first + t, cfg.n_window) if cfg.n_window else 0
        a, b = max(0, start - first + n_before, n_before - first), n_before + t + 1
        if is_plain:
            out[t] = ops.attention(q[t : t + 1], k[a:b], v[a:b], kv_type, b - a - 1)[0]
        else:
            out[t] = ops.cell_attention(q[t], k[a:b], v[a:b], sinks, kv_type)
    return out


def windowed_attn_layer(
    ops: Ops,
    w: LayerWeights,
    cfg: WindowedConfig,
    x: F32,
    k_cells: NDArray,
    v_cells: NDArray,
    kv_type: str,
    first: int,
    rope_cos_sin: tuple[F32, F32],
    tap: LayerTap,
) -> F32:
    """S98. The mixer of an attention layer whose keys and values differ in width, with what it has of window, sinks,
    gate and scale: S6, S8, S53, S10, S15, S98, S6, S97, S6, S97.

    Rule     norms of q and k (S8), sinks (S95), the heads' gate (S97) where their weights are there; the gate reads the
             normed rows that q, k and v are made of; the scale stands after the output projection. Neighbours are
             paired (S53) where the layer has it so, else halves (S10); where n_rot is 0 nothing turns
    Shapes   x: (T, n_embd), normalised, from position `first` on; k_cells: (n + T, n_head_kv, D), v_cells: (n + T,
             n_head_kv, D_v), the n cells before the batch, all or the last of them, and room for the batch's, which are
             written here -> (T, n_embd)
    """
    n_tokens = len(x)

    # PROJECT
    q, k, v = ops.mul_mat(w["attn_q.weight"], x), ops.mul_mat(w["attn_k.weight"], x), ops.mul_mat(w["attn_v.weight"], x)
    q = q.reshape(n_tokens, cfg.n_head, cfg.n_key)
    k, v = k.reshape(n_tokens, cfg.n_head_kv, cfg.n_key), v.reshape(n_tokens, cfg.n_head_kv, cfg.n_value)
    tap("Vcur", v)

    # NORM, ROPE
    q = ops.rms_norm(q, w["attn_q_norm.weight"], cfg.rms_eps) if "attn_q_norm.weight" in w else q
    k = ops.rms_norm(k, w["attn_k_norm.weight"], cfg.rms_eps) if "attn_k_norm.weight" in w else k
    tap("Qcur_normed", q)
    tap("Kcur_normed", k)
    if cfg.is_interleaved and cfg.n_rot:
        q, k = ops.rope_interleaved(q, *rope_cos_sin), ops.rope_interleaved(k, *rope_cos_sin)
    elif cfg.n_rot:
        q, k = ops.rope(q, *rope_cos_sin), ops.rope(k, *rope_cos_sin)
    tap("Qcur", q)
    tap("Kcur", k)

    # ATTEND
    k_cells[-n_tokens:] = ops.store_kv(k, kv_type)
    v_cells[-n_tokens:] = ops.store_kv(v, kv_type)
    out = ops.seen_attention(ops, cfg, q, k_cells, v_cells, w.get("attn_sinks.weight"), kv_type, first)
    tap("kqv_out", out)

    # GATE, OUT
    if "attn_gate.weight" in w:
        gate = ops.mul_mat(w["attn_gate.weight"], x)
        tap("attn_gate", gate)
        out = ops.head_gate(out, gate)
        tap("attn_gated", out)
    y = ops.mul_mat(w["attn_output.weight"], out.reshape(n_tokens, -1))
    tap("attn_output", y)
    y = ops.scaled_output(y, cfg.value_scale)
    tap("attn_scaled", y)
    return y
