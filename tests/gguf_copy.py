"""Keys and tensors of a GGUF file as the writers take them, and llama.cpp's programs for optional tests."""

import os
from pathlib import Path
from typing import Any

import pytest

from mtpref.gguf import GgufArray, open_gguf

Pairs = list[tuple[str, Any, str]]
Tensors = list[tuple[str, str, tuple[int, ...], Any]]


def copy_of(path: Path) -> tuple[Pairs, Tensors]:
    """Everything that a file holds, in memory."""
    with open_gguf(path) as f:
        kv = [(key, _plain(f.kv.raw(key) if f.kv.kind(key) == "str" else f.kv[key]), f.kv.kind(key)) for key in f.kv]
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
