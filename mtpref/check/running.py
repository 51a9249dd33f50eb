"""The head run beside itself with one thing changed, on a built-in text: which change would make it better?

Owns the hypotheses and the rule by which one is believed. A norm's convention is decided here and nowhere else: 1 is
added to it or taken from it, and what the trunk accepts is counted at the same positions. All variants share one trunk
pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mtpref.check.findings import Finding
from mtpref.heads.proof import BLOCK, built_in_texts, window_of
from mtpref.model import Model
from mtpref.probe.controls import MAIN, Control, compare_controls, controls
from mtpref.probe.count import Estimate, Judged, difference, judge
from mtpref.probe.texts import windows_of
from mtpref.probe.walk import Progress, Seen, Variant, walk_all
from mtpref.spec import Matrix
from mtpref.weights import MtpWeights

N_DRAFT = 3
# A change is believed when it gains this much, and this many half intervals of 95 % lie between the gain and 0. With
# about 30 changes tried, 2 of them (3.9 standard errors) is a chance of one in 300 for a head that is sound.
LEAST_GAIN, SURE = 0.02, 2.0
TRUNK_GAIN = 0.2  # nats a token
GUESSES = ("shifted-target", "shuffled-drafts", "constant", "random")
_PRE_FC, _BLOCK = ("enorm", "hnorm"), ("attn_norm", "post_attention_norm", "attn_q_norm", "attn_k_norm")


@dataclass(frozen=True)
class Ran:
    """What a run gave, for the report."""

    seen: list[Seen]
    a: list[Estimate]  # a_1 .. a_n, unconditional
    controls: list[Control]
    n_positions: int

    def judged(self, name: str = MAIN) -> Judged:
        return judge(self.seen, name, "trunk", BLOCK)


def run(model: Model, n_positions: int, progress: Progress | None = None) -> tuple[Ran, list[Finding]]:
    """Run the head and all its variants.

    n_positions   at most so many of each of the two texts
    """
    windows = windows_of(built_in_texts(model), window_of(model), 1, n_positions)
    controlled, changed = controls(model), _changes(model)
    main = Variant(MAIN, model, N_DRAFT)
    seen = walk_all(model, windows, [main, *controlled, *(v for v, _ in changed)], progress)
    judged = judge(seen, MAIN, "trunk", BLOCK)
    ran = Ran(seen, judged.unconditional(), compare_controls(seen, controlled, BLOCK), judged.n_reached[0])
    found = _constant(seen) + _against_controls(ran)
    if not any(f.id == "constant-draft" for f in found):
        found += _better(ran, changed)
    found += _trunk(model, windows, seen)
    return ran, [_acceptance(ran), *found]


def _acceptance(ran: Ran) -> Finding:
    rates = ", ".join(f"a_{i + 1} {a.shown()}" for i, a in enumerate(ran.a))
    named = ", ".join(f"{c.name} {c.rate.shown()}" for c in ran.controls)
    return Finding("acceptance", f"{ran.n_positions} positions", f"{rates}; controls: {named}")


# WHAT THE CONTROLS SAY


def _constant(seen: list[Seen]) -> list[Finding]:
    drafts = np.concatenate([s.heads[MAIN].draft[:, 0] for s in seen])
    if len(drafts) > 20 and len(set(drafts.tolist())) == 1:
        return [Finding("constant-draft", f"id {drafts[0]}", f"drafted at all of {len(drafts)} positions")]
    return []


def _against_controls(ran: Ran) -> list[Finding]:
    by_name = {c.name: c for c in ran.controls}
    other = by_name["other-hidden"]
    if other.is_beaten is None:
        return [Finding("too-little", f"{ran.n_positions} positions", "too few for intervals")]
    lost = [name for name in GUESSES if not by_name[name].is_beaten]
    if lost:
        named = ", ".join(f"{name} {by_name[name].rate.shown()}" for name in lost)
        return [Finding("head-useless", f"a_1 {ran.a[0].shown()}", f"not above {named}")]
    if not other.is_beaten:
        text = f"with the hidden row of 64 positions earlier {other.rate.shown()}, expected clearly less"
        return [Finding("head-ignores-trunk", f"a_1 {ran.a[0].shown()}", text)]
    return []


# CHANGES

Change = Callable[[MtpWeights], MtpWeights]


def _changes(model: Model) -> list[tuple[Variant, str]]:
    """(variant, id of the finding if it is better). Its `about` says what is changed."""
    mtp = model.weights.mtp
    assert mtp is not None
    out: list[tuple[Variant, str]] = []

    def add(name: str, about: str, id: str, change: Change) -> None:
        changed = replace(model, weights=replace(model.weights, mtp=change(mtp)), is_checked=False)
        out.append((Variant(name, changed, 1, about), id))

    own = [*_PRE_FC, *_BLOCK] + (
        [] if "shared_head_norm" in mtp.borrowed or _shares_norm(mtp) else ["shared_head_norm"]
    )
    groups: list[tuple[str, tuple[str, ...]]] = [(name, (name,)) for name in own]
    groups += [("all norms of the head", tuple(own)), ("the layer's norms", _BLOCK), ("enorm and hnorm", _PRE_FC)]
    for label, names in groups:
        for step, word in ((1, "1 added to"), (-1, "1 taken from")):
            add(f"{step:+d} {label}", f"{word} {label}", "norm-convention", _shift(names, step))
    n = mtp.eh_proj.n_in // 2
    add("no embedding half", "the embedding half of eh_proj zero", "part-harmful", _zeroed(slice(0, n)))
    add("no hidden half", "the hidden half of eh_proj zero", "part-harmful", _zeroed(slice(n, None)))
    no_ffn = replace(model, recipe=model.recipe.with_ops(ffn=_adds_nothing), is_checked=False)
    out.append((Variant("no-ffn", no_ffn, 1, "the feed-forward adding zero"), "part-harmful"))
    return out


def _adds_nothing(ops: Any, w: Any, x: Any, *rest: Any) -> Any:
    return np.zeros_like(x)


def _shares_norm(mtp: MtpWeights) -> bool:
    return not mtp.origin.get("shared_head_norm", "").endswith("nextn.shared_head_norm.weight")


def _shift(names: tuple[str, ...], step: int) -> Change:
    def change(mtp: MtpWeights) -> MtpWeights:
        direct = {name: getattr(mtp, name) + np.float32(step) for name in names if name not in _BLOCK}
        block = {
            key: value + np.float32(step) if key.removesuffix(".weight") in names else value
            for key, value in mtp.block.items()
        }
        return replace(mtp, block=block, **direct)

    return change


def _zeroed(columns: slice) -> Change:
    def change(mtp: MtpWeights) -> MtpWeights:
        w = mtp.eh_proj
        x = w.dequantize().astype(np.float16)
        x[:, columns] = 0
        return replace(mtp, eh_proj=Matrix(w.name, "F16", w.n_out, w.n_in, x.view(np.uint8).reshape(-1)))

    return change


def is_sure(gain: Estimate, least: float = LEAST_GAIN) -> bool:
    """Whether a gain is believed: large enough, and many half intervals from 0."""
    if gain.value is None or gain.low is None:
        return False
    return gain.value >= least and gain.value - SURE * (gain.value - gain.low) > 0


def _better(ran: Ran, changed: list[tuple[Variant, str]]) -> list[Finding]:
    """Of the changes that are surely better, the best; of contracts that fit better, the same."""
    main = ran.judged()
    first = Judged(main.reached[:, :1], main.right[:, :1], main.blocks)
    known = [(v.name, v.about, id) for v, id in changed]
    known += [(c.name, c.about, "halves-swapped") for c in ran.controls if c.name.startswith("concat=")]
    known += [
        (c.name, "the layer's attention adding zero", "part-harmful") for c in ran.controls if c.name == "no-attention"
    ]
    gains = [(difference(ran.judged(name), first), ran.judged(name), about, id) for name, about, id in known]
    sure = [row for row in gains if is_sure(row[0])]
    if sure:
        gain, judged, about, id = max(sure, key=lambda row: row[0].value or 0.0)
        text = f"a_1 is {ran.a[0].shown()}, and {judged.unconditional()[0].shown()} with {about} (gain {gain.shown()})"
        return [Finding(id, about, text)]
    unused = []
    for gain, judged, about, _ in gains:
        if "half of eh_proj" in about and gain.low is not None and (gain.value or 0.0) > -0.01 and gain.low > -0.02:
            text = f"a_1 is {ran.a[0].shown()}, and {judged.unconditional()[0].shown()} with {about}"
            unused.append(Finding("half-unused", about, text))
    return unused


# TRUNK


def _trunk(model: Model, windows: Any, seen: list[Seen]) -> list[Finding]:
    """Whether the trunk reads the text better with its norms shifted by one."""
    base = _log_likelihood(seen)
    for step, word in ((1, "1 added to"), (-1, "1 taken from")):
        shifted = replace(model, weights=replace(
            model.weights,
            output_norm=model.weights.output_norm + np.float32(step),
            layers=tuple(_shifted_layer(layer, step) for layer in model.weights.layers),
        ), is_checked=False)  # fmt: skip
        gain = _log_likelihood(walk_all(shifted, windows, [])) - base
        if gain > TRUNK_GAIN:
            text = f"{-base:.2f} nats a token, and {-base - gain:.2f} with {word} every norm of the trunk"
            return [Finding("trunk-norm-convention", "the trunk's norms", text)]
    return []


def _shifted_layer(layer: dict[str, Any], step: int) -> dict[str, Any]:
    return {
        name: x + np.float32(step) if name.endswith("norm.weight") and name != "ssm_norm.weight" else x
        for name, x in layer.items()
    }


def _log_likelihood(seen: list[Seen]) -> float:
    """Mean natural logarithm of the probability of the text's tokens."""
    values = np.concatenate([s.trunk.lp_text for s in seen])
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("-inf")
