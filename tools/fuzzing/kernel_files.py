"""Target: files of compiled kernels. Damage costs one line, and a compilation where no other folder has the kernel.

Owns what is asked of the cache. Only bytes are edited, and the digest is not made right again: it is against accidents;
what carries the right one is run as code.
"""

import logging
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np

from fuzzing.edits import random_byte_edit
from fuzzing.judge import check_line
from fuzzing.models import put
from fuzzing.targets import Target
from mtpref import kernels
from mtpref.base.errors import MtprefError

LOGITS = np.array([[1, 5, 3, 5]], np.float32)
N_BESIDE = 19  # cases without a compilation for each with one, which takes a second and a megabyte


def kernel_target() -> Target:
    """Seed 0 is the only file there is, and "refused" means compiled again; for the others a second folder has one."""
    with tempfile.TemporaryDirectory() as name:
        _call((Path(name),))
        (path,) = Path(name).iterdir()
        sound, file = path.read_bytes(), path.name

    def run(case: bytes, folder: Path, i: int) -> None:
        first, second = folder / "first", folder / "second"
        for at in (first, second):
            at.mkdir(exist_ok=True)
            put(at, file, case if at == first else sound)
        if i == 0:
            (second / file).unlink()
        lines, n_compiled = _call((first, second))
        is_damaged = case != sound
        if (len(lines), n_compiled) != (is_damaged, is_damaged and i == 0):
            raise AssertionError(f"{n_compiled} compiled, said {lines}")
        if n_compiled and _call((first,)) != ([], 0):
            raise AssertionError("the damaged file was not replaced")
        if n_compiled:
            raise MtprefError(lines[0])
        for line in lines:
            check_line(line)

    return Target("kernel", [sound] * (1 + N_BESIDE), run, 40, lambda rng, raw: random_byte_edit(rng, len(raw)))


def _call(folders: tuple[Path, ...]) -> tuple[list[str], int]:
    """A kernel that this process has not, with these cache folders: what was said, and how often it was compiled.

    Errors  AssertionError where its result is wrong
    """
    from mtpref.kernels import choices
    from mtpref.kernels.compiling import compile

    lines: list[str] = []
    compiled: list[None] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    with ExitStack() as stack:
        stack.enter_context(patch.object(kernels, "cache_folders", lambda: folders))
        stack.enter_context(patch.object(compile, "_listener", lambda: compiled.append(None)))
        for name in ("_said", "_full"):
            stack.enter_context(patch(f"mtpref.kernels.compiling.cache.{name}", set()))
        stack.enter_context(patch.object(logging.getLogger("mtpref"), "handlers", [handler]))
        stack.enter_context(patch.object(logging.getLogger("mtpref"), "propagate", False))
        known = choices._argmax
        out = np.empty(1, np.int64)
        compile.Kernel(known.dispatcher.py_func, known.signature, False)(LOGITS, out)
    assert out[0] == 1, out
    return lines, len(compiled)
