"""Opening one GGUF file: typed access to its keys, read-only views of its tensors.

Owns the mapping of the file. Knows nothing of models. The rules of the container are in parse.py; the files of a
split model are put together in shards.py.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mtpref.base.errors import MtprefError
from mtpref.files.doors import Mapping as MappedFile
from mtpref.files.doors import map_regular
from mtpref.files.gguf.magic import describe_directory
from mtpref.files.gguf.parse import Budget, Entry, Header, TensorInfo, read_header
from mtpref.files.gguf.values import INTEGER_KINDS, GgufArray, decode_text, printable
from mtpref.files.gguf.whole import refuse_left_over
from mtpref.files.holes import Hole, runs_of
from mtpref.spec.quants import dequantize, row_bytes

PIECE = 8 << 20  # bytes
PIECE_VALUES = 1 << 20  # decoded at a time
MAX_TEXT = 1 << 24  # bytes of one string value; the largest real ones, tokenizer.json as a text, have 10**7


class KeyValues(Mapping[str, Any]):
    """The keys of a file, in file order. A value is decoded when it is asked for.

    Scalars come as int, float or bool, strings as str (MtprefError when not UTF-8), arrays as GgufArray.
    """

    def __init__(self, file: GgufFile, entries: dict[str, Entry]) -> None:
        self._file = file
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __getitem__(self, key: str) -> Any:
        entry = self._entries[key]
        if entry.kind == "str":
            return decode_text(self.raw(key), self._where(key))
        if entry.kind == "arr":
            return GgufArray(self._file.buffer, self._where(key), entry.element, entry.pos, entry.count)
        return entry.value

    def kind(self, key: str) -> str | None:
        """The stored kind ("u32", "str", "arr:i32", ...), or None when the key is absent."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        return f"arr:{entry.element}" if entry.kind == "arr" else entry.kind

    def raw(self, key: str) -> bytes:
        """A string value's bytes, undecoded.

        Errors  MtprefError where the value is no string, or longer than MAX_TEXT
        """
        entry = self._entries[key]
        if entry.kind != "str":
            raise MtprefError(f"{self._where(key)} is of type {self.kind(key)}, expected str")
        if entry.count > MAX_TEXT:
            raise MtprefError(
                f"{self._where(key)} is a text of {entry.count} bytes, expected at most {MAX_TEXT}; the file is damaged"
            )
        return self._file.buffer()[entry.pos : entry.pos + entry.count]

    def size(self, key: str) -> int:
        """Bytes of a string, elements of an array, without decoding it; 1 for a scalar."""
        entry = self._entries[key]
        return entry.count if entry.kind in ("str", "arr") else 1

    def _where(self, key: str) -> str:
        return f"{self._file.label}: key {printable(key)}"


class GgufFile:
    """An open GGUF file. A context manager; `close()` ends access to arrays and tensor data.

    path, version, alignment, data_offset (first byte after the header, aligned): of this file
    n_bytes: of this file, and of the other files of a split model    kv: the keys of this file
    tensors: name -> TensorInfo, in file order, those of the other files after them
    others: the other files of a split model, in order; empty for a model in one file
    """

    def __init__(self, path: Path, buffer: MappedFile, header: Header) -> None:
        self.path = path
        self.label = printable(str(path), 400)
        self._buffer: MappedFile | None = buffer
        self.n_bytes = len(buffer)
        self.version = header.version
        self.alignment = header.alignment
        self.data_offset = header.data_offset
        self.kv = KeyValues(self, header.entries)
        self.tensors: dict[str, TensorInfo] = header.tensors
        self.others: tuple[GgufFile, ...] = ()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def buffer(self) -> MappedFile:
        """The mapped file; MtprefError after close()."""
        if self._buffer is None:
            raise MtprefError(f"{self.label}: the file was closed, expected it open while its data is read")
        return self._buffer

    def close(self) -> None:
        """Unmap the file and its shards. Views that `data()` gave stay valid: a mapping ends with the last of them."""
        for other in self.others:
            other.close()
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            with contextlib.suppress(BufferError):  # a view is alive: the mapping is left to it
                buffer.close()

    def get(self, key: str, default: Any = None) -> Any:
        """The decoded value of a key, or `default` when it is absent."""
        return self.kv.get(key, default)

    def require(self, key: str, kind: str) -> Any:
        """The value of a key that must be there with this kind; MtprefError names key, found and expected.

        kind: an exact kind ("u32", "f32", "str", "bool", "arr:i32", ...), "int" for any integer,
        "arr" for an array of anything
        """
        found = self.kv.kind(key)
        if found is None:
            raise MtprefError(
                f"{self.label}: key {printable(key)} is missing, expected one of type {kind}; "
                f"try: mtpref inspect {self.label}"
            )
        same = found == kind or (kind == "int" and found in INTEGER_KINDS)
        if not same and not (kind == "arr" and found.startswith("arr:")):
            raise MtprefError(
                f"{self.label}: key {printable(key)} is of type {found}, expected {kind}; "
                f"try: mtpref inspect {self.label}"
            )
        return self.kv[key]

    def data(self, tensor: TensorInfo | str) -> npt.NDArray[np.uint8]:
        """A tensor's bytes: read-only 1-D uint8 view of the mapping, exactly n_bytes long, no copy.

        Errors   MtprefError for a name that the file does not have
        """
        info = self.tensors.get(tensor) if isinstance(tensor, str) else tensor
        if info is None:
            raise MtprefError(
                f"{self.label}: tensor {printable(str(tensor))} is missing; try: mtpref inspect {self.label}"
            )
        return np.frombuffer(self._buffer_of(info), np.uint8, info.n_bytes, info.offset)

    def release(self, tensor: TensorInfo) -> None:
        """Give back the memory that reading a tensor has mapped; its views stay valid and read it again when used."""
        self._advise(tensor, "MADV_DONTNEED")

    def _advise(self, tensor: TensorInfo, what: str) -> None:
        """Say how the pages that a tensor alone lies on are used, where the system takes advice."""
        inside = slice(-(-tensor.offset // mmap.PAGESIZE), (tensor.offset + tensor.n_bytes) // mmap.PAGESIZE)
        if inside.stop > inside.start and hasattr(mmap, what):
            start, length = inside.start * mmap.PAGESIZE, (inside.stop - inside.start) * mmap.PAGESIZE
            self._buffer_of(tensor).madvise(getattr(mmap, what), start, length)

    def pieces(self, tensor: TensorInfo) -> Iterator[npt.NDArray[np.uint8]]:
        """A tensor's bytes in order, in views of at most PIECE bytes; the memory of each is given back after it.

        What `write_gguf` takes as data, to copy tensors of any size in bounded memory.
        """
        data = self.data(tensor)
        for start in range(0, len(data), PIECE):
            yield data[start : start + PIECE]
            self.release(replace(tensor, offset=tensor.offset + start, n_bytes=min(PIECE, len(data) - start)))

    def copied(self, tensor: TensorInfo) -> Iterator[npt.NDArray[np.uint8] | Hole]:
        """`pieces`, with what the file holds as a hole given as one, unread."""
        for first, last, is_data in self._runs(tensor):
            if is_data:
                yield from self.pieces(replace(tensor, offset=first, n_bytes=last - first))
            else:
                yield Hole(last - first)

    def n_held(self, tensor: TensorInfo) -> int:
        """Bytes of a tensor that are no hole of its file."""
        return sum(last - first for first, last, is_data in self._runs(tensor) if is_data)

    def _runs(self, tensor: TensorInfo) -> list[tuple[int, int, bool]]:
        owner = self.owner(tensor)
        return runs_of(owner.path, owner.buffer(), tensor.offset, tensor.offset + tensor.n_bytes)

    def decoded(self, tensor: TensorInfo) -> Iterator[npt.NDArray[np.float32]]:
        """A tensor's values, rows by rows of the last dimension, about PIECE_VALUES at a time (one row at least); the
        memory of each piece of the file is given back after it.

        Errors   MtprefError for a type without decoder
        """
        width = row_bytes(tensor.type_name, tensor.shape[-1])
        raw = self.data(tensor).reshape(-1, width)
        step = max(1, PIECE_VALUES // tensor.shape[-1])
        for first in range(0, len(raw), step):
            part = raw[first : first + step]
            yield dequantize(tensor.type_name, part.reshape(-1), (len(part), tensor.shape[-1]))
            self.release(replace(tensor, offset=tensor.offset + first * width, n_bytes=part.nbytes))

    def decoded_rows(
        self, tensor: TensorInfo, rows: npt.NDArray[np.int64], n_columns: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Some rows of a matrix; n_columns: so many of their first columns, whole blocks (None: all).

        Only the pages that they lie on are read, not what follows them, and their memory is given back.

        Errors   MtprefError for a type without decoder
        """
        n_columns = n_columns or tensor.shape[-1]
        all_rows = self.data(tensor).reshape(-1, row_bytes(tensor.type_name, tensor.shape[-1]))
        self._advise(tensor, "MADV_RANDOM")
        raw = np.ascontiguousarray(all_rows[:, : row_bytes(tensor.type_name, n_columns)][rows])
        self._advise(tensor, "MADV_DONTNEED")
        self._advise(tensor, "MADV_NORMAL")
        return dequantize(tensor.type_name, raw.reshape(-1), (len(rows), n_columns))

    def owner(self, tensor: TensorInfo) -> GgufFile:
        """Which of the files of a split model holds a tensor."""
        return self.others[tensor.shard - 1] if tensor.shard else self

    def _buffer_of(self, info: TensorInfo) -> MappedFile:
        return self.owner(info).buffer()


def open_one(path: str | Path, budget: Budget | None = None) -> GgufFile:
    """Map one GGUF file and check its whole header; `open_gguf` opens the other files of a split model too.

    budget   what earlier files of the same model used of the limits
    Errors   MtprefError when the file cannot be opened or anything in its header is malformed
    Cost     one pass over the header; tensor data is not touched
    """
    path = Path(path)
    label = printable(str(path), 400)
    refuse_left_over(path)
    if os.path.isdir(path):
        raise MtprefError(f"{label}: not a regular file: {describe_directory(path)}")
    buffer = map_regular(path, label, "expected a GGUF file")
    try:
        return GgufFile(path, buffer, read_header(buffer, len(buffer), label, budget))
    except BaseException:
        buffer.close()
        raise
