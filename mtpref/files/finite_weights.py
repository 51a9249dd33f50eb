"""`--check-tensors`: the first NaN or infinity among the weights, named by tensor, place and field.

Owns which fields of which type are floats: values of float types, scales of quantised ones. The integers of a block
are never wrong by themselves. Reads a tensor piece by piece and gives its memory back.
Source: ggml_validate_row_data in ggml/src/ggml-quants.c, block structures in ggml/src/ggml-common.h.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import GgufFile, TensorInfo
from mtpref.spec.quants import TYPES

U8 = NDArray[np.uint8]
Bad = NDArray[np.bool_]
PIECE = 1 << 22  # bytes looked at together


@dataclass(frozen=True)
class _Field:
    """A float in each block: its name, first byte, bytes, and which encodings of it are no finite number."""

    name: str
    at: int
    size: int
    is_bad: Callable[[U8], Bad]  # (n, size) bytes -> (n,)


def _bad_f16(raw: U8) -> Bad:
    return (_words(raw, "<u2") & 0x7C00) == 0x7C00


def _bad_bf16(raw: U8) -> Bad:
    return (_words(raw, "<u2") & 0x7F80) == 0x7F80


def _bad_f32(raw: U8) -> Bad:
    return (_words(raw, "<u4") & 0x7F800000) == 0x7F800000


def _bad_f64(raw: U8) -> Bad:
    top = np.uint64(0x7FF0000000000000)
    return np.asarray((_words(raw, "<u8") & top) == top)


def _bad_e8m0(raw: U8) -> Bad:
    """E8M0: a power of two by its exponent; 255 is NaN."""
    return raw[:, 0] == 0xFF


def _bad_iq1_m(raw: U8) -> Bad:
    """IQ1_M keeps a float16 in the upper four bits of its four 16-bit scale words; its exponent is bits 10 to 14."""
    words = np.ascontiguousarray(raw).view("<u2")
    scale = (words[:, 0] >> 12) | ((words[:, 1] >> 8) & 0xF0) | ((words[:, 2] >> 4) & 0xF00) | (words[:, 3] & 0xF000)
    return (scale & 0x7C00) == 0x7C00


def _words(raw: U8, dtype: str) -> NDArray:
    return np.ascontiguousarray(raw).view(dtype)[:, 0]


def _d(at: int) -> tuple[_Field, ...]:
    return (_Field("scale d", at, 2, _bad_f16),)


def _d_and(name: str, at: int) -> tuple[_Field, ...]:
    return (*_d(at), _Field(name, at + 2, 2, _bad_f16))


# Type -> the floats of its blocks. NVFP4's scales and integer types have no encoding of NaN or infinity.
FIELDS: dict[str, tuple[_Field, ...]] = {
    "F32": (_Field("value", 0, 4, _bad_f32),),
    "F16": (_Field("value", 0, 2, _bad_f16),),
    "BF16": (_Field("value", 0, 2, _bad_bf16),),
    "F64": (_Field("value", 0, 8, _bad_f64),),
    "Q1_0": _d(0),
    "Q2_0": _d(0),
    "Q4_0": _d(0),
    "Q4_1": _d_and("minimum m", 0),
    "Q5_0": _d(0),
    "Q5_1": _d_and("minimum m", 0),
    "Q8_0": _d(0),
    "Q2_K": _d_and("minimum scale dmin", 80),
    "Q3_K": _d(108),
    "Q4_K": _d_and("minimum scale dmin", 0),
    "Q5_K": _d_and("minimum scale dmin", 0),
    "Q6_K": _d(208),
    "Q8_K": (_Field("scale d", 0, 4, _bad_f32),),
    "TQ1_0": _d(52),
    "TQ2_0": _d(64),
    "IQ2_XXS": _d(0),
    "IQ2_XS": _d(0),
    "IQ2_S": _d(0),
    "IQ3_XXS": _d(0),
    "IQ3_S": _d(0),
    "IQ1_S": _d(0),
    "IQ1_M": (_Field("scale d", 48, 8, _bad_iq1_m),),
    "IQ4_NL": _d(0),
    "IQ4_XS": _d(0),
    "MXFP4": (_Field("scale e", 0, 1, _bad_e8m0),),
}


def check_tensors(file: GgufFile, names: Iterable[str]) -> int:
    """Look at every float of the tensors; gives the bytes read.

    Errors   MtprefError that names the first tensor (in the order given) with a NaN or infinity, the row, the values,
             the field, and how many more such fields that tensor has
    Cost     one pass over the tensors' bytes; memory for one piece of PIECE bytes, whatever their size
    """
    n_bytes = 0
    for name in names:
        info = file.tensors[name]
        if info.type_name in FIELDS:
            _check(file, info)
            n_bytes += info.n_bytes
    return n_bytes


def _check(file: GgufFile, info: TensorInfo) -> None:
    block_bytes, fields = TYPES[info.type_id].block_bytes, FIELDS[info.type_name]
    blocks = file.data(info).reshape(-1, block_bytes)
    step = max(1, PIECE // block_bytes)
    first: tuple[int, _Field, bytes] | None = None
    n_bad = 0
    for start in range(0, len(blocks), step):
        piece = blocks[start : start + step]
        for field in fields:
            raw = piece[:, field.at : field.at + field.size]
            bad = field.is_bad(raw)
            if not bad.any():
                continue
            n_bad += int(np.count_nonzero(bad))
            i = int(bad.argmax())
            if first is None or start + i < first[0]:
                first = (start + i, field, raw[i].tobytes())
    file.release(info)
    if first is not None:
        raise MtprefError(_line(file, info, *first, n_bad))


def _line(file: GgufFile, info: TensorInfo, block: int, field: _Field, raw: bytes, n_bad: int) -> str:
    block_elements = TYPES[info.type_id].block_elements
    row, column = divmod(block * block_elements, info.shape[-1])
    place = f"row {row}, " if len(info.shape) > 1 else ""
    if block_elements == 1:
        place += f"value {column}"
    else:
        place += f"block {column // block_elements} (values {column} .. {column + block_elements - 1})"
    more = f", and {n_bad - 1} more in this tensor" if n_bad > 1 else ""
    return (
        f"{file.label}: tensor {info.name} ({info.type_name}): {place}: {field.name} is {_name(field, raw)}, expected "
        f"a finite number{more}; was it converted so? convert it again, or compare its checksum and download it again"
    )


def _name(field: _Field, raw: bytes) -> str:
    """NaN or infinity, by the bits below the exponent."""
    if field.is_bad is _bad_e8m0:
        return "NaN"
    if field.is_bad is _bad_iq1_m:
        w = np.frombuffer(raw, "<u2")
        value = int(w[0] >> 12 | w[1] >> 8 & 0xF0 | w[2] >> 4 & 0xF00)
        return "NaN" if value & 0x3FF else "infinite"
    mantissas: dict[Callable[[U8], Bad], int] = {
        _bad_f16: (1 << 10) - 1, _bad_bf16: (1 << 7) - 1, _bad_f32: (1 << 23) - 1, _bad_f64: (1 << 52) - 1
    }  # fmt: skip
    return "NaN" if int.from_bytes(raw, "little") & mantissas[field.is_bad] else "infinite"
