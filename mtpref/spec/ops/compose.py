"""Coarse operations composed of fine ones: a whole DeltaNet layer, attention layer, feed-forward network, head, and
the two ends of the MTP block.

Owns the order in which a layer applies its operations, and the cb() names under which a tap sees their
results. It must not know which table it runs on, nor hold state: arrays of state come in as arguments.

A tap is called as tap(name, array) with llama.cpp's names. The array is live: whoever keeps it copies it.
"""

import numpy as np
from numpy.typing import NDArray

from mtpref.spec import Matrix
from mtpref.spec.config import AttnConfig, DeltaConfig
from mtpref.spec.ops.table import Ops
from mtpref.spec.ops.types import F32, InputWeights, LayerTap, LayerWeights


def discard(name: str, array: NDArray) -> None:
    """The tap that keeps nothing. Fused entries look for it: whoever listens gets the composition, result by result."""


def delta_layer(
    ops: Ops, w: LayerWeights, cfg: DeltaConfig, x: F32, conv: F32, ssm: F32, keep: int, tap: LayerTap
) -> tuple[F32, F32, F32]:
    """S30. The mixer of a gated DeltaNet layer: S51, S6, S51, S6, S11, S9, S50, S12, S13, S14,
    S6.

    Rule     projections are separate or fused (S51) by the tensors that are there; S50 where key heads are grouped
    Shapes   x: (T, n_embd), normalised; conv: (d_conv - 1, C) raw rows before the batch; ssm: (H_v, S, S)
             -> y: (T, n_embd), and after each of the last `keep` tokens: conv (keep, d_conv - 1, C), ssm
             (keep, H_v, S, S)
    """
    n_tokens, n_k_head, n_v_head, size = x.shape[0], cfg.n_k_head, cfg.n_v_head, cfg.d_state

    # PROJECT
    if "ssm_in.weight" in w:
        qkv, z = ops.split_qkvz(ops.mul_mat(w["ssm_in.weight"], x), n_k_head, size)
    else:
        qkv, z = ops.mul_mat(w["attn_qkv.weight"], x), ops.mul_mat(w["attn_gate.weight"], x)
    if "ssm_ba.weight" in w:
        beta_raw, alpha = ops.split_beta_alpha(ops.mul_mat(w["ssm_ba.weight"], x), n_k_head)
    else:
        beta_raw, alpha = ops.mul_mat(w["ssm_beta.weight"], x), ops.mul_mat(w["ssm_alpha.weight"], x)
    tap("linear_attn_qkv_mixed", qkv)
    tap("z", z)

    # CONV
    tap("conv_states", conv)
    window = np.concatenate([conv, qkv], axis=0)
    mixed = ops.conv_silu(window, w["ssm_conv1d.weight"])
    tap("conv_output_silu", mixed)

    # NORM
    q = ops.l2_norm(mixed[:, : n_k_head * size].reshape(n_tokens, n_k_head, size), cfg.rms_eps)
    k = ops.l2_norm(mixed[:, n_k_head * size : 2 * n_k_head * size].reshape(n_tokens, n_k_head, size), cfg.rms_eps)
    v = mixed[:, 2 * n_k_head * size :].reshape(n_tokens, n_v_head, size)
    tap("q_conv_predelta", q)
    tap("k_conv_predelta", k)
    tap("v_conv_predelta", v)
    if cfg.is_grouped:
        q, k = ops.repeat_heads(q, n_v_head), ops.repeat_heads(k, n_v_head)

    # RECUR
    g, beta = ops.delta_gates(alpha, beta_raw, w["ssm_dt.bias"], w["ssm_a"])
    tap("gate", g)
    tap("beta_sigmoid", beta)
    tap("state_predelta", ssm)
    out, states = ops.delta_rule(q, k, v, g, beta, ssm, keep)
    tap("attn_output", out)
    tap("new_state", states[-1])

    # GATE, OUT
    normed = ops.gated_norm(out, z.reshape(n_tokens, n_v_head, size), w["ssm_norm.weight"], cfg.rms_eps)
    tap("final_output", normed)
    y = ops.mul_mat(w["ssm_out.weight"], normed.reshape(n_tokens, n_v_head * size))
    tap("linear_attn_out", y)
    return y, _windows(window, conv.shape[0], keep), states


def _windows(window: F32, n_rows: int, keep: int) -> F32:
    """The raw rows that precede the next token, after each of the last `keep` tokens."""
    last = window.shape[0]
    ends = range(last - keep + 1, last + 1)
    return np.stack([window[end - n_rows : end] for end in ends])


def attn_layer(
    ops: Ops,
    w: LayerWeights,
    cfg: AttnConfig,
    x: F32,
    k_cache: NDArray,
    v_cache: NDArray,
    kv_type: str,
    first: int,
    rope_cos_sin: tuple[F32, F32],
    tap: LayerTap,
) -> F32:
    """S30. The mixer of a gated attention layer: S6, S15, S8, S10, S15, S16, S17, S6.

    Shapes   x: (T, n_embd), normalised; k_cache, v_cache: (first + T, n_head_kv, D), rows from `first` on are
             written here; rope_cos_sin: (T, n_rot/2) each -> (T, n_embd)
    """
    n_tokens = x.shape[0]

    # PROJECT
    q_full = ops.mul_mat(w["attn_q.weight"], x)
    k = ops.mul_mat(w["attn_k.weight"], x).reshape(n_tokens, cfg.n_head_kv, cfg.n_embd_head)
    v = ops.mul_mat(w["attn_v.weight"], x).reshape(n_tokens, cfg.n_head_kv, cfg.n_embd_head)
    tap("Qcur_full", q_full)
    tap("Vcur", v)

    # NORM, ROPE
    q, gate = ops.split_q_gate(q_full, cfg.n_head)
    q = ops.rms_norm(q, w["attn_q_norm.weight"], cfg.rms_eps)
    k = ops.rms_norm(k, w["attn_k_norm.weight"], cfg.rms_eps)
    tap("Qcur_normed", q)
    tap("Kcur_normed", k)
    tap("gate_reshaped", gate)
    q, k = ops.rope(q, *rope_cos_sin), ops.rope(k, *rope_cos_sin)
    tap("Qcur", q)
    tap("Kcur", k)

    # ATTEND
    k_cache[first:] = ops.store_kv(k, kv_type)
    v_cache[first:] = ops.store_kv(v, kv_type)
    out = ops.attention(q, k_cache, v_cache, kv_type, first)
    tap("attn_pregate", out)

    # GATE, OUT
    gated = ops.attn_gate(out, gate)
    tap("attn_gated", gated)
    y = ops.mul_mat(w["attn_output.weight"], gated.reshape(n_tokens, -1))
    tap("attn_output", y)
    return y


def plain_attn_layer(
    ops: Ops,
    w: LayerWeights,
    cfg: AttnConfig,
    x: F32,
    k_cache: NDArray,
    v_cache: NDArray,
    kv_type: str,
    first: int,
    rope_cos_sin: tuple[F32, F32],
    tap: LayerTap,
) -> F32:
    """S30. The mixer of an attention layer without a gate: S6, S49, S8, S10, S15, S16, S6, S49.

    Rule     biases (S49) and the norms of q and k (S8) where their weights are there; where n_rot is 0 nothing turns
    Shapes   as attn_layer
    """
    n_tokens = x.shape[0]

    # PROJECT
    q, k, v = ops.mul_mat(w["attn_q.weight"], x), ops.mul_mat(w["attn_k.weight"], x), ops.mul_mat(w["attn_v.weight"], x)
    q = ops.add_bias(q, w["attn_q.bias"]) if "attn_q.bias" in w else q
    k = ops.add_bias(k, w["attn_k.bias"]) if "attn_k.bias" in w else k
    v = ops.add_bias(v, w["attn_v.bias"]) if "attn_v.bias" in w else v
    q = q.reshape(n_tokens, cfg.n_head, cfg.n_embd_head)
    k, v = (rows.reshape(n_tokens, cfg.n_head_kv, cfg.n_embd_head) for rows in (k, v))
    tap("Vcur", v)

    # NORM, ROPE
    q = ops.rms_norm(q, w["attn_q_norm.weight"], cfg.rms_eps) if "attn_q_norm.weight" in w else q
    k = ops.rms_norm(k, w["attn_k_norm.weight"], cfg.rms_eps) if "attn_k_norm.weight" in w else k
    tap("Qcur_normed", q)
    tap("Kcur_normed", k)
    if cfg.n_rot:
        q, k = ops.rope(q, *rope_cos_sin), ops.rope(k, *rope_cos_sin)
    tap("Qcur", q)
    tap("Kcur", k)

    # ATTEND, OUT
    k_cache[first:] = ops.store_kv(k, kv_type)
    v_cache[first:] = ops.store_kv(v, kv_type)
    out = ops.attention(q, k_cache, v_cache, kv_type, first)
    tap("kqv_out", out)
    y = ops.mul_mat(w["attn_output.weight"], out.reshape(n_tokens, -1))
    y = ops.add_bias(y, w["attn_output.bias"]) if "attn_output.bias" in w else y
    tap("attn_output", y)
    return y


def ffn(ops: Ops, w: LayerWeights, x: F32, tap: LayerTap) -> F32:
    """S30. The dense feed-forward network: down(swiglu(gate(x), up(x))). S6, S18, S6.

    Shapes   x: (T, n_embd), normalised -> (T, n_embd)
    """
    gate = ops.mul_mat(w["ffn_gate.weight"], x)
    up = ops.mul_mat(w["ffn_up.weight"], x)
    tap("ffn_gate", gate)
    tap("ffn_up", up)
    hidden = ops.swiglu(gate, up)
    tap("ffn_swiglu", hidden)
    y = ops.mul_mat(w["ffn_down.weight"], hidden)
    tap("ffn_out", y)
    return y


def head(ops: Ops, output: Matrix, h: F32, n_rows: int | None) -> F32:
    """S31. The output head: logits of the first n_rows ids (all of them for None). S6.

    Rule     a trimmed head (FastMTP) is the same product over fewer rows: its logits are the same bits
    Shapes   h: (T, n_embd), after the final norm -> (T, n_rows or n_vocab)
    """
    rows = output if n_rows is None or n_rows >= output.n_out else output.rows(0, n_rows)
    return ops.mul_mat(rows, h)


def mtp_input(ops: Ops, w: InputWeights, embd: F32, hidden: F32, eps: float, order: str, tap: LayerTap) -> F32:
    """S31. The input of the MTP block: eh_proj([enorm(embedding) ; hnorm(hidden)]). S8, S8, S19, S6.

    Shapes   embd, hidden: (T, n_embd); w: the head's enorm, hnorm (n_embd,) and eh_proj (n_embd, 2 * n_embd);
             order: "eh" or "he" (MtpContract.concat) -> (T, n_embd)
    """
    hnorm = ops.rms_norm(hidden, w.hnorm, eps)
    enorm = ops.rms_norm(embd, w.enorm, eps)
    tap("hnorm", hnorm)
    tap("enorm", enorm)
    joined = ops.mtp_concat(*((enorm, hnorm) if order == "eh" else (hnorm, enorm)))
    tap("concat", joined)
    x = ops.mul_mat(w.eh_proj, joined)
    tap("eh_proj", x)
    return x


def mtp_norm(ops: Ops, x: F32, weight: F32, eps: float) -> F32:
    """S31. The norm after the MTP block, before its output head: shared_head_norm. S8.

    Shapes   x: (T, n_embd), weight: (n_embd,) -> (T, n_embd)
    """
    return ops.rms_norm(x, weight, eps)


def layer_normed_ops(ops: Ops) -> Ops:
    """S117. The table that a model with layer norms in place of RMS norms runs on: S60.

    Rule     layer_norm without a bias stands in for rms_norm, in blocks, before and after the MTP block, at the end of
             the trunk
    """

    def normed(x: F32, weight: F32, eps: float) -> F32:
        return ops.layer_norm(x, weight, None, eps)

    return ops.replaced(rms_norm=normed)


def scaled_head(ops: Ops, output: Matrix, h: F32, n_rows: int | None, scale: float) -> F32:
    """S118. Logits of a model that multiplies them with a number of its own. S31, S97.

    Rule     trunk and head alike; a scale of 0 or 1 leaves them as they are. No choice of the greatest turns by it, and
             every probability does
    Shapes   as head
    """
    return ops.scaled_output(ops.head(ops, output, h, n_rows), scale)
