"""Types whose codes look up long tables of grid points: IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S.

The tables are llama.cpp's, thousands of numbers found by search. The `gguf` package publishes and maintains them, so
its decoders serve here; it is imported when such a tensor is first decoded.
"""

from mtpref.base.errors import MtprefError
from mtpref.spec.quants.sizes import F32, U8

GRID_TYPES = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")


def decode_grid(type_name: str, blocks: U8) -> F32:
    """(n_blocks, block_bytes) -> (n_blocks, 256) float32, as gguf.quants.dequantize gives them."""
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError:
        raise MtprefError(
            f"tensor type {type_name}: its tables come with the gguf package, which is not installed; "
            "try: pip install gguf, or requantise the file, for example with llama-quantize to Q4_K_M"
        ) from None
    # One row, so that gguf decodes all blocks in one go instead of sixteen at a time.
    return dequantize(blocks.reshape(1, -1), GGMLQuantizationType[type_name]).reshape(len(blocks), -1)
