"""8-bit floats of safetensors files as float32, exactly: a table of 256 values for each type.

Source: OCP 8-bit Floating Point Specification (E4M3, E5M2) and OCP Microscaling Formats (E8M0).
"""

import numpy as np
from numpy.typing import NDArray


def _small_float(n_exponent: int, n_mantissa: int) -> NDArray[np.float32]:
    """Sign, exponent, mantissa; subnormal where the exponent is 0. What stands for infinity and NaN is the caller's."""
    code = np.arange(256)
    mantissa, exponent = code & ((1 << n_mantissa) - 1), (code >> n_mantissa) & ((1 << n_exponent) - 1)
    is_normal = exponent > 0
    bias = (1 << (n_exponent - 1)) - 1
    size = np.ldexp(mantissa + np.where(is_normal, 1 << n_mantissa, 0), np.maximum(exponent, 1) - bias - n_mantissa)
    return np.where(code & 0x80, -size, size).astype(np.float32)


def _e4m3() -> NDArray[np.float32]:
    """E4M3 "fn": no infinity, the largest is 448, NaN where all bits below the sign are set."""
    table = _small_float(4, 3)
    table[[0x7F, 0xFF]] = np.nan
    return table


def _e5m2() -> NDArray[np.float32]:
    """E5M2: the upper half of a float16."""
    return np.asarray((np.arange(256, dtype=np.uint16) << np.uint16(8)).view(np.float16).astype(np.float32))


def _e8m0() -> NDArray[np.float32]:
    """E8M0: 2**(code - 127); 255 is NaN."""
    table = np.ldexp(np.float64(1), np.arange(256).clip(0, 254) - 127).astype(np.float32)
    table[255] = np.nan
    return table


FLOAT8 = {"F8_E4M3": _e4m3(), "F8_E5M2": _e5m2(), "F8_E8M0": _e8m0()}
