"""S11, S9, S12, S13, S14 in one kernel: what a gated DeltaNet layer does between its products.

Owns the fused twin of compose.py's `delta_layer`; where mul_mats.py has the products, they are in the same call.
One task is a key head with the value heads that read it: its channels are convolved, normalised, run through the rule
and gated a few tokens at a time, while they are in the cache. Tasks do not read each other, so they are split over
threads in one parallel region.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels.arithmetic.arith import exp, one_over_root, sigmoid, softplus
from mtpref.kernels.arithmetic.floats import N_FLOATS, four_taps, load16, silu16, store, times
from mtpref.kernels.arithmetic.lanes import lane_sum_products
from mtpref.kernels.arithmetic.scalars import never_inline
from mtpref.kernels.compiling import compile
from mtpref.kernels.compiling.calls import caller
from mtpref.kernels.compiling.compile import F64, FLAG, INT, helper, kernel, source, target
from mtpref.kernels.compiling.records import record
from mtpref.kernels.layers.delta import PARALLEL_FROM, TOKENS_IN_CACHE
from mtpref.kernels.layers.delta_rows import delta_tokens
from mtpref.kernels.layers.norms import scale32
from mtpref.kernels.products import mul_mats
from mtpref.kernels.products.mul_mats import all_products, call_products, how, weights_of
from mtpref.kernels.products.product import HOW, WEIGHTS
from mtpref.spec.ops.compose import discard

F32 = NDArray[np.float32]

N_TAPS = 4
# Tokens of a batch up to which states between tokens are made when asked for.
MOST_LATE = 64
MATRICES = "attn_qkv.weight", "attn_gate.weight", "ssm_beta.weight", "ssm_alpha.weight", "ssm_out.weight"


@helper
def _convolve(qkv, conv, weight, channel, first, last, wide, out):
    """S11. out[t - first] = conv_silu of the channels from `channel` on, for tokens first .. last - 1: out (n, S)."""
    never_inline()
    n_channels, size = qkv.shape[1], out.shape[1]
    for t in range(first, last):
        for i in range(0, size, N_FLOATS):
            c = channel + i
            # Rows t - 3 .. t of the window: those before the batch are the state's.
            x0 = load16(conv, t * n_channels + c) if t < 3 else load16(qkv, (t - 3) * n_channels + c)
            x1 = load16(conv, (t + 1) * n_channels + c) if t < 2 else load16(qkv, (t - 2) * n_channels + c)
            x2 = load16(conv, (t + 2) * n_channels + c) if t < 1 else load16(qkv, (t - 1) * n_channels + c)
            x3 = load16(qkv, t * n_channels + c)
            store(out, (t - first) * size + i, silu16(four_taps(x0, x1, x2, x3, weight, c, wide)))


@helper
def _normalise(rows, n, eps):
    """S9. l2_norm of the first n rows, in place."""
    size = rows.shape[1]
    for r in range(n):
        scale = scale32(lane_sum_products(rows, r * size, rows, r * size, size), eps)
        for i in range(0, size, N_FLOATS):
            store(rows, r * size + i, times(load16(rows, r * size + i), scale))


@helper
def _gate_outputs(out, z, at, step, weight, first, last, eps):
    """S14. gated_norm of one head's outputs, in place; token t's begin at out.flat[at + t * step]."""
    never_inline()
    size = len(weight)
    for t in range(first, last):
        k = at + t * step
        scale = scale32(lane_sum_products(out, k, out, k, size) / np.float64(size), eps)
        for i in range(0, size, N_FLOATS):
            normed = times(times(load16(out, k + i), scale), load16(weight, i))
            store(out, k + i, times(normed, silu16(load16(z, k + i))))


class Projections(NamedTuple):
    """What the products of a layer give for each token: (T, channels), (T, H_v S), and (T, H_v) twice."""

    qkv: F32
    z: F32
    beta: F32
    alpha: F32


class Weights(NamedTuple):
    """Weights that are no matrices of products: (channels, 4), (H_v), (H_v), (S)."""

    conv1d: F32
    dt: F32
    a: F32
    norm: F32


class Before(NamedTuple):
    """The state before the batch: raw rows of the convolution (3, channels), and the matrices (H_v, S, S)."""

    conv: F32
    ssm: F32


class Sizes(NamedTuple):
    """Numbers of a layer. wide: dot64; scale: 1 / sqrt(S)."""

    n_k_head: int
    eps: float
    wide: bool
    scale: np.float32


_MATRIX, _VECTOR, _OUT = source(types.float32, 2), source(types.float32, 1), target(types.float32, 2)
_STATES = target(types.float32, 4)
_PROJECTIONS = record(Projections, qkv=_MATRIX, z=_MATRIX, beta=_MATRIX, alpha=_MATRIX)
_WEIGHTS = record(Weights, conv1d=_MATRIX, dt=_VECTOR, a=_VECTOR, norm=_VECTOR)
_BEFORE = record(Before, conv=_MATRIX, ssm=source(types.float32, 3))
_SIZES = record(Sizes, n_k_head=INT, eps=F64, wide=FLAG, scale=types.float32)
_ARGS = (_PROJECTIONS, _WEIGHTS, _BEFORE, _SIZES, _OUT, _STATES)


@kernel(*_ARGS, INT, INT)
def _delta_groups(given, weights, before, sizes, out, states, first, last):
    """Key heads first .. last - 1 with their value heads, all tokens: what goes to the output projection, and the
    states after the last tokens."""
    qkv, conv, state = given.qkv, before.conv, before.ssm
    n_k_head, eps, wide = sizes.n_k_head, sizes.eps, sizes.wide
    n_tokens, n_heads, size = len(qkv), state.shape[0], state.shape[2]
    q, k, v = (
        np.empty((TOKENS_IN_CACHE, size), np.float32),
        np.empty((TOKENS_IN_CACHE, size), np.float32),
        np.empty((TOKENS_IN_CACHE, size), np.float32),
    )
    decay, strength = np.empty(TOKENS_IN_CACHE, np.float32), np.empty(TOKENS_IN_CACHE, np.float32)
    step = n_heads * size
    for k_head in range(first, last):
        for start in range(0, n_tokens, TOKENS_IN_CACHE):
            end = min(n_tokens, start + TOKENS_IN_CACHE)
            _convolve(qkv, conv, weights.conv1d, k_head * size, start, end, wide, q)
            _convolve(qkv, conv, weights.conv1d, (n_k_head + k_head) * size, start, end, wide, k)
            _normalise(q, end - start, eps)
            _normalise(k, end - start, eps)
            for h in range(k_head, n_heads, n_k_head):
                _convolve(qkv, conv, weights.conv1d, (2 * n_k_head + h) * size, start, end, wide, v)
                for t in range(start, end):
                    decay[t - start] = exp(softplus(given.alpha[t, h] + weights.dt[h]) * weights.a[h])
                    strength[t - start] = sigmoid(given.beta[t, h])
                delta_tokens(state, states, h, start, end, n_tokens, q, k, v, (size, size), 0, 0, decay, strength, wide,
                             sizes.scale, out, h * size, step)  # fmt: skip
                _gate_outputs(out, given.z, h * size, step, weights.norm, start, end, eps)


_call_groups = caller(*_ARGS, INT, INT)


@kernel(INT, *_ARGS, INT, parallel=True)
def _all_delta_groups(groups, given, weights, before, sizes, out, states, n_parts):
    """All key heads, with the kernel at this address."""
    n = sizes.n_k_head
    for p in prange(n_parts):
        first, last = p * n // n_parts, (p + 1) * n // n_parts
        _call_groups(groups, (given, weights, before, sizes, out, states, first, last))


_call_all_groups = caller(INT, *_ARGS, INT)


class Parts(NamedTuple):
    """Addresses of the kernels that a layer is made of."""

    products: int
    all_groups: int
    groups: int


class Matrices(NamedTuple):
    """What `weights_of` gives for each; z, beta and alpha are of one type."""

    qkv: Any
    z: Any
    beta: Any
    alpha: Any
    out: Any


class Made(NamedTuple):
    """Room for what a layer makes: what goes to its output projection (T, H_v S), what `_window` gives for all tokens,
    the states after the last tokens (keep, H_v, S, S), and the output (T, n_embd)."""

    out: F32
    window: F32
    states: F32
    y: F32


_PARTS = record(Parts, products=INT, all_groups=INT, groups=INT)
_MATRICES = record(Matrices, qkv=WEIGHTS, z=WEIGHTS, beta=WEIGHTS, alpha=WEIGHTS, out=WEIGHTS)
_PROJECTED = record(Projections, qkv=_OUT, z=_OUT, beta=_OUT, alpha=_OUT)
_MADE = record(Made, out=_OUT, window=_OUT, states=_STATES, y=_OUT)


@kernel(_PARTS, HOW, HOW, HOW, _MATRICES, _MATRIX, _WEIGHTS, _BEFORE, _SIZES, _PROJECTED, _MADE, INT)
def _whole_layer(parts, how_qkv, how_gates, how_out, w, x, weights, before, sizes, to, made, n_parts):
    """All of a layer, in all threads; `to` is room for its projections."""
    conv, out, y = before.conv, made.out, made.y
    n_tokens, n_before = len(x), len(conv)
    if how_qkv.rows == how_gates.rows:
        call_products(
            parts.products, (how_qkv, 4, (w.qkv, w.z, w.beta, w.alpha), x, (to.qkv, to.z, to.beta, to.alpha), n_parts)
        )
    else:
        call_products(
            parts.products, (how_qkv, 1, (w.qkv, w.qkv, w.qkv, w.qkv), x, (to.qkv, to.qkv, to.qkv, to.qkv), n_parts)
        )
        call_products(
            parts.products,
            (how_gates, 3, (w.z, w.beta, w.alpha, w.alpha), x, (to.z, to.beta, to.alpha, to.alpha), n_parts),
        )
    _call_all_groups(parts.all_groups, (parts.groups, to, weights, before, sizes, out, made.states, n_parts))
    for i in range(n_before):
        t = n_tokens - n_before + i
        for c in range(conv.shape[1]):
            made.window[i, c] = to.qkv[t, c] if t >= 0 else conv[n_before + t, c]
    call_products(parts.products, (how_out, 1, (w.out, w.out, w.out, w.out), out, (y, y, y, y), n_parts))


class LatePlanes:
    """States after each of the last `keep` tokens, each made when it is asked for: planes[i] is a float32 array.

    Writing all of them costs more memory traffic than the layer itself, and most are never read. Plane -1 is there
    already; another one is made by running the tokens up to it again, which gives the same bits.
    """

    def __init__(self, last: F32, keep: int, make: Callable[[int], F32], n_bytes_behind: int) -> None:
        """make(n): the state without the last n tokens, from arrays of n_bytes_behind bytes."""
        self.shape, self.dtype, self.ndim = (keep, *last.shape), last.dtype, 1 + last.ndim
        self._last, self._make = last, make
        self.nbytes = last.nbytes + n_bytes_behind

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, i: int) -> F32:
        keep = len(self)
        if not -keep <= i < keep:
            raise IndexError(f"plane {i} of {keep}")
        n_dropped = keep - 1 - i % keep
        return self._last if n_dropped == 0 else self._make(n_dropped)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(np.stack([self[i] for i in range(len(self))]), dtype)


def _window(conv: F32, qkv: F32, n_dropped: int) -> F32:
    """The raw rows that precede the next token, without the last n_dropped tokens."""
    end = len(qkv) - n_dropped
    if end >= len(conv):
        return qkv[end - len(conv) : end].copy()
    return np.concatenate([conv[end:], qkv[:end]])


def delta_layer(
    ops: Any, w: Any, cfg: Any, x: F32, conv: F32, ssm: F32, keep: int, tap: Any, *, wide: bool
) -> tuple[F32, Any, Any]:
    """The bits of `compose.delta_layer`. Where a tap looks on, or for sizes that do not occur, the composition runs.

    The states of a short batch are LatePlanes: a long one would have to keep its projections for them.
    """
    n_k_head, n_v_head, size = cfg.n_k_head, cfg.n_v_head, cfg.d_state
    n_tokens = len(x)
    n_taps = w["ssm_conv1d.weight"].shape[1]
    is_usual = n_taps == N_TAPS and size % 32 == 0 and n_v_head % n_k_head == 0 and 1 <= keep <= n_tokens
    is_usual = is_usual and not cfg.is_grouped and all(name in w for name in MATRICES)
    if tap is not discard or not is_usual:
        y, windows, states = ops.composed["delta_layer"](ops, w, cfg, x, conv, ssm, keep, tap)
        return y, windows, states
    conv, ssm = np.ascontiguousarray(conv), np.ascontiguousarray(ssm)
    weights = Weights(w["ssm_conv1d.weight"], w["ssm_dt.bias"], w["ssm_a"], w["ssm_norm.weight"])
    before, sizes = Before(conv, ssm), Sizes(n_k_head, cfg.rms_eps, wide, one_over_root(size))
    is_late = keep > 1 and n_tokens <= MOST_LATE
    n_kept = 1 if is_late else keep
    matrices = [w[name] for name in MATRICES]
    read = [weights_of(m) for m in matrices]
    if not wide and all(m is not None for m in read) and _is_whole(matrices, x):
        *rows, y = (np.empty((n_tokens, m.n_out), np.float32) for m in matrices)
        projections = Projections(*rows)
        out, states = _room(n_tokens, ssm, n_kept)
        window = np.empty_like(conv)
        parts = Parts(all_products.address(), _all_delta_groups.address(), _delta_groups.address())
        hows = (how(matrices[i].type_name) for i in (0, 1, 4))
        given = Matrices(*read), np.ascontiguousarray(x), weights, before, sizes
        _whole_layer(parts, *hows, *given, projections, Made(out, window, states, y), compile.start_threads())
    else:
        first = matrices[:4]
        projections = Projections(*([ops.mul_mat(m, x) for m in first] if wide else mul_mats.mul_mats(ops, first, x)))
        out, states = _mix(projections, weights, before, sizes, n_tokens, n_kept)
        window = _window(conv, projections.qkv, 0)
        y = ops.mul_mat(matrices[-1], out)
    if keep == 1:
        return y, window[None], states
    qkv = projections.qkv
    if not is_late:
        return y, np.stack([_window(conv, qkv, n) for n in range(keep - 1, -1, -1)]), states
    n_behind = ssm.nbytes + sum(projection.nbytes for projection in projections)

    def without(n: int) -> F32:
        return _mix(projections, weights, before, sizes, n_tokens - n, 1)[1][0]

    windows = LatePlanes(window, keep, lambda n: _window(conv, qkv, n), conv.nbytes)
    return y, windows, LatePlanes(states[0], keep, without, n_behind)


def _is_whole(matrices: Sequence[Any], x: F32) -> bool:
    """Whether one kernel takes the whole layer: the gates are of one type, and it is worth all threads."""
    if len({m.type_name for m in matrices[1:4]}) > 1:
        return False
    return compile.n_threads() > 1 and matrices[0].n_out * x.size >= mul_mats.PARALLEL_FROM


def _room(n_tokens: int, ssm: F32, n_kept: int) -> tuple[F32, F32]:
    out = np.empty((n_tokens, ssm.shape[0] * ssm.shape[2]), np.float32)
    return out, np.empty((n_kept, *ssm.shape), np.float32)


def _mix(
    projections: Projections, weights: Weights, before: Before, sizes: Sizes, n: int, n_kept: int
) -> tuple[F32, F32]:
    """The first n tokens: what goes to the output projection, and the states after the last n_kept of them."""
    out, states = _room(n, before.ssm, n_kept)
    args = Projections(*(rows[:n] for rows in projections)), weights, before, sizes, out, states
    if compile.n_threads() == 1 or n * before.ssm.size < PARALLEL_FROM:
        _delta_groups(*args, 0, sizes.n_k_head)
    else:
        _all_delta_groups(_delta_groups.address(), *args, compile.start_threads())
    return out, states
