"""Integers of a few bits in 32-bit words, one after the other from the lowest bit; one may lie across two words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)  # E2M1


def unpack(words: NDArray, n_bits: int, n: int) -> U8:
    """(rows, words) of 32 bits -> (rows, n) codes."""
    rows = np.ascontiguousarray(words).view(np.uint32)
    if n_bits == 8:
        return rows.view(np.uint8)[:, :n]
    if n_bits in (1, 2, 4):
        shifts = np.arange(0, 8, n_bits, dtype=np.uint8)
        codes = (rows.view(np.uint8)[:, :, None] >> shifts) & np.uint8((1 << n_bits) - 1)
        return codes.reshape(len(rows), rows.shape[1] * 32 // n_bits)[:, :n]
    at = np.arange(n) * n_bits
    word, shift = at // 32, (at % 32).astype(np.uint64)
    wide = np.concatenate([rows, np.zeros((len(rows), 1), np.uint32)], 1).astype(np.uint64)
    both = wide[:, word] | wide[:, word + 1] << np.uint64(32)
    return ((both >> shift) & np.uint64((1 << n_bits) - 1)).astype(np.uint8)


def nibbles(packed: NDArray, n: int) -> U8:
    """(rows, bytes) -> (rows, n) codes of four bits, the low half of a byte first."""
    raw = np.ascontiguousarray(packed).view(np.uint8)
    return np.stack([raw & np.uint8(15), raw >> np.uint8(4)], axis=-1).reshape(len(raw), -1)[:, :n]


def halves(codes: U8) -> U8:
    """(rows, n) codes of four bits in ggml's order: byte i of 16 holds element i in its low half and i + 16 above.

    Out   (rows, n / 32, 16)
    """
    blocks = codes.reshape(len(codes), -1, 32)
    return np.asarray(blocks[:, :, :16] | blocks[:, :, 16:] << np.uint8(4))


def q4_0(codes: U8, scale: NDArray[np.float32]) -> U8:
    """Q4_0 blocks: value = scale * (code - 8). codes (rows, n); scale (rows, n / 32), each a float16's value."""
    d = scale.astype("<f2").view(np.uint8).reshape(*scale.shape, 2)
    return np.concatenate([d, halves(codes)], axis=-1).reshape(len(codes), -1)


def mxfp4(codes: U8, exponents: U8) -> U8:
    """MXFP4 blocks: value = FP4[code] * 2**(exponent - 127). exponents (rows, n / 32)."""
    return np.concatenate([exponents[:, :, None], halves(codes)], axis=-1).reshape(len(codes), -1)


def fits_f16(scale: NDArray[np.float32]) -> bool:
    """Whether float16 holds these values exactly."""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(scale.astype(np.float16).astype(np.float32), scale))
