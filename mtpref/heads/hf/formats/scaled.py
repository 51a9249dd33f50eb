"""One code for each value, times a scale for each block of rows and columns: FP8 and INT8, in every grid.

value = code * scale in float32: E4M3, E5M2 or an 8-bit integer (less its zero point), rounded once.
Source: DeepSeek-V3's weight_dequant; compressed_tensors (naive_quantized, mxfp8); llama.cpp conversion/base.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mtpref.files.tensor_files.float8 import FLOAT8
from mtpref.heads.hf.formats.raw import Index, Raw
from mtpref.heads.hf.formats.stored import Decoded

RANKS = (1, 4, 8)  # what is shipped (MiMo-V2.5, V2.5-Pro), and 1 for a whole matrix


@dataclass(frozen=True)
class Grid:
    """Which scale a value has: that of block (row // rows, column // columns) of its matrix.

    n_rows, n_columns   blocks of a matrix    is_one: one scale for all
    n_ranks             equal shares of the rows, each with blocks of its own, the last of which need not be full
    """

    rows: int
    columns: int
    n_rows: int
    n_columns: int
    is_one: bool = False
    n_ranks: int = 1

    def at(self, ids: NDArray[np.intp], n_row: int) -> NDArray[np.intp]:
        """The blocks, counted down all matrices, of rows that are."""
        share = n_row // self.n_ranks
        of_rank = ids % n_row // share * (self.n_rows // self.n_ranks)
        return ids // n_row * self.n_rows + of_rank + ids % n_row % share // self.rows

    def words(self, n_row: int, n_column: int) -> str:
        """What the grid is called."""
        if self.is_one or (self.rows >= n_row and self.columns >= n_column and self.n_rows == self.n_columns == 1):
            return "one scale a matrix"
        if self.rows == 1:
            return "one scale a row" if self.n_columns == 1 else f"one scale for {self.columns} of a row"
        return f"blocks of {self.rows}x{self.columns}"


def grid_of(
    shape: tuple[int, ...], scale: tuple[int, ...], blocks: list[tuple[int, int]], *, any_group: bool
) -> Grid | None:
    """The grid that a scale of this shape is for values of that shape; None where it is none.

    blocks      sizes of blocks to try, in order    any_group: whether any groups that divide a row will do
    """
    n_row, n_column = shape[-2:]
    if math.prod(scale) == 1:
        return Grid(n_row, n_column, 1, 1, is_one=True)
    if len(scale) == 1:
        scale = (*scale, 1, 1) if len(shape) == 3 else (*scale, 1)
    if len(scale) != len(shape) or scale[:-2] != shape[:-2]:
        return None
    n_down, n_across = scale[-2:]
    if (n_down, n_across) == (1, 1):
        return Grid(n_row, n_column, 1, 1)
    for down, across in blocks:
        if (n_down, n_across) == (-(-n_row // down), -(-n_column // across)):
            return Grid(down, across, n_down, n_across)
    if n_down != n_row or n_across < 1 or n_column % n_across:
        return None
    return Grid(1, n_column // n_across, n_row, n_across) if n_across == 1 or any_group else None


def ranks_of(shape: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """Over how many tensor-parallel ranks a matrix may have been cut before each share got its scales, by the scales'
    shape; more than one number where that leaves it open, 1 for a matrix that was not cut."""
    if len(shape) != 2 or len(scale) != 2 or scale[1] != -(-shape[1] // block[1]):
        return ()
    return tuple(n for n in RANKS if shape[0] % n == 0 and scale[0] == n * -(-(shape[0] // n) // block[0]))


class Scaled(Decoded):
    """codes: F8_E4M3, F8_E5M2 or I8; scale: float, E8M0, or U8 that holds E8M0's code."""

    def __init__(self, raw: Raw, name: str, sources: tuple[str, ...], grid: Grid, kind: str) -> None:
        super().__init__(raw, name, sources, raw.shape(sources[0]), kind)
        self.grid, self.zero = grid, sources[2] if len(sources) > 2 else None

    def cut(self, ranks: tuple[int, ...]) -> None:
        """Take the matrix for one that was cut over the first of these numbers of ranks."""
        self.ranks, self.grid = ranks, replace(self.grid, n_ranks=ranks[0])

    def rows(self, index: Index) -> NDArray:
        ids, (codes, scale) = self.ids(index), self.sources[:2]
        x = self.raw.rows(codes, index).astype(np.float32)
        if self.zero is not None:
            x -= self._spread(self._grid_rows(self.zero, ids))
        found = self.raw.finite(scale, e8m0(self.raw, scale, self._grid_rows(scale, ids)))
        with np.errstate(over="ignore", invalid="ignore"):  # codes may be NaN, and E5M2's infinite
            x *= self._spread(found)
        return x

    def _grid_rows(self, name: str, ids: NDArray[np.intp]) -> NDArray:
        """The scales of these rows' blocks: (rows, blocks across), or (1, 1)."""
        grid, n_row = self.grid, self.shape[-2]
        if grid.is_one:
            return self.raw.values(name).reshape(1, 1)
        return self.raw.rows(name, grid.at(ids, n_row)).reshape(len(ids), grid.n_columns)

    def _spread(self, scale: NDArray) -> NDArray:
        if scale.shape[1] == 1:
            return scale
        return np.repeat(scale, self.grid.columns, axis=1)[:, : self.shape[-1]]


def e8m0(raw: Raw, name: str, scale: NDArray) -> NDArray:
    """Scales as floats, where a byte may be the code of an E8M0."""
    if raw.dtype(name) != "U8":
        return scale
    return np.asarray(FLOAT8["F8_E8M0"][scale])
