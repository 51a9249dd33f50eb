"""NaN and infinity at run time: rows are looked at after every pass, and where one is not finite its origin is named.

Owns the look, which costs a sum of the rows, and the slow walk after it: the tokens of the pass again with a tap, then
the weights of the layer that the first bad result belongs to. Nothing here changes a number.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import NotFiniteError
from mtpref.spec import Matrix, Stack

if TYPE_CHECKING:
    from mtpref.engine.model.model import Model, Tap

F32 = NDArray[np.float32]
_LAYER = re.compile(r"-(\d+)$")
# Of these infinity is a right value: scores of groups that were not chosen (S43) and of cells that are not seen (S62),
# a gap where all are chosen (S44, S63).
_INFINITE = ("ffn_moe_probs_masked", "ffn_moe_gap", "indexer_score", "top_k_gap")


def is_finite(*arrays: F32) -> bool:
    """Whether every value is a finite number."""
    with np.errstate(all="ignore"):
        totals = [float(np.add.reduce(a, axis=None)) for a in arrays]
        return all(map(math.isfinite, totals)) or all(bool(np.isfinite(a).all()) for a in arrays)


def not_finite(
    model: Model, what: str, run: Callable[[Tap], object], weights: Iterator[tuple[str, Any]]
) -> NotFiniteError:
    """The error of a pass whose rows are not finite.

    what      "trunk" or "MTP head"
    run       does the pass again, from an empty state, with the tap that it is given
    weights   those of the pass by GGUF name, searched where the new run has only finite results
    """
    first = FirstBad()
    with contextlib.suppress(Exception), np.errstate(all="ignore"):  # the error that is told is the one found first
        run(first)
    if first.name is not None:
        return first.error(model, what)
    place = "none of the results is that where the same tokens are run without those before them"
    return _error(what, place, _bad_weight(weights))


def _error(what: str, place: str, found: tuple[str, str] | None) -> NotFiniteError:
    """found: the first weight that is not finite, and what it holds."""
    if found is not None:
        why = f"tensor {found[0]} holds {found[1]}; the file is damaged or was badly converted: try mtpref check"
    else:
        why = "the weights there are finite, so values overflow; try `numerics` exact or KV cells of type F32"
        why += " (`kv_type=F32`)"
    return NotFiniteError(f"{what}: NaN or infinity, expected finite rows: {place}: {why}")


class FirstBad:
    """A tap that keeps the name of the first result that is not finite."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.kind = ""

    def __call__(self, name: str, array: NDArray) -> None:
        if self.name is None and array.dtype.kind == "f" and not is_finite(array):
            is_right = _LAYER.sub("", name).removeprefix("mtp_") in _INFINITE and not np.isnan(array).any()
            if not is_right:
                self.name, self.kind = name, kind_of(array)

    def error(self, model: Model, what: str) -> NotFiniteError:
        """What is said of it: its layer, and the weight that it comes from."""
        name = str(self.name)
        layer = _LAYER.search(name)
        place = f"layer {layer[1]}, {name}" if layer else name
        return _error(what, f"{place} is the first result that holds {self.kind}", _bad_weight(weights_of(model, name)))


def kind_of(array: NDArray) -> str:
    """NaN or infinity, whichever is there."""
    return "NaN" if np.isnan(array).any() else "infinity"


def _bad_weight(weights: Iterator[tuple[str, Any]]) -> tuple[str, str] | None:
    """The first weight that is not finite: name, NaN or infinity."""
    for name, w in weights:
        parts = (tile.dequantize() for _, tile in w.tiles()) if isinstance(w, Matrix) else iter([w])
        for part in parts:
            if not is_finite(part):
                return name, kind_of(part)
    return None


# WEIGHTS BY NAME


def weights_of(model: Model, name: str) -> Iterator[tuple[str, Any]]:
    """The weights that a result of this cb() name may come from: those of its layer, or of the model's two ends."""
    if name.startswith("mtp_"):
        return head_weights(model)
    found = _LAYER.search(name)
    if found is None:
        return _ends(model)
    return _block(f"blk.{found[1]}.", model.weights.layers[int(found[1])])


def trunk_weights(model: Model) -> Iterator[tuple[str, Any]]:
    """All of the trunk, in the order in which they are used."""
    yield "token_embd.weight", model.weights.token_embd
    for il, layer in enumerate(model.weights.layers):
        yield from _block(f"blk.{il}.", layer)
    yield from _ends(model)


def head_weights(model: Model) -> Iterator[tuple[str, Any]]:
    """All that the MTP heads read, the trunk's embeddings and output where they share them."""
    for i, head in enumerate(model.heads):
        mtp, il = head.weights, model.config.n_layer + i if head.first is None else head.first
        prefix = f"blk.{il + len(head.before)}."
        yield from ((f"{prefix}nextn.{name}.weight", w) for name, w in (("enorm", mtp.enorm), ("hnorm", mtp.hnorm)))
        yield mtp.embed_tokens.name, mtp.embed_tokens
        yield mtp.eh_proj.name, mtp.eh_proj
        for at, (_, block) in enumerate(head.stack, il):
            yield from _block(f"blk.{at}.", block)
        yield mtp.origin.get("shared_head_norm", f"{prefix}nextn.shared_head_norm.weight"), mtp.shared_head_norm
        yield mtp.shared_head_head.name, mtp.shared_head_head
        yield from mtp.roots.items()
        if mtp.post_projection is not None:
            yield mtp.post_projection.name, mtp.post_projection


def _ends(model: Model) -> Iterator[tuple[str, Any]]:
    w = model.weights
    yield from (("token_embd.weight", w.token_embd), ("output_norm.weight", w.output_norm), (w.output.name, w.output))
    yield from w.roots.items()


def _block(prefix: str, block: Any) -> Iterator[tuple[str, Any]]:
    for name, w in block.items():
        yield from ((prefix + name, part) for part in (w if isinstance(w, Stack) else (w,)))
