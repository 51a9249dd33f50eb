"""Q2_K, Q3_K, Q4_K, Q5_K, Q6_K: blocks of 256 values in sub-blocks of 16 or 32, with integer scales.

A weight is y = (d * scale[j]) * q - (dmin * min[j]) where the type has minima, else (d * scale[j]) * q, with j its
sub-block: float32, each operation rounded. d and dmin are float16. Layout of a block, in bytes:

    Q2_K    84   scales 0..15, qs 16..79, d 80, dmin 82            16 sub-blocks of 16
    Q3_K   110   hmask 0..31, qs 32..95, scales 96..107, d 108     16 sub-blocks of 16, no minima
    Q4_K   144   d 0, dmin 2, scales 4..15, qs 16..143              8 sub-blocks of 32
    Q5_K   176   d 0, dmin 2, scales 4..15, qh 16..47, qs 48..175   8 sub-blocks of 32
    Q6_K   210   ql 0..127, qh 128..191, scales 192..207, d 208    16 sub-blocks of 16, no minima
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtpref.spec.quants.sizes import F32, I8, U8, bits_of, blocks_of, half

K_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
# Bytes at which d and dmin lie.
_HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


@dataclass(frozen=True)
class KBlocks:
    """Unpacked blocks of n_sub sub-blocks of 256 / n_sub values.

    d, dmin: (n_blocks, 1) float32    scales, mins: (n_blocks, n_sub)    q: (n_blocks, n_sub, 256 / n_sub) int8
    dmin and mins are None where the type has no minima
    """

    d: F32
    dmin: F32 | None
    scales: npt.NDArray[np.integer]
    mins: npt.NDArray[np.integer] | None
    q: I8


def unpack_k(type_name: str, raw: U8) -> KBlocks:
    """The scales and integers of blocks of the types above; raw: uint8, whole blocks."""
    blocks = blocks_of(type_name, raw)
    d, *rest = (half(blocks, at) for at in _HALVES[type_name])
    mins: npt.NDArray[np.integer] | None = None
    scales: npt.NDArray[np.integer]
    if type_name == "Q2_K":
        scales, mins, q = blocks[:, 0:16] & 15, blocks[:, 0:16] >> 4, q2_k_quants(blocks).view(np.int8)
    elif type_name == "Q3_K":
        scales, q = q3_k_scales(blocks), q3_k_quants(blocks)
    elif type_name == "Q6_K":
        scales, q = q6_k_scales(blocks), q6_k_quants(blocks)
    else:
        scales, mins = q4_k_scales(blocks)
        q = (q4_k_quants(blocks) if type_name == "Q4_K" else q5_k_quants(blocks)).view(np.int8)
    n_sub = scales.shape[1]
    return KBlocks(d, rest[0] if rest else None, scales, mins, q.reshape(-1, n_sub, 256 // n_sub))


def decode_k(type_name: str, blocks: U8) -> F32:
    """y = (d * scale) * q - (dmin * min), or without the difference: (n_blocks, 256) float32."""
    u = unpack_k(type_name, blocks)
    y = (u.d * u.scales.astype(np.float32))[:, :, None] * u.q.astype(np.float32)
    if u.dmin is not None and u.mins is not None:
        y = y - (u.dmin * u.mins.astype(np.float32))[:, :, None]
    return y.reshape(-1, 256)


def _two_bits(packed: U8) -> U8:
    """64 bytes a block: element 128 h + 32 g + i is bits 2 g and 2 g + 1 of byte 32 h + i. Out: (n_blocks, 256)."""
    qs = packed.reshape(-1, 2, 1, 32)
    return np.concatenate([qs & 3, (qs >> 2) & 3, (qs >> 4) & 3, qs >> 6], axis=2).reshape(-1, 256)


def _high_bits(packed: U8) -> U8:
    """32 bytes a block: element 32 g + i is bit g of byte i. Out: (n_blocks, 256), values 0 and 1."""
    return bits_of(packed).reshape(-1, 32, 8).transpose(0, 2, 1).reshape(-1, 256)


def q2_k_quants(raw: U8) -> U8:
    """2-bit values of Q2_K blocks in element order: (n_blocks, 256) uint8, 0..3.

    Element 128 h + 32 g + i is bits 2 g and 2 g + 1 of qs[32 h + i].
    """
    return _two_bits(blocks_of("Q2_K", raw)[:, 16:80])


def q3_k_scales(raw: U8) -> I8:
    """6-bit scales of Q3_K blocks, less 32: (n_blocks, 16) int8, -32..31.

    With s the 12 bytes of `scales`: the lower four bits of scale j are the low half of s[j] (j < 8) or the high half of
    s[j - 8]; the upper two are bits 2 (j // 4) and 2 (j // 4) + 1 of s[8 + j % 4].
    """
    s = blocks_of("Q3_K", raw)[:, 96:108]
    low = np.concatenate([s[:, :8] & 15, s[:, :8] >> 4], axis=1)
    top = s[:, 8:]
    high = np.concatenate([top & 3, (top >> 2) & 3, (top >> 4) & 3, top >> 6], axis=1)
    return (low | (high << 4)).view(np.int8) - np.int8(32)


def q3_k_quants(raw: U8) -> I8:
    """3-bit values of Q3_K blocks in element order, less 4: (n_blocks, 256) int8, -4..3.

    Element 128 h + 32 g + i: the lower bits are 2 g and 2 g + 1 of qs[32 h + i]; the upper bit is bit 4 h + g of
    hmask[i]. A mask bit of 1 adds the 4 that 0 lacks.
    """
    blocks = blocks_of("Q3_K", raw)
    return (_two_bits(blocks[:, 32:96]) | (_high_bits(blocks[:, 0:32]) << 2)).view(np.int8) - np.int8(4)


def q4_k_scales(raw: U8) -> tuple[U8, U8]:
    """6-bit scales and mins of Q4_K or Q5_K blocks, which pack them alike.

    Sub-block j (0..7), with s the 12 bytes at offset 4 of a block:
      j < 4    scale = s[j] & 63                               min = s[j+4] & 63
      j >= 4   scale = (s[j+4] & 15) | (s[j-4] >> 6) << 4      min = (s[j+4] >> 4) | (s[j] >> 6) << 4

    Shapes   raw: (n_blocks, block_bytes) uint8    out: two (n_blocks, 8) uint8, values 0..63
    """
    s = raw[:, 4:16]
    low, mid, high = s[:, 0:4], s[:, 4:8], s[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    mins = np.concatenate([mid & 63, (high >> 4) | ((mid >> 6) << 4)], axis=1)
    return scales, mins


def _four_bits(packed: U8) -> U8:
    """128 bytes a block: byte i of group g (0..3) holds element 64 g + i, and 64 g + 32 + i in its high half."""
    qs = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([qs & 15, qs >> 4], axis=2).reshape(-1, 256)


def q4_k_quants(raw: U8) -> U8:
    """4-bit values of Q4_K blocks in element order: (n_blocks, 256) uint8, 0..15.

    Byte i of 32-byte group g (0..3) of qs holds element 64 g + i in its low half and element
    64 g + 32 + i in its high half.
    """
    return _four_bits(blocks_of("Q4_K", raw)[:, 16:])


def q5_k_quants(raw: U8) -> U8:
    """5-bit values of Q5_K blocks in element order: (n_blocks, 256) uint8, 0..31.

    The lower four bits are packed as in Q4_K; the fifth of element 32 j + i is bit j of qh[i].
    """
    blocks = blocks_of("Q5_K", raw)
    return _four_bits(blocks[:, 48:]) | (_high_bits(blocks[:, 16:48]) << np.uint8(4))


def q6_k_scales(raw: U8) -> I8:
    """Signed 8-bit scales of Q6_K blocks, one for each 16 elements: (n_blocks, 16) int8."""
    return blocks_of("Q6_K", raw)[:, 192:208].view(np.int8)


def q6_k_quants(raw: U8) -> I8:
    """6-bit values of Q6_K blocks in element order, less 32.

    In half h (0, 1) of a block, for i in 0..31, with l = ql[64 h ..], u = qh[32 h ..]:
      element 128 h + i        (l[i]      & 15 | (u[i]      & 3) << 4) - 32
      element 128 h + 32 + i   (l[32 + i] & 15 | (u[i] >> 2 & 3) << 4) - 32
      element 128 h + 64 + i   (l[i]      >> 4 | (u[i] >> 4 & 3) << 4) - 32
      element 128 h + 96 + i   (l[32 + i] >> 4 | (u[i] >> 6 & 3) << 4) - 32

    Shapes   raw: whole blocks, uint8    out: (n_blocks, 256) int8, values -32..31
    """
    blocks = blocks_of("Q6_K", raw)
    ql = blocks[:, 0:128].reshape(-1, 2, 1, 64)
    low = np.concatenate([ql & 15, ql >> 4], axis=2).reshape(-1, 256)
    return (low | (_two_bits(blocks[:, 128:192]) << 4)).view(np.int8) - np.int8(32)
