"""L0: the blocks of each weight type and their float32 values, bit for bit."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from golden.streams import bell, stream
from mtpref.golden.build import SuiteBuilder, exact
from mtpref.golden.format import Tensor
from mtpref.spec import quants
from mtpref.spec.quants import TYPE_IDS, TYPES

# Where a block of each quantised type holds float16 scales: byte offsets.
SCALES: dict[str, tuple[int, ...]] = {
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
MADE = ("F16", "BF16", *SCALES)
N_BLOCKS = 12


def random_blocks(type_name: str, name: str = "dequantize") -> NDArray[np.uint8]:
    """Random bytes, with scales of ordinary size where the type has float16 scales."""
    kind = TYPES[TYPE_IDS[type_name]]
    n_bytes = N_BLOCKS * kind.block_bytes
    raw = stream(f"{name}/{type_name}/bytes", n_bytes // 8 + 1).view(np.uint8)[:n_bytes].copy()
    blocks = raw.reshape(N_BLOCKS, kind.block_bytes)
    for offset in SCALES.get(type_name, ()):
        scale = bell(f"{name}/{type_name}/scale{offset}", (N_BLOCKS,), 0.05).astype(np.float16)
        blocks[:, offset : offset + 2] = scale.view(np.uint8).reshape(N_BLOCKS, 2)
    return blocks


def edge_blocks(type_name: str) -> NDArray[np.uint8]:
    """All bits 0, 1 and alternating, under scales of 1, -0, the smallest subnormal and the largest float16."""
    kind = TYPES[TYPE_IDS[type_name]]
    blocks = np.empty((12, kind.block_bytes), np.uint8)
    for i, (fill, scale) in enumerate((f, s) for f in (0x00, 0xFF, 0xA5) for s in (0x3C00, 0x8000, 0x0001, 0x7BFF)):
        blocks[i] = fill
        for offset in SCALES[type_name]:
            blocks[i, offset : offset + 2] = np.array([scale], np.uint16).view(np.uint8)
    return blocks


def suite_of(type_name: str) -> SuiteBuilder:
    suite = SuiteBuilder("L0", type_name.lower(), "dequantize", ("S5",), f"Blocks of {type_name} as float32 values.")
    kind = TYPES[TYPE_IDS[type_name]]
    for id, comment, blocks in _blocks(type_name):
        q = Tensor(type_name, (len(blocks), kind.block_elements), np.ascontiguousarray(blocks).reshape(-1))
        wanted = quants.dequantize(type_name, q.raw, q.shape).reshape(q.shape)
        flags = ["basic"] if id == "random" else ["edge.block"]
        need = [type_name.lower()]
        suite.case(id, comment, inputs={"q": q}, out={"x": exact(wanted)}, flags=flags, requires=need)
    return suite


def _blocks(type_name: str) -> Iterator[tuple[str, str, NDArray[np.uint8]]]:
    if type_name in SCALES:
        yield "random", "random codes, scales of ordinary size", random_blocks(type_name)
        yield "edges", "all bits 0, 1 and alternating, under extreme scales", edge_blocks(type_name)
        return
    bits = np.arange(0, 1 << 16, 251, dtype=np.uint32).astype(np.uint16)  # 262 patterns of every exponent
    finite = bits[np.isfinite(quants.dequantize(type_name, bits.view(np.uint8), bits.shape))]
    yield "random", "bit patterns of every exponent", finite.view(np.uint8).reshape(-1, 2)


def suites() -> Iterator[SuiteBuilder]:
    for type_name in MADE:
        yield suite_of(type_name)
