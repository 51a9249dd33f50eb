"""What the model makers share: integer-hash random numbers, and a model's description as the GGUF writer takes it.

Owns nothing about models. Every number comes from 64-bit integer arithmetic and every float operation is
elementwise IEEE (no sums whose order a library may choose), so a file made twice has the same bytes on any
machine and with any NumPy. Read next: make_micro.py, make_random.py.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mtpref.files import gguf
from mtpref.spec import quants

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
Tensor = tuple[str, str, tuple[int, ...], U8 | Callable[[], Iterable[U8]]]

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
TYPES = ("F32", "F16", "BF16", "Q8_0")


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


def encode(values: F32, type_name: str) -> U8:
    """float32 values to the bytes of a ggml type; rows are the last axis."""
    return quants.quantize(type_name, values.reshape(-1, values.shape[-1])).reshape(-1)


def tensor_of(name: str, values: F32, type_name: str) -> Tensor:
    """A tensor encoded now and written in one piece."""
    return name, type_name, values.shape, encode(values, type_name)


def write_gguf(path: str | Path, metadata: dict[str, object], tensors: Iterable[Tensor]) -> None:
    """Write a GGUF file. Metadata ints become u32, np.int32 i32, floats f32; a list has its first element's kind."""
    gguf.write_gguf(path, [(key, value, kind_of(value)) for key, value in metadata.items()], tensors)


def kind_of(value: object) -> str:
    if isinstance(value, list):
        return "arr:" + kind_of(value[0])
    for kind, types in (("bool", bool), ("i32", np.int32), ("u32", int), ("f32", float), ("str", str)):
        if isinstance(value, types):
            return kind
    raise TypeError(f"metadata value of type {type(value).__name__}: expected bool, int, np.int32, float, str, list")
