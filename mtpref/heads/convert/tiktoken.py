"""A tiktoken file as GGUF keys: ranks of byte strings, which stand for merges (Kimi).

Owns the file's form, the merges that ranks stand for, and the special tokens, which only tokenizer_config.json names.
The pattern that cuts text stands in Python code beside the checkpoint, which is not run: it is taken from the name of
its class.
Facts: llama.cpp conversion/deepseek.py (set_vocab); moonshotai's tokenization_kimi.py.
"""

from __future__ import annotations

import base64
import binascii
import itertools
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import printable
from mtpref.files.vocab.byte_texts import BYTE_TO_CHAR
from mtpref.heads.hf import Checkpoint

FILE = "tiktoken.model"
N_RESERVED = 258  # ids after the ranks that are special tokens, named or not
MOST = 1 << 20
MOST_WORK = 1 << 28  # sum of squared lengths of tokens: what finding merges takes (Kimi's file: 1 << 23)
_PRES = {"TikTokenTokenizer": "kimi-k2"}  # by tokenizer_class

Ranks = dict[bytes, int]


def read_ranks(checkpoint: Checkpoint) -> Ranks:
    """Byte strings and their ranks, which are their ids: 0 to n - 1.

    Errors   MtprefError for a line of another form, a string or a rank that occurs twice, a rank that is missing
    """
    label, text = f"{checkpoint.label}: {FILE}", checkpoint.text(FILE) or ""
    ranks: Ranks = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line:
            continue
        try:
            encoded, rank_text = line.split()
            token, rank = base64.b64decode(encoded, validate=True), int(rank_text)
        except (ValueError, binascii.Error):
            raise MtprefError(
                f"{label}: line {number} is {printable(repr(line), 80)}, expected a base64 text and a rank"
            ) from None
        if not token or token in ranks:
            raise MtprefError(f"{label}: line {number} has the text of an earlier one, or none; expected each once")
        ranks[token] = rank
    if not ranks or len(ranks) > MOST or sorted(ranks.values()) != list(range(len(ranks))):
        raise MtprefError(f"{label}: {len(ranks)} ranks, expected each of 0 to n - 1 once (n at most {MOST})")
    if sum(len(token) ** 2 for token in ranks) > MOST_WORK:
        raise MtprefError(f"{label}: texts of up to {max(map(len, ranks))} bytes, expected words")
    missing = [b for b in range(256) if bytes([b]) not in ranks]
    if missing:
        raise MtprefError(f"{label}: byte {missing[0]} has no rank, expected one for each of the 256 bytes")
    return ranks


def merges_of(ranks: Ranks) -> list[str]:
    """The merges that give a token of each rank, in the file's order: the two parts that lower ranks make of it.

    A token that those make more than two parts of has no merge: nothing but a whole word can be it.
    """
    out = []
    for token, rank in ranks.items():
        if len(token) > 1:
            parts = _parts(token, ranks, rank)
            if len(parts) == 2:
                out.append(" ".join(map(_text, parts)))
    return out


def _parts(token: bytes, ranks: Ranks, below: int) -> list[bytes]:
    """Byte-pair encoding with the pairs whose rank is below this one, the lowest first, the first of equal ones."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 1:
        found = [ranks.get(a + b, below) for a, b in itertools.pairwise(parts)]
        lowest = min(found)
        if lowest >= below:
            break
        at = found.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def special_tokens(checkpoint: Checkpoint, n_ranks: int) -> dict[int, str]:
    """Texts of the special tokens by id: those of added_tokens_decoder, and reserved ones between them.

    Errors   MtprefError for an entry of another form, an id out of its range, or a text that occurs twice
    """
    config = checkpoint.json("tokenizer_config.json") or {}
    added, where = config.get("added_tokens_decoder"), f"{checkpoint.label}: tokenizer_config.json"
    named: dict[int, str] = {}
    for id, entry in (added if isinstance(added, dict) else {}).items():
        text = entry.get("content") if isinstance(entry, dict) else None
        if not (id.isascii() and id.isdecimal() and len(id) < 10 and isinstance(text, str) and text):
            raise MtprefError(f"{where}: added_tokens_decoder: an entry has another form, expected id -> content")
        named[int(id)] = text
    last = n_ranks + N_RESERVED - 1
    if named and not n_ranks <= min(named) <= max(named) <= last:
        raise MtprefError(
            f"{where}: added_tokens_decoder has ids {min(named)} to {max(named)}, expected {n_ranks} to {last}: those "
            f"after the ranks of {FILE}"
        )
    if len(set(named.values())) < len(named):
        raise MtprefError(f"{where}: added_tokens_decoder has a text twice, expected each once")
    return {id: named.get(id, _reserved(id)) for id in range(n_ranks, n_ranks + N_RESERVED)}


def _reserved(id: int) -> str:
    return f"<|reserved_token_{id}|>"


def is_reserved(id: int, text: str) -> bool:
    """Whether nothing names the special token of this id."""
    return text == _reserved(id)


def pre_of(checkpoint: Checkpoint) -> str:
    """The pre-tokenizer of the class that tokenizer_config.json names.

    Errors   MtprefError for another class
    """
    config: dict[str, Any] = checkpoint.json("tokenizer_config.json") or {}
    name = config.get("tokenizer_class")
    if not isinstance(name, str) or name not in _PRES:
        raise MtprefError(
            f"{checkpoint.label}: tokenizer_config.json: tokenizer_class is {printable(repr(name))}, expected "
            f"{', '.join(_PRES)}: how text is cut before {FILE} applies stands in its code, which is not run; "
            "give the pre-tokenizer's name with `convert.Settings.pre`"
        )
    return _PRES[name]


def _text(token: bytes) -> str:
    return "".join([BYTE_TO_CHAR[b] for b in token])


def texts_of(ranks: Ranks) -> list[str]:
    """Texts by id, a character for each byte."""
    return [_text(token) for token in sorted(ranks, key=ranks.__getitem__)]
