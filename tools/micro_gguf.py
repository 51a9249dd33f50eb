"""What the model makers share: integer-hash random numbers, element encoders, a streaming GGUF writer.

Owns nothing about models. Every number comes from 64-bit integer arithmetic and every float operation is
elementwise IEEE (no sums whose order a library may choose), so a file made twice has the same bytes on any
machine and with any NumPy. Read next: make_micro.py, make_random.py.
"""

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

ALIGNMENT = 32
# ggml type id, elements in a block, bytes of a block.
TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q8_0": (8, 32, 34), "BF16": (30, 1, 2)}
# GGUF metadata value type ids.
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def hash_u64(seed: int, name: str, n: int, start: int = 0) -> U64:
    """n 64-bit words: the splitmix64 finaliser over (seed, FNV-1a of name, index from `start`)."""
    key = 0xCBF29CE484222325
    for byte in f"{seed}/{name}".encode():
        key = ((key ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    with np.errstate(over="ignore"):
        z = np.arange(start + 1, start + n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        z = (z ^ (z >> np.uint64(30))) * _MIX[0]
        z = (z ^ (z >> np.uint64(27))) * _MIX[1]
        return z ^ (z >> np.uint64(31))


def uniform(seed: int, name: str, shape: tuple[int, ...], start: int = 0) -> F32:
    """float32 in [-1, 1): 24-bit integers scaled by a power of two, so exact everywhere."""
    n = int(np.prod(shape))
    words = (hash_u64(seed, name, n, start) >> np.uint64(40)).astype(np.int64) - (1 << 23)
    return (words.astype(np.float32) / np.float32(1 << 23)).reshape(shape)


def shuffled(seed: int, name: str, n: int) -> list[int]:
    """A permutation of range(n): indices in the order of their hash words."""
    words = hash_u64(seed, name, n).tolist()
    return sorted(range(n), key=lambda i: (words[i], i))


def encode(values: F32, type_name: str) -> bytes:
    """float32 values to the bytes of a ggml type; rows are the last axis.

    F16 and BF16 round to nearest, ties to even. Q8_0 is ggml's reference rule: d = amax / 127,
    q = round-half-away(x / d) as x * (1 / d) in float32, d stored as F16.
    """
    x = np.ascontiguousarray(values, dtype=np.float32)
    if type_name == "F32":
        return x.astype("<f4").tobytes()
    if type_name == "F16":
        return x.astype("<f2").tobytes()
    if type_name == "BF16":
        bits = x.view(np.uint32)
        return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype("<u2").tobytes()
    if type_name == "Q8_0":
        return _encode_q8_0(x)
    raise ValueError(f"type {type_name}: expected one of {', '.join(TYPES)}")


def _encode_q8_0(x: F32) -> bytes:
    if x.shape[-1] % 32 != 0:
        raise ValueError(f"row of {x.shape[-1]} elements: Q8_0 needs a multiple of 32")
    blocks = x.reshape(-1, 32)
    d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(d == 0, np.float32(0), np.float32(1) / d)
    scaled = blocks * inverse
    whole = np.floor(np.abs(scaled))
    rounded = np.sign(scaled) * (whole + np.floor(np.float32(2) * (np.abs(scaled) - whole)))
    out: U8 = np.empty((blocks.shape[0], 34), dtype=np.uint8)
    out[:, :2] = d.astype("<f2").view(np.uint8).reshape(-1, 2)
    out[:, 2:] = rounded.astype(np.int8).view(np.uint8)
    return out.tobytes()


def n_bytes(shape: tuple[int, ...], type_name: str) -> int:
    """Bytes of a tensor of a NumPy shape (rows last) in a ggml type."""
    _, block, size = TYPES[type_name]
    if shape[-1] % block != 0:
        raise ValueError(f"row of {shape[-1]} elements: {type_name} needs a multiple of {block}")
    return int(np.prod(shape)) // block * size


@dataclass(frozen=True)
class Tensor:
    """One tensor to write: NumPy shape (GGUF dims reversed), ggml type, and its bytes in pieces."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    pieces: Callable[[], Iterable[bytes]]


def tensor_of(name: str, values: F32, type_name: str) -> Tensor:
    """A tensor encoded now and written in one piece."""
    raw = encode(values, type_name)
    return Tensor(name, values.shape, type_name, lambda: (raw,))


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _scalar(value: object) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return _BOOL, struct.pack("<?", value)
    if isinstance(value, np.int32):
        return _INT32, struct.pack("<i", int(value))
    if isinstance(value, int):
        return _UINT32, struct.pack("<I", value)
    if isinstance(value, float):
        return _FLOAT32, struct.pack("<f", value)
    if isinstance(value, str):
        return _STRING, _string(value)
    raise TypeError(f"metadata value of type {type(value).__name__}: expected bool, int, np.int32, float, str, list")


def _metadata(metadata: dict[str, object]) -> Iterator[bytes]:
    for key, value in metadata.items():
        yield _string(key)
        if isinstance(value, list):
            pairs = [_scalar(item) for item in value]
            yield struct.pack("<IIQ", _ARRAY, pairs[0][0], len(pairs)) + b"".join(raw for _, raw in pairs)
        else:
            kind, raw = _scalar(value)
            yield struct.pack("<I", kind) + raw


def _tensor_infos(tensors: list[Tensor]) -> Iterator[bytes]:
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        yield _string(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        yield struct.pack("<IQ", TYPES[tensor.type_name][0], offset)
        offset += -(-n_bytes(tensor.shape, tensor.type_name) // ALIGNMENT) * ALIGNMENT


def _write(out: BinaryIO, metadata: dict[str, object], tensors: list[Tensor]) -> None:
    out.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for raw in _metadata(metadata):
        out.write(raw)
    for raw in _tensor_infos(tensors):
        out.write(raw)
    out.write(b"\0" * (-out.tell() % ALIGNMENT))
    for tensor in tensors:
        written = 0
        for raw in tensor.pieces():
            written += out.write(raw)
        if written != n_bytes(tensor.shape, tensor.type_name):
            raise ValueError(f"{tensor.name}: {written} bytes made, expected {n_bytes(tensor.shape, tensor.type_name)}")
        out.write(b"\0" * (-written % ALIGNMENT))


def write_gguf(path: str | Path, metadata: dict[str, object], tensors: list[Tensor]) -> None:
    """Write a GGUF version 3 file piece by piece: a temporary name beside the target, fsync, rename.

    Metadata ints become u32, np.int32 i32, floats f32, lists arrays of their first element's type.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.part")
    try:
        with open(temporary, "wb") as out:
            _write(out, metadata, tensors)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
