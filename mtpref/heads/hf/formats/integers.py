"""compressed-tensors' weight_packed: integers in I32, FP4 in U8, and what must fit together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mtpref.heads.hf.formats.bytewise import E8M0, Made, of_mxfp4, of_nvfp4
from mtpref.heads.hf.formats.declared import Declared, Facts
from mtpref.heads.hf.formats.packed import Packed
from mtpref.heads.hf.formats.raw import Raw
from mtpref.heads.hf.formats.stored import FLOATS, Unread, named

BITS = (4, 8, 2, 3, 5, 6, 7)


def of_packed(raw: Raw, said: Declared, codes: str) -> Made:
    """The tensor whose codes are in X.weight_packed."""
    name = codes.removesuffix("_packed")
    scale = f"{name}_scale"
    if scale not in raw:
        text = f"{named(codes)} has no scales, expected {named(scale)}; was the checkpoint saved whole?"
        return Unread(raw, name, (codes,), "", text), None
    kinds = raw.dtype(codes), raw.dtype(scale)
    if kinds == ("U8", "F8_E4M3"):
        return of_nvfp4(raw, name, codes, scale)
    if kinds[0] == "U8" and kinds[1] in E8M0:
        return of_mxfp4(raw, name, codes, scale)
    if kinds[0] == "I32" and kinds[1] in FLOATS:
        return _Integers(raw, said, name).made()
    expected = "I32 with float scales, or U8 with E4M3 or E8M0"
    text = f"{named(codes)} is {kinds[0]} with scales of {kinds[1]}, expected {expected}"
    return Unread(raw, name, (codes, scale), "", text), None


@dataclass
class _Integers:
    """One tensor's parts, checked one after the other."""

    raw: Raw
    said: Declared
    name: str

    def __post_init__(self) -> None:
        self.codes, self.scale = f"{self.name}_packed", f"{self.name}_scale"
        self.size, self.zero, self.order = (self._part(part) for part in ("shape", "zero_point", "g_idx"))
        self.words, self.scales = self.raw.shape(self.codes), self.raw.shape(self.scale)
        self.shape, self.n_bits = (0, 0), 0

    def made(self) -> Made:
        raw, name = self.raw, self.name
        text = self._wrong_shape() or self._wrong_words() or self._wrong_scales() or self._wrong_beside()
        if text is not None:
            parts = (self.codes, self.scale, self.size, self.zero, self.order)
            return Unread(raw, name, tuple(part for part in parts if part), "", text), None
        (n_row, n_column), n_group = self.shape, self.n_group
        is_one = n_group == 1 and math.prod(self.scales) == 1
        group = n_column // n_group
        grouping = "one scale a matrix" if is_one else "one scale a row" if n_group == 1 else f"groups of {group}"
        more = f"{', zero points' if self.zero else ''}{', g_idx' if self.order else ''}"
        strategy = "tensor" if is_one and n_row > 1 else "channel" if n_group == 1 else "group"
        facts = Facts("packed", "int", self.n_bits, group, n_group == 1, self.zero is None, strategy=strategy)
        kind, others = f"INT{self.n_bits}, {grouping}{more}", (self.size,) if self.size else ()
        tensor = Packed(raw, name, self.codes, self.scale, self.shape, self.n_bits, kind, self.zero, self.order, others)
        return tensor, facts

    @property
    def n_group(self) -> int:
        return 1 if math.prod(self.scales) == 1 else self.scales[-1]

    def _part(self, part: str) -> str | None:
        name = f"{self.name}_{part}"
        return name if name in self.raw else None

    def _wrong_shape(self) -> str | None:
        """weight_shape, which says how many codes there are."""
        raw, size, words = self.raw, self.size, self.words
        if len(words) != 2 or min(words) < 1:
            return f"{named(self.codes)}: shape {words}, expected (rows, words)"
        if size is None:
            return f"{named(self.codes)} has no {named(self.name)}_shape beside it, expected the matrix's shape"
        if raw.shape(size) != (2,) or raw.dtype(size) not in ("I64", "I32"):
            return f"{named(size)} is {raw.dtype(size)} {raw.shape(size)}, expected two whole numbers"
        n_row, n_column = (int(n) for n in raw.values(size))
        raw.release(size)
        if n_row != words[0] or not 0 < n_column <= 32 * words[1]:
            expected = f"({words[0]}, 1 .. {32 * words[1]})"
            return f"{named(size)}: ({n_row}, {n_column}), expected {expected} by {named(self.codes)} {words}"
        self.shape = n_row, n_column
        return None

    def _wrong_words(self) -> str | None:
        """As many words as the codes of a row take."""
        n_column, n_word = self.shape[1], self.words[1]
        said = self.said.schemes if self.said.method == "compressed-tensors" else ()
        stated = tuple(s.num_bits for s in said if s.num_bits and s.num_bits <= 8)
        fits = [b for b in stated or BITS if n_word == -(-n_column * b // 32)]
        if not fits:
            of_bits = dict.fromkeys(f"{-(-n_column * b // 32)} ({b} bits)" for b in stated or BITS[:2])
            why = ", as config.json says" if stated else ""
            what = f"for the {n_column} columns of {named(self.name)}{why}"
            return f"{named(self.codes)}: {n_word} words a row, expected {' or '.join(of_bits)} {what}"
        self.n_bits = fits[0]
        return None

    def _wrong_scales(self) -> str | None:
        (n_row, n_column), found = self.shape, self.scales
        if math.prod(found) != 1 and (len(found) != 2 or found[0] != n_row or found[1] < 1):
            return f"{named(self.scale)}: shape {found}, expected ({n_row}, groups) for {named(self.name)} {self.shape}"
        if n_column % self.n_group:
            what = f"a number that divides the {n_column} columns of {named(self.name)}"
            return f"{named(self.scale)}: {self.n_group} groups, expected {what}"
        return None

    def _wrong_beside(self) -> str | None:
        """Zero points and g_idx."""
        raw, (n_row, n_column), zero, order = self.raw, self.shape, self.zero, self.order
        if zero is not None:
            in_words = (-(-n_row * self.n_bits // 32), self.n_group)
            if raw.shape(zero) != {"I32": in_words, "I8": (n_row, self.n_group)}.get(raw.dtype(zero)):
                found = f"{raw.dtype(zero)} {raw.shape(zero)}"
                return f"{named(zero)}: {found}, expected I32 {in_words} for {named(self.name)} {self.shape}"
        if order is not None and (raw.shape(order) != (n_column,) or raw.dtype(order) not in ("I32", "I64")):
            return f"{named(order)}: {raw.dtype(order)} {raw.shape(order)}, expected I32 ({n_column},)"
        return None
