"""Bytes as tokens write them: <0xHH> texts and the alphabet of byte-level BPE.

Knows nothing of vocabularies.
"""

from __future__ import annotations

import re

from mtpref.base.errors import MtprefError

_BYTE_TEXT = re.compile("<0x([0-9A-Fa-f]{2})>")
_LENIENT = re.compile(
    rb"[\xc0-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf7][\x80-\xbf]{3}|[\x80-\xff]", re.DOTALL
)
_REPLACEMENT = "\ufffd".encode()


def byte_of(id: int, text: bytes) -> int:
    """The byte of a token of type byte, whose text is <0xHH>; MtprefError otherwise."""
    match = _BYTE_TEXT.fullmatch(text.decode("utf-8", "replace"))
    if match is None:
        raise MtprefError(
            f"tokenizer.ggml.tokens[{id}]: {text[:40]!r} has type 6 (byte), expected a text like <0x0A>; "
            "convert the model again with a current converter"
        )
    return int(match[1], 16)


def is_utf8(raw: bytes) -> bool:
    """Whether `raw` is valid UTF-8."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def lenient_text(raw: bytes) -> str:
    """Text of bytes that may be no UTF-8, as llama.cpp's byte-level BPE reads them.

    Rule     a lead byte with its continuation bytes is the number they spell, overlong or not; any other byte
             beyond ASCII is U+FFFD. A number that is no character (a surrogate, above U+10FFFF) is U+FFFD as
             well; there llama.cpp goes on with the number, or ends.
    """
    return _LENIENT.sub(_spelled, raw).decode("utf-8")


def _spelled(match: re.Match[bytes]) -> bytes:
    symbol = match[0]
    code = 0x110000
    if len(symbol) > 1:
        code = symbol[0] & (0x7F >> len(symbol))
        for byte in symbol[1:]:
            code = code << 6 | byte & 0x3F
    return chr(code).encode("utf-8") if code < 0xD800 or 0xE000 <= code < 0x110000 else _REPLACEMENT


def _byte_alphabet() -> tuple[str, ...]:
    """byte -> character: printable Latin-1 bytes stand for themselves, the others for U+0100 onwards."""
    out, spare = [], 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF:
            out.append(chr(byte))
        else:
            out.append(chr(spare))
            spare += 1
    return tuple(out)


BYTE_TO_CHAR = _byte_alphabet()
CHAR_TO_BYTE = {char: byte for byte, char in enumerate(BYTE_TO_CHAR)}
