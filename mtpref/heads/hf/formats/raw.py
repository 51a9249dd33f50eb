"""The tensors of a folder's safetensors files under the names that they have there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import printable
from mtpref.files.tensor_files.safetensors import SafetensorsFile

Index = slice | NDArray[np.intp]


class Raw:
    """`names` file by file as the files' names sort, sorted in each.

    kept   one decoded piece of one tensor, for the formats whose codes lie across the rows that are asked for:
           (name, first row, values). One for all tensors, so that memory stays what one piece takes.
    """

    def __init__(self, label: str, files: dict[str, SafetensorsFile]) -> None:
        self.label = label
        self._file_of = {name: files[file] for file in sorted(files) for name in sorted(files[file].names)}
        self.file_names = {name: file for file in sorted(files) for name in files[file].names}
        self.names = list(self._file_of)
        self.kept: tuple[str, int, NDArray] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file_of[name].shape(name)

    def dtype(self, name: str) -> str:
        return self._file_of[name].dtype(name)

    def values(self, name: str) -> NDArray:
        return self._file_of[name].values(name)

    def rows(self, name: str, index: Index) -> NDArray:
        return self._file_of[name].rows(name, index)

    def codes(self, name: str, index: Index) -> NDArray:
        return self._file_of[name].codes(name, index)

    def columns(self, name: str, index: Index) -> NDArray:
        return self._file_of[name].columns(name, index)

    def release(self, name: str) -> None:
        self._file_of[name].release(name)

    def finite(self, name: str, scale: NDArray) -> NDArray[np.float32]:
        """Scales as float32. Errors: MtprefError for one that is NaN or infinite"""
        with np.errstate(over="ignore"):  # float64's may be beyond float32
            found = np.asarray(scale, np.float32)
        if not np.isfinite(found).all():
            bad = found[~np.isfinite(found)].reshape(-1)[0]
            raise MtprefError(
                f"{self.label}: {printable(name)}: a scale is {bad}, expected finite numbers; download the file "
                "again, or take the original checkpoint"
            )
        return found
