"""One data sheet for each architecture. Start with qwen35.py; sheet.py has the words that it is written in.

Owns the registry. No other module tests an architecture's name.
"""

from mtpref.architectures.common import D2T, OUTPUT, OUTPUT_NORM, SHARED, TOKEN_EMBD
from mtpref.architectures.dims import Shape, numbers
from mtpref.architectures.qwen35 import QWEN35
from mtpref.architectures.sheet import Alternating, Architecture, Block, Either, HeadSheet, Hyper, Tensor, tensors_of
from mtpref.config import Metadata
from mtpref.errors import MtprefError

ARCHITECTURES: dict[str, Architecture] = {sheet.name: sheet for sheet in (QWEN35,)}

__all__ = [
    "ARCHITECTURES",
    "D2T",
    "OUTPUT",
    "OUTPUT_NORM",
    "SHARED",
    "TOKEN_EMBD",
    "Alternating",
    "Architecture",
    "Block",
    "Either",
    "HeadSheet",
    "Hyper",
    "Shape",
    "Tensor",
    "find_architecture",
    "numbers",
    "tensors_of",
]


def find_architecture(meta: Metadata) -> Architecture:
    """The data sheet of a file's architecture. Errors: MtprefError for one that has none"""
    if meta.arch not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise MtprefError(
            f"{meta.source}: architecture {meta.arch[:40]!r} is not supported, expected one of: {known}; "
            "try: mtpref inspect FILE"
        )
    return ARCHITECTURES[meta.arch]
