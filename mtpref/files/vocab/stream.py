"""Model bytes to text on a screen: whole characters only, and no control sequences.

Owns `StreamDecoder` and `terminal_safe`. Knows nothing of tokens.
"""

from __future__ import annotations

import codecs
import re

# C0 but tab and line feed, DEL, C1; marks that reorder or break the line; lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class StreamDecoder:
    """UTF-8 bytes in any portions to text that never holds half a character.

    The text of all `push` calls and the last `flush`, joined, equals `bytes.decode("utf-8", "replace")` of
    the whole, for every way to cut it: an incomplete sequence waits for its rest, an invalid one becomes
    U+FFFD.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """Text that is complete after `data`."""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is still held back, as U+FFFD, and a fresh start."""
        text = self._decoder.decode(b"", True)
        self._decoder.reset()
        return text


def terminal_safe(text: str) -> str:
    r"""`text` with every character that could steer a terminal shown as a visible escape (\x1b, \u202e).

    Rule     escaped: C0 but \n and \t, DEL, C1, U+2028..U+202E and U+2066..U+2069 (line and paragraph
             separators, bidirectional embeddings, overrides, isolates), lone surrogates. All else is kept.
    Note     for display only: the escapes can't be told from the same characters written by the model.
    """
    return _UNSAFE.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
