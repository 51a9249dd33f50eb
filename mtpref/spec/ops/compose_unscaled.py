"""Coarse operations of models with unscaled attention: the attention layer, embeddings of layers, experts beside a
dense network, and the two ends of an assistant.

Owns their order, and the cb() names under which a tap sees results; see compose.py.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.spec.config import InputsConfig, ParallelConfig, UnscaledConfig
from mtpref.spec.moe import Routing
from mtpref.spec.ops.table import Ops
from mtpref.spec.ops.types import F32, InputWeights, LayerTap, LayerWeights, OutputWeights


def gelu_ops(ops: Ops) -> Ops:
    """S101. The table that a network with GELU runs on: S101.

    Rule     the activation stands in for swiglu (S18); the networks are those of a block (S30) and of experts (S48)
    """
    return ops.replaced(swiglu=ops.geglu)


def unscaled_seen(
    ops: Ops, cfg: UnscaledConfig, q: F32, k: NDArray, v: NDArray, kv_type: str, pos: NDArray[np.int32], last: int
) -> F32:
    """S104. Every token's attention over the cells that it sees: S76, S100.

    Rule     cells up to the token's own position, or as many as there are; of a layer with a window those of the
             window, which the token's own position is part of whether it has a cell or not
    Shapes   q: (T, n_head, D); k, v: the cells up to position `last`, all or the last of them; pos: the tokens'
             -> (T, n_head, D)
    """
    out = np.empty_like(q)
    first = last + 1 - len(k)  # the position of cell 0
    for t, at in enumerate(pos.tolist()):
        start = ops.window_start(at, cfg.n_window) if cfg.n_window else 0
        a, b = max(start, 0) - first, min(at, last) + 1 - first
        out[t] = ops.unscaled_attention(q[t], k[max(a, 0) : b], v[max(a, 0) : b], kv_type)
    return out


def cells_of(
    ops: Ops, w: LayerWeights, cfg: UnscaledConfig, x: F32, rope_cos_sin: tuple[F32, F32], tap: LayerTap
) -> tuple[F32, F32]:
    """S104. A layer's own keys and values: S6, S8, S10.

    Rule     keys are normed and turned, values are normed without a weight and not turned. A layer without a matrix for
             values takes the product of its keys, before their norm
    Shapes   x: (T, n_embd), normalised -> k, v: (T, n_head_kv, D)
    """
    shape = len(x), cfg.n_head_kv, cfg.n_key
    k = ops.mul_mat(w["attn_k.weight"], x).reshape(shape)
    v = ops.mul_mat(w["attn_v.weight"], x).reshape(shape) if "attn_v.weight" in w else k
    tap("Kcur", k)
    tap("Vcur", v)
    v = ops.rms_norm(v, np.ones(cfg.n_key, np.float32), cfg.rms_eps)
    k = ops.rms_norm(k, w["attn_k_norm.weight"], cfg.rms_eps)
    tap("Kcur_normed", k)
    tap("Vcur_normed", v)
    k = ops.rope(k, *rope_cos_sin)
    tap("Kcur_pos", k)
    return k, v


def unscaled_attn_layer(
    ops: Ops,
    w: LayerWeights,
    cfg: UnscaledConfig,
    x: F32,
    k_cells: NDArray,
    v_cells: NDArray,
    kv_type: str,
    pos: NDArray[np.int32],
    last: int,
    rope_cos_sin: tuple[F32, F32],
    tap: LayerTap,
) -> F32:
    """S104. The mixer of an attention layer whose scores are not scaled: S6, S8, S10, S104, S15, S104, S6.

    Rule     a layer that has cells of its own writes the batch's first; one that has none (`has_cells`) reads those of
             another layer, or of the target, as they are
    Shapes   x: (T, n_embd), normalised; k_cells, v_cells: (R, n_head_kv, D), the cells up to position `last`, with room
             for the batch's, which are written here; pos: the tokens' -> (T, n_embd)
    """
    n_tokens = len(x)

    # QUERIES
    q = ops.mul_mat(w["attn_q.weight"], x).reshape(n_tokens, cfg.n_head, cfg.n_key)
    tap("Qcur", q)
    q = ops.rms_norm(q, w["attn_q_norm.weight"], cfg.rms_eps)
    tap("Qcur_normed", q)
    q = ops.rope(q, *rope_cos_sin)
    tap("Qcur_pos", q)

    # CELLS
    if cfg.has_cells:
        k, v = ops.cells_of(ops, w, cfg, x, rope_cos_sin, tap)
        k_cells[-n_tokens:] = ops.store_kv(k, kv_type)
        v_cells[-n_tokens:] = ops.store_kv(v, kv_type)

    # ATTEND, OUT
    out = ops.unscaled_seen(ops, cfg, q, k_cells, v_cells, kv_type, pos, last)
    tap("kqv_out", out)
    y = ops.mul_mat(w["attn_output.weight"], out.reshape(n_tokens, -1))
    tap("attn_output", y)
    return y


def layer_inputs(
    ops: Ops, roots: Mapping[str, Any], cfg: InputsConfig, tokens: NDArray[np.int32], x: F32, tap: LayerTap
) -> F32:
    """S105. What each layer is given of the tokens beside the stream: S7, S103, S6, S8.

    Formula  (norm(proj x / sqrt(n_embd)) + E'[token] * sqrt(n_own)) / sqrt(2), for each layer its own n_own numbers
    Shapes   x: (T, n_embd), the scaled embeddings -> (n_layer, T, n_own)
    Dtypes   float32; the three factors are rounded to it, each product and the sum on its own
    """
    shape = len(tokens), cfg.n_layer, cfg.n_own
    rows = ops.get_rows(roots["per_layer_token_embd.weight"], tokens)
    own = ops.scaled_embedding(rows.reshape(shape))
    tap("inp_per_layer_selected", own)
    made = ops.mul_mat(roots["per_layer_model_proj.weight"], x) * (np.float32(1) / np.sqrt(np.float32(x.shape[1])))
    made = ops.rms_norm(made.reshape(shape), roots["per_layer_proj_norm.weight"], cfg.rms_eps)
    tap("per_layer_proj", made)
    both = (made + own) * (np.float32(1) / np.sqrt(np.float32(2)))
    tap("inp_per_layer", both)
    return np.asarray(np.moveaxis(both, 1, 0))


def own_input(ops: Ops, w: LayerWeights, eps: float, x: F32, inputs: F32, tap: LayerTap) -> F32:
    """S105. A layer's own input, read through a gate of the stream: S6, S101, S6, S8.

    Formula  norm(proj (gelu(inp_gate x) * inputs)), which the stream is added
    Shapes   x: (T, n_embd), inputs: (T, n_own) -> (T, n_embd)
    """
    gate = ops.mul_mat(w["inp_gate.weight"], x)
    gated = ops.geglu(gate, inputs)
    y = ops.mul_mat(w["proj.weight"], gated)
    y = ops.rms_norm(y, w["post_norm.weight"], eps)
    tap("per_layer_embd_out", y)
    return y


def dense_beside_experts(ops: Ops, w: LayerWeights, cfg: ParallelConfig, x: F32, tap: LayerTap) -> tuple[F32, Routing]:
    """S106. A dense network and experts side by side, each with norms of its own: S8, S48, S8.

    Rule     both read the stream, and run on the table of `gelu_ops` (S30, S48). The router reads the stream normed
             without a weight, divided by sqrt(n_embd), times ffn_gate_inp.scale; the experts read it by pre_ffw_norm_2.
             An expert's weight (S45, by softmax, renormalised) is multiplied with its ffn_down_exps.scale
    Shapes   x: (T, n_embd), not normalised -> (T, n_embd), and what the router chose
    """
    own_ops = gelu_ops(ops)

    # DENSE
    h = ops.rms_norm(x, w["ffn_norm.weight"], cfg.rms_eps)
    tap("ffn_norm_1", h)
    y = own_ops.ffn(own_ops, w, h, tap)
    dense = ops.rms_norm(y, w["post_ffw_norm_1.weight"], cfg.rms_eps)
    tap("ffn_mlp", dense)

    # EXPERTS
    to_router = ops.rms_norm(x, np.ones(x.shape[1], np.float32), cfg.rms_eps)
    to_router = to_router * (np.float32(1) / np.sqrt(np.float32(x.shape[1]))) * w["ffn_gate_inp.scale"]
    weights, routing = ops.route(ops, w, cfg.moe, to_router, tap)
    if "ffn_down_exps.scale" in w:
        weights = weights * w["ffn_down_exps.scale"][routing.ids]
        tap("ffn_moe_weights_scaled", weights)
    h = ops.rms_norm(x, w["pre_ffw_norm_2.weight"], cfg.rms_eps)
    tap("ffn_norm_2", h)
    y = own_ops.experts(own_ops, w, h, routing, weights, tap)
    tap("ffn_moe_out", y)
    y = ops.rms_norm(y, w["post_ffw_norm_2.weight"], cfg.rms_eps)
    tap("ffn_moe", y)
    y = dense + y
    tap("ffn_moe_combined", y)
    return y, routing


def assistant_input(ops: Ops, w: InputWeights, embd: F32, hidden: F32, eps: float, order: str, tap: LayerTap) -> F32:
    """S108. The input of an assistant: pre_projection([E_t[token] * sqrt(n) ; hidden]). S103, S19, S6.

    Rule     of the target's embedding and of its row, neither normed
    Shapes   embd, hidden: (T, n), n the target's n_embd; w.eh_proj: (n_embd, 2 n); order: as mtp_input -> (T, n_embd)
    """
    embd = ops.scaled_embedding(embd)
    tap("inp_embd_target", embd)
    joined = ops.mtp_concat(*((embd, hidden) if order == "eh" else (hidden, embd)))
    tap("inp_xh", joined)
    x = ops.mul_mat(w.eh_proj, joined)
    tap("pre_proj", x)
    return x


def assistant_row(ops: Ops, w: OutputWeights, post: F32) -> F32:
    """S108. The row that an assistant's next step is fed with: the product with post_projection. S6.

    Rule     it is as wide as the target's rows
    Shapes   post: (T, n_embd) -> (T, n), n the target's n_embd
    """
    assert w.post_projection is not None
    return ops.mul_mat(w.post_projection, post)
