"""Family A, attention over a window, compressed rows and beside a sink; and limits of experts' products."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.model import Model
from mtpref.faults.fault import Fault, all_ops, broken
from mtpref.faults.places import n_window
from mtpref.spec.ops import OpEntries, Ops

F32 = NDArray[np.float32]


def _sinkless(ops: Ops) -> OpEntries:
    def sink_attention(q: F32, cells: NDArray, sinks: F32, kv_type: str) -> F32:
        return ops.sink_attention(q, cells, np.full_like(sinks, -np.inf), kv_type)

    def cell_attention(q: F32, k: NDArray, v: NDArray, sinks: F32 | None, kv_type: str) -> F32:
        return ops.cell_attention(q, k, v, None, kv_type)

    return {"sink_attention": sink_attention, "cell_attention": cell_attention}


SINK_FORGOTTEN = Fault(
    id="A9-sink-forgotten",
    title="The sinks are forgotten",
    mechanism="attn_sinks is one more logit in each head's softmax, without a value; without it the weights of the "
    "cells add up to 1, and attention is too loud.",
    bug_type="MISSING_STEP",
    replaces=("ops.sink_attention", "ops.cell_attention"),
    predicted=broken("kqv_out"),
    where=("sinks",),
    needs=(),
    apply_recipe=all_ops(_sinkless),
)

WINDOW_NARROW = Fault(
    id="A10-window-narrow",
    title="The window is one cell too narrow",
    mechanism="A token sees its own cell and sliding_window - 2 others, as if the window did not hold the token "
    "itself: right up to that position.",
    bug_type="OFF_BY_ONE",
    replaces=("ops.window_start",),
    predicted=broken("kqv_out"),
    where=("window",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"window_start": lambda pos, n: ops.window_start(pos, max(n - 1, 1))}),
)


def _widened(layer: Any) -> Any:
    n = n_window(layer)
    return replace(layer, cfg=replace(layer.cfg, n_window=n + 1)) if n else layer


def _wide(model: Model) -> Model:
    for i, head in enumerate(model.heads):
        model = model.with_head(i, layer=_widened(head.layer))
    return replace(model, layers=tuple(map(_widened, model.layers)))


WINDOW_WIDE = Fault(
    id="A10b-window-wide",
    title="The window is one cell too wide",
    mechanism="A cell is seen where pos - t <= sliding_window; the window holds the token itself, so it must be less. "
    "Of MiMo-V2, transformers and SGLang mean one cell more by their number than llama.cpp does: there it is none.",
    bug_type="OFF_BY_ONE",
    replaces=("layers", "heads.layer"),
    predicted=broken("kqv_out"),
    where=("window", "head window"),
    needs=(),
    apply_model=_wide,
)

BLOCK_LATE = Fault(
    id="A11-block-late",
    title="A compressed row is seen one token late",
    mechanism="The token that ends a block does not see the block's row, as if rows counted from the token before.",
    bug_type="OFF_BY_ONE",
    replaces=("ops.n_compressed",),
    predicted=broken("kqv_out"),
    where=("compressed rows",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"n_compressed": lambda n, ratio: ops.n_compressed(n - 1, ratio)}),
)

# ------------------------------------------------------------------------------------------------------------- RoPE


def _turned(rope: Callable[[Ops], Callable[..., F32]]) -> Callable[[Ops], OpEntries]:
    return lambda ops: {"rope_last": rope(ops)}


def _not_back(ops: Ops) -> Callable[..., F32]:
    return lambda x, cos, sin, is_back=False: x if is_back else ops.rope_last(x, cos, sin)


NOT_TURNED_BACK = Fault(
    id="A12-not-turned-back",
    title="What attention gathers is not turned back",
    mechanism="Keys are values here, so values are turned; the output needs the inverse RoPE at the query's position.",
    bug_type="MISSING_STEP",
    replaces=("ops.rope_last",),
    predicted=broken("attn_derope"),
    where=("turned values",),
    needs=(),
    apply_recipe=all_ops(_turned(_not_back)),
)


def _in_front(ops: Ops) -> Callable[..., F32]:
    return lambda x, cos, sin, is_back=False: ops.rope_interleaved(x, cos, -sin if is_back else sin)


TURNED_IN_FRONT = Fault(
    id="A12b-turned-in-front",
    title="RoPE turns the front of heads whose rotary part is at the end",
    mechanism="Queries, rows and the indexer's are [nope | rope]; they are read as [rope | nope], all alike.",
    bug_type="WRONG_LAYOUT",
    replaces=("ops.rope_last",),
    predicted=broken("q"),
    where=("turned values",),
    needs=(),
    apply_recipe=all_ops(_turned(_in_front)),
)


def _in_halves(ops: Ops) -> Callable[..., F32]:
    def rope_last(x: F32, cos: F32, sin: F32, is_back: bool = False) -> F32:
        n_rot = 2 * cos.shape[-1]
        turned = ops.rope(np.ascontiguousarray(x[..., -n_rot:]), cos, -sin if is_back else sin)
        return np.concatenate([x[..., :-n_rot], turned], axis=-1)

    return rope_last


TURNED_IN_HALVES = Fault(
    id="A12c-turned-in-halves",
    title="RoPE at the end of heads pairs halves instead of neighbours",
    mechanism="Pairs are (i, i + n_rot / 2) instead of (2 i, 2 i + 1), and the weights were not permuted for it.",
    bug_type="WRONG_LAYOUT",
    replaces=("ops.rope_last",),
    predicted=broken("q"),
    where=("turned values",),
    needs=(),
    apply_recipe=all_ops(_turned(_in_halves)),
)

# ---------------------------------------------------------------------------------------------------------- experts

CLAMP_AFTER_SILU = Fault(
    id="E14-clamp-after-silu",
    title="The gate is clamped after silu",
    mechanism="min(silu(gate), limit) instead of silu(min(gate, limit)). The two part only where a gate is greater "
    "than the limit, and then by little where that is 10.",
    bug_type="WRONG_RULE",
    replaces=("ops.clamped_swiglu",),
    predicted=broken("ffn_moe_swiglu"),
    where=("clamps",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"clamped_swiglu": ops.limited_swiglu}),
)
