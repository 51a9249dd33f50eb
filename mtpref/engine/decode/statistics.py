"""Statistics of a run: what was drafted, accepted, run and waited for.

Owns the counters and their two renderings: llama.cpp's words for people, a dict for machines. It must not know how
the loop works.
"""

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.events import Draw

# A greedy choice whose best two logits are closer than this is a near tie: another engine, or another summation
# order, may well choose the other token.
NEAR_TIE = 0.01
# A router whose last chosen score is closer than this to the best of the others: another order of sums may choose
# another expert.
NEAR_GAP = 1e-6


@dataclass
class Statistics:
    """Counters of one run. Rates are None where nothing was counted."""

    n_prompt: int = 0
    n_reused: int = 0  # of the prompt's tokens: held by the state already
    n_predict: int = 0
    n_rounds: int = 0
    n_draft_rounds: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    n_cooldown_rounds: int = 0
    n_near_ties: int = 0
    min_margin: float = math.inf
    n_router_ties: int = 0  # tokens of which a layer's gap (S44, S63: router, indexer) is below NEAR_GAP
    min_router_gap: float | None = None  # None: no experts
    drafted_at: Counter[int] = field(default_factory=Counter)  # draft position -> times proposed
    reached_at: Counter[int] = field(default_factory=Counter)  # draft position -> times proposed after an acceptance
    accepted_at: Counter[int] = field(default_factory=Counter)  # draft position -> times accepted
    judged_at: Counter[int] = field(default_factory=Counter)  # draft position -> times judged by a draw
    p_accept_at: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))  # sum of p_accept there
    passes: Counter[str] = field(default_factory=Counter)  # kind of pass -> passes
    tokens: Counter[str] = field(default_factory=Counter)  # kind of pass -> tokens
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # phase -> seconds
    heads: list[int] = field(default_factory=list)  # of a chain: the head of draft position 1, 2, ...
    chat: dict[str, Any] | None = None  # the chat template and its arguments, where the prompt is a conversation
    clock: Callable[[], float] = time.perf_counter  # the recipe's: it stands still while kernels are compiled
    _inner_seconds: float = 0.0

    def count_pass(self, kind: str, n_tokens: int) -> None:
        self.passes[kind] += 1
        self.tokens[kind] += n_tokens

    def count_round(self, n_drafted: int, n_accepted: int, is_cooldown: bool) -> None:
        self.n_rounds += 1
        self.n_drafted += n_drafted
        self.n_accepted += n_accepted
        self.n_draft_rounds += n_drafted > 0
        self.n_cooldown_rounds += is_cooldown
        self.drafted_at.update(range(n_drafted))
        self.reached_at.update(range(min(n_drafted, n_accepted + 1)))
        self.accepted_at.update(range(n_accepted))

    def count_head(self, step: int, head: int) -> None:
        """Record which head of a chain draft step `step` ran."""
        if step == len(self.heads):
            self.heads.append(head)

    def count_margin(self, margin: float) -> bool:
        """Record a greedy choice's margin; whether it is a near tie."""
        is_near_tie = margin < NEAR_TIE
        self.n_near_ties += is_near_tie
        self.min_margin = min(self.min_margin, margin)
        return is_near_tie

    def count_gap(self, gap: float) -> float:
        """Record the least router gap of a token that stays, and give it back."""
        self.n_router_ties += gap < NEAR_GAP
        self.min_router_gap = gap if self.min_router_gap is None else min(self.min_router_gap, gap)
        return gap

    def count_draws(self, draws: Sequence[Draw]) -> None:
        """Record how probable it was, before any draw, that each drafted token that was judged is accepted."""
        for i, draw in enumerate(draws):
            if draw.p_accept is not None:
                self.judged_at[i] += 1
                self.p_accept_at[i] += draw.p_accept

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time inside for `phase`; a phase within another is counted once, for the inner one."""
        outer, self._inner_seconds = self._inner_seconds, 0.0
        start = self.clock()
        try:
            yield
        finally:
            elapsed = self.clock() - start
            self.seconds[phase] += elapsed - self._inner_seconds
            self._inner_seconds = outer + elapsed

    @property
    def acceptance(self) -> float | None:
        return self.n_accepted / self.n_drafted if self.n_drafted else None

    @property
    def mean_accepted_len(self) -> float | None:
        """Tokens that a drafting round gives, on average: 1 + accepted / drafting rounds (llama.cpp's mean len)."""
        return 1 + self.n_accepted / self.n_draft_rounds if self.n_draft_rounds else None

    @property
    def n_trunk_passes(self) -> int:
        """Runs of the trunk after the prompt: what plain decoding needs once per token."""
        return self.passes["verify"] + self.passes["plain"] + self.passes["replay"]

    def acceptance_per_pos(self, *, conditional: bool) -> list[float]:
        """Acceptance of draft position 1, 2, ...

        unconditional  rounds that accepted so far / drafting rounds (llama.cpp's acc rate/pos)
        conditional    tokens accepted at the position / tokens proposed there whose predecessors were accepted
        """
        rates = []
        for i in range(len(self.drafted_at)):
            base = self.reached_at[i] if conditional else self.n_draft_rounds
            rates.append(self.accepted_at[i] / base if base else 0.0)
        return rates

    def p_accept_per_pos(self) -> list[float]:
        """Mean probability that a judged token of draft position 1, 2, ... is accepted, as the distributions have it.

        residual  sum of min(p_target, p_draft);  match  p_target of the drafted token. Conditional, as it is counted
        after acceptances only; empty for greedy decoding
        """
        return [self.p_accept_at[i] / self.judged_at[i] for i in range(len(self.judged_at))]

    @property
    def p_accept(self) -> float | None:
        """The mean over all judged tokens: what the acceptance of these tokens should be, up to luck."""
        n_judged = self.judged_at.total()
        return sum(self.p_accept_at.values()) / n_judged if n_judged else None

    def to_json(self) -> dict[str, Any]:
        return (
            {
                "n_prompt": self.n_prompt,
                "n_reused": self.n_reused,
                "n_predict": self.n_predict,
                "n_rounds": self.n_rounds,
                "n_draft_rounds": self.n_draft_rounds,
                "n_drafted": self.n_drafted,
                "n_accept": self.n_accepted,
                "accept": self.acceptance,
                "mean_accepted_len": self.mean_accepted_len,
                "acc_per_pos": self.acceptance_per_pos(conditional=False),
                "acc_per_pos_conditional": self.acceptance_per_pos(conditional=True),
                "p_accept": self.p_accept,
                "p_accept_per_pos": self.p_accept_per_pos(),
                "n_cooldown_rounds": self.n_cooldown_rounds,
                "n_trunk_passes": self.n_trunk_passes,
                "n_near_ties": self.n_near_ties,
                "min_margin": self.min_margin if math.isfinite(self.min_margin) else None,
                "passes": dict(sorted(self.passes.items())),
                "tokens": dict(sorted(self.tokens.items())),
                "seconds": {phase: round(s, 6) for phase, s in sorted(self.seconds.items())},
            }
            | self._of_experts()
            | ({"head_per_pos": self.heads[: len(self.drafted_at)]} if self.heads else {})
            | ({} if self.chat is None else {"chat": self.chat})
        )

    def _of_experts(self) -> dict[str, Any]:
        """What only a model with experts has. A gap that is not finite (every expert chosen) is null."""
        if self.min_router_gap is None:
            return {}
        gap = self.min_router_gap if math.isfinite(self.min_router_gap) else None
        return {"n_router_ties": self.n_router_ties, "min_router_gap": gap}

    def lines(self) -> list[str]:
        """The statistics in llama.cpp's words, a line each."""
        decode = sum(s for phase, s in self.seconds.items() if phase not in ("load", "prompt"))
        out = [
            _speed("encoded", self.n_prompt - self.n_reused, self.seconds["prompt"]),
            _speed("decoded", self.n_predict, decode),
            "",
            f"n_predict = {self.n_predict}",
            f"n_drafted = {self.n_drafted}",
            f"n_accept  = {self.n_accepted}",
            f"accept    = {_percent(self.acceptance)}",
        ]
        if self.n_reused:
            out.append(f"n_reused  = {self.n_reused} of {self.n_prompt} prompt tokens")
        if self.n_draft_rounds:
            mean_len = self.mean_accepted_len or 1.0
            out += [
                f"draft acceptance = {self.acceptance or 0:.5f} ({self.n_accepted:5d} accepted / "
                f"{self.n_drafted:5d} generated), mean len = {mean_len:5.2f}",
                f"acc per pos = {_rates(self.acceptance_per_pos(conditional=False))}",
                f"acc per pos (conditional) = {_rates(self.acceptance_per_pos(conditional=True))}",
            ]
            if self.heads:
                named = ", ".join(f"head {head}" for head in self.heads[: len(self.drafted_at)])
                out.append(f"drafted by = ({named})")
        if self.judged_at:
            out.append(f"expected acc per pos (from p and q) = {_rates(self.p_accept_per_pos())}")
        out += [
            f"rounds = {self.n_rounds}, trunk passes = {self.n_trunk_passes} "
            f"(plain decoding: {self.n_predict}), cooldown rounds = {self.n_cooldown_rounds}",
            "passes (tokens): " + ", ".join(f"{k} {self.passes[k]} ({self.tokens[k]})" for k in sorted(self.passes)),
            "time: " + ", ".join(f"{phase} {s:.3f} s" for phase, s in sorted(self.seconds.items())),
        ]
        if math.isfinite(self.min_margin):
            out.append(f"near ties (margin < {NEAR_TIE}) = {self.n_near_ties}, least margin = {self.min_margin:.4g}")
        if self.min_router_gap is not None:
            told = f"near ties of routers or indexers (gap < {NEAR_GAP:g}) = {self.n_router_ties}"
            out.append(f"{told}, least gap = {self.min_router_gap:.4g}")
        if self.chat is not None:
            args = json.dumps(self.chat["args"])
            out.append(f"chat template = {self.chat['template']} ({self.chat['sha256'][:12]}), arguments = {args}")
        return out


def margin(logits: NDArray[np.float32]) -> float:
    """How far the best logit is above the second best."""
    if logits.size < 2:
        return float("inf")
    top = np.partition(logits, logits.size - 2)[-2:]
    return float(top[1]) - float(top[0])


def _speed(word: str, n: int, seconds: float) -> str:
    rate = f", speed: {n / seconds:8.3f} t/s" if seconds > 0 and n else ""
    return f"{word} {n:4d} tokens in {seconds:8.3f} seconds{rate}"


def _percent(rate: float | None) -> str:
    return "nothing was drafted" if rate is None else f"{100 * rate:.3f}%"


def _rates(rates: list[float]) -> str:
    return "(" + ", ".join(f"{rate:.3f}" for rate in rates) + ")"
