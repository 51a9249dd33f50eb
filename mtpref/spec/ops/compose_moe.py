"""Coarse operations of an experts' network: route, experts, shared expert, and all three in a row.

Owns their order, and the cb() names under which a tap sees results; see compose.py.
"""

import numpy as np

from mtpref.spec.config import MoeConfig
from mtpref.spec.moe import Routing
from mtpref.spec.ops.table import Ops
from mtpref.spec.ops.types import F32, LayerTap, LayerWeights


def route(ops: Ops, w: LayerWeights, cfg: MoeConfig, x: F32, tap: LayerTap) -> tuple[F32, Routing]:
    """S48. Which experts a token goes to, and with which weights: S6, S41, S42, S43, S44, S43, S44, S45.

    Rule     groups are chosen first where there is more than one: S44 on their scores, then on the experts left
    Shapes   x: (T, n_embd), normalised -> weights (T, n_used), ids and gap. The gap is that of experts or of groups,
             whichever is less.
    """
    logits = ops.mul_mat(w["ffn_gate_inp.weight"], x)
    tap("ffn_moe_logits", logits)
    probs = ops.expert_probs(logits, cfg.gating)
    tap("ffn_moe_probs", probs)
    bias = w.get("exp_probs_b.bias", w.get("exp_probs_b"))
    scores = ops.expert_scores(probs, bias)
    if bias is not None:
        tap("ffn_moe_probs_biased", scores)
    gap = np.full(len(x), np.inf, np.float32)

    # GROUPS
    if cfg.n_group > 1:
        by_group = ops.group_scores(scores, cfg.n_group)
        groups = ops.select_experts(by_group, cfg.n_group_used)
        tap("ffn_moe_group_topk", groups)
        gap = ops.router_gap(by_group, groups)
        scores = ops.limit_groups(scores, groups, cfg.n_group)
        tap("ffn_moe_probs_masked", scores)

    # CHOICE, WEIGHTS
    ids = ops.select_experts(scores, cfg.n_used)
    tap("ffn_moe_topk", ids)
    gap = np.minimum(gap, ops.router_gap(scores, ids))
    tap("ffn_moe_gap", gap)
    weights = ops.expert_weights(probs, ids, cfg.normalise, cfg.scale)
    tap("ffn_moe_weights", weights)
    return weights, Routing(ids, gap)


def experts(ops: Ops, w: LayerWeights, x: F32, routing: Routing, weights: F32, tap: LayerTap) -> F32:
    """S48. The chosen experts' networks, weighed and added up in the order of choice. S6, S121, S6, S18, S6,
    S46.

    Rule     each expert runs over the rows of all tokens that chose it; a token's activation is quantised as for any
             product (S6), the same bits whoever reads it. Results go to their (token, place); only then they are added.
    Shapes   x: (T, n_embd), normalised; weights: (T, n_used) -> (T, n_embd)
    """
    chosen = routing.ids
    gates, ups, downs = w.get("ffn_gate_exps.weight"), w["ffn_up_exps.weight"], w["ffn_down_exps.weight"]
    n_ff, n_embd = ups[0].n_out, downs[0].n_out
    gate, up, hidden = (np.empty((*chosen.shape, n_ff), np.float32) for _ in range(3))
    y = np.empty((*chosen.shape, n_embd), np.float32)
    for e in np.unique(chosen):
        token, place = np.nonzero(chosen == e)
        up[token, place] = ops.mul_mat(ups[e], x[token])
        if gates is None:
            hidden[token, place] = ops.relu_squared(up[token, place])
        else:
            gate[token, place] = ops.mul_mat(gates[e], x[token])
            hidden[token, place] = ops.swiglu(gate[token, place], up[token, place])
        y[token, place] = ops.mul_mat(downs[e], hidden[token, place])
    if gates is not None:
        tap("ffn_moe_gate", gate)
    tap("ffn_moe_up", up)
    tap("ffn_moe_relu_sqr" if gates is None else "ffn_moe_swiglu", hidden)
    tap("ffn_moe_down", y)
    weighted = ops.weigh_experts(y, weights)
    tap("ffn_moe_weighted", weighted)
    return ops.sum_experts(weighted)


def shared_expert(ops: Ops, w: LayerWeights, x: F32, tap: LayerTap) -> F32:
    """S48. The expert that every token goes to, gated where the model has a gate for it. S6, S121, S6, S18, S6, S47.

    Shapes   x: (T, n_embd), normalised -> (T, n_embd)
    """
    up = ops.mul_mat(w["ffn_up_shexp.weight"], x)
    if "ffn_gate_shexp.weight" not in w:
        hidden = ops.relu_squared(up)
    else:
        gate = ops.mul_mat(w["ffn_gate_shexp.weight"], x)
        hidden = ops.swiglu(gate, up)
    y = ops.mul_mat(w["ffn_down_shexp.weight"], hidden)
    tap("ffn_shexp", y)
    if "ffn_gate_inp_shexp.weight" not in w:
        return y
    logit = ops.mul_mat(w["ffn_gate_inp_shexp.weight"], x)
    tap("shared_expert_gate", logit)
    y = ops.shared_gate(y, logit)
    tap("ffn_shexp_gated", y)
    return y


def moe_ffn(ops: Ops, w: LayerWeights, cfg: MoeConfig, x: F32, tap: LayerTap) -> tuple[F32, Routing]:
    """S48. An experts' network: experts, then the shared expert added last. S48, S6, S48, S6, S48, S97.

    Rule     experts without a gate have S121 in place of S18; with ffn_latent_down and ffn_latent_up they work on
             narrower rows (S6 before and after them), which router and shared expert do not. Where the network has a
             scale of the sum (a half: the mean of both), it goes over it
    Shapes   x: (T, n_embd), normalised -> (T, n_embd), and what the router chose
    """
    weights, routing = ops.route(ops, w, cfg, x, tap)
    is_narrow = "ffn_latent_down.weight" in w
    low = ops.mul_mat(w["ffn_latent_down.weight"], x) if is_narrow else x
    y = ops.experts(ops, w, low, routing, weights, tap)
    tap("ffn_moe_out", y)
    y = ops.mul_mat(w["ffn_latent_up.weight"], y) if is_narrow else y
    if "ffn_up_shexp.weight" in w:
        shared = ops.shared_expert(ops, w, x, tap)
        y = ops.scaled_output(y + shared, cfg.sum_scale)
    tap("ffn_out", y)
    return y, routing
