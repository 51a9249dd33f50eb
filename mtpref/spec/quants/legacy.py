"""Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: blocks of 32 values with one scale, and one minimum in the types that end in _1.

A weight is y[i] = d * q[i], or d * q[i] + m: float32, one rounding for each operation. Layout of a block, with
d and m float16, qs the lower four bits (byte i: element i in its low half, element 16 + i in its high half) and qh the
fifth bits (bit i of the little-endian 32-bit word: element i):

    Q4_0   18 bytes   d 0..1              qs 2..17              q = code - 8
    Q4_1   20 bytes   d 0..1   m 2..3     qs 4..19              q = code
    Q5_0   22 bytes   d 0..1              qh 2..5   qs 6..21    q = code - 16
    Q5_1   24 bytes   d 0..1   m 2..3     qh 4..7   qs 8..23    q = code
    Q8_0   34 bytes   d 0..1              q 2..33, int8
"""

from dataclasses import dataclass

import numpy as np

from mtpref.base.errors import MtprefError
from mtpref.spec.quants.sizes import F32, I8, U8, bits_of, blocks_of, half, nibbles

LEGACY_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
_BITS = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5}


@dataclass(frozen=True)
class LegacyBlocks:
    """Unpacked blocks. d, m: (n_blocks, 1) float32, m None where the type has no minimum; q: (n_blocks, 32) int8."""

    d: F32
    m: F32 | None
    q: I8


def unpack_legacy(type_name: str, raw: U8) -> LegacyBlocks:
    """The scales, minima and integers of blocks of the types above; raw: uint8, whole blocks."""
    blocks = blocks_of(type_name, raw)
    d = half(blocks, 0)
    if type_name == "Q8_0":
        return LegacyBlocks(d, None, blocks[:, 2:34].view(np.int8))
    has_min, has_high = type_name.endswith("_1"), type_name.startswith("Q5")
    at = 4 if has_min else 2
    codes = nibbles(blocks[:, -16:])
    if has_high:
        codes |= bits_of(blocks[:, at : at + 4]) << 4
    if has_min:
        return LegacyBlocks(d, half(blocks, 2), codes.view(np.int8))
    return LegacyBlocks(d, None, codes.view(np.int8) - np.int8(16 if has_high else 8))


def decode_legacy(type_name: str, blocks: U8) -> F32:
    """y = d * q, or d * q + m: one float32 product and at most one sum."""
    unpacked = unpack_legacy(type_name, blocks)
    y = unpacked.d * unpacked.q.astype(np.float32)
    return y if unpacked.m is None else y + unpacked.m


def encode_legacy(type_name: str, x: F32) -> U8:
    """ggml's scalar reference quantisers, byte by byte: (n_blocks, 32) float32 -> (n_blocks, block_bytes) uint8.

    Q4_0, Q5_0   d = m / -8 (m / -16) with m the first element of the greatest magnitude;
                 code = trunc(x / d + 8.5 (16.5))
    Q4_1, Q5_1   d = (max - min) / 15 (31); code = trunc((x - min) / d + 0.5); min is stored as m
    Q8_0         d = max|x| / 127; q = x / d rounded half away from zero

    x / d is x * (1 / d), with d in float32: it is rounded to float16 when stored, after the codes are made. A code is
    at most 15 (31). Where 1 / d overflows, the stored d is zero and x / d counts as 0 (the C conversion is undefined
    there).
    """
    if type_name == "Q8_0":
        return _encode_q8_0(x)
    low, top = np.zeros((len(x), 1), np.float32), np.float32((1 << _BITS[type_name]) - 1)
    if type_name.endswith("_1"):
        low = np.take_along_axis(x, x.argmin(axis=1, keepdims=True), axis=1)  # the first, where zeros have two signs
        d, offset = (x.max(axis=1, keepdims=True) - low) / top, np.float32(0.5)
    else:
        half_range = np.float32(1 << (_BITS[type_name] - 1))
        greatest = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1) + np.float32(0)
        d, offset = greatest / -half_range, half_range + np.float32(0.5)
    stored = np.concatenate([d, low] if type_name.endswith("_1") else [d], axis=1).astype("<f2")
    _check_stored(type_name, stored)
    codes = np.minimum(np.trunc((x - low) * _inverse(d) + offset), top).astype(np.uint8)
    packed = (codes[:, :16] & 15) | (codes[:, 16:] << 4)
    parts = [stored.view(np.uint8), packed]
    if type_name.startswith("Q5"):
        parts.insert(1, np.packbits(codes >> 4, axis=1, bitorder="little"))
    return np.concatenate(parts, axis=1)


def _encode_q8_0(x: F32) -> U8:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    stored = d.astype("<f2")
    _check_stored("Q8_0", stored)
    scaled = x * _inverse(d)
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    q = np.sign(scaled) * (whole + np.floor(np.float32(2) * (magnitude - whole)))
    return np.concatenate([stored.view(np.uint8), q.astype(np.int8).view(np.uint8)], axis=1)


def _inverse(d: F32) -> F32:
    """1 / d in float32, and 0 where that is infinite."""
    inverse = np.float32(1) / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _check_stored(type_name: str, stored: np.ndarray) -> None:
    if not np.isfinite(stored).all():
        raise MtprefError(
            f"{type_name}: a block holds NaN, infinity or values too great for a float16 scale (65504); "
            "expected finite weights, check the tensor's source"
        )
