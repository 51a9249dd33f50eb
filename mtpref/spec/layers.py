"""S8 to S18: the operations that the layers are made of.

Owns norms, RoPE, the DeltaNet operations, attention and the feed-forward activation, as pure functions on
arrays. A reduction takes `dot` as an argument: `dot64` in `exact` numerics, `dot32` in `ggml` numerics. It
must not know how operations are strung together (mtpref/engine/model does) nor where state lives. Read next: mtp.py.
"""

import numpy as np
from numpy.typing import NDArray

from mtpref.spec.arith import (
    F32,
    F64,
    Dot,
    exp,
    exp64,
    fma32,
    lane_sum_products,
    log64,
    rsqrt64,
    sigmoid,
    silu,
    sincos64,
    softplus,
)
from mtpref.spec.quant import bf16_bits

# ---------------------------------------------------------------------------------------------- norms


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """S8. RMS norm over the last axis.

    Formula  (x * scale) * weight, scale = 1 / sqrt(sum(x^2) / n + eps)
    Shapes   x: (..., n), weight: (n,) -> (..., n)
    Dtypes   sum in float64 in the lane order, scale in float64 rounded once to float32; two float32 products
    Source   Zhang and Sennrich, arXiv 1910.07467; the +1 of zero-centred norms is already in the file's
             weight
    """
    mean = lane_sum_products(x, x) / np.float64(x.shape[-1])
    return x * _scale32(mean, eps) * weight


def l2_norm(x: F32, eps: float) -> F32:
    """S9. L2 norm over the last axis, epsilon inside the sum.

    Formula  x * scale, scale = 1 / sqrt(sum(x^2) + eps)
    Shapes   x: (..., n) -> (..., n)
    Dtypes   as rms_norm
    Source   Qwen3-Next and Qwen3.5; not x / max(norm, eps), and eps is not multiplied by n
    """
    return x * _scale32(lane_sum_products(x, x), eps)


def _scale32(square: F64, eps: float) -> F32:
    with np.errstate(over="ignore", divide="ignore"):
        return np.asarray(rsqrt64(square + np.float64(np.float32(eps))).astype(np.float32))[..., None]


# ----------------------------------------------------------------------------------------------- RoPE


def rope_frequencies(n_rot: int, freq_base: float) -> F64:
    """S10. The angle per position of each pair: freq_base ** (-2 i / n_rot), i = 0 .. n_rot/2 - 1.

    Formula  exp64(-(2 i / n_rot) * log64(freq_base))
    Shapes   -> (n_rot / 2,)
    Dtypes   float64. ggml multiplies float32 angles step by step, transformers rounds the frequency to
             float32; both differ from this rule by about 1e-7 of the angle.
    """
    exponent = -(2.0 * np.arange(n_rot // 2, dtype=np.float64) / np.float64(n_rot))
    return exp64(exponent * log64(np.asarray(np.float32(freq_base), np.float64)))


def yarn_share(n_rot: int, freq_base: float, n_ctx_orig: int, beta_fast: float, beta_slow: float) -> F64:
    """S10. YaRN: the share of each pair's own frequency, 1 for pairs that turn often over the original context.

    Formula  1 - clamp((i - low) / max(0.001, high - low), 0, 1), with d(beta) = n_rot log(n_ctx_orig / (2 pi beta)) /
             (2 log freq_base) the pair that turns beta times, low = max(0, floor d(beta_fast)),
             high = min(n_rot - 1, ceil d(beta_slow))
    Shapes   -> (n_rot / 2,)
    Dtypes   float64, log64. ggml computes d in float32: another floor only if d is within 1e-6 of an integer.
    Units    beta is a number of rotations over n_ctx_orig positions
    Source   Peng et al., arXiv 2309.00071, in the form of its authors' code: linear in the pair, not in the rotations
    """

    def pair_of(beta: float) -> F64:
        rotations = np.asarray(n_ctx_orig / (np.float64(np.float32(beta)) * (2.0 * np.pi)))
        return n_rot * log64(rotations) / (2.0 * log64(np.asarray(np.float32(freq_base), np.float64)))

    low = np.maximum(0.0, np.floor(pair_of(beta_fast)))
    high = np.minimum(n_rot - 1.0, np.ceil(pair_of(beta_slow)))
    ramp = (np.arange(n_rot // 2, dtype=np.float64) - low) / np.maximum(0.001, high - low)
    return np.asarray(1.0 - np.clip(ramp, 0.0, 1.0))


def scaled_frequencies(frequencies: F64, freq_scale: float, share: F64) -> F64:
    """S10. Frequencies under RoPE scaling: each pair's own in its share, the scaled one in the rest.

    Formula  frequency * (freq_scale * (1 - share) + share); linear scaling is share = 0
    Shapes   frequencies, share: (n_rot / 2,) -> (n_rot / 2,)
    Dtypes   float64; freq_scale is a float32 number. With freq_scale 1 and share 0 the same bits come back.
    Units    freq_scale is 1 / rope.scaling.factor; share is ext_factor * yarn_share
    """
    return np.asarray(frequencies * (np.float64(np.float32(freq_scale)) * (1.0 - share) + share))


def yarn_magnitude(freq_scale: float, log_multiplier: float) -> float:
    """S10. YaRN: what cosine and sine are multiplied with, so that attention stays as sharp over a longer context.

    Formula  m(1) / m(log_multiplier), m(c) = 1 + 0.1 c log(1 / freq_scale), and 1 where freq_scale >= 1. Queries and
             keys both carry it, so scores carry its square.
    Dtypes   float64, log64
    Source   Peng et al., arXiv 2309.00071; the divisor is DeepSeek's mscale_all_dim
    """
    scale = np.float64(np.float32(freq_scale))
    if scale >= 1.0:
        return 1.0
    growth = -0.1 * log64(np.asarray(scale))
    return float((1.0 + growth) / (1.0 + np.float64(np.float32(log_multiplier)) * growth))


def imrope_has_position(n_rot: int, sections: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """S10. Which RoPE pairs turn with the text position (interleaved multi-axis RoPE, text only).

    Rule     with s = pair index mod sum(sections): s % 3 = 1 and s < 3 * sections[1] is the height axis, s
             % 3 = 2 and s < 3 * sections[2] the width axis, s % 3 = 0 and s < 3 * sections[0] the time
             axis. In text all three hold the token's position. Any other pair reads the fourth axis, which
             is 0 in text.
    Shapes   -> (n_rot / 2,) bool
    Errors   none; sections that leave pairs uncovered are legal and leave those pairs unturned
    Source   Qwen3-VL's interleaved M-RoPE; ggml-cpu/ops.cpp, ggml_mrope_cache_init
    """
    total = max(sum(sections), 1)
    axis_len = (3 * sections[0], 3 * sections[1], 3 * sections[2])
    return np.array([(i % total) < axis_len[(i % total) % 3] for i in range(n_rot // 2)], np.bool_)


def rope_table(
    pos: NDArray[np.int32], frequencies: F64, has_position: NDArray[np.bool_], magnitude: float = 1.0
) -> tuple[F32, F32]:
    """S10. Cosine and sine of each token and pair, times the magnitude of RoPE scaling.

    Formula  theta = pos * frequency, 0 where the pair has no position (its cosine is the magnitude)
    Shapes   pos: (T,), frequencies, has_position: (n_rot/2,) -> cos, sin: (T, n_rot/2)
    Dtypes   float64 inside, rounded once to float32
    """
    theta = pos.astype(np.float64)[:, None] * np.where(has_position, frequencies, 0.0)[None, :]
    # A cell that precedes position 0 (a contract with an offset) turns the other way: cos is even, sin is
    # odd.
    sin, cos = sincos64(np.abs(theta))
    cos, sin = cos * np.float64(magnitude), np.where(theta < 0, -sin, sin) * np.float64(magnitude)
    return cos.astype(np.float32), sin.astype(np.float32)


def rope(x: F32, cos: F32, sin: F32) -> F32:
    """S10. Rotary position embedding of the first n_rot dimensions, halves paired ("NEOX"); the rest passes.

    Formula  pairs (i, i + n_rot/2): (a cos - b sin, a sin + b cos)
    Shapes   x: (T, H, D), cos, sin: (T, n_rot/2) -> (T, H, D)
    Dtypes   float32; each product and the sum rounded on its own
    Source   Su et al., arXiv 2104.09864; GPT-NeoX pairing
    """
    half = cos.shape[-1]
    c, s = cos[:, None, :], sin[:, None, :]
    a, b = x[..., :half], x[..., half : 2 * half]
    return np.concatenate([a * c - b * s, a * s + b * c, x[..., 2 * half :]], axis=-1)


# ------------------------------------------------------------------------------------------- DeltaNet


def conv_silu(window: F32, weight: F32, dot: Dot) -> F32:
    """S11. Causal depthwise convolution over time, then silu, on q, k and v channels alike.

    Formula  y[t, c] = silu(dot(window[t : t + d_conv, c], weight[c]))
    Shapes   window: (d_conv - 1 + T, C), the raw rows before the batch and those of the batch, oldest first;
             weight: (C, d_conv) -> (T, C)
    Dtypes   float32; dot as said by the numerics
    """
    d_conv = weight.shape[1]
    n_tokens = window.shape[0] - (d_conv - 1)
    taps = np.stack([window[j : j + n_tokens] for j in range(d_conv)], axis=-1)
    return silu(dot(taps, weight[None]))


def delta_gates(alpha: F32, beta: F32, dt_bias: F32, ssm_a: F32) -> tuple[F32, F32]:
    """S12. Log decay and update strength of the delta rule.

    Formula  g = softplus(alpha + dt_bias) * ssm_a, beta' = sigmoid(beta)
    Shapes   alpha, beta: (T, H_v), dt_bias, ssm_a: (H_v,) -> g, beta': (T, H_v)
    Dtypes   float32
    Units    g <= 0, a natural logarithm; ssm_a is -exp(A_log) already
    Source   Yang et al., arXiv 2412.06464; Qwen3-Next
    """
    return softplus(alpha + dt_bias) * ssm_a, sigmoid(beta)


def delta_rule(q: F32, k: F32, v: F32, g: F32, beta: F32, state: F32, keep: int, dot: Dot) -> tuple[F32, F32]:
    """S13. The gated delta rule, token by token.

    Formula  M = exp(g) M;  d_j = (v_j - dot(M_j, k)) * beta;  M_ji = fma32(d_j, k_i, M_ji);
             o_j = dot(M_j, q) * (1 / sqrt(S))
    Shapes   q, k: (T, H_k, S), v: (T, H_v, S), g, beta: (T, H_v), state: (H_v, S, S) as [value j, key i]
             -> o: (T, H_v, S) and the states after each of the last `keep` tokens: (keep, H_v, S, S)
    Dtypes   float32; dot as said by the numerics
    Heads    v-head h uses q- and k-head h % H_k (the file's tiled order, not grouped)
    Errors   ValueError if H_v is no multiple of H_k, or keep is not in 1 .. T
    Source   Yang et al., arXiv 2412.06464, eq. 10; the state is the transpose of the paper's
    """
    n_tokens, n_v_head, size = v.shape
    if n_v_head % q.shape[1] or not 1 <= keep <= n_tokens:
        raise ValueError(f"delta_rule: H_v {n_v_head}, H_k {q.shape[1]}, keep {keep} of {n_tokens} tokens")
    k_head = np.arange(n_v_head) % q.shape[1]
    scale = rsqrt64(np.asarray(size, np.float64)).astype(np.float32)
    decay = exp(g)
    out = np.empty_like(v)
    states = np.empty((keep, *state.shape), np.float32)
    for t in range(n_tokens):
        k_t, q_t = k[t, k_head], q[t, k_head]
        state = state * decay[t, :, None, None]
        delta = (v[t] - dot(state, k_t[:, None, :])) * beta[t, :, None]
        state = fma32(delta[:, :, None], k_t[:, None, :], state)
        out[t] = dot(state, q_t[:, None, :]) * scale
        if t >= n_tokens - keep:
            states[t - (n_tokens - keep)] = state
    return out, states


def gated_norm(o: F32, z: F32, weight: F32, eps: float) -> F32:
    """S14. RMS norm of each head, then the output gate.

    Formula  rms_norm(o, weight, eps) * silu(z)
    Shapes   o, z: (T, H_v, S), weight: (S,) -> (T, H_v, S)
    Dtypes   float32
    """
    return rms_norm(o, weight, eps) * silu(z)


# ------------------------------------------------------------------------------------------ attention


def split_q_gate(q_full: F32, n_head: int) -> tuple[F32, F32]:
    """S15. Query and output gate, interleaved per head: each head's block is [query | gate].

    Shapes   q_full: (T, n_head * 2 * D) -> q, gate: (T, n_head, D)
    """
    blocks = q_full.reshape(q_full.shape[0], n_head, 2, -1)
    return blocks[:, :, 0], blocks[:, :, 1]


def store_kv(x: F32, kv_type: str) -> NDArray:
    """S15. Keys or values as the cache holds them: float32 (F32) or 16 bits as uint16 (F16, BF16)."""
    if kv_type == "F32":
        return x
    if kv_type == "F16":
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return x.astype(np.float16).view(np.uint16)
    return bf16_bits(x)


def load_kv(cell: NDArray, kv_type: str) -> F32:
    """S15. The float32 value of what `store_kv` wrote (exact)."""
    if kv_type == "F32":
        return cell
    if kv_type == "F16":
        return cell.view(np.float16).astype(np.float32)
    return np.asarray((cell.astype(np.uint32) << np.uint32(16)).view(np.float32))


def attention(q: F32, k_cache: NDArray, v_cache: NDArray, kv_type: str, first: int, dot: Dot) -> F32:
    """S16. Causal attention of T tokens over a cache that already holds them.

    Formula  s_j = dot(q', k_j) * (1 / sqrt(D)); e_j = exp(s_j - max s); o_d = dot(e, v_d) / dot(e, 1)
             over the cells j = 0 .. first + t, q' = q rounded to the type of the cache
    Shapes   q: (T, n_head, D), k_cache, v_cache: (n_cells, n_head_kv, D), n_cells = first + T
             -> (T, n_head, D); head h reads kv-head h // (n_head / n_head_kv)
    Dtypes   float32; dot as said by the numerics, over cells in the lane order (cell j is in lane j % 32)
    Source   Vaswani et al., arXiv 1706.03762; Ainslie et al., arXiv 2305.13245
    """
    n_tokens, n_head, size = q.shape
    kv_head = np.arange(n_head) // (n_head // k_cache.shape[1])
    q = load_kv(store_kv(q, kv_type), kv_type)
    scale = rsqrt64(np.asarray(size, np.float64)).astype(np.float32)
    out = np.empty_like(q)
    for t in range(n_tokens):
        n_cells = first + t + 1
        k = load_kv(k_cache[:n_cells], kv_type)[:, kv_head]
        v = load_kv(v_cache[:n_cells], kv_type)[:, kv_head]
        score = dot(q[t][:, None, :], k.transpose(1, 0, 2)) * scale
        e = exp(score - score.max(axis=-1, keepdims=True))
        weighted = dot(e[:, None, :], v.transpose(1, 2, 0))
        out[t] = weighted / dot(e, np.ones_like(e))[:, None]
    return out


def attn_gate(o: F32, gate: F32) -> F32:
    """S17. The attention output gate: o * sigmoid(gate), before the output projection (sigmoid, not silu).

    Shapes   o, gate: (T, n_head, D) -> (T, n_head, D)
    """
    return o * sigmoid(gate)


# ----------------------------------------------------------------------------------------------- FFN


def swiglu(gate: F32, up: F32) -> F32:
    """S18. The gated activation of the feed-forward network: silu(gate) * up.

    Shapes   gate, up: (T, n_ff) -> (T, n_ff)
    Source   Shazeer, arXiv 2002.05202
    """
    return silu(gate) * up
