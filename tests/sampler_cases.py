"""Inputs of the comparison with llama.cpp's samplers: rows of logits from seeds, and chains of filters."""

from typing import NamedTuple

import numpy as np

from tests.random_weights import bits, normal

DEFAULT = (("top_k", 40), ("top_p", 0.95), ("min_p", 0.05), ("temperature", 0.8))
CHAINS = (
    DEFAULT,
    tuple(reversed(DEFAULT)),
    (("temperature", 2.0), ("min_p", 0.1), ("top_p", 0.8)),
    (("top_p", 0.7), ("top_k", 5)),
    (("min_p", 0.3), ("temperature", 0.3)),
    (("top_k", 1),),
    (("top_p", 0.0),),
    (("temperature", 0.5), ("top_k", 20), ("top_p", 0.9)),
    (("min_p", 1.0),),
    (("top_k", 7), ("temperature", 10.0), ("top_p", 0.5)),
)


class Case(NamedTuple):
    """tied: several logits are equal, so that which of them is kept is the engine's own choice."""

    name: str
    logits: np.ndarray
    chain: tuple[tuple[str, float], ...]
    tied: bool


def cases() -> list[Case]:
    """Every chain on rows of several lengths (llama.cpp sorts above 1024 in another way) and scales, and on ties."""
    found = []
    for i, chain in enumerate(CHAINS):
        for n in (2, 9, 200, 1500, 5000):
            for scale in (0.05, 1.0, 3.0, 12.0):
                row = (normal(n, f"logits {scale}", n) * scale).astype(np.float32)
                found.append(Case(f"chain{i}.n{n}.scale{scale:g}", row, chain, False))
        for n, levels in ((6, 2), (300, 40)):
            row = (bits(n, "levels", n) % np.uint64(levels)).astype(np.float32) * np.float32(0.25)
            found.append(Case(f"chain{i}.ties{n}", row, chain, True))
    return found
