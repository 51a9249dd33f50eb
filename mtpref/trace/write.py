"""Traces are written as they happen: one JSON line for each event.

Owns the file. Each line is one event (mtpref/events.py:to_json), flushed at once, so that a killed run leaves a
readable prefix. docs/trace.md describes the fields.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TextIO

from mtpref.errors import MtprefError
from mtpref.events import Event, to_json


class TraceWriter:
    """A context manager; `write` appends one event."""

    def __init__(self, path: str | Path) -> None:
        try:
            self._file: TextIO = open(path, "w", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
        except OSError as error:
            raise MtprefError(f"--trace {path}: cannot be written ({error.strerror}); choose another file") from None

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, event: Event) -> None:
        json.dump(to_json(event), self._file, ensure_ascii=True, separators=(",", ":"))
        self._file.write("\n")
        self._file.flush()


def tee(events: Iterable[Event], writer: TraceWriter | None) -> Iterator[Event]:
    """Pass events on, writing each one first."""
    for event in events:
        if writer is not None:
            writer.write(event)
        yield event
