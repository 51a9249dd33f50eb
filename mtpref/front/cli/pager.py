"""Long text on a terminal goes through $PAGER, or less, and stays when it fits."""

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from typing import Protocol, TextIO


class Writer(Protocol):
    """What text is written to."""

    def write(self, text: str, /) -> int: ...
    def flush(self) -> None: ...


@contextlib.contextmanager
def paged(out: TextIO, *, is_wanted: bool = True) -> Iterator[Writer]:
    """The pager's input where `out` is a terminal and there is one, else `out`. Leaving a pager early is no error."""
    command = shlex.split(os.environ.get("PAGER", "less"))
    is_terminal = out.isatty() and os.environ.get("TERM") != "dumb"
    if not (is_wanted and is_terminal and command and shutil.which(command[0])):
        yield out
        return
    # less: quit where it fits, colours through, nothing cleared.
    environment = {"LESS": "FRX", **os.environ}
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, encoding="utf-8", env=environment) as pager:
        assert pager.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                yield pager.stdin
        finally:
            with contextlib.suppress(BrokenPipeError):
                pager.stdin.close()
