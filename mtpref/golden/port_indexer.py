"""The answers of cases of an indexer: its norm, rotation, scores and choice, and attention over what it chose."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mtpref import spec
from mtpref.engine.recipe import Recipe
from mtpref.golden.format import param_float
from mtpref.golden.inputs import Answer, Inputs, Outputs, f32, weights_of
from mtpref.golden.port_latent import cells_of, table_of
from mtpref.golden.taps import Tap
from mtpref.spec import NO_CELL
from mtpref.spec.config import IndexedConfig
from mtpref.spec.kinds.kind import rope_constants
from mtpref.spec.moe import IDS
from mtpref.spec.rope_scaling import RopeScaling, freq_scale_of

Params = Mapping[str, Any]


def _lists(cells: IDS) -> list[list[int]]:
    """The cells of each token, without what fills a row up."""
    return [[int(i) for i in row if i != NO_CELL] for row in cells]


def _rows(lists: list[list[int]]) -> IDS:
    """The same as an array."""
    width = max(map(len, lists))
    return np.array([[*own, *[NO_CELL] * (width - len(own))] for own in lists], np.int64)


def _layer_norm(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"y": recipe.ops.layer_norm(f32(x["x"]), f32(x["weight"]), f32(x["bias"]), param_float(params, "eps"))}


def _rotate(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    rows = f32(x["x"])
    return {"y": recipe.ops.mul_mat(spec.hadamard(rows.shape[-1]), rows)}


def _index_scores(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"scores": recipe.ops.index_scores(f32(x["products"]), f32(x["weights"]), int(params["first"]))}


def _select_cells(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    cells = recipe.ops.select_cells(f32(x["scores"]), int(params["first"]), int(params["n_top"]))
    return {"cells": _lists(cells)}


def _selected_attention(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """chosen: of each token the cells that it sees."""
    kv_type, first, chosen = str(params["kv_type"]), int(params["first"]), _rows(params["chosen"])
    cells = recipe.ops.store_kv(f32(x["cells"]), kv_type)
    return {"o": recipe.ops.selected_attention(recipe.ops, f32(x["q"]), cells, kv_type, first, chosen)}


def _config(params: Params) -> IndexedConfig:
    """A layer as the case's parameters say. YaRN: factor, n_ctx_orig, log_multiplier (a model's mscale_all_dim, 0: it
    has none); mscale is 1."""
    cfg = IndexedConfig(
        0, int(params["n_head"]), int(params["n_key"]), int(params["n_value"]), int(params["n_latent"]),
        int(params["n_rot"]), param_float(params, "freq_base"), param_float(params, "eps"), is_absorbed=True,
        is_mscale_all_dim=False, n_index_head=int(params["n_index_head"]), n_index_key=int(params["n_index_key"]),
        n_top=int(params["n_top"]), index_eps=param_float(params, "index_eps"),
        is_index_interleaved=bool(params["interleaved"]),
    )  # fmt: skip
    scaling = RopeScaling()
    if "factor" in params:
        tenth = float(np.float32(0.1 * param_float(params, "log_multiplier")))
        factor, n_ctx_orig = param_float(params, "factor"), int(params["n_ctx_orig"])
        scaling = RopeScaling("yarn", freq_scale_of(factor), n_ctx_orig, 1.0, log_multiplier=tenth)
    cfg = replace(cfg, rope_scaling=scaling)
    magnitude = rope_constants(cfg.rotary)[2]
    sizes = cfg.n_key, cfg.n_row, scaling.freq_scale, magnitude, cfg.mscale_all_dim
    return replace(cfg, scale=spec.latent_scale(*sizes))


def _index_cells(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    cfg, rows, first, kv_type = _config(params), f32(x["x"]), int(params["first"]), str(params["kv_type"])
    keys = cells_of(recipe, x, "indexer_cells", (first + len(rows), 1, cfg.n_index_key), kv_type)
    tap, table = Tap(), table_of(recipe, cfg, first, len(rows))
    found = recipe.ops.index_cells(recipe.ops, weights_of(x), cfg, rows, keys, kv_type, first, table, tap)
    return tap.kept | {"top_k": _lists(found.cells)}


def _indexed_attn_layer(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """A layer with an indexer; with a list `chosen` in its parameters one that sees these cells."""
    ops, cfg, rows, first = recipe.ops, _config(params), f32(x["x"]), int(params["first"])
    kv_type, n_cells = str(params["kv_type"]), first + len(rows)
    tap, table, w = Tap(), table_of(recipe, cfg, first, len(rows)), weights_of(x)
    own: Outputs = {}
    if "chosen" in params:
        chosen = _rows(params["chosen"])
    else:
        keys = cells_of(recipe, x, "indexer_cells", (n_cells, 1, cfg.n_index_key), kv_type)
        chosen = ops.index_cells(ops, w, cfg, rows, keys, kv_type, first, table, tap).cells
        own = {"top_k": _lists(chosen)}
    cells = cells_of(recipe, x, "cells", (n_cells, 1, cfg.n_row), kv_type)
    y = ops.indexed_attn_layer(ops, w, cfg, rows, cells, kv_type, first, table, chosen, tap)
    return tap.kept | own | {"attn_output": y}


INDEXER_ANSWERS: dict[str, Answer] = {
    "layer_norm": _layer_norm,
    "rotate": _rotate,
    "index_scores": _index_scores,
    "select_cells": _select_cells,
    "selected_attention": _selected_attention,
    "index_cells": _index_cells,
    "indexed_attn_layer": _indexed_attn_layer,
}
