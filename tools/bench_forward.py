"""Measure a forward pass of a model: which kernel takes how much of it, and what Python takes between them.

Usage: python tools/bench_forward.py -m MODEL [-t N] [--tokens 1,2,4,8,512] [--past N] [--rounds N] [--python]

For each number of tokens T, --rounds passes of T tokens after --past cells. Prints the median pass, then the median
time in each kernel that takes a hundredth of it or more, and in everything else. A pass of 2 to 16 tokens keeps the
recurrent state of each token, as a verify pass does, and computes all logits; a longer one the last, and one row of
logits. A kernel that calls others counts as one.
"""

import argparse
import cProfile
import pstats
import statistics
import time
from collections import defaultdict
from typing import Any

import mtpref
from mtpref import kernels
from mtpref.engine.model import Model

MOST_VERIFIED = 16


class Stopwatch:
    """Counts the calls that Python makes of each kernel, and adds up their seconds."""

    def __init__(self) -> None:
        from mtpref.kernels.compiling.compile import Kernel

        self.found: dict[str, list[float]] = defaultdict(list)
        run = Kernel.__call__

        def timed(kernel: Kernel, *args: Any) -> Any:
            start = time.perf_counter()
            result = run(kernel, *args)
            self.found[kernel.dispatcher.py_func.__name__].append(time.perf_counter() - start)
            return result

        Kernel.__call__ = timed  # type: ignore[assignment,method-assign]


def measure(model: Model, watch: Stopwatch, n_tokens: int, n_past: int, rounds: int, python: bool) -> None:
    is_verify = n_tokens <= MOST_VERIFIED
    n_logits, keep = (n_tokens, n_tokens) if is_verify else (1, 1)
    ids = [(7919 * i) % model.n_vocab for i in range(max(n_past, n_tokens))]
    state = model.new_state(n_past + n_tokens + 1)
    if n_past:
        model.trunk(state, ids[:n_past], n_logits=0)
    before = state.checkpoint()
    whole: list[float] = []
    parts: dict[str, list[float]] = defaultdict(list)
    calls: dict[str, int] = {}
    profiler = cProfile.Profile()
    for n in range(rounds + 1):
        state.restore(before)
        watch.found.clear()
        if python and n:
            profiler.enable()
        start = time.perf_counter()
        model.trunk(state, ids[:n_tokens], n_logits=n_logits, keep=keep)
        seconds = time.perf_counter() - start
        profiler.disable()
        if n:  # the first pass may wait for the compiler
            whole.append(seconds)
            inside = 0.0
            for name, times in watch.found.items():
                parts[name].append(sum(times))
                calls[name] = len(times)
                inside += sum(times)
            parts["all else"].append(seconds - inside)
    total = statistics.median(whole)
    print(f"T {n_tokens}: {1000 * total:.2f} ms ({1000 * min(whole):.2f} .. {1000 * max(whole):.2f})")
    for name, seconds in sorted(
        ((name, statistics.median(times)) for name, times in parts.items()), key=lambda p: -p[1]
    ):
        if seconds >= total / 100:
            often = f"{calls[name]:4} calls" if name in calls else ""
            print(f"  {name:24} {1000 * seconds:9.2f} ms {100 * seconds / total:5.1f} %  {often}".rstrip())
    if python:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-t", "--threads", type=int, default=kernels.n_threads())
    parser.add_argument("--tokens", default="1,2,4,8,512")
    parser.add_argument("--past", type=int, default=64, help="cells before the pass (default: 64)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--python", action="store_true", help="print where Python spends its time, too")
    args = parser.parse_args()
    kernels.set_threads(args.threads)
    model = mtpref.load(args.model).core
    watch = Stopwatch()
    print(
        f"{args.threads} threads, {args.past} cells before, {kernels.effective_target()[1]}, medians of {args.rounds}"
    )
    for n_tokens in map(int, args.tokens.split(",")):
        measure(model, watch, n_tokens, args.past, args.rounds, args.python)


if __name__ == "__main__":
    main()
