"""Tokenizer model `gemma4`: BPE over characters, not bytes, with spaces as U+2581, like llama.cpp at the edges.

Owns the table and the bytes of a piece. A text is cut at line breaks alone, so merges run over whole lines. A character
or a merged text that is no token falls back to the tokens of its bytes, <0x00> to <0xFF>, or to nothing where these are
not there. Phantom entries stand for what the library wants and the vocabulary lacks, as in bpe.py.
Source: llama.cpp src/llama-vocab.cpp (llm_tokenizer_bpe_session, LLAMA_VOCAB_PRE_TYPE_GEMMA4).
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
from tokenizers.models import BPE

from mtpref.files.vocab.base import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Header, Vocab
from mtpref.files.vocab.bpe import split_merges
from mtpref.files.vocab.byte_texts import byte_of, is_utf8, lenient_text

SPACE = "\u2581"
_LINES = re.compile(r"[^\n]+|\n+")


class PlainBpeVocab(Vocab):
    """Lines and runs of line breaks; a run that is a token is that token; else merges, lowest rank first, leftmost
    among equals."""

    def __init__(
        self,
        header: Header,
        attrs: npt.NDArray[np.uint8],
        odd: dict[int, bytes],
        texts: list[str],
        merges: list[str],
    ) -> None:
        """`texts` of all tokens, distinct; `merges` in rank order, each "left right"."""
        super().__init__(header, attrs, odd)
        ids = {text: id for id, text in enumerate(texts) if is_utf8(text.encode("utf-8", "surrogateescape"))}
        self._breaks = {text: id for text, id in ids.items() if text and not text.strip("\n")}
        self._plain = texts
        pairs = split_merges(list(dict.fromkeys(merges)))
        of_byte = [ids.get(_name(byte)) for byte in range(256)]
        wanted = [text for left, right in pairs for text in (left, right, left + right)]
        for text in (*wanted, *map(_name, range(256))):
            ids.setdefault(text, len(texts) + len(ids))
        self._fallback = {id: _bytes_of(text, of_byte) for text, id in ids.items() if id >= len(texts)}
        self._fallback |= {ids[_name(byte)]: [] for byte in range(256) if of_byte[byte] is None}
        self._model = BPE(ids, pairs, byte_fallback=True)

    def _encode_fragment(self, fragment: bytes, after_special: bool) -> list[int]:
        text = (fragment.decode("utf-8") if is_utf8(fragment) else lenient_text(fragment)).replace(" ", SPACE)
        out: list[int] = []
        for line in _LINES.findall(text):
            if line in self._breaks:
                out.append(self._breaks[line])
                continue
            for token in self._model.tokenize(line):
                out += self._fallback.get(token.id, (token.id,))
        return out

    def _piece(self, id: int) -> bytes:
        attr = self._attrs[id]
        if attr & (CONTROL | UNKNOWN | USER_DEFINED):
            return self._texts[id]
        if attr & NORMAL:
            text = self._plain[id].encode("utf-8", "surrogateescape")
            return text.replace(SPACE.encode(), b" ")
        if attr & BYTE:
            return bytes([byte_of(id, self._texts[id])])
        return b""


def _name(byte: int) -> str:
    return f"<0x{byte:02X}>"


def _bytes_of(text: str, of_byte: list[int | None]) -> list[int]:
    """The tokens of a text's bytes that there are."""
    return [id for byte in text.encode("utf-8") if (id := of_byte[byte]) is not None]
