"""How many experts a pass touches: a pass of w tokens reads each expert that one of them chose, once.

Owns the count and the bytes that go with it. It must not know what a pass costs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mtpref import spec
from mtpref.engine.model import Model
from mtpref.spec.moe import Routing

Choices = NDArray[np.int64]  # (T, n_layer, n_used)


def choices(routings: Sequence[Routing]) -> Choices | None:
    """What each token of a pass chose in each layer; None for a model without experts, or where layers use different
    numbers of them."""
    if not routings or len({routing.ids.shape for routing in routings}) > 1:
        return None
    return np.stack([routing.ids for routing in routings], axis=1)


def touched(routings: Sequence[Routing]) -> tuple[int, ...]:
    """Distinct experts of each experts' network of a pass; empty for a model without."""
    return tuple(int(np.unique(routing.ids).size) for routing in routings)


def mean_touched(routings: Sequence[Routing]) -> float:
    """Distinct experts a layer, on average over the layers that have them; 0 without."""
    counts = touched(routings)
    return sum(counts) / len(counts) if counts else 0.0


def touched_by_width(texts: Sequence[Choices], n_max: int) -> dict[int, float]:
    """For w = 1 .. n_max, the distinct experts a layer in w neighbouring tokens: the mean over all places of all texts.

    Shapes   each text (T, n_layer, n_used): what each token chose; a text shorter than w has no place for w
    """
    totals, places = dict.fromkeys(range(1, n_max + 1), 0), dict.fromkeys(range(1, n_max + 1), 0)
    for ids in texts:
        n_tokens, n_layer, _ = ids.shape
        if not ids.size:
            continue
        one = np.zeros((n_tokens, n_layer, int(ids.max()) + 1), np.bool_)
        np.put_along_axis(one, ids, True, axis=2)
        chosen = one
        for w in range(1, min(n_max, n_tokens) + 1):
            if w > 1:
                chosen = chosen[:-1] | one[w - 1 :]
            totals[w] += int(np.count_nonzero(chosen))
            places[w] += len(chosen) * n_layer
    return {w: totals[w] / places[w] for w in totals if places[w]}


def weight_bytes(parts: Sequence[object], n_experts: float) -> float:
    """Bytes of weight matrices that a pass reads of these parts, with so many experts of every stack."""
    matrices = [w for w in parts if isinstance(w, spec.Matrix)]
    stacks = [w for w in parts if isinstance(w, spec.Stack)]
    return sum(w.raw.nbytes for w in matrices) + sum(min(n_experts, len(w)) * w.raw[0].nbytes for w in stacks if len(w))


def n_used(model: Model) -> int:
    """Experts that a token goes to, in the layers that have them; 0 without."""
    layers = [*model.layers, *(head.layer for head in model.heads)]
    return max((getattr(layer.ffn_cfg, "n_used", 0) for layer in layers), default=0)
