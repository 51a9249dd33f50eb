"""Plain-read bandwidth: how fast the same threads only read memory. The yardstick of decoding, which reads all weights.

Owns one kernel and its timing. With NUMBA_DISABLE_JIT=1 there is nothing to measure.
"""

import time

import numpy as np

from mtpref import kernels

N_BYTES = 512 << 20


def read_gb_per_second(n_bytes: int = N_BYTES, n_rounds: int = 5) -> float | None:
    """Gigabytes (1e9 bytes) a second: the best of some reads of n_bytes that no cache holds; None without kernels."""
    if not kernels.available():
        return None
    memory = np.ones(n_bytes // 8, np.int64)
    kernels.read_all(memory)
    best = float("inf")
    for _ in range(n_rounds):
        start = time.perf_counter()
        kernels.read_all(memory)
        best = min(best, time.perf_counter() - start)
    return memory.nbytes / best / 1e9
