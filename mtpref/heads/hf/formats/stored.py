"""A tensor as a checkpoint holds it, under its plain name and as values: what every reader of a checkpoint is given."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import printable
from mtpref.heads.hf.formats.raw import Index, Raw

FLOATS = ("F32", "F16", "BF16", "F64")


class Stored:
    """A tensor that is stored as it is; the other formats derive from it.

    name     its plain name: X.weight, whatever the files call its parts
    shape    of the values    dtype: the container's name of the type in which rows come
    kind     what the format is called, "" for plain tensors
    sources  names of its parts in the files, the codes first
    fault    why it cannot be read, or None    is_foreign: since nothing here reads the format
    ranks    over how many tensor-parallel ranks it was cut, its rows and scales one rank's after the other's; more than
             one number where nothing tells, and the first is read
    """

    kind = ""
    fault: str | None = None
    is_foreign = False
    ranks: tuple[int, ...] = (1,)

    def __init__(self, raw: Raw, name: str, sources: tuple[str, ...], shape: tuple[int, ...], dtype: str) -> None:
        self.raw, self.name, self.sources, self.shape, self.dtype = raw, name, sources, shape, dtype

    @property
    def n_rows(self) -> int:
        """Rows as `rows` counts them: through a stack, values of a vector."""
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else self.shape[0] if self.shape else 1

    def rows(self, index: Index) -> NDArray:
        """A copy of some rows (along the last dimension), in the order of the index, as SafetensorsFile.rows counts.

        Errors   MtprefError for a scale that is no finite number, a group that is not there
        """
        return self.raw.rows(self.sources[0], index)

    def values(self) -> NDArray:
        """A copy of the whole tensor."""
        return self.raw.values(self.sources[0])

    def release(self) -> None:
        """Give back the memory of its parts' pages."""
        for name in self.sources:
            self.raw.release(name)

    def keeps(self) -> str | None:
        """The ggml type whose blocks hold these very values with the codes as they are; None where none does."""
        return None

    def blocks(self, index: Index) -> NDArray[np.uint8]:
        """Some rows as blocks of the type that `keeps` names."""
        raise NotImplementedError(self.kind)  # `keeps` named no type


class Decoded(Stored):
    """A tensor whose values are made of codes and scales: float32."""

    def __init__(self, raw: Raw, name: str, sources: tuple[str, ...], shape: tuple[int, ...], kind: str) -> None:
        super().__init__(raw, name, sources, shape, "F32")
        self.kind = kind

    def values(self) -> NDArray:
        return self.rows(slice(0, self.n_rows)).reshape(self.shape)

    def ids(self, index: Index) -> NDArray[np.intp]:
        """Row numbers of an index."""
        return np.arange(*index.indices(self.n_rows)) if isinstance(index, slice) else np.asarray(index, np.intp)


class Unread(Stored):
    """A tensor that cannot be read. shape: () where its codes do not tell."""

    def __init__(
        self, raw: Raw, name: str, sources: tuple[str, ...], kind: str, fault: str, *, is_foreign: bool = False
    ) -> None:
        super().__init__(raw, name, sources, (), "F32")
        self.kind, self.fault, self.is_foreign = kind, fault, is_foreign

    def rows(self, index: Index) -> NDArray:
        raise MtprefError(f"{self.raw.label}: {self.fault}")

    def values(self) -> NDArray:
        return self.rows(slice(None))


def named(name: str) -> str:
    """A name of a file, as a line shows it."""
    return printable(name)
