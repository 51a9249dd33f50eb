"""The answers of cases of unscaled attention, inputs of layers, experts beside a dense network, and of an assistant."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref import spec
from mtpref.engine.recipe import Recipe
from mtpref.golden.format import param_float
from mtpref.golden.inputs import Answer, Inputs, Outputs, f32, weights_of
from mtpref.golden.taps import Tap
from mtpref.spec.config import InputsConfig, MoeConfig, ParallelConfig, UnscaledConfig
from mtpref.spec.kinds import TARGET_ATTENTION, TARGET_WINDOW, Span, rope_constants
from mtpref.spec.kinds.windowed import FACTORS
from mtpref.spec.state import LayerState, StateSpec

Params = Mapping[str, Any]


def _unscaled_attention(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    kv_type = str(params["kv_type"])
    k, v = (recipe.ops.store_kv(f32(x[name]), kv_type) for name in ("k", "v"))
    return {"o": recipe.ops.unscaled_attention(f32(x["q"]), k, v, kv_type)}


def _geglu(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"y": recipe.ops.geglu(f32(x["gate"]), f32(x["up"]))}


def _soft_cap(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"y": recipe.ops.soft_cap(f32(x["logits"]), param_float(params, "cap"))}


def _scaled_embedding(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"y": recipe.ops.scaled_embedding(f32(x["x"]))}


def _assistant_input(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """The embedding is the target's, the row one of its width."""
    w, tap = weights_of({"eh_proj.weight": x["nextn.pre_projection.weight"]}), Tap()
    own: Any = SimpleNamespace(eh_proj=w["eh_proj.weight"])
    y = recipe.ops.assistant_input(recipe.ops, own, f32(x["embd"]), f32(x["hidden"]), 0.0, "eh", tap)
    return {"pre_proj": y}


def _assistant_row(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    w = weights_of({"post.weight": x["nextn.post_projection.weight"]})
    own: Any = SimpleNamespace(post_projection=w["post.weight"])
    return {"row": recipe.ops.assistant_row(recipe.ops, own, f32(x["x"]))}


# ----------------------------------------------------------------------------------------------------------- layers


def _config(params: Params, *, source: int | None = None, has_cells: bool = True) -> UnscaledConfig:
    """A layer as the case's parameters say."""
    n_head, n_head_kv, n_key, n_window = (int(params[name]) for name in ("n_head", "n_head_kv", "n_key", "n_window"))
    return UnscaledConfig(
        0, n_head, n_head_kv, n_key, n_window, int(params["n_rot"]), param_float(params, "freq_base"),
        param_float(params, "eps"), has_cells, source,
    )  # fmt: skip


def _table(recipe: Recipe, cfg: UnscaledConfig, pos: NDArray[np.int32], x: Inputs) -> Any:
    """Cosine and sine; `factors` divide the frequencies."""
    frequencies, has_position, magnitude = rope_constants(cfg.rotary)
    if "factors" in x:
        frequencies = spec.divided_frequencies(frequencies, f32(x["factors"]))
    return recipe.ops.rope_table(pos, frequencies, has_position, magnitude)


def _weights(x: Inputs) -> dict[str, Any]:
    return weights_of({name: one for name, one in x.items() if name != "factors"})


def _unscaled_attn_layer(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """k_cache, v_cache: the cells of all tokens before the batch, or the last of them; of a layer that shares, those of
    the batch too."""
    ops, rows, kv_type, first, tap = recipe.ops, f32(x["x"]), str(params["kv_type"]), int(params["first"]), Tap()
    shares = bool(params.get("shares", False))
    cfg = _config(params, has_cells=not shares)
    cells = []
    for name in ("k_cache", "v_cache"):
        room = np.zeros((0 if shares else len(rows), cfg.n_head_kv, cfg.n_key), np.float32)
        cells.append(ops.store_kv(np.concatenate([f32(x[name]), room]) if name in x else room, kv_type))
    k, v = cells
    pos, last = np.arange(first, first + len(rows), dtype=np.int32), first + len(rows) - 1
    table = _table(recipe, cfg, pos, x)
    y = ops.unscaled_attn_layer(ops, _weights(x), cfg, rows, k, v, kv_type, pos, last, table, tap)
    return tap.kept | {"attn_output": y}


def _target_attn_layer(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """A layer of an assistant at position n_past. k_cells, v_cells: the target's of positions before it, of a window
    those of the last n_window - 1."""
    cfg, n_past, kv_type = _config(params, source=0, has_cells=False), int(params["n_past"]), str(params["kv_type"])
    name, rows, tap = "window" if cfg.n_window else "cache", f32(x["x"]), Tap()
    cells = {f"{name}_{part}": recipe.ops.store_kv(f32(x[f"{part}_cells"]), kv_type) for part in "kv"}
    shape = cfg.n_head_kv, cfg.n_key
    target = LayerState(tuple(StateSpec(one, shape, positional=True, kv_type=kv_type) for one in cells))
    target.arrays = cells
    roots = {FACTORS: f32(x["factors"])} if "factors" in x else {}
    span = Span(recipe.ops, np.full(len(rows), n_past, np.int32), n_past, 1, target=[target], roots=roots)
    kind = TARGET_WINDOW if cfg.n_window else TARGET_ATTENTION
    y = kind.forward(_weights(x), cfg, rows, target, span, tap)
    return tap.kept | {"attn_output": y}


def _layer_inputs(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """x: scaled embeddings of the tokens."""
    cfg = InputsConfig(int(params["n_layer"]), int(params["n_own"]), param_float(params, "eps"))
    tokens, tap = np.asarray(x["tokens"].values(), np.int32), Tap()
    y = recipe.ops.layer_inputs(recipe.ops, weights_of(x), cfg, tokens, f32(x["x"]), tap)
    return tap.kept | {"inputs": y}


def _own_input(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    eps = param_float(params, "eps")
    y = recipe.ops.own_input(recipe.ops, weights_of(x), eps, f32(x["x"]), f32(x["inputs"]), Tap())
    return {"per_layer_embd_out": y}


def _dense_beside_experts(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """x: rows of the stream, before any norm."""
    moe, tap = MoeConfig(0, 0, int(params["n_used"]), "softmax", True, 0.0, 0, 0), Tap()
    cfg = ParallelConfig(moe, param_float(params, "eps"))
    y, routing = recipe.ops.dense_beside_experts(recipe.ops, weights_of(x), cfg, f32(x["x"]), tap)
    return tap.kept | {"ids": [int(i) for i in routing.ids.reshape(-1)], "ffn_moe_combined": y}


UNSCALED_ANSWERS: dict[str, Answer] = {
    "unscaled_attention": _unscaled_attention,
    "geglu": _geglu,
    "soft_cap": _soft_cap,
    "scaled_embedding": _scaled_embedding,
    "assistant_input": _assistant_input,
    "assistant_row": _assistant_row,
    "unscaled_attn_layer": _unscaled_attn_layer,
    "target_attn_layer": _target_attn_layer,
    "layer_inputs": _layer_inputs,
    "own_input": _own_input,
    "dense_beside_experts": _dense_beside_experts,
}
