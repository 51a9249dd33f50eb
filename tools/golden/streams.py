"""Inputs of golden cases: numbers from named streams.

Owns the numbers that go in. They come from splitmix64 with integer arithmetic and exact scaling only, so that no
library decides them.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mtpref.golden.format import Tensor
from mtpref.spec import quants

F32 = NDArray[np.float32]
U64 = np.uint64


def stream(name: str, n: int) -> NDArray[np.uint64]:
    """n integers of splitmix64; the seed is the first 8 bytes (little-endian) of the SHA-256 of the name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = U64(seed) + np.arange(1, n + 1, dtype=np.uint64) * U64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> U64(31)))


def uniform(name: str, shape: Sequence[int], low: float, high: float) -> F32:
    """low + (high - low) u, u = k / 2**24: one float64 expression, rounded once."""
    k = (stream(name, int(np.prod(shape))) >> U64(40)).astype(np.float64)
    return (low + (high - low) * (k / 2.0**24)).astype(np.float32).reshape(shape)


def bell(name: str, shape: Sequence[int], scale: float = 1.0) -> F32:
    """Bell-shaped values of standard deviation `scale`: the sum of four 16-bit uniforms, centred."""
    z = stream(name, int(np.prod(shape)))
    total = np.zeros(z.shape, np.float64)
    for shift in (0, 16, 32, 48):
        total += ((z >> U64(shift)) & U64(0xFFFF)).astype(np.float64)
    centred = (total - 4 * 32767.5) / 65536.0  # variance 4 / 12
    return (centred * (scale * 1.7320508075688772)).astype(np.float32).reshape(shape)


def quantised(type_name: str, x: F32) -> Tensor:
    """A weight as blocks of `type_name`, through the package's own quantiser."""
    raw = quants.quantize(type_name, x).reshape(-1).view(np.uint8)
    return Tensor(type_name, x.shape, raw)
