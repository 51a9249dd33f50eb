"""A few values times one scale: TQ1_0 and TQ2_0 (-1, 0, 1), Q2_0 (-1 to 2), Q1_0 (-1, 1). Decoders only."""

import numpy as np

from mtpref.spec.quants.sizes import F32, U8, bits_of, half

_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


def _trits(packed: U8, n: int) -> U8:
    """n base-3 digits, 0..2, of each byte: (n_blocks, m) -> (n_blocks, n * m), all first digits first.

    A byte is its number times 256 / 243, rounded up: digit k is the integer part of 3 * (byte * 3**k mod 256) / 256.
    """
    shifted = packed[:, None, :] * _POWERS[:n, None]
    return ((shifted.astype(np.uint16) * 3) >> 8).astype(np.uint8).reshape(len(packed), -1)


def decode_tq1_0(blocks: U8) -> F32:
    """TQ1_0: 256 values in 54 bytes. y = d * (digit - 1).

    bytes 0..31    5 digits each: elements 0..159
    bytes 32..47   5 digits each: elements 160..239
    bytes 48..51   4 digits each: elements 240..255
    bytes 52..53   d    float16
    """
    digits = [_trits(blocks[:, :32], 5), _trits(blocks[:, 32:48], 5), _trits(blocks[:, 48:52], 4)]
    return half(blocks, 52) * (np.concatenate(digits, axis=1).astype(np.float32) - np.float32(1))


def decode_tq2_0(blocks: U8) -> F32:
    """TQ2_0: 256 values in 66 bytes: 64 bytes of four 2-bit codes, then d, a float16. y = d * (code - 1).

    Element 128 h + 32 g + i is bits 2 g and 2 g + 1 of byte 32 h + i.
    """
    qs = blocks[:, :64].reshape(-1, 2, 1, 32)
    codes = np.concatenate([qs & 3, (qs >> 2) & 3, (qs >> 4) & 3, qs >> 6], axis=2).reshape(-1, 256)
    return half(blocks, 64) * (codes.astype(np.float32) - np.float32(1))


def decode_q2_0(blocks: U8) -> F32:
    """Q2_0: 64 values in 18 bytes: d, a float16, then 16 bytes of four 2-bit codes. y = d * (code - 1).

    Element 4 i + g is bits 2 g and 2 g + 1 of byte i. ggml's encoder leaves code 3 unused.
    """
    qs = blocks[:, 2:18, None]
    codes = np.concatenate([(qs >> shift) & 3 for shift in (0, 2, 4, 6)], axis=2).reshape(-1, 64)
    return half(blocks, 0) * (codes.astype(np.float32) - np.float32(1))


def decode_q1_0(blocks: U8) -> F32:
    """Q1_0: 128 values in 18 bytes: d, a float16, then 16 bytes of bits. y = d where the bit is 1, else -d.

    Element 8 i + g is bit g of byte i.
    """
    d = half(blocks, 0)
    return np.where(bits_of(blocks[:, 2:18]) == 1, d, -d)
