"""FP4 (E2M1) with a scale for 32 values (MXFP4) or for 16, times one for the matrix (NVFP4); two codes in a byte.

MXFP4   value = FP4 * 2**(e - 127), exact: DeepSeek-V4's experts, MiMo's, compressed-tensors' mxfp4-pack-quantized
NVFP4   value = FP4 * s in float32, s = scale / global (compressed-tensors) or scale * scale_2 (Model-Optimizer)

Source: compressed_tensors compressors/nvfp4 and mxfp4; Model-Optimizer; llama.cpp conversion (repack_mxfp4_blocks).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtpref.heads.hf.formats.bits import FP4, mxfp4, nibbles
from mtpref.heads.hf.formats.raw import Index, Raw
from mtpref.heads.hf.formats.scaled import e8m0
from mtpref.heads.hf.formats.stored import Decoded


class MxFp4(Decoded):
    """sources: codes (rows, values / 2) and scales (rows, values / 32), E8M0 or U8"""

    def rows(self, index: Index) -> NDArray:
        codes, scale = self.sources[:2]
        found = self.raw.finite(scale, e8m0(self.raw, scale, self.raw.rows(scale, index)))
        x = FP4[nibbles(self.raw.codes(codes, index), self.shape[-1])]
        with np.errstate(over="ignore"):
            x *= np.repeat(found, 32, axis=1)
        return x

    def keeps(self) -> str | None:
        return "MXFP4"

    def blocks(self, index: Index) -> NDArray[np.uint8]:
        codes, scale = self.sources[:2]
        exponents = self.raw.codes(scale, index).view(np.uint8)
        self.raw.finite(scale, np.where(exponents == 255, np.float32(np.nan), np.float32(1)))
        return mxfp4(nibbles(self.raw.codes(codes, index), self.shape[-1]), exponents)


class NvFp4(Decoded):
    """sources: codes, scales (rows, values / 16) of E4M3, the matrix's own; is_divided: by it, not times it"""

    def __init__(
        self, raw: Raw, name: str, sources: tuple[str, ...], shape: tuple[int, ...], kind: str, *, is_divided: bool
    ) -> None:
        super().__init__(raw, name, sources, shape, kind)
        self.is_divided = is_divided

    def rows(self, index: Index) -> NDArray:
        codes, scale, whole = self.sources[:3]
        own = self.raw.finite(whole, self.raw.values(whole)).reshape(-1)[0]
        found = self.raw.finite(scale, self.raw.rows(scale, index))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found = self.raw.finite(whole, found / own if self.is_divided else found * own)
        x = FP4[nibbles(self.raw.codes(codes, index), self.shape[-1])]
        x *= np.repeat(found, 16, axis=1)
        return x
