"""Importance measured: the inputs of every matrix product, over a text, in trunk and MTP head.

Owns the walk. The head runs teacher-forced on the trunk's real hidden rows, as after a catch-up pass, so that its
matrices have entries too: llama.cpp's own tool runs the trunk alone. Sums are float64, squares products of float32.
An expert sees the tokens that were routed to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.model import Model, Pairs, pair, run_heads
from mtpref.spec import Matrix, Stack

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Progress = Callable[[int, int], None]
_NAME = re.compile(r"([^/\[]+)(?:/([^\[]+))?(?:\[(\d+)\])?")


class Product(NamedTuple):
    """What a product was with: a tensor of the file, or rows of it (`part`), or a matrix of its stack (`expert`)."""

    tensor: str
    part: str
    expert: int | None


def product_of(name: str) -> Product:
    """From a matrix's name: TENSOR, TENSOR/PART, TENSOR[EXPERT] or TENSOR/PART[EXPERT]."""
    found = _NAME.fullmatch(name)
    if found is None:
        return Product(name, "", None)
    return Product(found[1], found[2] or "", None if found[3] is None else int(found[3]))


@dataclass
class Collector:
    """Sums of squares by column and rows, of each tensor: (n_in,) and a number; of a stack (n, n_in) and (n,).

    stacks   how many matrices each stack has
    """

    stacks: Mapping[str, int] = field(default_factory=dict)
    sums: dict[str, tuple[F64, Any]] = field(default_factory=dict)
    _parts: dict[str, str] = field(default_factory=dict)

    def see(self, name: str, x: F32) -> None:
        product = product_of(name)
        # Parts of one tensor see the same rows: they count once.
        if self._parts.setdefault(product.tensor, product.part) != product.part:
            return
        wide = x.astype(np.float64)
        squares = np.einsum("ij,ij->j", wide, wide)
        if product.expert is None:
            total, n = self.sums.get(product.tensor, (np.zeros(x.shape[1]), 0))
            self.sums[product.tensor] = (total + squares, n + len(x))
            return
        if product.tensor not in self.sums:
            n_experts = self.stacks[product.tensor]
            self.sums[product.tensor] = np.zeros((n_experts, x.shape[1])), np.zeros(n_experts, np.int64)
        totals, rows = self.sums[product.tensor]
        totals[product.expert] += squares
        rows[product.expert] += len(x)

    def unreached(self) -> dict[str, int]:
        """Stack -> how many of its matrices saw nothing, where some did."""
        found = {name: int(np.count_nonzero(rows == 0)) for name, (_, rows) in self.sums.items() if np.ndim(rows)}
        return {name: n for name, n in found.items() if n}


def stacks_of(model: Model) -> dict[str, int]:
    """Every stack of a model, trunk and heads -> how many matrices it has."""
    blocks = [*model.weights.layers, *(head.weights.block for head in model.heads)]
    return {product_of(w.name).tensor: len(w) for block in blocks for w in block.values() if isinstance(w, Stack)}


def watched(model: Model, see: Callable[[str, F32], None]) -> Model:
    """The model with its products with a file's matrices seen: fused layers fall back to their composition, to the same
    bits."""
    inner = model.recipe.ops.mul_mat

    def mul_mat(w: Matrix, x: F32, *rest: Any) -> F32:
        if w.name:
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
