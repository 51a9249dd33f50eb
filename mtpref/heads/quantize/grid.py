"""The grids of GGUF's simple types: a scale for each block of a row, and the nearest point to a value.

Owns the scales and the packing of codes; float64 in between, scales rounded to float16 as the format holds them. For
GPTQ, which rounds one column at a time and must know a block's scale before its first column. Codes are the nearest to
what the stored scale can say; ggml's own encoders divide by the scale before it is rounded, so one code in a hundred or
so differs.
Facts: ggml-quants.c (quantize_row_q4_0_ref, q4_1_ref, q8_0_ref) and ggml-common.h for the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
BLOCK = 32  # values that share a scale in the file
KINDS = ("Q4_0", "Q4_1", "Q8_0")


@dataclass(frozen=True)
class Grid:
    """kind: Q4_0, Q4_1 or Q8_0; group: columns that share a scale, a multiple of 32 (more than 32 for Q4_0 alone)"""

    kind: str
    group: int = BLOCK

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MtprefError(f"GPTQ: type {self.kind}, expected one of {', '.join(KINDS)}")
        if self.group % BLOCK or self.group < BLOCK or (self.group > BLOCK and self.kind != "Q4_0"):
            raise MtprefError(f"GPTQ: groups of {self.group} of {self.kind}, expected 32, or for Q4_0 a multiple of 32")

    def scales(self, w: F64) -> tuple[F64, F64]:
        """(d, m) of each row for a group of columns.

        Q4_0: d = -(the value of greatest magnitude) / 8, m = 0. Q4_1: d = (max - min) / 15, m = min.
        Q8_0: d = max |w| / 127, m = 0.
        Shapes   w: (n, group) -> (n,), (n,), rounded to float16
        """
        zero = np.zeros(len(w))
        if self.kind == "Q4_1":
            low, high = w.min(1), w.max(1)
            return _f16((high - low) / 15), _f16(low)
        greatest = np.take_along_axis(w, np.abs(w).argmax(1)[:, None], 1)[:, 0]
        return (_f16(greatest / -8), zero) if self.kind == "Q4_0" else (_f16(np.abs(greatest) / 127), zero)

    def nearest(self, w: F64, d: F64, m: F64) -> tuple[NDArray[np.int64], F64]:
        """(codes, values) of one column. Halves round up for the 4-bit types, away from 0 for Q8_0, as in ggml."""
        x = np.divide(w - m, d, out=np.zeros_like(w), where=d != 0)
        if self.kind == "Q8_0":
            codes = np.clip(np.sign(x) * np.floor(np.abs(x) + 0.5), -128, 127).astype(np.int64)
            return codes, codes * d
        if self.kind == "Q4_1":
            codes = np.clip(np.floor(x + 0.5), 0, 15).astype(np.int64)
            return codes, codes * d + m
        codes = np.clip(np.floor(x + 8.5), 0, 15).astype(np.int64)
        return codes, (codes - 8) * d

    def pack(self, codes: NDArray[np.int64], d: F64, m: F64) -> U8:
        """The file's bytes.

        Shapes   codes: (n, n_in); d, m: (n, n_in / group) -> (n, bytes of a row)
        """
        n, n_in = codes.shape
        repeat = self.group // BLOCK
        parts = [_half_bytes(np.repeat(d, repeat, axis=1))]
        blocks = codes.reshape(n, n_in // BLOCK, BLOCK)
        if self.kind == "Q8_0":
            parts.append(blocks.astype(np.int8).view(np.uint8))
        else:
            if self.kind == "Q4_1":
                parts.append(_half_bytes(np.repeat(m, repeat, axis=1)))
            parts.append((blocks[..., :16] | blocks[..., 16:] << 4).astype(np.uint8))
        return np.concatenate(parts, axis=2).reshape(n, -1)


def _f16(x: F64) -> F64:
    return x.astype(np.float16).astype(np.float64)


def _half_bytes(x: F64) -> U8:
    return np.ascontiguousarray(x.astype("<f2")).view(np.uint8).reshape(*x.shape, 2)
