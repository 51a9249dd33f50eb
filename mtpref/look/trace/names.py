"""Token texts for a screen: quoted, harmless, cut to a width.

Owns what is learned of tokens from the trace itself: a trace gives the bytes of tokens that entered the text, and only
the ids of rejected ones.
"""

import unicodedata
from collections.abc import Callable

from mtpref.files.vocab import terminal_safe

MAX_NAMES = 1 << 16
MAX_PIECE = 256
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\t": "\\t", "'": "\\'"}


class Names:
    """Texts of token ids: those seen so far, or all of them where `piece_of` knows (it may give None)."""

    def __init__(self, piece_of: Callable[[int], bytes | None] | None = None) -> None:
        self._piece_of = piece_of
        self._seen: dict[int, bytes] = {}

    def learn(self, id: int, piece: bytes) -> None:
        if len(self._seen) < MAX_NAMES and piece:
            self._seen[id] = piece[:MAX_PIECE]

    def piece(self, id: int) -> bytes | None:
        """The token's bytes; None where they are not known."""
        seen = self._seen.get(id)
        return seen if seen is not None or self._piece_of is None else self._piece_of(id)

    def name(self, id: int) -> str:
        """The token's text in quotes, or #id."""
        piece = self.piece(id)
        return f"#{id}" if not piece else quoted(piece)


def drafts_by(drafter: object) -> str:
    """What `settings.drafter`, the class that drafts, is for a reader."""
    words = {"MtpDrafter": "by the MTP head", "InlineDrafter": "by the MTP head, in the round's own pass"}
    return words.get(str(drafter), "none" if drafter == "NoDrafter" else str(drafter or "unknown"))


def quoted(piece: bytes) -> str:
    r"""Bytes as one line in quotes: 'text', with \n, \t, \', \\ and \x.. for what is no text."""
    text = piece[:MAX_PIECE].decode("utf-8", "backslashreplace")
    if "\\" in text and b"\\" not in piece:  # the escapes of broken characters stay as they are
        return "'" + terminal_safe("".join(c if c == "\\" else _ESCAPES.get(c, c) for c in text)) + "'"
    return "'" + terminal_safe("".join(_ESCAPES.get(c, c) for c in text)) + "'"


def cells(text: str) -> int:
    """How many columns a terminal uses: two for wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(_cells_of(c) for c in text)


def fit(text: str, width: int) -> str:
    """`text` in at most `width` columns; what is cut ends in "..."."""
    if cells(text) <= width:
        return text
    dots = "." * min(3, max(0, width))
    kept, used = [], len(dots)
    for c in text:
        used += _cells_of(c)
        if used > width:
            break
        kept.append(c)
    return "".join(kept) + dots


def pad(text: str, width: int) -> str:
    return text + " " * (width - cells(text))


def _cells_of(c: str) -> int:
    if unicodedata.combining(c) or unicodedata.category(c) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1
