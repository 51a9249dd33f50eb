"""The standard micro models with experts, made once a session."""

import sys
import tempfile
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
try:
    from make_micro import (
        STANDARD_CHAINS,
        STANDARD_MOE,
        STANDARD_MOE_CHAINS,
        STANDARD_SINGLE,
        STANDARD_STREAMS,
        STANDARD_TRUNKS,
        make_standard,
    )
finally:
    sys.path.pop(0)

NAMES = tuple(STANDARD_MOE)
TRUNKS = tuple(STANDARD_TRUNKS)
STREAMS = tuple(STANDARD_STREAMS)
CHAINS = tuple(STANDARD_CHAINS)
MOE_CHAINS = tuple(STANDARD_MOE_CHAINS)
SINGLE = tuple(STANDARD_SINGLE)
_FOLDER = tempfile.TemporaryDirectory(prefix="mtpref-moe-")


@lru_cache
def standard(name: str) -> Path:
    """The file of that stem."""
    path = Path(_FOLDER.name) / f"{name}.gguf"
    make_standard(name, path)
    return path
