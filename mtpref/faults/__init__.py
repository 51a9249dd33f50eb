"""Injectable faults: real bugs of real engines, as replacements of single entries of the recipe or of weights.

Owns the catalogue and `inject`. The reference knows nothing of it: no other room may name a fault. Families (a file
each, but G's trunk layers in trunk.py, G and E of parts side by side or alone in parts.py, A's indexer and compressed
rows in files of these names, and what only an assistant can have in assistant.py): W weights, G graph, E experts, A
attention through a latent row, H residual streams, C hand-over of hidden rows, K the head's KV cache, S recurrent state
and roll back, V verification and sampling, P policy; L are look-alikes, legal differences that are no faults. Which of
them a model can have: places.py.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model
from mtpref.faults import (
    assistant,
    cache,
    chain,
    compressed,
    experts,
    graph,
    indexer,
    latent,
    look_alikes,
    parts,
    policy,
    rollback,
    streams,
    trunk,
    verify,
    weights,
    windowed,
)
from mtpref.faults.fault import BUG_TYPES, FAMILIES, NEEDS, Fault, Signature, everywhere
from mtpref.faults.places import PLACES, idle_entries, lacking

__all__ = [
    "BUG_TYPES",
    "FAMILIES",
    "FAULTS",
    "NEEDS",
    "PLACES",
    "Fault",
    "Signature",
    "everywhere",
    "find_fault",
    "find_named",
    "inject",
    "is_possible",
    "refuse_faults",
]

_ROOMS = (
    weights, graph, trunk, parts, experts, latent, indexer, compressed, windowed, streams, chain, cache, assistant,
    rollback, verify, policy, look_alikes,
)  # fmt: skip
FAULTS: dict[str, Fault] = {
    fault.id: fault for room in _ROOMS for fault in vars(room).values() if isinstance(fault, Fault)
}


def find_fault(id: str) -> Fault:
    """The fault of this id; its number alone ("W1") will do.

    Errors  MtprefError with the ids that are near
    """
    named = find_named(id)
    if named is not None:
        return named
    near = _near(id[:60])
    raise MtprefError(f"fault {id[:60]!r} is unknown, expected e.g. {', '.join(near)}; all of them: mtpref faults")


def find_named(id: str) -> Fault | None:
    """The fault of this id, or of its number ("W1"), in any case; None where there is none."""
    low = id.lower()
    return next((fault for known, fault in FAULTS.items() if low in (known.lower(), known.split("-")[0].lower())), None)


def _near(id: str) -> list[str]:
    """Ids that are near: those that have the word in id or title, then those that look alike; else the first ones."""
    low = id.lower()
    having = [known for known, fault in FAULTS.items() if len(low) > 2 and low in f"{known} {fault.title}".lower()]
    alike = get_close_matches(id, FAULTS, 3)
    if not having and not alike:
        words = {known: re.findall(r"[a-z]{3,}", f"{known} {fault.title}".lower()) for known, fault in FAULTS.items()}
        word = get_close_matches(low, {word for own in words.values() for word in own}, 1)
        alike = [known for known, own in words.items() if word and word[0] in own]
    return (having or alike)[:3] or list(FAULTS)[:3]


def is_possible(fault: Fault, model: Model) -> bool:
    """Whether the model has what the fault is about."""
    return lacking(model, fault.where) is None and idle_entries(model, fault.replaces) is None


def inject(model: Model, *faults: Fault) -> Model:
    """The model with the faults in it. The model given is left as it is; faults can be laid over each other. Rows that
    are not finite are no error in it: some faults are just that.

    Errors  MtprefError for a fault of the head's weights in a model without a head, or of a part that the model lacks
    """
    for fault in faults:
        missing = lacking(model, fault.where) or idle_entries(model, fault.replaces)
        if missing is not None:
            raise MtprefError(
                f"fault {fault.id}: it cannot be in this model ({model.config.arch}), expected one with "
                f"{missing}; use another model, or another fault: mtpref faults"
            )
    if faults:
        model = replace(model, is_checked=False, changes=(*model.changes, *(fault.id for fault in faults)))
    for fault in faults:
        if fault.apply_weights is not None:
            model = replace(model, weights=fault.apply_weights(model.weights))
        if fault.apply_recipe is not None:
            model = replace(model, recipe=fault.apply_recipe(model.recipe))
        if fault.apply_model is not None:
            model = fault.apply_model(model)
    return model


def refuse_faults(ids: Iterable[str], what: str) -> None:
    """Raise where faults are asked for and `what` ("golden vectors") may only come from the reference.

    Errors  MtprefError naming them
    """
    named = ", ".join(ids)
    if named:
        raise MtprefError(f"`faults` {named}: {what} come from the reference alone, expected no fault; leave it out")
