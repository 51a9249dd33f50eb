"""What verbs that write a model share: --force, --progress, and what Ctrl-C or SIGTERM leaves behind (nothing).

Owns how progress looks. The safety of files is mtpref/files/gguf/whole.py's.
"""

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from mtpref.base.errors import MtprefError
from mtpref.front.cli.output import note
from mtpref.front.cli.signals import sigterm_as_interrupt

TEXT_OUTPUTS = (("trace", "html"), ("draft-vocab", ""))
INTERVAL = 0.1  # seconds between two states of the line on a terminal
INTERVAL_OF_LINES = 2.0  # seconds between two lines in a log


class OutputPath(str):
    """The value of an argument that names what a verb writes: `main` refuses it where it is an input.

    shown   how messages name it: "-" for a temporary on its way to stdout
    """

    shown: str

    def __new__(cls, name: str, shown: str | None = None) -> "OutputPath":
        self = super().__new__(cls, name)
        self.shown = name if shown is None else shown
        return self


def add_writing(parser: argparse.ArgumentParser) -> None:
    """--force and --progress, for `writing`."""
    group = parser.add_argument_group("writing")
    group.add_argument(
        "--force", action="store_true", help="replace the output where it exists, never an input (default: off)"
    )
    group.add_argument(
        "--progress",
        choices=("auto", "always", "never"),
        default="auto",
        help="bytes, rate and time left on stderr (default: auto, on a terminal)",
    )


@contextlib.contextmanager
def output_to_stdout(args: argparse.Namespace) -> Iterator[None]:
    """`-o -`: the output goes to a temporary file and from there to stdout, whole or not at all; what the verb prints
    goes to stderr.

    Errors  MtprefError for an output that is no one file, and for bytes that would go to a terminal
    """
    named = [name for name, value in vars(args).items() if isinstance(value, OutputPath) and value == "-"]
    if not named:
        yield
        return
    name = named[0]
    if name not in ("output", "target") or args.verb == "golden" or getattr(args, "split", None):
        flag = "-o" if name == "output" else f"--{name.replace('_', '-')}"
        raise MtprefError(f"{flag}: - is standard output, expected a name; only one file of -o can go there")
    if sys.stdout.isatty() and (args.verb, getattr(args, "action", "")) not in TEXT_OUTPUTS:
        raise MtprefError("-o: - is a terminal, expected a file or a pipe, as it would show bytes; add > FILE")
    with tempfile.TemporaryDirectory() as folder:
        path = OutputPath(os.path.join(folder, "stdout"), "-")
        setattr(args, name, path)
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                yield
        except MtprefError as error:
            raise MtprefError(str(error).replace(path, "-")) from None
        finally:
            for line in printed.getvalue().splitlines():
                note(line.replace(path, "-"))
        with open(path, "rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
        sys.stdout.buffer.flush()


@contextlib.contextmanager
def writing(args: argparse.Namespace, inputs: Sequence[str | Path] = ()) -> Iterator[Any]:
    """The WriteOptions that the arguments make. SIGTERM in the block ends as Ctrl-C does: temporaries are removed.

    inputs   files that must not be written over; all shards of a split model
    """
    from mtpref.files.gguf import WriteOptions

    bar = ProgressLine(sys.stderr, args.progress)
    with sigterm_as_interrupt():
        try:
            yield WriteOptions(force=args.force, inputs=tuple(inputs), progress=bar.show if bar.is_on else None)
        finally:
            bar.end()


class ProgressLine:
    """One line on a terminal that is written over; with --progress always a line now and then in a log."""

    def __init__(self, stream: TextIO, mode: str = "auto", what: str = "writing") -> None:
        self._stream, self._what = stream, what
        self._is_tty = stream.isatty()
        self.is_on = mode == "always" or (mode == "auto" and self._is_tty)
        self._start = self._last = time.monotonic()
        self._width = 0

    def show(self, n_done: int, n_total: int) -> None:
        """State of a write; the last one (all done) is always shown once something was."""
        now = time.monotonic()
        interval = INTERVAL if self._is_tty else INTERVAL_OF_LINES
        if now - self._last < interval and not (n_done >= n_total and self._is_tty and self._width):
            return
        self._last = now
        text = f"{self._what}: {progress_text(n_done, n_total, now - self._start)}"
        if self._is_tty:
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def end(self) -> None:
        """The cursor after the line, on a terminal."""
        if self._width:
            self._stream.write("\n")
            self._stream.flush()
            self._width = 0


def type_counts(counts: Mapping[str, int]) -> str:
    """8 Q8_0, 29 Q4_K: tensors by type, by name of the type."""
    return ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))


def progress_text(n_done: int, n_total: int, seconds: float) -> str:
    """3.2 of 12.9 GB, 25 %, 410 MB/s, 24 s left."""
    from mtpref.files.gguf import human_bytes

    rate = n_done / seconds if seconds > 0 else 0.0
    left = f", {_duration((n_total - n_done) / rate)} left" if rate > 0 and n_done < n_total else ""
    percent = 100 * n_done // n_total if n_total else 100
    return f"{human_bytes(n_done)} of {human_bytes(n_total)}, {percent} %, {human_bytes(rate)}/s{left}"


def _duration(seconds: float) -> str:
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
