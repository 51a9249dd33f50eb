"""Draft vocabularies: which token ids a trimmed MTP head can name (FastMTP, d2t).

Owns the three forms of an id list (text, JSON, the tensor `d2t` of a GGUF) and what makes one valid. It must not know
what a head is.

In a GGUF, d2t[row] is the target's token id itself, as llama.cpp reads it (EAGLE-3, DFlash; llama.cpp PR #29143 for
qwen35). EAGLE-3 checkpoints in PyTorch store the offset id - row under the same name; llama.cpp's converter adds the
row number. Offsets are refused here, and named as such where they can be told.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.base.typed import parse_json_at
from mtpref.files.doors import open_text, read_up_to
from mtpref.files.gguf import GgufFile, open_gguf, printable

NAME = "`Options.draft_ids`"
D2T = "d2t"
D2T_TYPES = {"I64": "<i8", "I32": "<i4"}
MAX_BYTES = 8 << 20  # a million ids of seven digits


def read_draft_ids(path: str | Path, n_vocab: int) -> tuple[int, ...]:
    """The ids of a file, in ascending order.

    Forms    text with one id a line (blank lines do not count), a JSON list, or a GGUF with the tensor d2t
    Errors   MtprefError for anything else, and for ids that are out of range, repeated or none at all
    """
    source = f"{NAME} {printable(str(path), 400)}"
    expected = "expected a number of ids or a file with a list of token ids"
    with open_text(path, source, expected) as file:
        if file.start(4) == b"GGUF":
            return d2t_of(open_gguf(path), n_vocab)
        raw = read_up_to(file, source, expected, MAX_BYTES)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MtprefError(
            f"{source}: byte {error.start} is not UTF-8, expected one id a line, a JSON list or a GGUF "
            f"with the tensor {D2T}"
        ) from None
    ids = _from_json(text, source) if text.lstrip().startswith(("[", "{")) else _from_lines(text, source)
    return check_draft_ids(ids, n_vocab, source)


def d2t_of(file: GgufFile, n_vocab: int) -> tuple[int, ...]:
    """The ids of a GGUF's tensor d2t, in ascending order."""
    return check_draft_ids(d2t_rows(file, n_vocab).tolist(), n_vocab, f"{file.label}: tensor {D2T}")


def d2t_rows(file: GgufFile, n_vocab: int) -> NDArray[np.int64]:
    """The tensor d2t as it stands: the token id of each row of a trimmed head. Not checked but for form and length."""
    n_rows = d2t_length(file, n_vocab)
    info = file.tensors[D2T]
    return file.data(info).view(D2T_TYPES[info.type_name]).astype(np.int64).reshape(n_rows)


def d2t_length(file: GgufFile, n_vocab: int) -> int:
    """How many rows d2t speaks of; its values are not touched."""
    info = file.tensors.get(D2T)
    if info is None:
        raise MtprefError(
            f"{file.label}: tensor {D2T} is missing, expected the ids of a trimmed head; give {NAME} a "
            "text file with one id a line"
        )
    if info.type_name not in D2T_TYPES or len(info.shape) != 1:
        raise MtprefError(
            f"{file.label}: tensor {D2T} has type {info.type_name} and shape {info.ne}, expected "
            "I64 or I32 and one dimension"
        )
    if not 1 <= info.shape[0] <= n_vocab:
        raise MtprefError(
            f"{file.label}: tensor {D2T} has {info.shape[0]} ids, expected 1 .. {n_vocab}, the size of the vocabulary"
        )
    return int(info.shape[0])


def check_draft_ids(ids: Sequence[int], n_vocab: int, source: str) -> tuple[int, ...]:
    """The ids in ascending order, so that equal logits go to the lower id, as with the full head.

    Errors   MtprefError for no id, an id outside 0 .. n_vocab - 1, or one that occurs twice
    """
    if not ids:
        raise MtprefError(f"{source}: no id, expected 1 .. {n_vocab} token ids")
    ordered = sorted(ids)
    wrong = next((id for id in ids if not 0 <= id < n_vocab), None)
    twice = next((a for a, b in pairwise(ordered) if a == b), None)
    if wrong is None and twice is None:
        return tuple(ordered)
    found = f"id {printable(str(wrong), 24)}" if wrong is not None else f"id {twice} twice"
    hint = "are they for this model's vocabulary?"
    if _are_offsets(ids, n_vocab):
        hint = "they look like offsets (id - row, EAGLE-3's d2t): add the row number to each"
    raise MtprefError(f"{source}: {found}, expected each of 0 .. {n_vocab - 1} at most once; {hint}")


def _are_offsets(ids: Sequence[int], n_vocab: int) -> bool:
    """Whether adding the row number gives ascending ids of the vocabulary."""
    absolute = [row + offset for row, offset in enumerate(ids)]
    is_ascending = all(a < b for a, b in pairwise(absolute))
    return len(ids) > 1 and is_ascending and absolute[0] >= 0 and absolute[-1] < n_vocab


def _from_json(text: str, source: str) -> list[int]:
    expected = "expected a list of token ids such as [0, 1, 2]"
    values = parse_json_at(text.encode("utf-8", "surrogatepass"), source, f", {expected}")
    if not isinstance(values, list):
        raise MtprefError(f"{source}: a JSON {type(values).__name__}, {expected}")
    for i, value in enumerate(values):
        if type(value) is not int:
            raise MtprefError(f"{source}: item {i} is {printable(repr(value), 40)}, expected a token id")
    return values


def _from_lines(text: str, source: str) -> list[int]:
    ids = []
    for number, line in enumerate(text.splitlines(), 1):
        word = line.strip()
        if not word:
            continue
        if not re.fullmatch(r"-?[0-9]{1,18}", word):
            raise MtprefError(f"{source}: line {number} is {printable(repr(word[:40]), 40)}, expected one token id")
        ids.append(int(word))
    return ids
