"""Ways of quantising a head, measured against the head they come from, on text that none of them was calibrated on.

Owns the measures: KL of the drafts' distributions, top-1 agreement, teacher-forced acceptance, bytes; each with a 95 %
interval from the delete-one-block jackknife, and the differences paired at the same positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.model import Model, Pairs
from mtpref.heads.quantize.head import trunk_rows, with_matrices
from mtpref.measure.probe import Text
from mtpref.measure.probe.count import Estimate, difference, jackknife, judge
from mtpref.measure.probe.texts import windows_of
from mtpref.measure.probe.walk import Variant, walk_all
from mtpref.spec import Matrix

F64 = NDArray[np.float64]
REFERENCE = "unquantised"
BLOCK = 64  # tokens of a block of the intervals
N_DRAFT = 3


@dataclass(frozen=True)
class Measured:
    """One way. kl: nats, of the reference's distribution to this one's; agreement: share of equal first drafts;
    a: a_1 .. a_3; less: a_1 less the reference's"""

    name: str
    n_bytes: int
    kl: Estimate
    agreement: Estimate
    a: list[Estimate]
    less: Estimate

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "bytes": self.n_bytes,
            "kl": self.kl.to_json(),
            "agreement": self.agreement.to_json(),
            "a": [a.to_json() for a in self.a],
            "a1_less_reference": self.less.to_json(),
        }


def measure(
    model: Model, ways: dict[str, dict[str, Matrix]], texts: Sequence[Text], n_ctx: int = 512
) -> list[Measured]:
    """Measure each way: its name -> matrices of the head. The reference is the model's own head."""
    windows = windows_of(texts, n_ctx)
    models = {REFERENCE: model} | {name: with_matrices(model, made) for name, made in ways.items()}
    variants = [Variant(name, changed, N_DRAFT) for name, changed in models.items()]
    seen = walk_all(model, windows, variants)
    judged = {name: judge(seen, name, "trunk", BLOCK) for name in models}
    chunks = trunk_rows(model, [window.ids for window in windows], n_ctx)
    reference = [_log_softmax(_logits(model, chunk)) for chunk in chunks]
    out = []
    for name, changed in models.items():
        kl, same, blocks = _beside(changed, chunks, reference)
        matrices = ways.get(name, {})
        out.append(Measured(
            name, sum(w.raw.size for w in matrices.values()), _mean(kl, blocks), _mean(same, blocks),
            judged[name].unconditional(), difference(judged[name], judged[REFERENCE]),
        ))  # fmt: skip
    return out


def _logits(model: Model, chunk: Pairs) -> NDArray[np.float32]:
    state = model.new_state(chunk.first + len(chunk.ids))
    return model.mtp(state, chunk.ids, chunk.rows, chunk.first, n_logits=len(chunk.ids)).logits


def _log_softmax(logits: NDArray[np.float32]) -> F64:
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(1, keepdims=True))


def _beside(model: Model, chunks: Sequence[Pairs], reference: Sequence[F64]) -> tuple[F64, F64, NDArray[np.int64]]:
    """(KL, equal argmax, block) of every position."""
    kls, sames, blocks, n = [], [], [], 0
    for chunk, ours in zip(chunks, reference, strict=True):
        theirs = _log_softmax(_logits(model, chunk))
        kls.append((np.exp(ours) * (ours - theirs)).sum(1))
        sames.append((ours.argmax(1) == theirs.argmax(1)).astype(np.float64))
        blocks.append(n + np.arange(len(ours)) // BLOCK)
        n = int(blocks[-1][-1]) + 1
    return np.concatenate(kls), np.concatenate(sames), np.concatenate(blocks)


def _mean(values: F64, blocks: NDArray[np.int64]) -> Estimate:
    """The mean with its interval; blocks: of each value."""
    sums = np.stack([np.bincount(blocks, values), np.bincount(blocks).astype(np.float64)], axis=1)
    return jackknife(sums, lambda s: (s[..., 0] / s[..., 1])[..., None])[0]
