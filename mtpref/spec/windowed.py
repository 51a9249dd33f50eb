"""S94 to S97: what attention layers with windows, sinks and gates of heads, and limited feed-forward networks, have of
their own.

Owns what is arithmetic on arrays; the order is mtpref/spec/ops/compose_windowed.py's. Read next: mtp.py.
"""

import numpy as np
from numpy.typing import NDArray

from mtpref.spec.arith import F32, F64, Dot, exp, rsqrt64, sigmoid, silu
from mtpref.spec.layers import load_kv, store_kv

LEAST_LIMIT = 1e-6  # a limit that is not greater limits nothing


def divided_frequencies(frequencies: F64, factors: F32) -> F64:
    """S94. RoPE frequencies of a layer that reads `rope_freqs`: each pair's own, divided by its factor.

    Shapes   frequencies: (n_rot / 2,), factors: at least as many -> (n_rot / 2,)
    Dtypes   float64
    Source   Llama 3's scaling as llama.cpp's files have it
    """
    return np.asarray(frequencies / factors[: len(frequencies)].astype(np.float64))


def cell_attention(q: F32, k: NDArray, v: NDArray, sinks: F32 | None, kv_type: str, dot: Dot) -> F32:
    """S95. Attention of one token over the cells that it sees, oldest first, beside a sink of each head.

    Formula  s_j = dot(q', k_j) * (1 / sqrt(D)), m = max(max s, sink), e_j = exp(s_j - m);
             o_d = dot(e, v_d) / (dot(e, 1) + exp(sink - m)), q' = q rounded to the type of the cells
    Rule     a sink has a share of the weights and no value; it is not scaled. Without sinks m = max s and the divisor
             is dot(e, 1): the attention of S16, bit for bit, where keys and values are of one width
    Shapes   q: (n_head, D), k: (R, n_head_kv, D), v: (R, n_head_kv, D_v) as S15 stores them, sinks: (n_head,)
             -> (n_head, D_v); head h reads kv-head h // (n_head / n_head_kv)
    Dtypes   float32; dot as said by the numerics, over cells in the lane order (the oldest is in lane 0)
    Source   Xiao et al., arXiv 2309.17453; gpt-oss and MiMo-V2 have the sink as one number a head
    """
    kv_head = np.arange(len(q)) // (len(q) // k.shape[1])
    q = load_kv(store_kv(q, kv_type), kv_type)
    keys, values = load_kv(k, kv_type)[:, kv_head], load_kv(v, kv_type)[:, kv_head]
    scale = rsqrt64(np.asarray(q.shape[1], np.float64)).astype(np.float32)
    score = dot(q[:, None, :], keys.transpose(1, 0, 2)) * scale
    most = score.max(axis=-1) if sinks is None else np.maximum(score.max(axis=-1), sinks)
    e = exp(score - most[:, None])
    weighted, total = dot(e[:, None, :], values.transpose(1, 2, 0)), dot(e, np.ones_like(e))
    total = total if sinks is None else total + exp(sinks - most)
    return np.asarray(weighted / total[:, None])


def limited_swiglu(gate: F32, up: F32, limit: float) -> F32:
    """S96. The gated activation of S18 with limits: min(silu(gate), limit) * clamp(up, -limit, limit).

    Rule     silu is limited from above alone, and after it; a limit of 1e-6 or less limits nothing
    Shapes   gate, up: (T, n_ff) -> (T, n_ff)
    Source   Step-3.5; llama.cpp build_ffn and build_moe_ffn (DeepSeek-V4's limits stand before silu)
    """
    gate = silu(gate)
    if limit > LEAST_LIMIT:
        most = np.float32(limit)
        gate, up = np.minimum(gate, most), np.clip(up, -most, most)
    return gate * up


def head_gate(o: F32, logit: F32) -> F32:
    """S97. One gate for each head: o_h * sigmoid(logit_h), before the output projection.

    Shapes   o: (T, n_head, D), logit: (T, n_head) -> (T, n_head, D)
    Source   Step-3.5
    """
    return o * sigmoid(logit)[:, :, None]


def scaled_output(y: F32, scale: float) -> F32:
    """S97. The scale of attention's values, applied after the output projection: y * scale; 0 and 1: y itself.

    Shapes   y: (T, n_embd) -> (T, n_embd)
    Source   MiMo-V2, in the order of llama.cpp's graph
    """
    return y if scale in (0.0, 1.0) else y * np.float32(scale)
