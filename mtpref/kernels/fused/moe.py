"""S48, S92. An experts' network in one call: router, products (S6), swiglu (S18, S79 clamped), sum; S41 to S47.

Owns the fused twins of compose_moe.py's `moe_ffn` and compose_compressed.py's `clamped_experts`, which is given what
was chosen: pairs of a token and one of its experts are sorted by expert, and the
phases of expert_parts.py run one after the other. Stacks are read as panels or in place; types that are dequantised a
tile at a time run the composition.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from mtpref.kernels.compiling import compile
from mtpref.kernels.compiling.calls import caller
from mtpref.kernels.compiling.compile import FLAG, INT, helper, kernel
from mtpref.kernels.compiling.records import record
from mtpref.kernels.fused.expert_job import (
    BETWEEN,
    CHOSEN,
    F32,
    JOB,
    ORDER,
    PHASE,
    ROUTER,
    Between,
    Chosen,
    Job,
    Made,
    Order,
    Router,
    Where,
    put_between,
    put_chosen,
    put_job,
    put_net,
    put_order,
    put_router,
)
from mtpref.kernels.fused.expert_parts import enter_part, leave_part, prepare_part, route_part
from mtpref.kernels.fused.nets import NET, Net, net_of
from mtpref.kernels.layers.norms import limit_of, limited_part
from mtpref.kernels.products import mul_mats
from mtpref.kernels.products.mul_mats import PARALLEL_TOKENS
from mtpref.spec.moe import Routing
from mtpref.spec.ops.compose import discard
from mtpref.spec.products import Matrix, Stack

# Bytes of the scratch of a thread's down products: so many rows of all pairs at a time as fit.
SCRATCH = 4 << 20


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


_call_part = caller(*PHASE)


@kernel(INT, *PHASE, parallel=True)
def all_parts(part, where, n, n_parts):
    """All n_parts parts of the phase at this address, in as many threads; n is not used."""
    for p in prange(n_parts):
        _call_part(part, (where, p, n_parts))


_call_all = caller(INT, *PHASE)


class Parts(NamedTuple):
    """Addresses of the kernels that a call is made of."""

    all_parts: int
    route: int
    enter: int
    prepare: int
    leave: int


_PARTS = record(Parts, all_parts=INT, route=INT, enter=INT, prepare=INT, leave=INT)


@helper
def _run(all_parts, part, where, n_parts):
    if n_parts == 1:
        _call_part(part, (where, 0, 1))
    else:
        _call_all(all_parts, (part, where, n_parts, n_parts))


@kernel(_PARTS, *[NET] * 6, ROUTER, JOB, CHOSEN, ORDER, BETWEEN, BETWEEN, FLAG, FLAG, INT)
def _moe(
    parts,
    gate,
    up,
    down,
    shared_gate,
    shared_up,
    shared_down,
    router,
    job,
    chosen,
    order,
    between,
    shared,
    up_alike,
    shared_up_alike,
    n_parts,
):
    """An experts' network, given the router's logits, in n_parts threads."""
    where = Where(
        put_net(gate),
        put_net(up),
        put_net(down),
        put_net(shared_gate),
        put_net(shared_up),
        put_net(shared_down),
        put_router(router),
        put_job(job),
        put_chosen(chosen),
        put_order(order),
        put_between(between),
        put_between(shared),
        up_alike,
        shared_up_alike,
    )
    few = n_parts if len(job.x) >= PARALLEL_TOKENS else 1
    _run(parts.all_parts, parts.route, where, few)
    _sort(chosen.ids, order, job.n_expert)
    _run(parts.all_parts, parts.enter, where, n_parts)
    _run(parts.all_parts, parts.prepare, where, few)
    _run(parts.all_parts, parts.leave, where, n_parts)


# PYTHON'S SIDE

_NONE, _NO_LOGITS = np.empty(0, np.float32), np.empty((0, 0), np.float32)
_STACKS = tuple(f"ffn_{name}_exps.weight" for name in ("gate", "up", "down"))
_SHARED = tuple(f"ffn_{name}_shexp.weight" for name in ("gate", "up", "down"))


def _nets(matrices: list[Matrix | Stack], wide: bool) -> list[Net] | None:
    found = [net for net in (net_of(w, wide) for w in matrices) if net is not None]
    return found if len(found) == len(matrices) else None


def _are_alike(a: Net, b: Net) -> bool:
    """Whether the activations of one serve the other."""
    return (a.prepare, a.rows) == (b.prepare, b.rows)


def _made(net: Net, n_rows: int, n_in: int) -> Made:
    """Room for the activations of a product (`room` in kernels)."""
    n_words, n_sums = (n_in // n if n else 0 for n in (net.n_word, net.n_sum))
    scales = np.empty((n_rows, n_in // net.n_block), np.float32)
    return Made(np.empty((n_rows, n_words), np.int32), scales, np.empty((n_rows, n_sums), np.int32))


def _between(nets: list[Net], n_rows: int, x: F32, gate_in: Made | None = None) -> Between:
    gate, up, down = nets
    gate_in = gate_in or _made(gate, *x.shape)
    up_in = gate_in if _are_alike(gate, up) else _made(up, *x.shape)
    gated, upped = np.empty((2, n_rows, gate.n_out), np.float32)
    return Between(gate_in, up_in, gated, upped, _made(down, n_rows, gate.n_out))


def _stacks_of(w: Any, tap: Any, wide: bool) -> tuple[list[Net], list[Net] | None] | None:
    """The experts' networks and the shared expert's, if there is one; None where a tap looks on, or a type has no
    kernel."""
    is_usual = tap is discard and all(name in w for name in _STACKS) and "ffn_latent_down.weight" not in w
    nets = _nets([w[name] for name in _STACKS], wide) if is_usual else None
    if nets is None or "ffn_up_shexp.weight" not in w:
        return None if nets is None else (nets, None)
    shared = _nets([w[name] for name in _SHARED], wide)
    return None if shared is None else (nets, shared)


def _network(
    cfg: Any,
    x: F32,
    nets: list[Net],
    shared_nets: list[Net] | None,
    router: Router,
    logits: list[F32],
    chosen: Chosen,
    limits: tuple[np.float32, np.float32],
) -> F32:
    """Experts and the shared expert; the router's choice is made here, or given."""
    n_tokens, n_used = chosen.ids.shape
    n_pairs, has_shared = n_tokens * n_used, shared_nets is not None
    shared_nets = nets if shared_nets is None else shared_nets
    gate, up, down = nets
    y = np.empty((n_tokens, down.n_out), np.float32)
    n_ff_shared = shared_nets[0].n_out if has_shared else 0
    flags = has_shared, has_shared and len(logits) > 1
    sizes = gate.n_out, n_ff_shared
    job = Job(limited_part.address(), x, logits[0], logits[-1], y, *sizes, *flags, cfg.n_expert, *limits, SCRATCH)
    runs = np.empty((min(n_pairs, cfg.n_expert), 3), np.int64)
    order = Order(np.empty(n_pairs, np.int64), np.empty((n_tokens, n_used), np.int64), runs, np.empty(1, np.int64))
    between = _between(nets, n_pairs, x)
    shared = between
    if has_shared:
        shared = _between(shared_nets, n_tokens, x, between.gate_in if _are_alike(gate, shared_nets[0]) else None)
    alike = _are_alike(gate, up), _are_alike(*shared_nets[:2])
    is_small = compile.n_threads() == 1 or gate.n_out * x.size * n_used < mul_mats.PARALLEL_FROM
    n_parts = 1 if is_small else compile.start_threads()
    parts = Parts(all_parts.address(), *(one.address() for one in (route_part, enter_part, prepare_part, leave_part)))
    _moe(parts, *nets, *shared_nets, router, job, chosen, order, between, shared, *alike, n_parts)
    return y


def moe_ffn(ops: Any, w: Any, cfg: Any, x: F32, tap: Any, *, wide: bool) -> tuple[F32, Routing]:
    """The bits of `compose_moe.moe_ffn`. Where a tap looks on, or a type has no kernel, the composition runs."""
    found = _stacks_of(w, tap, wide)
    if found is None:
        result: tuple[F32, Routing] = ops.composed["moe_ffn"](ops, w, cfg, x, tap)
        return result
    x = np.ascontiguousarray(x)
    n_tokens, n_used = len(x), cfg.n_used
    gates = [w[name] for name in ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight") if name in w]
    logits = [ops.mul_mat(m, x) for m in gates] if wide else mul_mats.mul_mats(ops, gates, x)
    bias = w.get("exp_probs_b.bias", w.get("exp_probs_b"))
    router = Router(
        False,
        cfg.gating == "sigmoid",
        cfg.normalise,
        cfg.scale,
        cfg.n_group,
        cfg.n_group_used,
        bias is not None,
        _NONE if bias is None else bias,
    )
    chosen = Chosen(
        np.empty((n_tokens, n_used), np.int64),
        np.empty((n_tokens, n_used), np.float32),
        np.empty(n_tokens, np.float32),
    )
    y = _network(cfg, x, *found, router, logits, chosen, (limit_of(0.0), limit_of(0.0)))
    y = ops.scaled_output(y, cfg.sum_scale) if found[1] is not None else y
    return y, Routing(chosen.ids, chosen.gap)


def clamped_experts(ops: Any, w: Any, cfg: Any, x: F32, routing: Routing, weights: F32, tap: Any, *, wide: bool) -> F32:
    """The bits of `compose_compressed.clamped_experts`. Where a tap looks on, or a type has no kernel, the composition
    runs."""
    found = _stacks_of(w, tap, wide)
    if found is None or found[1] is None:
        result: F32 = ops.composed["clamped_experts"](ops, w, cfg, x, routing, weights, tap)
        return result
    x = np.ascontiguousarray(x)
    router = Router(True, False, False, 0.0, 1, 0, False, _NONE)
    chosen = Chosen(np.ascontiguousarray(routing.ids), np.ascontiguousarray(weights), routing.gap)
    limits = limit_of(cfg.clamp), limit_of(cfg.clamp_shared)
    return _network(cfg, x, *found, router, [_NO_LOGITS], chosen, limits)
