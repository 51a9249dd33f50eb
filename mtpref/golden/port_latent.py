"""The answers of cases of attention through a latent row: its RoPE, its scale, products head by head, both forms."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref import spec
from mtpref.engine.recipe import Recipe
from mtpref.golden.format import param_float
from mtpref.golden.inputs import Answer, Inputs, Outputs, f32, rope_table_of, stack, weights_of
from mtpref.golden.taps import Tap
from mtpref.spec.config import LatentConfig
from mtpref.spec.kinds.kind import rope_constants
from mtpref.spec.rope_scaling import RopeScaling, freq_scale_of

Params = Mapping[str, Any]


def _rope_interleaved(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"y": recipe.ops.rope_interleaved(f32(x["x"]), *rope_table_of(recipe, params, x["pos"].values()))}


def _latent_scale(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """What queries are multiplied with, as one value."""
    sizes = int(params["n_key"]), int(params["n_row"])
    scale = spec.latent_scale(*sizes, *(param_float(params, n) for n in ("freq_scale", "magnitude", "log_multiplier")))
    return {"scale": np.array([scale], np.float32)}


def _head_products(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"y": recipe.ops.head_products(recipe.ops, stack("w", x["w"]), f32(x["x"]))}


def _config(params: Params, *, is_absorbed: bool) -> LatentConfig:
    """A layer as the case's parameters say. YaRN: factor, n_ctx_orig, log_multiplier (a model's mscale_all_dim)."""
    cfg = LatentConfig(
        0, int(params["n_head"]), int(params["n_key"]), int(params["n_value"]), int(params["n_latent"]),
        int(params["n_rot"]), param_float(params, "freq_base"), param_float(params, "eps"), is_absorbed=is_absorbed,
    )  # fmt: skip
    scaling, multiplier = RopeScaling(), 0.0
    if "factor" in params:
        multiplier, factor = param_float(params, "log_multiplier"), param_float(params, "factor")
        scaling = RopeScaling("yarn", freq_scale_of(factor), int(params["n_ctx_orig"]), 1.0, log_multiplier=multiplier)
    cfg = replace(cfg, rope_scaling=scaling)
    magnitude = rope_constants(cfg.rotary)[2]
    return replace(cfg, scale=spec.latent_scale(cfg.n_key, cfg.n_row, scaling.freq_scale, magnitude, multiplier))


def table_of(recipe: Recipe, cfg: LatentConfig, first: int, n_tokens: int) -> Any:
    return recipe.ops.rope_table(np.arange(first, first + n_tokens, dtype=np.int32), *rope_constants(cfg.rotary))


def cells_of(recipe: Recipe, x: Inputs, name: str, shape: tuple[int, int, int], kv_type: str) -> NDArray:
    """Room for all cells, those that are given in front: (cells, heads, width), rows filled up with zeros."""
    cells = np.zeros(shape, np.float32)
    if name in x:
        past = f32(x[name])
        cells[: len(past), :, : past.shape[-1]] = past
    return recipe.ops.store_kv(cells, kv_type)


def _latent_attn_layer(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    cfg, rows, first, kv_type = _config(params, is_absorbed=True), f32(x["x"]), int(params["first"]), params["kv_type"]
    cells = cells_of(recipe, x, "cells", (first + len(rows), 1, cfg.n_row), kv_type)
    tap, table = Tap(), table_of(recipe, cfg, first, len(rows))
    y = recipe.ops.latent_attn_layer(recipe.ops, weights_of(x), cfg, rows, cells, kv_type, first, table, tap)
    return tap.kept | {"attn_output": y}


def _expanded_attn_layer(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    cfg, rows, first, kv_type = _config(params, is_absorbed=False), f32(x["x"]), int(params["first"]), params["kv_type"]
    shape = (first + len(rows), cfg.n_head, cfg.n_row)
    k, v = (cells_of(recipe, x, name, shape, kv_type) for name in ("k_cache", "v_cache"))
    tap, table = Tap(), table_of(recipe, cfg, first, len(rows))
    y = recipe.ops.expanded_attn_layer(recipe.ops, weights_of(x), cfg, rows, k, v, kv_type, first, table, tap)
    return tap.kept | {"attn_output": y}


LATENT_ANSWERS: dict[str, Answer] = {
    "rope_interleaved": _rope_interleaved,
    "latent_scale": _latent_scale,
    "head_products": _head_products,
    "latent_attn_layer": _latent_attn_layer,
    "expanded_attn_layer": _expanded_attn_layer,
}
