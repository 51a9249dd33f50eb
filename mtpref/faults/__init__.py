"""Injectable faults: real bugs of real engines, as replacements of single entries of the recipe or of weights.

Owns the catalogue and `inject`. The reference knows nothing of it: no other room may name a fault. Families: W weights,
G graph of the MTP block, C hand-over of hidden rows, K the head's KV cache, S recurrent state and roll back.
"""

from dataclasses import replace

from mtpref.errors import MtprefError
from mtpref.faults.cache import PROMPT_NOT_PRIMED
from mtpref.faults.chain import LAST_VERIFY_ROW
from mtpref.faults.fault import Fault
from mtpref.faults.graph import CONCAT_SWAPPED
from mtpref.faults.rollback import CONV_WINDOW_KEPT
from mtpref.faults.weights import NORM_SHIFT_MISSING
from mtpref.model import Model

__all__ = ["FAULTS", "Fault", "find_fault", "inject"]

FAULTS: dict[str, Fault] = {
    fault.id: fault
    for fault in (NORM_SHIFT_MISSING, CONCAT_SWAPPED, LAST_VERIFY_ROW, PROMPT_NOT_PRIMED, CONV_WINDOW_KEPT)
}


def find_fault(id: str) -> Fault:
    if id not in FAULTS:
        raise MtprefError(f"fault {id[:40]!r} is unknown, expected one of {', '.join(FAULTS)}")
    return FAULTS[id]


def inject(model: Model, fault: Fault) -> Model:
    """The model with the fault in it. The model given is left as it is; faults can be laid over each other.

    Errors  MtprefError for a fault of the head's weights in a model without a head
    """
    if fault.apply_weights is not None:
        model = replace(model, weights=fault.apply_weights(model.weights))
    if fault.apply_recipe is not None:
        model = replace(model, recipe=fault.apply_recipe(model.recipe))
    return model
