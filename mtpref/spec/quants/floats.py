"""F32, F16 and BF16: decoders and encoders. Blocks are single values."""

import numpy as np

from mtpref.spec.quants.sizes import F32, U8, half


def decode_f32(blocks: U8) -> F32:
    """F32: 4 bytes little-endian IEEE binary32; copied bit by bit."""
    return np.ascontiguousarray(blocks).view("<f4").astype(np.float32)


def decode_f16(blocks: U8) -> F32:
    """F16: 2 bytes little-endian IEEE binary16; the conversion is exact."""
    return half(blocks, 0)


def decode_bf16(blocks: U8) -> F32:
    """BF16: 2 bytes little-endian, the upper half of a float32; y = bits << 16, exact."""
    bits = np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32)


def encode_f32(x: F32) -> U8:
    """F32: copied bit by bit."""
    return x.astype("<f4").view(np.uint8)


def encode_f16(x: F32) -> U8:
    """Round to nearest, ties to even; beyond 65519 becomes infinity, as in ggml."""
    return x.astype("<f2").view(np.uint8)


def encode_bf16(x: F32) -> U8:
    """Round to nearest, ties to even, on the bits; a NaN keeps its upper bits and is made quiet."""
    bits = x.view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 64
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, quiet, rounded).astype("<u2").view(np.uint8)
