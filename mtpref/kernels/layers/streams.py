"""S70 to S73: what several residual streams are read with, written with and mixed by.

Owns the twins of mtpref/spec/streams.py. Sinkhorn's rounds take one matrix at a time, a few numbers by a few; reading
and writing take 16 columns of a row at a time, in the order of the streams.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels.arithmetic.arith import exp, sigmoid
from mtpref.kernels.arithmetic.floats import N_FLOATS, load16, plus, store, times
from mtpref.kernels.compiling.compile import INT, helper, kernel, source, target

F32 = NDArray[np.float32]

_VECTOR, _MATRIX, _CUBE = (source(types.float32, n) for n in (1, 2, 3))
_OUT2, _OUT3 = target(types.float32, 2), target(types.float32, 3)


@helper
def _over_targets(comb, eps):
    """Each row over (its sum + eps)."""
    n = len(comb)
    for i in range(n):
        total = comb[i, 0]
        for j in range(1, n):
            total = total + comb[i, j]
        for j in range(n):
            comb[i, j] = comb[i, j] / (total + eps)


@helper
def _over_sources(comb, eps):
    """Each column over (its sum + eps)."""
    n = len(comb)
    for j in range(n):
        total = comb[0, j]
        for i in range(1, n):
            total = total + comb[i, j]
        for i in range(n):
            comb[i, j] = comb[i, j] / (total + eps)


@helper
def _sinkhorn(comb, eps, n_iterations):
    """S71, in place. A NaN makes its row NaN, as it does for np.max."""
    n = len(comb)
    for i in range(n):
        greatest = comb[i, 0]
        for j in range(1, n):
            if comb[i, j] > greatest or comb[i, j] != comb[i, j]:
                greatest = comb[i, j]
        for j in range(n):
            comb[i, j] = exp(comb[i, j] - greatest)
    _over_targets(comb, np.float32(0))
    for i in range(n):
        for j in range(n):
            comb[i, j] = comb[i, j] + eps
    _over_sources(comb, eps)
    for _ in range(n_iterations - 1):
        _over_targets(comb, eps)
        _over_sources(comb, eps)


@kernel(_MATRIX, _VECTOR, _VECTOR, types.float32, INT, _OUT2, _OUT2, _OUT3)
def _stream_weights(mixes, scale, base, eps, n_iterations, pre, post, comb):
    n_tokens, n = pre.shape
    for t in range(n_tokens):
        for i in range(n):
            pre[t, i] = sigmoid(mixes[t, i] * scale[0] + base[i]) + eps
            post[t, i] = sigmoid(mixes[t, n + i] * scale[1] + base[n + i]) * np.float32(2)
            for j in range(n):
                at = 2 * n + i * n + j
                comb[t, i, j] = mixes[t, at] * scale[2] + base[at]
        _sinkhorn(comb[t], eps, n_iterations)


@kernel(_CUBE, _MATRIX, _OUT2)
def _read_streams(streams, pre, out):
    n_tokens, n, n_embd = streams.shape
    whole = n_embd // N_FLOATS * N_FLOATS
    for t in range(n_tokens):
        at = t * n * n_embd
        for i in range(0, whole, N_FLOATS):
            total = times(load16(streams, at + i), pre[t, 0])
            for s in range(1, n):
                total = plus(total, times(load16(streams, at + s * n_embd + i), pre[t, s]))
            store(out, t * n_embd + i, total)
        for i in range(whole, n_embd):
            single = streams[t, 0, i] * pre[t, 0]
            for s in range(1, n):
                single = single + streams[t, s, i] * pre[t, s]
            out[t, i] = single


@kernel(_CUBE, _MATRIX, _MATRIX, _CUBE, _OUT3)
def _write_streams(streams, y, post, comb, out):
    n_tokens, n, n_embd = streams.shape
    whole = n_embd // N_FLOATS * N_FLOATS
    for t in range(n_tokens):
        at = t * n * n_embd
        for k in range(n):
            for i in range(0, whole, N_FLOATS):
                total = times(load16(y, t * n_embd + i), post[t, k])
                for s in range(n):
                    total = plus(total, times(load16(streams, at + s * n_embd + i), comb[t, s, k]))
                store(out, at + k * n_embd + i, total)
            for i in range(whole, n_embd):
                single = y[t, i] * post[t, k]
                for s in range(n):
                    single = single + streams[t, s, i] * comb[t, s, k]
                out[t, k, i] = single


def stream_weights(
    mixes: F32, scale: F32, base: F32, n_streams: int, eps: float, n_iterations: int
) -> tuple[F32, F32, F32]:
    """S70. The bits of `spec.stream_weights`: mixes (T, n (n + 2)) -> pre (T, n), post (T, n), comb (T, n, n)."""
    n_tokens, n = len(mixes), n_streams
    pre, post = np.empty((n_tokens, n), np.float32), np.empty((n_tokens, n), np.float32)
    comb = np.empty((n_tokens, n, n), np.float32)
    _stream_weights(np.ascontiguousarray(mixes), scale, base, np.float32(eps), n_iterations, pre, post, comb)
    return pre, post, comb


def read_streams(streams: F32, pre: F32) -> F32:
    """S72. The bits of `spec.read_streams`: streams (T, n, n_embd), pre (T, n) -> (T, n_embd)."""
    out = np.empty((len(streams), streams.shape[2]), np.float32)
    _read_streams(np.ascontiguousarray(streams), np.ascontiguousarray(pre), out)
    return out


def write_streams(streams: F32, y: F32, post: F32, comb: F32) -> F32:
    """S73. The bits of `spec.write_streams`: streams (T, n, n_embd), y (T, n_embd), post (T, n), comb (T, n, n)
    -> (T, n, n_embd)."""
    out = np.empty(streams.shape, np.float32)
    _write_streams(*map(np.ascontiguousarray, (streams, y, post, comb)), out)
    return out
