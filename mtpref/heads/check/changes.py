"""One thing of the head changed: which change would make it better, and is that change what is wrong?

Owns the hypotheses and the rules by which one is believed. A norm's convention is decided here and nowhere else: 1 is
added to it or taken from it, and what the trunk accepts is counted at the same positions.

A change that undoes a mistake gives the head back most of what it lacks. One that gains a little of it shows that
something is wrong, and not what: a damaged part can be made up for elsewhere. The mean of a layer norm, which is not
enough to accuse one, is enough to acquit: no change is a cause that takes it away from the trunk's norms of its kind.
One that brings it there, and makes the head better for sure, is a cause however little it gains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mtpref.engine.model import Model
from mtpref.engine.weights import MtpWeights
from mtpref.heads.check.findings import Finding
from mtpref.heads.check.parts import PARTS, said, word
from mtpref.heads.proof import BLOCK
from mtpref.measure.probe.controls import MAIN, adds_nothing, head_without
from mtpref.measure.probe.count import Estimate, Judged, difference, is_sure, judge
from mtpref.measure.probe.walk import Seen, Variant
from mtpref.spec import Matrix

MENDS = 1 / 4  # of all that a head can lack, 1 - a_1: what the change that undoes a mistake gains at least
AWAY, NEARER = 0.25, 0.5  # a layer norm's mean, by so much farther from the trunk's: no cause; nearer: one
_PRE_FC, _LAST, _QUERIES = ("enorm", "hnorm"), "shared_head_norm", "attn_q_norm.weight"

Change = Callable[[MtpWeights], MtpWeights]


@dataclass(frozen=True)
class Tried:
    """A changed head. id: of the finding if it is better for sure; part: what is left out, in place of what is undone

    norms, step   the norms that are shifted, and by what
    """

    variant: Variant
    id: str
    about: str
    part: str = ""
    norms: tuple[str, ...] = ()
    step: int = 0


@dataclass(frozen=True)
class _Result:
    tried: Tried
    gain: Estimate
    rate: Estimate


def changes(model: Model, controlled: Sequence[Variant]) -> list[Tried]:
    """All that is tried; of the controls those that are changes of this kind."""
    mtp, block = model.heads[0].weights, _block_norms(model)
    own = (*_PRE_FC, *block, *(() if _shares_norm(mtp) else (_LAST,)))
    groups: list[tuple[str, tuple[str, ...]]] = [(name, (name,)) for name in own]
    groups += [("all norms of the head", own), ("the layer's norms", block), ("enorm and hnorm", _PRE_FC)]
    out = []
    for label, names in groups:
        for step, does in ((1, "1 added to"), (-1, "1 taken from")):
            changed = _with(model, _shift(names, step))
            variant = Variant(f"{step:+d} {label}", changed, 1)
            out.append(Tried(variant, "norm-convention", f"{does} {label}", norms=names, step=step))
    for variant in controlled:
        if variant.name.startswith("concat="):
            out.append(Tried(variant, "halves-swapped", variant.about))
    return out + _exchanged(model) + _without_parts(model, controlled)


def _exchanged(model: Model) -> list[Tried]:
    """Two weights of one shape, each in the other's place."""
    mtp = model.heads[0].weights
    changed: list[tuple[str, dict[str, Any]]] = [("enorm and hnorm", {"enorm": mtp.hnorm, "hnorm": mtp.enorm})]
    for suffix, whose in (("", "the feed-forward"), ("_exps", "the experts"), ("_shexp", "the shared expert")):
        gate, up = f"ffn_gate{suffix}.weight", f"ffn_up{suffix}.weight"
        if gate in mtp.block and up in mtp.block:
            block = mtp.block | {gate: mtp.block[up], up: mtp.block[gate]}
            changed.append((f"gate and up of {whose} (ffn_gate{suffix}, ffn_up{suffix})", {"block": block}))
    out = []
    for label, fields in changed:
        variant = Variant(f"{label} exchanged", replace(model.with_head(**fields), is_checked=False), 1)
        out.append(Tried(variant, "exchanged", f"{label} exchanged"))
    return out


def _without_parts(model: Model, controlled: Sequence[Variant]) -> list[Tried]:
    """Each part left out."""
    head = model.heads[0]
    n, block = head.weights.eh_proj.n_in // 2, head.layer.block
    attention = next(v for v in controlled if v.name == "no-attention")
    no_ffn = replace(head_without(model, "ffn"), is_checked=False)
    mixer, ffn = (f"the {said(block, part)}" for part in PARTS)
    parts = [
        (attention, f"the layer's {word(block, 'mixer')} adding zero", mixer),
        (Variant("even attention", _with(model, _even), 1), "attention that weighs all positions alike",
         "what the attention looks at (attn_q, attn_k and their norms)"),
        (Variant("no-ffn", no_ffn, 1), "the feed-forward adding zero", ffn),
        *_of_experts(model),
        (Variant("no embedding half", _with(model, _zeroed(slice(0, n))), 1), "the embedding half of eh_proj zero",
         "the embedding half (enorm, eh_proj)"),
        (Variant("no hidden half", _with(model, _zeroed(slice(n, None))), 1), "the hidden half of eh_proj zero",
         "the hidden half (hnorm, eh_proj)"),
    ]  # fmt: skip
    has_queries = _QUERIES in model.heads[0].weights.block
    kept = [part for part in parts if has_queries or part[0].name != "even attention"]
    return [Tried(variant, "part-harmful", about, part) for variant, about, part in kept]


def _of_experts(model: Model) -> list[tuple[Variant, str, str]]:
    """What an experts' network adds up, each left out where there is more than one."""
    block = model.heads[0].weights.block
    if "ffn_down_exps.weight" not in block or "ffn_down_shexp.weight" not in block:
        return []
    no_experts = replace(model, recipe=model.recipe.with_ops(experts=adds_nothing), is_checked=False)
    no_shared = replace(model, recipe=model.recipe.with_ops(shared_expert=adds_nothing), is_checked=False)
    return [
        (Variant("no-experts", no_experts, 1), "the experts adding zero",
         "the experts (ffn_gate_inp, exp_probs_b, ffn_*_exps)"),
        (Variant("no-shared-expert", no_shared, 1), "the shared expert adding zero",
         "the shared expert (ffn_gate_inp_shexp, ffn_*_shexp)"),
    ]  # fmt: skip


def _block_norms(model: Model) -> tuple[str, ...]:
    """The norms of the head's block, as its data sheet has them."""
    names = (t.name.removesuffix(".weight") for t in model.heads[0].layer.block.all_tensors() if len(t.shape) == 1)
    return tuple(name for name in names if name.endswith("norm"))


def _with(model: Model, change: Change) -> Model:
    return replace(
        model,
        heads=(replace(model.heads[0], weights=change(model.heads[0].weights)), *model.heads[1:]),
        is_checked=False,
    )


def _shares_norm(mtp: MtpWeights) -> bool:
    is_own = mtp.origin.get("shared_head_norm", "").endswith("nextn.shared_head_norm.weight")
    return "shared_head_norm" in mtp.borrowed or not is_own


def _shift(names: tuple[str, ...], step: int) -> Change:
    def change(mtp: MtpWeights) -> MtpWeights:
        direct = {name: getattr(mtp, name) + np.float32(step) for name in names if name in (*_PRE_FC, _LAST)}
        block = {
            key: value + np.float32(step) if key.removesuffix(".weight") in names else value
            for key, value in mtp.block.items()
        }
        return replace(mtp, block=block, **direct)

    return change


def _even(mtp: MtpWeights) -> MtpWeights:
    """Queries of zero, where a norm makes them: all scores are equal."""
    if _QUERIES not in mtp.block:
        return mtp
    return replace(mtp, block=mtp.block | {_QUERIES: np.zeros_like(mtp.block[_QUERIES])})


def _zeroed(columns: slice) -> Change:
    def change(mtp: MtpWeights) -> MtpWeights:
        w = mtp.eh_proj
        x = w.dequantize().astype(np.float16)
        x[:, columns] = 0
        return replace(mtp, eh_proj=Matrix(w.name, "F16", w.n_out, w.n_in, x.view(np.uint8).reshape(-1)))

    return change


# WHAT IS BELIEVED


def explain(model: Model, seen: Sequence[Seen], tried: Sequence[Tried], *, is_lost: bool) -> list[Finding]:
    """The change that undoes what is wrong; else the part that does harm; else that something is wrong, not what.

    is_lost   the head is no better than a guess, or ignores the trunk: then a part that is idle says nothing more
    """
    main = judge(seen, MAIN, "trunk", BLOCK)
    first = Judged(main.reached[:, :1], main.right[:, :1], main.blocks)
    a = main.unconditional()[0]
    results = []
    for one in tried:
        judged = judge(seen, one.variant.name, "trunk", BLOCK)
        results.append(_Result(one, difference(judged, first), judged.unconditional()[0]))
    sure = sorted((r for r in results if is_sure(r.gain)), key=lambda r: -(r.gain.value or 0.0))
    for believed in (_mends, _harms):
        found = next((r for r in sure if believed(model, r, a)), None)
        if found is not None:
            return [Finding(found.tried.id, found.tried.part or found.tried.about, _text(found, a))]
    idle = [] if is_lost else _idle(results, a)
    if sure:
        text = f"{_text(sure[0], a)}: too little to be what is wrong, or against the trunk's own norms"
        return [Finding("head-unclear", "the head", text), *idle]
    return idle


def _text(r: _Result, a: Estimate) -> str:
    return f"a_1 is {a.shown()}, and {r.rate.shown()} with {r.tried.about} (gain {r.gain.shown()})"


def _mends(model: Model, r: _Result, a: Estimate) -> bool:
    """Whether a change gives back enough to be the mistake undone, or as much as the norms' means bear out."""
    if r.tried.part:
        return False
    moves = [_moves_away(model, name, r.tried.step) for name in r.tried.norms]
    if any(move is not None and move > AWAY for move in moves):
        return False
    is_borne_out = bool(moves) and all(move is not None and move < -NEARER for move in moves)
    return is_borne_out or (r.gain.value or 0.0) >= MENDS * (1 - (a.value or 0.0))


def _harms(model: Model, r: _Result, a: Estimate) -> bool:
    return bool(r.tried.part)


def _moves_away(model: Model, name: str, step: int) -> float | None:
    """By how much a shift takes a layer norm's mean away from those of the trunk's layers like it; None: no such."""
    key = f"{name}.weight"
    if not model.heads or key not in model.heads[0].weights.block:
        return None
    own = model.heads[0].layer.kind
    alike = (w for layer, w in zip(model.layers, model.weights.layers, strict=True) if layer.kind == own)
    trunk = [float(w[key].mean()) for w in alike if key in w]
    if not trunk:
        return None
    distance = float(model.heads[0].weights.block[key].mean()) - float(np.median(trunk))
    return abs(distance + step) - abs(distance)


def _idle(results: Sequence[_Result], a: Estimate) -> list[Finding]:
    """Parts without which the head is not worse for sure; of the attention the whole, or what it looks at."""
    idle = [r for r in results if r.tried.part and r.gain.high is not None and r.gain.high >= 0]
    if any(r.tried.variant.name == "no-attention" for r in idle):
        idle = [r for r in idle if r.tried.variant.name != "even attention"]
    if not idle:
        return []
    texts = [f"{r.rate.shown()} with {r.tried.about}" for r in idle]
    which = "" if len(idle) == 1 else "; several at once: the fault may be none of them, but what feeds them"
    parts = ", ".join(r.tried.part for r in idle)
    return [Finding("part-idle", parts, f"a_1 is {a.shown()}, and {', '.join(texts)}{which}")]
