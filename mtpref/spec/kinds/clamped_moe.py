"""Experts whose products are clamped, chosen by a router or by token id. Its numerics are
mtpref/spec/ops/compose_compressed.py (S91, S92) and the router of compose_moe.py (S48)."""

from dataclasses import replace

import numpy as np

from mtpref import spec
from mtpref.base.errors import MtprefError, UnsupportedError
from mtpref.spec.config import MoeConfig, Values
from mtpref.spec.kinds.kind import F32, Graph, LayerKind, Made, Span, no_state
from mtpref.spec.kinds.moe_ffn import GRAPH
from mtpref.spec.ops import LayerTap, LayerWeights
from mtpref.spec.state import LayerState

SQRT_SOFTPLUS = 4  # number of expert_gating_func


def _configure(v: Values) -> MoeConfig:
    func = v["expert_gating_func"]
    if func != SQRT_SOFTPLUS:
        raise UnsupportedError(
            f"{v.meta.source}: {v.meta.arch}.expert_gating_func is {func}, expected {SQRT_SOFTPLUS} (sqrt of softplus)"
        )
    if v["n_expert_used"] > v["n_expert"]:
        raise MtprefError(
            f"{v.meta.source}: key {v.meta.arch}.expert_used_count is {v['n_expert_used']}, expected at most "
            f"expert_count = {v['n_expert']}; try: mtpref inspect FILE"
        )
    counts = v["n_embd"], v["n_expert"], v["n_expert_used"]
    weights = "sqrt_softplus", v["expert_weights_norm"], v["expert_weights_scale"]
    return MoeConfig(*counts, *weights, 1, 0, v["clamp_exp"], v["clamp_shexp"])


def _forward(w: LayerWeights, cfg: MoeConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    ops = span.ops
    weights, routing = ops.route(ops, w, cfg, x, tap)
    span.routings.append(routing)
    return ops.clamped_experts(ops, w, cfg, x, routing, weights, tap)


def _forward_by_token(w: LayerWeights, cfg: MoeConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    ops = span.ops
    if span.tokens is None:
        raise ValueError("a layer that is routed by token ids, and no ids")
    weights, routing = ops.route_by_token(ops, w, cfg, x, np.asarray(span.tokens), tap)
    span.routings.append(routing)
    return ops.clamped_experts(ops, w, cfg, x, routing, weights, tap)


_SHARED = "ffn_shexp"
_LEFT_OUT = ("ffn_moe_group_topk", "ffn_moe_probs_masked", "ffn_moe_gate_up", "shared_expert_gate", "ffn_shexp_gated")
_kept = {name: made for name, made in GRAPH.items() if name not in _LEFT_OUT}
_CLAMPED: dict[str, Made] = {
    "ffn_moe_probs": replace(_kept["ffn_moe_probs"], step="square root of softplus, expert by expert"),
    "ffn_moe_swiglu": replace(
        _kept["ffn_moe_swiglu"], step="silu(gate) * up, both clamped before it", rules=(spec.clamped_swiglu,)
    ),
    "ffn_shexp": replace(_kept["ffn_shexp"], rules=(spec.mul_mat_exact, spec.clamped_swiglu), instead=None),
    "ffn_out": replace(_kept["ffn_out"], inputs=("ffn_moe_out", _SHARED), step="sum of the experts' and the shared"),
}
_BY_SCORE = {
    "ffn_moe_topk": replace(_kept["ffn_moe_topk"], inputs=("ffn_moe_probs_biased",)),
    "ffn_moe_gap": replace(_kept["ffn_moe_gap"], inputs=("ffn_moe_probs_biased", "ffn_moe_topk")),
}
_ROUTED: Graph = _kept | _CLAMPED | _BY_SCORE
_HASHED: Graph = {name: made for name, made in _ROUTED.items() if name != "ffn_moe_probs_biased"} | {
    "ffn_moe_topk": Made((), "the row of blk.{i}.ffn_gate_tid2eid.weight of the token", (spec.hashed_experts,)),
    "ffn_moe_gap": Made(("ffn_moe_topk",), "infinite: no other choice is near"),
}
CLAMPED_MOE_FFN = LayerKind("moe_ffn", _configure, no_state, _forward, _ROUTED, frozenset({"route", "clamped_experts"}))
HASHED_MOE_FFN = LayerKind(
    "hashed_moe_ffn", _configure, no_state, _forward_by_token, _HASHED, frozenset({"route_by_token", "clamped_experts"})
)
