"""Tokenizer model `llama`: SentencePiece's score-driven BPE over the `sentencepiece` library, as llama.cpp does it.

Owns the SentencePiece model that is rebuilt in memory, the bytes of what it does not know, and the space in front.

llama.cpp looks at texts and scores only, so every token is a normal piece of the rebuilt model, whatever its type;
special tokens were cut out before. The model gets one piece more, the unknown one, with the id n_vocab; text that
comes back as that piece is written as byte tokens. Nothing is normalised: llama.cpp ignores
tokenizer.ggml.remove_extra_whitespaces and tokenizer.ggml.precompiled_charsmap in this model.
Source: llama.cpp src/llama-vocab.cpp (llm_tokenizer_spm_session, byte_to_token); sentencepiece_model.proto.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
from sentencepiece import SentencePieceProcessor

from mtpref.base.errors import MtprefError
from mtpref.files.vocab.base import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Header, Vocab
from mtpref.files.vocab.byte_texts import byte_of, is_utf8

SPACE = "\u2581".encode()
# A symbol is as long as its first byte says, whatever follows; the end of the text may cut it short.
_SYMBOL = re.compile(rb"[\x00-\xbf]|[\xc0-\xdf].?|[\xe0-\xef].{0,2}|[\xf0-\xff].{0,3}", re.DOTALL)
_UNKNOWN_TYPE, _BPE = 2, 2  # values of SentencePiece.Type and TrainerSpec.ModelType


class SpmVocab(Vocab):
    """Characters, then merges: of all neighbours whose joined text is a token the one with the highest score first,
    leftmost among equals.

    Rule     spaces count as U+2581. Text at the start and after a special token gets a space in front if the
             vocabulary adds one. A character that is no token is its bytes: <0xHH>, else the token of that one byte.
    """

    def __init__(
        self,
        header: Header,
        attrs: npt.NDArray[np.uint8],
        texts: dict[int, bytes],
        processor: SentencePieceProcessor,
        ids: Mapping[str, int],
    ) -> None:
        """`processor` from `build_spm`; `ids` text -> id."""
        super().__init__(header, attrs, texts)
        self._processor = processor
        self._byte_ids = [_byte_id(byte, ids) for byte in range(256)]
        self._odd_ids = {text: id for id, text in texts.items() if not is_utf8(text)}

    def _encode_fragment(self, fragment: bytes, after_special: bool) -> list[int]:
        text = fragment.replace(b" ", SPACE)
        if self._add_space_prefix and after_special:
            text = SPACE + text
        if is_utf8(text):
            return self._encode_valid(text)
        ids = []
        for valid, symbols in groupby(_SYMBOL.findall(text), is_utf8):
            if valid:
                ids += self._encode_valid(b"".join(symbols))
            else:
                ids += [id for symbol in symbols for id in self._bytes(symbol)]
        return ids

    def _encode_valid(self, raw: bytes) -> list[int]:
        text = raw.decode("utf-8")
        ids: list[int] = self._processor.encode(text)
        if self.n_vocab not in ids:
            return ids
        pieces = self._processor.encode(text, out_type=str)  # the text itself where it is unknown
        out = []
        for id, piece in zip(ids, pieces, strict=True):
            out += self._bytes(piece.encode("utf-8")) if id == self.n_vocab else [id]
        return out

    def _bytes(self, symbol: bytes) -> list[int]:
        """The tokens of text that is no token; of a symbol that is no UTF-8 also the token with that text."""
        if symbol in self._odd_ids:
            return [self._odd_ids[symbol]]
        ids = []
        for byte in symbol:
            id = self._byte_ids[byte]
            if id is None:
                raise MtprefError(
                    f"tokenizer.ggml.tokens: no token for byte 0x{byte:02X} of {symbol!r}, expected <0x{byte:02X}>; "
                    "leave that character out of the text, or convert the model again with byte tokens"
                )
            ids.append(id)
        return ids

    def _piece(self, id: int) -> bytes:
        attr = self._attrs[id]
        if attr & (CONTROL | UNKNOWN | USER_DEFINED):
            return self._texts[id]
        if attr & NORMAL:
            text = self._texts.get(id)
            return (self._processor.id_to_piece(id).encode("utf-8") if text is None else text).replace(SPACE, b" ")
        if attr & BYTE:
            return bytes([byte_of(id, self._texts[id])])
        return b""


def _byte_id(byte: int, ids: Mapping[str, int]) -> int | None:
    alone = bytes([byte]).decode("utf-8", "surrogateescape")
    return ids.get(f"<0x{byte:02X}>", ids.get(alone))


def build_spm(texts: Sequence[str], scores: npt.NDArray[np.float32]) -> SentencePieceProcessor:
    """The SentencePiece model with these pieces, and after them the unknown one.

    Inputs   `texts` distinct, none empty; `scores` (n,) float32.
    Errors   MtprefError if a score is not a number, or if the library refuses the pieces.
    """
    if np.isnan(scores).any():
        raise MtprefError(
            f"tokenizer.ggml.scores[{int(np.isnan(scores).argmax())}]: nan, expected a number; convert the model again"
        )
    taken = set(texts)
    rows = scores.astype("<f4").tobytes()
    pieces = []
    for i, text in enumerate(texts):
        raw = text.encode("utf-8", "surrogateescape")
        if not is_utf8(raw):  # such a text can match nothing, so any free one will do
            raw = _free_name(f"<{i}>", taken).encode("utf-8")
        pieces.append(_field(1, _field(1, raw) + b"\x15" + rows[4 * i : 4 * i + 4]))
    unknown = _free_name("<unknown>", taken).encode("utf-8")
    pieces.append(_field(1, _field(1, unknown) + b"\x18" + bytes([_UNKNOWN_TYPE])))
    trainer = b"\x18" + bytes([_BPE])
    # add_dummy_prefix (3), remove_extra_whitespaces (4), escape_whitespaces (5): all off.
    normalizer = _field(1, b"identity") + b"\x18\x00\x20\x00\x28\x00"
    model = b"".join(pieces) + _field(2, trainer) + _field(3, normalizer)
    try:
        return SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        what = str(error).replace("\n", " ")[:200]
        raise MtprefError(
            f"tokenizer.ggml.tokens: sentencepiece refuses them ({what}); convert the model again"
        ) from None


def _free_name(name: str, taken: set[str]) -> str:
    """`name`, lengthened until no piece has it."""
    while name in taken:
        name += ">"
    taken.add(name)
    return name


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
