"""The standard micro models with experts, made once a session."""

import sys
import tempfile
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
try:
    from make_micro import (
        STANDARD_CHAINS,
        STANDARD_GEMMA,
        STANDARD_MOE,
        STANDARD_MOE_CHAINS,
        STANDARD_SINGLE,
        STANDARD_STREAMS,
        STANDARD_TRUNKS,
        assistant_of,
        make_micro_gemma,
        make_standard,
        typed,
    )
    from micro_gemma import GemmaShape, assistant_keys, plant_assistant, plant_target, target_keys
    from micro_gguf import tensor_of, write_gguf
finally:
    sys.path.pop(0)

__all__ = [
    "CHAINS",
    "GEMMA",
    "NAMES",
    "STREAMS",
    "TRUNKS",
    "GemmaShape",
    "assistant",
    "assistant_keys",
    "make_micro_gemma",
    "plant_assistant",
    "plant_target",
    "standard",
    "target_keys",
    "tensor_of",
    "typed",
    "write_gguf",
]

NAMES = tuple(STANDARD_MOE)
TRUNKS = tuple(STANDARD_TRUNKS)
STREAMS = tuple(STANDARD_STREAMS)
CHAINS = tuple(STANDARD_CHAINS)
MOE_CHAINS = tuple(STANDARD_MOE_CHAINS)
SINGLE = tuple(STANDARD_SINGLE)
GEMMA = tuple(name for name, entry in STANDARD_GEMMA.items() if not entry[-1])  # the targets
_FOLDER = tempfile.TemporaryDirectory(prefix="mtpref-moe-")


def assistant(name: str) -> Path:
    """The file of the assistant of a target of GEMMA."""
    return standard(assistant_of(name))


@lru_cache
def standard(name: str) -> Path:
    """The file of that stem."""
    path = Path(_FOLDER.name) / f"{name}.gguf"
    make_standard(name, path)
    return path
