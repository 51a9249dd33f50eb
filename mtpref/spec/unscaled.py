"""S100 to S103: what models whose attention does not scale its scores have of their own: that attention, GELU, a cap of
the logits, scaled embeddings.

Owns what is arithmetic on arrays; the order is mtpref/spec/ops/compose_unscaled.py's. Read next: mtp.py.
"""

import math

import numpy as np
from numpy.typing import NDArray

from mtpref.spec.arith import F32, F64, Dot, exp, exp64
from mtpref.spec.layers import load_kv, store_kv
from mtpref.spec.quant import round_f16

GELU_CUBIC, GELU_ROOT = 0.044715, math.sqrt(2.0 / math.pi)
GELU_LIMIT = 10.0  # from here on ggml's table is not asked
TANH_SERIES = 2.0**-7  # below it tanh by its series


def unscaled_attention(q: F32, k: NDArray, v: NDArray, kv_type: str, dot: Dot) -> F32:
    """S100. Attention of one token over the cells that it sees, oldest first, with scores as they are.

    Formula  s_j = dot(q', k_j), e_j = exp(s_j - max s), o_d = dot(e, v_d) / dot(e, 1), q' = q rounded to the type of
             the cells
    Rule     S16 without its factor 1 / sqrt(D): queries and keys have been normed, and a norm's weight scales them
    Shapes   q: (n_head, D), k, v: (R, n_head_kv, D) as S15 stores them, R at least 1 -> (n_head, D); head h reads
             kv-head h // (n_head / n_head_kv)
    Dtypes   float32; dot as said by the numerics, over cells in the lane order (the oldest is in lane 0)
    Source   Gemma 4: transformers' scaling = 1.0, llama.cpp's f_attention_scale
    """
    kv_head = np.arange(len(q)) // (len(q) // k.shape[1])
    q = load_kv(store_kv(q, kv_type), kv_type)
    keys, values = load_kv(k, kv_type)[:, kv_head], load_kv(v, kv_type)[:, kv_head]
    score = dot(q[:, None, :], keys.transpose(1, 0, 2))
    e = exp(score - score.max(axis=-1, keepdims=True))
    return np.asarray(dot(e[:, None, :], values.transpose(1, 2, 0)) / dot(e, np.ones_like(e))[:, None])


def gelu(x: F32) -> F32:
    """S101. GELU by its approximation with tanh: 0.5 x (1 + tanh u) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x +
    0.044715 x^3).

    Shapes   any
    Dtypes   float64 inside, `exp64`, rounded once to float32
    Source   Hendrycks and Gimpel, arXiv 1606.08415; not the form with erf, which differs by up to 5e-4
    """
    x64 = np.asarray(x, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        twice = 2.0 * GELU_ROOT * x64 * (1.0 + GELU_CUBIC * x64 * x64)
        return np.asarray(x64 / (1.0 + exp64(-twice))).astype(np.float32)


def geglu(gate: F32, up: F32) -> F32:
    """S101. The gated activation of the feed-forward network: gelu(gate) * up.

    Shapes   gate, up: (T, n_ff) -> (T, n_ff)
    Source   Shazeer, arXiv 2002.05202
    """
    return gelu(gate) * up


def geglu_f16(gate: F32, up: F32) -> F32:
    """S101. The same as ggml's CPU backend has it in `ggml` numerics, by a table of 65,536 numbers of 16 bits.

    Formula  round_f16(0.5 h (1 + tanh(a h (1 + b h h)))) * up, h = round_f16(gate), a and b rounded to float32
    Rule     a gate of 10 or more is its own value, and one of -10 or less gives 0
    Shapes   gate, up: (T, n_ff) -> (T, n_ff)
    Dtypes   float32, every step rounded on its own, tanh by `tanh64`: 1 + tanh loses digits below -2, and so it does in
             ggml
    Source   ggml-cpu/vec.h, GGML_GELU_FP16: all CPU builds have the table; other backends do not. Of 37,376 places one
             is another number where a compiler contracts 1 + b h h
    """
    h = round_f16(gate)
    with np.errstate(over="ignore", invalid="ignore"):
        inner = np.float32(GELU_ROOT) * h * (np.float32(1) + np.float32(GELU_CUBIC) * h * h)
        tanh = tanh64(inner.astype(np.float64)).astype(np.float32)
        inside = round_f16(np.float32(0.5) * h * (np.float32(1) + tanh))
    outside = np.where(gate > 0, gate, np.float32(0))
    return np.where(np.abs(gate) >= np.float32(GELU_LIMIT), outside, inside) * up


def tanh64(x: F64) -> F64:
    """S102. The hyperbolic tangent in float64: 1 - 2 / (exp(2 x) + 1), and x - x^3 / 3 + 2 x^5 / 15 below 2**-7.

    Errors   relative error below 1e-13, hence within 1 ulp of the correctly rounded value in float32
    """
    x = np.asarray(x, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        square = x * x
        near = x - x * square * (1.0 / 3.0 - square * (2.0 / 15.0))
        return np.asarray(np.where(np.abs(x) < TANH_SERIES, near, 1.0 - 2.0 / (exp64(2.0 * x) + 1.0)))


def soft_cap(logits: F32, cap: float) -> F32:
    """S102. Logits within -cap .. cap: cap * tanh(logits * (1 / cap)); a cap of 0 is none.

    Shapes   logits: (T, V) -> (T, V)
    Dtypes   1 / cap and each product rounded to float32; tanh in float64, rounded once. Two logits may become equal,
             but never change places: the greedy token is the same but for ties
    Source   Gemma 2, arXiv 2408.00118
    """
    if cap == 0.0:
        return logits
    c = np.float32(cap)
    inside = logits * (np.float32(1) / c)
    return tanh64(inside.astype(np.float64)).astype(np.float32) * c


def scaled_embedding(x: F32) -> F32:
    """S103. Rows of an embedding times the square root of their width, rounded to float32.

    Shapes   x: (T, n) -> (T, n)
    Source   Gemma; a factor of the rows, not of the table, which may serve as output too
    """
    return x * np.float32(math.sqrt(x.shape[-1]))
