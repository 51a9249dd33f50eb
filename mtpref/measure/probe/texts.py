"""Texts to probe: files, their labels, and the windows and positions that a probe looks at.

Owns what is read from disk and how a text is cut. It must not know what is measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtpref.base.errors import MtprefError
from mtpref.files.doors import read_text
from mtpref.files.gguf import printable
from mtpref.files.vocab import Vocab

MAX_TEXT_BYTES = 64 << 20
FIRST_POSITION = 1  # position 0 has no hidden row before it


@dataclass(frozen=True)
class Text:
    """A text as token ids. label: its domain; several texts may share one."""

    label: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """A stretch of a text that is one context of its own: the model sees nothing before `start`.

    positions   those that are probed, ascending, counted from the window's beginning
    """

    i_text: int
    label: str
    start: int
    ids: tuple[int, ...]
    positions: tuple[int, ...]


def named_files(arguments: Sequence[str]) -> list[tuple[str, Path]]:
    """(label, path) of each FILE or LABEL=FILE: the label is the file's name, or its path where names repeat."""
    pairs: list[tuple[str | None, Path]] = []
    for argument in arguments:
        label, equals, path = argument.partition("=")
        is_labelled = bool(label and equals and path) and not _exists(argument)
        pairs.append((label, Path(path)) if is_labelled else (None, Path(argument)))
    names = [path.name for label, path in pairs if label is None]
    return [(label or (path.name if names.count(path.name) == 1 else str(path)), path) for label, path in pairs]


def _exists(argument: str) -> bool:
    try:
        return Path(argument).exists()
    except (OSError, ValueError):
        return False


def read_texts(arguments: Sequence[str], vocab: Vocab, setting: str = "texts") -> list[Text]:
    """Every file as one text.

    setting  what refusals call the files
    Bytes    need not be UTF-8: see `Vocab.encode`
    Errors   MtprefError for a file that cannot be read, is larger than 64 MiB, is a GGUF file, or has fewer than 2
             tokens
    """
    texts = []
    for label, path in named_files(arguments):
        text = Text(label, tuple(vocab.encode(read_file(path, setting).decode("utf-8", "surrogateescape"))))
        if len(text.ids) < 2:
            raise MtprefError(
                f"`{setting}` {printable(str(path), 400)}: {_count(len(text.ids))}, expected at least 2; an "
                "acceptance needs a token and the one before it"
            )
        texts.append(text)
    return texts


def read_file(path: Path, setting: str = "texts") -> bytes:
    label = f"`{setting}` {printable(str(path), 400)}"
    found = read_text(path, label, "expected a text, or a part of one", MAX_TEXT_BYTES)
    if found.startswith(b"GGUF"):
        raise MtprefError(f"{label}: this is a GGUF file, expected a text; a model is given as `model`")
    return found


def _count(n: int) -> str:
    return "1 token" if n == 1 else f"{n} tokens"


def windows_of(texts: Sequence[Text], n_ctx: int, stride: int = 1, n_positions: int = 0) -> list[Window]:
    """Every text in windows of at most n_ctx tokens; a rest of one token is left out.

    stride        every so manieth position is probed
    n_positions   at most so many of a text, evenly spaced (0: all); the wider of the two spacings counts
    """
    windows = []
    for i_text, text in enumerate(texts):
        n = len(text.ids)
        step = max(stride, math.ceil((n - FIRST_POSITION) / n_positions)) if n_positions else stride
        wanted = range(FIRST_POSITION, n, step)
        for start in range(0, n, n_ctx):
            ids = text.ids[start : start + n_ctx]
            inside = tuple(p - start for p in wanted if start + FIRST_POSITION <= p < start + len(ids))
            if len(ids) > 1 and inside:
                windows.append(Window(i_text, text.label, start, ids, inside))
    return windows
