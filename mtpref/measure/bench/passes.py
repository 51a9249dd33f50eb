"""Measuring the passes of a loop, each as the loop itself makes it, in turn and several times.

Owns what is timed and from which state. Every pass starts from the same state, which is restored outside the timing,
and after a pass of the other part of the model (trunk or head), as in the loop: a pass that follows itself finds its
weights in the cache. What it finds is the cost at one length of context, on this machine, now.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mtpref.base.errors import MtprefError
from mtpref.base.events import Token
from mtpref.engine.decode import Decoder, DraftLength, MtpDrafter, Options, SamplingConfig, Statistics, n_in_chain
from mtpref.engine.decode.drafters import Draft, HeadRun, read_head
from mtpref.engine.decode.sampling import Sampler, TargetJudge
from mtpref.engine.decode.statistics import margin
from mtpref.engine.model import Model, pair, run_heads
from mtpref.measure.bench.costs import Costs, CostSet, mean_costs
from mtpref.measure.experts import mean_touched
from mtpref.spec.moe import Routing
from mtpref.spec.state import ModelState

N_SAMPLES = 5
MIN_SECONDS = 0.02  # a shorter pass is repeated within a sample
N_CHAIN = 3  # draft steps timed together
N_PLAIN_RUN = 24  # tokens of the plain run that says what a round costs beside its passes; fewer where they are slow
SLOW_MS = 20.0
Progress = Callable[[int, int], None]


@dataclass
class Passes:
    """One model at one state, from which every pass starts.

    following   what the text goes on with after `ids`: which tokens run together decides which experts a pass reads
    n_experts   distinct experts a layer that the last trunk pass touched, 0 for a model without
    """

    model: Model
    heads: Sequence[Model]
    ids: list[int]
    n_max: int
    following: Sequence[int] = ()
    state: ModelState = field(init=False)

    def __post_init__(self) -> None:
        n_ctx = len(self.ids) + max(self.n_max, N_CHAIN, N_PLAIN_RUN) + 2
        spec_type = "draft-mtp" if self.heads else "none"
        decoder = Decoder(self.model, self.model.new_state(n_ctx), Options(n_predict=0, spec_type=spec_type))
        for _ in decoder.run(self.ids):
            pass
        self.state, self.n_ctx = decoder.state, n_ctx
        self.base = self.state.checkpoint()
        self.sampler = Sampler(self.model, SamplingConfig())
        self.n_experts = 0.0

    def _ms(self, run: Callable[[], object], before: Callable[[], object] = int) -> float:
        """Milliseconds of `run` from the base state: the mean of as many runs as MIN_SECONDS needs. before: untimed."""
        total, n = 0.0, 0
        while total < MIN_SECONDS:
            before()
            self.state.restore(self.base)
            start = time.perf_counter()
            run()
            total += time.perf_counter() - start
            n += 1
        self.state.restore(self.base)
        return 1000 * total / n

    def _trunk_pass(self) -> None:
        self.model.trunk(self.state, self.ids[-1:], n_logits=1)

    def _head_pass(self) -> None:
        if self.heads:
            self.state.restore(self.base)  # an assistant reads the trunk's cells
            self.model.mtp(self.state, self.ids[-1:], self.base.pending_h[None], self.base.n_past, n_logits=1)

    def trunk(self, n: int, *, keep: int, with_logits: bool = True) -> float:
        """A trunk pass of n tokens, and the choice of a token at each row where there are logits."""
        ids = self._next(n)

        def run() -> None:
            out = self.model.trunk(self.state, ids, n_logits=n if with_logits else 0, keep=keep)
            if with_logits:
                TargetJudge(self.sampler, ids[1:], (), self.state.n_past).see(out.logits)
            routings[:] = out.routings

        routings: list[Routing] = []
        ms = self._ms(run, self._head_pass)
        self.n_experts = mean_touched(routings)
        return ms

    def draft(self, head: Model) -> float:
        """A draft step of one row: of a chain the first head's."""
        if n_in_chain(head):
            return self.chain(head, 1)
        drafter = MtpDrafter(head, Statistics(), None, self.sampler)
        rounds: list[DraftLength] = []

        def before() -> None:
            rounds.append(DraftLength.of(N_CHAIN))
            self._trunk_pass()

        return self._ms(lambda: drafter.draft(self.state, self.ids[-1], rounds.pop()), before) / N_CHAIN

    def chain(self, head: Model, n: int) -> float:
        """The n-th draft step of a chain: head n - 1 over n rows."""
        drafter, pos0 = MtpDrafter(head, Statistics(), None, self.sampler), self.base.n_past
        run = HeadRun(n - 1, self._next(n), np.repeat(self.base.pending_h[None], n, axis=0), pos0, pos0 + n, True)
        return self._ms(lambda: read_head(drafter, self.state, run, DraftLength.of(N_CHAIN), Draft()), self._trunk_pass)

    def catch_up(self, n: int) -> float:
        if not any(head.keeps_cells for head in self.model.heads):
            return 0.0  # an assistant is not caught up
        ids, state, recipe = self._next(n), self.state, self.model.recipe
        hidden = recipe.steps.target_hidden(self.model.trunk(state, ids, n_logits=0).hidden, recipe.contract)
        pairs = pair(self.model, ids, hidden, self.base.n_past, self.base.pending_h)
        state.restore(self.base)
        return self._ms(lambda: run_heads(self.model, state, pairs), self._trunk_pass)

    def choose(self, n_drop: int) -> float:
        """Choosing the plane of n_drop tokens before; the pass that kept them is outside the timing."""
        ids, total, n = self._next(n_drop + 1), 0.0, 0
        while total < MIN_SECONDS and n < 10:
            self.model.trunk(self.state, ids, n_logits=0, keep=len(ids))
            start = time.perf_counter()
            self.model.recipe.steps.choose_plane(self.state, n_drop)
            total += time.perf_counter() - start
            n += 1
            self.state.restore(self.base)
        return 1000 * total / n

    def checkpoint(self) -> float:
        return self._ms(self.state.checkpoint)

    def restore(self) -> float:
        return self._ms(lambda: self.state.restore(self.base))

    def token(self) -> float:
        """The margin, which is taken at every row that is kept."""
        row = self.model.trunk(self.state, self._next(1), n_logits=1).logits[0]
        self.state.restore(self.base)
        return self._ms(lambda: margin(row))

    def plain_run(self, n_tokens: int) -> float:
        """Milliseconds per token of a real plain run at this context, the prompt and the first token apart: what
        follows a prompt starts with cold caches."""
        run = Decoder(self.model, self.model.new_state(self.n_ctx), Options(n_predict=n_tokens, spec_type="none")).run(
            self.ids
        )
        first, n = 0.0, 0
        for event in run:
            if isinstance(event, Token):
                n += 1
                first = first or time.perf_counter()
        return 1000 * (time.perf_counter() - first) / max(1, n - 1)

    def _next(self, n: int) -> list[int]:
        """n tokens to run: the context's last and what follows it, as far as that is known. Without experts it does not
        matter for their cost which they are."""
        known = [self.ids[-1], *self.following, *self.ids]
        return known[:n] if n <= len(known) else [self.ids[-1]] * n


def measure_costs(
    model: Model,
    ids: Sequence[int],
    heads: Sequence[Model] = (),
    n_max: int = 8,
    n_samples: int = N_SAMPLES,
    *,
    following: Sequence[int] = (),
    about: str = "",
    warm: bool = True,
    progress: Progress | None = None,
) -> CostSet:
    """What every pass costs after a prompt.

    ids      the prompt, at least 2 tokens: passes run at this length of context
    heads    the model with each head vocabulary to measure; none: no head is measured
    following  tokens that the text goes on with: what a verify pass runs
    warm     one sample more beforehand, not counted: it compiles, and fills caches
    n_max    longest draft: verify passes of 2 .. n_max + 1 tokens are measured
    Rule     all passes once, in turn, n_samples times; the result's costs are the means
    Errors   MtprefError for a prompt of fewer than 2 tokens
    """
    if len(ids) < 2:
        raise MtprefError(f"costs: a prompt of {len(ids)} tokens, expected at least 2")
    passes = Passes(model, heads, list(ids), n_max, following)
    if warm:
        _sample(passes)
    samples = []
    for i in range(n_samples):
        samples.append(_sample(passes))
        if progress is not None:
            progress(i + 1, n_samples)
    found = tuple(samples)
    return CostSet(mean_costs(found), found, "mtpref", about)


def _sample(passes: Passes) -> Costs:
    widths, kept = range(2, passes.n_max + 2), range(1, passes.n_max + 2)
    whole = max(passes.heads, key=lambda head: head.n_head_rows, default=None)
    plain = passes.trunk(1, keep=1)
    experts = {1: passes.n_experts}
    token = passes.token()
    verify = {}
    for n in widths:
        verify[n] = passes.trunk(n, keep=1)
        experts[n] = passes.n_experts
    return Costs(
        plain=plain,
        verify=verify,
        experts=experts if experts[1] else {},
        verify_keep={n: passes.trunk(n, keep=n) for n in widths},
        replay={n: passes.trunk(n, keep=1, with_logits=False) for n in range(1, passes.n_max + 1)},
        draft={head.n_head_rows: passes.draft(head) for head in passes.heads} or {1: 0.0},
        catch_up={n: passes.catch_up(n) for n in kept} if passes.heads else {},
        chain={n: passes.chain(whole, n) for n in range(1, n_in_chain(whole) + 1)} if whole else {},
        choose=passes.choose(passes.n_max),
        checkpoint=passes.checkpoint(),
        restore=passes.restore(),
        token=token,
        round=max(0.0, passes.plain_run(N_PLAIN_RUN if plain < SLOW_MS else 4) - passes.trunk(1, keep=1) - token),
    )
