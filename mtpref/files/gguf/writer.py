"""Writing a GGUF file: version 3, little-endian, the same bytes for the same input.

Owns the layout on the way out; the safety of the target is whole.py's. Knows nothing of models. gguf.GGUFWriter is
not used because it drops empty strings and arrays, guesses array types and leaves half a file behind when it is
interrupted.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mtpref.base.errors import MtprefError
from mtpref.files.gguf.parse import DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, MAX_NAME, unknown_type_id
from mtpref.files.gguf.values import ARR, DTYPES, INTEGER_KINDS, KIND_IDS, SCALARS, U32, U64, GgufArray, printable
from mtpref.files.gguf.whole import Part, Report, WriteOptions, write_parts
from mtpref.files.holes import Hole
from mtpref.spec.quants import TYPE_IDS, TYPES, row_bytes

Array = npt.NDArray[Any]
Give = Callable[[], Array | Iterable[Array]]


@dataclass(frozen=True)
class Copied:
    """Bytes of a tensor as another file holds them; its holes stay holes.

    n_held   gives the bytes that are no hole, which is what the copy takes
    """

    give: Callable[[], Iterable[Array | Hole]]
    n_held: Callable[[], int]


@dataclass(frozen=True)
class Verbatim(Copied):
    """The same of a tensor whose type has no known size, padding included.

    alignment   of that file: in a file of a smaller one, a reader that knows the type would look for the next tensor
                before the end of the padding
    """

    n_bytes: int
    alignment: int


Data = Array | Give | Copied
CHUNK = 8 << 20  # bytes
QUANTIZATION_VERSION = 2  # general.quantization_version: of ggml's block formats as they are
MAX_TENSOR_NAME = 63  # bytes; ggml keeps names in 64 with the final zero and refuses longer ones
_NATIVE = {
    "F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2",
    "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
}  # fmt: skip


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written, checked."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    n_bytes: int
    data: Data


def write_gguf(
    path: str | Path,
    kv: Iterable[tuple[str, Any, str]],
    tensors: Iterable[tuple[str, str, tuple[int, ...], Data]],
    *,
    options: WriteOptions | None = None,
) -> None:
    """Write a GGUF file, whole or not at all.

    kv        (key, value, kind), kind as in the reader: "u32", "f32", "str", "bool", "arr:str", "arr:i32",
              ...; strings as str or bytes; a GgufArray of another file is copied without decoding its text
    tensors   (name, ggml type name, NumPy shape, data); data is uint8 of the right byte count, or an array of
              the type's own dtype (BF16: uint16), or a function that gives one, or gives pieces of one in order
              (so that a large model needs little memory), called when its turn comes; a type that is not in the
              table (type-142) takes Verbatim, and nothing else does
    options   whether an existing file may be replaced, files that must not be, progress (default: replace)
    Order     keys and tensors in the order given; data aligned to key `general.alignment` (32 without it)
    Errors    MtprefError for a repeated or bad name, a value outside its kind, data of another size than its
              shape, and as `whole.write_parts`
    """
    write_files([(Path(path), list(kv), plan_tensors(tensors))], options)


def write_files(
    files: list[tuple[Path, list[tuple[str, Any, str]], list[PlannedTensor]]], options: WriteOptions | None = None
) -> None:
    """Write files of (path, keys, tensors), all of them or none: they are renamed when the last is on disk.

    Errors   MtprefError as `write_gguf`
    """
    options = options or WriteOptions()
    write_parts(parts_of(files, options.progress), options)


def parts_of(
    files: list[tuple[Path, list[tuple[str, Any, str]], list[PlannedTensor]]], progress: Report | None
) -> list[Part]:
    """The files as `write_parts` and `write_folder` take them. Errors: MtprefError as `write_gguf`"""
    images = []
    for _, pairs, plan in files:
        alignment = alignment_of(pairs)
        _check_alignment(plan, alignment)
        images.append(_Image(alignment, _header(pairs, plan, alignment), plan))
    meter = _Meter(sum(image.n_bytes for image in images), progress)
    return [
        Part(path, image.n_held, partial(_write_image, image, meter))
        for (path, _, _), image in zip(files, images, strict=True)
    ]


class _Image:
    """A file as it will be: header, tensors, size, and how much of it is no hole."""

    def __init__(self, alignment: int, header: bytes, plan: list[PlannedTensor]) -> None:
        self.alignment, self.plan = alignment, plan
        self.header = header + bytes(-len(header) % alignment)
        self.n_bytes = len(self.header) + sum(t.n_bytes + -t.n_bytes % alignment for t in plan)
        copied = [(t.n_bytes, t.data) for t in plan if isinstance(t.data, Copied)]
        self.n_held = self.n_bytes - sum(n_bytes - data.n_held() for n_bytes, data in copied)


class _Meter:
    """Bytes that went out, over all files of a model."""

    def __init__(self, n_total: int, report: Report | None) -> None:
        self.n_done, self.n_total, self.report = 0, n_total, report

    def write(self, f: BinaryIO, data: Any) -> int:
        """Write in pieces of CHUNK bytes, so that progress is seen within a large tensor."""
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            self.n_done += f.write(view[start : start + CHUNK])
            if self.report is not None:
                self.report(self.n_done, self.n_total)
        return len(view)

    def skip(self, f: BinaryIO, n_bytes: int) -> int:
        """Leave a hole."""
        f.seek(n_bytes, os.SEEK_CUR)
        self.n_done += n_bytes
        if self.report is not None:
            self.report(self.n_done, self.n_total)
        return n_bytes


def _write_image(image: _Image, meter: _Meter, f: BinaryIO) -> None:
    meter.write(f, image.header)
    for t in image.plan:
        _write_tensor(f, t, meter)
        meter.write(f, bytes(-t.n_bytes % image.alignment))
    f.truncate()  # a hole at the end counts too


# TENSORS


def plan_tensors(tensors: Iterable[tuple[str, str, tuple[int, ...], Data]]) -> list[PlannedTensor]:
    """Check the tensors as `write_gguf` takes them."""
    plan: dict[str, PlannedTensor] = {}
    for name, type_name, shape, data in tensors:
        what = f"tensor {printable(name)}"
        if name in plan:
            raise MtprefError(f"{what}: given twice, expected once")
        if not 1 <= len(name.encode()) <= MAX_TENSOR_NAME:
            raise MtprefError(f"{what}: name of {len(name.encode())} bytes, expected 1 to {MAX_TENSOR_NAME}")
        if unknown_type_id(type_name) is not None and isinstance(data, Verbatim):
            plan[name] = PlannedTensor(name, type_name, tuple(int(n) for n in shape), data.n_bytes, data)
            continue
        if type_name not in TYPE_IDS:
            raise MtprefError(f"{what}: type {type_name}, expected a ggml name such as F32, Q8_0 or Q4_K")
        if not 1 <= len(shape) <= MAX_DIMS or min(shape) < 1:
            raise MtprefError(f"{what}: shape {shape}, expected 1 to {MAX_DIMS} positive dimensions")
        if shape[-1] % TYPES[TYPE_IDS[type_name]].block_elements:
            raise MtprefError(
                f"{what}: rows of {shape[-1]} values, expected a multiple of "
                f"{TYPES[TYPE_IDS[type_name]].block_elements} for type {type_name}; choose another type"
            )
        n_bytes = tensor_bytes(type_name, shape)
        plan[name] = PlannedTensor(name, type_name, tuple(int(n) for n in shape), n_bytes, data)
        if isinstance(data, np.ndarray):
            _check_dtype(plan[name], data)
            _check_size(plan[name], data.nbytes)
    return list(plan.values())


def tensor_bytes(type_name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor (NumPy order). MtprefError for a row that is no multiple of the type's block."""
    return math.prod(shape[:-1]) * row_bytes(type_name, shape[-1])


def _check_dtype(t: PlannedTensor, data: Array) -> None:
    native = np.dtype(_NATIVE.get(t.type_name, "u1"))
    if data.dtype not in (np.dtype(np.uint8), native):
        raise MtprefError(
            f"tensor {printable(t.name)}: data of dtype {data.dtype}, expected uint8 or {native} for {t.type_name}"
        )


def _check_size(t: PlannedTensor, n_bytes: int) -> None:
    if n_bytes != t.n_bytes:
        raise MtprefError(
            f"tensor {printable(t.name)}: {n_bytes} bytes of data, expected {t.n_bytes} for "
            f"{t.type_name} of shape {t.shape}"
        )


def _check_alignment(plan: list[PlannedTensor], alignment: int) -> None:
    for t in plan:
        if isinstance(t.data, Verbatim) and t.data.alignment > alignment:
            raise MtprefError(
                f"tensor {printable(t.name)} has {t.type_name}, a type of unknown size, in a file of "
                f"alignment {t.data.alignment}, expected at most {alignment}, that of the file to be: "
                "how much of it is padding cannot be told"
            )


def _write_tensor(f: BinaryIO, t: PlannedTensor, meter: _Meter) -> None:
    given = t.data.give if isinstance(t.data, Copied) else t.data
    data = given() if callable(given) else given
    written = 0
    for piece in (data,) if isinstance(data, np.ndarray) else data:
        if isinstance(piece, Hole):
            written += meter.skip(f, piece.n_bytes)
        else:
            _check_dtype(t, piece)
            written += meter.write(f, np.ascontiguousarray(piece).reshape(-1).view(np.uint8))
        if written > t.n_bytes:
            break
    _check_size(t, written)


# HEADER


def alignment_of(pairs: list[tuple[str, Any, str]]) -> int:
    for key, value, kind in pairs:
        if key == "general.alignment":
            if kind != "u32" or value < 8 or value & (value - 1):
                raise MtprefError(
                    f"key general.alignment: {value!r} of kind {kind}, expected a u32 power of two from 8 up"
                )
            return int(value)
    return DEFAULT_ALIGNMENT


def _header(pairs: list[tuple[str, Any, str]], plan: list[PlannedTensor], alignment: int) -> bytes:
    out = bytearray(MAGIC + U32.pack(3) + U64.pack(len(plan)) + U64.pack(len(pairs)))
    seen: set[str] = set()
    for key, value, kind in pairs:
        if key in seen:
            raise MtprefError(f"key {printable(key)}: given twice, expected once")
        if not 1 <= len(key.encode()) <= MAX_NAME:
            raise MtprefError(f"key {printable(key)}: {len(key.encode())} bytes, expected 1 to {MAX_NAME}")
        seen.add(key)
        out += _text(key) + _value(value, kind, f"key {printable(key)}")
    offset = 0
    for t in plan:
        out += _text(t.name) + U32.pack(len(t.shape))
        for n in reversed(t.shape):
            out += U64.pack(n)
        out += U32.pack(_type_id(t.type_name)) + U64.pack(offset)
        offset += -(-t.n_bytes // alignment) * alignment
    return bytes(out)


def _type_id(type_name: str) -> int:
    unknown = unknown_type_id(type_name)
    return TYPE_IDS[type_name] if unknown is None else unknown


def _text(text: str | bytes) -> bytes:
    raw = text.encode("utf-8") if isinstance(text, str) else text
    return U64.pack(len(raw)) + raw


def _value(value: Any, kind: str, what: str) -> bytes:
    """The value's type id and bytes."""
    if kind.startswith("arr:"):
        return U32.pack(ARR) + _array(value, kind[4:], what)
    if kind == "str" and isinstance(value, str | bytes):
        return U32.pack(KIND_IDS[kind]) + _text(value)
    if kind in SCALARS and (kind != "bool" or isinstance(value, bool | np.bool_)):
        try:
            return U32.pack(KIND_IDS[kind]) + SCALARS[kind].pack(value)
        except (struct.error, OverflowError, TypeError):
            pass  # falls to the refusal
    raise MtprefError(f"{what}: {printable(repr(value))} does not fit kind {kind}, one of {', '.join(KIND_IDS)}")


def _array(value: Any, element: str, what: str) -> bytes:
    """An array's element type id, length and elements."""
    if element == "str":
        texts = value.to_bytes_list() if isinstance(value, GgufArray) else list(value)
        for i, text in enumerate(texts):
            if not isinstance(text, str | bytes):
                raise MtprefError(f"{what}: element {i} is {printable(repr(text))}, expected a string")
        return U32.pack(KIND_IDS["str"]) + U64.pack(len(texts)) + b"".join(_text(t) for t in texts)
    if element not in DTYPES:
        raise MtprefError(f"{what}: array of {element}, expected elements of {', '.join(DTYPES)} or str")
    given = value.to_numpy() if isinstance(value, GgufArray) else np.asarray(value)
    stored = _stored(given, element)
    if stored is None:
        raise MtprefError(
            f"{what}: {printable(repr(value))} does not fit a flat array of {element}, expected values of that kind"
        )
    return U32.pack(KIND_IDS[element]) + U64.pack(len(stored)) + stored.tobytes()


def _stored(given: npt.NDArray[Any], element: str) -> npt.NDArray[Any] | None:
    """The elements in the file's dtype, or None where they are of another kind or out of its range."""
    if given.ndim != 1:
        return None
    if given.size == 0:
        return np.empty(0, DTYPES[element])
    wanted = {"bool": "b", "f32": "fiu", "f64": "fiu"}.get(element, "iu")
    if given.dtype.kind not in wanted:
        return None
    with np.errstate(over="ignore"):
        stored = given.astype(DTYPES[element])
    if element in INTEGER_KINDS and not np.array_equal(stored, given):
        return None
    return stored
