"""Negative controls and other contracts: heads that are fed wrongly on purpose, and guesses that need no head.

Owns what each is. All of them are changes of the probe's own recipe, on the same trunk rows and positions as the head
that is probed; a rate means something as far as it is above theirs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref import spec
from mtpref.engine.model import Model
from mtpref.engine.model.model import Part
from mtpref.measure.probe.count import Bools, Estimate, Judged, block_ids, difference, is_sure, judge
from mtpref.measure.probe.walk import Seen, Variant
from mtpref.spec.contract import CHOICES, OF_CELLS, OF_CHAINS, PRESETS, MtpContract, describe

MAIN = "head"
DELAY = 64
# What a text cannot show: these fields speak of the loop between two rounds, not of a head over a text.
# Controls that a sound head need not beat: a near miss by nature, and its own parts on a text that has no use for them.
NEAR, PARTS = ("hidden=pre", "hidden=post"), ("prime=none", "no-attention")
MONOTONOUS = 0.5  # of the trunk's choices are one token: the text tells no head from a guess
INVISIBLE = ("prompt_end", "new_prompt", "replay", *OF_CHAINS)


def with_contract(model: Model, contract: MtpContract) -> Model:
    return replace(model, recipe=replace(model.recipe, contract=contract))


def controls(model: Model) -> list[Variant]:
    """The controls that run the head, one draft step each."""
    contract = model.recipe.contract
    other_norm = "pre" if contract.hidden == "post" else "post"
    other_order = "he" if contract.concat == "eh" else "eh"
    out = []
    if model.can_take(other := replace(contract, hidden=other_norm)):
        about = f"the trunk's rows {'before' if other_norm == 'pre' else 'after'} the final norm; a near miss by nature"
        out.append(Variant(f"hidden={other_norm}", with_contract(model, other), 1, about))
    out += [
        Variant(
            f"concat={other_order}",
            with_contract(model, replace(contract, concat=other_order)),
            1,
            "the halves of eh_proj's input swapped",
        ),
    ]
    if contract.prime == "prompt" and not model.has_assistant:
        unprimed = with_contract(model, replace(contract, prime="none"))
        out.append(Variant("prime=none", unprimed, 1, "the head's KV holds nothing of the text"))
    out.append(Variant("no-attention", head_without(model, "mixer"), 1, "the block's attention adds zero"))
    out.append(Variant("other-hidden", model, 1, f"the hidden row of {DELAY} positions earlier", DELAY))
    return out


def head_without(model: Model, part: Part) -> Model:
    """The model with a part of its heads' blocks adding zero, whatever kind of layer that is."""
    heads = []  # without any: refused where a head is run
    for head in model.heads:
        before = tuple(layer.with_forward(part, adds_nothing) for layer in head.before)
        heads.append(replace(head, before=before, layer=head.layer.with_forward(part, adds_nothing)))
    return replace(model, heads=tuple(heads))


def adds_nothing(w: Any, cfg: Any, x: NDArray[np.float32], *rest: Any) -> NDArray[np.float32]:
    """A part, or an entry of the table with its third argument for rows, that gives zeros."""
    return np.zeros_like(x)


def contracts(model: Model, n_draft: int) -> list[Variant]:
    """The probed contract, the presets, and every change of a single field that a text can show."""
    base = model.recipe.contract
    wanted = [base, *(preset.resolved(*model.own_rows) for preset in PRESETS.values())]
    for field in fields(MtpContract):
        if field.name not in invisible(model):
            wanted += [replace(base, **{field.name: choice}) for choice in CHOICES[field.name]]  # type: ignore[arg-type]
    wanted = [contract for contract in wanted if model.can_take(contract)]
    hidden_fields = invisible(model)
    unique = {_visible(contract, hidden_fields): contract for contract in reversed(wanted)}
    return [
        Variant(describe(contract, *model.own_rows), with_contract(model, contract), n_draft)
        for contract in dict.fromkeys(unique[_visible(c, hidden_fields)] for c in wanted)
    ]


def invisible(model: Model) -> tuple[str, ...]:
    """The fields of a contract that a text does not show: of an assistant, those of cells of its own as well."""
    return (*INVISIBLE, *OF_CELLS) if model.has_assistant else INVISIBLE


def _visible(contract: MtpContract, hidden_fields: Sequence[str]) -> tuple[Any, ...]:
    return tuple(getattr(contract, f.name) for f in fields(MtpContract) if f.name not in hidden_fields)


@dataclass(frozen=True)
class Control:
    """A control's a_1 and how far the head is above it, at the same positions."""

    name: str
    about: str
    rate: Estimate
    head_less_control: Estimate

    @property
    def is_beaten(self) -> bool | None:
        """Whether the head is above it for sure; None: too little text to say."""
        low = self.head_less_control.low
        return None if low is None else low > 0

    @property
    def less_head(self) -> Estimate:
        """How far it is above the head."""
        e = self.head_less_control
        flipped = (None if x is None else -x for x in (e.value, e.high, e.low))
        return Estimate(*flipped)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "about": self.about,
            "a1": self.rate.to_json(),
            "head_less_control": self.head_less_control.to_json(),
            "is_beaten": self.is_beaten,
        }


def compare_controls(windows: Sequence[Seen], variants: Sequence[Variant], block: int) -> list[Control]:
    """Every control beside the head: those that ran it, and four that need no run."""
    head = _first_step(judge(windows, MAIN, "trunk", block))
    rows = [(v.name, v.about, _first_step(judge(windows, v.name, "trunk", block))) for v in variants]
    blocks = block_ids(windows, block)
    for name, about, right in _guesses(windows):
        rows.append((name, about, Judged(head.reached, right[:, None], blocks)))
    return [Control(n, about, judged.unconditional()[0], difference(head, judged)) for n, about, judged in rows]


def _first_step(judged: Judged) -> Judged:
    return Judged(judged.reached[:, :1], judged.right[:, :1], judged.blocks)


def _guesses(windows: Sequence[Seen]) -> list[tuple[str, str, Bools]]:
    draft = np.concatenate([seen.heads[MAIN].draft[:, 0] for seen in windows])
    target = np.concatenate([seen.trunk.target[list(seen.window.positions)] for seen in windows])
    behind = np.concatenate([_target_behind(seen) for seen in windows])
    n_vocab = 1 + int(max(target.max(), draft.max()))
    commonest = min(Counter(target.tolist()).items(), key=lambda item: (-item[1], item[0]))[0]
    random = np.array([int(spec.uniform(0, 1, i) * n_vocab) for i in range(len(draft))])
    return [
        ("shifted-target", "the head's drafts against the trunk's argmax one position later", draft == behind),
        ("shuffled-drafts", "the head's drafts of other positions", np.roll(draft, len(draft) // 2) == target),
        ("constant", f"always token {commonest}, the trunk's commonest argmax here", target == commonest),
        ("random", "ids drawn at random", random == target),
    ]


def _target_behind(seen: Seen) -> NDArray[np.int64]:
    row = np.asarray(seen.window.positions) + 1
    target: NDArray[np.int64] = seen.trunk.target[np.minimum(row, len(seen.trunk.target) - 1)]
    return np.where(row < len(seen.trunk.target), target, -2)


def verdict(found: Sequence[Control], contracts_shown: bool = False) -> str:
    """One line: whether the rate means something.

    contracts_shown   the table of contracts is in the same report, so that it need not be advised
    """
    if any(control.is_beaten is None for control in found):
        return (
            "verdict: too little text for intervals (10 blocks are needed); the rates beside are all there is to go by"
        )
    lost = [control for control in found if not control.is_beaten]
    near = [control for control in lost if control.name in NEAR and not is_sure(control.less_head)]
    parts = [control for control in lost if control.name in PARTS and not is_sure(control.less_head)]
    wrong = [control for control in lost if control not in near and control not in parts]
    notes = []
    if near:
        notes.append(
            f"{_named(near)} is a near miss by nature, which a sound head need not beat (hnorm takes the scale out)"
        )
    if parts:
        notes.append(f"not told from {_named(parts)}: its attention adds nothing sure on this text")
    if wrong:
        return "; ".join(
            [f"verdict: the head is NOT better than {_named(wrong)}{_advice(wrong, contracts_shown)}", *notes]
        )
    others = [control for control in found if control not in lost]
    best = max(others, key=lambda control: control.rate.value or 0.0)
    every = "every other control" if lost else "every control"
    said = f"verdict: the head is above {every}; the best of them is {best.name} with {_rate(best.rate)}"
    return "; ".join([said, *notes])


def _advice(wrong: Sequence[Control], contracts_shown: bool) -> str:
    """What the controls that the head does not beat say, and what to try."""
    by_name = {control.name: control for control in wrong}
    constant = by_name.get("constant")
    if constant is not None and (constant.rate.value or 0.0) >= MONOTONOUS:
        return "; the trunk says one token at most positions: take another text"
    if any(name.startswith(("hidden=", "concat=")) for name in by_name):
        seen = "see the contracts below" if contracts_shown else "try: --contracts"
        return f"; is the contract the right one? {seen}"
    if any(name in PARTS for name in by_name):
        return "; its attention does harm here; try: mtpref check"
    return "; try: mtpref check"


def _named(found: Sequence[Control]) -> str:
    return ", ".join(f"{control.name} ({_rate(control.rate)})" for control in found)


def _rate(rate: Estimate) -> str:
    return "-" if rate.value is None else f"{rate.value:.3f}"
