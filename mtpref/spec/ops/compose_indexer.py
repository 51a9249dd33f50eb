"""Coarse operations of attention with an indexer: which cells are seen, and attention over them.

Owns their order, and the cb() names under which a tap sees results; see compose.py.
"""

import numpy as np
from numpy.typing import NDArray

from mtpref.spec import NO_CELL, Matrix, Selection, hadamard, load_kv, rotation_of
from mtpref.spec.arith import rsqrt64
from mtpref.spec.config import IndexedConfig
from mtpref.spec.moe import IDS
from mtpref.spec.ops.table import Ops
from mtpref.spec.ops.types import F32, LayerTap, LayerWeights

MOST_PRODUCTS = 1 << 24  # held at a time: tokens are scored so many at once, or one by one


def selected_attention(ops: Ops, q: F32, cells: NDArray, kv_type: str, first: int, chosen: IDS) -> F32:
    """S64. Attention over the cells that were chosen, in their order: S16, S16.

    Rule     the i-th of a token's cells stands where cell i stands in S16: where every cell is chosen it is the same
             bits. No other cell is read
    Shapes   q: (T, n_head, D), cells: (first + T, 1, D), chosen: (T, n), rising -> (T, n_head, D)
    """
    n_all = min(len(q), max(0, chosen.shape[1] - first))  # tokens that see no more cells than are chosen
    out = np.empty_like(q)
    if n_all:
        all_cells = cells[: first + n_all]
        out[:n_all] = ops.attention(q[:n_all], all_cells, all_cells, kv_type, first)
    for t in range(n_all, len(q)):
        own = cells[chosen[t][chosen[t] != NO_CELL]]
        out[t : t + 1] = ops.attention(q[t : t + 1], own, own, kv_type, len(own) - 1)
    return out


def index_cells(
    ops: Ops,
    w: LayerWeights,
    cfg: IndexedConfig,
    x: F32,
    keys: NDArray,
    kv_type: str,
    first: int,
    rope_cos_sin: tuple[F32, F32],
    tap: LayerTap,
) -> Selection:
    """S65. The lightning indexer, products, norms and what is chosen by them: S6, S8, S6, S60, S53, S10, S6, S15, S6,
    S62, S63.

    Rule     queries are made of the latent that the layer's own are made of (S55), keys of its input, one for all
             heads, with a layer norm; the first n_rot dimensions of both are turned, neighbours paired (S53) or halves
             (S10) as the architecture has it; both go through the rotation (S61), and keys are stored. Queries are not
             rounded. The heads' weights are a product with the input, times 1 / sqrt(n_index_head * n_index_key)
    Shapes   x: (T, n_embd), normalised; keys: (first + T, 1, n_index_key), rows from `first` on are
             written here -> cells of each token
    """
    n_tokens, n_head, n_key = len(x), cfg.n_index_head, cfg.n_index_key
    low = ops.mul_mat(w["attn_q_a.weight"], x)
    low = ops.rms_norm(low, w["attn_q_a_norm.weight"], cfg.rms_eps)
    q = ops.mul_mat(w["indexer.attn_q_b.weight"], low).reshape(n_tokens, n_head, n_key)
    k = ops.mul_mat(w["indexer.attn_k.weight"], x)
    k = ops.layer_norm(k, w["indexer.k_norm.weight"], w["indexer.k_norm.bias"], cfg.index_eps)[:, None]
    if cfg.is_index_interleaved:
        q, k = ops.rope_interleaved(q, *rope_cos_sin), ops.rope_interleaved(k, *rope_cos_sin)
    else:
        q, k = ops.rope(q, *rope_cos_sin), ops.rope(k, *rope_cos_sin)

    # ROTATE, STORE
    both = np.concatenate([q, k], axis=1)
    size = rotation_of(n_key)
    both = ops.mul_mat(hadamard(size), both.reshape(-1, size)).reshape(both.shape)
    q, k = both[:, :n_head], both[:, n_head:]
    tap("indexer_q", q)
    tap("indexer_k", k)
    keys[first:] = ops.store_kv(k, kv_type)

    # SCORE, CHOOSE
    scale = rsqrt64(np.asarray(n_key * n_head, np.float64)).astype(np.float32)
    weights = ops.mul_mat(w["indexer.proj.weight"], x) * scale
    tap("indexer_weights", weights)
    rows = np.ascontiguousarray(load_kv(keys, kv_type)[:, 0])
    cells = Matrix("", "F32", len(rows), n_key, rows.view(np.uint8).reshape(-1))
    scores = np.empty((n_tokens, len(rows)), np.float32)
    step = max(1, MOST_PRODUCTS // (n_head * len(rows)))
    for t in range(0, n_tokens, step):
        products = ops.mul_mat(cells, np.ascontiguousarray(q[t : t + step]).reshape(-1, n_key))
        products = products.reshape(-1, n_head, len(rows))
        scores[t : t + step] = ops.index_scores(products, weights[t : t + step], first + t)
    tap("indexer_score", scores)
    chosen = ops.select_cells(scores, first, cfg.n_top)
    tap("top_k", chosen)
    gap = ops.selection_gap(scores, chosen, first)
    tap("top_k_gap", gap)
    return Selection(chosen, gap)


def indexed_attn_layer(
    ops: Ops,
    w: LayerWeights,
    cfg: IndexedConfig,
    x: F32,
    cells: NDArray,
    kv_type: str,
    first: int,
    rope_cos_sin: tuple[F32, F32],
    chosen: IDS,
    tap: LayerTap,
) -> F32:
    """S66. The mixer of a latent attention layer that sees chosen cells: S64.

    Rule     the latent layer of S57, all of it, with attention over the chosen cells (S64) where it has S16
    Shapes   as latent_attn_layer; chosen: (T, n), rising -> (T, n_embd)
    """

    def attention(q: F32, k_cache: NDArray, v_cache: NDArray, kv_type: str, first: int) -> F32:
        return ops.selected_attention(ops, q, k_cache, kv_type, first, chosen)

    own_ops = ops.replaced(attention=attention)
    return own_ops.latent_attn_layer(own_ops, w, cfg, x, cells, kv_type, first, rope_cos_sin, tap)
