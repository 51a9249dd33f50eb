"""Traces are written as they happen: one JSON line for each event.

Owns the file. Each line is one event (mtpref/base/events.py:to_json), flushed at once, so that a killed run leaves a
readable prefix. docs/trace.md describes the fields.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from mtpref.base.errors import MtprefError
from mtpref.base.events import Event, to_json
from mtpref.files.doors import open_output


class TraceWriter:
    """A context manager; `write` appends one event. The first one takes the place of what the file held before."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        # Unbuffered: what could not be written is not tried again when the file is closed.
        self._file = open_output(path, f"`trace` {path}")

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, event: Event) -> None:
        left = (json.dumps(to_json(event), ensure_ascii=True, separators=(",", ":")) + "\n").encode("ascii")
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise MtprefError(
                f"`trace` {self._path}: cannot be written ({error.strerror}); is the disk full?"
            ) from None


def tee(events: Iterable[Event], writer: TraceWriter | None) -> Iterator[Event]:
    """Pass events on, writing each one first."""
    for event in events:
        if writer is not None:
            writer.write(event)
        yield event
