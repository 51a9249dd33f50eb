"""The Numba twins of `mtpref.spec`: the same functions, the same bits, compiled.

A twin takes what the specification's function takes, save that `dot` becomes the flag `wide` (dot64 if true, dot32 if
not). Importing this package is cheap; Numba is imported when a kernel is first named. With NUMBA_DISABLE_JIT=1
there are no kernels, and naming one raises MtprefError: only the specification runs then.

A room for each part of the specification, named by its `__init__`: arithmetic, quants, products, layers, fused (the
layers of compose.py); choices.py twins `spec.mtp`. A room imports those before it. Beside them: compiling (before all),
reading (for `mtpref bench`), and needed (what compiling/ahead.py compiles on a first run, in several processes).
docs/kernels.md has the rules.
"""

import contextlib
import hashlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError

# A thread that waits for others spins so many times before it sleeps. libgomp's own 300000 keep a core busy for as long
# as it takes the scheduler to run the last thread: 10 ms for each parallel region once another job wants the core.
# libgomp reads it once, when it is loaded.
SPIN_COUNT = "1000"


@contextlib.contextmanager
def short_spinning() -> Iterator[None]:
    """Stand around whatever may load libgomp: it reads SPIN_COUNT then, and the process's environment stays as it was.

    A user's own GOMP_SPINCOUNT or OMP_WAIT_POLICY wins.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    try:
        yield
    finally:
        os.environ.pop("GOMP_SPINCOUNT", None)


_HOMES = {
    "mul_mat_exact": "products.matmul",
    "mul_mat_ggml": "products.matmul",
    "pack": "products.packed",
    "quantize_q8_0": "products.matmul",
    "quantize_q8_1": "products.matmul",
    "quantize_q8_k": "products.matmul",
    "rms_norm": "layers.norms",
    "l2_norm": "layers.norms",
    "gated_norm": "layers.norms",
    "delta_gates": "layers.norms",
    "attn_gate": "layers.norms",
    "swiglu": "layers.norms",
    "rope_table": "layers.rotary",
    "rope": "layers.rotary",
    "rope_interleaved": "layers.rotary",
    "rope_last": "layers.rotary",
    "clamped_swiglu": "layers.norms",
    "stream_weights": "layers.streams",
    "read_streams": "layers.streams",
    "write_streams": "layers.streams",
    "compress_rows": "layers.compressed",
    "index_scores": "layers.choose",
    "select_cells": "layers.choose",
    "selection_gap": "layers.choose",
    "conv_silu": "layers.delta",
    "delta_rule": "layers.delta",
    "attention": "layers.attend",
    "delta_layer": "fused.delta_mixer",
    "ffn": "fused.ffn",
    "moe_ffn": "fused.moe",
    "clamped_experts": "fused.moe",
    "latent_attn_layer": "fused.latent",
    "indexed_attn_layer": "fused.latent",
    "window_attention": "fused.window",
    "chosen_rows": "fused.window",
    "argmax": "choices",
    "top_candidates": "choices",
    "read_all": "reading",
    "set_threads": "compiling.compile",
    "n_threads": "compiling.compile",
    "threading_layer": "compiling.compile",
    "has_only_workqueue": "compiling.compile",
    "when_compiling": "compiling.compile",
    "compile_ahead": "compiling.ahead",
    "needed_kernels": "needed",
    "needs_of": "needed",
    "effective_target": "compiling.target",
}


def available() -> bool:
    """Whether kernels can run: not with NUMBA_DISABLE_JIT=1. Imports nothing."""
    return os.environ.get("NUMBA_DISABLE_JIT", "").strip() in ("", "0")


def get_rows(w: Any, ids: Any) -> Any:
    """S7. `spec.get_rows`: a copy of a few rows is fast as it is."""
    from mtpref.spec.products import get_rows as spec_get_rows

    return spec_get_rows(w, ids)


def is_cold() -> bool:
    """Whether no kernel is in the cache yet, so that the first use will wait for the compiler."""
    return not any(next(folder.glob("*.kernel"), None) for folder in cache_folders())


@cache
def cache_folders() -> tuple[Path, ...]:
    """Where compiled kernels are looked for, in this order; they are written to the first that can be written.

    A folder is named after what its kernels depend on: the kernel sources and what they take from the specification,
    wherever these lie; the target; Python, Numba and LLVM. So processes for different targets never share files, and
    a clone and an installed package of the same sources do. The first is in NUMBA_CACHE_DIR, else XDG_CACHE_HOME,
    else ~/.cache; the second is a private temporary folder.
    """
    base = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    made_by = (*import_module("mtpref.kernels.compiling.target").effective_target(), *_versions())
    name = f"{_source_hash()[:16]}-{hashlib.sha256(chr(10).join(made_by).encode()).hexdigest()[:8]}"
    found = []
    with contextlib.suppress(RuntimeError):  # no home folder
        found.append(Path(base).expanduser() / "mtpref" / name)
    private = _private_temporary_folder(name)
    return (*found, private) if private is not None else tuple(found)


@cache
def cache_folder() -> Path | None:
    """The first of `cache_folders` that can be written, made if needed; None: compiled kernels are not kept."""
    for folder in cache_folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(1 << 16))  # a full disk lets an empty file be made
            return folder
    return None


def _versions() -> tuple[str, ...]:
    compilers = (import_module(name).__version__ for name in ("numba", "llvmlite"))
    return (*compilers, str(sys.implementation.cache_tag))


def _sources() -> list[Path]:
    """What a kernel can be made of, the rooms within these rooms too."""
    here = Path(__file__).parent
    return sorted(here.rglob("*.py")) + sorted((here.parent / "spec").rglob("*.py"))


def _source_hash() -> str:
    digest = hashlib.sha256()
    for path in _sources():
        name = path.relative_to(Path(__file__).parents[1]).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _private_temporary_folder(name: str) -> Path | None:
    """A folder that nobody else can have written to: compiled code is loaded from it. None where there is none."""
    owner = os.getuid() if hasattr(os, "getuid") else 0
    root = Path(tempfile.gettempdir()) / f"mtpref-{owner}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()
    except OSError:
        return None
    is_private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    return root / name if is_private and (not hasattr(os, "getuid") or found.st_uid == owner) else None


# THE CLOCK OF FIRST RUNS

_stopped_s = 0.0
_n_stops = 0


def clock() -> float:
    """`time.perf_counter`, standing still while a kernel is compiled or loaded: for times that a first run shares with
    later ones."""
    return time.perf_counter() - _stopped_s


def compile_seconds() -> float:
    """For how long it stood still."""
    return _stopped_s


@contextlib.contextmanager
def clock_stopped() -> Iterator[None]:
    """Stop the clock; inside of another stop, nothing more."""
    global _stopped_s, _n_stops
    started, is_outer = time.perf_counter(), _n_stops == 0
    _n_stops += 1
    try:
        yield
    finally:
        _n_stops -= 1
        if is_outer:
            _stopped_s += time.perf_counter() - started


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not available():
        raise MtprefError(
            f"kernel {name}: NUMBA_DISABLE_JIT is set, so there are no compiled kernels; "
            "unset it, or run the specification's own functions (mtpref.spec)"
        )
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
