"""One data sheet for each architecture. Start with qwen35.py; sheet.py has the words that it is written in.

Owns the registry. No other module tests an architecture's name.
"""

from mtpref.architectures.common import D2T, OUTPUT, OUTPUT_NORM, SHARED, TOKEN_EMBD, trimmed
from mtpref.architectures.dims import Shape, numbers
from mtpref.architectures.names import (
    Place,
    fused_of,
    gguf_to_hf_name,
    hf_to_gguf_name,
    place_of,
    state_from_gguf,
    state_to_gguf,
    tensor_of,
)
from mtpref.architectures.qwen35 import QWEN35
from mtpref.architectures.sheet import Alternating, Architecture, Block, Either, HeadSheet, Hyper, Tensor, tensors_of
from mtpref.base.errors import UnsupportedError
from mtpref.spec.config import Metadata

ARCHITECTURES: dict[str, Architecture] = {sheet.name: sheet for sheet in (QWEN35,)}

__all__ = [
    "ARCHITECTURES",
    "D2T",
    "HEAD_FAMILY",
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
    "Place",
    "Shape",
    "Tensor",
    "find_architecture",
    "fused_of",
    "gguf_to_hf_name",
    "head_of",
    "hf_to_gguf_name",
    "numbers",
    "place_of",
    "sheet_of",
    "state_from_gguf",
    "state_to_gguf",
    "symbols_of",
    "tensor_of",
    "tensors_of",
    "trimmed",
]

# Architectures that do not run here, whose heads can be taken out, off and put in: the converter treats them alike.
# Their experts are not listed: what is known of their heads is everything but the feed-forward network.
_HEADS_ALIKE = {"qwen35moe": QWEN35, "qwen3next": QWEN35}
HEAD_FAMILY = (*ARCHITECTURES, *_HEADS_ALIKE)


def head_of(arch: str) -> tuple[Tensor, ...]:
    """The tensors of one head of an architecture of HEAD_FAMILY, as far as they are known."""
    sheet = sheet_of(arch)
    tensors = sheet.head.all_tensors() if sheet.head else ()
    return tuple(t for t in tensors if arch in ARCHITECTURES or not t.name.startswith("ffn_"))


def symbols_of(arch: str) -> dict[str, str]:
    """Counts that shapes are written with -> their keys, for an architecture of HEAD_FAMILY."""
    return sheet_of(arch).symbols


def sheet_of(arch: str) -> Architecture:
    """The data sheet of an architecture of HEAD_FAMILY: its own, or that of the one that converters treat alike."""
    return ARCHITECTURES.get(arch) or _HEADS_ALIKE[arch]


def find_architecture(meta: Metadata) -> Architecture:
    """The data sheet of a file's architecture. Errors: MtprefError for one that has none"""
    if meta.arch not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedError(
            f"{meta.source}: architecture {meta.arch[:40]!r} is not supported, expected one of: {known}; "
            "try: mtpref inspect FILE"
        )
    return ARCHITECTURES[meta.arch]
