"""Hypotheses: every way in which a run could have been made, as a function from a model to a model.

Owns the list: the healthy run, its legal variants (other contracts that engines are known to use, other numerics, other
KV types), every single field of the contract, every fault of the catalogue. It must not know what evidence looks like.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model, layers_read
from mtpref.engine.recipe import make_recipe
from mtpref.faults import FAULTS, Fault, inject, is_possible
from mtpref.spec.contract import CHOICES, OF_CELLS, OF_CHAINS, PRESETS, MtpContract

# What may be true before anything is looked at. Only ratios count.
PRIORS = {"healthy": 4.0, "preset": 1.0, "look-alike": 0.5, "contract": 0.3, "fault": 0.3}
HARMLESS = ("healthy", "preset", "look-alike")
KV_TYPES = ("F16", "F32", "BF16")


@dataclass(frozen=True)
class Hypothesis:
    """One explanation of what a port ran.

    id      "healthy", a fault's id, or what differs ("hidden=pre", "kv F32")
    kind    healthy, preset (healthy under another named contract), look-alike (legal difference of numerics), contract
            (one field of the contract differs), fault
    title   a few words, mechanism: what is going on, in a sentence or two
    prior   weight before the evidence
    apply   the model under this hypothesis
    link    where to read on, "" where there is nothing
    """

    id: str
    kind: str
    title: str
    mechanism: str
    apply: Callable[[Model], Model]
    link: str = ""

    @property
    def prior(self) -> float:
        return PRIORS[self.kind]

    @property
    def is_harmless(self) -> bool:
        return self.kind in HARMLESS


def list_hypotheses(model: Model) -> list[Hypothesis]:
    """All of them for this model, the healthy one first. The model's own contract and numerics are the healthy ones;
    a fault of a part that the model has not is none.

    Errors  MtprefError for a model without an MTP head
    """
    if not model.has_mtp:
        raise MtprefError(
            "diagnose: the model has no MTP head, expected one; use the file that the port runs, or give "
            "its head with `model_draft`"
        )
    healthy = Hypothesis("healthy", "healthy", "nothing is wrong", f"The contract is {model.contract_name}.", _same)
    return [healthy, *_presets(model), *_look_alikes(model), *_fields(model), *of_faults(model)]


def of_faults(model: Model | None = None) -> list[Hypothesis]:
    """The catalogue alone, look-alikes included. model: only what it can have; None: all"""
    return [_of_fault(fault) for fault in FAULTS.values() if model is None or is_possible(fault, model)]


def _same(model: Model) -> Model:
    return model


def with_contract(contract: MtpContract) -> Callable[[Model], Model]:
    return lambda model: replace(model, recipe=replace(model.recipe, contract=contract))


def _presets(model: Model) -> Iterator[Hypothesis]:
    own = model.recipe.contract
    for name, preset in PRESETS.items():
        contract = replace(preset.resolved(*model.own_rows), prompt_end=own.prompt_end)
        # Another offset is legal where keys and queries have it alike; an assistant's keys are its target's.
        is_legal = contract.pos_offset == own.pos_offset or not model.has_assistant
        if contract != own and is_legal and not (model.has_assistant and _are_same_but_cells(contract, own)):
            words = f"Nothing is wrong, but the head is fed by the contract {name}, not by {model.contract_name}."
            yield Hypothesis(
                f"contract {name}",
                "preset",
                f"contract {name}",
                words,
                with_contract(contract),
                "docs/spec.md#the-contract",
            )


def _are_same_but_cells(a: MtpContract, b: MtpContract) -> bool:
    """Whether two contracts differ only in what a head with cells of its own can show."""
    return replace(a, **{name: getattr(b, name) for name in OF_CELLS}) == b


def _fields(model: Model) -> Iterator[Hypothesis]:
    """One field changed, for each field that a run can show. Where a prompt ends is told by the evidence."""
    own, presets = model.recipe.contract, [preset.resolved(*model.own_rows) for preset in PRESETS.values()]
    for name, values in CHOICES.items():
        for value in values:
            if value == getattr(own, name) or name == "prompt_end":
                continue
            if (name in OF_CHAINS and len(model.heads) < 2) or (name in OF_CELLS and model.has_assistant):
                continue
            contract = replace(own, **{name: value})  # type: ignore[arg-type]
            if contract in presets or not model.can_take(contract):
                continue
            words = f"The contract's {name} is {value} in the port, {getattr(own, name)} in {model.contract_name}."
            title = f"contract: {name}={value}"
            yield Hypothesis(
                f"{name}={value}", "contract", title, words, with_contract(contract), "docs/spec.md#the-contract"
            )


def _look_alikes(model: Model) -> Iterator[Hypothesis]:
    """What changes numbers and is no fault."""
    for kv_type in KV_TYPES:
        if (kv_type, kv_type) != (model.kv_type, model.kv_type_draft):
            words = f"The KV cells are {kv_type}: a legal difference of numerics."
            yield Hypothesis(f"kv {kv_type}", "look-alike", f"{kv_type} KV cells", words, with_kv(kv_type))


def with_other_numerics(model: Model) -> Model:
    """The model in the other numerics: what every hypothesis may be laid over."""
    recipe = make_recipe("exact" if model.recipe.numerics == "ggml" else "ggml", model.recipe.contract)
    return replace(model, recipe=replace(recipe, steps=model.recipe.steps))


def with_kv(kv_type: str) -> Callable[[Model], Model]:
    return lambda model: replace(model, kv_type=kv_type, kv_type_draft=kv_type)


def _of_fault(fault: Fault) -> Hypothesis:
    is_legal = bool(getattr(fault, "is_look_alike", False))
    kind = "look-alike" if is_legal else "fault"
    link = f"docs/faults.md#{fault.id.lower()}"
    return Hypothesis(fault.id, kind, fault.title, fault.mechanism, lambda model: inject(model, fault), link)


def shares_trunk(model: Model, base: Model) -> bool:
    """Whether the trunk gives the same bits in both: only the head, or what the loop does with it, differs."""
    a, b = model.weights, base.weights
    trunk = ("token_embd", "output_norm", "output", "layers")
    return (
        model.recipe.ops == base.recipe.ops
        and model.layers is base.layers
        and model.config is base.config
        and model.kv_type == base.kv_type
        and all(getattr(a, name) is getattr(b, name) for name in trunk)
    )


# What a pass over a prompt goes by, beside operations and weights.
PASS_STEPS = (
    "target_hidden", "pair_hidden", "mtp_embedding", "mtp_positions", "place_mtp", "catch_up_rows", "cells_to_read",
    "draft_position",
)  # fmt: skip
PASS_FIELDS = ("hidden", "concat", "first", "pos_offset", "catch_up")


def shares_pass(model: Model, base: Model) -> bool:
    """Whether a pass over a prompt gives the same bits in both, through trunk and head."""
    a, b = model.recipe, base.recipe
    return (
        shares_trunk(model, base)
        and a.head_ops == b.head_ops
        and model.heads is base.heads
        and model.kv_type_draft == base.kv_type_draft
        and all(getattr(a.steps, name) is getattr(b.steps, name) for name in PASS_STEPS)
        and all(getattr(a.contract, name) == getattr(b.contract, name) for name in PASS_FIELDS)
    )


def shares_rollback(model: Model, base: Model) -> bool:
    """Whether the trunk's state is rolled back alike in both."""
    names = ("restore", "choose_plane")
    return all(getattr(model.recipe.steps, name) is getattr(base.recipe.steps, name) for name in names)


def shares_cells(model: Model, base: Model) -> bool:
    """Whether a head without cells of its own is shown the same cells in both."""
    is_same = model.recipe.steps.cells_to_read is base.recipe.steps.cells_to_read
    return is_same and layers_read(model) == layers_read(base)


# Steps that a forced greedy replay never takes: gates of the policy, what belongs to a temperature or to sessions.
UNUSED_STEPS = (
    "draw", "match_token", "bonus_token", "accept_residual", "residual", "target_distribution", "keeps_drawn", "takes",
    "proposed", "ends_text", "pending_at_prompt",
)  # fmt: skip


def shares_run(model: Model, base: Model) -> bool:
    """Whether a forced greedy replay of one prompt sees the same bits in both."""
    neutral = {name: getattr(base.recipe.steps, name) for name in UNUSED_STEPS}
    contract = replace(model.recipe.contract, new_prompt=base.recipe.contract.new_prompt)
    recipe = replace(model.recipe, steps=replace(model.recipe.steps, **neutral), contract=contract)
    others = [f.name for f in fields(Model) if f.name not in ("recipe", "is_checked", "changes")]  # these change no bit
    return recipe == base.recipe and all(getattr(model, name) is getattr(base, name) for name in others)
