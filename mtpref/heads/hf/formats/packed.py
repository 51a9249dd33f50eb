"""compressed-tensors' pack-quantized: integers of a few bits along each row, a scale (and a zero point) for each group.

Words of 32 bits along a row, the lowest bits first, no gaps; a code is the value + 2**(bits - 1). Zero points are
packed alike, down the rows. value = (code - zero) * scale in float32, rounded once; without zero points zero is
2**(bits - 1). Kimi's INT4 is this with groups of 32.
Source: compressed_tensors compressors/pack_quantized; llama.cpp conversion/base.py (dequant_packed).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.heads.hf.formats.bits import fits_f16, q4_0, unpack
from mtpref.heads.hf.formats.raw import Index, Raw
from mtpref.heads.hf.formats.stored import Decoded, named

SCAN_ROWS = 1 << 12


class Packed(Decoded):
    """zero, order: names of the zero points and of the columns' groups, or None; is_wide: zero points not packed."""

    def __init__(
        self, raw: Raw, name: str, codes: str, scale: str, shape: tuple[int, ...], n_bits: int, kind: str,
        zero: str | None = None, order: str | None = None, others: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        more = tuple(part for part in (zero, order) if part is not None)
        super().__init__(raw, name, (codes, scale, *more, *others), shape, kind)
        self.n_bits, self.zero, self.order = n_bits, zero, order
        self.scale_shape = raw.shape(scale)
        self.n_group = 1 if np.prod(self.scale_shape) == 1 else self.scale_shape[-1]
        self.group = shape[-1] // self.n_group

    def rows(self, index: Index) -> NDArray:
        ids = self.ids(index)
        x = self._codes(index).astype(np.float32)
        groups = self._groups()
        x -= self._spread(self._zeros(ids), groups)
        with np.errstate(over="ignore"):
            x *= self._spread(self._scales(ids), groups)
        return x

    def keeps(self) -> str | None:
        is_plain = self.n_bits == 4 and self.zero is None and self.group % 32 == 0 and self.shape[-1] % 32 == 0
        if not is_plain or self._groups() is not None:
            return None
        if self.raw.dtype(self.sources[1]) == "F16":
            return "Q4_0"
        for first in range(0, self.n_rows, SCAN_ROWS):
            ids = np.arange(first, min(first + SCAN_ROWS, self.n_rows))
            if not fits_f16(self._scales(ids)):
                return None
        self.raw.release(self.sources[1])
        return "Q4_0"

    def blocks(self, index: Index) -> NDArray[np.uint8]:
        scale = np.broadcast_to(self._scales(self.ids(index)), (len(self.ids(index)), self.n_group))
        return q4_0(self._codes(index), np.repeat(scale, self.group // 32, axis=1))

    def _codes(self, index: Index) -> NDArray[np.uint8]:
        return unpack(self.raw.rows(self.sources[0], index), self.n_bits, self.shape[-1])

    def _scales(self, ids: NDArray[np.intp]) -> NDArray[np.float32]:
        """(rows, groups), or (1, 1)."""
        name = self.sources[1]
        found = self.raw.values(name) if np.prod(self.scale_shape) == 1 else self.raw.rows(name, ids)
        return self.raw.finite(name, found).reshape(-1, self.n_group)

    def _zeros(self, ids: NDArray[np.intp]) -> NDArray[np.float32]:
        """The codes that stand for 0."""
        middle = 1 << (self.n_bits - 1)
        if self.zero is None:
            return np.full((1, 1), middle, np.float32)
        if self.raw.dtype(self.zero) == "I8":
            return self.raw.rows(self.zero, ids).astype(np.float32).reshape(len(ids), -1) + np.float32(middle)
        words = self.raw.values(self.zero)
        first = ids * self.n_bits // 32
        if 32 % self.n_bits == 0:
            shift = (ids * self.n_bits % 32).astype(np.uint32)[:, None]
            picked = words[first].view(np.uint32) >> shift & np.uint32((1 << self.n_bits) - 1)
            return picked.astype(np.float32)
        return unpack(np.ascontiguousarray(words.T), self.n_bits, self.n_rows).T[ids].astype(np.float32)

    def _groups(self) -> NDArray[np.intp] | None:
        """The group of each column; None where they follow each other."""
        if self.order is None:
            return None
        found = groups_of(self.raw, self.order, self.shape[-1], self.n_group)
        return None if np.array_equal(found, np.arange(self.shape[-1]) // self.group) else found

    def _spread(self, x: NDArray, groups: NDArray[np.intp] | None) -> NDArray:
        if x.shape[1] == 1:
            return x
        return np.repeat(x, self.group, axis=1) if groups is None else x[:, groups]


def groups_of(raw: Raw, name: str, n: int, n_group: int) -> NDArray[np.intp]:
    """g_idx: the group of each column. Errors: MtprefError for one that is not there"""
    found = raw.values(name).astype(np.intp)
    if found.min() < 0 or found.max() >= n_group:
        bad = int(found[(found < 0) | (found >= n_group)][0])
        raise MtprefError(f"{raw.label}: {named(name)}: group {bad}, expected 0 .. {n_group - 1}, as many as there are "
                          "scales; download the file again")  # fmt: skip
    return found
