"""Measure the matrix products: weights in place beside weights laid out anew, alternated, with plain-read bandwidth.

Usage: python tools/bench_kernels.py [-t N] [--types Q8_0,Q4_K] [--tokens 1,2,4,8,128] [--shape ROWSxCOLUMNS]
       [--rounds N]

Prints a table: for each type and number of tokens, the median of --rounds runs of either way as multiply-adds per
nanosecond (GMAC/s) and as bytes of raw weights per nanosecond (GB/s), their ratio, and the share of plain-read
bandwidth: what the same threads reach when they only read as much memory, measured between the runs.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from mtpref import kernels, spec
from mtpref.kernels.compiling import compile
from mtpref.spec import quants

# Where d and dmin lie in the blocks of types without an encoder.
HALVES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
DEFAULT_TYPES = "Q8_0,Q4_0,Q4_K,Q5_K,Q6_K,F16,BF16,F32"


def random_matrix(type_name: str, n_out: int, n_in: int) -> spec.Matrix:
    """A few random rows, repeated; random codes with a scale of 1 / 64 where there is no encoder."""
    rng = np.random.default_rng(1)
    few = min(n_out, 64)
    if type_name in HALVES:
        n_bytes = quants.row_bytes(type_name, 256)
        blocks = rng.integers(0, 256, (few * n_in // 256, n_bytes), np.uint8)
        for start in HALVES[type_name]:
            blocks[:, start : start + 2] = np.array([1 / 64], np.float16).view(np.uint8)
        rows = blocks.reshape(few, -1)
    else:
        rows = quants.quantize(type_name, rng.standard_normal((few, n_in)).astype(np.float32)).reshape(few, -1)
    raw = np.resize(rows.view(np.uint8), (n_out, rows.view(np.uint8).shape[1]))
    return spec.Matrix("w", type_name, n_out, n_in, raw.reshape(-1))


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(type_name: str, shape: tuple[int, int], tokens: list[int], rounds: int) -> None:
    w = random_matrix(type_name, *shape)
    packed = kernels.pack([w])[0]
    pack_s = statistics.median(seconds(lambda: kernels.pack([w])) for _ in range(3))
    has_panels = packed is not w
    memory = np.ones(max(w.raw.size, 1 << 26) // 8, np.int64)
    kernels.read_all(memory)
    for n_tokens in tokens:
        x = np.random.default_rng(2).standard_normal((n_tokens, shape[1])).astype(np.float32)
        same = np.array_equal(kernels.mul_mat_ggml(w, x).view(np.int32), kernels.mul_mat_ggml(packed, x).view(np.int32))
        old, new, read = [], [], []
        for _ in range(rounds):
            old.append(seconds(lambda: kernels.mul_mat_ggml(w, x)))  # noqa: B023
            if has_panels:
                new.append(seconds(lambda: kernels.mul_mat_ggml(packed, x)))  # noqa: B023
            read.append(seconds(lambda: kernels.read_all(memory)))
        read_gb = memory.nbytes / statistics.median(read) / 1e9
        line = f"{type_name:5} {n_tokens:4}  read {read_gb:5.1f} GB/s "
        macs = shape[0] * shape[1] * n_tokens / 1e9
        for name, times in (("in place", old), ("panels", new)):
            if times:
                s = statistics.median(times)
                gb = w.raw.size / s / 1e9
                line += f" | {name} {macs / s:6.1f} GMAC/s {gb:5.1f} GB/s {100 * gb / read_gb:4.0f} %"
        if new:
            line += f" | x {statistics.median(old) / statistics.median(new):.2f} | bits {'same' if same else 'DIFFER'}"
        print(line, flush=True)
    if has_panels:
        size = w.raw.size / 1e9
        print(f"{type_name:5} pack  {1000 * size:.0f} MB in {pack_s:.3f} s: {pack_s / size:.2f} s per GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-t", "--threads", type=int, default=kernels.n_threads())
    parser.add_argument("--types", default=DEFAULT_TYPES)
    parser.add_argument("--tokens", default="1,2,4,8,128")
    parser.add_argument("--shape", default="65536x2048", help="rows x columns (default: 65536x2048)")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    kernels.set_threads(args.threads)
    n_threads = compile.start_threads()
    n_out, n_in = map(int, args.shape.split("x"))
    print(f"{n_out} x {n_in}, {n_threads} threads, {kernels.effective_target()[1]}, medians of {args.rounds}")
    for type_name in args.types.split(","):
        measure(type_name, (n_out, n_in), [int(t) for t in args.tokens.split(",")], args.rounds)


if __name__ == "__main__":
    main()
