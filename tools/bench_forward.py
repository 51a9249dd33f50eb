"""Measure a forward pass of a model: how much of it is matrix products, and how much is everything else.

Usage: python tools/bench_forward.py -m MODEL [-t N] [--tokens 1,2,4,8,512] [--past N] [--rounds N] [--profile]

Prints, for each number of tokens T, the fastest of --rounds passes of T tokens behind --past cells: milliseconds in
all, in matrix products (everything below `mul_mat`), and in the rest. A pass of 2 to 16 tokens keeps the recurrent
state of each token, as a verify pass does, and computes all logits; a longer one the last, and one row of logits.
"""

import argparse
import cProfile
import pstats
import time
from dataclasses import replace
from typing import Any

import mtpref
from mtpref import kernels
from mtpref.model import Model

MOST_VERIFIED = 16


class Stopwatch:
    """An entry of the table that adds up the time spent in it."""

    def __init__(self, entry: Any) -> None:
        self.entry = entry
        self.seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        start = time.perf_counter()
        result = self.entry(*args)
        self.seconds += time.perf_counter() - start
        return result


def measure(model: Model, n_tokens: int, n_past: int, rounds: int, profile: bool) -> tuple[float, float]:
    """Seconds of the fastest pass, and of the products in the pass with the least of everything else added to it."""
    products = Stopwatch(model.recipe.ops.mul_mat)
    # Not `with_ops`: that would drop the fused entries that are to be measured.
    watched = replace(model, recipe=replace(model.recipe, ops=replace(model.recipe.ops, mul_mat=products)))
    is_verify = n_tokens <= MOST_VERIFIED
    n_logits, keep = (n_tokens, n_tokens) if is_verify else (1, 1)
    ids = [(7919 * i) % model.n_vocab for i in range(max(n_past, n_tokens))]
    state = model.new_state(n_past + n_tokens + 1)
    if n_past:
        watched.trunk(state, ids[:n_past], n_logits=0)
    before = state.checkpoint()
    whole, inside = [], []
    profiler = cProfile.Profile()
    for n in range(rounds + 1):
        state.restore(before)
        products.seconds = 0.0
        if profile and n:
            profiler.enable()
        start = time.perf_counter()
        watched.trunk(state, ids[:n_tokens], n_logits=n_logits, keep=keep)
        seconds = time.perf_counter() - start
        profiler.disable()
        if n:  # the first pass may wait for the compiler
            whole.append(seconds)
            inside.append(products.seconds)
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(20)
    rest = min(a - b for a, b in zip(whole, inside, strict=True))
    least = min(inside)
    return least + rest, least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-t", "--threads", type=int, default=kernels.n_threads())
    parser.add_argument("--tokens", default="1,2,4,8,512")
    parser.add_argument("--past", type=int, default=64, help="cells before the pass (default: 64)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="print where Python spends its time")
    args = parser.parse_args()
    kernels.set_threads(args.threads)
    model = mtpref.load(args.model).core
    print(f"{args.threads} threads, {args.past} cells before, {kernels.effective_target()[1]}, least of {args.rounds}")
    for n_tokens in map(int, args.tokens.split(",")):
        whole, products = measure(model, n_tokens, args.past, args.rounds, args.profile)
        rest = whole - products
        print(
            f"T {n_tokens:4}  {1000 * whole:8.2f} ms = products {1000 * products:8.2f} + the rest {1000 * rest:7.2f}"
            f" ({100 * rest / whole:4.1f} %)",
            flush=True,
        )


if __name__ == "__main__":
    main()
