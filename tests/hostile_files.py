"""Files whose headers claim gigabytes that are there: zeros, which a sparse file holds in no space."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from fuzzing.catalogue import MICRO
from fuzzing.fields import Doc, Key, parse, write

GB = 1 << 30
DOC = parse(MICRO.read_bytes())


def with_long_value(path: Path, name: bytes, kind: int, head: bytes, n_zeros: int) -> Path:
    """The micro model with another value of a key: `head`, then zeros."""
    keys = tuple(k for k in DOC.keys if k.name != name)
    start = write(Doc((*keys, Key(name, kind, head)), (), b"", n_tensors=len(DOC.tensors), pad=1))
    tensors = write(Doc((), DOC.tensors, b"", pad=1))[24:]
    with path.open("wb") as file:
        file.write(start)
        file.seek(n_zeros, os.SEEK_CUR)
        file.write(tensors)
        file.write(bytes(-file.tell() % 32))
        file.write(DOC.data)
    return path
