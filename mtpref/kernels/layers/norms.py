"""S8, S9, S12, S14, S17, S18, S79: norms and element-wise operations.

Owns the kernels that look at one row or one element at a time. They run in the calling thread for the tokens of a
draft: they touch little memory, and starting threads would cost more than they take.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np
from numba import prange
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels.arithmetic.arith import sigmoid, silu, softplus
from mtpref.kernels.arithmetic.floats import N_FLOATS, at_least, at_most, load16, sigmoid16, silu16, store, times
from mtpref.kernels.arithmetic.lanes import lane_sum_products
from mtpref.kernels.compiling import compile
from mtpref.kernels.compiling.calls import caller
from mtpref.kernels.compiling.compile import F64, INT, helper, kernel, source, target
from mtpref.spec.windowed import LEAST_LIMIT

F32 = NDArray[np.float32]

# Elements from which on all threads take part.
PARALLEL_FROM = 1 << 16

_VECTOR, _MATRIX = source(types.float32, 1), source(types.float32, 2)
_OUT1, _OUT2 = target(types.float32, 1), target(types.float32, 2)


@helper
def scale32(square, eps):
    """1 / sqrt(square + eps) in float64, rounded to float32. Division by zero gives infinity."""
    return np.float32(1.0 / np.sqrt(square + np.float64(np.float32(eps))))


@kernel(_MATRIX, _VECTOR, F64, _OUT2, INT, INT)
def _rms_norm(x, weight, eps, out, first, last):
    n = x.shape[1]
    for r in range(first, last):
        scale = scale32(lane_sum_products(x, r * n, x, r * n, n) / np.float64(n), eps)
        for i in range(n):
            out[r, i] = x[r, i] * scale * weight[i]


@kernel(_MATRIX, F64, _OUT2)
def _l2_norm(x, eps, out):
    n_rows, n = x.shape
    for r in range(n_rows):
        scale = scale32(lane_sum_products(x, r * n, x, r * n, n), eps)
        for i in range(n):
            out[r, i] = x[r, i] * scale


@kernel(_MATRIX, _MATRIX, _VECTOR, F64, _OUT2)
def _gated_norm(o, z, weight, eps, out):
    n_rows, n = o.shape
    for r in range(n_rows):
        scale = scale32(lane_sum_products(o, r * n, o, r * n, n) / np.float64(n), eps)
        for i in range(n):
            out[r, i] = o[r, i] * scale * weight[i] * silu(z[r, i])


@kernel(_MATRIX, _MATRIX, _VECTOR, _VECTOR, _OUT2, _OUT2)
def _delta_gates(alpha, beta, dt_bias, ssm_a, g, strength):
    n_tokens, n_heads = alpha.shape
    for t in range(n_tokens):
        for h in range(n_heads):
            g[t, h] = softplus(alpha[t, h] + dt_bias[h]) * ssm_a[h]
            strength[t, h] = sigmoid(beta[t, h])


@kernel(_VECTOR, _VECTOR, _OUT1)
def _attn_gate(o, gate, out):
    whole = len(o) // N_FLOATS * N_FLOATS
    for i in range(0, whole, N_FLOATS):
        store(out, i, times(load16(o, i), sigmoid16(load16(gate, i))))
    for i in range(whole, len(o)):
        out[i] = o[i] * sigmoid(gate[i])


@kernel(_VECTOR, _VECTOR, _OUT1, INT, INT)
def swiglu_part(gate, up, out, first, last):
    whole = first + (last - first) // N_FLOATS * N_FLOATS
    for i in range(first, whole, N_FLOATS):
        store(out, i, times(silu16(load16(gate, i)), load16(up, i)))
    for i in range(whole, last):
        out[i] = silu(gate[i]) * up[i]


@kernel(_VECTOR, _VECTOR, types.float32, _OUT1, INT, INT)
def limited_part(gate, up, limit, out, first, last):
    """S79 (clamped swiglu); with infinity for no limit it is S18."""
    whole = first + (last - first) // N_FLOATS * N_FLOATS
    for i in range(first, whole, N_FLOATS):
        gated = silu16(at_most(load16(gate, i), limit))
        store(out, i, times(gated, at_most(at_least(load16(up, i), -limit), limit)))
    for i in range(whole, last):
        g, u = gate[i], up[i]
        g = limit if g > limit else g
        u = -limit if u < -limit else limit if u > limit else u
        out[i] = silu(g) * u


call_limited = caller(_VECTOR, _VECTOR, types.float32, _OUT1, INT, INT)
call_swiglu, _call_rms_norm = caller(_VECTOR, _VECTOR, _OUT1, INT, INT), caller(_MATRIX, _VECTOR, F64, _OUT2, INT, INT)


@kernel(INT, _VECTOR, _VECTOR, _OUT1, INT, parallel=True)
def _all_swiglu(some, gate, up, out, n_parts):
    """All elements, with the kernel at this address."""
    for p in prange(n_parts):
        call_swiglu(some, (gate, up, out, p * len(out) // n_parts, (p + 1) * len(out) // n_parts))


@kernel(INT, _MATRIX, _VECTOR, F64, _OUT2, INT, parallel=True)
def _all_rms_norm(some, x, weight, eps, out, n_parts):
    """All rows, with the kernel at this address."""
    for p in prange(n_parts):
        _call_rms_norm(some, (x, weight, eps, out, p * len(x) // n_parts, (p + 1) * len(x) // n_parts))


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """S8. The bits of `spec.rms_norm`: x (..., n), weight (n,) -> (..., n)."""
    x = np.ascontiguousarray(x)
    out, n = np.empty_like(x), x.shape[-1]
    rows, out_rows = x.reshape(-1, n), out.reshape(-1, n)
    if compile.n_threads() == 1 or x.size < PARALLEL_FROM:
        _rms_norm(rows, weight, eps, out_rows, 0, len(rows))
    else:
        _all_rms_norm(_rms_norm.address(), rows, weight, eps, out_rows, compile.start_threads())
    return out


def l2_norm(x: F32, eps: float) -> F32:
    """S9. The bits of `spec.l2_norm`: x (..., n) -> (..., n)."""
    x = np.ascontiguousarray(x)
    out, n = np.empty_like(x), x.shape[-1]
    _l2_norm(x.reshape(-1, n), eps, out.reshape(-1, n))
    return out


def gated_norm(o: F32, z: F32, weight: F32, eps: float) -> F32:
    """S14. The bits of `spec.gated_norm`: o, z (T, H_v, S), weight (S,) -> (T, H_v, S)."""
    o, z = np.ascontiguousarray(o), np.ascontiguousarray(z)
    out, n = np.empty_like(o), o.shape[-1]
    _gated_norm(o.reshape(-1, n), z.reshape(-1, n), weight, eps, out.reshape(-1, n))
    return out


def delta_gates(alpha: F32, beta: F32, dt_bias: F32, ssm_a: F32) -> tuple[F32, F32]:
    """S12. The bits of `spec.delta_gates`: alpha, beta (T, H_v) -> g, beta' (T, H_v)."""
    alpha, beta = np.ascontiguousarray(alpha), np.ascontiguousarray(beta)
    g, strength = np.empty_like(alpha), np.empty_like(alpha)
    _delta_gates(alpha, beta, dt_bias, ssm_a, g, strength)
    return g, strength


def attn_gate(o: F32, gate: F32) -> F32:
    """S17. The bits of `spec.attn_gate`: any equal shapes."""
    out = np.empty(o.shape, np.float32)
    _attn_gate(o.reshape(-1), gate.reshape(-1), out.reshape(-1))
    return out


def swiglu(gate: F32, up: F32) -> F32:
    """S18. The bits of `spec.swiglu`: any equal shapes."""
    out = np.empty(gate.shape, np.float32)
    flat = gate.reshape(-1), up.reshape(-1), out.reshape(-1)
    if compile.n_threads() == 1 or out.size < PARALLEL_FROM:
        swiglu_part(*flat, 0, out.size)
    else:
        _all_swiglu(swiglu_part.address(), *flat, compile.start_threads())
    return out


def limit_of(limit: float) -> np.float32:
    """A limit as `limited_part` takes it: what limits nothing is infinity."""
    return np.float32(limit if limit > LEAST_LIMIT else np.inf)


def clamped_swiglu(gate: F32, up: F32, limit: float) -> F32:
    """S79. The bits of `spec.clamped_swiglu`: any equal shapes."""
    gate, up = np.ascontiguousarray(gate), np.ascontiguousarray(up)
    out = np.empty(gate.shape, np.float32)
    limited_part(gate.reshape(-1), up.reshape(-1), limit_of(limit), out.reshape(-1), 0, out.size)
    return out
