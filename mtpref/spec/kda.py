"""S128 to S130 and S132: what Kimi delta attention, and latent rows turned by sections, have of their own.

Owns what is arithmetic on arrays; the order is mtpref/spec/ops/compose_kda.py's. Read next: mtp.py.
"""

import numpy as np
from numpy.typing import NDArray

from mtpref.spec.arith import F32, Dot, exp, fma32, rsqrt64, sigmoid
from mtpref.spec.layers import rms_norm


def channel_gates(f: F32, beta: F32, dt_bias: F32, a: F32, lower_bound: float) -> tuple[F32, F32]:
    """S128. Log decay of each channel of a key, bounded from below, and update strength of a head.

    Formula  g = lower_bound * sigmoid((f + dt_bias) * a_h), beta' = sigmoid(beta)
    Shapes   f: (T, H * S), dt_bias: (H * S,), a: (H,), beta: (T, H) -> g: (T, H, S), beta': (T, H)
    Dtypes   float32; each sum and product rounded on its own
    Units    lower_bound < g < 0, a natural logarithm; a is exp(A_log) already, positive
    Source   Kimi Linear, arXiv 2510.26692; its bounded form ("safe gate"), llama.cpp src/models/bailingmoe3.cpp
    """
    rows = (f + dt_bias).reshape(len(f), len(a), -1)
    return sigmoid(rows * a[None, :, None]) * np.float32(lower_bound), sigmoid(beta)


def channel_delta_rule(q: F32, k: F32, v: F32, g: F32, beta: F32, state: F32, keep: int, dot: Dot) -> tuple[F32, F32]:
    """S129. The gated delta rule of S13 with a decay of its own for each channel of a key, token by token.

    Formula  M_ji = exp(g_i) M_ji;  d_j = (v_j - dot(M_j, k)) * beta;  M_ji = fma32(d_j, k_i, M_ji);
             o_j = dot(M_j, q) * (1 / sqrt(S))
    Shapes   q, k, v, g: (T, H, S), beta: (T, H), state: (H, S, S) as [value j, key i]
             -> o: (T, H, S) and the states after each of the last `keep` tokens: (keep, H, S, S)
    Dtypes   float32; dot as said by the numerics
    Errors   ValueError if keep is not in 1 .. T
    Source   Kimi Linear, arXiv 2510.26692; with one g for all channels it is the delta rule of S13, bit for bit
    """
    n_tokens, _, size = v.shape
    if not 1 <= keep <= n_tokens:
        raise ValueError(f"channel_delta_rule: keep {keep} of {n_tokens} tokens")
    scale = rsqrt64(np.asarray(size, np.float64)).astype(np.float32)
    decay = exp(g)
    out = np.empty_like(v)
    states = np.empty((keep, *state.shape), np.float32)
    for t in range(n_tokens):
        k_t, q_t = k[t][:, None, :], q[t][:, None, :]
        state = state * decay[t][:, None, :]
        delta = (v[t] - dot(state, k_t)) * beta[t, :, None]
        state = fma32(delta[:, :, None], k_t, state)
        out[t] = dot(state, q_t) * scale
        if t >= n_tokens - keep:
            states[t - (n_tokens - keep)] = state
    return out, states


def sigmoid_gated_norm(o: F32, z: F32, weight: F32, eps: float) -> F32:
    """S130. RMS norm of each head, then the output gate: S14 with sigmoid in place of silu.

    Formula  rms_norm(o, weight, eps) * sigmoid(z)
    Shapes   o, z: (T, H, S), weight: (S,) -> (T, H, S)
    Dtypes   float32
    Source   Kimi Linear, arXiv 2510.26692
    """
    return rms_norm(o, weight, eps) * sigmoid(z)


def mrope_has_position(n_rot: int, sections: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """S132. Which RoPE pairs turn with the text position (multi-axis RoPE whose sections lie one after the other).

    Rule     with s = pair index mod sum(sections): the first sections[0] + sections[1] + sections[2] pairs are those of
             time, height and width, which in text all hold the token's position; the others read the fourth axis, which
             is 0 in text. Halves are paired (S10), where a model without sections pairs neighbours (S53)
    Shapes   -> (n_rot / 2,) bool
    Source   Qwen2-VL's M-RoPE, arXiv 2409.12191; ggml-cpu/ops.cpp, ggml_mrope_cache_init
    """
    total = max(sum(sections), 1)
    return np.array([i % total < sum(sections[:3]) for i in range(n_rot // 2)], np.bool_)
