"""Keys and tensors of a GGUF file as the writers take them, and llama.cpp's programs for optional tests."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mtpref.files.gguf import GgufArray, open_gguf

Pairs = list[tuple[str, Any, str]]
Tensors = list[tuple[str, str, tuple[int, ...], Any]]


def copy_of(path: Path) -> tuple[Pairs, Tensors]:
    """Everything that a file holds, in memory."""
    with open_gguf(path) as f:
        kv = [
            (key, _plain(f.kv.raw(key) if f.kv.kind(key) == "str" else f.kv[key]), str(f.kv.kind(key))) for key in f.kv
        ]
        tensors = [(t.name, t.type_name, t.shape, f.data(t).copy()) for t in f.tensors.values()]
    return kv, tensors


def _plain(value: Any) -> Any:
    if not isinstance(value, GgufArray):
        return value
    return value.to_bytes_list() if value.element_type == "str" else value.to_numpy()


def llama_cpp(name: str) -> Path:
    """A program of the llama.cpp tree in MTPREF_LLAMA_CPP; skips where it is not there."""
    folder = os.environ.get("MTPREF_LLAMA_CPP")
    if not folder:
        pytest.skip("MTPREF_LLAMA_CPP names no built llama.cpp tree")
    program = Path(folder) / "build" / "bin" / name
    if not program.exists():
        pytest.skip(f"{program} is not built")
    return program


def llama_speculative(*arguments: object) -> tuple[list[tuple[str, str]], str]:
    """The counts and the text of a run of llama-speculative-simple.

    Its log thread may lose the end of the output when the program ends, so that it is run until the counts are there.
    """
    command = [str(llama_cpp("llama-speculative-simple")), *map(str, arguments)]
    for _ in range(12):
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        counts = re.findall(r"n_(drafted|accept|predict) +?= (\d+)", done.stdout + done.stderr)
        if len(counts) == 3:
            return counts, done.stdout
    pytest.skip("llama-speculative-simple lost the end of its output every time")
