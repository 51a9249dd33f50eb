"""S48 in phases, each of which a thread does a part of: what an experts' network is made of, once it knows the logits.

Owns the split of the work: no sum is split, and a part writes what no other part does.

route    a range of tokens: S41 to S45, and the activation brought to the weights' type, once for all who read it
enter    groups of rows of the experts that somebody chose, and of the shared expert: gate, up, SwiGLU
prepare  a range of pairs: what goes into the experts' down products
leave    a range of output rows: down of every pair into a scratch, and then, token by token, the weighted sum in the
         order of choice, the shared expert last
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np

from mtpref.kernels.arithmetic.arith import sigmoid
from mtpref.kernels.arithmetic.floats import N_FLOATS, load16, plus, store, times
from mtpref.kernels.arithmetic.scalars import never_inline
from mtpref.kernels.arithmetic.vectors import ROWS
from mtpref.kernels.compiling.compile import helper, kernel
from mtpref.kernels.fused.expert_job import PHASE, between_at, chosen_at, job_at, net_at, order_at, router_at
from mtpref.kernels.fused.routing import route_tokens
from mtpref.kernels.layers.norms import call_limited
from mtpref.kernels.products.product import call_prepare, call_rows, room

# What a tile costs beside its tokens, in tokens: for one token a product waits for memory.
TILE_COST = 2


@helper
def _prepare(net, x, made, first, last):
    call_prepare(net.prepare, (x, net.is_unsigned, made.words, made.scales, made.sums, first, last))


@kernel(*PHASE)
def route_part(where, p, n_parts):
    """S5, S41 to S45. A range of tokens."""
    job, between = job_at(where.job), between_at(where.between)
    n_tokens = len(job.x)
    first, last = p * n_tokens // n_parts, (p + 1) * n_tokens // n_parts
    router = router_at(where.router)
    if not router.is_given:
        route_tokens(router, job.logits, chosen_at(where.chosen), first, last)
    gate = net_at(where.gate)
    _prepare(gate, job.x, between.gate_in, first, last)
    if not where.up_alike:
        _prepare(net_at(where.up), job.x, between.up_in, first, last)
    if job.has_shared:
        shared_gate, shared = net_at(where.shared_gate), between_at(where.shared)
        if shared_gate.prepare != gate.prepare or shared_gate.rows != gate.rows:
            _prepare(shared_gate, job.x, shared.gate_in, first, last)
        if not where.shared_up_alike:
            _prepare(net_at(where.shared_up), job.x, shared.up_in, first, last)


@helper
def _activations(at_net, x, made, tokens):
    """What was prepared of these tokens, beside each other: a view, copies, or for floats, whose tiles want the tokens
    of a tile beside each other, prepared once more."""
    never_inline()
    net = net_at(at_net)
    n, t, are_neighbours = len(tokens), tokens[0], True
    for i in range(1, n):  # a table of experts may send a token to one of them twice
        are_neighbours = are_neighbours and tokens[i] == t + i
    if are_neighbours and (n == len(x) or net.n_word > 0):
        return made.words[t : t + n], made.scales[t : t + n], made.sums[t : t + n]
    words, scales, sums = room(net, n, x.shape[1])
    if net.n_word > 0:
        for i in range(n):
            t = tokens[i]
            for k in range(words.shape[1]):
                words[i, k] = made.words[t, k]
            for k in range(scales.shape[1]):
                scales[i, k] = made.scales[t, k]
            for k in range(sums.shape[1]):
                sums[i, k] = made.sums[t, k]
        return words, scales, sums
    rows = np.empty((n, x.shape[1]), np.float32)
    for i in range(n):
        for k in range(x.shape[1]):
            rows[i, k] = x[tokens[i], k]
    call_prepare(net.prepare, (rows, net.is_unsigned, words, scales, sums, 0, n))
    return words, scales, sums


@helper
def _multiply(at_net, e, words, scales, sums, y, first, last):
    """S6. Groups first .. last - 1 of the matrix of expert e."""
    never_inline()
    net = net_at(at_net)
    start = e * net.stride
    call_rows(net.rows, (net.weights[start : start + net.n_bytes], words, scales, sums, y, first, last))


@helper
def _enter(at_gate, at_up, up_alike, at_between, e, tokens, x, start, swiglu, limit, first, last):
    """S6, S6, S79 (without a limit S18). Groups first .. last - 1 of the matrices of expert e for these tokens, whose
    pairs are from `start` on."""
    never_inline()
    between, n = between_at(at_between), len(tokens)
    gated, upped = between.gated[start : start + n], between.upped[start : start + n]
    words, scales, sums = _activations(at_gate, x, between.gate_in, tokens)
    _multiply(at_gate, e, words, scales, sums, gated, first, last)
    if not up_alike:
        words, scales, sums = _activations(at_up, x, between.up_in, tokens)
    _multiply(at_up, e, words, scales, sums, upped, first, last)
    to = min(gated.shape[1], ROWS * last)
    for i in range(n):
        call_limited(swiglu, (gated[i], upped[i], limit, gated[i], ROWS * first, to))


@helper
def _share(at, cost, n_groups, low, high):
    """Groups of a run that begins at this cost, each of it, which belong to the part from low to high: first, last."""
    return min(n_groups, max(0, -((at - low) // cost))), min(n_groups, max(0, -((at - high) // cost)))


@kernel(*PHASE)
def enter_part(where, p, n_parts):
    """S6, S18. Gate, up and SwiGLU of a share of all groups of rows, the shared expert's after the others'."""
    job, order = job_at(where.job), order_at(where.order)
    n_tokens, n_runs = len(job.x), order.n_runs[0]
    n_groups, n_shared = -(-job.n_ff // ROWS), -(-job.n_ff_shared // ROWS)
    total = n_shared * (n_tokens + TILE_COST)
    for j in range(n_runs):
        total += n_groups * (order.runs[j, 2] + TILE_COST)
    # A group belongs to the part in whose share of the cost it begins.
    low, high, at = p * total // n_parts, (p + 1) * total // n_parts, 0
    for j in range(n_runs):
        e, start, n = order.runs[j, 0], order.runs[j, 1], order.runs[j, 2]
        first, last = _share(at, n + TILE_COST, n_groups, low, high)
        at += n_groups * (n + TILE_COST)
        if first < last:
            _enter(
                where.gate,
                where.up,
                where.up_alike,
                where.between,
                e,
                order.tokens[start : start + n],
                job.x,
                start,
                job.swiglu,
                job.limit,
                first,
                last,
            )
    first, last = _share(at, n_tokens + TILE_COST, n_shared, low, high)
    if first < last:
        every = np.empty(n_tokens, np.int64)
        for t in range(n_tokens):
            every[t] = t
        _enter(
            where.shared_gate,
            where.shared_up,
            where.shared_up_alike,
            where.shared,
            0,
            every,
            job.x,
            0,
            job.swiglu,
            job.limit_shared,
            first,
            last,
        )


@kernel(*PHASE)
def prepare_part(where, p, n_parts):
    """S5. A range of pairs, then of the shared expert's tokens, for their down products."""
    order, between, down = order_at(where.order), between_at(where.between), net_at(where.down)
    n, made = len(order.tokens), between.down_in
    low, high = p * n // n_parts, (p + 1) * n // n_parts
    for j in range(order.n_runs[0]):
        start, end = order.runs[j, 1], order.runs[j, 1] + order.runs[j, 2]
        first, last = max(low, start), min(high, end)
        if first < last:
            words, scales, sums = made.words[start:end], made.scales[start:end], made.sums[start:end]
            args = between.gated[start:end], down.is_unsigned, words, scales, sums, first - start, last - start
            call_prepare(down.prepare, args)
    job = job_at(where.job)
    if job.has_shared:
        n_tokens, shared = len(job.x), between_at(where.shared)
        first, last = p * n_tokens // n_parts, (p + 1) * n_tokens // n_parts
        _prepare(net_at(where.shared_down), shared.gated, shared.down_in, first, last)


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
def _down(at_net, e, words, scales, sums, out, first, last):
    """S6. Groups first .. last - 1 of the matrix of expert e, as a matrix of its own."""
    never_inline()
    net = net_at(at_net)
    start = e * net.stride + first * net.group_bytes
    end = min(e * net.stride + net.n_bytes, e * net.stride + last * net.group_bytes)
    call_rows(net.rows, (net.weights[start:end], words, scales, sums, out, 0, last - first))


@kernel(*PHASE)
def leave_part(where, p, n_parts):
    """S6, S46, S47. A range of output rows: down products and the sum over experts."""
    job, order = job_at(where.job), order_at(where.order)
    made, rest = between_at(where.between).down_in, between_at(where.shared).down_in
    n_pairs, n_tokens, n_embd = len(order.tokens), len(job.x), job.y.shape[1]
    n_groups, n_shared = -(-n_embd // ROWS), n_tokens if job.has_shared else 0
    low, high = p * n_groups // n_parts, (p + 1) * n_groups // n_parts
    n_pieces = -(-(high - low) * n_pairs * 4 * ROWS // job.scratch)
    for c in range(n_pieces):
        first, last = low + c * (high - low) // n_pieces, low + (c + 1) * (high - low) // n_pieces
        n = min(n_embd, ROWS * last) - ROWS * first
        if n <= 0:
            continue
        scratch, of_shared = np.empty((n_pairs, n), np.float32), np.empty((n_shared, n), np.float32)
        for j in range(order.n_runs[0]):
            start, end = order.runs[j, 1], order.runs[j, 1] + order.runs[j, 2]
            _down(
                where.down,
                order.runs[j, 0],
                made.words[start:end],
                made.scales[start:end],
                made.sums[start:end],
                scratch[start:end],
                first,
                last,
            )
        if n_shared > 0:
            _down(where.shared_down, 0, rest.words, rest.scales, rest.sums, of_shared, first, last)
        _weighted_sum(scratch, of_shared, job, chosen_at(where.chosen), order, ROWS * first)
