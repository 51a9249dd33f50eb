"""Family A, the indexer: which cells, or which compressed rows, a token sees (DeepSeek sparse attention)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.model import Model
from mtpref.faults.fault import Fault, all_ops, broken
from mtpref.faults.places import is_sharing
from mtpref.spec import NO_CELL
from mtpref.spec.moe import IDS
from mtpref.spec.ops import OpEntries, Ops

F32 = NDArray[np.float32]
ROWS = NDArray[np.int64]
CHOICE = ("ops.select_cells", "ops.best_rows")  # of cells, of compressed rows


def _counted(count: Callable[[int, int], int]) -> Callable[[Ops], OpEntries]:
    """Another number of cells, or rows. count: top_k, how many there are -> how many are chosen"""
    return lambda ops: {
        "select_cells": lambda scores, first, n: ops.select_cells(scores, first, count(n, scores.shape[1])),
        "best_rows": lambda scores, n: ops.best_rows(scores, count(n, len(scores))),
    }


ALL_SEEN = Fault(
    id="A5-indexer-ignored",
    title="The indexer chooses nothing: every cell is seen",
    mechanism="Attention runs over all cells, or all compressed rows, as in a model without an indexer: right up to"
    " top_k of them, another model beyond.",
    bug_type="MISSING_STEP",
    replaces=CHOICE,
    predicted=broken("top_k"),
    where=("indexer",),
    needs=(),
    apply_recipe=all_ops(_counted(lambda n, n_all: n_all)),
)

ONE_FEWER = Fault(
    id="A5b-indexer-one-fewer",
    title="The indexer chooses one cell too few",
    mechanism="top_k - 1 cells, or compressed rows: the weakest of those chosen is not seen.",
    bug_type="OFF_BY_ONE",
    replaces=CHOICE,
    predicted=broken("top_k"),
    where=("indexer", "several chosen"),
    needs=(),
    apply_recipe=all_ops(_counted(lambda n, n_all: max(n - 1, 1))),
)


def _one_before(ops: Ops) -> OpEntries:
    def select_cells(scores: F32, first: int, n_top: int) -> IDS:
        cells = ops.select_cells(scores, first, n_top)
        is_choice = first + np.arange(len(cells))[:, None] >= n_top
        n_cells = scores.shape[1]
        moved = np.where(is_choice & (cells != NO_CELL), cells - 1, cells)
        rising = np.sort(np.where(moved == NO_CELL, n_cells, moved), axis=1)
        return np.asarray(np.where(rising < n_cells, rising, NO_CELL))

    def best_rows(scores: F32, n: int) -> ROWS:
        rows = ops.best_rows(scores, n)
        return rows if len(scores) <= n else rows[rows > 0] - 1

    return {"select_cells": select_cells, "best_rows": best_rows}


CELL_BEFORE = Fault(
    id="A5c-indexer-cell-before",
    title="The cells in front of the chosen ones are seen",
    mechanism="Ids of chosen cells, or compressed rows, are counted from 1 where attention counts from 0.",
    bug_type="OFF_BY_ONE",
    replaces=CHOICE,
    predicted=broken("top_k"),
    where=("indexer", "several chosen"),
    needs=(),
    apply_recipe=all_ops(_one_before),
)


def _signed(ops: Ops) -> OpEntries:
    def index_scores(products: F32, weights: F32, first: int) -> F32:
        seen = np.isfinite(ops.index_scores(np.abs(products), np.abs(weights), first))
        total = np.einsum("thc,th->tc", products, weights, dtype=np.float32)
        return np.where(seen, total, np.float32(-np.inf))

    def row_scores(q: F32, rows: F32, weights: F32) -> F32:
        return np.asarray(rows @ q.T @ weights)

    return {"index_scores": index_scores, "row_scores": row_scores}


NO_RELU = Fault(
    id="A6-indexer-no-relu",
    title="The indexer adds negative products too",
    mechanism="A score is the weighted sum of the heads' products; each counts only where it is positive, and "
    "without that the sum is one product of a mean query.",
    bug_type="MISSING_STEP",
    replaces=("ops.index_scores", "ops.row_scores"),
    predicted=broken("indexer_score"),
    where=("indexer",),
    needs=(),
    apply_recipe=all_ops(_signed),
)

# ----------------------------------------------------------------------------------------------- queries and keys


def _indexed(changed: Callable[[Ops, Any], tuple[Ops, Any]]) -> Callable[[Ops], OpEntries]:
    """The indexer by another table, or another configuration."""

    def entries(ops: Ops) -> OpEntries:
        def index_cells(table: Ops, w: Any, cfg: Any, *rest: Any) -> Any:
            own, own_cfg = changed(table, cfg)
            return ops.index_cells(own, w, own_cfg, *rest)

        return {"index_cells": index_cells}

    return entries


ROPE_EXCHANGED = Fault(
    id="A7-indexer-rope-exchanged",
    title="The indexer's RoPE pairs as the other architecture's does",
    mechanism="DeepSeek-V3.2's indexer pairs halves (i, i + n_rot / 2) though its attention pairs neighbours, "
    "GLM-5's pairs neighbours (2 i, 2 i + 1): each is turned as the other.",
    bug_type="WRONG_LAYOUT",
    replaces=("ops.index_cells",),
    predicted=broken("indexer_q"),
    where=("indexer of cells",),
    needs=(),
    apply_recipe=all_ops(
        _indexed(lambda ops, cfg: (ops, replace(cfg, is_index_interleaved=not cfg.is_index_interleaved)))
    ),
)


def _at_end(rope: Callable[[F32, F32, F32], F32]) -> Callable[[F32, F32, F32], F32]:
    def turned(x: F32, cos: F32, sin: F32) -> F32:
        n_rot = 2 * cos.shape[-1]
        return np.roll(rope(np.roll(x, n_rot, axis=-1), cos, sin), -n_rot, axis=-1)

    return turned


ROPE_AT_END = Fault(
    id="A7b-indexer-rope-at-end",
    title="The indexer's RoPE turns the last dimensions",
    mechanism="A head of the indexer is [rope | nope], a head of the attention [nope | rope]; both are turned at "
    "the end.",
    bug_type="WRONG_LAYOUT",
    replaces=("ops.index_cells",),
    predicted=broken("indexer_q"),
    where=("indexer of cells",),
    needs=(),
    apply_recipe=all_ops(
        _indexed(
            lambda ops, cfg: (
                replace(ops, rope=_at_end(ops.rope), rope_interleaved=_at_end(ops.rope_interleaved)),
                cfg,
            )
        )
    ),
)

KEY_MEAN_KEPT = Fault(
    id="A7c-indexer-key-mean-kept",
    title="The indexer's keys keep their mean",
    mechanism="indexer.k_norm is a layer norm with a bias; it is run as an RMS norm, which takes no mean away.",
    bug_type="WRONG_RULE",
    replaces=("ops.layer_norm",),
    predicted=broken("indexer_k"),
    where=("indexer of cells",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"layer_norm": lambda x, w, bias, eps: ops.rms_norm(x, w, eps) + bias}),
)

# -------------------------------------------------------------------------------- layers that share what was chosen


def _not_shared(ops: Ops) -> OpEntries:
    composed: Any = ops.composed["indexed_attn_layer"]

    def indexed_attn_layer(table: Ops, w: Any, cfg: Any, x: F32, *rest: Any) -> F32:
        *middle, first, rope, chosen, tap = rest
        if not cfg.has_indexer:
            cells = np.arange(first + len(x))
            chosen = np.where(cells <= first + np.arange(len(x))[:, None], cells, NO_CELL)
        return composed(table, w, cfg, x, *middle, first, rope, chosen, tap)

    return {"indexed_attn_layer": indexed_attn_layer}


NOT_SHARED = Fault(
    id="A8-choice-not-shared",
    title="Layers without an indexer see every cell",
    mechanism="A layer that shares has no indexer of its own and sees what the last layer with one has chosen; it "
    "is run as a dense layer.",
    bug_type="MISSING_STEP",
    replaces=("ops.indexed_attn_layer",),
    predicted=broken("kqv_out"),
    where=("shared choice",),
    needs=(),
    apply_recipe=all_ops(_not_shared),
)


def _of_first(model: Model) -> Model:
    def changed(layer: Any) -> Any:
        forward = layer.kind.forward

        def other(w: Any, cfg: Any, x: F32, state: Any, span: Any, tap: Any) -> F32:
            return np.asarray(forward(w, cfg, x, state, replace(span, selections=span.selections[:1]), tap))

        return layer.with_forward("mixer", other) if is_sharing(layer) else layer

    return replace(model, layers=tuple(map(changed, model.layers)))


FIRST_CHOICE = Fault(
    id="A8b-first-choice-shared",
    title="Layers without an indexer share the first layer's choice",
    mechanism="What the model's first indexer chose is kept for all layers that share; each of them needs the "
    "choice of the last indexer before it.",
    bug_type="STALE_STATE",
    replaces=("layers",),
    predicted=broken("kqv_out"),
    where=("later shared choice",),
    needs=(),
    apply_model=_of_first,
)
