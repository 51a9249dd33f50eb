"""Compares draft lengths: fixed ones, the two adaptive rules, and what each would cost at given pass costs.

    python tools/compare_adaptive.py [-m MODEL] [--predict N] [--costs DRAFT,ROW] [LABEL=FILE ...]

Every setting generates from the same prompts, greedily; the texts must be the same. Costs are in plain decode passes:
a run costs passes + DRAFT draft steps + ROW further verified tokens. `t/pass` is tokens by that cost: the speed-up
over plain decoding that an engine with these costs would see. `t/s` is what this machine did, prompt apart, the best
of three runs in turn. Without files: held-out stories, CPython's code, and lines of JSON.
"""

import argparse
import ast
import contextlib
import inspect
import json
import string
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tiny.text import held_out_stories

import mtpref
from mtpref.engine.decode import AdaptiveConfig, Options, PolicyConfig, Statistics
from mtpref.front.api import LanguageModel

N_PROMPTS, PROMPT_TOKENS, N_TIMED = 6, 48, 3


def default_texts() -> dict[str, list[str]]:
    """Three kinds of text: stories, which the embedded model knows best, code, and data that repeats."""
    modules = [textwrap, string, json, ast, inspect, argparse, contextlib]
    code = [inspect.getsource(module)[-1500:] for module in modules]
    rows = [f'{{"id": {k}, "name": "item {k}", "price": {7 * k}}},\n' for k in range(1, 30)]
    data = ["".join(rows[k:]) for k in range(N_PROMPTS)]
    return {"stories": held_out_stories(N_PROMPTS), "code": code, "data": data}


@dataclass
class Outcome:
    """Counts of all prompts of one kind under one setting."""

    n_tokens: int = 0
    n_passes: int = 0
    n_rows: int = 0
    n_steps: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    seconds: float = 0.0

    def add(self, s: Statistics) -> None:
        self.n_tokens += s.n_predict
        self.n_passes += s.n_trunk_passes
        self.n_rows += s.tokens["verify"] - s.passes["verify"]
        self.n_steps += s.passes["mtp_draft"]
        self.n_drafted += s.n_drafted
        self.n_accepted += s.n_accepted
        self.seconds += sum(value for phase, value in s.seconds.items() if phase not in ("load", "prompt"))

    def speed_up(self, draft: float, row: float) -> float:
        return self.n_tokens / (self.n_passes + draft * self.n_steps + row * self.n_rows)


def settings(n_max: int, draft: float, row: float) -> dict[str, tuple[int, AdaptiveConfig]]:
    """Setting -> (n_max, rule)."""
    fixed = {f"fixed {n}": (n, AdaptiveConfig()) for n in range(n_max + 1)}
    expected = AdaptiveConfig(rule="expected", draft_cost=draft, row_cost=row)
    return fixed | {"heuristic": (n_max, AdaptiveConfig(rule="heuristic")), "expected": (n_max, expected)}


def measure(model: LanguageModel, prompts: Iterable[list[int]], n_predict: int, table: dict) -> dict[str, Outcome]:
    """Every setting on every prompt, in turn; the texts of one prompt must be the same."""
    best: dict[str, Outcome] = {}
    prompts = list(prompts)
    for _ in range(N_TIMED):
        now = {name: Outcome() for name in table}
        for ids in prompts:
            texts = set()
            for name, (n_max, rule) in table.items():
                spec_type = "draft-mtp" if n_max else "none"
                options = Options(
                    n_predict=n_predict, spec_type=spec_type, policy=PolicyConfig(n_max=n_max), adaptive=rule
                )
                run = model.generate(ids, options, n_ctx=len(ids) + n_predict + 1).finish()
                now[name].add(run.statistics)
                texts.add(tuple(run.ids))
            assert len(texts) == 1, "the settings gave different texts"
        best = {name: min(now[name], best.get(name, now[name]), key=lambda o: o.seconds) for name in table}
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-m", "--model")
    parser.add_argument("--predict", type=int, default=96)
    parser.add_argument("--n-max", type=int, default=8)
    parser.add_argument("--costs", default="0.125,0.125")
    parser.add_argument("texts", nargs="*", metavar="LABEL=FILE")
    args = parser.parse_args()
    draft, row = (float(part) for part in args.costs.split(","))
    model = mtpref.load(args.model)
    kinds = default_texts()
    if args.texts:
        kinds = {}
        for label, _, path in (text.partition("=") for text in args.texts):
            kinds.setdefault(label, []).append(Path(path).read_text("utf-8"))
    print(f"costs: draft step {draft:g}, verified row {row:g}; {args.predict} tokens after each prompt")
    for kind, texts in kinds.items():
        prompts = [model.encode(text)[:PROMPT_TOKENS] for text in texts[:N_PROMPTS]]
        table = measure(model, prompts, args.predict, settings(args.n_max, draft, row))
        print(f"\n{kind}: {len(prompts)} prompts\n  setting     drafted  accept  passes/token  t/pass     t/s")
        for name, o in table.items():
            accept = f"{o.n_accepted / o.n_drafted:6.3f}" if o.n_drafted else "     -"
            print(
                f"  {name:10s} {o.n_drafted:8d}  {accept}  {o.n_passes / o.n_tokens:12.3f}  "
                f"{o.speed_up(draft, row):6.3f}  {o.n_tokens / o.seconds:6.0f}"
            )


if __name__ == "__main__":
    main()
