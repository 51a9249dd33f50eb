"""safetensors: 8 bytes of header length, a JSON header, then the data.

A reader of our own, since the container is a page: the safetensors package would be a dependency with a compiled part
for forty lines, and its NumPy door cannot give BF16. The package reads what is written here, and the other way round
(tests/test_tensor_files.py).
Source: the format's own page, github.com/huggingface/safetensors README, "Format".
"""

import json
import math
import mmap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.base.typed import Sized, Within, parse_json, read
from mtpref.files.doors import map_regular
from mtpref.files.gguf import printable, write_whole
from mtpref.files.gguf.whole import Part
from mtpref.files.tensor_files.float8 import FLOAT8
from mtpref.files.tensor_files.shapes import MAX_DIMENSIONS, shape_bytes

FAULT_AROUND = 1 << 16  # bytes that a system maps on each side of one that is read
MAX_HEADER = 100_000_000  # the package's own limit
MAX_MEMORY = 384 << 20  # what a header of 100,000 tensors may become
Size = Annotated[int, Within(0, (1 << 48) - 1)]
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "<u1", "F8_E5M2": "<u1", "F8_E8M0": "<u1",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1",
    "BOOL": "<u1",
}  # fmt: skip
# Types of the container that nothing here reads, with their bits: a file may hold them beside what is read.
UNREAD = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "C64": 64}
ITEM_BYTES = {name: np.dtype(text).itemsize for name, text in DTYPES.items()}
_WRITTEN = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")
_NAMES = {np.dtype(DTYPES[name]): name for name in _WRITTEN}
_EXPECTED = "expected a .safetensors file"


@dataclass(frozen=True)
class _Entry:
    """One tensor of the header."""

    dtype: str
    shape: Annotated[tuple[Size, ...], Sized(0, MAX_DIMENSIONS)]
    data_offsets: Annotated[tuple[Size, ...], Sized(2, 2)]


class SafetensorsFile:
    """A .safetensors file, open for reading. `names` are in the order of the data; `metadata` is its __metadata__."""

    metadata: dict[str, str]

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.label = printable(str(path), 400)
        self.metadata = {}
        self._map = map_regular(self.path, self.label, _EXPECTED)
        try:
            self._tensors = self._header()
        except MtprefError as error:
            self.close()
            raise MtprefError(f"{self.label}: damaged ({error}); {_EXPECTED}") from None

    @property
    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][1]

    def dtype(self, name: str) -> str:
        """The container's name of the type: F32, BF16, ..."""
        return self._tensors[name][0]

    def values(self, name: str) -> NDArray:
        """A copy; BF16 and 8-bit floats come as float32 (exact)."""
        return self._copy(name, self._view(name))

    def rows(self, name: str, index: slice | NDArray[np.intp]) -> NDArray:
        """A copy of some rows (along the last dimension), in the order of the index; BF16 and F8 come as float32.

        Those of a stack of matrices are counted through it; those of a vector are its values.
        """
        view = self._view(name)
        return self._copy(name, (view.reshape(-1, view.shape[-1]) if view.ndim > 2 else view)[index])

    def codes(self, name: str, index: slice | NDArray[np.intp]) -> NDArray:
        """`rows` as they are stored: BF16 and 8-bit floats as their bits."""
        view = self._view(name)
        return (view.reshape(-1, view.shape[-1]) if view.ndim > 2 else view)[index].copy()

    def columns(self, name: str, index: slice | NDArray[np.intp]) -> NDArray:
        """A copy of some columns of a matrix, in the order of the index; types as `rows`."""
        return self._copy(name, self._view(name)[:, index])

    def _view(self, name: str) -> NDArray:
        dtype_name, shape, start = self._tensors[name]
        if dtype_name in UNREAD:
            raise MtprefError(f"{self.label}: tensor {printable(name)} has type {dtype_name}, which mtpref cannot read")
        return np.frombuffer(self._map, DTYPES[dtype_name], math.prod(shape), start).reshape(shape)

    def _copy(self, name: str, array: NDArray) -> NDArray:
        dtype_name = self.dtype(name)
        if dtype_name == "BF16":
            return np.asarray((array.astype(np.uint32) << np.uint32(16)).view(np.float32))
        return FLOAT8[dtype_name][array] if dtype_name in FLOAT8 else array.copy()

    def release(self, name: str) -> None:
        """Give back the memory of the pages that a tensor was read from; reading it again brings them back."""
        dtype_name, shape, start = self._tensors[name]
        if hasattr(mmap, "MADV_DONTNEED"):
            end = min(start + _n_bytes(dtype_name, shape) + FAULT_AROUND, len(self._map))
            first = max(start - FAULT_AROUND, 0) // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, first, end - first)

    def close(self) -> None:
        self._map.close()

    def _header(self) -> dict[str, tuple[str, tuple[int, ...], int]]:
        n_bytes = len(self._map)
        length = int.from_bytes(self._map[:8], "little")
        if n_bytes < 8 or length > min(MAX_HEADER, n_bytes - 8):
            raise MtprefError(f"a header of {length} bytes in a file of {n_bytes}")
        header = read(dict[str, Any], parse_json(self._map[8 : 8 + length], max_memory=MAX_MEMORY), "the header")
        self.metadata = read(dict[str, str], header.pop("__metadata__", None) or {}, "__metadata__")
        found = [self._entry(name, record, 8 + length) for name, record in header.items()]
        return dict(sorted(found, key=lambda item: item[1][2]))

    def _entry(self, name: str, record: Any, data: int) -> tuple[str, tuple[str, tuple[int, ...], int]]:
        what = f"tensor {printable(name)}"
        entry: _Entry = read(_Entry, record, what)
        if entry.dtype not in DTYPES and entry.dtype not in UNREAD:
            raise MtprefError(f"{what} has type {printable(entry.dtype)}, not one of {', '.join((*DTYPES, *UNREAD))}")
        (start, end), size = entry.data_offsets, _n_bytes(entry.dtype, entry.shape, f"{what}: shape")
        if end - start != size or data + end > len(self._map):
            raise MtprefError(f"{what} of shape {entry.shape} needs {size} bytes, has {start} .. {end} of the data")
        return name, (entry.dtype, entry.shape, data + start)


def _n_bytes(dtype_name: str, shape: tuple[int, ...], what: str = "shape") -> int:
    if dtype_name in DTYPES:
        return shape_bytes(shape, ITEM_BYTES[dtype_name], what)
    return -(-shape_bytes(shape, UNREAD[dtype_name], what) // 8)


@dataclass(frozen=True)
class Streamed:
    """A tensor to be written in pieces. give: its bytes in order; arrays of any dtype of the right size"""

    name: str
    dtype: str
    shape: tuple[int, ...]
    give: Callable[[], Iterable[NDArray]]

    @property
    def n_bytes(self) -> int:
        return _n_bytes(self.dtype, self.shape)


def safetensors_part(path: str | Path, tensors: Sequence[Streamed], metadata: Mapping[str, str]) -> Part:
    """A .safetensors file to be written by `write_parts` or `write_folder`, in the memory of a piece.

    Rule    tensors in the order given; the same bytes for the same input
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for t in tensors:
        header[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [offset, offset + t.n_bytes]}
        offset += t.n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for t in tensors:
            pieces = (np.ascontiguousarray(piece).reshape(-1).view(np.uint8) for piece in t.give())
            n = sum(file.write(piece.data) for piece in pieces)
            if n != t.n_bytes:
                raise MtprefError(f"tensor {printable(t.name)}: {n} bytes of data, expected {t.n_bytes}")

    return Part(Path(path), 8 + len(text) + offset, write)


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, NDArray],
    bf16: frozenset[str] = frozenset(),
    f8: Mapping[str, str] | None = None,
) -> None:
    """A .safetensors file; the same bytes for the same input.

    bf16    names of uint16 arrays that hold BF16 bits
    f8      names of uint8 arrays that hold 8-bit floats -> their type, such as F8_E4M3
    Errors  MtprefError for a target that cannot be written; ValueError for a type that the container lacks
    """
    header, offset, arrays = {}, 0, []
    for name, given in tensors.items():
        array = np.ascontiguousarray(given).reshape(given.shape)
        dtype_name = "BF16" if name in bf16 else (f8 or {}).get(name) or _NAMES.get(array.dtype.newbyteorder("<"))
        if dtype_name is None:
            raise ValueError(f"safetensors: {name} has dtype {array.dtype}")
        header[name] = {
            "dtype": dtype_name,
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
        arrays.append(array)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays:
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())

    write_whole(path, write)
