"""GGUF value kinds, lazy arrays and safe printing of text that comes from a file.

Owns the meaning of bytes inside a key's value. Knows nothing of headers or tensors (see parse.py). A kind is
a short name: "u8" .. "f64", "bool", "str", and "arr:KIND" for an array.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from mmap import mmap
from typing import Any, NoReturn, overload

import numpy as np
import numpy.typing as npt

from mtpref.base.errors import MtprefError

# GGUF's value type ids, in their order in the format.
KINDS = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "arr", "u64", "i64", "f64")
KIND_IDS = {kind: i for i, kind in enumerate(KINDS)}
STR, ARR = KIND_IDS["str"], KIND_IDS["arr"]
_DTYPES = {
    "u8": "<u1", "i8": "<i1", "u16": "<u2", "i16": "<i2", "u32": "<u4", "i32": "<i4", "f32": "<f4",
    "bool": "<u1", "u64": "<u8", "i64": "<i8", "f64": "<f8",
}  # fmt: skip
DTYPES: dict[str, np.dtype[Any]] = {kind: np.dtype(code) for kind, code in _DTYPES.items()}
SCALARS: dict[str, struct.Struct] = {
    kind: struct.Struct("<" + code)
    for kind, code in zip(
        ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "u64", "i64", "f64"),
        "BbHhIifBQqd",
        strict=True,
    )
}
INTEGER_KINDS = ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64")
U32, U64 = SCALARS["u32"], SCALARS["u64"]

# The least bytes of one array element: a string has its length, an array its kind and length.
MIN_BYTES = {kind: dtype.itemsize for kind, dtype in DTYPES.items()} | {"str": 8, "arr": 12}


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first names, harmless, and whether there are more."""
    return ", ".join(printable(name) for name in names[:most]) + ", ..." * (len(names) > most)


def printable(text: str | bytes, limit: int = 80) -> str:
    """Text from a file, fit for one line of a terminal: anything but printable characters is escaped.

    Bytes that are no UTF-8 show as \\xNN. Longer than `limit` characters is cut and ends in "...".
    """
    if isinstance(text, str) and len(text) <= limit and text.isprintable():
        return text
    cut = text[: limit + 4]
    if isinstance(cut, bytes):
        cut = cut.decode("utf-8", "backslashreplace")
    out = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)
    return out if len(out) <= limit and len(text) <= limit + 4 else out[:limit] + "..."


def decode_text(raw: bytes, where: str) -> str:
    """UTF-8, strictly; MtprefError naming `where` otherwise."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise MtprefError(
            f"{where}: byte {raw[e.start]:#04x} at {e.start} is not UTF-8 in '{printable(raw, 40)}', "
            "expected UTF-8 text; convert the model again with a current converter"
        ) from None


def check_bool(value: int, where: str) -> bool:
    """A GGUF bool is one byte, 0 or 1."""
    if value > 1:
        raise MtprefError(f"{where}: bool is {value}, expected 0 or 1; the file is damaged")
    return value == 1


Fail = Callable[[str], NoReturn]


def skip_strings(
    buf: mmap, pos: int, end: int, count: int, fail: Fail, reach: Callable[[int], int] | None = None
) -> int:
    """The position after `count` strings (u64 length, then bytes) at `pos`.

    Calls `fail` when one of them passes `end`.
    reach   of a file that comes bit by bit: see parse.py
    """
    unpack = U64.unpack_from
    last = end - 8 if reach is None else -1
    for i in range(count):
        if pos > last:
            if pos > end - 8:
                fail(f"string {max(i - 1, 0)} of {count} runs past the end of the file")
            if reach is not None:
                last = reach(pos + 8) - 8
        pos += 8 + unpack(buf, pos)[0]
    if pos > end:
        fail(f"string {count - 1} of {count} runs past the end of the file")
    if reach is not None:
        reach(pos)
    return pos


def skip_element(buf: mmap, pos: int, kind: str) -> int:
    """The position after one string or inner array of an array that the parser has already checked."""
    if kind == "str":
        return pos + 8 + int(U64.unpack_from(buf, pos)[0])
    inner, count = KINDS[U32.unpack_from(buf, pos)[0]], int(U64.unpack_from(buf, pos + 4)[0])
    pos += 12
    if inner in DTYPES:
        return pos + count * DTYPES[inner].itemsize
    for _ in range(count):
        pos = skip_element(buf, pos, inner)
    return pos


class GgufArray(Sequence[Any]):
    """An array value, decoded when asked. `element_type` is a kind ("u32", "str", ... or "arr" when nested).

    Indexing gives one element (str for strings, GgufArray for inner arrays); iteration is in bulk. The file
    must be open at the time of decoding. The extent was checked when the file was opened.
    """

    def __init__(self, buffer: Callable[[], mmap], where: str, kind: str, pos: int, count: int) -> None:
        self.element_type = kind
        self._buffer = buffer
        self._where = where
        self._pos = pos
        self._count = count
        self._starts: array[int] | None = None

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"GgufArray({self._where}, {self.element_type}, {self._count} elements)"

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        i = index + self._count if index < 0 else index
        if not 0 <= i < self._count:
            raise IndexError(f"{self._where}: index {index}, the array has {self._count} elements")
        buf = self._buffer()
        if self.element_type in DTYPES:
            value = SCALARS[self.element_type].unpack_from(buf, self._pos + i * DTYPES[self.element_type].itemsize)[0]
            return check_bool(value, f"{self._where}[{i}]") if self.element_type == "bool" else value
        start = self._element_starts(buf)[i]
        if self.element_type == "str":
            n = U64.unpack_from(buf, start)[0]
            return decode_text(buf[start + 8 : start + 8 + n], f"{self._where}[{i}]")
        return self._inner(buf, start, i)

    def __iter__(self) -> Iterator[Any]:
        if self.element_type == "str":
            return iter(self.to_strings())
        if self.element_type == "arr":
            return (self[i] for i in range(self._count))
        return iter(self.to_numpy().tolist())

    def to_numpy(self, n: int | None = None) -> npt.NDArray[Any]:
        """Numbers or bools, the first n or all, as a 1-D array of the element's dtype.

        It is a copy, so it outlives the file.
        """
        if self.element_type not in DTYPES:
            raise MtprefError(f"{self._where}: array of {self.element_type}, expected numbers or bools")
        buf = self._buffer()
        count = self._count if n is None else min(n, self._count)
        out = np.frombuffer(buf, DTYPES[self.element_type], count, self._pos).copy()
        if self.element_type == "bool":
            check_bool(int(out.max(initial=0)), self._where)
            return out.astype(np.bool_)
        return out

    def to_bytes_list(self) -> list[bytes]:
        """All strings of a string array, undecoded."""
        if self.element_type != "str":
            raise MtprefError(f"{self._where}: array of {self.element_type}, expected strings")
        buf, pos, unpack = self._buffer(), self._pos, U64.unpack_from
        out = []
        for _ in range(self._count):
            start = pos + 8
            pos = start + unpack(buf, pos)[0]
            out.append(buf[start:pos])
        return out

    def to_strings(self) -> list[str]:
        """All strings of a string array as UTF-8 text; MtprefError names the first that is not."""
        raw = self.to_bytes_list()
        try:
            return [b.decode("utf-8") for b in raw]
        except UnicodeDecodeError:
            return [decode_text(b, f"{self._where}[{i}]") for i, b in enumerate(raw)]

    def _inner(self, buf: mmap, start: int, i: int) -> GgufArray:
        kind, count = KINDS[U32.unpack_from(buf, start)[0]], U64.unpack_from(buf, start + 4)[0]
        return GgufArray(self._buffer, f"{self._where}[{i}]", kind, start + 12, count)

    def _element_starts(self, buf: mmap) -> array[int]:
        if self._starts is None:
            self._starts = array("Q")
            pos = self._pos
            for _ in range(self._count):
                self._starts.append(pos)
                pos = skip_element(buf, pos, self.element_type)
        return self._starts


def without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A NumPy shape as it is told apart: writers differ in whether they keep leading ones."""
    kept = list(shape)
    while len(kept) > 1 and kept[0] == 1:
        kept.pop(0)
    return tuple(kept)
