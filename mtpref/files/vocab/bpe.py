"""Tokenizer model `gpt2`: byte-level BPE over the `tokenizers` library, like llama.cpp at the edges.

Owns the building of the BPE table and the bytes of a piece. Read next: pretokenizers.py.

The library wants every merge to reach a token; llama.cpp does not. So a text that merges reach but the
vocabulary lacks becomes a phantom entry with an id from n_vocab on, and a phantom in the result is replaced
by llama.cpp's fallback: for each byte of the encoded text its token, or nothing if it has none. A word that is
a phantom as a whole must not count as a token; where that could happen, words are looked up one by one.
Source: llama.cpp src/llama-vocab.cpp (llm_tokenizer_bpe_session, token_to_piece, llama_decode_text).
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import BPE

from mtpref.files.vocab.base import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Header, Vocab
from mtpref.files.vocab.byte_texts import BYTE_TO_CHAR, CHAR_TO_BYTE, byte_of, is_utf8, lenient_text
from mtpref.files.vocab.patterns import Rules
from mtpref.files.vocab.pretokenizers import build_pre_tokenizer

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_NEVER_IN_UTF8 = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))
Fallback = dict[int, list[int]]


class BpeVocab(Vocab):
    """Byte-level BPE: words by the pre-tokenizer, then merges, lowest rank first, leftmost among equals."""

    def __init__(
        self,
        header: Header,
        attrs: npt.NDArray[np.uint8],
        texts: dict[int, bytes],
        tokenizer: Tokenizer,
        fallback: Fallback,
        ignore_merges: bool,
    ) -> None:
        """`tokenizer` and `fallback` from `build_bpe`; `ignore_merges`: see `Rules`."""
        super().__init__(header, attrs, texts)
        self._tokenizer, self._fallback = tokenizer, fallback
        self._by_word = ignore_merges and bool(fallback)

    def _encode_fragment(self, fragment: bytes, after_special: bool) -> list[int]:
        text = fragment.decode("utf-8") if is_utf8(fragment) else lenient_text(fragment)
        if self._by_word:
            ids = self._encode_words(text)
        else:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not self._fallback or max(ids, default=0) < self.n_vocab:
            return ids
        return [token for id in ids for token in self._fallback.get(id, (id,))]

    def _encode_words(self, text: str) -> list[int]:
        """As the tokenizer with ignore_merges, but for whole words that are real tokens only."""
        ids: list[int] = []
        for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text):
            id = self._tokenizer.token_to_id(word)
            if id is not None and id < self.n_vocab:
                ids.append(id)
            else:
                ids += [token.id for token in self._tokenizer.model.tokenize(word)]
        return ids

    def _piece(self, id: int) -> bytes:
        attr = self._attrs[id]
        if attr & (CONTROL | UNKNOWN | USER_DEFINED):
            return self._texts[id]
        if attr & NORMAL:
            text = self._tokenizer.id_to_token(id)
            return decode_bytes(self._texts[id].decode("utf-8", "surrogateescape") if text is None else text)
        if attr & BYTE:
            return bytes([byte_of(id, self._texts[id])])
        return b""


def decode_bytes(text: str) -> bytes:
    """The bytes that a token's text stands for; others than the byte alphabet show as [UNK_BYTE_0x..].

    `text` may hold undecodable bytes (surrogateescape); each is such another, with the bytes of U+FFFD.
    """
    try:
        return bytes([CHAR_TO_BYTE[char] for char in text])
    except KeyError:
        raw = text.encode("utf-8", "surrogateescape")
        return b"".join([_byte_or_note(char, raw) for char in text])


def _byte_or_note(char: str, raw: bytes) -> bytes:
    if char in CHAR_TO_BYTE:
        return bytes([CHAR_TO_BYTE[char]])
    shown = _ESCAPED_BYTE.sub("\ufffd", char).encode("utf-8")
    return b"[UNK_BYTE_0x" + shown.hex().encode() + raw + b"]"


def build_bpe(rules: Rules, ids: dict[str, int], merges: list[str]) -> tuple[Tokenizer, Fallback, list[str]]:
    """The BPE table, the fallback of every phantom id, and notes.

    Inputs   `ids` text -> id, complete; taken over: entries may be added or removed. `merges` in rank order,
             each "left right", cut at the first space after its first character.
    Rule     a merge without such a space has no effect; of equal merges the first counts.
    """
    if len(set(merges)) != len(merges):
        merges = list(dict.fromkeys(merges))
    n_vocab = len(ids)
    pairs = split_merges(merges)
    bytes_alone = _drop_unusable(ids)
    lost = [char for char in BYTE_TO_CHAR if char not in ids]
    astray = [p for p in pairs if p[0] + p[1] not in ids or p[0] not in ids or p[1] not in ids]
    for text in lost + [text for left, right in astray for text in (left, right, left + right)]:
        ids.setdefault(text, len(ids) + n_vocab)  # beyond every real id, whatever was dropped
    fallback = {id: _single_bytes(text, ids, n_vocab, bytes_alone) for text, id in ids.items() if id >= n_vocab}
    notes = []
    n_lost = sum(CHAR_TO_BYTE[char] not in _NEVER_IN_UTF8 for char in lost)
    if n_lost:
        notes.append(f"tokenizer.ggml.tokens: {n_lost} bytes of UTF-8 have no token; text with them loses them")
    if astray:
        notes.append(
            f"tokenizer.ggml.merges: {len(astray)} of {len(pairs)} merges name a text that is no token; "
            "text that reaches one falls back to single bytes and may lose some"
        )
    tokenizer = Tokenizer(BPE(ids, pairs, ignore_merges=rules.ignore_merges and not fallback))
    tokenizer.pre_tokenizer = build_pre_tokenizer(rules)
    return tokenizer, fallback, notes


def split_merges(merges: list[str]) -> list[tuple[str, str]]:
    """(left, right) of each merge; those that can never apply are left out."""
    pairs = [(merge[:at], merge[at + 1 :]) for merge in merges if (at := merge.find(" ", 1)) > 0]
    if not _is_utf8(merges):
        pairs = [pair for pair in pairs if _is_utf8(pair)]
    return pairs


def _is_utf8(texts: list[str] | tuple[str, str]) -> bool:
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _drop_unusable(ids: dict[str, int]) -> dict[int, int]:
    """Removes texts that are no UTF-8 (no word can contain them); returns byte -> id of those of one byte."""
    if _is_utf8(list(ids)):
        return {}
    alone = {}
    for text in [text for text in ids if not _is_utf8((text, ""))]:
        id = ids.pop(text)
        if len(text) == 1:
            alone[ord(text) - 0xDC00] = id
    return alone


def _single_bytes(text: str, ids: dict[str, int], n_vocab: int, bytes_alone: dict[int, int]) -> list[int]:
    """llama.cpp's fallback: one token per UTF-8 byte of the encoded text, where such a token exists."""
    out = []
    for byte in text.encode("utf-8"):
        id = ids.get(chr(byte)) if byte < 0x80 else bytes_alone.get(byte)
        if id is not None and id < n_vocab:
            out.append(id)
    return out
