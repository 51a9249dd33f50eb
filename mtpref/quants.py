"""Tensor block formats: sizes of every ggml type, decoders and encoders of the types that mtpref runs.

Owns the byte layouts. Knows nothing of files, tensor names or models. A decoder gives the same bits as the
`gguf` package: float32 arithmetic in the order that its docstring states. Block structures are those of
ggml/src/ggml-common.h; functions are those of ggml/src/ggml-quants.c. Kernels build on the unpack helpers
(`q4_k_scales`, `q4_k_quants`, `q6_k_scales`, `q6_k_quants`), which give the integers without the floats.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtpref.errors import MtprefError

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class QuantType:
    """One ggml tensor type: `block_elements` values of a row take `block_bytes` bytes."""

    id: int
    name: str
    block_elements: int
    block_bytes: int


_TABLE = """
0 F32 1 4 | 1 F16 1 2 | 2 Q4_0 32 18 | 3 Q4_1 32 20 | 6 Q5_0 32 22
7 Q5_1 32 24 | 8 Q8_0 32 34 | 9 Q8_1 32 40 | 10 Q2_K 256 84 | 11 Q3_K 256 110
12 Q4_K 256 144 | 13 Q5_K 256 176 | 14 Q6_K 256 210 | 15 Q8_K 256 292 | 16 IQ2_XXS 256 66
17 IQ2_XS 256 74 | 18 IQ3_XXS 256 98 | 19 IQ1_S 256 50 | 20 IQ4_NL 32 18 | 21 IQ3_S 256 110
22 IQ2_S 256 82 | 23 IQ4_XS 256 136 | 24 I8 1 1 | 25 I16 1 2 | 26 I32 1 4
27 I64 1 8 | 28 F64 1 8 | 29 IQ1_M 256 56 | 30 BF16 1 2 | 34 TQ1_0 256 54
35 TQ2_0 256 66 | 39 MXFP4 32 17 | 40 NVFP4 64 36 | 41 Q1_0 128 18 | 42 Q2_0 64 18
"""


def _read_table() -> dict[int, QuantType]:
    rows = [cell.split() for line in _TABLE.strip().splitlines() for cell in line.split("|")]
    return {int(r[0]): QuantType(int(r[0]), r[1], int(r[2]), int(r[3])) for r in rows}


# Every type id of ggml.h below GGML_TYPE_COUNT = 43. Ids 4, 5, 31..33 and 36..38 left the format.
TYPES: dict[int, QuantType] = _read_table()
TYPE_IDS: dict[str, int] = {t.name: t.id for t in TYPES.values()}


# UNPACK


def q4_k_scales(raw: U8) -> tuple[U8, U8]:
    """6-bit scales and mins of Q4_K blocks (Q5_K packs them alike).

    Sub-block j (0..7), with s the 12 bytes at offset 4 of a block:
      j < 4    scale = s[j] & 63                               min = s[j+4] & 63
      j >= 4   scale = (s[j+4] & 15) | (s[j-4] >> 6) << 4      min = (s[j+4] >> 4) | (s[j] >> 6) << 4

    Shapes   raw: (n_blocks * 144,) or (n_blocks, 144) uint8    out: two (n_blocks, 8) uint8, values 0..63
    """
    s = raw.reshape(-1, 144)[:, 4:16]
    low, mid, high = s[:, 0:4], s[:, 4:8], s[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    mins = np.concatenate([mid & 63, (high >> 4) | ((mid >> 6) << 4)], axis=1)
    return scales, mins


def q4_k_quants(raw: U8) -> U8:
    """4-bit values of Q4_K blocks in element order.

    Byte i of 32-byte group g (0..3) of qs holds element 64 g + i in its low half and element
    64 g + 32 + i in its high half.

    Shapes   raw: (n_blocks * 144,) or (n_blocks, 144) uint8    out: (n_blocks, 256) uint8, values 0..15
    """
    qs = raw.reshape(-1, 144)[:, 16:].reshape(-1, 4, 1, 32)
    return np.concatenate([qs & 15, qs >> 4], axis=2).reshape(-1, 256)


def q6_k_scales(raw: U8) -> npt.NDArray[np.int8]:
    """Signed 8-bit scales of Q6_K blocks, one for each 16 elements: (n_blocks, 16) int8."""
    return raw.reshape(-1, 210)[:, 192:208].view(np.int8)


def q6_k_quants(raw: U8) -> npt.NDArray[np.int8]:
    """6-bit values of Q6_K blocks in element order, less 32.

    In half h (0, 1) of a block, for i in 0..31, with l = ql[64 h ..], u = qh[32 h ..]:
      element 128 h + i        (l[i]      & 15 | (u[i]      & 3) << 4) - 32
      element 128 h + 32 + i   (l[32 + i] & 15 | (u[i] >> 2 & 3) << 4) - 32
      element 128 h + 64 + i   (l[i]      >> 4 | (u[i] >> 4 & 3) << 4) - 32
      element 128 h + 96 + i   (l[32 + i] >> 4 | (u[i] >> 6 & 3) << 4) - 32

    Shapes   raw: (n_blocks * 210,) or (n_blocks, 210) uint8    out: (n_blocks, 256) int8, values -32..31
    """
    blocks = raw.reshape(-1, 210)
    ql = blocks[:, 0:128].reshape(-1, 2, 1, 64)
    qh = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.concatenate([ql & 15, ql >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = np.concatenate([qh & 3, (qh >> 2) & 3, (qh >> 4) & 3, qh >> 6], axis=2)
    return ((low | (high << 4)).view(np.int8) - np.int8(32)).reshape(-1, 256)


def _half(blocks: U8, at: int) -> F32:
    """The little-endian float16 at byte `at` of each block, as (n_blocks, 1) float32."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


# DECODERS: (n_blocks, block_bytes) uint8 -> (n_blocks, block_elements) float32


def _decode_f32(blocks: U8) -> F32:
    """F32: 4 bytes little-endian IEEE binary32; copied bit by bit."""
    return np.ascontiguousarray(blocks).view("<f4").astype(np.float32)


def _decode_f16(blocks: U8) -> F32:
    """F16: 2 bytes little-endian IEEE binary16; the conversion is exact."""
    return _half(blocks, 0)


def _decode_bf16(blocks: U8) -> F32:
    """BF16: 2 bytes little-endian, the upper half of a float32; y = bits << 16, exact."""
    bits = np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32)


def _decode_q8_0(blocks: U8) -> F32:
    """Q8_0: 32 values in 34 bytes.

    bytes 0..1    d    float16
    bytes 2..33   q    32 x int8

    y[i] = float32(d) * q[i]; one float32 product.
    """
    q = blocks[:, 2:34].view(np.int8).astype(np.float32)
    return q * _half(blocks, 0)


def _decode_q4_k(blocks: U8) -> F32:
    """Q4_K: 256 values in 144 bytes, 8 sub-blocks of 32.

    bytes 0..1      d        float16, scale of the scales
    bytes 2..3      dmin     float16, scale of the mins
    bytes 4..15     scales   8 scales and 8 mins of 6 bits (`q4_k_scales`)
    bytes 16..143   qs       256 values of 4 bits (`q4_k_quants`)

    y[32 j + i] = (d * scale[j]) * q[32 j + i] - (dmin * min[j]); float32, three products and one difference.
    """
    scales, mins = q4_k_scales(blocks)
    step = (_half(blocks, 0) * scales.astype(np.float32)).reshape(-1, 8, 1)
    low = (_half(blocks, 2) * mins.astype(np.float32)).reshape(-1, 8, 1)
    q = q4_k_quants(blocks).reshape(-1, 8, 32).astype(np.float32)
    return (step * q - low).reshape(-1, 256)


def _decode_q6_k(blocks: U8) -> F32:
    """Q6_K: 256 values in 210 bytes, 16 sub-blocks of 16.

    bytes 0..127     ql       lower 4 bits (`q6_k_quants`)
    bytes 128..191   qh       upper 2 bits
    bytes 192..207   scales   16 x int8
    bytes 208..209   d        float16

    y[16 j + i] = (d * scale[j]) * q[16 j + i]; float32, two products.
    """
    step = (_half(blocks, 208) * q6_k_scales(blocks).astype(np.float32)).reshape(-1, 16, 1)
    q = q6_k_quants(blocks).reshape(-1, 16, 16).astype(np.float32)
    return (step * q).reshape(-1, 256)


_DECODERS: dict[str, Callable[[U8], F32]] = {
    "F32": _decode_f32,
    "F16": _decode_f16,
    "BF16": _decode_bf16,
    "Q8_0": _decode_q8_0,
    "Q4_K": _decode_q4_k,
    "Q6_K": _decode_q6_k,
}
DEQUANTIZABLE: tuple[str, ...] = tuple(_DECODERS)

# Values decoded at a time: bounds the temporaries (about 10 bytes a value) whatever the tensor's size.
_CHUNK_ELEMENTS = 1 << 18


def row_bytes(type_name: str, n: int) -> int:
    """Bytes of one row of n values. MtprefError when n is not a multiple of the block size."""
    t = TYPES[_type_id(type_name)]
    if n % t.block_elements:
        raise MtprefError(
            f"{type_name}: row of {n} values, expected a multiple of its block size {t.block_elements}; "
            "choose F32, F16, BF16 or Q8_0 for such rows"
        )
    return n // t.block_elements * t.block_bytes


def dequantize(type_name: str, raw: U8, shape: tuple[int, ...]) -> F32:
    """Decode a whole tensor to float32, bit-equal with gguf.quants.dequantize.

    Shapes   raw: uint8, the tensor's bytes    shape: NumPy order, at least one dimension, the last is the row
    Errors   MtprefError: type without decoder, row no multiple of the block, wrong byte count
    """
    decode = _DECODERS.get(type_name)
    if decode is None:
        raise MtprefError(
            f"tensor type {type_name}: no decoder, expected one of {', '.join(DEQUANTIZABLE)}; "
            "requantise the file, for example with llama-quantize to Q8_0"
        )
    n = math.prod(shape)
    expected = n // max(shape[-1], 1) * row_bytes(type_name, shape[-1])
    flat = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
    if flat.size != expected:
        raise MtprefError(f"{type_name} tensor of shape {shape}: {flat.size} bytes, expected {expected}")
    t = TYPES[TYPE_IDS[type_name]]
    blocks = flat.reshape(-1, t.block_bytes)
    out = np.empty((len(blocks), t.block_elements), np.float32)
    step = _CHUNK_ELEMENTS // t.block_elements
    # A damaged block may hold an infinite or NaN scale: that is data here, not an arithmetic mishap.
    with np.errstate(all="ignore"):
        for i in range(0, len(blocks), step):
            out[i : i + step] = decode(blocks[i : i + step])
    return out.reshape(shape)


# ENCODERS: (n_blocks, block_elements) float32 -> (n_blocks, block_bytes) uint8


def _encode_f32(x: F32) -> U8:
    return x.astype("<f4").view(np.uint8)


def _encode_f16(x: F32) -> U8:
    """Round to nearest, ties to even; beyond 65519 becomes infinity, as in ggml."""
    return x.astype("<f2").view(np.uint8)


def _encode_bf16(x: F32) -> U8:
    """Round to nearest, ties to even, on the bits; a NaN keeps its upper bits and is made quiet."""
    bits = x.view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 64
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, quiet, rounded).astype("<u2").view(np.uint8)


def _encode_q8_0(x: F32) -> U8:
    """d = amax / 127 in float32, q = round half away from zero of x * (1 / d), d stored as float16.

    The quotient uses d before it is rounded to float16. Where 1 / d overflows, the stored d is zero and so
    is q (the C conversion is undefined there).
    """
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    stored = d.astype("<f2")
    if not np.isfinite(stored).all():
        raise MtprefError(
            "Q8_0: a block holds NaN, infinity or a value beyond 127 * 65504, which the float16 scale cannot "
            "hold; expected finite weights, check the tensor's source"
        )
    inverse = np.where(d == 0, np.float32(0), np.float32(1) / d)
    scaled = x * np.where(np.isfinite(inverse), inverse, np.float32(0))
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    q = np.sign(scaled) * (whole + np.floor(np.float32(2) * (magnitude - whole)))
    return np.concatenate([stored.view(np.uint8), q.astype(np.int8).view(np.uint8)], axis=1)


_ENCODERS: dict[str, Callable[[F32], U8]] = {
    "F32": _encode_f32,
    "F16": _encode_f16,
    "BF16": _encode_bf16,
    "Q8_0": _encode_q8_0,
}
QUANTIZABLE: tuple[str, ...] = tuple(_ENCODERS)


def quantize(type_name: str, x: npt.NDArray[np.floating]) -> U8:
    """Encode rows, byte-equal with gguf.quants.quantize (ggml's scalar reference).

    Shapes   x: (..., n) floating, taken as float32    out: (..., row_bytes(type_name, n)) uint8
    Errors   MtprefError: type without encoder, row no multiple of the block, Q8_0 of non-finite values
    """
    encode = _ENCODERS.get(type_name)
    if encode is None:
        raise MtprefError(f"tensor type {type_name}: no encoder, expected one of {', '.join(QUANTIZABLE)}")
    if x.ndim == 0:
        raise MtprefError(f"{type_name}: a scalar cannot be encoded, expected at least one dimension")
    n_bytes = row_bytes(type_name, x.shape[-1])
    t = TYPES[TYPE_IDS[type_name]]
    blocks = np.ascontiguousarray(x, np.float32).reshape(-1, t.block_elements)
    out = np.empty((len(blocks), t.block_bytes), np.uint8)
    step = _CHUNK_ELEMENTS // t.block_elements
    with np.errstate(all="ignore"):
        for i in range(0, len(blocks), step):
            out[i : i + step] = encode(blocks[i : i + step])
    return out.reshape(*x.shape[:-1], n_bytes)


def _type_id(type_name: str) -> int:
    type_id = TYPE_IDS.get(type_name)
    if type_id is None:
        raise MtprefError(f"tensor type {type_name}: unknown, expected a ggml name such as F32, Q8_0 or Q4_K")
    return type_id
