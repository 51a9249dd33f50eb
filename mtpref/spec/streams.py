"""S70 to S73: several residual streams (hyper-connections): what they are read with, written with and mixed by.

Owns what is arithmetic on arrays; the order is mtpref/spec/ops/compose_streams.py's. Read next: compressed.py.
"""

import numpy as np

from mtpref.spec.arith import F32, exp, sigmoid


def stream_weights(
    mixes: F32, scale: F32, base: F32, n_streams: int, eps: float, n_iterations: int
) -> tuple[F32, F32, F32]:
    """S70. What a sub-layer reads its streams with (pre), writes to them with (post), and mixes them by (comb).

    Formula  [a | b | c] = mixes, n, n and n * n of them; pre = sigmoid(a s0 + base) + eps; post = 2 sigmoid(b s1 +
             base); comb = S71 of c s2 + base, as a matrix (source, target)
    Shapes   mixes, base: (T, n * (n + 2)) and (n * (n + 2),), scale: (3,) -> (T, n), (T, n), (T, n, n)
    Dtypes   float32, each operation rounded on its own
    Source   Zhu et al., arXiv 2409.19606; Xie et al., arXiv 2512.24880; llama.cpp src/models/deepseek4.cpp
    """
    n = n_streams
    pre = sigmoid(mixes[:, :n] * scale[0] + base[:n]) + np.float32(eps)
    post = sigmoid(mixes[:, n : 2 * n] * scale[1] + base[n : 2 * n]) * np.float32(2.0)
    comb = (mixes[:, 2 * n :] * scale[2] + base[2 * n :]).reshape(-1, n, n)
    return pre, post, sinkhorn(comb, eps, n_iterations)


def head_weights(mixes: F32, scale: F32, base: F32, eps: float) -> F32:
    """S70. What the head reads the streams with: sigmoid(m s + base) + eps.

    Shapes   mixes: (T, n), scale: (1,), base: (n,) -> (T, n)
    """
    return sigmoid(mixes * scale[0] + base) + np.float32(eps)


def sinkhorn(comb: F32, eps: float, n_iterations: int) -> F32:
    """S71. Sinkhorn's rounds: a matrix that is nearly doubly stochastic, of any.

    Formula  softmax over targets, plus eps; columns over (their sum + eps); then n_iterations - 1 times rows over
             (their sum + eps) and columns over (their sum + eps)
    Shapes   (T, source, target) -> the same
    Dtypes   float32; sums in order, ((x_0 + x_1) + x_2) + ...
    Source   Sinkhorn and Knopp, 1967; llama.cpp build_hc_sinkhorn
    """
    e, small = exp(comb - comb.max(axis=2, keepdims=True)), np.float32(eps)
    comb = e / _in_order(e, 2) + small
    comb = comb / (_in_order(comb, 1) + small)
    for _ in range(n_iterations - 1):
        comb = comb / (_in_order(comb, 2) + small)
        comb = comb / (_in_order(comb, 1) + small)
    return comb


def read_streams(streams: F32, pre: F32) -> F32:
    """S72. What a sub-layer is given of its streams: ((pre_0 X_0 + pre_1 X_1) + pre_2 X_2) + ...

    Shapes   streams: (T, n, n_embd), pre: (T, n) -> (T, n_embd)
    Dtypes   float32, products rounded on their own
    """
    return np.ascontiguousarray(_in_order(streams * pre[:, :, None], 1)[:, 0])


def write_streams(streams: F32, y: F32, post: F32, comb: F32) -> F32:
    """S73. The streams after a sub-layer: X'_t = ((post_t y + comb_0t X_0) + comb_1t X_1) + ...

    Shapes   streams: (T, n, n_embd), y: (T, n_embd), post: (T, n), comb: (T, source, target) -> (T, n, n_embd)
    Dtypes   float32, products rounded on their own
    """
    out = y[:, None, :] * post[:, :, None]
    for source in range(streams.shape[1]):
        out = out + streams[:, source, None, :] * comb[:, source, :, None]
    return np.asarray(out)


def _in_order(x: F32, axis: int) -> F32:
    """The sum over an axis, which stays with length 1, one after the other."""
    parts = np.moveaxis(x, axis, 0)
    total = parts[0].copy()
    for part in parts[1:]:
        total = total + part
    return np.expand_dims(total, axis)
