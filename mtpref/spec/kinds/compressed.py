"""Attention over a window and compressed rows. Its numerics are mtpref/spec/ops/compose_compressed.py (S74 to S78, S85
to S90).

Owns what is kept of a sequence: of the trunk the rows of a window, and of each compressor the tokens that a later row
is made of, both carried from token to token, and the rows of whole blocks, one for so many positions; of a head every
row, since its cells are cut position by position.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mtpref import spec
from mtpref.base.errors import MtprefError, UnsupportedError
from mtpref.spec.config import OVERLAP_RATIO, CompressedConfig, Values, read_rope_scaling
from mtpref.spec.kinds.kind import F32, INPUT, LayerKind, Made, Span, rope_constants
from mtpref.spec.ops import LayerTap, LayerWeights
from mtpref.spec.ops.types import Blocks
from mtpref.spec.rope_scaling import RopeScaling
from mtpref.spec.state import LayerState, StateSpec

RATIOS = (0, OVERLAP_RATIO, 128)
# Of each compressor: the beginning of its tensors' names, and of its state's.
COMPRESSORS = {"attn_compressor": "comp", "indexer_compressor": "lid"}


def configure(v: Values) -> CompressedConfig:
    """Of the file's keys."""
    ratio, n_rot, width = v["compress_ratio"], v["n_rot"], v["n_embd_head"]
    label = f"{v.meta.source}: key {v.meta.arch}"

    def wrong(key: str, value: object, expected: str) -> MtprefError:
        return MtprefError(f"{label}.{key} is {value}, expected {expected}; try: mtpref inspect FILE")

    if ratio not in RATIOS:
        raise UnsupportedError(f"{label}.attention.compress_ratios holds {ratio}, expected 0, 4 or 128 in each layer")
    if n_rot % 2 or n_rot > min(width, v["n_index"]):
        expected = f"an even count of at most {min(width, v['n_index'])}, the narrower of key and indexer's key"
        raise wrong("rope.dimension_count", n_rot, expected)
    if v["n_embd_head_v"] != width:
        raise wrong("attention.value_length", v["n_embd_head_v"], f"{width} = attention.key_length")
    if v["n_head_kv"] != 1:
        raise wrong("attention.head_count_kv", v["n_head_kv"], "1: one row serves all heads")
    if v["n_head"] % v["n_output_group"]:
        raise wrong("attention.output_group_count", v["n_output_group"], f"a divisor of {v['n_head']} heads")
    if ratio == OVERLAP_RATIO and v["n_index"] % spec.LEAST_ROTATION:
        expected = f"a multiple of {spec.LEAST_ROTATION}: so many dimensions are rotated together"
        raise wrong("attention.indexer.key_length", v["n_index"], expected)
    overrides = v.meta.rope
    if ratio == 0:
        freq_base, scaling = v["freq_base"], RopeScaling()
        freq_base = freq_base if overrides.freq_base is None else overrides.freq_base
    else:
        freq_base = v["compress_freq_base"]
        scaling = read_rope_scaling(v.meta, freq_base)
    return CompressedConfig(
        n_embd=v["n_embd"],
        n_head=v["n_head"],
        n_embd_head=width,
        n_rot=n_rot,
        n_window=v["n_window"],
        ratio=ratio,
        n_group=v["n_output_group"],
        freq_base=freq_base,
        rms_eps=v["rms_eps"],
        n_index_head=v["n_index_head"],
        n_index=v["n_index"],
        n_best=v["n_best"],
        rope_scaling=scaling,
    )


def _configure_head(v: Values) -> CompressedConfig:
    cfg = configure(v)
    if cfg.ratio:
        raise MtprefError(
            f"{v.meta.source}: key {v.meta.arch}.attention.compress_ratios holds {cfg.ratio} for the MTP block, "
            "expected 0: it has no compressed rows; try: mtpref inspect FILE"
        )
    return cfg


def _compressors(cfg: CompressedConfig) -> Mapping[str, int]:
    """Of each compressor of a layer the width of its rows."""
    if not cfg.ratio:
        return {}
    return {"attn_compressor": cfg.n_embd_head} | ({"indexer_compressor": cfg.n_index} if cfg.has_overlap else {})


def _state(cfg: CompressedConfig, kv_type: str) -> tuple[StateSpec, ...]:
    """window_k: the rows of the last n_window - 1 tokens, oldest first (one, unseen, of a window of 1); comp_k: a row
    of each whole block; comp_kv and comp_score: values and scores of the last tokens, as many as a block that ends with
    the next one is made of; lid_*: the indexer's."""
    specs = [StateSpec("window_k", (max(1, cfg.n_window - 1), cfg.n_embd_head), positional=False, kv_type=kv_type)]
    n_kept = (2 if cfg.has_overlap else 1) * cfg.ratio - 1
    for compressor, width in _compressors(cfg).items():
        name = COMPRESSORS[compressor]
        own = (n_kept, width * (2 if cfg.has_overlap else 1))
        specs += [
            StateSpec(f"{name}_k", (width,), positional=True, kv_type=kv_type, stride=cfg.ratio),
            StateSpec(f"{name}_kv", own, positional=False),
            StateSpec(f"{name}_score", own, positional=False),
        ]
    return tuple(specs)


def _head_state(cfg: CompressedConfig, kv_type: str) -> tuple[StateSpec, ...]:
    return (StateSpec("cache_k", (cfg.n_embd_head,), positional=True, kv_type=kv_type),)


def _run(
    w: LayerWeights, cfg: CompressedConfig, x: F32, state: LayerState, span: Span, tap: LayerTap, raw: NDArray
) -> tuple[F32, NDArray, dict[str, tuple[F32, F32]]]:
    ops, kv_type = span.ops, state.specs[0].kv_type
    constants = rope_constants(cfg.rotary)
    blocks = {}
    for compressor in _compressors(cfg):
        name, arrays = COMPRESSORS[compressor], state.arrays
        cells = arrays[f"{name}_k"][: (span.first + len(x)) // cfg.ratio]
        blocks[compressor] = Blocks(arrays[f"{name}_kv"], arrays[f"{name}_score"], cells)

    def table(pos: NDArray[np.int32]) -> tuple[F32, F32]:
        return ops.rope_table(pos, *constants)

    now = span.rope_cos_sin(cfg.rotary)
    return ops.compressed_attn_layer(ops, w, cfg, x, raw, blocks, kv_type, span.first, now, table, tap)


def _forward(w: LayerWeights, cfg: CompressedConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    y, raw, made = _run(w, cfg, x, state, span, tap, state.arrays["window_k"])
    after = {"window_k": raw}
    for compressor, (values, scores) in made.items():
        name = COMPRESSORS[compressor]
        after |= {f"{name}_kv": values, f"{name}_score": scores}
    state.planes = {name: _planes(rows, len(state.arrays[name]), span.keep) for name, rows in after.items()}
    state.arrays.update({name: planes[-1].copy() for name, planes in state.planes.items()})
    return y


def _planes(rows: NDArray, n_kept: int, n_planes: int) -> NDArray:
    """What is carried after each of the last tokens: views of n_kept rows, (n_planes, n_kept, width)."""
    return np.moveaxis(sliding_window_view(rows, n_kept, axis=0), -1, 1)[-n_planes:]


def _forward_head(w: LayerWeights, cfg: CompressedConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    cells = state.arrays["cache_k"]
    y, raw, _ = _run(w, cfg, x, state, span, tap, cells[: span.first])
    cells[span.first : span.first + len(x)] = raw[span.first :]
    return y


_ROPE = "RoPE of the last n_rot dimensions, neighbours paired"
_NORMED = (spec.mul_mat_exact, spec.rms_norm)
_WINDOW: dict[str, Made] = {
    "qr_norm": Made(
        (INPUT,), "product with blk.{i}.attn_q_a.weight, rms_norm with blk.{i}.attn_q_a_norm.weight", _NORMED
    ),
    "Qcur": Made(
        ("qr_norm",),
        f"product with blk.{{i}}.attn_q_b.weight, rms_norm of each head without a weight, {_ROPE}",
        (*_NORMED, spec.rope_last),
    ),
    "Kcur": Made(
        (INPUT,),
        "product with blk.{i}.attn_kv.weight, rms_norm with blk.{i}.attn_kv_a_norm.weight, "
        f"{_ROPE}: key and value of all heads",
        (*_NORMED, spec.rope_last),
    ),
}


def _row(name: str) -> str:
    return (
        f"products with blk.{{i}}.{name}_kv.weight and {name}_gate.weight, {name}_ape added to scores, softmax over "
        f"the rows of a block, rms_norm with {name}_norm.weight, RoPE at the block's first position"
    )


_COMPRESSED = {
    "attn_compressor_row": Made((INPUT,), _row("attn_compressor"), (spec.compress_rows,), instead=()),
    "indexer_compressor_row": Made((INPUT,), _row("indexer_compressor"), (spec.compress_rows,), instead=()),
    "lid_q_rope": Made(
        ("qr_norm",), f"product with blk.{{i}}.indexer.attn_q_b.weight, {_ROPE}", (spec.rope_last,), instead=()
    ),
    "lid_weights": Made((INPUT,), "product with blk.{i}.indexer.proj.weight, scaled", instead=()),
}
_OUTPUT = {
    "kqv_out": Made(
        ("Qcur", "Kcur", *_COMPRESSED),
        "attention over the window and the compressed rows that the token sees, with blk.{i}.attn_sinks.weight",
        (spec.window_start, spec.n_compressed, spec.row_scores, spec.best_rows, spec.sink_attention),
    ),
    "attn_derope": Made(("kqv_out",), "turned back at the query's position", (spec.rope_last,)),
    "attn_wo_a": Made(
        ("attn_derope",), "each group's product with its rows of blk.{i}.attn_output_a.weight", (spec.mul_mat_exact,)
    ),
    "attn_output": Made(("attn_wo_a",)),
}
_HEAD_OUTPUT: dict[str, Any] = _OUTPUT | {"kqv_out": replace(_OUTPUT["kqv_out"], inputs=("Qcur", "Kcur"))}
_ENTRIES = frozenset({"compressed_attn_layer"})
COMPRESSED_ATTENTION = LayerKind(
    "compressed_attention", configure, _state, _forward, _WINDOW | _COMPRESSED | _OUTPUT, _ENTRIES
)
# The same without compressed rows, in a head.
WINDOW_ATTENTION = LayerKind(
    "window_attention", _configure_head, _head_state, _forward_head, _WINDOW | _HEAD_OUTPUT, _ENTRIES
)
