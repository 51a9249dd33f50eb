"""The answers of cases of attention over a window and compressed rows, and of experts whose products are clamped."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref import spec
from mtpref.engine.recipe import Recipe
from mtpref.golden.format import param_float
from mtpref.golden.inputs import Answer, Inputs, Outputs, f32, rope_table_of, weights_of
from mtpref.golden.taps import Tap
from mtpref.spec.config import CompressedConfig, MoeConfig
from mtpref.spec.kinds.kind import rope_constants
from mtpref.spec.ops import discard
from mtpref.spec.ops.types import Blocks, Table
from mtpref.spec.rope_scaling import RopeScaling, freq_scale_of

Params = Mapping[str, Any]
# Of each compressor: the beginning of its tensors' names, and of its state's.
COMPRESSORS = {"attn_compressor": "comp", "indexer_compressor": "lid"}


def _flat(rows: Any) -> list[list[int]]:
    return [[int(i) for i in row] for row in rows]


# ------------------------------------------------------------------------------------------------------- operations


def _rope_last(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    cos, sin = rope_table_of(recipe, params, x["pos"].values())
    return {"y": recipe.ops.rope_last(f32(x["x"]), cos, sin, bool(params["back"]))}


def _compress_rows(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"rows": recipe.ops.compress_rows(f32(x["values"]), f32(x["scores"]))}


def _window_start(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"first": [int(recipe.ops.window_start(int(pos), int(params["n_window"]))) for pos in params["pos"]]}


def _n_compressed(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"n": [int(recipe.ops.n_compressed(int(n), int(params["ratio"]))) for n in params["n_tokens"]]}


def _row_scores(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"scores": recipe.ops.row_scores(*(f32(x[name]) for name in ("q", "rows", "weights")))}


def _best_rows(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"ids": [int(i) for i in recipe.ops.best_rows(f32(x["scores"]), int(params["n_best"]))]}


def _sink_attention(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    cells = recipe.ops.store_kv(f32(x["cells"]), params["kv_type"])
    return {"o": recipe.ops.sink_attention(f32(x["q"]), cells, f32(x["sinks"]), params["kv_type"])}


def _clamped_swiglu(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"y": recipe.ops.clamped_swiglu(f32(x["gate"]), f32(x["up"]), param_float(params, "limit"))}


def _hashed_experts(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """Ids of all tokens, token by token."""
    ids = recipe.ops.hashed_experts(x["table"].values(), x["tokens"].values())
    return {"ids": [int(i) for i in ids.reshape(-1)]}


# ----------------------------------------------------------------------------------------------------------- layers


def _config(params: Params) -> CompressedConfig:
    """A layer as the case's parameters say. YaRN: factor, n_ctx_orig."""
    scaling = RopeScaling()
    if "factor" in params:
        scaling = RopeScaling("yarn", freq_scale_of(param_float(params, "factor")), int(params["n_ctx_orig"]), 1.0)
    return CompressedConfig(
        n_embd=0,
        n_head=int(params["n_head"]),
        n_embd_head=int(params["n_embd_head"]),
        n_rot=int(params["n_rot"]),
        n_window=int(params.get("n_window", 0)),
        ratio=int(params.get("ratio", 0)),
        n_group=int(params.get("n_group", 1)),
        freq_base=param_float(params, "freq_base"),
        rms_eps=param_float(params, "eps"),
        n_index_head=int(params.get("n_index_head", 0)),
        n_index=int(params.get("n_index", 0)),
        n_best=int(params.get("n_best", 0)),
        rope_scaling=scaling,
    )


def _table(recipe: Recipe, cfg: CompressedConfig) -> Table:
    return lambda pos: recipe.ops.rope_table(pos, *rope_constants(cfg.rotary))


def _now(recipe: Recipe, cfg: CompressedConfig, first: int, n_tokens: int) -> Any:
    return _table(recipe, cfg)(np.arange(first, first + n_tokens, dtype=np.int32))


def _window_input(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    cfg, rows, tap = _config(params), f32(x["x"]), Tap()
    now = _now(recipe, cfg, int(params["first"]), len(rows))
    recipe.ops.window_input(recipe.ops, weights_of(x), cfg, rows, now, tap)
    return dict(tap.kept)


def _blocks(recipe: Recipe, params: Params, cfg: CompressedConfig, x: Inputs, name: str, width: int) -> Blocks:
    """What a compressor has left of the tokens before: given under the names of the state, or nothing yet."""
    n_cells = (int(params["first"]) + x["x"].shape[0]) // cfg.ratio
    cells = np.zeros((n_cells, width), np.float32)
    if f"{name}_k" in x:
        past = f32(x[f"{name}_k"])
        cells[: len(past)] = past
    n_kept = (2 if cfg.has_overlap else 1) * cfg.ratio - 1
    empty = np.zeros((n_kept, width * (2 if cfg.has_overlap else 1)), np.float32)
    values, scores = (f32(x[f"{name}_{part}"]) if f"{name}_{part}" in x else empty for part in ("kv", "score"))
    return Blocks(values, scores, recipe.ops.store_kv(cells, params["kv_type"]))


def _kept(name: str, blocks: Blocks, made: tuple[NDArray, NDArray], kv_type: str) -> Outputs:
    """The state of a compressor after the batch."""
    values, scores = (rows[-len(blocks.values) :] for rows in made)
    return {f"{name}_k": spec.load_kv(blocks.cells, kv_type), f"{name}_kv": values, f"{name}_score": scores}


def _compressor(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    cfg, rows, name, kv_type = _config(params), f32(x["x"]), str(params["name"]), str(params["kv_type"])
    blocks = _blocks(recipe, params, cfg, x, "comp", x[f"{name}_norm.weight"].shape[0])
    table, first = _table(recipe, cfg), int(params["first"])
    made = recipe.ops.compressor(recipe.ops, weights_of(x), name, cfg, rows, blocks, kv_type, first, table, discard)
    return _kept("comp", blocks, made, kv_type)


def _chosen_rows(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    cfg, rows, kv_type, first = _config(params), f32(x["x"]), str(params["kv_type"]), int(params["first"])
    cells, now, tap = recipe.ops.store_kv(f32(x["lid_k"]), kv_type), _now(recipe, cfg, first, len(rows)), Tap()
    latent, w = f32(x["qr_norm"]), weights_of(x)
    found = recipe.ops.chosen_rows(recipe.ops, w, cfg, rows, latent, cells, kv_type, first, now, tap)
    return tap.kept | {"rows": _flat(found)}


def _window_attention(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """seen: of each token the compressed rows that it sees; absent: those of all whole blocks."""
    cfg, q, kv_type = _config(params), f32(x["q"]), str(params["kv_type"])
    raw = recipe.ops.store_kv(f32(x["kv"]), kv_type)
    rows = recipe.ops.store_kv(f32(x["rows"]), kv_type) if "rows" in x else raw[:0]
    seen = [np.array(ids, np.int64) for ids in params["seen"]] if "seen" in params else None
    w, first = {"attn_sinks.weight": f32(x["attn_sinks.weight"])}, int(params["first"])
    return {"kqv_out": recipe.ops.window_attention(recipe.ops, w, cfg, q, raw, rows, seen, kv_type, first)}


def _grouped_output(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    cfg, out, tap = _config(params), f32(x["kqv_out"]), Tap()
    now = _now(recipe, cfg, int(params["first"]), len(out))
    recipe.ops.grouped_output(recipe.ops, weights_of(x), cfg, out, now, tap)
    return dict(tap.kept)


def _compressed_attn_layer(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """The state goes in and comes out under the names of mtpref/spec/kinds/compressed.py: window_k (the rows of the
    n_window - 1 tokens before, or of all), and of each compressor NAME_k, NAME_kv, NAME_score."""
    cfg, rows, kv_type, first = _config(params), f32(x["x"]), str(params["kv_type"]), int(params["first"])
    tap, w, ops = Tap(), weights_of(x), recipe.ops
    past = f32(x["window_k"]) if "window_k" in x else np.zeros((0, cfg.n_embd_head), np.float32)
    widths = {"attn_compressor": cfg.n_embd_head, "indexer_compressor": cfg.n_index} if cfg.ratio else {}
    blocks = {
        name: _blocks(recipe, params, cfg, x, COMPRESSORS[name], width)
        for name, width in widths.items()
        if name == "attn_compressor" or cfg.has_overlap
    }
    now, table, raw = _now(recipe, cfg, first, len(rows)), _table(recipe, cfg), ops.store_kv(past, kv_type)
    y, raw, made = ops.compressed_attn_layer(ops, w, cfg, rows, raw, blocks, kv_type, first, now, table, tap)
    out: Outputs = {"window_k": spec.load_kv(raw[-(cfg.n_window - 1) :], kv_type)}
    for name, own in blocks.items():
        out |= _kept(COMPRESSORS[name], own, made[name], kv_type)
    return tap.kept | out | {"attn_output": y}


def _moe_config(params: Params) -> MoeConfig:
    return MoeConfig(
        0, 0, int(params["n_used"]), "sqrt_softplus", bool(params["normalise"]), param_float(params, "scale"), 1, 0,
        param_float(params, "clamp"), param_float(params, "clamp_shared"),
    )  # fmt: skip


def _clamped_moe_ffn(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """Routed by the ids of `tokens` where the weights have a table of them, else by score."""
    ops, w, cfg, rows, tap = recipe.ops, weights_of(x), _moe_config(params), f32(x["x"]), Tap()
    if "ffn_gate_tid2eid.weight" in w:
        weights, routing = ops.route_by_token(ops, w, cfg, rows, x["tokens"].values(), tap)
    else:
        weights, routing = ops.route(ops, w, cfg, rows, tap)
    y = ops.clamped_experts(ops, w, cfg, rows, routing, weights, tap)
    return tap.kept | {"ids": [int(i) for i in routing.ids.reshape(-1)], "w": weights, "ffn_out": y}


def _route_by_token(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    ops, tap = recipe.ops, Tap()
    cfg = MoeConfig(0, 0, 0, "sqrt_softplus", bool(params["normalise"]), param_float(params, "scale"), 1, 0)
    weights, routing = ops.route_by_token(ops, weights_of(x), cfg, f32(x["x"]), x["tokens"].values(), tap)
    return tap.kept | {"ids": [int(i) for i in routing.ids.reshape(-1)], "w": weights}


COMPRESSED_ANSWERS: dict[str, Answer] = {
    "rope_last": _rope_last,
    "compress_rows": _compress_rows,
    "window_start": _window_start,
    "n_compressed": _n_compressed,
    "row_scores": _row_scores,
    "best_rows": _best_rows,
    "sink_attention": _sink_attention,
    "clamped_swiglu": _clamped_swiglu,
    "hashed_experts": _hashed_experts,
    "window_input": _window_input,
    "compressor": _compressor,
    "chosen_rows": _chosen_rows,
    "window_attention": _window_attention,
    "grouped_output": _grouped_output,
    "compressed_attn_layer": _compressed_attn_layer,
    "route_by_token": _route_by_token,
    "clamped_moe_ffn": _clamped_moe_ffn,
}
