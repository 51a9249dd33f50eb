"""The answers of cases of Kimi delta attention, and of RoPE whose sections lie one after the other."""

from collections.abc import Mapping
from typing import Any

from mtpref import spec
from mtpref.engine.recipe import Recipe
from mtpref.golden.format import param_float
from mtpref.golden.inputs import Answer, Inputs, Outputs, f32

Params = Mapping[str, Any]


def _channel_gates(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    f, beta, dt_bias, a = (f32(x[name]) for name in ("f", "beta", "dt_bias", "ssm_a"))
    g, beta = recipe.ops.channel_gates(f, beta, dt_bias, a, param_float(params, "lower_bound"))
    return {"g": g, "beta_sigmoid": beta}


def _channel_delta_rule(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    q, k, v, g, beta, state = (f32(x[name]) for name in ("q", "k", "v", "g", "beta", "state"))
    out, states = recipe.ops.channel_delta_rule(q, k, v, g, beta, state, int(params["keep"]))
    return {"o": out, "states": states}


def _sigmoid_gated_norm(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    o, z, weight = (f32(x[name]) for name in ("o", "z", "weight"))
    return {"y": recipe.ops.sigmoid_gated_norm(o, z, weight, param_float(params, "eps"))}


def _rope_by_sections(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    n_rot, (a, b, c, d) = int(params["n_rot"]), map(int, params["sections"])
    frequencies = spec.rope_frequencies(n_rot, param_float(params, "freq_base"))
    table = recipe.ops.rope_table(x["pos"].values(), frequencies, spec.mrope_has_position(n_rot, (a, b, c, d)))
    return {"y": recipe.ops.rope(f32(x["x"]), *table)}


CHANNELS_ANSWERS: dict[str, Answer] = {
    "channel_gates": _channel_gates,
    "channel_delta_rule": _channel_delta_rule,
    "sigmoid_gated_norm": _sigmoid_gated_norm,
    "rope_by_sections": _rope_by_sections,
}
