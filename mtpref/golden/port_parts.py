"""The answers of cases of blocks whose parts stand alone or side by side, of layer norms, of Mamba-2 and of experts
without a gate."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mtpref.engine.recipe import Recipe
from mtpref.golden.format import param_float
from mtpref.golden.inputs import Answer, Inputs, Outputs, f32, matrix, weights_of
from mtpref.golden.port_experts import moe_config
from mtpref.golden.taps import Tap
from mtpref.spec.config import SsmConfig
from mtpref.spec.kinds import Around, NormedAfter, Parallel, Residual, Single
from mtpref.spec.kinds.unturned import turned_width
from mtpref.spec.moe import Routing
from mtpref.spec.ops.compose import layer_normed_ops, scaled_head
from mtpref.spec.ops.compose_ssm import head_normed_ops

Params = Mapping[str, Any]
NORM = "attn_norm.weight"
BLOCKS: dict[str, Residual] = {
    "parallel": Parallel(NORM),
    "mixer": Single(NORM, True),
    "network": Single(NORM, False),
    "normed_after": NormedAfter("ffn_norm.weight"),
    "normed_after_alone": NormedAfter(""),  # the network norms its rows itself
}


def _model_norm(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """The norm of a model that has layer norms in place of RMS norms."""
    ops = layer_normed_ops(recipe.ops)
    return {"y": ops.rms_norm(f32(x["x"]), f32(x["weight"]), param_float(params, "eps"))}


def _head_norm(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """The last norm of a head that has a layer norm there alone. rms_eps: of its other norms"""
    ops = head_normed_ops(recipe.ops, param_float(params, "eps"))
    return {"y": ops.mtp_norm(ops, f32(x["x"]), f32(x["weight"]), param_float(params, "rms_eps"))}


def _scaled_head(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    output = matrix("output.weight", x["output.weight"])
    return {"logits": scaled_head(recipe.ops, output, f32(x["x"]), None, param_float(params, "scale"))}


def _turned_width(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """How many dimensions turn in layers of these windows; 0: none."""
    n_rot, turns_all = int(params["n_rot"]), bool(params["turns_all"])
    return {"n": [turned_width(n_rot, int(n_window), turns_all) for n_window in params["n_window"]]}


def _relu_squared(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"y": recipe.ops.relu_squared(f32(x["x"]))}


def _conv_bias_silu(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"y": recipe.ops.conv_bias_silu(f32(x["window"]), f32(x["weight"]), f32(x["bias"]))}


def _ssm_scan(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    rows, b, c, dt, a, state = (f32(x[name]) for name in ("x", "b", "c", "dt", "a", "state"))
    y, states = recipe.ops.ssm_scan(rows, b, c, dt, a, state, int(params["keep"]))
    return {"y": y, "states": states}


def _gated_group_norm(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    y, rows, d, z, weight = (f32(x[name]) for name in ("y", "x", "d", "z", "weight"))
    groups = weight.reshape(int(params["n_group"]), -1)
    return {"y": recipe.ops.gated_group_norm(y, rows, d, z, groups, param_float(params, "eps"))}


# ----------------------------------------------------------------------------------------------------------- layers


def _ssm_layer(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """After the raw rows and the state that earlier tokens left."""
    d_conv, d_inner, d_state, n_head, n_group = (
        int(params[name]) for name in ("d_conv", "d_inner", "d_state", "n_head", "n_group")
    )
    cfg = SsmConfig(0, d_conv, d_inner, d_state, n_head, n_group, param_float(params, "eps"))
    own = {name: f32(x[name]) for name in ("x", "conv_states", "state_prescan", "ssm_norm.weight")}
    w = weights_of({name: one for name, one in x.items() if name not in own})
    w["ssm_norm.weight"], tap = own["ssm_norm.weight"].reshape(n_group, -1), Tap()
    rows, conv, state = own["x"], own["conv_states"], own["state_prescan"]
    y, windows, states = recipe.ops.ssm_layer(recipe.ops, w, cfg, rows, conv, state, int(params["keep"]), tap)
    return tap.kept | {"mamba_out": y, "conv": windows, "states": states}


def _plain_moe_ffn(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """Experts without a gate, on narrower rows where there are projections."""
    tap = Tap()
    y, routing = recipe.ops.moe_ffn(recipe.ops, weights_of(x), moe_config(params), f32(x["x"]), tap)
    return _of_experts(tap, routing, y)


def _averaged_moe_ffn(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """The mean of the experts' and the shared expert's results."""
    cfg, tap = replace(moe_config(params), sum_scale=0.5), Tap()
    y, routing = recipe.ops.moe_ffn(recipe.ops, weights_of(x), cfg, f32(x["x"]), tap)
    return _of_experts(tap, routing, y)


def _of_experts(tap: Tap, routing: Routing, y: Any) -> Outputs:
    return tap.kept | {"ids": [int(i) for i in routing.ids.reshape(-1)], "ffn_out": y}


def _block(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """A block around two parts that are products. layer_norms: those in place of RMS norms"""
    ops = layer_normed_ops(recipe.ops) if params.get("layer_norms", False) else recipe.ops
    w, tap = weights_of(x), Tap()
    around = Around(ops, w, param_float(params, "eps"), inputs=f32(x["inputs"]) if "inputs" in x else None)
    parts = (lambda h: ops.mul_mat(w["mixer.weight"], h), lambda h: ops.mul_mat(w["network.weight"], h))
    y = BLOCKS[str(params["block"])](f32(x["x"]), around, *parts, tap)
    return tap.kept | {"l_out": y}


PARTS_ANSWERS: dict[str, Answer] = {
    "model_norm": _model_norm,
    "head_norm": _head_norm,
    "scaled_head": _scaled_head,
    "turned_width": _turned_width,
    "relu_squared": _relu_squared,
    "conv_bias_silu": _conv_bias_silu,
    "ssm_scan": _ssm_scan,
    "gated_group_norm": _gated_group_norm,
    "ssm_layer": _ssm_layer,
    "plain_moe_ffn": _plain_moe_ffn,
    "averaged_moe_ffn": _averaged_moe_ffn,
    "block": _block,
}
