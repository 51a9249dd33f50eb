"""Traces read back: a file of JSON lines to events, one at a time, in bounded memory.

Owns the file and its refusals. What an event may hold is typed.py's.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.base.events import Event, RunEnded, RunStarted
from mtpref.base.typed import MAX_DEPTH, describe, parse_json
from mtpref.files.doors import TextStream, open_text
from mtpref.look.trace.typed import from_json

# The longest line is a prompt's: a million token ids take 8 MB.
MAX_LINE = 8 << 20
MAX_NAMED = 8


class TraceReader(Iterator[Event]):
    """The events of a trace in order: an iterator, and a context manager that closes the file.

    n_lines    lines read
    n_unknown  events of names that are not known here: skipped; `unknown` holds some of the names
    is_cut     the file ends within a line, as after a killed run: that line is left out
    n_runs     runs that have begun
    is_open    the last run has begun and not ended (at the end of the file: it was killed, or it still runs)
    """

    def __init__(self, path: str | Path | TextStream) -> None:
        self.label = "standard input" if str(path) == "-" else str(path)
        self.n_lines = self.n_unknown = self.n_runs = 0
        self.unknown: list[str] = []
        self.is_cut = self.is_open = False
        if not isinstance(path, TextStream):
            path = open_text(path, self.label, "expected a trace of `mtpref generate --trace FILE`")
        self._file = path

    def __enter__(self) -> "TraceReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __next__(self) -> Event:
        """The next event.

        Errors  MtprefError, one line that names the file's line, for anything that is not a trace
        """
        while True:
            line = self._line()
            if line is None:
                if not self.n_runs and not self.n_unknown:
                    raise self._refusal("it holds no event, expected RunStarted first")
                raise StopIteration
            event = self._event(line)
            if event is not None:
                self._follow(event)
                return event

    def notes(self) -> list[str]:
        """At the end of the file: what a user should know about it."""
        found = []
        if self.is_cut:
            found.append(f"the file ends within line {self.n_lines}; what is whole is shown")
        if self.is_open:
            found.append("the last run has no RunEnded: it was killed, or it still runs")
        if self.n_unknown:
            names = ", ".join(self.unknown) + (", ..." if len(self.unknown) == MAX_NAMED else "")
            found.append(f"{self.n_unknown} events of unknown names are left out: {names}")
        return found

    def _line(self) -> bytes | None:
        """The next line that is not blank; None at the end of the file, also within a line."""
        while True:
            try:
                line = self._file.readline(MAX_LINE + 1)
            except OSError as error:
                raise MtprefError(f"{self.label}: cannot be read ({error.strerror}), expected a file") from None
            if not line:
                return None
            self.n_lines += 1
            if len(line) > MAX_LINE:
                raise self._refusal(f"more than {MAX_LINE >> 20} MiB, expected one event")
            if not line.endswith(b"\n") and not _is_json(line):
                self.is_cut = True
                return None
            if line.strip():
                return line

    def _event(self, line: bytes) -> Event | None:
        try:
            record = _parsed(line)
        except MtprefError as error:
            raise self._refusal(f"{error}, expected one event; is this a trace?") from None
        try:
            event = from_json(record)
        except MtprefError as error:
            raise self._refusal(str(error)) from None
        if event is None:
            self._skip(record["event"])
        return event

    def _skip(self, name: str) -> None:
        self.n_unknown += 1
        if len(self.unknown) < MAX_NAMED and describe(name) not in self.unknown:
            self.unknown.append(describe(name))

    def _follow(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.n_runs += 1
            self.is_open = True
        elif not self.is_open:
            raise self._refusal(f"{type(event).__name__} outside a run, expected RunStarted first")
        elif isinstance(event, RunEnded):
            self.is_open = False

    def _refusal(self, what: str) -> MtprefError:
        return MtprefError(f"{self.label}: line {self.n_lines}: {what}")


def _is_json(line: bytes) -> bool:
    """Whether a last line without an end is whole: no proper beginning of an object is one."""
    if not line.rstrip().endswith(b"}"):
        return False
    try:
        _parsed(line)
    except MtprefError as error:
        return not str(error).startswith("no ")  # what is too large or too deep is refused later, with the right words
    return True


def _parsed(line: bytes) -> Any:
    # A trace holds infinite margins, and names as the system gave them.
    return parse_json(line, max_depth=MAX_DEPTH + 2, is_strict=False)


def read_trace(path: str | Path | TextStream) -> TraceReader:
    """The typed events of a trace, in order: of a file, a pipe, standard input ("-") or a text that is open.

    Reads as it is iterated, one line at a time.

        with read_trace("run.jsonl") as events:
            for event in events:
                ...

    Errors  MtprefError, one line, for a file that cannot be read or is not a trace; a half last line, as a killed run
            leaves it, is no error but a note
    """
    return TraceReader(path)
