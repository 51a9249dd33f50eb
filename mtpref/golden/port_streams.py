"""The answers of cases of several residual streams: what they are read, written and mixed with, and a head's input."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from mtpref.engine.recipe import Recipe
from mtpref.golden.format import param_float
from mtpref.golden.inputs import Answer, Inputs, Outputs, f32, matrix, weights_of
from mtpref.golden.taps import Tap
from mtpref.spec.config import StreamsConfig
from mtpref.spec.ops.compose_streams import enter_streams

Params = Mapping[str, Any]


def _config(params: Params, n_embd: int = 0) -> StreamsConfig:
    return StreamsConfig(
        n_embd, int(params["n_streams"]), int(params.get("n_iterations", 1)), param_float(params, "streams_eps"),
        param_float(params, "eps"),
    )  # fmt: skip


def _stream_weights(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    mixes, scale, base = (f32(x[name]) for name in ("mixes", "scale", "base"))
    eps = param_float(params, "streams_eps")
    found = recipe.ops.stream_weights(mixes, scale, base, int(params["n_streams"]), eps, int(params["n_iterations"]))
    return dict(zip(("pre", "post", "comb"), found, strict=True))


def _sinkhorn(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """S71 as the table has it: that part of the weights of streams, whose scale is 1 and whose base is 0."""
    comb = f32(x["comb"])
    n, n_tokens = comb.shape[-1], len(comb)
    mixes = np.concatenate([np.zeros((n_tokens, 2 * n), np.float32), comb.reshape(n_tokens, -1)], axis=1)
    scale, base = np.ones(3, np.float32), np.zeros(n * (n + 2), np.float32)
    eps = param_float(params, "streams_eps")
    return {"comb": recipe.ops.stream_weights(mixes, scale, base, n, eps, int(params["n_iterations"]))[2]}


def _head_weights(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    mixes, scale, base = (f32(x[name]) for name in ("mixes", "scale", "base"))
    return {"pre": recipe.ops.head_weights(mixes, scale, base, param_float(params, "streams_eps"))}


def _read_streams(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"y": recipe.ops.read_streams(f32(x["streams"]), f32(x["pre"]))}


def _write_streams(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    return {"streams": recipe.ops.write_streams(*(f32(x[name]) for name in ("streams", "y", "post", "comb")))}


def _enter_streams(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    embd, n = f32(x["embd"]), int(params["n_streams"])
    cfg = StreamsConfig(embd.shape[1], n, 1, 0.0, 0.0)
    return {"streams": enter_streams(embd, cfg).reshape(len(embd), n, -1)}


def _connect(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """streams: (T, n, n_embd); name: of the weights, hc_attn or hc_ffn."""
    streams = f32(x["streams"])
    rows = streams.reshape(len(streams), -1)
    found = recipe.ops.connect(recipe.ops, weights_of(x), str(params["name"]), _config(params, streams.shape[2]), rows)
    return dict(zip(("y", "post", "comb"), found, strict=True))


def _leave_streams(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    streams, tap = f32(x["streams"]), Tap()
    rows, cfg = streams.reshape(len(streams), -1), _config(params, streams.shape[2])
    return {"hc_head": recipe.ops.leave_streams(recipe.ops, weights_of(x), rows, cfg, tap)}


def _streams_input(recipe: Recipe, params: Params, x: Inputs) -> Outputs:
    """hidden: (T, n, n_embd), streams after the trunk's last layer."""
    hidden, tap = f32(x["hidden"]), Tap()
    w: Any = SimpleNamespace(
        enorm=f32(x["nextn.enorm.weight"]), hnorm=f32(x["nextn.hnorm.weight"]),
        eh_proj=matrix("nextn.eh_proj.weight", x["nextn.eh_proj.weight"]),
    )  # fmt: skip
    eps, rows = param_float(params, "eps"), hidden.reshape(len(hidden), -1)
    y = recipe.ops.streams_input(recipe.ops, w, f32(x["embd"]), rows, eps, str(params.get("order", "eh")), tap)
    return {"eh_proj": y.reshape(hidden.shape)}


STREAMS_ANSWERS: dict[str, Answer] = {
    "stream_weights": _stream_weights,
    "sinkhorn": _sinkhorn,
    "head_weights": _head_weights,
    "read_streams": _read_streams,
    "write_streams": _write_streams,
    "enter_streams": _enter_streams,
    "connect": _connect,
    "leave_streams": _leave_streams,
    "streams_input": _streams_input,
}
