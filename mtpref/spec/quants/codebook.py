"""Types whose codes look up a table of 16 values: IQ4_NL, IQ4_XS, MXFP4, NVFP4. Decoders only.

Float32; each operation is rounded. Byte i of 16 (8 in NVFP4) packed bytes holds element i in its low half and element
16 + i (8 + i) in its high half.
"""

import numpy as np

from mtpref.spec.quants.sizes import F32, U8, half, nibbles

# ggml's kvalues_iq4nl.
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
# Twice the values of a 4-bit float with 2 exponent bits and 1 mantissa bit: exact integers.
FP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def decode_iq4_nl(blocks: U8) -> F32:
    """IQ4_NL: 32 values in 18 bytes: d float16, 16 packed bytes. y = d * IQ4_VALUES[code]."""
    return half(blocks, 0) * IQ4_VALUES[nibbles(blocks[:, 2:])]


def decode_iq4_xs(blocks: U8) -> F32:
    """IQ4_XS: 256 values in 136 bytes, 8 sub-blocks of 32.

    bytes 0..1     d          float16
    bytes 2..3     scales_h   upper two bits of scale j at bits 2 j and 2 j + 1
    bytes 4..7     scales_l   lower four bits: byte j / 2, low half for even j
    bytes 8..135   qs         16 packed bytes for each sub-block

    y = (d * (scale[j] - 32)) * IQ4_VALUES[code].
    """
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2").astype(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16)
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    scales = (low | ((high & 3) << 4)).astype(np.float32) - np.float32(32)
    values = IQ4_VALUES[nibbles(blocks[:, 8:].reshape(-1, 16))].reshape(-1, 8, 32)
    return ((half(blocks, 0) * scales)[:, :, None] * values).reshape(-1, 256)


def decode_mxfp4(blocks: U8) -> F32:
    """MXFP4: 32 values in 17 bytes: an 8-bit exponent e, 16 packed bytes. y = 2**(e - 128) * FP4_VALUES[code].

    2**(e - 128) is half of the format's 2**(e - 127), since the table is doubled; e = 255 (NaN in the standard) is
    2**127 here, as in ggml.
    """
    e = blocks[:, 0:1].astype(np.uint32)
    bits = np.where(e < 2, np.uint32(0x00200000) << e, (e - np.uint32(1)) << np.uint32(23))
    return bits.astype(np.uint32).view(np.float32) * FP4_VALUES[nibbles(blocks[:, 1:])]


def _ue4m3() -> F32:
    """Half the value of each unsigned float of 4 exponent bits (bias 7) and 3 mantissa bits; the top bit is ignored.

    0x7F (NaN) is 0, as in ggml.
    """
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)) / 2
    value[0x7F] = 0
    return value.astype(np.float32)


UE4M3_HALVES = _ue4m3()


def decode_nvfp4(blocks: U8) -> F32:
    """NVFP4: 64 values in 36 bytes: 4 scales (unsigned 8-bit floats), then 8 packed bytes for each 16 values.

    y = (scale[j] / 2) * FP4_VALUES[code], since the table is doubled.
    """
    scales = UE4M3_HALVES[blocks[:, 0:4]][:, :, None]
    values = FP4_VALUES[nibbles(blocks[:, 4:].reshape(-1, 8))].reshape(-1, 4, 16)
    return (scales * values).reshape(-1, 64)
