"""NumPy's .npz (a ZIP of .npy members) and a single .npy.

np.load would allocate what a header claims before it looks at the data: here a header must agree with the size of its
member, and a member may not unpack to much more than the file. No pickles.
"""

import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.files.doors import open_regular
from mtpref.files.gguf import printable, write_whole
from mtpref.files.tensor_files.shapes import shape_bytes

_EXPECTED = "expected what numpy.save or numpy.savez writes"
MAX_MEMBERS = 100_000
MAX_HEADER = 10_000  # NumPy's own limit
# What a packed member may become: zeros pack a thousandfold, so small ones pass, and so does anything that is packed
# less than 100 times.
FREE_BYTES = 64 << 20
MAX_RATIO = 100
_HEADER = re.compile(  # without white space
    r"""\{(?:(?:['"]descr['"]:['"](?P<descr>[^'"]*)['"]|['"]fortran_order['"]:(?P<order>True|False)"""
    r"""|['"]shape['"]:\((?P<shape>[0-9,]{0,400})\)),?){3}\}"""
)
_BROKEN = (MtprefError, OSError, EOFError, ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError,
           struct.error, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OverflowError)  # fmt: skip


class NpzFile:
    """An .npz or .npy file, open for reading; a single .npy has one array, named like the file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.label = printable(str(path), 400)
        self._zip: zipfile.ZipFile | None = None
        self._members: dict[str, str] = {}
        self._file = open_regular(self.path, self.label, _EXPECTED)
        try:
            self._n_bytes = os.fstat(self._file.fileno()).st_size
            if self._file.read(2) == b"PK":
                self._zip = zipfile.ZipFile(self._file)
                names = self._zip.namelist()
                self._members = {name.removesuffix(".npy"): name for name in names if name.endswith(".npy")}
        except _BROKEN as error:
            self.close()
            raise self._refuse(error) from None
        if self._zip is None:
            self._members = {self.path.stem: ""}
        elif not self._members or len(names) > MAX_MEMBERS:
            self.close()
            raise MtprefError(
                f"{self.label}: a ZIP file of {len(names)} members, expected 1 .. {MAX_MEMBERS} named "
                "*.npy, as numpy.savez writes them"
            )

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def shape(self, name: str) -> tuple[int, ...]:
        with self._open(name) as (file, n_bytes):
            return self._checked(self._header, file, n_bytes)[0]

    def values(self, name: str) -> NDArray:
        """The values of a member.

        Errors  MtprefError for a damaged member, or a type that is no number
        """
        with self._open(name) as (file, n_bytes):
            shape, is_fortran, dtype = self._checked(self._header, file, n_bytes)
            raw = self._checked(_read_exactly, file, math.prod(shape) * dtype.itemsize)
        array: NDArray = np.frombuffer(raw, dtype).reshape(shape[::-1] if is_fortran else shape)
        array = array.T if is_fortran else array
        return array.astype(dtype.newbyteorder("="), copy=False)

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()
        self._file.close()

    def _open(self, name: str) -> "_Member":
        try:
            if self._zip is None:
                return _Member(open_regular(self.path, self.label, _EXPECTED), self._n_bytes)
            info = self._zip.getinfo(self._members[name])
            if info.file_size > max(FREE_BYTES, MAX_RATIO * self._n_bytes):
                raise ValueError(f"{printable(name)} unpacks to {info.file_size} bytes")
            return _Member(self._zip.open(info), info.file_size)  # type: ignore[arg-type]
        except _BROKEN as error:
            raise self._refuse(error) from None

    def _header(self, file: BinaryIO, n_bytes: int) -> tuple[tuple[int, ...], bool, np.dtype]:
        """Shape, Fortran order and type; they must agree with the size of the member."""
        if file.read(6) != b"\x93NUMPY":
            raise ValueError("no .npy member")
        major = _read_exactly(file, 2)[0]
        size = struct.calcsize("<H" if major == 1 else "<I")
        length = int.from_bytes(_read_exactly(file, size), "little")
        if length > MAX_HEADER:
            raise ValueError(f"a header of {length} bytes")
        # NumPy's own reader evaluates it, and mends headers of Python 2 in a time that grows with the square.
        text = "".join(_read_exactly(file, length).decode("latin-1").split())
        head = _HEADER.fullmatch(text)
        if head is None or None in head.groups():
            raise ValueError(f"header {printable(text, 80)}, expected descr, fortran_order and shape")
        descr, shape = head["descr"], tuple(int(n) for n in head["shape"].split(",") if n)
        if not re.fullmatch(r"[<>=|]?(f[248]|[iu][1248])", descr):
            raise ValueError(f"type {printable(descr, 40)}, expected floats or integers")
        dtype = np.dtype(descr)
        if shape_bytes(shape, dtype.itemsize) != n_bytes - 8 - size - length:
            raise ValueError(f"shape {str(shape)[:80]} of {dtype} in {n_bytes} bytes")
        return shape, head["order"] == "True", dtype

    def _checked(self, read, *arguments):  # type: ignore[no-untyped-def]
        try:
            return read(*arguments)
        except _BROKEN as error:
            raise self._refuse(error) from None

    def _refuse(self, error: BaseException) -> MtprefError:
        what = printable(str(getattr(error, "strerror", None) or error or type(error).__name__), 120)
        return MtprefError(f"{self.label}: no usable NumPy file ({what}); {_EXPECTED}")


class _Member:
    """A member that is open, and how many bytes it has."""

    def __init__(self, file: BinaryIO, n_bytes: int) -> None:
        self._file, self._n_bytes = file, n_bytes

    def __enter__(self) -> tuple[BinaryIO, int]:
        return self._file, self._n_bytes

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _read_exactly(file: BinaryIO, n_bytes: int) -> bytes:
    """So many bytes, in pieces: a damaged member ends early and must not cost what it claims."""
    pieces, left = [], n_bytes
    while left:
        piece = file.read(min(left, 1 << 20))
        if not piece:
            raise ValueError(f"ends {left} bytes early")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def write_npz(path: str | Path, tensors: Mapping[str, NDArray]) -> None:
    """An .npz that is not packed, the same bytes for the same input (the time stamps are ZIP's least).

    Errors  MtprefError for a target that cannot be written
    """

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
            for name, array in tensors.items():
                info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
                with packed.open(info, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)

    write_whole(path, write)
