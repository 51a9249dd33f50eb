"""The GGUF header: keys and values, tensor descriptions, and every check on them.

Owns the container's rules (versions 2 and 3, little-endian). Knows nothing of what keys mean, save
`general.alignment`. Every length is compared with what is left of the file before it is used, and whatever
must be walked one by one is counted against a fixed limit, so hostile input ends early.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from mmap import mmap
from typing import Any, NoReturn

from mtpref.base.errors import MtprefError
from mtpref.files.gguf.magic import describe_start
from mtpref.files.gguf.values import (
    KINDS,
    MIN_BYTES,
    SCALARS,
    U32,
    U64,
    check_bool,
    decode_text,
    printable,
    skip_strings,
)
from mtpref.spec.quants import TYPES

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_DEPTH = 4  # arrays inside arrays; no writer in use nests at all
MAX_NAME = 65535  # bytes of a key or tensor name, the format's limit for keys
MAX_KEYS = 1 << 16  # real files have fewer than 100
MAX_TENSORS = 1 << 16  # the largest real models have a few thousand
MAX_NAME_BYTES = 1 << 26  # all names together
MAX_WALKED = 1 << 22  # strings of all keys; the largest real headers have 10**6
ARRAY_STEPS = 64  # an inner array counts as so many strings: it takes as long to walk
MAX_TEXT_BYTES = 1 << 26  # all arrays of strings together; the largest real headers have 2 * 10**7


@dataclass(frozen=True, slots=True)
class Entry:
    """One key's value: scalars decoded, strings and arrays as a place in the file."""

    kind: str
    value: Any  # scalars only
    pos: int = 0  # first byte of a string, first element of an array
    count: int = 0  # bytes of a string, elements of an array
    element: str = ""  # an array's element kind


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it.

    ne: dimensions in GGUF order, fastest first    shape: the same in NumPy order (reversed)
    offset: first byte of its data, from the start of its file
    n_bytes: of its data; where the type is unknown, all bytes up to the next tensor or the end of the file
    shard: which file of a split model holds it, 0 for the first
    """

    name: str
    type_id: int
    type_name: str
    ne: tuple[int, ...]
    shape: tuple[int, ...]
    offset: int
    n_bytes: int
    shard: int = 0

    @property
    def is_known(self) -> bool:
        """Whether the type is in the table of types. If not, its bytes can be copied, and nothing else."""
        return self.type_id in TYPES


def unknown_type(type_id: int) -> str:
    """What a type that is not in the table is called: type-142."""
    return f"type-{type_id}"


def unknown_type_id(type_name: str) -> int | None:
    """The number of such a name; None for any other."""
    number = type_name.removeprefix("type-")
    is_one = number != type_name and number.isdecimal() and int(number) < 1 << 32 and int(number) not in TYPES
    return int(number) if is_one else None


@dataclass
class Budget:
    """What was used of the limits. The files of a split model share one, so that they cannot multiply them."""

    keys: int = 0
    tensors: int = 0
    walked: int = 0
    name_bytes: int = 0
    text_bytes: int = 0


@dataclass
class Header:
    version: int
    alignment: int
    data_offset: int
    entries: dict[str, Entry]
    tensors: dict[str, TensorInfo]


Reach = Callable[[int], int]  # have the first n bytes of the file in the buffer; gives how many there are


class Cursor:
    """A position in the mapped file. A failed read names the file and the thing being read.

    reach   of a file that comes bit by bit: asked before bytes are read; None: all are there
    """

    def __init__(self, buf: mmap, end: int, label: str, budget: Budget, reach: Reach | None = None) -> None:
        self.buf = buf
        self.reach, self.have = reach, end if reach is None else 0
        self.pos = 0
        self.end = end
        self.label = label
        self.used = budget

    def fail(self, message: str) -> NoReturn:
        raise MtprefError(f"{self.label}: {message}")

    def need(self, n: int, what: str) -> None:
        left = self.end - self.pos
        if n > left:
            self.fail(
                f"{what} needs {n} bytes at byte {self.pos}, {left} are left; the file is cut short "
                "or damaged, download or convert it again"
            )
        if self.pos + n > self.have and self.reach is not None:
            self.have = self.reach(self.pos + n)

    def walk(self, n: int, what: str) -> None:
        self.used.walked += n
        if self.used.walked > MAX_WALKED:
            self.fail(
                f"{what}: {self.used.walked} strings or inner arrays so far, expected at most "
                f"{MAX_WALKED} in a header; refused"
            )

    def count_text(self, n: int, what: str) -> None:
        self.used.text_bytes += n
        if self.used.text_bytes > MAX_TEXT_BYTES:
            self.fail(
                f"{what}: {self.used.text_bytes} bytes in arrays of strings so far, expected at most "
                f"{MAX_TEXT_BYTES} in a header; refused"
            )

    def u32(self, what: str) -> int:
        self.need(4, what)
        self.pos += 4
        return int(U32.unpack_from(self.buf, self.pos - 4)[0])

    def u64(self, what: str) -> int:
        self.need(8, what)
        self.pos += 8
        return int(U64.unpack_from(self.buf, self.pos - 8)[0])

    def name(self, what: str) -> str:
        n = self.u64(f"the length of {what}")
        if n > MAX_NAME:
            self.fail(f"{what} is {n} bytes long, expected at most {MAX_NAME}; the file is damaged")
        self.need(n, what)
        self.used.name_bytes += n
        if self.used.name_bytes > MAX_NAME_BYTES:
            self.fail(f"{what}: all names so far take {self.used.name_bytes} bytes, expected at most {MAX_NAME_BYTES}")
        self.pos += n
        raw = self.buf[self.pos - n : self.pos]
        return decode_text(raw, f"{self.label}: {what}")


def read_header(buf: mmap, end: int, label: str, budget: Budget | None = None, reach: Reach | None = None) -> Header:
    """Parse and check everything up to the tensor data. MtprefError on anything malformed.

    end      bytes of the file
    budget   what earlier files of the same model used of the limits; this file's use is added
    reach    puts the beginning of a file that is elsewhere into the buffer, as far as it is asked; the first 16 bytes
             are there
    """
    cur = Cursor(buf, end, label, budget or Budget(), reach)
    version = _read_version(cur)
    n_tensors, n_kv = _read_counts(cur)
    entries: dict[str, Entry] = {}
    for i in range(n_kv):
        key = cur.name(f"the name of key {i} of {n_kv}")
        if key in entries:
            cur.fail(f"key {printable(key)} appears twice, expected once; what wrote the file is at fault")
        entries[key] = _read_value(cur, f"key {printable(key)}")
    alignment = _alignment(cur, entries.get("general.alignment"))
    raw = [_read_tensor(cur, i, n_tensors) for i in range(n_tensors)]
    data_offset = -(-cur.pos // alignment) * alignment
    tensors = {}
    for info in _place(cur, raw, data_offset, alignment):
        if info.name in tensors:
            cur.fail(f"tensor {printable(info.name)} appears twice, expected once; what wrote the file is at fault")
        tensors[info.name] = info
    return Header(version, alignment, data_offset, entries, tensors)


def _read_counts(cur: Cursor) -> tuple[int, int]:
    """The numbers of tensors and keys, neither above its limit nor more than the file can hold."""
    n_tensors, n_kv = cur.u64("the tensor count"), cur.u64("the key count")
    left, used = cur.end - cur.pos, cur.used
    # The least a key takes: name length, kind, one byte; the least a tensor takes: see _read_tensor.
    limits = ((n_kv, 13, MAX_KEYS - used.keys, "keys"), (n_tensors, 32, MAX_TENSORS - used.tensors, "tensors"))
    for count, least, most, what in limits:
        fits = min(most, left // least)
        if count > fits:
            cur.fail(
                f"{count} {what} declared, expected at most {fits} in a file of {cur.end} bytes; it is cut "
                "short or damaged, download or convert it again"
            )
    used.keys += n_kv
    used.tensors += n_tensors
    return n_tensors, n_kv


def _read_version(cur: Cursor) -> int:
    start = cur.buf[:16]
    if start[:4] != MAGIC:
        cur.fail(f"begins with '{printable(start[:4])}', expected 'GGUF': {describe_start(start)}")
    cur.pos = 4
    version = cur.u32("the version")
    if version in (2, 3):
        return version
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, 2, 3):
        cur.fail("a big-endian GGUF, expected little-endian; convert it with gguf-convert-endian")
    age = "the first version of the format, which current engines do not read; " if version == 1 else ""
    cur.fail(f"GGUF version {version}, expected 2 or 3; {age}convert the model again with a current converter")


def _read_value(cur: Cursor, what: str) -> Entry:
    kind = _read_kind(cur, what)
    if kind == "str":
        n = cur.u64(f"the length of {what}")
        cur.need(n, what)
        cur.pos += n
        return Entry("str", None, cur.pos - n, n)
    if kind == "arr":
        return _read_array(cur, what)
    scalar = SCALARS[kind]
    cur.need(scalar.size, what)
    value = scalar.unpack_from(cur.buf, cur.pos)[0]
    cur.pos += scalar.size
    return Entry(kind, check_bool(value, f"{cur.label}: {what}") if kind == "bool" else value)


def _read_kind(cur: Cursor, what: str) -> str:
    kind_id = cur.u32(f"the value type of {what}")
    if kind_id >= len(KINDS):
        cur.fail(f"{what} has value type {kind_id}, expected 0 to {len(KINDS) - 1}; the file is damaged or newer")
    return KINDS[kind_id]


def _read_array(cur: Cursor, what: str, depth: int = 1) -> Entry:
    if depth > MAX_DEPTH:
        cur.fail(f"{what} nests arrays more than {MAX_DEPTH} deep; refused")
    element = _read_kind(cur, f"the elements of {what}")
    count = cur.u64(f"the length of {what}")
    cur.need(count * MIN_BYTES[element], f"{what} ({count} elements)")
    pos = cur.pos
    if element == "str":
        cur.walk(count, what)
        cur.pos = skip_strings(cur.buf, pos, cur.end, count, lambda message: cur.fail(f"{what}: {message}"), cur.reach)
        cur.count_text(cur.pos - pos - 8 * count, what)
    elif element == "arr":
        cur.walk(count * ARRAY_STEPS, what)
        for _ in range(count):
            _read_array(cur, what, depth + 1)
    else:
        cur.pos += count * MIN_BYTES[element]
    return Entry("arr", None, pos, count, element)


def _alignment(cur: Cursor, entry: Entry | None) -> int:
    if entry is None:
        return DEFAULT_ALIGNMENT
    if entry.kind != "u32":
        cur.fail(f"key general.alignment is of type {entry.kind}, expected u32; what wrote the file is at fault")
    a = int(entry.value)
    if a < 8 or a & (a - 1):
        cur.fail(f"key general.alignment is {a}, expected a power of two that is a multiple of 8")
    return a


@dataclass(frozen=True, slots=True)
class _RawTensor:
    name: str
    ne: tuple[int, ...]
    type_id: int
    offset: int  # from data_offset


def _read_tensor(cur: Cursor, i: int, n_tensors: int) -> _RawTensor:
    name = cur.name(f"the name of tensor {i} of {n_tensors}")
    what = f"tensor {printable(name)}"
    n_dims = cur.u32(f"the dimension count of {what}")
    if not 1 <= n_dims <= MAX_DIMS:
        cur.fail(f"{what} has {n_dims} dimensions, expected 1 to {MAX_DIMS}; the file is damaged")
    ne = tuple(cur.u64(f"the dimensions of {what}") for _ in range(n_dims))
    if min(ne) < 1 or math.prod(ne) >= 1 << 63:
        cur.fail(f"{what} has dimensions {ne}, expected positive ones with a product below 2**63")
    return _RawTensor(name, ne, cur.u32(f"the type of {what}"), cur.u64(f"the offset of {what}"))


def _place(cur: Cursor, raw: list[_RawTensor], data_offset: int, alignment: int) -> Iterator[TensorInfo]:
    """The tensors one after the other, each at the next aligned byte: ggml's rule (gguf.cpp, gguf_init_from_reader).

    A type that is not in the table has no size of its own: it reaches to the next tensor, or to the end of the file.
    """
    before: TensorInfo | None = None
    for i, t in enumerate(raw):
        what = f"tensor {printable(t.name)}"
        if t.offset % alignment:
            cur.fail(f"{what} begins at offset {t.offset}, expected a multiple of the alignment {alignment}")
        offset, n_bytes = data_offset + t.offset, _n_bytes(cur, t, what)
        if offset + (n_bytes or 1) > cur.end:
            cur.fail(
                f"{what} ends at byte {offset + (n_bytes or 1)}, the file has {cur.end}; it is cut short, "
                "download or convert it again"
            )
        _check_follows(
            cur, before, t, offset, data_offset if before is None else next_aligned(before, data_offset, alignment)
        )
        if n_bytes is None:
            end = data_offset + raw[i + 1].offset if i + 1 < len(raw) else cur.end
            n_bytes = max(end - offset, 1)  # where the next one lies before it or beside it, its own check says so
        name = TYPES[t.type_id].name if t.type_id in TYPES else unknown_type(t.type_id)
        before = TensorInfo(t.name, t.type_id, name, t.ne, t.ne[::-1], offset, n_bytes)
        yield before


def _n_bytes(cur: Cursor, t: _RawTensor, what: str) -> int | None:
    """What a tensor takes by its type; None for a type that is not in the table."""
    quant = TYPES.get(t.type_id)
    if quant is None:
        return None
    if t.ne[0] % quant.block_elements:
        cur.fail(
            f"{what} has rows of {t.ne[0]} values, expected a multiple of {quant.block_elements} "
            f"for type {quant.name}; what wrote the file is at fault"
        )
    return math.prod(t.ne) // quant.block_elements * quant.block_bytes


def next_aligned(before: TensorInfo, data_offset: int, alignment: int) -> int:
    """The first aligned byte after a tensor."""
    return data_offset + -(-(before.offset + before.n_bytes - data_offset) // alignment) * alignment


def _check_follows(cur: Cursor, before: TensorInfo | None, t: _RawTensor, offset: int, expected: int) -> None:
    """Every byte of the data belongs to one tensor, in the order of the header."""
    if offset == expected:
        return
    name = printable(t.name)
    if before is None:
        cur.fail(f"tensor {name}, the first, begins at offset {t.offset}, expected 0; the file is damaged")
    other = printable(before.name)
    if offset < before.offset:
        cur.fail(
            f"tensor {name} begins at byte {offset}, before tensor {other} at {before.offset}, expected tensors in the "
            "order of the header; the file is damaged"
        )
    if offset < expected:
        cur.fail(
            f"tensors {other} and {name} overlap at byte {offset}, expected each to have its own bytes; the file is "
            "damaged"
        )
    cur.fail(
        f"tensor {name} begins at byte {offset}, expected {expected}, where tensor {other} ends: the bytes between "
        "them belong to no tensor; the file is damaged"
    )
