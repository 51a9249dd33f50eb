"""AWQ and GPTQ: codes of four bits (GPTQ: 2, 3, 4 or 8) in matrices that lie the other way round, inputs down.

A row of the weight is a column of `qweight` and `scales`. value = (code - zero) * scale in float32, rounded once; the
zero and the scale are those of the input's group.

AWQ    words hold eight neighbouring outputs, in the order 0 2 4 6 1 3 5 7 from the lowest bits up
GPTQ   words hold neighbouring inputs, lowest bits first; `qzeros` neighbouring outputs. g_idx: the group of each input
       (desc_act); without it groups follow each other. In version 1 of the format a zero is stored less 1, in as many
       bits: what is stored as all ones stands for 0 (GPTQModel, exllama; llama.cpp's converter takes it for 2**bits)

Source: AutoAWQ awq/utils/packing_utils.py, GPTQModel gptqmodel/utils/model_dequant.py, llama.cpp conversion/base.py.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from mtpref.heads.hf.formats.bits import fits_f16, q4_0, unpack
from mtpref.heads.hf.formats.packed import groups_of
from mtpref.heads.hf.formats.raw import Index, Raw
from mtpref.heads.hf.formats.stored import Decoded

CHUNK_VALUES = 1 << 23  # decoded together: a column of words is read from all over the matrix
AWQ_PLACE = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # output of eight -> which four bits of the word


class Transposed(Decoded):
    """sources: qweight, qzeros, scales and, of GPTQ, g_idx; group: inputs with one scale"""

    def __init__(
        self, raw: Raw, name: str, sources: tuple[str, ...], shape: tuple[int, ...], group: int, kind: str
    ) -> None:
        super().__init__(raw, name, sources, shape, kind)
        self.group = group

    @abstractmethod
    def codes(self, ids: NDArray[np.intp]) -> NDArray[np.uint8]:
        """(rows, inputs)"""

    @abstractmethod
    def zeros(self, ids: NDArray[np.intp]) -> NDArray[np.uint8]:
        """(groups, rows)"""

    def groups(self) -> NDArray[np.intp] | None:
        """The group of each input; None where they follow each other."""
        return None

    def rows(self, index: Index) -> NDArray:
        ids = self.ids(index)
        if not len(ids) or (len(ids) > 1 and (np.diff(ids) != 1).any()):
            return self._decode(ids)
        first, end = int(ids[0]), int(ids[-1]) + 1
        kept = self.raw.kept
        if kept is None or kept[0] != self.name or not kept[1] <= first or end > kept[1] + len(kept[2]):
            self.raw.kept = None
            last = min(self.n_rows, max(end, first + CHUNK_VALUES // self.shape[-1]))
            kept = self.raw.kept = (self.name, first, self._decode(np.arange(first, last)))
        return kept[2][first - kept[1] : end - kept[1]].copy()

    def keeps(self) -> str | None:
        if self.group % 32 or self.shape[-1] % 32 or self.groups() is not None:
            return None
        everything = np.arange(self.n_rows)
        if not (self.zeros(everything) == 8).all() or not fits_f16(self._scales(everything)):
            return None
        return "Q4_0"

    def blocks(self, index: Index) -> NDArray[np.uint8]:
        ids = self.ids(index)
        return q4_0(
            self.codes(ids), np.repeat(self._scales(ids).T, self.group // 32, axis=1)[:, : self.shape[-1] // 32]
        )

    def _scales(self, ids: NDArray[np.intp]) -> NDArray[np.float32]:
        """(groups, rows)"""
        return self.raw.finite(self.sources[2], self.raw.columns(self.sources[2], ids))

    def _decode(self, ids: NDArray[np.intp]) -> NDArray[np.float32]:
        groups = self.groups()
        at = np.arange(self.shape[-1]) // self.group if groups is None else groups
        x = self.codes(ids).astype(np.float32)
        x -= self.zeros(ids).T.astype(np.float32)[:, at]
        with np.errstate(over="ignore"):
            x *= self._scales(ids).T[:, at]
        return x


class Awq(Transposed):
    def codes(self, ids: NDArray[np.intp]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self._picked(self.sources[0], ids).T)

    def zeros(self, ids: NDArray[np.intp]) -> NDArray[np.uint8]:
        return self._picked(self.sources[1], ids)

    def _picked(self, name: str, ids: NDArray[np.intp]) -> NDArray[np.uint8]:
        """The codes of these outputs: (rows of the file's matrix, outputs)."""
        words, at = np.unique(ids // 8, return_inverse=True)
        found = self.raw.columns(name, words)
        return unpack(found, 4, 8 * len(words))[:, 8 * at + AWQ_PLACE[ids % 8]]


class Gptq(Transposed):
    """n_bits: of a code    less: what is added to a stored zero (1 in version 1 of the format)"""

    def __init__(
        self, raw: Raw, name: str, sources: tuple[str, ...], shape: tuple[int, ...], group: int, kind: str, *,
        n_bits: int, less: int,
    ) -> None:  # fmt: skip
        super().__init__(raw, name, sources, shape, group, kind)
        self.n_bits, self.less = n_bits, less
        self.n_group = raw.shape(sources[2])[0]

    def codes(self, ids: NDArray[np.intp]) -> NDArray[np.uint8]:
        return unpack(np.ascontiguousarray(self.raw.columns(self.sources[0], ids).T), self.n_bits, self.shape[-1])

    def zeros(self, ids: NDArray[np.intp]) -> NDArray[np.uint8]:
        found = unpack(self.raw.values(self.sources[1]), self.n_bits, self.n_rows)[:, ids]
        return np.asarray((found + np.uint8(self.less)) & np.uint8((1 << self.n_bits) - 1))

    def groups(self) -> NDArray[np.intp] | None:
        if len(self.sources) < 4:
            return None
        found = groups_of(self.raw, self.sources[3], self.shape[-1], self.n_group)
        return None if np.array_equal(found, np.arange(self.shape[-1]) // self.group) else found

    def keeps(self) -> str | None:
        return super().keeps() if self.n_bits == 4 else None
