"""The answers of cases of experts: router, selection, weights, shared expert, what layers do to projections."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtpref.engine.recipe import Recipe
from mtpref.golden.format import param_float
from mtpref.golden.inputs import Answer, Inputs, Outputs, f32, weights_of
from mtpref.golden.taps import Tap
from mtpref.spec.config import MoeConfig
from mtpref.spec.moe import IDS

Params = Mapping[str, Any]


def _ids(x: Inputs, name: str) -> IDS:
    return np.asarray(x[name].values(), np.int64)


def _expert_probs(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"p": recipe.ops.expert_probs(f32(x["logits"]), str(params["gating"]))}


def _expert_scores(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"scores": recipe.ops.expert_scores(f32(x["p"]), f32(x["bias"]) if "bias" in x else None)}


def _group_scores(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"scores": recipe.ops.group_scores(f32(x["scores"]), int(params["n_group"]))}


def _limit_groups(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"scores": recipe.ops.limit_groups(f32(x["scores"]), _ids(x, "groups"), int(params["n_group"]))}


def _select_experts(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """Ids of all tokens, token by token."""
    ids = recipe.ops.select_experts(f32(x["scores"]), int(params["n_used"]))
    return {"ids": [int(i) for i in ids.reshape(-1)]}


def _expert_weights(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    normalise, scale = bool(params["normalise"]), param_float(params, "scale")
    return {"w": recipe.ops.expert_weights(f32(x["p"]), _ids(x, "ids"), normalise, scale)}


def _sum_experts(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"y": recipe.ops.sum_experts(recipe.ops.weigh_experts(f32(x["results"]), f32(x["w"])))}


def _shared_gate(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"y": recipe.ops.shared_gate(f32(x["x"]), f32(x["logit"]))}


def _add_bias(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"y": recipe.ops.add_bias(f32(x["x"]), f32(x["bias"]))}


def _repeat_heads(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"y": recipe.ops.repeat_heads(f32(x["x"]), int(params["n_head"]))}


def _split_beta_alpha(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    beta, alpha = recipe.ops.split_beta_alpha(f32(x["ba"]), int(params["n_k_heads"]))
    return {"beta": beta, "alpha": alpha}


def _split_qkvz(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    qkv, z = recipe.ops.split_qkvz(f32(x["qkvz"]), int(params["n_k_heads"]), int(params["d_state"]))
    return {"qkv": qkv, "z": z}


def moe_config(params: Params) -> MoeConfig:
    """An experts' network as the case's parameters say; widths and counts of experts are the tensors'."""
    return MoeConfig(
        0, 0, int(params["n_used"]), str(params["gating"]), bool(params["normalise"]), param_float(params, "scale"),
        int(params.get("n_group", 1)), int(params.get("n_group_used", 1)),
    )  # fmt: skip


def _route(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    tap = Tap()
    weights, routing = recipe.ops.route(recipe.ops, weights_of(x), moe_config(params), f32(x["x"]), tap)
    return tap.kept | {"ids": [int(i) for i in routing.ids.reshape(-1)], "w": weights}


def _moe_ffn(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    tap = Tap()
    y, routing = recipe.ops.moe_ffn(recipe.ops, weights_of(x), moe_config(params), f32(x["x"]), tap)
    return tap.kept | {"ids": [int(i) for i in routing.ids.reshape(-1)], "ffn_out": y}


EXPERTS_ANSWERS: dict[str, Answer] = {
    "expert_probs": _expert_probs,
    "expert_scores": _expert_scores,
    "group_scores": _group_scores,
    "limit_groups": _limit_groups,
    "select_experts": _select_experts,
    "expert_weights": _expert_weights,
    "sum_experts": _sum_experts,
    "shared_gate": _shared_gate,
    "add_bias": _add_bias,
    "repeat_heads": _repeat_heads,
    "split_beta_alpha": _split_beta_alpha,
    "split_qkvz": _split_qkvz,
    "route": _route,
    "moe_ffn": _moe_ffn,
}
