"""llama.cpp's tokenizer model `test`: text to ids by a hash, ids to text in hexadecimal.

For models whose weights mean nothing. Not invertible, and the merges and the pre-tokenizer are not looked at.
Source: llama.cpp src/llama-vocab.cpp (LLAMA_VOCAB_TYPE_TEST in tokenize and token_to_piece).
"""

from __future__ import annotations

from mtpref.files.vocab.base import Vocab

CHUNK = 5


class HashedVocab(Vocab):
    """Each run of 5 bytes (the last may be shorter) is one token.

    Rule     h = 31 h + byte, from h = 0; id = h mod n_vocab. Special tokens are cut out first as in any
             vocabulary, but BOS and EOS are never added, whatever `add_bos` says.
             A piece is the id in lower-case hexadecimal; a control token has one with special=True only.
    """

    def _encode_fragment(self, fragment: bytes, after_special: bool) -> list[int]:
        ids = []
        for start in range(0, len(fragment), CHUNK):
            value = 0
            for byte in fragment[start : start + CHUNK]:  # at most 31^5 * 255, far below 2^64: never wraps
                value = value * 31 + byte
            ids.append(value % self.n_vocab)
        return ids

    def _piece(self, id: int) -> bytes:
        return b"%x" % id

    def _ends(self) -> tuple[list[int], list[int]]:
        return [], []
