"""A plan from end to end: every setting's tokens per second, the best of them, and the ceilings.

Owns the grid of settings, the intervals and the schema. render.py prints it, plot.py draws it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.base.settings import Bounds, check_fields
from mtpref.engine.decode import STRATEGIES, AdaptiveConfig, PolicyConfig, most_drafted, n_in_chain, notes_of
from mtpref.measure.bench import Costs, CostSet
from mtpref.measure.bench.costs import ideal_costs
from mtpref.measure.experts import touched_by_width
from mtpref.measure.plan.price import all_accepted, milliseconds
from mtpref.measure.plan.record import Continuation, Trim
from mtpref.measure.plan.replay import Setting, Tally, replay
from mtpref.measure.probe.count import Estimate, jackknife
from mtpref.spec.policy import MAX_COST, Length

SCHEMA = "mtpref-plan-1"
MAX_DRAFT = 16
Z_95 = 1.959963984540054
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a plan compares. n_max: longest draft; p_mins, cooldowns: values of --spec-draft-p-min, --spec-cooldown."""

    n_max: Annotated[int, Bounds(1, MAX_DRAFT)] = 8
    p_mins: tuple[Annotated[float, Bounds(0, 1)], ...] = (0.0, 0.5, 0.75)
    cooldowns: tuple[Length, ...] = (0, 1)

    def __post_init__(self) -> None:
        check_fields(self, "plan.Settings")


@dataclass(frozen=True)
class Line:
    """One setting under one strategy. rule: what bounds its drafts besides n; rate: tokens per second."""

    setting: Setting
    strategy: str
    rule: str
    rate: Estimate
    tally: Tally
    flags: str

    @property
    def n(self) -> int:
        return self.setting.policy.n_max

    def to_json(self) -> dict[str, Any]:
        policy, tally = self.setting.policy, self.tally
        return {
            "trim": self.setting.trim,
            "strategy": self.strategy,
            "n_max": policy.n_max,
            "p_min": policy.p_min,
            "cooldown": policy.cooldown,
            "adaptive": self.setting.adaptive.rule,
            "tokens_per_second": self.rate.to_json(),
            "n_tokens": tally.n_tokens,
            "n_rounds": tally.rounds.total(),
            "n_drafted": tally.n_drafted,
            "n_accepted": tally.n_accepted,
            "n_cooldown_rounds": tally.n_silent,
            "flags": self.flags,
        }


@dataclass(frozen=True)
class Ceiling:
    """Tokens per trunk pass if drafts and roll back were free and every pass cost the same, for n = 0 .. n_max."""

    name: str
    measured: tuple[float, ...]
    all_accepted: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """plain: decoding without drafts; lines: every setting; best, alike: the fastest, and those that it is not surely
    faster than; acceptance: per trim, a_1 .. a_n of drafts of n_max tokens; costs: as the texts' experts make them.

    notes              what is said of the settings: that a chain of heads drafts no more tokens than it has heads
    experts            tokens of a pass -> distinct experts a layer in the texts; empty for a model without
    experts_of_costs   the same of the passes whose costs were measured; empty where the costs do not say
    """

    settings: Settings
    trims: tuple[Trim, ...]
    n_prompts: int
    n_tokens: int
    costs: CostSet
    plain: Line
    lines: tuple[Line, ...]
    best: Line
    alike: tuple[Line, ...]
    speed_up: Estimate
    acceptance: dict[str, list[Estimate]]
    ceilings: tuple[Ceiling, ...]
    experts: dict[int, float] = field(default_factory=dict)
    experts_of_costs: dict[int, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "settings": asdict(self.settings),
            "trims": [{"name": trim.name, "n_rows": trim.n_rows} for trim in self.trims],
            "n_prompts": self.n_prompts,
            "n_tokens": self.n_tokens,
            "costs": self.costs.to_json(),
            "assumed": list(self.costs.assumed),
            "acceptance": {name: [e.to_json() for e in rates] for name, rates in self.acceptance.items()},
            "plain": self.plain.to_json(),
            "best": self.best.to_json(),
            "speed_up": self.speed_up.to_json(),
            "alike": [line.to_json() for line in self.alike],
            "lines": [line.to_json() for line in self.lines],
            "ceilings": [asdict(ceiling) for ceiling in self.ceilings],
            "experts": self.experts,
            "experts_of_costs": self.experts_of_costs,
            "notes": list(self.notes),
        }


def plan(texts: Sequence[Continuation], trims: Sequence[Trim], costs: CostSet, settings: Settings) -> Plan:
    """Every setting's tokens per second on recorded texts. Of a chain drafts are as long as it has heads, at most.

    Errors   MtprefError where the texts have no token
    """
    texts = [text for text in texts if len(text.ids) > text.n_before]
    if not texts:
        raise MtprefError("plan: nothing was generated, expected a token at least; use `Options.n_predict` 2 or more")
    head = trims[0].head
    notes = tuple(notes_of(head, settings.n_max))
    settings = replace(settings, n_max=most_drafted(head, settings.n_max))
    experts = touched_by_width([text.experts for text in texts if text.experts is not None], settings.n_max + 1)
    measured, costs = costs, costs.for_text(experts).for_chain(n_in_chain(head))
    rows = {trim.name: trim.n_rows for trim in trims}
    flags = {trim.name: trim.flag for trim in trims}
    pricer = _Pricer(texts, costs, rows)
    plain = pricer.line(Setting(trims[0].name, PolicyConfig(n_max=0)), "snapshot", "plain", "--spec-type none")
    lines = [
        pricer.line(setting, strategy, rule, _flags(setting, strategy, flags[setting.trim]))
        for setting, rule in _grid(trims, settings, costs.costs)
        for strategy in STRATEGIES
    ]
    best = max([plain, *lines], key=lambda line: line.rate.value or 0.0)
    alike = tuple(line for line in [plain, *lines] if line is not best and not pricer.is_above(best, line))
    return Plan(
        settings=settings,
        trims=tuple(trims),
        n_prompts=len(texts),
        n_tokens=plain.tally.n_tokens,
        costs=costs,
        plain=plain,
        lines=tuple(lines),
        best=best,
        alike=alike,
        speed_up=pricer.speed_up(best, plain),
        acceptance={trim.name: _acceptance(texts, trim.name, settings.n_max) for trim in trims},
        ceilings=_ceilings(texts, trims[0].name, settings),
        experts=experts,
        experts_of_costs=dict(measured.costs.experts),
        notes=notes,
    )


# SETTINGS


def _grid(trims: Sequence[Trim], settings: Settings, costs: Costs) -> list[tuple[Setting, str]]:
    """Every (setting, rule): each p_min, each cooldown, each adaptive rule, one at a time, for n = 1 .. n_max."""
    grid = []
    for trim in trims:
        for n in range(1, settings.n_max + 1):
            for p in settings.p_mins:
                policy = PolicyConfig(n_max=n, p_min=p)
                grid.append((Setting(trim.name, policy), f"p_min {p:g}" if p else "-"))
            for k in settings.cooldowns:
                if k:
                    grid.append((Setting(trim.name, PolicyConfig(n_max=n, cooldown=k)), f"cooldown {k}"))
            for rule in ("heuristic", "expected"):
                adaptive = _adaptive(rule, costs, trim.n_rows, n)
                grid.append((Setting(trim.name, PolicyConfig(n_max=n), adaptive), rule))
    return grid


def _adaptive(rule: str, costs: Costs, n_rows: int, n: int) -> AdaptiveConfig:
    """The rule, told what a draft step costs, the mean of a draft of n tokens, and a row of a verify pass, the mean of
    the first four."""
    if rule != "expected":
        return AdaptiveConfig(rule=rule)
    draft = fmean(costs.step_at(k, n_rows) for k in range(1, n + 1)) / costs.plain
    row = max(0.0, costs.verify_at(5, keep=True) - costs.plain) / 4 / costs.plain
    return AdaptiveConfig(rule=rule, draft_cost=min(MAX_COST, draft), row_cost=min(MAX_COST, row))


def _flags(setting: Setting, strategy: str, trim_flag: str) -> str:
    """The setting as arguments of `mtpref generate`."""
    policy, rule = setting.policy, setting.adaptive
    parts = [f"--spec-draft-n-max {policy.n_max}"]
    parts += [trim_flag] if trim_flag else []
    parts += [f"--spec-rollback {strategy}"] if strategy != "snapshot" else []
    parts += [f"--spec-draft-p-min {policy.p_min:g}"] if policy.p_min else []
    parts += [f"--spec-cooldown {policy.cooldown}"] if policy.cooldown else []
    if rule.rule != "off":
        parts.append(f"--spec-adaptive {rule.rule}")
    if rule.rule == "expected":
        costs = f"{rule.draft_cost:.4f},{rule.row_cost:.4f}"
        parts.append(f"--spec-adaptive-costs {costs}")
    return " ".join(parts)


# RATES


class _Pricer:
    """Rates and their intervals. A text is the unit of chance: one is left out at a time."""

    def __init__(self, texts: Sequence[Continuation], costs: CostSet, rows: dict[str, int]) -> None:
        self.texts, self.costs, self.rows = texts, costs, rows
        self._tallies: dict[Setting, list[Tally]] = {}

    def line(self, setting: Setting, strategy: str, rule: str, flags: str) -> Line:
        sums, samples = self._sums(setting, strategy)
        tallies = self._tallies[setting]
        total = Tally(
            sum(t.n_tokens for t in tallies),
            sum((t.rounds for t in tallies), start=Counter()),
            sum((t.steps for t in tallies), start=Counter()),
            sum(t.n_silent for t in tallies),
            tallies[0].uses_head,
        )
        return Line(setting, strategy, rule, _with_costs(jackknife(sums, _rate)[0], samples), total, flags)

    def is_above(self, a: Line, b: Line) -> bool:
        """Whether a is faster than b beyond the chance of texts and of measured costs."""
        low = self.speed_up(a, b).low
        return low is not None and low > 1.0

    def speed_up(self, a: Line, b: Line) -> Estimate:
        """How many times as fast a is as b, by the same texts and costs."""
        (sums_a, samples_a), (sums_b, samples_b) = (self._sums(x.setting, x.strategy) for x in (a, b))
        both = np.stack([sums_a, sums_b], axis=1)
        return _with_costs(
            jackknife(both, lambda s: _rate(s[..., 0, :]) / _rate(s[..., 1, :]))[0],
            [x / y for x, y in zip(samples_a, samples_b, strict=True)],
        )

    def _sums(self, setting: Setting, strategy: str) -> tuple[Floats, list[float]]:
        """(texts, 2): tokens and milliseconds of each; and the whole rate under each sample of the costs."""
        if setting not in self._tallies:
            self._tallies[setting] = [replay(text, setting) for text in self.texts]
        tallies, n_rows = self._tallies[setting], self.rows[setting.trim]
        sums = np.array([[t.n_tokens, milliseconds(self.costs.costs, strategy, t, n_rows)] for t in tallies])
        samples = []
        for costs in self.costs.samples:
            spent = sum(milliseconds(costs, strategy, t, n_rows) for t in tallies)
            samples.append(1000 * float(sums[:, 0].sum()) / spent)
        return sums, samples


def _rate(sums: Floats) -> Floats:
    """(..., 2) -> (..., 1) tokens per second."""
    return 1000 * sums[..., :1] / sums[..., 1:]


def _with_costs(estimate: Estimate, samples: Sequence[float]) -> Estimate:
    """The interval widened by what the mean of the cost samples leaves open.

    Formula   half^2 = half_texts^2 + (1.96 sd / sqrt n)^2, the standard error of a mean of n samples
    """
    if estimate.value is None or estimate.low is None or estimate.high is None or len(samples) < 2:
        return estimate
    error = Z_95 * float(np.std(samples, ddof=1)) / len(samples) ** 0.5
    half = float(np.hypot((estimate.high - estimate.low) / 2, error))
    return Estimate(estimate.value, max(0.0, estimate.value - half), estimate.value + half)


def _acceptance(texts: Sequence[Continuation], trim: str, n_max: int) -> list[Estimate]:
    """a_1 .. a_n: the share of positions whose first k drafted tokens are all the text's. Every position is counted."""
    sums = np.zeros((len(texts), 2, n_max))
    for i, text in enumerate(texts):
        for at, ids in enumerate(text.drafts[trim].ids):
            own = text.ids[text.n_before + at :][:n_max]
            right = 0
            while right < min(len(ids), len(own)) and ids[right] == own[right]:
                right += 1
            sums[i, 0, : len(own)] += 1
            sums[i, 1, :right] += 1
    return jackknife(sums, lambda s: s[..., 1, :] / np.maximum(s[..., 0, :], 1), 0.0, 1.0)


def _ceilings(texts: Sequence[Continuation], trim: str, settings: Settings) -> tuple[Ceiling, ...]:
    costs, ceilings = ideal_costs(), []
    ways: list[tuple[str, str, int]] = [(strategy, strategy, 0) for strategy in STRATEGIES]
    ways += [(f"snapshot, cooldown {k}", "snapshot", k) for k in settings.cooldowns if k]
    for name, strategy, cooldown in ways:
        measured, best = [], []
        for n in range(settings.n_max + 1):
            setting = Setting(trim, PolicyConfig(n_max=n, cooldown=cooldown))
            tallies = [replay(text, setting) for text in texts]
            passes = sum(milliseconds(costs, strategy, tally, 1) for tally in tallies)
            measured.append(sum(tally.n_tokens for tally in tallies) / passes)
            whole = all_accepted(1, n)
            best.append(whole.n_tokens / milliseconds(costs, strategy, whole, 1))
        ceilings.append(Ceiling(name, tuple(measured), tuple(best)))
    return tuple(ceilings)
