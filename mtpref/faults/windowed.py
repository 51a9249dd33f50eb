"""Family A, attention layers with windows, sinks and gates of heads; and the limits of networks beside them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.model import Model
from mtpref.engine.model.model import Layer
from mtpref.faults.fault import Fault, all_ops, broken
from mtpref.faults.places import windowed_layers
from mtpref.spec import load_kv, silu, store_kv
from mtpref.spec.ops import OpEntries, Ops

F32 = NDArray[np.float32]


def _sink_takes_value(ops: Ops) -> OpEntries:
    def cell_attention(q: F32, k: NDArray, v: NDArray, sinks: F32 | None, kv_type: str) -> F32:
        out = ops.cell_attention(q, k, v, sinks, kv_type)
        ones = store_kv(np.ones(v.shape, np.float32), kv_type)
        share = 1 - ops.cell_attention(q, k, ones, sinks, kv_type)
        oldest = np.repeat(load_kv(v, kv_type)[0], len(q) // v.shape[1], axis=0)
        return np.asarray(out + share * oldest, np.float32)

    return {"cell_attention": cell_attention}


SINK_WITH_VALUE = Fault(
    id="A13-sink-with-a-value",
    title="A sink has a value: that of the oldest cell",
    mechanism="The sink is taken for one more cell, in front of the others. It has a share of the weights and no "
    "value; here the oldest cell's value is counted for it.",
    bug_type="WRONG_RULE",
    replaces=("ops.cell_attention",),
    predicted=broken("kqv_out"),
    where=("sinks beside keys and values",),
    needs=(),
    apply_recipe=all_ops(_sink_takes_value),
)


def _gated_by_raw_rows(ops: Ops) -> OpEntries:
    last: dict[str, Any] = {}

    def rms_norm(x: F32, weight: F32, eps: float) -> F32:
        y = ops.rms_norm(x, weight, eps)
        if x.ndim == 2:
            last.update(raw=x, normed=y)
        return y

    def layer(table: Ops, w: Any, cfg: Any, x: F32, *rest: Any) -> F32:
        gated = table
        if last.get("normed") is x and "attn_gate.weight" in w:
            gate = table.mul_mat(w["attn_gate.weight"], last["raw"])
            gated = table.replaced(head_gate=lambda o, logit: table.head_gate(o, gate))
        return ops.composed["windowed_attn_layer"](gated, w, cfg, x, *rest)

    return {"rms_norm": rms_norm, "windowed_attn_layer": layer}


GATE_OF_RAW_ROWS = Fault(
    id="A14-gate-of-raw-rows",
    title="The heads' gate reads the layer's row before its norm",
    mechanism="attn_gate is multiplied with the residual row instead of what attn_norm makes of it: the logits have "
    "another scale, and no gain per channel.",
    bug_type="MISSING_STEP",
    replaces=("ops.rms_norm", "ops.windowed_attn_layer"),
    predicted=broken("attn_gated"),
    where=("gates of heads",),
    needs=(),
    apply_recipe=all_ops(_gated_by_raw_rows),
)

HEAD_GATE_SKIPPED = Fault(
    id="A14b-head-gate-skipped",
    title="The heads' gate is not applied",
    mechanism="attn_gate is loaded and not used: every head goes into attn_output as it is.",
    bug_type="MISSING_STEP",
    replaces=("ops.head_gate",),
    predicted=broken("attn_gated"),
    where=("gates of heads",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"head_gate": lambda o, logit: o}),
)


def _with_layers(change: Callable[[Layer, Any], Layer]) -> Callable[[Model], Model]:
    """Other layers in trunk and heads. change: is given the layer and the configuration of one with a window."""

    def apply(model: Model) -> Model:
        windowed = windowed_layers(model)[0].cfg
        for i, head in enumerate(model.heads):
            model = model.with_head(i, layer=change(head.layer, windowed))
        return replace(model, layers=tuple(change(layer, windowed) for layer in model.layers))

    return apply


def _turning_all(layer: Layer, windowed: Any) -> Layer:
    return layer if layer.cfg.n_window else replace(layer, cfg=replace(layer.cfg, n_rot=windowed.n_rot))


FULL_LAYERS_TURN_ALL = Fault(
    id="A15-full-layers-turn-all",
    title="Layers without a window turn the whole width",
    mechanism="rope.dimension_count is the width that layers with a window turn; those without turn half of it.",
    bug_type="WRONG_RULE",
    replaces=("layers", "heads.layer"),
    predicted=broken("Qcur_pos"),
    where=("half rotary",),
    needs=(),
    apply_model=_with_layers(_turning_all),
)


def _of_one_base(model: Model) -> Model:
    full = next(layer.cfg.freq_base for layer in model.layers if not layer.cfg.n_window)

    def change(layer: Layer, _: Any) -> Layer:
        return replace(layer, cfg=replace(layer.cfg, freq_base=full)) if layer.cfg.n_window else layer

    return _with_layers(change)(model)


ONE_BASE = Fault(
    id="A15b-one-base",
    title="Layers with a window turn by the base of those without",
    mechanism="rope.freq_base_swa is not read: every layer has the frequencies of rope.freq_base.",
    bug_type="WRONG_RULE",
    replaces=("layers", "heads.layer"),
    predicted=broken("Qcur"),
    where=("two bases",),
    needs=(),
    apply_model=_of_one_base,
)

VALUES_UNSCALED = Fault(
    id="A16-values-unscaled",
    title="The scale of attention's values is forgotten",
    mechanism="attention.value_scale is not applied: what attention adds to the row is too large.",
    bug_type="MISSING_STEP",
    replaces=("ops.scaled_output",),
    predicted=broken("attn_out_scaled"),
    where=("value scale",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"scaled_output": lambda y, scale: y}),
)


def _limited_first(gate: F32, up: F32, limit: float) -> F32:
    most = np.float32(limit)
    return silu(np.minimum(gate, most)) * np.clip(up, -most, most)


LIMIT_BEFORE_SILU = Fault(
    id="E15-limit-before-silu",
    title="The gate is limited before silu",
    mechanism="silu(min(gate, limit)) instead of min(silu(gate), limit). The two part only where a gate is greater "
    "than the limit.",
    bug_type="WRONG_RULE",
    replaces=("ops.limited_swiglu",),
    predicted=broken("ffn_swiglu"),
    where=("limits",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"limited_swiglu": _limited_first}),
)

LIMITS_FORGOTTEN = Fault(
    id="E15b-limits-forgotten",
    title="The limits of feed-forward networks are forgotten",
    mechanism="swiglu_clamp_exp and swiglu_clamp_shexp are not read: large activations stay as they are.",
    bug_type="MISSING_STEP",
    replaces=("ops.limited_swiglu",),
    predicted=broken("ffn_swiglu"),
    where=("limits",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"limited_swiglu": lambda gate, up, limit: ops.swiglu(gate, up)}),
)
