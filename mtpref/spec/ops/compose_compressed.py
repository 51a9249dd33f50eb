"""Coarse operations of attention over a window and compressed rows, and of experts whose products are clamped.

Owns their order, and the cb() names under which a tap sees results; see compose.py.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mtpref.spec import hadamard, load_kv, rotation_of
from mtpref.spec.config import CompressedConfig, MoeConfig
from mtpref.spec.moe import Routing
from mtpref.spec.ops.table import Ops
from mtpref.spec.ops.types import F32, Blocks, LayerTap, LayerWeights, Table

INDEXER = "indexer_compressor"


def window_input(
    ops: Ops, w: LayerWeights, cfg: CompressedConfig, x: F32, rope_cos_sin: tuple[F32, F32], tap: LayerTap
) -> tuple[F32, F32, F32]:
    """S85. Queries, their latent, and the row that a token leaves: S6, S8, S6, S8, S74, S6, S8, S74.

    Rule     every head's query is normed without a weight; the row is normed and turned, and is key and value of all
             heads
    Shapes   x: (T, n_embd), normalised -> q (T, n_head, D), latent (T, n_latent), row (T, D)
    """
    low = ops.mul_mat(w["attn_q_a.weight"], x)
    low = ops.rms_norm(low, w["attn_q_a_norm.weight"], cfg.rms_eps)
    tap("qr_norm", low)
    q = ops.mul_mat(w["attn_q_b.weight"], low).reshape(len(x), cfg.n_head, cfg.n_embd_head)
    q = ops.rms_norm(q, np.ones(cfg.n_embd_head, np.float32), cfg.rms_eps)
    q = ops.rope_last(q, *rope_cos_sin)
    tap("Qcur", q)
    row = ops.mul_mat(w["attn_kv.weight"], x)
    row = ops.rms_norm(row, w["attn_kv_a_norm.weight"], cfg.rms_eps)
    row = ops.rope_last(row[:, None], *rope_cos_sin)[:, 0]
    tap("Kcur", row)
    return q, low, row


def compressor(
    ops: Ops,
    w: LayerWeights,
    name: str,
    cfg: CompressedConfig,
    x: F32,
    blocks: Blocks,
    kv_type: str,
    first: int,
    table: Table,
    tap: LayerTap,
) -> tuple[F32, F32]:
    """S86. Tokens into blocks: S6, S6, S7, then for every block that ends S75, S8, S74, S6, S15.

    Rule     a token's scores are those of its product plus the row of its place in the block (`ape`). With an overlap
             values and scores are twice as wide, and a block's row is made of the first half of the block before it and
             of the second half of its own tokens. Its position is that of the block's first token. The indexer's rows
             go through the rotation (S61), that one S6.
    Shapes   x: (T, n_embd), normalised, from position `first` on; name: "attn_compressor" or "indexer_compressor"
             -> values and scores of the tokens before the batch and of the batch (n_kept + T, width)
    """
    n_tokens, ratio = len(x), cfg.ratio
    values, scores = (ops.mul_mat(w[f"{name}_{part}.weight"], x) for part in ("kv", "gate"))
    places = (np.arange(first, first + n_tokens) % ratio).astype(np.int32)
    scores = scores + ops.get_rows(w[f"{name}_ape.weight"], places)
    values, scores = np.concatenate([blocks.values, values]), np.concatenate([blocks.scores, scores])
    ended = np.arange(first // ratio, (first + n_tokens) // ratio)
    if not len(ended):
        return values, scores

    # ROWS
    n_kept, norm = len(blocks.values), w[f"{name}_norm.weight"]
    own = (ended * ratio)[:, None] + np.arange(ratio) - first + n_kept  # rows of values: (n_ended, ratio)
    if cfg.has_overlap:
        half = len(norm)
        is_before = (ended == 0)[:, None, None]
        v = np.where(is_before, np.float32(0.0), values[:, :half][own - ratio])
        s = np.where(is_before, np.float32(-np.inf), scores[:, :half][own - ratio])
        v, s = np.concatenate([v, values[:, half:][own]], axis=1), np.concatenate([s, scores[:, half:][own]], axis=1)
    else:
        v, s = values[own], scores[own]
    rows = ops.compress_rows(v, s)
    rows = ops.rms_norm(rows, norm, cfg.rms_eps)
    rows = ops.rope_last(rows[:, None], *table((ended * ratio).astype(np.int32)))[:, 0]
    tap(f"{name}_row", rows)
    if name == INDEXER:
        size = rotation_of(rows.shape[-1])
        rows = ops.mul_mat(hadamard(size), rows.reshape(-1, size)).reshape(rows.shape)
    blocks.cells[ended] = ops.store_kv(rows, kv_type)
    return values, scores


def chosen_rows(
    ops: Ops,
    w: LayerWeights,
    cfg: CompressedConfig,
    x: F32,
    latent: F32,
    cells: NDArray,
    kv_type: str,
    first: int,
    rope_cos_sin: tuple[F32, F32],
    tap: LayerTap,
) -> list[NDArray[np.int64]]:
    """S87. The compressed rows that each token sees by its indexer: S6, S74, S6, S6, then token by token S76, S77.

    Rule     queries and rows went through the rotation (S61); heads' weights are divided by the root of n_index_head *
             n_index
    Shapes   x, latent: (T, .), cells: (n_compressed, n_index) -> T arrays of rows, in order
    """
    q = ops.mul_mat(w["indexer.attn_q_b.weight"], latent).reshape(len(x), cfg.n_index_head, cfg.n_index)
    q = ops.rope_last(q, *rope_cos_sin)
    tap("lid_q_rope", q)
    size = rotation_of(cfg.n_index)
    q = ops.mul_mat(hadamard(size), q.reshape(-1, size)).reshape(q.shape)
    scale = np.float32(1.0 / np.sqrt(np.float64(cfg.n_index_head * cfg.n_index)))
    weights = ops.mul_mat(w["indexer.proj.weight"], x) * scale
    tap("lid_weights", weights)
    rows, found = load_kv(cells, kv_type), []
    for t in range(len(x)):
        n_seen = ops.n_compressed(first + t + 1, cfg.ratio)
        scores = ops.row_scores(q[t], rows[:n_seen], weights[t])
        found.append(ops.best_rows(scores, cfg.n_best))
    return found


def window_attention(
    ops: Ops,
    w: LayerWeights,
    cfg: CompressedConfig,
    q: F32,
    raw: NDArray,
    compressed: NDArray,
    seen: list[NDArray[np.int64]] | None,
    kv_type: str,
    first: int,
) -> F32:
    """S88. Every token over its window, oldest first, then over the compressed rows that it sees, in order: S76, S78, a
    softmax with a sink.

    Rule     `seen` None: all compressed rows of whole blocks
    Shapes   q: (T, n_head, D); raw: the rows of the last tokens, those of the batch last; compressed: (n, D)
             -> (T, n_head, D)
    """
    out, n_before = np.empty_like(q), len(raw) - len(q)
    for t in range(len(q)):
        pos = first + t
        start = max(0, n_before - first, ops.window_start(pos, cfg.n_window) - first + n_before)
        cells = raw[start : n_before + t + 1]
        if cfg.ratio:
            rows = np.arange(ops.n_compressed(pos + 1, cfg.ratio)) if seen is None else seen[t]
            cells = np.concatenate([cells, compressed[rows]])
        out[t] = ops.sink_attention(q[t], cells, w["attn_sinks.weight"], kv_type)
    return out


def grouped_output(
    ops: Ops, w: LayerWeights, cfg: CompressedConfig, out: F32, rope_cos_sin: tuple[F32, F32], tap: LayerTap
) -> F32:
    """S89. The output of attention: turned back (S74), each group of heads through its own rows of attn_output_a (S6),
    then all through attn_output_b (S6).

    Shapes   out: (T, n_head, D) -> (T, n_embd)
    """
    out = ops.rope_last(out, *rope_cos_sin, True)
    tap("attn_derope", out)
    groups, first = out.reshape(len(out), cfg.n_group, -1), w["attn_output_a.weight"]
    size = first.n_out // cfg.n_group
    parts = [
        ops.mul_mat(first.rows(g * size, (g + 1) * size), np.ascontiguousarray(groups[:, g]))
        for g in range(cfg.n_group)
    ]
    mixed = np.concatenate(parts, axis=1)
    tap("attn_wo_a", mixed)
    y = ops.mul_mat(w["attn_output_b.weight"], mixed)
    tap("attn_output", y)
    return y


def compressed_attn_layer(
    ops: Ops,
    w: LayerWeights,
    cfg: CompressedConfig,
    x: F32,
    raw: NDArray,
    blocks: Mapping[str, Blocks],
    kv_type: str,
    first: int,
    rope_cos_sin: tuple[F32, F32],
    table: Table,
    tap: LayerTap,
) -> tuple[F32, NDArray, dict[str, tuple[F32, F32]]]:
    """S90. The mixer of a layer with a window and, where it has a ratio, compressed rows: S85, S15, S86, S87, S88, S89.

    Shapes   x: (T, n_embd), normalised, from position `first` on; raw: the stored rows of tokens before the batch,
             n_window - 1 of them or all; blocks: of each compressor -> (T, n_embd), raw with the batch's rows, and of
             each compressor its values and scores with the batch's
    """
    q, latent, row = ops.window_input(ops, w, cfg, x, rope_cos_sin, tap)
    raw = np.concatenate([raw, ops.store_kv(row, kv_type)])
    made = {name: ops.compressor(ops, w, name, cfg, x, own, kv_type, first, table, tap) for name, own in blocks.items()}
    seen = None
    if cfg.has_overlap:
        keys = blocks[INDEXER].cells
        seen = ops.chosen_rows(ops, w, cfg, x, latent, keys, kv_type, first, rope_cos_sin, tap)
    cells = blocks["attn_compressor"].cells if cfg.ratio else raw[:0]
    out = ops.window_attention(ops, w, cfg, q, raw, cells, seen, kv_type, first)
    tap("kqv_out", out)
    return ops.grouped_output(ops, w, cfg, out, rope_cos_sin, tap), raw, made


def route_by_token(
    ops: Ops, w: LayerWeights, cfg: MoeConfig, x: F32, tokens: NDArray[np.int32], tap: LayerTap
) -> tuple[F32, Routing]:
    """S91. Which experts a token goes to by its id, and with which weights: S6, S41, S80, S45.

    Shapes   as those of a router's choice (S48); no other choice is near
    """
    logits = ops.mul_mat(w["ffn_gate_inp.weight"], x)
    tap("ffn_moe_logits", logits)
    probs = ops.expert_probs(logits, cfg.gating)
    tap("ffn_moe_probs", probs)
    ids = ops.hashed_experts(w["ffn_gate_tid2eid.weight"], tokens)
    tap("ffn_moe_topk", ids)
    gap = np.full(len(x), np.inf, np.float32)
    tap("ffn_moe_gap", gap)
    weights = ops.expert_weights(probs, ids, cfg.normalise, cfg.scale)
    tap("ffn_moe_weights", weights)
    return weights, Routing(ids, gap)


def clamped_experts(
    ops: Ops, w: LayerWeights, cfg: MoeConfig, x: F32, routing: Routing, weights: F32, tap: LayerTap
) -> F32:
    """S92. The chosen experts' networks with clamped products, and the shared expert: S6, S79, S6, S46, S6, S79, S6.

    Rule     expert by expert over the rows of the tokens that chose it, and added up in the order of choice
    Shapes   x: (T, n_embd), normalised; weights: (T, n_used) -> (T, n_embd)
    """
    chosen = routing.ids
    gates, ups, downs = (w[f"ffn_{name}_exps.weight"] for name in ("gate", "up", "down"))
    gate, up, hidden = (np.empty((*chosen.shape, gates[0].n_out), np.float32) for _ in range(3))
    y = np.empty((*chosen.shape, downs[0].n_out), np.float32)
    for e in np.unique(chosen):
        token, place = np.nonzero(chosen == e)
        gate[token, place] = ops.mul_mat(gates[e], x[token])
        up[token, place] = ops.mul_mat(ups[e], x[token])
        hidden[token, place] = ops.clamped_swiglu(gate[token, place], up[token, place], cfg.clamp)
        y[token, place] = ops.mul_mat(downs[e], hidden[token, place])
    tap("ffn_moe_gate", gate)
    tap("ffn_moe_up", up)
    tap("ffn_moe_swiglu", hidden)
    tap("ffn_moe_down", y)
    weighted = ops.weigh_experts(y, weights)
    tap("ffn_moe_weighted", weighted)
    out = ops.sum_experts(weighted)
    tap("ffn_moe_out", out)

    # SHARED
    gate, up = ops.mul_mat(w["ffn_gate_shexp.weight"], x), ops.mul_mat(w["ffn_up_shexp.weight"], x)
    hidden = ops.clamped_swiglu(gate, up, cfg.clamp_shared)
    shared = ops.mul_mat(w["ffn_down_shexp.weight"], hidden)
    tap("ffn_shexp", shared)
    out = out + shared
    tap("ffn_out", out)
    return out
