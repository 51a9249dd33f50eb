"""The trunk, before the head is blamed: what a head loses by a damaged trunk is not the head's.

Owns the judgement of the trunk, by how well it predicts the built-in text: with its norms shifted by one, and with each
layer's mixer and feed-forward left out in turn. A sound trunk reads text worse without any of them. Leaving parts out
costs two passes a layer, so it is asked only where something is odd: the head is found wrong or a part of it idle, or
it reads the text better than the trunk does, or the trunk reads it no better than a count of its tokens would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.model import Layer, Model
from mtpref.heads.check.findings import Finding
from mtpref.heads.check.parts import PARTS, said, shifted_norms, without
from mtpref.heads.proof import BLOCK
from mtpref.measure.probe.controls import MAIN
from mtpref.measure.probe.texts import Window
from mtpref.measure.probe.walk import Progress, Seen, walk_all
from mtpref.spec import Matrix, Stack

Floats = NDArray[np.float64]
TRUNK_GAIN = 0.2  # nats a token, of shifted norms
PART_GAIN, BEHIND, SURE = 0.1, 0.05, 3.0  # nats a token of a part left out and of the head; so many standard errors
LARGE, N_TOKENS = 64 << 20, 128  # bytes of weights above which only so many tokens of each text are run again
GROUPS = {"output": "output_norm", "layers": "the norms of the trunk's layers"}


def examine(
    model: Model,
    windows: Sequence[Window],
    seen: Sequence[Seen],
    *,
    is_head_wrong: bool,
    is_part_idle: bool,
    progress: Progress | None = None,
) -> list[Finding]:
    """What is wrong with the trunk; empty where nothing is."""
    trunk_lp = np.concatenate([s.trunk.lp_text[list(s.window.positions)] for s in seen])
    head_lp = np.concatenate([s.heads[MAIN].lp_text for s in seen])
    trunk, head = _nats(trunk_lp), _nats(head_lp)
    counted = entropy([id for window in windows for id in window.ids])
    found = _norms(model, windows, trunk, counted)
    if found or not (is_head_wrong or is_part_idle or trunk >= counted or trunk > head):
        return found
    found = _parts(model, windows, counted, progress)
    if found:
        return found
    if trunk < counted:
        is_sure = is_surely_better((head_lp - trunk_lp)[np.isfinite(trunk_lp)], BEHIND)
        if trunk > head and (is_sure or is_part_idle):
            id = "trunk-unclear" if is_head_wrong else "trunk-behind"
            return [Finding(id, "the trunk", f"{trunk:.2f} nats a token, the head {head:.2f}")]
        return []
    text = f"{trunk:.2f} nats a token, {counted:.2f} by the counts of the text's own tokens"
    return [Finding("trunk-useless" if is_head_wrong else "trunk-odd", "the trunk", text)]


def _norms(model: Model, windows: Sequence[Window], base: float, counted: float) -> list[Finding]:
    """Whether the trunk reads the text better with its norms shifted by one; and if so, with which of them."""
    for step, word in ((1, "1 added to"), (-1, "1 taken from")):
        nats = _nats(_lp(_shifted(model, step, tuple(GROUPS)), windows))
        if base - nats <= TRUNK_GAIN:
            continue
        tried = [(nats, "every norm of the trunk")]
        tried += [(_nats(_lp(_shifted(model, step, (which,)), windows)), what) for which, what in GROUPS.items()]
        nats, what = min(tried)
        if nats < counted:
            text = f"{base:.2f} nats a token, and {nats:.2f} with {word} {what}"
            return [Finding("trunk-norm-convention", what, text)]
    return []


def _shifted(model: Model, step: int, which: tuple[str, ...]) -> Model:
    w = model.weights
    is_output, is_layers = (name in which for name in GROUPS)
    return replace(
        model,
        weights=replace(
            w,
            output_norm=w.output_norm + np.float32(step) if is_output else w.output_norm,
            layers=tuple(map(_shifted_layer, w.layers, model.layers, repeat(step))) if is_layers else w.layers,
        ),
        is_checked=False,
    )


def _shifted_layer(weights: dict[str, Any], layer: Layer, step: int) -> dict[str, Any]:
    norms = shifted_norms(layer.block)
    return {name: x + np.float32(step) if name in norms else x for name, x in weights.items()}


def _parts(model: Model, windows: Sequence[Window], counted: float, progress: Progress | None) -> list[Finding]:
    """The part without which the trunk reads the text best, where that is better for sure and makes it readable."""
    n_bytes = sum(
        w.raw.nbytes for layer in model.weights.layers for w in layer.values() if isinstance(w, Matrix | Stack)
    )
    if n_bytes > LARGE:
        windows = [_cut(window) for window in windows]
    base = _lp(model, windows)
    best = (0.0, 0.0, "")
    for what, changed in _without(model):
        lp = _lp(changed, windows, progress)
        gain = (lp - base)[np.isfinite(base)]
        if is_surely_better(gain):
            best = max(best, (_nats(base) - _nats(lp), _nats(lp), what))
    gain_nats, nats, what = best
    if not what or nats >= counted:
        return []
    text = f"{nats + gain_nats:.2f} nats a token, and {nats:.2f} without it"
    return [Finding("trunk-part-harmful", what, text)]


def _without(model: Model) -> Iterator[tuple[str, Model]]:
    for il, layer in enumerate(model.layers):
        for part in PARTS:
            layers = (*model.layers[:il], without(layer, part), *model.layers[il + 1 :])
            yield f"blk.{il} {said(layer.block, part)}", replace(model, layers=layers, is_checked=False)


def is_surely_better(gain: Floats, least: float = PART_GAIN) -> bool:
    """By so many nats a token at least, by the means of blocks: neighbouring tokens share their luck."""
    n = len(gain) // BLOCK
    if n < 2 or not np.all(np.isfinite(gain)):
        return False
    blocks = gain[: n * BLOCK].reshape(n, BLOCK).mean(axis=1)
    error = float(blocks.std(ddof=1)) / np.sqrt(n)
    return bool(blocks.mean() >= least and blocks.mean() > SURE * error)


def entropy(ids: Sequence[int]) -> float:
    """Nats a token of a guess by the text's own counts: -sum p ln p."""
    p = np.array(list(Counter(ids).values()), np.float64) / len(ids)
    return float(-(p * np.log(p)).sum())


def _cut(window: Window) -> Window:
    positions = tuple(p for p in window.positions if p < N_TOKENS - 1)
    return replace(window, ids=window.ids[:N_TOKENS], positions=positions)


def _lp(model: Model, windows: Sequence[Window], progress: Progress | None = None) -> Floats:
    """Natural logarithms of the probabilities of the text's tokens, in order; NaN where none was asked for."""
    return np.concatenate([s.trunk.lp_text for s in walk_all(model, windows, [], progress)])


def _nats(lp: Floats) -> float:
    """Nats a token, of those that could be named; infinite where none could."""
    finite = lp[np.isfinite(lp)]
    return float(-finite.mean()) if len(finite) else float("inf")
