"""The exercise: models with one mistake in them, and the check of an answer.

Owns which mistake each has. The answers stand here as digests, so that reading this file does not spoil them.
"""

import hashlib

from mtpref.base.errors import MtprefError
from mtpref.faults import FAULTS, Fault, find_fault, inject
from mtpref.front import api

SALT = "mtpref learn, mystery"
ANSWERS = (
    "bed166eff4f04020",
    "4bf7a612524552fb",
    "219030f4150c0712",
)
EXERCISE = 11  # the chapter
N_MYSTERIES = len(ANSWERS)


def digest(number: int, fault: Fault) -> str:
    return hashlib.sha256(f"{SALT} {number} {fault.id}".encode()).hexdigest()[:16]


def _fault(number: int) -> Fault:
    if not 1 <= number <= N_MYSTERIES:
        raise MtprefError(f"mystery {number} does not exist, expected 1 .. {N_MYSTERIES}")
    return next(fault for fault in FAULTS.values() if digest(number, fault) == ANSWERS[number - 1])


def mystery(number: int) -> api.LanguageModel:
    """The tiny model with the mistake of this number in it.

    Errors  MtprefError for a number that there is not
    """
    return api.LanguageModel(inject(api.load().core, _fault(number)))


def is_answer(number: int, name: str) -> bool:
    """Whether `name` (C3, or the whole id) is the mistake.

    Errors  MtprefError for an unknown mystery or fault
    """
    return find_fault(name) is _fault(number)


def is_family(number: int, name: str) -> bool:
    """Whether `name` is of the mistake's family: the letter that ids begin with.

    Errors  MtprefError for an unknown mystery or fault
    """
    return find_fault(name).family == _fault(number).family
