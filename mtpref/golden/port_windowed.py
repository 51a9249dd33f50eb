"""The answers of cases of windows, sinks, gates of heads, limited networks, and of a chain of heads."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtpref import spec
from mtpref.engine.recipe import Recipe
from mtpref.golden.format import param_float
from mtpref.golden.inputs import Answer, Inputs, Outputs, f32, weights_of
from mtpref.golden.port_experts import moe_config
from mtpref.golden.taps import Tap
from mtpref.spec.config import WindowedConfig
from mtpref.spec.contract import parse_contract
from mtpref.spec.kinds.kind import Span
from mtpref.spec.ops.compose_windowed import limited_ops
from mtpref.spec.rope_scaling import RopeScaling, freq_scale_of

Params = Mapping[str, Any]


def _divided_rope(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """S10 by frequencies that S94 divides."""
    n_rot = int(params["n_rot"])
    frequencies = spec.rope_frequencies(n_rot, param_float(params, "freq_base"))
    frequencies = spec.divided_frequencies(frequencies, f32(x["factors"]))
    table = recipe.ops.rope_table(x["pos"].values(), frequencies, np.ones(n_rot // 2, np.bool_))
    return {"y": recipe.ops.rope(f32(x["x"]), *table)}


def _cell_attention(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    kv_type = str(params["kv_type"])
    k, v = (recipe.ops.store_kv(f32(x[name]), kv_type) for name in ("k", "v"))
    sinks = f32(x["sinks"]) if "sinks" in x else None
    return {"o": recipe.ops.cell_attention(f32(x["q"]), k, v, sinks, kv_type)}


def _limited_swiglu(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"y": recipe.ops.limited_swiglu(f32(x["gate"]), f32(x["up"]), param_float(params, "limit"))}


def _head_gate(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"y": recipe.ops.head_gate(f32(x["o"]), f32(x["logit"]))}


def _scaled_output(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"y": recipe.ops.scaled_output(f32(x["y"]), param_float(params, "scale"))}


def _chain_head(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """The head of each draft step; None: the draft ends."""
    contract, n_heads = parse_contract(str(params["contract"])), int(params["n_heads"])
    return {"heads": [recipe.steps.chain_head(int(step), n_heads, contract) for step in params["steps"]]}


def _chain_input(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    given = list(params["tokens"]), f32(x["hidden"]), int(params["token"]), f32(x["row"])
    ids, rows = recipe.steps.chain_input(*given, bool(params["chained"]))
    return {"ids": [int(i) for i in ids], "hidden": rows}


# ----------------------------------------------------------------------------------------------------------- layers


def _config(params: Params) -> WindowedConfig:
    """A layer as the case's parameters say. YaRN: factor, n_ctx_orig. interleaved: neighbours are paired."""
    scaling = RopeScaling()
    if "factor" in params:
        scaling = RopeScaling("yarn", freq_scale_of(param_float(params, "factor")), int(params["n_ctx_orig"]), 1.0)
    return WindowedConfig(
        0, int(params["n_head"]), int(params["n_head_kv"]), int(params["n_key"]), int(params["n_value"]),
        int(params["n_window"]), int(params["n_rot"]), param_float(params, "freq_base"), param_float(params, "eps"),
        param_float(params, "value_scale"), scaling, bool(params.get("interleaved", False)),
    )  # fmt: skip


def _seen_attention(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """k, v: the cells of all tokens, or the last of them; those of the batch last."""
    q, kv_type = f32(x["q"]), str(params["kv_type"])
    k, v = (recipe.ops.store_kv(f32(x[name]), kv_type) for name in ("k", "v"))
    cfg = WindowedConfig(
        0, q.shape[1], k.shape[1], k.shape[2], v.shape[2], int(params["n_window"]), 0, 0.0, 0.0
    )  # fmt: skip
    sinks = f32(x["sinks"]) if "sinks" in x else None
    return {"o": recipe.ops.seen_attention(recipe.ops, cfg, q, k, v, sinks, kv_type, int(params["first"]))}


def _windowed_attn_layer(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    cfg, rows, kv_type, first = _config(params), f32(x["x"]), str(params["kv_type"]), int(params["first"])
    caches = []
    for name, width in (("k_cache", cfg.n_key), ("v_cache", cfg.n_value)):
        room = np.zeros((len(rows), cfg.n_head_kv, width), np.float32)
        caches.append(recipe.ops.store_kv(np.concatenate([f32(x[name]), room]) if name in x else room, kv_type))
    (k, v), tap = caches, Tap()
    pos, factors = np.arange(first, first + len(rows), dtype=np.int32), f32(x["factors"]) if "factors" in x else None
    table = Span(recipe.ops, pos, first, 1).rope_cos_sin(cfg.rotary, factors)
    w = weights_of({name: one for name, one in x.items() if name != "factors"})
    y = recipe.ops.windowed_attn_layer(recipe.ops, w, cfg, rows, k, v, kv_type, first, table, tap)
    return tap.kept | {"attn_scaled": y}


def _limited_ffn(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """A dense network or, where there is a router, experts and a shared expert with limits of their own."""
    ops, w, rows, tap = recipe.ops, weights_of(x), f32(x["x"]), Tap()
    limit = param_float(params, "limit")
    if "ffn_gate_inp.weight" not in w:
        ops = limited_ops(ops, limit)
        return {"ffn_out": ops.ffn(ops, w, rows, tap)}
    ops = limited_ops(ops, limit, param_float(params, "limit_shared"))
    y, routing = ops.moe_ffn(ops, w, moe_config(params), rows, tap)
    return tap.kept | {"ids": [int(i) for i in routing.ids.reshape(-1)], "ffn_out": y}


WINDOWED_ANSWERS: dict[str, Answer] = {
    "divided_rope": _divided_rope,
    "cell_attention": _cell_attention,
    "limited_swiglu": _limited_swiglu,
    "head_gate": _head_gate,
    "scaled_output": _scaled_output,
    "chain_head": _chain_head,
    "chain_input": _chain_input,
    "seen_attention": _seen_attention,
    "windowed_attn_layer": _windowed_attn_layer,
    "limited_ffn": _limited_ffn,
}
