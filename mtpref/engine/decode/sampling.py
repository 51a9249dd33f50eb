"""Sampling in the loop: the settings, the draws of a run and the judgement of a draft.

Owns which uniform number and which rule each token gets. The rules themselves are S25 to S29 (mtpref/spec/sampling.py),
reached through the table of steps. A temperature of 0 never comes near them: that is the greedy choice of S21.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray

from mtpref import spec
from mtpref.base.events import Draw
from mtpref.base.settings import Bounds, OneOf, SettingError, check_fields
from mtpref.engine.model import Model
from mtpref.spec import ACCEPT, DRAFT, RESIDUAL, TARGET, Distribution

F32 = NDArray[np.float32]
ACCEPT_RULES = ("match", "residual")
SAMPLERS = ("top_k", "top_p", "min_p", "temperature")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are drawn; the same filters apply to target and draft.

    temp         temperature; 0 or less: greedy, whatever the filters say
    top_k, top_p, min_p   the filters; 0, 1 and 0 turn them off
    samplers     the filters' order; one that is not named is not applied
    seed         key of every draw, 0 .. 2**64 - 1
    ignore_eos   end-of-generation ids can be neither drafted nor chosen
    accept       match (the target's own draw is compared with the draft) or residual (rejection sampling)
    Errors       SettingError for a value that a field does not have
    """

    temp: Annotated[float, Bounds(-math.inf, words="a number, 0 for greedy")] = 0.0
    top_k: Annotated[int, Bounds(0, words="0 (off) or more")] = 40
    top_p: Annotated[float, Bounds(0, 1)] = 0.95
    min_p: Annotated[float, Bounds(0, 1)] = 0.05
    samplers: tuple[str, ...] = SAMPLERS
    seed: Annotated[int, Bounds(0, spec.MAX_SEED)] = 0
    ignore_eos: bool = False
    accept: Annotated[str, OneOf(ACCEPT_RULES)] = "match"

    def __post_init__(self) -> None:
        check_fields(self)
        where, named = "SamplingConfig.samplers", ";".join(self.samplers)
        for name in self.samplers:
            if name not in SAMPLERS:
                raise SettingError(where, f"{name!r} is unknown, expected some of {';'.join(SAMPLERS)}")
        if len(set(self.samplers)) != len(self.samplers):
            raise SettingError(where, f"{named} names one twice, expected each at most once")

    @property
    def is_greedy(self) -> bool:
        return self.temp <= 0

    @property
    def draws_drafts(self) -> bool:
        """Whether the drafter draws its tokens; else it takes its best candidate."""
        return self.accept == "residual" and not self.is_greedy

    @property
    def chain(self) -> list[tuple[str, float]]:
        """The filters that do something, in order: what S27's `filtered` takes."""
        values = {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p, "temperature": self.temp}
        return [(name, values[name]) for name in self.samplers]


class Sampler:
    """The draws of one run: filters, uniform numbers and rules, for target and draft."""

    def __init__(self, model: Model, config: SamplingConfig) -> None:
        self.config = config
        self.steps = model.recipe.steps
        self._model, self._chain = model, config.chain

    @property
    def eog_ids(self) -> frozenset[int]:
        return self._model.vocab.eog_ids

    def biased(self, logits: F32) -> F32:
        """The rows that everything else sees: without end-of-generation ids where they are ignored (S26)."""
        return spec.without_ids(logits, self.eog_ids) if self.config.ignore_eos and logits.size else logits

    def greedy(self, logits: F32) -> list[int]:
        return [int(i) for i in self._model.recipe.ops.argmax(logits)]

    def plain(self, row: F32, pos: int) -> tuple[int, Draw]:
        """The token at `pos` where nothing was drafted."""
        target, u = self.target(row), self.u(TARGET, pos)
        return self.steps.draw(target, u), Draw(pos, u_target=u, edge=_edge(target, u))

    def draft(self, row: F32, pos: int, pos0: int) -> tuple[int, Distribution, float]:
        """A drafted token at `pos`, in the round that opened at pos0: the id, what it was drawn from, the uniform."""
        dist, u = spec.filtered(row, self._chain), self.u(DRAFT, pos, pos0)
        return self.steps.draw(dist, u), dist, u

    def target(self, row: F32) -> Distribution:
        return self.steps.target_distribution(row, self._chain)

    def u(self, stream: int, pos: int, pos0: int = 0) -> float:
        return spec.uniform(self.config.seed, stream, pos, pos0)


class Judge(Protocol):
    """Who decides how much of a draft is accepted, from the target's rows; made anew each round.

    ids         the drafted tokens
    row_ids     the token that each row seen so far gives the text: the target's own, but under `residual` the drafted
                one where it is kept. S23 counts over these by every rule
    draws       how they were sampled; none for greedy decoding
    n_accepted  how many drafted tokens the rows seen so far accept
    """

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def row_ids(self) -> list[int]: ...
    @property
    def draws(self) -> Sequence[Draw]: ...
    @property
    def n_accepted(self) -> int: ...

    def see(self, logits: F32, /) -> F32:
        """The target's next rows, in one call or several; returns them as they were judged."""
        ...


class MakeJudge(Protocol):
    """Who makes the judge of a round. dists: what each drafted token was drawn from; empty where there was no choice.
    pos0: the position of the token that opens the round."""

    def __call__(self, ids: Sequence[int], dists: Sequence[Distribution], pos0: int, /) -> Judge: ...


class TargetJudge:
    """S39. The target decides what each row gives: by greedy choice, by `match` or by `residual`.

    Every draw is keyed by position, so rows may be shown at once or one by one.
    """

    def __init__(self, sampler: Sampler, ids: Sequence[int], dists: Sequence[Distribution], pos0: int) -> None:
        self.ids = ids
        self.row_ids: list[int] = []
        self.draws: list[Draw] = []
        self._dists = dists or [spec.only(id) for id in ids]
        self._sampler, self._pos0 = sampler, pos0

    def see(self, logits: F32) -> F32:
        """The target's next rows; returns them without ignored ids."""
        logits = self._sampler.biased(logits)
        if self._sampler.config.is_greedy:
            self.row_ids += self._sampler.greedy(logits)
            return logits
        for row in logits:
            token, drawn = self._token(row, len(self.row_ids))
            self.row_ids.append(token)
            self.draws.append(drawn)
        return logits

    @property
    def n_accepted(self) -> int:
        """How many drafted tokens the rows seen so far accept."""
        tried = self.ids[: len(self.row_ids)]
        return self._sampler.steps.accept_greedy(tried, self.row_ids, self._sampler.eog_ids)

    def _token(self, row: F32, i: int) -> tuple[int, Draw]:
        pos = self._pos0 + 1 + i
        if not self.ids:
            return self._sampler.plain(row, pos)
        target = self._sampler.target(row)
        if i == len(self.ids):
            u = self._sampler.u(TARGET, pos, self._pos0 if self._sampler.config.draws_drafts else 0)
            return self._sampler.steps.bonus_token(target, u), Draw(pos, u_target=u, edge=_edge(target, u))
        rule = self._kept_or_redrawn if self._sampler.config.draws_drafts else self._matched
        return rule(target, pos, self.ids[i], self._dists[i])

    def _matched(self, target: Distribution, pos: int, id: int, draft: Distribution) -> tuple[int, Draw]:
        """`match`: the target draws as if nothing had been drafted."""
        u, p = self._sampler.u(TARGET, pos), target.prob(id)
        told = Draw(pos, id, p, draft.prob(id), p, u_target=u, edge=_edge(target, u))
        return self._sampler.steps.match_token(id, target, u), told

    def _kept_or_redrawn(self, target: Distribution, pos: int, id: int, draft: Distribution) -> tuple[int, Draw]:
        """`residual`: the drafted token, or a draw from what the target has more of than the draft."""
        steps, p, q = self._sampler.steps, target.prob(id), draft.prob(id)
        u, p_accept = self._sampler.u(ACCEPT, pos, self._pos0), spec.overlap(target, draft)
        if steps.accept_residual(p, q, u):
            edge = abs(p / q - u) if p < q else None
            return id, Draw(pos, id, p, q, p_accept, u_accept=u, edge=edge)
        rest, u_rest = steps.residual(id, target, draft), self._sampler.u(RESIDUAL, pos, self._pos0)
        edge = min(u - p / q, spec.draw_edge(rest, u_rest))
        return steps.draw(rest, u_rest), Draw(pos, id, p, q, p_accept, None, u, u_rest, edge)


def _edge(dist: Distribution, u: float) -> float | None:
    edge = spec.draw_edge(dist, u)
    return edge if math.isfinite(edge) else None
