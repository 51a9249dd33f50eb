"""S121 to S124: what Mamba-2 layers, and experts without a gate, have of their own.

Owns what is arithmetic on arrays; the order is mtpref/spec/ops/compose_ssm.py's. Read next: mtp.py.
"""

import numpy as np

from mtpref.spec.arith import F32, Dot, exp, silu, softplus
from mtpref.spec.layers import rms_norm


def relu_squared(x: F32) -> F32:
    """S121. The activation of networks without a gate: max(x, 0)^2.

    Shapes   x: (T, n_ff) -> (T, n_ff)
    Source   So et al., arXiv 2109.08668
    """
    y = np.maximum(x, np.float32(0))
    return y * y


def conv_bias_silu(window: F32, weight: F32, bias: F32, dot: Dot) -> F32:
    """S122. The convolution of S11 with a bias before silu.

    Formula  y[t, c] = silu(dot(window[t : t + d_conv, c], weight[c]) + bias[c])
    Shapes   window: (d_conv - 1 + T, C), weight: (C, d_conv), bias: (C,) -> (T, C)
    Dtypes   float32; dot as said by the numerics
    """
    d_conv = weight.shape[1]
    n_tokens = window.shape[0] - (d_conv - 1)
    taps = np.stack([window[j : j + n_tokens] for j in range(d_conv)], axis=-1)
    return silu(dot(taps, weight[None]) + bias)


def ssm_scan(x: F32, b: F32, c: F32, dt: F32, a: F32, state: F32, keep: int, dot: Dot) -> tuple[F32, F32]:
    """S123. The selective state space of Mamba-2, token by token.

    Formula  d = softplus(dt_h);  s_pn = s_pn * exp(d * a_h) + b_n * (x_p * d);  y_p = dot(s_p, c)
    Shapes   x: (T, H, P), b, c: (T, G, N), dt: (T, H), the bias added; a: (H,), negative; state: (H, P, N)
             -> y: (T, H, P) and the states after each of the last `keep` tokens: (keep, H, P, N)
    Heads    head h reads the b and c of group h // (H / G)
    Dtypes   float32, each product and sum rounded on its own; dot as said by the numerics
    Errors   ValueError if H is no multiple of G, or keep is not in 1 .. T
    Source   Dao and Gu, arXiv 2405.21060; llama.cpp ggml_ssm_scan
    """
    n_tokens, n_head, _ = x.shape
    if n_head % b.shape[1] or not 1 <= keep <= n_tokens:
        raise ValueError(f"ssm_scan: H {n_head}, G {b.shape[1]}, keep {keep} of {n_tokens} tokens")
    group = np.arange(n_head) // (n_head // b.shape[1])
    step = softplus(dt)
    decay = exp(step * a)
    out = np.empty_like(x)
    states = np.empty((keep, *state.shape), np.float32)
    for t in range(n_tokens):
        b_t, c_t = b[t, group], c[t, group]
        moved = b_t[:, None, :] * (x[t] * step[t, :, None])[:, :, None]
        state = state * decay[t, :, None, None] + moved
        out[t] = dot(state, c_t[:, None, :])
        if t >= n_tokens - keep:
            states[t - (n_tokens - keep)] = state
    return out, states


def gated_group_norm(y: F32, x: F32, d: F32, z: F32, weight: F32, eps: float) -> F32:
    """S124. The skip, the gate, then an RMS norm of each group: rms_norm(silu(z) * (y + x * d)).

    Rule     the gate stands before the norm (S14's stands after it); a group's rows are normed together
    Shapes   y, x: (T, H, P), d: (H,), z: (T, H * P), weight: (G, H * P / G) -> (T, H * P)
    Source   Dao and Gu, arXiv 2405.21060, in the form of its authors' code
    """
    skipped = (y + x * d[None, :, None]).reshape(z.shape)
    gated = (silu(z) * skipped).reshape(len(z), *weight.shape)
    return rms_norm_of_groups(gated, weight, eps).reshape(z.shape)


def rms_norm_of_groups(x: F32, weight: F32, eps: float) -> F32:
    """S124. S8 over each group by itself, each with its own weight.

    Shapes   x: (T, G, n), weight: (G, n) -> (T, G, n)
    """
    ones = np.ones(x.shape[-1], np.float32)
    return rms_norm(x, ones, eps) * weight
