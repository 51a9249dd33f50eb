"""What every vocabulary shares: special ids, cutting special tokens out of text, pieces and decoding.

Owns `Vocab`. Subclasses turn a fragment of ordinary text into ids and an id into bytes.
Read next: load.py (from GGUF keys), special.py (which ids are special), bpe.py, spm.py, hashed.py.
Source: llama.cpp src/llama-vocab.cpp (tokenizer_st_partition, tokenize, token_to_piece, detokenize).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtpref.base.errors import MtprefError
from mtpref.files.vocab.clean import clean_spaces

# Attributes, as bits: a control-looking token of another type gets CONTROL beside what it was.
UNDEFINED, UNKNOWN, UNUSED, NORMAL, CONTROL, USER_DEFINED, BYTE = 0, 1, 2, 4, 8, 16, 32
# tokenizer.ggml.token_type value -> attribute; any other value is UNDEFINED.
TOKEN_TYPES = {1: NORMAL, 2: UNKNOWN, 3: CONTROL, 4: USER_DEFINED, 5: UNUSED, 6: BYTE}

_NOT_ESCAPED_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
PIECE_BYTES = 1 << 16
_C_SPACES = b" \t\n\v\f\r"  # what C's isspace takes for white space


@dataclass(frozen=True)
class Header:
    """What a vocabulary knows about itself.

    add_space_prefix, clean_spaces   see `Vocab.detokenize`
    lstrip, rstrip                   special tokens that swallow the white space before or after them
    notes                            lines about what was odd but tolerated
    """

    model: str
    pre: str
    n_vocab: int
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    add_eos: bool
    eog_ids: frozenset[int]
    notes: tuple[str, ...]
    add_space_prefix: bool = False
    clean_spaces: bool = False
    lstrip: frozenset[int] = frozenset()
    rstrip: frozenset[int] = frozenset()


class Vocab(ABC):
    """Text to token ids and back. Made by `load_vocab`; immutable.

    Attributes   n_vocab, bos_id, eos_id (None if there is none), add_bos, add_eos, eog_ids (ids that end
                 generation), model and pre (the GGUF names), notes (tolerated oddities, one line each)
    """

    def __init__(self, header: Header, attrs: npt.NDArray[np.uint8], texts: dict[int, bytes]) -> None:
        """`attrs` (n_vocab,) attribute bits; `texts` the raw text of every id that is not plain NORMAL."""
        self.model, self.pre, self.n_vocab = header.model, header.pre, header.n_vocab
        self.bos_id, self.eos_id = header.bos_id, header.eos_id
        self.add_bos, self.add_eos = header.add_bos, header.add_eos
        self.eog_ids, self.notes = header.eog_ids, header.notes
        self._add_space_prefix, self._clean_spaces = header.add_space_prefix, header.clean_spaces
        self._lstrip, self._rstrip = header.lstrip, header.rstrip
        self._attrs, self._texts = attrs, texts
        special = np.flatnonzero(attrs & (CONTROL | USER_DEFINED | UNKNOWN)).tolist()
        # Longest text first, whatever stands first in the prompt; equal lengths by id.
        self._special = sorted(special, key=lambda id: -len(texts[id]))

    @property
    def holds_text(self) -> bool:
        """Whether ids stand for text: those of tokenizer `test` are hashes, `none` has none."""
        return self.model not in ("test", "none")

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True, limit: int = 0) -> list[int]:
        """Token ids of `text`.

        Rule     user-defined tokens, and with parse_special control and unknown tokens, match whole, the
                 longest text first; what is between them is tokenized on its own. add_special adds BOS in
                 front if add_bos and EOS at the end if add_eos, even where the text already has one.
        Bytes    text from a command line may hold undecodable bytes (surrogateescape): each counts as itself in
                 a `llama` vocabulary and as U+FFFD elsewhere, as does any other lone surrogate everywhere.
                 Nothing is normalised.
        limit    tokens that there is room for (0: no limit): a text that has far more is refused before all of it
                 is tokenized. One that has a few more is not: the caller counts.
        Errors   MtprefError if BOS or EOS is to be added and the vocabulary has none, and for a text beyond `limit`.
        """
        raw = to_bytes(text)
        if limit and len(raw) > 4 * limit:
            self._refuse_longer(raw, limit, parse_special)
        head, tail = self._ends() if add_special else ([], [])
        out = head
        after_special = True
        for fragment in self._partition(raw, parse_special):
            if isinstance(fragment, int):
                out.append(fragment)
                after_special = True
            else:
                out += self._encode_fragment(fragment, after_special)
                after_special = False
        return out + tail

    def _refuse_longer(self, raw: bytes, limit: int, parse_special: bool) -> None:
        """Tokenize piece by piece, to count alone, until it is plain that the text does not fit.

        Rule   a cut changes the tokens around it, so only more than twice the limit counts. A special token that
               swallows white space may swallow any number of pieces: vocabularies with such tokens are not judged here.
        """
        if self._lstrip or self._rstrip:
            return
        n_tokens = start = 0
        while start < len(raw):
            end = start + PIECE_BYTES
            while end < len(raw) and raw[end] & 0xC0 == 0x80 and end < start + PIECE_BYTES + 4:  # within a character
                end += 1
            for part in self._partition(raw[start:end], parse_special):
                n_tokens += 1 if isinstance(part, int) else len(self._encode_fragment(part, start == 0))
            start = end
            if n_tokens > 2 * limit + 16:
                seen = "" if end >= len(raw) else f" in the first {end} of its {len(raw)} bytes"
                raise MtprefError(
                    f"prompt: {n_tokens} tokens{seen}, expected at most {limit}; use a shorter prompt or "
                    "a larger `n_ctx`"
                )

    def piece(self, id: int, *, special: bool = False) -> bytes:
        """The exact bytes of one token: maybe half a character, maybe none.

        Rule     control and unknown tokens are empty, or their text with special=True; user-defined tokens
                 are their text; unused tokens are empty.
        Errors   MtprefError if id is not in 0 .. n_vocab - 1.
        """
        if not 0 <= id < self.n_vocab:
            raise MtprefError(f"token id {id} is outside the vocabulary, expected 0 .. {self.n_vocab - 1}")
        if not special and self._attrs[id] & (CONTROL | UNKNOWN):
            return b""
        return self._piece(id)

    def decode(self, ids: Iterable[int], *, special: bool = False) -> bytes:
        """The pieces of `ids`, joined; no space is added, removed or cleaned up."""
        return b"".join([self.piece(id, special=special) for id in ids])

    def detokenize(self, ids: Iterable[int], *, remove_special: bool = False, unparse_special: bool = False) -> bytes:
        """The text of `ids` as llama.cpp's llama_detokenize gives it.

        Rule     the pieces, joined (unparse_special is `special` of `piece`), but
                 1. remove_special drops a BOS in front and an EOS at the end if the vocabulary adds them.
                 2. If encoding adds a space in front, the first piece loses one leading space, unless a BOS was
                    dropped. So only remove_special=False, unparse_special=False without BOS, or an encoding
                    without BOS, gives back the text; this is llama.cpp's rule.
                 3. Vocabularies that llama.cpp cleans up lose spaces before punctuation: `clean_spaces`.
        Errors   as `piece`.
        """
        ids = list(ids)
        strip = self._add_space_prefix
        if remove_special and self.add_bos and ids[:1] == [self.bos_id]:
            ids, strip = ids[1:], False
        if remove_special and self.add_eos and ids[-1:] == [self.eos_id]:
            ids = ids[:-1]
        pieces = [self.piece(id, special=unparse_special) for id in ids]
        if strip and pieces:
            pieces[0] = pieces[0].removeprefix(b" ")
        text = b"".join(pieces)
        return clean_spaces(text) if self._clean_spaces else text

    def is_eog(self, id: int) -> bool:
        """Whether `id` ends generation."""
        return id in self.eog_ids

    def is_control(self, id: int) -> bool:
        """Whether `id` is a control token: matched only with parse_special, shown only with special=True."""
        return 0 <= id < self.n_vocab and bool(self._attrs[id] & CONTROL)

    def _ends(self) -> tuple[list[int], list[int]]:
        """The ids that add_special puts before and after the text."""
        ends: list[list[int]] = []
        for add, id, name in ((self.add_bos, self.bos_id, "bos"), (self.add_eos, self.eos_id, "eos")):
            if add and id is None:
                raise MtprefError(
                    f"tokenizer.ggml.add_{name}_token is true, but tokenizer.ggml.{name}_token_id names no "
                    "token, expected an id inside the vocabulary; try: set either key in the file"
                )
            ends.append([id] if add and id is not None else [])
        return ends[0], ends[1]

    def _partition(self, raw: bytes, parse_special: bool) -> list[bytes | int]:
        """`raw` as ordinary text (bytes, never empty) and special ids, in order."""
        parts: list[bytes | int] = [raw] if raw else []
        for id in self._special:
            text = self._texts[id]
            if text not in raw or (not parse_special and self._attrs[id] & (CONTROL | UNKNOWN)):
                continue
            cut: list[bytes | int] = []
            for part in parts:
                if isinstance(part, int):
                    cut.append(part)
                else:
                    cut += _cut(part, text, id, id in self._lstrip, id in self._rstrip)
            parts = cut
        return parts

    @abstractmethod
    def _encode_fragment(self, fragment: bytes, after_special: bool) -> list[int]:
        """Token ids of text without special tokens. `after_special`: at the start, or after a special token."""

    @abstractmethod
    def _piece(self, id: int) -> bytes:
        """The bytes of a token that is not special."""


def to_bytes(text: str) -> bytes:
    """UTF-8; undecodable bytes of a command line come back as they were, other lone surrogates as U+FFFD."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return _NOT_ESCAPED_BYTE.sub("\ufffd", text).encode("utf-8", "surrogateescape")


def _cut(part: bytes, text: bytes, id: int, lstrip: bool, rstrip: bool) -> list[bytes | int]:
    """`part` with every occurrence of `text`, from the left, replaced by `id`; empty remainders vanish.

    lstrip, rstrip: the white space before, after an occurrence goes with it.
    """
    out: list[bytes | int] = []
    start = 0
    while (at := part.find(text, start)) >= 0:
        left = part[start:at]
        if lstrip:
            left = left.rstrip(_C_SPACES)
        if left:
            out.append(left)
        out.append(id)
        start = at + len(text)
        while rstrip and start < len(part) and part[start] in _C_SPACES:
            start += 1
    if start < len(part):
        out.append(part[start:])
    return out
