"""Rows kept on disk: the inputs of a stack's matrices, until each has its Hessian made, one at a time.

Owns a file without a name: the operating system takes it back however the process ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import human_bytes, printable

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class Spill:
    """Rows by expert. folder: where the file lies; None: the system's place for temporary ones."""

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = folder
        self._n_bytes = 0
        self._places: dict[int, list[tuple[int, tuple[int, int]]]] = {}
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115, closed by __exit__
        except OSError as error:
            raise self._refused(error) from None

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, expert: int, x: F32) -> None:
        """Keep rows.

        Shapes   x: (n, n_in)
        Errors   MtprefError where there is no room
        """
        raw = np.ascontiguousarray(x, np.float32)
        rest = raw.data.cast("B")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._refused(error) from None
        self._places.setdefault(expert, []).append((self._n_bytes, (x.shape[0], x.shape[1])))
        self._n_bytes += raw.nbytes

    def n_rows(self, expert: int) -> int:
        return sum(n for _, (n, _) in self._places.get(expert, []))

    def pieces(self, expert: int) -> Iterator[F32]:
        """The rows as they were added. Errors: MtprefError where the file cannot be read"""
        for offset, shape in self._places.get(expert, []):
            x = np.empty(shape, np.float32)
            rest = x.data.cast("B")
            try:
                self._file.seek(offset)
                while rest:
                    n = self._file.readinto(rest)
                    if not n:
                        raise OSError("cut short")
                    rest = rest[n:]
            except OSError as error:
                raise self._refused(error) from None
            yield x

    def hessian(self, expert: int, n_in: int) -> F64:
        """2/n sum x x^T over the expert's rows, float64; zero without any."""
        total = np.zeros((n_in, n_in))
        for x in self.pieces(expert):
            wide = x.astype(np.float64)
            total += wide.T @ wide
        return np.asarray(2.0 / max(1, self.n_rows(expert)) * total)

    def _refused(self, error: OSError) -> MtprefError:
        where = "the temporary folder" if self.folder is None else printable(str(self.folder), 400)
        return MtprefError(
            f"{where}: the rows that calibrate the experts cannot be kept after {human_bytes(self._n_bytes)} "
            f"({error.strerror or error}), expected room beside the output; give less text, or another folder"
        )
