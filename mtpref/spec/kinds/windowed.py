"""Attention layers with or without a window, as each block's keys say. Their numerics are
mtpref/spec/ops/compose_windowed.py's (S6, S8, S10, S15, S16, S76, S94, S95, S97, S98).

Owns what is kept of a sequence: in the trunk every cell of a layer without a window, and of one with a window the cells
of its last n_window - 1 tokens, carried from token to token; of a head every cell, since its cells are cut position by
position.
"""

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mtpref import spec
from mtpref.base.errors import MtprefError, UnsupportedError
from mtpref.spec.config import Values, WindowedConfig, read_rope_scaling
from mtpref.spec.kinds.kind import F32, INPUT, LayerKind, Made, Span
from mtpref.spec.ops import LayerTap, LayerWeights
from mtpref.spec.state import LayerState, StateSpec

FACTORS = "rope_freqs.weight"


def configure(v: Values, full_share: int = 1) -> WindowedConfig:
    """Of the file's keys. full_share: a layer without a window turns one dimension of so many that the key says

    Rule     layers with a window have a base of their own where the architecture has a key for it, and are then not
             scaled
    Errors   MtprefError for counts that contradict each other
    """
    n_head, n_head_kv, n_key, n_value = (v[name] for name in ("n_head", "n_head_kv", "n_embd_head", "n_embd_head_v"))
    is_windowed = bool(v["is_windowed"])
    n_rot = v["n_rot"] if is_windowed else v["n_rot"] // full_share
    label = f"{v.meta.source}: key {v.meta.arch}"
    for key, value in (("attention.key_length", n_key), ("attention.value_length", n_value),
                       ("rope.dimension_count", v["n_rot"])):  # fmt: skip
        if v.meta.has(f"{key}_swa") and v.meta.u32(f"{key}_swa") != value:
            raise UnsupportedError(
                f"{label}.{key}_swa is {v.meta.u32(key + '_swa')}, expected {value} = {key}: other widths in layers "
                "with a window are not supported"
            )
    if n_head % n_head_kv:
        raise MtprefError(f"{label}.attention.head_count is {n_head}, expected a multiple of attention.head_count_kv = "
                          f"{n_head_kv}; try: mtpref inspect FILE")  # fmt: skip
    if n_rot % 2 or not 0 < n_rot <= n_key:
        where = "of a layer with a window" if is_windowed else "of a layer without a window"
        raise MtprefError(
            f"{label}.rope.dimension_count makes {n_rot} turned dimensions {where}, expected an even count of at most "
            f"{n_key} = attention.key_length; try: mtpref inspect FILE"
        )
    has_own_base = is_windowed and "freq_base_windowed" in list(v)
    freq_base = v["freq_base_windowed"] if has_own_base else v["freq_base"]
    if not has_own_base and v.meta.rope.freq_base is not None:
        freq_base = v.meta.rope.freq_base
    scaling = read_rope_scaling(v.meta, freq_base)
    return WindowedConfig(
        n_embd=v["n_embd"],
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_key=n_key,
        n_value=n_value,
        n_window=v["n_window"] if is_windowed else 0,
        n_rot=n_rot,
        freq_base=freq_base,
        rms_eps=v["rms_eps"],
        value_scale=v["value_scale"] if "value_scale" in list(v) else 0.0,
        rope_scaling=replace(scaling, freq_scale=1.0) if has_own_base else scaling,
    )


def _cells(cfg: WindowedConfig, kv_type: str) -> tuple[StateSpec, ...]:
    """cache_k: after norm and RoPE; cache_v: as projected. One cell per position, in the cache's type."""
    return (
        StateSpec("cache_k", (cfg.n_head_kv, cfg.n_key), positional=True, kv_type=kv_type),
        StateSpec("cache_v", (cfg.n_head_kv, cfg.n_value), positional=True, kv_type=kv_type),
    )


def _state(cfg: WindowedConfig, kv_type: str) -> tuple[StateSpec, ...]:
    """Without a window as a head's; window_k, window_v: cells of the last n_window - 1 tokens, oldest first (one,
    unseen, of a window of 1: a state file has no empty arrays)."""
    if not cfg.n_window:
        return _cells(cfg, kv_type)
    n_kept = max(1, cfg.n_window - 1)
    return (
        StateSpec("window_k", (n_kept, cfg.n_head_kv, cfg.n_key), positional=False, kv_type=kv_type),
        StateSpec("window_v", (n_kept, cfg.n_head_kv, cfg.n_value), positional=False, kv_type=kv_type),
    )


def _run(
    w: LayerWeights, cfg: WindowedConfig, x: F32, k: NDArray, v: NDArray, kv_type: str, span: Span, tap: LayerTap
) -> F32:
    table = span.rope_cos_sin(cfg.rotary, None if cfg.n_window else span.roots.get(FACTORS))
    return span.ops.windowed_attn_layer(span.ops, w, cfg, x, k, v, kv_type, span.first, table, tap)


def _forward_cells(w: LayerWeights, cfg: WindowedConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    n_cells = span.first + len(x)
    k, v = (state.arrays[name][:n_cells] for name in ("cache_k", "cache_v"))
    return _run(w, cfg, x, k, v, state.specs[0].kv_type, span, tap)


def _forward(w: LayerWeights, cfg: WindowedConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    if not cfg.n_window:
        return _forward_cells(w, cfg, x, state, span, tap)
    old = [state.arrays[name] for name in ("window_k", "window_v")]
    k, v = (np.concatenate([a, np.empty((len(x), *a.shape[1:]), a.dtype)]) for a in old)
    y = _run(w, cfg, x, k, v, state.specs[0].kv_type, span, tap)
    state.planes = {name: planes_of(a, len(old[0]), span.keep) for name, a in (("window_k", k), ("window_v", v))}
    state.arrays.update({name: planes[-1].copy() for name, planes in state.planes.items()})
    return y


def planes_of(cells: NDArray, n_kept: int, n_planes: int) -> NDArray:
    """What is carried after each of the last tokens: views of n_kept cells, (n_planes, n_kept, heads, width)."""
    return np.moveaxis(sliding_window_view(cells, n_kept, axis=0), -1, 1)[-n_planes:]


def _projected(part: str) -> str:
    return f"product with blk.{{i}}.attn_{part}.weight (or its rows of blk.{{i}}.attn_qkv.weight)"


_ROPE = "RoPE of the first n_rot dimensions of the layer's own base, halves paired"
_NORMED = (spec.mul_mat_exact, spec.rms_norm)
GRAPH = {
    "Vcur": Made((INPUT,), _projected("v"), (spec.mul_mat_exact,)),
    "Qcur_normed": Made(
        (INPUT,), f"{_projected('q')}, rms_norm with blk.{{i}}.attn_q_norm.weight if there is one", _NORMED
    ),
    "Kcur_normed": Made(
        (INPUT,), f"{_projected('k')}, rms_norm with blk.{{i}}.attn_k_norm.weight if there is one", _NORMED
    ),
    "Qcur": Made(("Qcur_normed",), _ROPE, (spec.rope, spec.divided_frequencies)),
    "Kcur": Made(("Kcur_normed",), _ROPE, (spec.rope, spec.divided_frequencies)),
    "kqv_out": Made(
        ("Qcur", "Kcur", "Vcur"),
        "causal attention over the cells, or those of the window, beside blk.{i}.attn_sinks.weight if there is one",
        (spec.attention, spec.window_start, spec.cell_attention),
    ),
    "attn_gate": Made((INPUT,), "product with blk.{i}.attn_gate.weight", (spec.mul_mat_exact,), instead=()),
    "attn_gated": Made(
        ("kqv_out", "attn_gate"), "each head times sigmoid of its gate", (spec.head_gate,), instead=("kqv_out",)
    ),
    "attn_output": Made(("attn_gated",)),
    "attn_scaled": Made(("attn_output",), "times attention.value_scale, if there is one", (spec.scaled_output,)),
}
WINDOWED_ATTENTION = LayerKind("windowed_attention", configure, _state, _forward, GRAPH)
# The same in a head, which keeps every cell.
WINDOWED_HEAD_ATTENTION = replace(WINDOWED_ATTENTION, state=_cells, forward=_forward_cells)
# The same where layers without a window turn half of the dimensions that a layer with one turns.
HALF_ROTARY_ATTENTION = replace(WINDOWED_ATTENTION, configure=partial(configure, full_share=2))
HALF_ROTARY_HEAD_ATTENTION = replace(WINDOWED_HEAD_ATTENTION, configure=partial(configure, full_share=2))
