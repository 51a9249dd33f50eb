"""The Numba twins of `mtpref.spec`: the same functions, the same bits, compiled.

A twin takes what the specification's function takes, save that `dot` becomes the flag `wide` (dot64 if true, dot32 if
not). Importing this package is cheap; Numba is imported when a kernel is first named. With NUMBA_DISABLE_JIT=1
there are no kernels, and naming one raises MtprefError: only the specification runs then.

Read in this order: compile, scalars and lanes (the arithmetic), arith, activations, unpack, rows, matmul; panels,
vectors, tiles and blocks (weights laid out anew); products, panel_products, float_rows and mul_mats; then the layers in
delta, attend, norms, rotary, and choices; last needed and ahead (a first run compiles in several processes).
docs/kernels.md has the rules.
"""

import hashlib
import os
import stat
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from mtpref.errors import MtprefError

# A thread that waits for others spins so many times before it sleeps. libgomp's own 300000 keep a core busy for as long
# as it takes the scheduler to run the last thread: 10 ms for each parallel region once another job wants the core.
# libgomp reads it when it is loaded, with Numba, so it is set here; a user's own setting wins.
SPIN_COUNT = "1000"
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT

_HOMES = {
    "mul_mat_exact": "matmul",
    "mul_mat_ggml": "matmul",
    "pack": "packed",
    "quantize_q8_0": "matmul",
    "quantize_q8_1": "matmul",
    "quantize_q8_k": "matmul",
    "rms_norm": "norms",
    "l2_norm": "norms",
    "gated_norm": "norms",
    "delta_gates": "norms",
    "attn_gate": "norms",
    "swiglu": "norms",
    "rope_table": "rotary",
    "rope": "rotary",
    "conv_silu": "delta",
    "delta_rule": "delta",
    "attention": "attend",
    "delta_layer": "delta_mixer",
    "ffn": "mul_mats",
    "argmax": "choices",
    "top_candidates": "choices",
    "read_all": "reading",
    "set_threads": "compile",
    "n_threads": "compile",
    "threading_layer": "compile",
    "has_only_workqueue": "compile",
    "when_compiling": "compile",
    "compile_ahead": "ahead",
    "needed_kernels": "needed",
    "effective_target": "target",
}


def available() -> bool:
    """Whether kernels can run: not with NUMBA_DISABLE_JIT=1. Imports nothing."""
    return os.environ.get("NUMBA_DISABLE_JIT", "").strip() in ("", "0")


def get_rows(w: Any, ids: Any) -> Any:
    """S7. `spec.get_rows`: a copy of a few rows is fast as it is."""
    from mtpref.spec.products import get_rows as spec_get_rows

    return spec_get_rows(w, ids)


def is_cold() -> bool:
    """Whether no kernel is in the cache folder yet, so that the first use will wait for the compiler."""
    return not any(cache_folder().rglob("*.nbi"))


@cache
def cache_folder() -> Path:
    """The folder of compiled kernels, made if needed.

    It is named after the kernel sources and what they take from the specification, because Numba itself notices no
    edit in another file, and after the target, so that processes compiling for different targets never share files.
    Base: NUMBA_CACHE_DIR, else XDG_CACHE_HOME, else ~/.cache; a private temporary folder where that is read-only.
    """
    base = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    target = import_module("mtpref.kernels.target").effective_target()
    target_hash = hashlib.sha256("\n".join(target).encode()).hexdigest()
    name = f"{_source_hash()[:16]}-{target_hash[:8]}"
    folder = Path(base).expanduser() / "mtpref" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return folder
    except OSError:
        return _private_temporary_folder(name)


def _source_hash() -> str:
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(here.glob("*.py")) + sorted((here.parent / "spec").glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _private_temporary_folder(name: str) -> Path:
    """A folder that nobody else can have written to: compiled code is loaded from it."""
    owner = os.getuid() if hasattr(os, "getuid") else 0
    root = Path(tempfile.gettempdir()) / f"mtpref-{owner}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()
        is_private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
        if is_private and (not hasattr(os, "getuid") or found.st_uid == owner):
            (root / name).mkdir(exist_ok=True)
            return root / name
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="mtpref-"))


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
