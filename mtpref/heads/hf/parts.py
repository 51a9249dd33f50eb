"""One tensor of the GGUF to be, as a plan of rows of a checkpoint's tensors, and its values piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtpref.architectures import Place
from mtpref.heads.hf.checkpoint import Checkpoint

PIECE_VALUES = 1 << 20  # values in memory at a time
BLOCK = 32  # values in a block of Q4_0 and of MXFP4


@dataclass(frozen=True)
class Part:
    """One GGUF tensor to be made: of these rows of a tensor of the checkpoint, these columns, one operation.

    sources         the tensor; of a stack one for each expert, in their order, or one that holds them all
    shape           of the result, NumPy order
    rows, columns   None: all, in order
    skip, stride    of a stack in one tensor: its first row of each expert's rows, and how many those are
    is_joined       the sources are side by side in its columns
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    rows: NDArray[np.intp] | None
    columns: NDArray[np.intp] | None
    place: Place
    skip: int = 0
    stride: int = 0
    is_joined: bool = False

    @property
    def is_head(self) -> bool:
        return self.place.is_head

    @property
    def source(self) -> str:
        """The tensor, of a stack that of the first expert."""
        return self.sources[0]

    def pieces(self, checkpoint: Checkpoint) -> Iterator[NDArray[np.float32]]:
        """The tensor's rows in order, float32, as many at a time as PIECE_VALUES allow (at least one).

        A stack comes expert by expert: rows of one matrix in a piece, two-dimensional.
        """
        if self.place.tensor.change.is_transposed:
            yield from self._transposed(checkpoint)
            return
        if self.is_joined:
            yield from self._joined(checkpoint)
            return
        if self.place.tensor.change.as_taps:
            x = self.place.tensor.change.apply_values(checkpoint.rows(self.source, slice(0, self.shape[1])))
            yield np.ascontiguousarray(x.reshape(self.shape[1], self.shape[3]))
            return
        if self.place.tensor.change.groups:
            x = checkpoint.rows(self.source, slice(0, self.shape[0] * self.shape[1]))
            yield np.ascontiguousarray(self.place.tensor.change.apply_values(x).reshape(self.shape))
            return
        for source, index, n in self._indices():
            x = self.place.tensor.change.apply_values(checkpoint.rows(source, index))
            x = x.reshape(n, *self.shape[1:][-1:])
            yield np.ascontiguousarray(x if self.columns is None else x[:, self.columns])
            checkpoint.release(source)

    def keeps(self, checkpoint: Checkpoint) -> str | None:
        """The ggml type whose blocks hold these very values with the checkpoint's codes as they are, or None."""
        change = self.place.tensor.change
        if self.is_joined or self.place.tensor.below is not None:
            return None
        if change.values is not None or change.squeeze or change.is_transposed or len(self.shape) < 2:
            return None
        if self.columns is not None and self._block_order() is None:
            return None
        kept = None
        for source in dict.fromkeys(self.sources):
            kind = checkpoint.stored(source).keeps()
            if kind is None or kept not in (None, kind):
                return None
            kept = kind
        return kept

    def blocks(self, checkpoint: Checkpoint) -> Iterator[NDArray[np.uint8]]:
        """The tensor's rows in order as blocks of the type that `keeps` names."""
        order = None if self.columns is None else self._block_order()
        for source, index, n in self._indices():
            made = checkpoint.stored(source).blocks(index)
            if order is not None:
                made = made.reshape(n, len(order), -1)[:, order].reshape(n, -1)
            yield made
            checkpoint.release(source)

    def _block_order(self) -> NDArray[np.intp] | None:
        """The columns' order as one of whole blocks of 32; None where it takes blocks apart."""
        if self.columns is None or len(self.columns) % BLOCK:
            return None
        first = self.columns[::BLOCK]
        is_whole = np.array_equal((first[:, None] + np.arange(BLOCK)).reshape(-1), self.columns)
        return first // BLOCK if is_whole and not (first % BLOCK).any() else None

    def _indices(self) -> Iterator[tuple[str, slice | NDArray[np.intp], int]]:
        """Tensors of the checkpoint in order, which of their rows, and how many: PIECE_VALUES values or one row."""
        width = 1 if len(self.shape) == 1 else self.shape[-1]
        step = max(1, PIECE_VALUES // max(width, 1))
        for source, first, last in self._runs():
            for begin in range(first, last, step):
                end = min(begin + step, last)
                yield source, slice(begin, end) if self.rows is None else self.rows[begin:end], end - begin

    def _transposed(self, checkpoint: Checkpoint) -> Iterator[NDArray[np.float32]]:
        """A stack whose matrices lie transposed in the checkpoint, one above the other: one at a time."""
        n, _, step = self.shape
        for h in range(n):
            index = slice(h * step, (h + 1) * step) if self.rows is None else self.rows[h * step : (h + 1) * step]
            x = self.place.tensor.change.apply_values(checkpoint.rows(self.source, index))
            yield np.ascontiguousarray(x.reshape(step, -1).T)
            checkpoint.release(self.source)

    def _joined(self, checkpoint: Checkpoint) -> Iterator[NDArray[np.float32]]:
        """Rows of all sources, one beside the other."""
        step = max(1, PIECE_VALUES // self.shape[1])
        for begin in range(0, self.shape[0], step):
            rows = slice(begin, min(begin + step, self.shape[0]))
            yield np.concatenate([checkpoint.rows(source, rows) for source in self.sources], axis=1)
            for source in self.sources:
                checkpoint.release(source)

    def _runs(self) -> Iterator[tuple[str, int, int]]:
        """Tensors of the checkpoint in order, with the first of their rows and the one after the last."""
        if len(self.shape) < 3:
            yield self.source, 0, self.shape[0]
            return
        n_expert, n_rows, _ = self.shape
        for e in range(n_expert):
            first = self.skip + e * self.stride
            yield self.sources[e if len(self.sources) > 1 else 0], first, first + n_rows

    def values(self, checkpoint: Checkpoint) -> NDArray[np.float32]:
        """The whole tensor, float32."""
        return np.concatenate(list(self.pieces(checkpoint))).reshape(self.shape)
