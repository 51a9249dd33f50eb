"""Stop strings: where the text ends, and what may be shown before that is known.

Owns the text that is held back. It works on bytes, so that a stop string may begin and end inside a token or a
character, and its result does not depend on how the text is cut into tokens.
"""

from collections.abc import Sequence

from mtpref.base.settings import SettingError


class StopStrings:
    """Text goes in by `push` and comes out as soon as it cannot be part of a stop string.

    Rule  the text ends where the first stop string is complete; that string (the longest, of those that end there)
          is not part of it
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if "" in strings:
            raise SettingError("Options.stop", "the string is empty, expected at least one character")
        self._strings = [text.encode("utf-8", "surrogateescape") for text in strings]
        self.held = b""
        self.is_complete = False

    def push(self, piece: bytes) -> bytes:
        """The text that may be shown after `piece`; nothing any more once a stop string is complete."""
        if self.is_complete:
            return b""
        self.held += piece
        ends = [(at + len(s), at) for s in self._strings if (at := self.held.find(s)) >= 0]
        if ends:
            self.is_complete = True
            return self._release(min(ends)[1])
        return self._release(len(self.held) - self._n_open())

    def flush(self) -> bytes:
        """What is still held back, at the end of a text that no stop string ended."""
        return b"" if self.is_complete else self._release(len(self.held))

    def n_useful(self, pieces: Sequence[bytes]) -> int:
        """How many of these next pieces belong to the text: all, or up to the one that completes a stop string."""
        ahead = StopStrings(())
        ahead._strings, ahead.held = self._strings, self.held
        for i, piece in enumerate(pieces):
            ahead.push(piece)
            if ahead.is_complete:
                return i + 1
        return len(pieces)

    def _n_open(self) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        longest = min(max((len(s) - 1 for s in self._strings), default=0), len(self.held))
        for n in range(longest, 0, -1):
            if any(s.startswith(self.held[-n:]) for s in self._strings):
                return n
        return 0

    def _release(self, n: int) -> bytes:
        out, self.held = self.held[:n], b"" if self.is_complete else self.held[n:]
        return out
