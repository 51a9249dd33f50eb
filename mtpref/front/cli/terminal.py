"""Colours on a terminal: when to use them, and which.

Owns the escape sequences. A library would do (rich), but eight styles and no layout are not worth a dependency that
takes longer to import than a trace to show.
"""

import os
import shutil
import textwrap
from collections.abc import Iterable
from typing import TextIO

CODES = {
    "draft": "32",  # green
    "bonus": "36",  # cyan
    "correction": "33",  # yellow
    "reject": "31",  # red
    "discard": "2",  # dim
    "near tie": "1;35",  # bold magenta
    "note": "34",  # blue
    "head": "1",  # bold
    "pass": "32",
    "fail": "1;31",
    "skip": "33",
}
DEFAULT_WIDTH = 100  # of a pipe or a file


def wants_color(mode: str, stream: TextIO) -> bool:
    """--color always or never, else NO_COLOR (https://no-color.org), else FORCE_COLOR, else a terminal that can."""
    if mode != "auto":
        return mode == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def width_of(stream: TextIO) -> int:
    """Columns: COLUMNS, else the terminal's, else DEFAULT_WIDTH."""
    if stream.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns
    return DEFAULT_WIDTH


def columns(rows: Iterable[tuple[str, str]], width: int) -> list[str]:
    """Lines `left  right`: right is wrapped and hangs under itself; where that leaves it no room, under left."""
    rows = list(rows)
    hang = max((len(left) for left, _ in rows), default=0) + 2
    lines = []
    for left, right in rows:
        one = f"{left:{hang}s}{right}".rstrip()
        if len(one) <= width:
            lines.append(one)
        elif hang + 24 <= width:
            lines += textwrap.wrap(right, width, initial_indent=f"{left:{hang}s}", subsequent_indent=" " * hang,
                                   break_long_words=False, break_on_hyphens=False)  # fmt: skip
        else:
            lines.append(left.rstrip())
            lines += textwrap.wrap(right, max(width, 24), initial_indent="    ", subsequent_indent="    ",
                                   break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return lines


def painted(spans: Iterable[tuple[str, str]], is_colored: bool) -> str:
    """Spans as text; without colours the words alone, without blanks at the end."""
    if not is_colored:
        return "".join(text for text, _ in spans).rstrip(" ")
    return "".join(f"\x1b[{CODES[style]}m{text}\x1b[0m" if style in CODES and text else text for text, style in spans)
