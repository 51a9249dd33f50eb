"""Every tensor type that ggml defines: id, name, size of a block; and what the decoders share."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtpref.base.errors import UnsupportedError

U8 = npt.NDArray[np.uint8]
I8 = npt.NDArray[np.int8]
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
7 Q5_1 32 24 | 8 Q8_0 32 34 | 9 Q8_1 32 36 | 10 Q2_K 256 84 | 11 Q3_K 256 110
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


def type_of(type_name: str) -> QuantType:
    """The type of that name. MtprefError when there is none."""
    type_id = TYPE_IDS.get(type_name)
    if type_id is None:
        raise UnsupportedError(f"tensor type {type_name}: unknown, expected a ggml name such as F32, Q8_0 or Q4_K")
    return TYPES[type_id]


def blocks_of(type_name: str, raw: U8) -> U8:
    """The bytes of whole blocks as (n_blocks, block_bytes)."""
    return raw.reshape(-1, TYPES[TYPE_IDS[type_name]].block_bytes)


def half(blocks: U8, at: int) -> F32:
    """The little-endian float16 at byte `at` of each block, as (n_blocks, 1) float32; exact."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def nibbles(packed: U8) -> U8:
    """(n, m) bytes -> (n, 2 m): the low halves, then the high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def bits_of(packed: U8) -> U8:
    """(n, m) bytes -> (n, 8 m) bits, each byte's lowest first."""
    return np.unpackbits(np.ascontiguousarray(packed), axis=1, bitorder="little")
