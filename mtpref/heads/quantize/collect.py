"""Importance measured: the inputs of every matrix product, over a text, in trunk and MTP head.

Owns the walk. The head runs teacher-forced on the trunk's real hidden rows, as after a catch-up pass, so that its
matrices have entries too: llama.cpp's own tool runs the trunk alone. Sums are float64, squares products of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.model import Model, Pairs, pair, run_heads
from mtpref.spec import Matrix

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass
class Collector:
    """name -> (sum of squares by column, rows)."""

    sums: dict[str, tuple[F64, int]] = field(default_factory=dict)

    def see(self, name: str, x: F32) -> None:
        wide = x.astype(np.float64)
        total, n = self.sums.get(name, (np.zeros(x.shape[1]), 0))
        self.sums[name] = (total + np.einsum("ij,ij->j", wide, wide), n + len(x))


def watched(model: Model, see: Callable[[str, F32], None]) -> Model:
    """The model with its matrix products seen: fused layers fall back to their composition, to the same bits."""
    inner = model.recipe.ops.mul_mat

    def mul_mat(w: Matrix, x: F32, *rest: Any) -> F32:
        see(w.name, x)
        return np.asarray(inner(w, x, *rest))

    return replace(model, recipe=model.recipe.with_ops(mul_mat=mul_mat))


def paired(model: Model, ids: Sequence[int]) -> Pairs:
    """The trunk over tokens from an empty state, and the pairs that the head sees when it catches up."""
    steps, contract = model.recipe.steps, model.recipe.contract
    state = model.new_state(len(ids))
    pending = steps.pending_at_prompt(state.pending_h, contract)
    hidden = steps.target_hidden(model.trunk(state, ids, n_logits=0).hidden, contract)
    return pair(model, ids, hidden, 0, pending)


def run_head(model: Model, chunks: Iterable[Pairs]) -> None:
    """The heads over chunks, each from an empty cache."""
    for chunk in chunks:
        run_heads(model, model.new_state(max(1, chunk.first + len(chunk.ids))), chunk)


def run_text(model: Model, ids: Sequence[int], *, n_ctx: int, progress: Progress | None = None) -> int:
    """Chunks of n_ctx tokens, each from an empty state, through trunk and head; gives how many. A rest is left out
    unless the text is shorter than one chunk."""
    cut = [ids[i : i + n_ctx] for i in range(0, len(ids) - n_ctx + 1, n_ctx)] or [ids]
    for i, part in enumerate(cut):
        chunk = paired(model, part)
        if model.has_mtp:
            run_head(model, [chunk])
        if progress is not None:
            progress((i + 1) * len(part), len(cut) * len(part))
    return len(cut)
