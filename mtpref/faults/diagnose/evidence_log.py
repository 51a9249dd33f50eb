"""Entrance (b): a port's run. Which hypothesis would have drafted and emitted these very tokens?

Owns the likelihood of a run: each drafted token, its probability where the port printed it, each emitted token.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model
from mtpref.faults.diagnose.forced import Recorded, Replay, Seen
from mtpref.faults.diagnose.hypotheses import (
    KV_TYPES,
    Hypothesis,
    list_hypotheses,
    shares_cells,
    shares_rollback,
    shares_run,
    shares_trunk,
    with_contract,
    with_kv,
    with_other_numerics,
)
from mtpref.faults.diagnose.port_run import PortRun
from mtpref.faults.diagnose.rank import Group, Scored, grouped
from mtpref.faults.diagnose.unexplained import CLEAR_MISS, Unexplained, unexplained
from mtpref.look.llama_cpp.loops import WITH_CORRECTION
from mtpref.look.llama_cpp.rounds import UNTOLD

SLIP = 0.002  # a token that no near tie explains
NOISE = (0.003, 0.01, 0.03, 0.1, 0.3)  # of the port's logits, in standard deviations: whichever fits
SPREAD = (0.001, 0.003, 0.01, 0.03, 0.1)  # of the port's p
P_WEIGHT = 0.5  # one number and its token are not two witnesses
HOPELESS = 40.0  # nats behind the best so far
# Nats by which a fault must explain more than every harmless hypothesis; log(number of hypotheses) comes on top, since
# the best of many is better than most by chance.
MIN_GAIN = 4.0
SAME = 1.0  # nats
FAILURES = (MtprefError, ValueError, IndexError, KeyError)
Progress = Callable[[int, int, str], None]


@dataclass
class Replayed:
    """What one hypothesis said of all runs."""

    hypothesis: Hypothesis
    seen: list[Seen]
    log_likelihood: float
    is_cut: bool = False

    @property
    def n_drafts(self) -> tuple[int, int]:
        """Drafted tokens that it gives, and all that it was asked for."""
        return _count(self.seen, ("draft",))

    @property
    def n_tokens(self) -> tuple[int, int]:
        return _count(self.seen, ("target", "length"))

    def words(self) -> str:
        (a, b), (c, d) = self.n_drafts, self.n_tokens
        ends = "; given up early" if self.is_cut else ""
        return f"gives {a} of {b} drafted tokens and {c} of {d} emitted ones{ends}"


@dataclass
class LogDiagnosis:
    """What a log says for and against hypotheses.

    divergence  the first token in question    open: what the best hypothesis leaves
    rival       a fault that explains more than healthy does by MIN_GAIN, but less than the best of many may by chance
    """

    verdict: str
    groups: list[Group]
    replayed: dict[str, Replayed]
    invisible: list[str]
    impossible: list[str]
    base: Model
    divergence: Seen | None
    runs: list[PortRun] = field(default_factory=list)
    open: Unexplained | None = None
    rival: Scored | None = None


def diagnose_runs(model: Model, runs: Sequence[PortRun], progress: Progress | None = None) -> LogDiagnosis:
    """Replay every run under every hypothesis and rank.

    Errors  MtprefError where ids are not the model's, or drafts were drawn at random
    """
    _check(model, runs)
    base, records, healthy = _nearest(model, runs)
    hypotheses = list_hypotheses(base)
    replayed, impossible = {"healthy": replace(healthy, hypothesis=hypotheses[0])}, []
    best = _Trail(healthy.seen, healthy.log_likelihood)
    for i, hypothesis in enumerate(hypotheses[1:], 1):
        if progress is not None:
            progress(i, len(hypotheses), hypothesis.id)
        try:
            if shares_run(hypothesis.apply(base), base):
                replayed[hypothesis.id] = replace(healthy, hypothesis=hypothesis)
                continue
            found = _replay(hypothesis, base, runs, records, best)
        except FAILURES:
            impossible.append(hypothesis.id)
            continue
        replayed[hypothesis.id] = found
        if not found.is_cut and found.log_likelihood > best.total:
            best = _Trail(found.seen, found.log_likelihood)
    return _judge(replayed, impossible, base, list(runs))


def _nearest(model: Model, runs: Sequence[PortRun]) -> tuple[Model, list[Recorded], Replayed]:
    """The numerics and KV types in which the healthy run comes nearest to the port: its own legal choices, over which
    every hypothesis is laid. The model's own unless others are clearly nearer; a replay that has the correction in it
    is llama.cpp's, whose pending row is stale then (S52; the right one is a contract of its own)."""
    if any(run.settings.get("rollback") == WITH_CORRECTION for run in runs):
        model = with_contract(replace(model.recipe.contract, replay="stale"))(model)
    records, healthy = _healthy(model, runs)
    for change in (with_other_numerics, *(with_kv(kv_type) for kv_type in KV_TYPES)):
        other = change(model)
        if (other.recipe, other.kv_type, other.kv_type_draft) == (model.recipe, model.kv_type, model.kv_type_draft):
            continue
        other_records, found = _healthy(other, runs)
        if found.log_likelihood > healthy.log_likelihood + MIN_GAIN:
            model, records, healthy = other, other_records, found
    return model, records, healthy


def _check(model: Model, runs: Sequence[PortRun]) -> None:
    for run in runs:
        ids = [*run.prompt_ids, *(i for r in run.rounds for i in (*r.draft, *r.emitted))]
        bad = next((i for i in ids if i != UNTOLD and not 0 <= i < model.n_vocab), None)
        if bad is not None:
            raise MtprefError(
                f"{run.label}: token id {bad} is not in the model's vocabulary, expected 0 .. "
                f"{model.n_vocab - 1}; is `model` the model that the port ran?"
            )
        n_tokens, n_ctx = len(run.prompt_ids) + sum(len(r.emitted) for r in run.rounds), model.config.n_ctx_train
        if n_tokens > n_ctx + 1:  # the last token opens no pass
            raise MtprefError(f"{run.label}: {n_tokens} tokens, expected a run within the context of {n_ctx}")
        if run.settings.get("accept") == "residual" and float(run.settings.get("temp") or 0) > 0:
            raise MtprefError(
                f"{run.label}: its drafts were drawn at random (--spec-accept residual), expected a "
                "greedy run or --spec-accept match: a drawn token says little of the head"
            )


def _healthy(model: Model, runs: Sequence[PortRun]) -> tuple[list[Recorded], Replayed]:
    """The healthy replay, and its trunk's passes for hypotheses that only touch the head."""
    records, seen = [], []
    for run in runs:
        replay = Replay(model, run)
        for found in replay.play():
            seen += found
        records.append(replay.recorded)
    return records, Replayed(list_hypotheses(model)[0], seen, log_likelihood(seen))


def _replay(
    hypothesis: Hypothesis, base: Model, runs: Sequence[PortRun], records: list[Recorded], best: "_Trail"
) -> Replayed:
    model = hypothesis.apply(base)
    is_head_only = shares_trunk(model, base) and shares_rollback(model, base) and shares_cells(model, base)
    seen: list[Seen] = []
    n_before = 0
    for run, recorded in zip(runs, records, strict=True):
        replay = Replay(model, run, recorded if is_head_only else None)
        for i, found in enumerate(replay.play()):
            seen += found
            if i % 4 == 3 and best.behind(seen, n_before + i + 1) > HOPELESS:
                total = best.total - best.behind(seen, n_before + i + 1)
                return Replayed(hypothesis, seen, total, is_cut=True)
        n_before += len(run.rounds)
    return Replayed(hypothesis, seen, log_likelihood(seen))


class _Trail:
    """How the best hypothesis so far did, round by round."""

    def __init__(self, seen: list[Seen], total: float) -> None:
        self.seen, self.total = seen, total

    def behind(self, seen: list[Seen], n_rounds: int) -> float:
        """How far `seen`, the first n_rounds rounds, is behind the best over the same tokens (nats)."""
        n = min(len(seen), len(self.seen))
        return log_likelihood(self.seen[:n]) - log_likelihood(seen[:n]) if n else 0.0


def log_likelihood(seen: Sequence[Seen]) -> float:
    """Nats. A token that the hypothesis gives is near 1; one that it does not is a slip, or a near tie under noise.

    Formula  hit: log(1 - SLIP - exp(-second / noise) / 2); miss: log(SLIP + exp(-gap / noise) / 2), gaps in standard
             deviations of the row's logits; p: log(0.98 Laplace(p - p_port; spread) + 0.02). noise and spread are the
             best of a few values, one for the whole run
    """
    if not seen:
        return 0.0
    hit = np.asarray([s.is_hit for s in seen])
    gap = np.asarray([s.second if s.is_hit else s.gap for s in seen])
    tokens = max(_tokens(hit, gap, noise) for noise in NOISE)
    error = np.asarray([s.p - s.p_port for s in seen])
    error = np.abs(error[np.isfinite(error)])
    if not error.size:
        return tokens
    return tokens + P_WEIGHT * max(float(_laplace(error, spread).sum()) for spread in SPREAD)


def _tokens(hit: np.ndarray, gap: np.ndarray, noise: float) -> float:
    tie = 0.5 * np.exp(-np.minimum(gap / noise, 700.0))
    return float(np.where(hit, np.log(1 - SLIP - tie * (1 - 2 * SLIP)), np.log(SLIP + tie * (1 - 2 * SLIP))).sum())


def _laplace(error: np.ndarray, spread: float) -> np.ndarray:
    found: np.ndarray = np.log(0.98 / (2 * spread) * np.exp(-error / spread) + 0.02)
    return found


def _judge(replayed: dict[str, Replayed], impossible: list[str], base: Model, runs: list[PortRun]) -> LogDiagnosis:
    scored = [Scored(r.hypothesis, r.log_likelihood, r.words()) for r in replayed.values()]
    groups = grouped(scored, lambda a, b: abs(a.log_likelihood - b.log_likelihood) < SAME)
    harmless = max((s for s in scored if s.hypothesis.is_harmless), key=lambda s: s.log_likelihood)
    healthy = replayed["healthy"].log_likelihood
    invisible = [
        s.hypothesis.id
        for s in scored
        if not s.hypothesis.is_harmless
        and abs(s.log_likelihood - healthy) < SAME
        and not replayed[s.hypothesis.id].is_cut
    ]
    home = next(g for g in groups if harmless in g.members)
    home.members = sorted(
        (s for s in home.members if s.hypothesis.is_harmless),
        key=lambda s: (s.hypothesis.kind != "healthy", s.hypothesis.kind != "preset", -s.log_likelihood),
    )
    ahead = groups[: groups.index(home)]
    needed = harmless.log_likelihood + MIN_GAIN + math.log(len(scored))
    proven = [g for g in ahead if g.best.log_likelihood > needed]
    doubtful = [g for g in ahead if g not in proven]
    groups = [*proven, home, *doubtful, *groups[len(ahead) + 1 :]]
    top = replayed[groups[0].best.hypothesis.id]
    open = unexplained(top.seen)
    if open is not None and open.is_doubt and proven:  # what the fault explains is more than what it leaves
        open = None
    rival = next((g.best for g in doubtful if g.best.log_likelihood > harmless.log_likelihood + MIN_GAIN), None)
    verdict = "found" if proven else "healthy" if open is None and rival is None else "undecided"
    if open is not None and not open.is_doubt:
        verdict = "unknown"
    first = None if open is None else open.first
    if open is None and verdict != "healthy":
        clear = CLEAR_MISS if proven else 0.0
        first = next((s for s in replayed["healthy"].seen if not s.is_hit and s.gap > clear), None)
    return LogDiagnosis(verdict, groups, replayed, invisible, impossible, base, first, runs, open, rival)


def _count(seen: Sequence[Seen], kinds: tuple[str, ...]) -> tuple[int, int]:
    of = [s for s in seen if s.kind in kinds]
    return sum(s.is_hit for s in of), len(of)
