"""S48, and S6, S18, S41 to S47 in it: an experts' network from router to output, in one call.

Owns the fused twin of compose_moe.py's `moe_ffn`. Pairs of a token and one of its experts are sorted by expert; each
phase of the work is split over threads by rows of the experts' matrices, and no sum is split:

route    a range of tokens: S41 to S45, and the activation brought to the weights' type, once for all who read it
enter    groups of rows of the experts that somebody chose, and of the shared expert: gate, up, SwiGLU
prepare  a range of pairs: what goes into the experts' down products
leave    a range of output rows: down of every pair into a scratch, and then, token by token, the weighted sum in the
         order of choice, the shared expert last

Stacks are read as panels or in place; types that are dequantised a tile at a time run the composition.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels.arithmetic.arith import sigmoid
from mtpref.kernels.arithmetic.floats import N_FLOATS, load16, plus, store, times
from mtpref.kernels.arithmetic.vectors import ROWS
from mtpref.kernels.compiling import compile
from mtpref.kernels.compiling.calls import caller, in_memory
from mtpref.kernels.compiling.compile import F64, FLAG, INT, helper, kernel, source, target
from mtpref.kernels.compiling.records import record
from mtpref.kernels.fused.routing import route_tokens
from mtpref.kernels.layers.norms import call_swiglu, swiglu_part
from mtpref.kernels.products import float_rows, in_place, mul_mats
from mtpref.kernels.products.mul_mats import PARALLEL_TOKENS
from mtpref.kernels.products.packed import PackedMatrix, PackedStack
from mtpref.kernels.products.product import OUT, WEIGHTS, How, X, call_prepare, call_rows
from mtpref.spec.moe import Routing
from mtpref.spec.ops.compose import discard
from mtpref.spec.products import Matrix, Stack

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

# Bytes of the scratch of a thread's down products: so many rows of all pairs at a time as fit.
SCRATCH = 4 << 20
# What a tile costs beside its tokens, in tokens: for one token a product waits for memory.
TILE_COST = 2

_IDS, _IDS2 = target(types.int64, 1), target(types.int64, 2)
_MADE = target(types.int32, 2)


class Net(NamedTuple):
    """One projection of the experts, or of the shared expert: `How` its products run, and where its rows are.

    weights      all matrices of the stack, as panels or raw bytes
    stride       bytes from one matrix to the next    n_bytes: of one    group_bytes: of ROWS of its rows
    """

    prepare: int
    rows: int
    is_unsigned: bool
    n_word: int
    n_block: int
    n_sum: int
    weights: U8
    stride: int
    n_bytes: int
    group_bytes: int
    n_out: int


class Nets(NamedTuple):
    """The projections; those of a shared expert that is not there are those of the experts.

    up_alike    whether gate's prepared activations serve up
    """

    gate: Net
    up: Net
    down: Net
    up_alike: bool


class Router(NamedTuple):
    """S41 to S45 of a model. bias: (n_expert,) or empty."""

    is_sigmoid: bool
    normalise: bool
    scale: float
    n_group: int
    n_group_used: int
    has_bias: bool
    bias: F32


class Chosen(NamedTuple):
    """ids and weights (T, n_used), gap (T,)."""

    ids: NDArray[np.int64]
    weights: F32
    gap: F32


class Order(NamedTuple):
    """Pairs sorted by expert. tokens: of each pair; place: (T, n_used), where a pair went; runs: (n, 3), for each expert
    that was chosen its id, its first pair and how many; n_runs: (1,)"""

    tokens: NDArray[np.int64]
    place: NDArray[np.int64]
    runs: NDArray[np.int64]
    n_runs: NDArray[np.int64]


class Made(NamedTuple):
    """Words, scales and sums of activations (product.py)."""

    words: NDArray[np.int32]
    scales: F32
    sums: NDArray[np.int32]


class Between(NamedTuple):
    """Activations for gate and up, the results of both, and what goes into down."""

    gate_in: Made
    up_in: Made
    gated: F32
    upped: F32
    down_in: Made


class Job(NamedTuple):
    """All of a call but the weights. x: (T, n_embd); logits: (T, n_expert); shared_logit: (T, 1), empty without a gate;
    y: (T, n_embd)"""

    swiglu: int
    x: F32
    logits: F32
    shared_logit: F32
    y: F32
    has_shared: bool
    has_gate: bool


_NET = record(Net, prepare=INT, rows=INT, is_unsigned=FLAG, n_word=INT, n_block=INT, n_sum=INT, weights=WEIGHTS,
              stride=INT, n_bytes=INT, group_bytes=INT, n_out=INT)  # fmt: skip
_NETS = record(Nets, gate=_NET, up=_NET, down=_NET, up_alike=FLAG)
_ROUTER = record(Router, is_sigmoid=FLAG, normalise=FLAG, scale=F64, n_group=INT, n_group_used=INT, has_bias=FLAG,
                 bias=source(types.float32, 1))  # fmt: skip
_CHOSEN = record(Chosen, ids=_IDS2, weights=OUT, gap=target(types.float32, 1))
_ORDER = record(Order, tokens=_IDS, place=_IDS2, runs=_IDS2, n_runs=_IDS)
_SET = record(Made, words=_MADE, scales=OUT, sums=_MADE)
_BETWEEN = record(Between, gate_in=_SET, up_in=_SET, gated=OUT, upped=OUT, down_in=_SET)
_JOB = record(Job, swiglu=INT, x=X, logits=X, shared_logit=X, y=OUT, has_shared=FLAG, has_gate=FLAG)

_ARGS = (_NETS, _NETS, _ROUTER, _JOB, _CHOSEN, _ORDER, _BETWEEN, _BETWEEN)
_address_of, _args_at = in_memory(types.Tuple(_ARGS))
# Part p of n_parts of a phase; its arguments lie in memory.
_PHASE = INT, INT, INT


@helper
def _room(net, n_tokens, n_in):
    """Memory for the words, scales and sums of an activation."""
    n_words, n_sums = n_in // net.n_word if net.n_word > 0 else 0, n_in // net.n_sum if net.n_sum > 0 else 0
    scales = np.empty((n_tokens, n_in // net.n_block), np.float32)
    return np.empty((n_tokens, n_words), np.int32), scales, np.empty((n_tokens, n_sums), np.int32)


@helper
def _prepare(net, x, made, first, last):
    call_prepare(net.prepare, (x, net.is_unsigned, made.words, made.scales, made.sums, first, last))


@kernel(*_PHASE)
def route_part(args, p, n_parts):
    """S41 to S45, S5. A range of tokens."""
    nets, shared_nets, router, job, chosen, order, between, shared = _args_at(args)
    n_tokens = len(job.x)
    first, last = p * n_tokens // n_parts, (p + 1) * n_tokens // n_parts
    route_tokens(router, job.logits, chosen, first, last)
    _prepare(nets.gate, job.x, between.gate_in, first, last)
    if not nets.up_alike:
        _prepare(nets.up, job.x, between.up_in, first, last)
    if job.has_shared:
        if shared_nets.gate.prepare != nets.gate.prepare or shared_nets.gate.rows != nets.gate.rows:
            _prepare(shared_nets.gate, job.x, shared.gate_in, first, last)
        if not shared_nets.up_alike:
            _prepare(shared_nets.up, job.x, shared.up_in, first, last)


@helper
def _sort(ids, order, n_expert):
    """Fill `order`: by expert, and by token for one expert."""
    n_tokens, n_used = ids.shape
    starts = np.zeros(n_expert + 1, np.int64)
    for t in range(n_tokens):
        for k in range(n_used):
            starts[ids[t, k] + 1] += 1
    n_runs = 0
    for e in range(n_expert):
        if starts[e + 1] > 0:
            order.runs[n_runs, 0], order.runs[n_runs, 1], order.runs[n_runs, 2] = e, starts[e], starts[e + 1]
            n_runs += 1
        starts[e + 1] += starts[e]
    order.n_runs[0] = n_runs
    for t in range(n_tokens):
        for k in range(n_used):
            at = starts[ids[t, k]]
            starts[ids[t, k]] = at + 1
            order.tokens[at], order.place[t, k] = t, at


@helper
def _one(net, e):
    """The matrix of expert e."""
    return net.weights[e * net.stride : e * net.stride + net.n_bytes]


@helper
def _gathered(net, x, made, tokens):
    """The activations of these tokens beside each other: copies of what was prepared, or for floats, whose tiles want
    the tokens of a tile beside each other, prepared for them."""
    n = len(tokens)
    words, scales, sums = _room(net, n, x.shape[1])
    if net.n_word > 0:
        for i in range(n):
            t = tokens[i]
            words[i], scales[i], sums[i] = made.words[t], made.scales[t], made.sums[t]
    else:
        rows = np.empty((n, x.shape[1]), np.float32)
        for i in range(n):
            rows[i] = x[tokens[i]]
        call_prepare(net.prepare, (rows, net.is_unsigned, words, scales, sums, 0, n))
    return words, scales, sums


@helper
def _swiglu(address, gated, upped, first, last, from_row, to_row):
    """S18. In place, rows from_row .. to_row - 1 of the pairs first .. last - 1."""
    for i in range(first, last):
        call_swiglu(address, (gated[i], upped[i], gated[i], from_row, to_row))


@kernel(*_PHASE)
def enter_part(args, p, n_parts):
    """S6, S18. Gate, up and SwiGLU of a share of all groups of rows, the shared expert's after the others'."""
    nets, shared_nets, router, job, chosen, order, between, shared = _args_at(args)
    n_tokens, n_runs, n_ff = len(job.x), order.n_runs[0], nets.gate.n_out
    n_groups, n_shared = -(-n_ff // ROWS), -(-shared_nets.gate.n_out // ROWS) if job.has_shared else 0
    total = n_shared * (n_tokens + TILE_COST)
    for j in range(n_runs):
        total += n_groups * (order.runs[j, 2] + TILE_COST)
    # A group belongs to the part in whose share of the cost it begins.
    low, high, at = p * total // n_parts, (p + 1) * total // n_parts, 0
    for j in range(n_runs):
        e, start, n = order.runs[j]
        cost = n + TILE_COST
        first, last = min(n_groups, max(0, -((at - low) // cost))), min(n_groups, max(0, -((at - high) // cost)))
        at += n_groups * cost
        if first >= last:
            continue
        end = start + n
        tokens, gated, upped = order.tokens[start:end], between.gated[start:end], between.upped[start:end]
        gate, up, t = _one(nets.gate, e), _one(nets.up, e), tokens[0]
        is_run = tokens[n - 1] - t == n - 1
        if n == n_tokens or (is_run and nets.gate.n_word > 0):
            one = between.gate_in
            call_rows(
                nets.gate.rows,
                (gate, one.words[t : t + n], one.scales[t : t + n], one.sums[t : t + n], gated, first, last),
            )
        else:
            words, scales, sums = _gathered(nets.gate, job.x, between.gate_in, tokens)
            call_rows(nets.gate.rows, (gate, words, scales, sums, gated, first, last))
            if nets.up_alike:
                call_rows(nets.up.rows, (up, words, scales, sums, upped, first, last))
        if n == n_tokens or (is_run and nets.up.n_word > 0):
            one = between.gate_in if nets.up_alike else between.up_in
            call_rows(
                nets.up.rows,
                (up, one.words[t : t + n], one.scales[t : t + n], one.sums[t : t + n], upped, first, last),
            )
        elif not nets.up_alike:
            words, scales, sums = _gathered(nets.up, job.x, between.up_in, tokens)
            call_rows(nets.up.rows, (up, words, scales, sums, upped, first, last))
        _swiglu(job.swiglu, between.gated, between.upped, start, end, ROWS * first, min(n_ff, ROWS * last))
    if job.has_shared:
        cost = n_tokens + TILE_COST
        first, last = min(n_shared, max(0, -((at - low) // cost))), min(n_shared, max(0, -((at - high) // cost)))
        if first < last:
            one = shared.gate_in
            call_rows(
                shared_nets.gate.rows,
                (_one(shared_nets.gate, 0), one.words, one.scales, one.sums, shared.gated, first, last),
            )
            one = shared.gate_in if shared_nets.up_alike else shared.up_in
            call_rows(
                shared_nets.up.rows,
                (_one(shared_nets.up, 0), one.words, one.scales, one.sums, shared.upped, first, last),
            )
            to = min(shared_nets.gate.n_out, ROWS * last)
            _swiglu(job.swiglu, shared.gated, shared.upped, 0, n_tokens, ROWS * first, to)


@kernel(*_PHASE)
def prepare_part(args, p, n_parts):
    """S5. A range of pairs, then of the shared expert's tokens, for their down products."""
    nets, shared_nets, router, job, chosen, order, between, shared = _args_at(args)
    n, made = len(order.tokens), between.down_in
    low, high = p * n // n_parts, (p + 1) * n // n_parts
    for j in range(order.n_runs[0]):
        start, end = order.runs[j, 1], order.runs[j, 1] + order.runs[j, 2]
        first, last = max(low, start), min(high, end)
        if first < last:
            call_prepare(
                nets.down.prepare,
                (
                    between.gated[start:end],
                    nets.down.is_unsigned,
                    made.words[start:end],
                    made.scales[start:end],
                    made.sums[start:end],
                    first - start,
                    last - start,
                ),
            )
    if job.has_shared:
        n_tokens = len(job.x)
        _prepare(
            shared_nets.down, shared.gated, shared.down_in, p * n_tokens // n_parts, (p + 1) * n_tokens // n_parts
        )


@helper
def _weighted_sum(scratch, of_shared, job, chosen, order, at):
    """S46, S47. Columns `at` on of y, as many as the scratch (pairs, n) has."""
    n, n_used = scratch.shape[1], chosen.ids.shape[1]
    n_embd, whole = job.y.shape[1], n // N_FLOATS * N_FLOATS
    weights, place = chosen.weights, order.place
    for t in range(len(job.x)):
        by = sigmoid(job.shared_logit[t, 0]) if job.has_gate else np.float32(1)
        for i in range(0, whole, N_FLOATS):
            total = times(load16(scratch, place[t, 0] * n + i), weights[t, 0])
            for k in range(1, n_used):
                total = plus(total, times(load16(scratch, place[t, k] * n + i), weights[t, k]))
            if job.has_shared:
                last = load16(of_shared, t * n + i)
                total = plus(total, times(last, by)) if job.has_gate else plus(total, last)
            store(job.y, t * n_embd + at + i, total)
        for i in range(whole, n):
            y = scratch[place[t, 0], i] * weights[t, 0]
            for k in range(1, n_used):
                y = y + scratch[place[t, k], i] * weights[t, k]
            if job.has_shared:
                y = y + of_shared[t, i] * by if job.has_gate else y + of_shared[t, i]
            job.y[t, at + i] = y


@helper
def _down(net, e, words, scales, sums, out, first, last):
    """S6. Groups first .. last - 1 of the matrix of expert e, as a matrix of its own."""
    start = e * net.stride + first * net.group_bytes
    end = min(e * net.stride + net.n_bytes, e * net.stride + last * net.group_bytes)
    call_rows(net.rows, (net.weights[start:end], words, scales, sums, out, 0, last - first))


@kernel(*_PHASE)
def leave_part(args, p, n_parts):
    """S6, S46, S47. A range of output rows: down products and the sum over experts."""
    nets, shared_nets, router, job, chosen, order, between, shared = _args_at(args)
    n_pairs, n_tokens, n_embd = len(order.tokens), len(job.x), job.y.shape[1]
    n_groups = -(-n_embd // ROWS)
    low, high = p * n_groups // n_parts, (p + 1) * n_groups // n_parts
    n_pieces = -(-(high - low) * n_pairs * 4 * ROWS // SCRATCH)
    made, rest = between.down_in, shared.down_in
    for c in range(n_pieces):
        first, last = low + c * (high - low) // n_pieces, low + (c + 1) * (high - low) // n_pieces
        if first == last:
            continue
        n = min(n_embd, ROWS * last) - ROWS * first
        scratch, of_shared = np.empty((n_pairs, n), np.float32), np.empty((n_tokens if job.has_shared else 0, n), np.float32)
        for j in range(order.n_runs[0]):
            start, end = order.runs[j, 1], order.runs[j, 1] + order.runs[j, 2]
            _down(nets.down, order.runs[j, 0], made.words[start:end], made.scales[start:end], made.sums[start:end],
                  scratch[start:end], first, last)  # fmt: skip
        if job.has_shared:
            _down(shared_nets.down, 0, rest.words, rest.scales, rest.sums, of_shared, first, last)
        _weighted_sum(scratch, of_shared, job, chosen, order, ROWS * first)


_call_part = caller(*_PHASE)


@kernel(*_PHASE, parallel=True)
def all_parts(part, args, n_parts):
    """All parts of the phase at this address, in as many threads."""
    for p in prange(n_parts):
        _call_part(part, (args, p, n_parts))


_call_all = caller(*_PHASE)


class Parts(NamedTuple):
    """Addresses of the kernels that a call is made of."""

    all_parts: int
    route: int
    enter: int
    prepare: int
    leave: int


_PARTS = record(Parts, all_parts=INT, route=INT, enter=INT, prepare=INT, leave=INT)


@helper
def _run(all_parts, part, args, n_parts):
    if n_parts == 1:
        _call_part(part, (args, 0, 1))
    else:
        _call_all(all_parts, (part, args, n_parts))


@kernel(_PARTS, *_ARGS, INT)
def _moe(parts, nets, shared_nets, router, job, chosen, order, between, shared, n_parts):
    """An experts' network, given the router's logits, in n_parts threads."""
    args = _address_of((nets, shared_nets, router, job, chosen, order, between, shared))
    few = n_parts if len(job.x) >= PARALLEL_TOKENS else 1
    _run(parts.all_parts, parts.route, args, few)
    _sort(chosen.ids, order, job.logits.shape[1])
    _run(parts.all_parts, parts.enter, args, n_parts)
    _run(parts.all_parts, parts.prepare, args, few)
    _run(parts.all_parts, parts.leave, args, n_parts)


# PYTHON'S SIDE

_NONE = np.empty(0, np.float32)
_STACKS = tuple(f"ffn_{name}_exps.weight" for name in ("gate", "up", "down"))
_SHARED = tuple(f"ffn_{name}_shexp.weight" for name in ("gate", "up", "down"))


@cache
def _how(type_name: str, in_panels: bool, wide: bool) -> How | None:
    """How products of this type run, its kernels compiled; None where no kernel reads its rows."""
    if wide:
        known = in_place.EXACT_PRODUCTS
    else:
        known = mul_mats.PRODUCTS if in_panels else in_place.PRODUCTS | float_rows.PRODUCTS
    return known[type_name].how() if type_name in known else None


def _net(w: Matrix | Stack, wide: bool) -> Net | None:
    panels = w.panels if isinstance(w, PackedMatrix | PackedStack) and not wide else None
    how = _how(w.type_name, panels is not None, wide)
    if how is None:
        return None
    rows = w.raw if panels is None else panels
    rows = rows if rows.ndim == 2 else rows[None]
    n, n_bytes = rows.shape
    n_groups = -(-w.n_out // ROWS)
    group_bytes = n_bytes // w.n_out * ROWS if panels is None else n_bytes // n_groups
    stride = rows.strides[0] if n > 1 else n_bytes
    return Net(*how, _flat(rows, stride), stride, n_bytes, group_bytes, w.n_out)


def _flat(rows: U8, stride: int) -> U8:
    """All bytes from the first matrix to the last: a view; matrices of fused stacks have others' rows in between."""
    if rows.flags.c_contiguous:
        return rows.reshape(-1)
    return np.lib.stride_tricks.as_strided(rows, ((len(rows) - 1) * stride + rows.shape[1],), (1,), writeable=False)


def _nets(matrices: list[Matrix | Stack], wide: bool) -> Nets | None:
    gate, up, down = (_net(w, wide) for w in matrices)
    if gate is None or up is None or down is None:
        return None
    return Nets(gate, up, down, (gate.prepare, gate.rows) == (up.prepare, up.rows))


def _made(net: Net, n_rows: int, n_in: int) -> Made:
    """Room for the activations of a product (`_room` in kernels)."""
    n_words, n_sums = (n_in // n if n else 0 for n in (net.n_word, net.n_sum))
    scales = np.empty((n_rows, n_in // net.n_block), np.float32)
    return Made(np.empty((n_rows, n_words), np.int32), scales, np.empty((n_rows, n_sums), np.int32))


def _between(nets: Nets, n_rows: int, x: F32, gate_in: Made | None = None) -> Between:
    gate_in = gate_in or _made(nets.gate, *x.shape)
    up_in = gate_in if nets.up_alike else _made(nets.up, *x.shape)
    gated, upped = np.empty((2, n_rows, nets.gate.n_out), np.float32)
    return Between(gate_in, up_in, gated, upped, _made(nets.down, n_rows, nets.gate.n_out))


def moe_ffn(ops: Any, w: Any, cfg: Any, x: F32, tap: Any, *, wide: bool) -> tuple[F32, Routing]:
    """The bits of `compose_moe.moe_ffn`. Where a tap looks on, or a stack's type has no kernel, the composition runs."""
    nets = None if tap is not discard else _nets([w[name] for name in _STACKS], wide)
    has_shared = "ffn_up_shexp.weight" in w
    shared_nets = _nets([w[name] for name in _SHARED], wide) if has_shared else nets
    if nets is None or shared_nets is None:
        result: tuple[F32, Routing] = ops.composed["moe_ffn"](ops, w, cfg, x, tap)
        return result
    x = np.ascontiguousarray(x)
    n_tokens, n_used = len(x), cfg.n_used
    n_pairs = n_tokens * n_used
    gates = [w[name] for name in ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight") if name in w]
    logits = [ops.mul_mat(m, x) for m in gates] if wide else mul_mats.mul_mats(ops, gates, x)
    bias = w.get("exp_probs_b.bias", w.get("exp_probs_b"))
    router = Router(cfg.gating == "sigmoid", cfg.normalise, cfg.scale, cfg.n_group, cfg.n_group_used,
                    bias is not None, _NONE if bias is None else bias)  # fmt: skip
    y = np.empty((n_tokens, nets.down.n_out), np.float32)
    has_gate = has_shared and len(gates) > 1
    job = Job(swiglu_part.address(), x, logits[0], logits[-1], y, has_shared, has_gate)
    ids, places = np.empty((2, n_tokens, n_used), np.int64)
    chosen = Chosen(ids, np.empty((n_tokens, n_used), np.float32), np.empty(n_tokens, np.float32))
    runs = np.empty((min(n_pairs, cfg.n_expert), 3), np.int64)
    order = Order(np.empty(n_pairs, np.int64), places, runs, np.empty(1, np.int64))
    between = _between(nets, n_pairs, x)
    shared = between
    if has_shared:
        is_alike = (nets.gate.prepare, nets.gate.rows) == (shared_nets.gate.prepare, shared_nets.gate.rows)
        shared = _between(shared_nets, n_tokens, x, between.gate_in if is_alike else None)
    n_parts = 1 if compile.n_threads() == 1 or _work(nets, x, n_used) < mul_mats.PARALLEL_FROM else compile.start_threads()
    parts = Parts(all_parts.address(), *(one.address() for one in (route_part, enter_part, prepare_part, leave_part)))
    _moe(parts, nets, shared_nets, router, job, chosen, order, between, shared, n_parts)
    return y, Routing(ids, chosen.gap)


def _work(nets: Nets, x: F32, n_used: int) -> int:
    """Multiplications and additions of the gate product."""
    return nets.gate.n_out * x.size * n_used
