"""Wrong matrices: what faults of loading and conversion put in the place of a weight. No fault stands here."""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.weights import stacked
from mtpref.spec import Matrix, Stack, quants

BLOCK = 32
INIT_STD = 0.02


def changed(w: Any, change: Callable[[Matrix], Matrix]) -> Any:
    """A matrix, or each matrix of a stack, changed; what is neither, as it is."""
    if isinstance(w, Stack):
        return stacked(w, [change(one) for one in w])
    return change(w) if isinstance(w, Matrix) else w


def values_of(w: Stack) -> NDArray[np.float32]:
    """The values of a stack: (n, n_out, n_in)."""
    return np.stack([one.dequantize() for one in w])


def stack_of(like: Stack, values: NDArray[np.float32]) -> Stack:
    """Values as a stack of that type, where it has an encoder and its rows fit; else as F16."""
    n, n_out, n_in = values.shape
    is_fit = like.type_name in quants.QUANTIZABLE and n_in % BLOCK == 0
    type_name = like.type_name if is_fit else "F16"
    raw = quants.quantize(type_name, np.ascontiguousarray(values)).reshape(-1).view(np.uint8)
    return Stack(like.name, type_name, n_out, n_in, raw.reshape(n, -1))


def random_like(w: Matrix) -> Matrix:
    """A matrix of the same shape as a module that was made and never loaded: uniform, of standard deviation 0.02.

    Rule  seeded by the matrix's name, so every run has the same one
    """
    random = np.random.Generator(np.random.Philox(zlib.crc32(w.name.encode())))
    values = (random.random((w.n_out, w.n_in), dtype=np.float32) - np.float32(0.5)) * np.float32(INIT_STD * 12**0.5)
    return Matrix(w.name, "F16", w.n_out, w.n_in, values.astype(np.float16).view(np.uint8).reshape(-1))


def requantised(w: Matrix, type_name: str) -> Matrix:
    """The matrix in another type."""
    return Matrix(w.name, type_name, w.n_out, w.n_in, quants.quantize(type_name, w.dequantize()).reshape(-1))


def without_second_half(w: Matrix) -> Matrix:
    """The matrix whose last n_in / 2 columns are 0: a block of zero bytes is a block of zeros in every type."""
    raw = w.raw.reshape(w.n_out, -1).copy()
    raw[:, raw.shape[1] // 2 :] = 0
    return Matrix(w.name, w.type_name, w.n_out, w.n_in, raw.reshape(-1))


def with_neighbours_scales(w: Matrix) -> Matrix:
    """The matrix whose blocks of 32 have the scale (greatest magnitude) of the block before them in the row."""
    blocks = w.dequantize().reshape(w.n_out, -1, BLOCK)
    scale = np.abs(blocks).max(axis=-1, keepdims=True)
    unit = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale != 0)
    raw = (unit * np.roll(scale, 1, axis=1)).astype(np.float16).view(np.uint8).reshape(-1)
    return Matrix(w.name, "F16", w.n_out, w.n_in, raw)
