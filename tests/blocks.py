"""Random blocks of every quantised type, for tests: random codes, with scales of the test's choice."""

import numpy as np

from mtpref import spec
from mtpref.spec import quants

# Bytes at which a block's float16 scales lie (IQ1_M has its bits elsewhere, MXFP4 and NVFP4 have other scales).
HALVES: dict[str, tuple[int, ...]] = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ1_S": (0,), "IQ1_M": (), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,),
    "IQ4_NL": (0,), "IQ4_XS": (0,), "MXFP4": (), "NVFP4": (), "TQ1_0": (52,), "TQ2_0": (64,),
    "Q1_0": (0,), "Q2_0": (0,),
}  # fmt: skip
QUANTISED = tuple(HALVES)
BLOCK = {name: quants.TYPES[quants.TYPE_IDS[name]].block_elements for name in quants.DEQUANTIZABLE}


def random_bytes(rng: np.random.Generator, type_name: str, n_out: int, n_in: int) -> np.ndarray:
    return rng.integers(0, 256, (n_out, quants.row_bytes(type_name, n_in)), dtype=np.uint8)


def set_halves(raw: np.ndarray, type_name: str, halves: np.ndarray) -> None:
    """Put float16 values into the scales of all blocks in turn, each kind of scale from another start."""
    blocks = raw.reshape(-1, quants.TYPES[quants.TYPE_IDS[type_name]].block_bytes)
    for i, at in enumerate(HALVES[type_name]):
        values = np.resize(np.roll(halves.astype("<f2"), i), len(blocks))
        blocks[:, at : at + 2] = values.view(np.uint8).reshape(-1, 2)


def sane_blocks(rng: np.random.Generator, type_name: str, n_out: int, n_in: int, scale: float = 1.0) -> np.ndarray:
    """Random codes; finite scales of about `scale` / 100, one sign."""
    raw = random_bytes(rng, type_name, n_out, n_in)
    n_blocks = raw.size // quants.TYPES[quants.TYPE_IDS[type_name]].block_bytes
    set_halves(raw, type_name, (1e-2 * scale * (1 + rng.random(n_blocks))).astype(np.float16))
    blocks = raw.reshape(n_blocks, -1)
    if type_name == "IQ1_M":  # the upper four bits of the last four 16-bit words are the scale: 0x2000 is 0.0078
        blocks[:, 49:56:2] &= 0x0F
        blocks[:, 55] |= 0x20
    if type_name == "NVFP4":  # 0 .. 0.0625
        blocks[:, :4] &= 0x1F
    if type_name == "MXFP4":
        blocks[:, 0] = 118 + blocks[:, 0] % 8 + int(np.log2(scale))
    return raw


def sane_matrix(rng: np.random.Generator, type_name: str, n_out: int, n_in: int, scale: float = 1.0) -> spec.Matrix:
    """A matrix of any type: encoded normals for the floats, else `sane_blocks`."""
    if type_name in HALVES:
        raw = sane_blocks(rng, type_name, n_out, n_in, scale)
    else:
        raw = quants.quantize(type_name, scale * rng.standard_normal((n_out, n_in)))
    return spec.Matrix("w", type_name, n_out, n_in, raw.reshape(-1))
