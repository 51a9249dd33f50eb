"""What a fault is: its name, what goes wrong, who had it, what it should do to a run, which entries it replaces."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model
from mtpref.engine.recipe import Recipe
from mtpref.engine.weights import MtpWeights, Weights
from mtpref.spec.ops import CoarseEntries, OpEntries, Ops
from mtpref.spec.steps import StepEntries, Steps

FAMILIES = {
    "W": "weights and conversion",
    "G": "graph of the MTP block, and of the trunk's layers",
    "E": "experts: router, experts, shared expert",
    "A": "attention through a latent row, over chosen cells, over windows and compressed rows",
    "H": "several residual streams (hyper-connections)",
    "C": "hand-over of hidden rows",
    "K": "the head's KV cache",
    "S": "recurrent state and roll back",
    "V": "verification, sampling and emission",
    "P": "policy",
    "L": "look-alikes: legal differences that are no faults",
}
BUG_TYPES = (
    "WRONG_WEIGHTS", "WRONG_LAYOUT", "WRONG_RULE", "MISSING_STEP", "DOUBLE_STEP", "STALE_STATE", "OFF_BY_ONE",
    "LOOK_ALIKE",
)  # fmt: skip
NEEDS = {
    "mtp": "a model with an MTP head",
    "sampling": "a temperature above 0",
    "residual": "a temperature above 0 and --spec-accept residual",
    "cooldown": "--spec-cooldown 1 or more",
    "batches": "a prompt longer than --batch-size",
    "n_min": "--spec-draft-n-min and --spec-draft-p-min above 0",
    "p_min": "--spec-draft-p-min above 0",
    "snapshot": "--spec-rollback snapshot",
    "rollback": "--spec-rollback snapshot or replay",
    "scaled rope": "RoPE scaling (--rope-scaling)",
    "wide kv": "a draft KV type other than f16 (-ctkd f32)",
    "wide numerics": "--numerics exact",
    "more drafts than heads": "--spec-draft-n-max above the number of heads",
    "eog": "an end-of-generation token inside a draft",
}


@dataclass(frozen=True)
class Signature:
    """What the mechanism predicts.

    dump        the first tensor, by its cb() name without the layer, that differs in a dump of a prompt; "" for none
    acceptance  a1 .. a4, in words    split: after a full acceptance against after a partial one, and the first round
    drift       with the length of the context or of the text
    text        whether greedy text stays right    distribution: whether sampled text follows the target
    """

    dump: str
    acceptance: str
    split: str = "the same"
    drift: str = "none"
    text: bool = True
    distribution: bool = True


def broken(dump: str, acceptance: str = "of another text: the trunk is broken, and the head with it") -> Signature:
    """What is predicted of a mistake in the trunk's layers."""
    return Signature(dump, acceptance, text=False, distribution=False)


@dataclass(frozen=True)
class Fault:
    """A known mistake: what it is, what it does, and how it is switched on.

    id           family letter, number and a few words; the name that people and files use
    mechanism      what goes wrong, in one or two sentences
    bug_type       one of BUG_TYPES
    replaces       the entries that differ afterwards: "ops.x", "mtp_ops.x" (the head's table alone), "steps.x",
                   "contract.x", "weights.x", or a field of the model
    predicted      what the mechanism predicts
    seen           (engine and thread, link) of real engines that had it; empty: not seen, it follows from the rules
    effect         what was reported there, in short; "" where nothing was measured
    needs          keys of NEEDS: without them the fault does nothing
    where          keys of places.PLACES, what the model must have: elsewhere the fault cannot be
    apply_recipe, apply_weights, apply_model   the replacement, as a function of what it replaces; one of them is given
    """

    id: str
    title: str
    mechanism: str
    bug_type: str
    replaces: tuple[str, ...]
    predicted: Signature
    seen: tuple[tuple[str, str], ...] = ()
    effect: str = ""
    needs: tuple[str, ...] = ("mtp",)
    where: tuple[str, ...] = ()
    apply_recipe: Callable[[Recipe], Recipe] | None = None
    apply_weights: Callable[[Weights], Weights] | None = None
    apply_model: Callable[[Model], Model] | None = None

    @property
    def family(self) -> str:
        return self.id[0]

    @property
    def links(self) -> tuple[str, ...]:
        return tuple(link for _, link in self.seen)

    @property
    def is_look_alike(self) -> bool:
        return self.family == "L"

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id, "family": self.family, "title": self.title, "mechanism": self.mechanism,
            "bug_type": self.bug_type, "is_look_alike": self.is_look_alike, "replaces": list(self.replaces),
            "needs": list(self.needs), "where": list(self.where),
            "seen": [list(pair) for pair in self.seen], "effect": self.effect, "predicted": vars(self.predicted),
        }  # fmt: skip


# ------------------------------------------------------------------------------- replacements, by what they replace


def head_ops(entries: Callable[[Ops], OpEntries]) -> Callable[[Recipe], Recipe]:
    """Other entries in the MTP block's own table; the trunk's is left alone."""
    return lambda recipe: replace(recipe, mtp_ops=_lasting(recipe.head_ops, entries(recipe.head_ops)))


def all_ops(entries: Callable[[Ops], OpEntries]) -> Callable[[Recipe], Recipe]:
    """Other entries in the table that trunk and head share."""

    def apply(recipe: Recipe) -> Recipe:
        new = entries(recipe.ops)
        mtp_ops = None if recipe.mtp_ops is None else _lasting(recipe.mtp_ops, new)
        return replace(recipe, ops=_lasting(recipe.ops, new), mtp_ops=mtp_ops)

    return apply


def _lasting(ops: Ops, new: OpEntries) -> Ops:
    """The table with other entries, of which the coarse ones stay when another fault replaces one of their parts."""
    coarse = {name: entry for name, entry in new.items() if name in ops.composed}
    return replace(ops.replaced(**new), composed=cast(CoarseEntries, {**ops.composed, **coarse}))


def steps(entries: Callable[[Steps], StepEntries]) -> Callable[[Recipe], Recipe]:
    """Other entries in the table of steps."""
    return lambda recipe: recipe.with_steps(**entries(recipe.steps))


def contract(**fields: Any) -> Callable[[Recipe], Recipe]:
    """Other fields of the contract."""
    return lambda recipe: replace(recipe, contract=replace(recipe.contract, **fields))


def head_weights(fields: Callable[[MtpWeights], dict[str, Any]]) -> Callable[[Model], Model]:
    """Other tensors in every head.

    Errors  MtprefError in a model without one
    """

    def apply(model: Model) -> Model:
        if not model.heads:
            raise MtprefError("fault: the model has no MTP head whose weights could be wrong; use a file with a head")
        for i, head in enumerate(model.heads):
            model = model.with_head(i, **fields(head.weights))
        return model

    return apply


def everywhere(recipe: Recipe) -> Recipe:
    """The recipe with the head's table for trunk and head: what a fault of an operation looks like to a test that
    calls the operation, or a layer, by itself."""
    return recipe if recipe.mtp_ops is None else replace(recipe, ops=recipe.mtp_ops, mtp_ops=None)
