"""Matrices in the formats of quantised checkpoints: BF16, FP8 in blocks, INT4 in groups. The reverse of hf/formats.

INT4 (compressed-tensors pack-quantized, symmetric): d = max |w| of a group / 7.5 in the scale's type, code =
round(w / d), halves to even, -8 .. 7, stored + 8, eight in a word of 32 bits from the lowest. FP8: d = max |w| of a
block / 448 (E8M0: the power of two above), code = the nearest E4M3 to w / d, halves to even.
Source: compressed_tensors quantization/utils/helpers.py (calculate_qparams) and compressors/pack_quantized;
DeepSeek-V3's fp8_cast; tests/test_into_hf.py has the library as a witness.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.files.tensor_files.float8 import FLOAT8
from mtpref.heads.hf.formats.bits import fits_f16
from mtpref.heads.hf.formats.bits import q4_0 as q4_0_blocks
from mtpref.spec import Matrix

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Kind = Literal["bf16", "fp8-block", "w4a16"]
Parts = dict[str, NDArray]  # what follows the module's name -> array, of BF16 and 8-bit floats the bits
EPS = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 2.0**-23}  # of a group of zeros, as the library has it
HIGHEST = np.float32(448.0)
ROWS = 1 << 20  # values that are encoded at a time, in whole blocks of rows


@dataclass(frozen=True)
class Format:
    """How a matrix is stored.

    group         of w4a16: columns with one scale    block: of fp8-block, rows and columns
    scale         what follows the module's name      scale_dtype: BF16, F16, F32, of fp8-block also F8_E8M0
    shape_dtype   of weight_shape: I64 or I32
    """

    kind: Kind
    group: int = 0
    block: tuple[int, int] = (128, 128)
    scale: str = "weight_scale"
    scale_dtype: str = "BF16"
    shape_dtype: str = "I64"

    def words(self) -> str:
        """As a line tells it."""
        if self.kind == "w4a16":
            return f"INT4 in groups of {self.group}"
        return f"FP8 in blocks of {self.block[0]}x{self.block[1]}" if self.kind == "fp8-block" else "BF16"

    def check(self, name: str, shape: tuple[int, int]) -> None:
        """Errors: MtprefError where groups do not divide the rows."""
        if self.kind == "w4a16" and shape[1] % self.group:
            raise MtprefError(
                f"{name}: rows of {shape[1]} values, expected a multiple of the group of {self.group}; try "
                "`group_size` 32, or `head_type` bf16"
            )

    def layout(self, shape: tuple[int, int]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The parts of a matrix: what follows the module's name -> type and shape."""
        n_row, n = shape
        if self.kind == "bf16":
            return {"weight": ("BF16", shape)}
        if self.kind == "fp8-block":
            grid = (-(-n_row // self.block[0]), -(-n // self.block[1]))
            return {"weight": ("F8_E4M3", shape), self.scale: (self.scale_dtype, grid)}
        return {
            "weight_packed": ("I32", (n_row, -(-n // 8))),
            self.scale: (self.scale_dtype, (n_row, n // self.group)),
            "weight_shape": (self.shape_dtype, (2,)),
        }

    def step(self, n_column: int) -> int:
        """Rows that are encoded at a time."""
        down = self.block[0] if self.kind == "fp8-block" else 1
        return max(1, ROWS // (n_column * down)) * down


def bf16_bits(x: NDArray) -> NDArray[np.uint16]:
    """The nearest BF16, halves to even; what is no number stays none."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), bits >> np.uint32(16) | np.uint32(0x40), rounded).astype(np.uint16)


def stored_scale(scale: NDArray, dtype: str) -> tuple[NDArray, F32]:
    """(scales as a type holds them, their values)."""
    if dtype == "BF16":
        bits = bf16_bits(scale)
        return bits, (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "F8_E8M0":
        exponents = np.ceil(np.log2(scale.astype(np.float64))).clip(-127, 127).astype(np.int64)
        return (exponents + 127).astype(np.uint8), np.ldexp(np.float32(1), exponents).astype(np.float32)
    kept = scale.astype({"F16": np.float16, "F32": np.float32}[dtype])
    return kept, kept.astype(np.float32)


def encode(form: Format, rows: Iterator[F32], shape: tuple[int, int], name: str = "matrix") -> Parts:
    """A matrix in a format, rounded to nearest.

    rows     the matrix from above, in pieces of form.step rows
    Shapes   as form.layout
    Errors   MtprefError for NaN or infinity
    """
    pieces: list[Parts] = []
    for x in rows:
        if not np.isfinite(x).all():
            raise MtprefError(f"{name}: holds NaN or infinity, expected finite weights; download the original again")
        if form.kind == "bf16":
            pieces.append({"weight": bf16_bits(x)})
        elif form.kind == "fp8-block":
            pieces.append(_fp8(form, x))
        else:
            kept, scale = int4_scales(form, x)
            codes = np.rint(x / np.repeat(scale, form.group, axis=1)).clip(-8, 7)
            pieces.append({"weight_packed": pack_int4(codes.astype(np.int64)), form.scale: kept})
    made = {part: np.concatenate([piece[part] for piece in pieces]) for part in pieces[0]}
    return made | shape_part(form, shape)


def shape_part(form: Format, shape: tuple[int, int]) -> Parts:
    if form.kind != "w4a16":
        return {}
    return {"weight_shape": np.array(shape, {"I64": "<i8", "I32": "<i4"}[form.shape_dtype])}


def int4_scales(form: Format, x: NDArray) -> tuple[NDArray, F32]:
    """The scales of each row's groups, as they are stored and as values."""
    greatest = np.abs(x.reshape(len(x), -1, form.group)).max(-1).astype(np.float32)
    kept, scale = stored_scale(greatest / np.float32(7.5), form.scale_dtype)
    empty = scale == 0
    if empty.any():
        kept, scale = stored_scale(np.where(empty, np.float32(EPS[form.scale_dtype]), scale), form.scale_dtype)
    return kept, scale


def pack_int4(codes: I64) -> NDArray[np.int32]:
    """(rows, n) codes of -8 .. 7 -> (rows, ceil(n / 8)) words; what is beyond n is 0 bits."""
    n_row, n = codes.shape
    wide = np.zeros((n_row, -(-n // 8) * 8), np.uint8)
    wide[:, :n] = codes + 8
    return np.ascontiguousarray(wide[:, 0::2] | wide[:, 1::2] << np.uint8(4)).view("<i4")


def _fp8(form: Format, x: F32) -> Parts:
    down, across = form.block
    n_row, n = x.shape
    padded = np.zeros((-(-n_row // down) * down, -(-n // across) * across), np.float32)
    padded[:n_row, :n] = np.abs(x)
    greatest = padded.reshape(-1, down, padded.shape[1] // across, across).max((1, 3))
    greatest = np.where(greatest == 0, np.float32(HIGHEST), greatest)  # a block of zeros: the scale is 1
    kept, scale = stored_scale(greatest / HIGHEST, form.scale_dtype)
    scaled = x / np.repeat(np.repeat(scale, down, 0), across, 1)[:n_row, :n]
    return {"weight": e4m3(scaled), form.scale: kept}


_POSITIVE = FLOAT8["F8_E4M3"][:127].astype(np.float64)  # rising: codes 0 .. 126
_BETWEEN = (_POSITIVE[1:] + _POSITIVE[:-1]) / 2


def e4m3(x: F32) -> NDArray[np.uint8]:
    """The nearest E4M3, halves to the even code, what is larger the largest."""
    size = np.abs(x).astype(np.float64)
    low = np.searchsorted(_BETWEEN, size, side="left")  # a half goes down ...
    high = np.searchsorted(_BETWEEN, size, side="right")  # ... or up
    code = np.where(low % 2 == 0, low, high).astype(np.uint8)
    return np.where(np.signbit(x), code | np.uint8(0x80), code)


# FOR GPTQ


@dataclass(frozen=True)
class Int4Grid:
    """The grid of w4a16 as GPTQ takes it."""

    form: Format

    @property
    def group(self) -> int:
        return self.form.group

    def scales(self, w: F64) -> tuple[F64, F64]:
        _, scale = int4_scales(self.form, w)
        return scale[:, 0].astype(np.float64), np.zeros(len(w))

    def nearest(self, w: F64, d: F64, m: F64) -> tuple[I64, F64]:
        # In float32, as `encode`: the largest of a group is 7.5 scales, half between two codes.
        codes = np.rint(w.astype(np.float32) / d.astype(np.float32)).clip(-8, 7).astype(np.int64)
        return codes, codes * d

    def parts(self, codes: I64, d: F64) -> Parts:
        """The parts that a file holds of codes and scales."""
        kept, _ = stored_scale(d.astype(np.float32), self.form.scale_dtype)  # exact: they are such values
        made = {"weight_packed": pack_int4(codes), self.form.scale: kept}
        return made | shape_part(self.form, (codes.shape[0], codes.shape[1]))

    def matrix(self, name: str, codes: I64, d: F64) -> Matrix:
        """The very values as the engine takes them: Q4_0 where its blocks hold them, else F32."""
        scale = d.astype(np.float32)
        if self.group % 32 == 0 and fits_f16(scale):
            raw = q4_0_blocks((codes + 8).astype(np.uint8), np.repeat(scale, self.group // 32, axis=1))
            return Matrix(name, "Q4_0", len(codes), codes.shape[1], raw.reshape(-1))
        values = codes.astype(np.float32) * np.repeat(scale, self.group, axis=1)
        return Matrix(name, "F32", len(codes), codes.shape[1], values.view(np.uint8).reshape(-1))
