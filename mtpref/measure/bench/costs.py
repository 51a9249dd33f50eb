"""The cost of every pass that a draft/verify loop makes, as an object and as a JSON file.

Owns the schema `mtpref-costs-1` and what stands in for a number that a file leaves out. All times are milliseconds.
It must not know whose costs they are: docs/plan.md asks other engines for the same numbers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from mtpref.base.errors import MtprefError
from mtpref.base.typed import Within, describe, parse_json_at, read
from mtpref.files.doors import read_regular
from mtpref.files.gguf import printable, write_whole

SCHEMA = "mtpref-costs-1"
MAX_BYTES = 1 << 20
Milliseconds = Annotated[float, Within(0, 1e9)]
MAX_WIDTH = 1025  # a draft of 1024 tokens and the one that opens it

# What a file may leave out, and what is taken for it.
STAND_INS = {
    "verify_keep": "verify",
    "replay": "verify",
    "choose": "0",
    "checkpoint": "0",
    "restore": "0",
    "catch_up": "0",
    "round": "0",
    "token": "0",
}


@dataclass(frozen=True)
class Costs:
    """Milliseconds.

    plain        a decode pass of one token, with logits
    verify       tokens -> a trunk pass of so many, with logits of all, that keeps the last recurrent state alone
    verify_keep  the same where the recurrent state is kept after each token (`snapshot`)
    replay       tokens -> a trunk pass without logits, which runs an accepted prefix again
    draft        rows of the head's vocabulary -> one draft step: from a hidden row to the next drafted id
    chain        of several heads: rows of a draft step -> the step of a head over so many, with the whole vocabulary;
                 empty where every step is one row of one head
    catch_up     tokens -> the head over kept tokens, without logits; every head of a chain
    choose, checkpoint, restore   choosing one of the kept states; copying the state; copying it back
    round, token                  what else a round costs, and an emitted token
    experts      tokens -> distinct experts a layer that the verify pass of so many touched; empty without experts
    """

    plain: float
    verify: Mapping[int, float]
    draft: Mapping[int, float]
    verify_keep: Mapping[int, float] = field(default_factory=dict)
    replay: Mapping[int, float] = field(default_factory=dict)
    catch_up: Mapping[int, float] = field(default_factory=dict)
    chain: Mapping[int, float] = field(default_factory=dict)
    choose: float = 0.0
    checkpoint: float = 0.0
    restore: float = 0.0
    round: float = 0.0
    token: float = 0.0
    experts: Mapping[int, float] = field(default_factory=dict)

    def verify_at(self, n: int, *, keep: bool) -> float:
        """A verify pass of n tokens, the opening one among them."""
        table = self.verify_keep if keep and self.verify_keep else self.verify
        return between({1: self.plain, **table}, n)

    def replay_at(self, n: int) -> float:
        return between(self.replay, n) if self.replay else self.verify_at(n, keep=False)

    def draft_at(self, n_rows: int) -> float:
        return between(self.draft, n_rows)

    def step_at(self, n: int, n_rows: int) -> float:
        """The n-th step of a draft, from 1: of a chain it runs over n rows."""
        if not self.chain or n == 1:
            return self.draft_at(n_rows)
        return max(0.0, between(self.chain, n) + self.draft_at(n_rows) - self.draft_at(max(self.draft)))

    def catch_up_at(self, n: int) -> float:
        return between(self.catch_up, n) if self.catch_up else 0.0

    def for_text(self, experts: Mapping[int, float]) -> "Costs":
        """These costs for a text whose passes of w tokens touch experts[w] experts a layer, where they were measured
        with others.

        Rule     a trunk pass of w tokens costs what its table says, plus the difference of experts times what an expert
                 more costs there: the slope of the table between the widths around w, against their experts
        Errors   none; without counts on either side the costs stay as they are
        """
        if not self.experts or not experts:
            return self
        return replace(
            self,
            experts=dict(experts),
            verify=self._with_experts(self.verify, experts),
            verify_keep=self._with_experts(self.verify_keep, experts),
            replay=self._with_experts(self.replay, experts),
        )

    def for_chain(self, n_heads: int) -> "Costs":
        """These costs for a chain of heads where they do not say what its steps cost.

        Rule     a step over n rows is one over a single row, and what a head takes for n - 1 rows more in catching up
        """
        if self.chain or n_heads < 2:
            return self
        one, first = self.draft_at(max(self.draft)), self.catch_up_at(1)
        steps = {n: one + max(0.0, self.catch_up_at(n) - first) / n_heads for n in range(1, n_heads + 1)}
        return replace(self, chain=steps)

    def _with_experts(self, table: Mapping[int, float], experts: Mapping[int, float]) -> dict[int, float]:
        return {w: self._at_experts(table, w, experts) for w in table}

    def _at_experts(self, table: Mapping[int, float], w: int, experts: Mapping[int, float]) -> float:
        points = sorted(({1: self.plain} | dict(table)).items())
        known = [(n, ms) for n, ms in points if n in self.experts]
        if w not in self.experts or w not in experts or len(known) < 2:
            return table[w]
        i = next(k for k, (n, _) in enumerate(known) if n == w)
        (a, low), (b, high) = known[max(0, i - 1)], known[min(len(known) - 1, i + 1)]
        more = self.experts[b] - self.experts[a]
        slope = max(0.0, high - low) / more if more > 0 else 0.0
        return max(0.0, table[w] + slope * (experts[w] - self.experts[w]))


@dataclass(frozen=True)
class CostSet:
    """Costs, and how far they can be trusted.

    costs    the mean of the samples
    samples  the same, measured several times in turn; at least one
    engine, about   what was measured, in words;  assumed: what stands in for numbers that are not there
    """

    costs: Costs
    samples: tuple[Costs, ...]
    engine: str
    about: str = ""
    assumed: tuple[str, ...] = ()

    def for_text(self, experts: Mapping[int, float]) -> "CostSet":
        """`Costs.for_text` of the mean and of every sample."""
        samples = tuple(sample.for_text(experts) for sample in self.samples)
        return replace(self, costs=self.costs.for_text(experts), samples=samples)

    def for_chain(self, n_heads: int) -> "CostSet":
        """`Costs.for_chain` of the mean and of every sample; that it was used is said."""
        if self.costs.chain or n_heads < 2:
            return self
        samples = tuple(sample.for_chain(n_heads) for sample in self.samples)
        assumed = (*self.assumed, f"chain = draft, and catch_up / {n_heads} for further rows")
        return replace(self, costs=self.costs.for_chain(n_heads), samples=samples, assumed=assumed)

    def to_json(self) -> dict[str, Any]:
        head = {"schema": SCHEMA, "engine": self.engine, "about": self.about, "unit": "ms"}
        return {**head, **_plain(self.costs), "samples": [_plain(sample) for sample in self.samples]}


def between(table: Mapping[int, float], n: int) -> float:
    """The value at n: a straight line between the neighbours; beyond the ends the last line goes on, not below 0."""
    if n in table:
        return table[n]
    points = sorted(table.items())
    if len(points) == 1:
        return points[0][1]
    ends = next((pair for pair in pairwise(points) if n < pair[1][0]), (points[-2], points[-1]))
    (x0, y0), (x1, y1) = ends
    return max(0.0, y0 + (y1 - y0) * (n - x0) / (x1 - x0))


def mean_costs(samples: Sequence[Costs]) -> Costs:
    """Every number's mean: a run pays for the slow passes too."""
    values: dict[str, Any] = {}
    for entry in fields(Costs):
        parts = [getattr(sample, entry.name) for sample in samples]
        if isinstance(parts[0], Mapping):
            values[entry.name] = {key: fmean(part[key] for part in parts) for key in parts[0]}
        else:
            values[entry.name] = fmean(parts)
    return Costs(**values)


def ideal_costs() -> Costs:
    """Drafts and roll back are free, and a trunk pass costs 1 whatever its width: the ceiling of any engine."""
    return Costs(plain=1.0, verify={2: 1.0}, draft={1: 0.0}, replay={1: 1.0})


# FILE


def _plain(costs: Costs) -> dict[str, Any]:
    return {
        name: {str(key): round(ms, 6) for key, ms in value.items()} if isinstance(value, Mapping) else round(value, 6)
        for name, value in asdict(costs).items()
        if value != {}
    }


def write_costs(found: CostSet, path: str | Path) -> None:
    """Write a file that `read_costs` reads, whole or not at all."""
    write_whole(path, (json.dumps(found.to_json(), indent=1) + "\n").encode("ascii", "replace"))


def read_costs(path: str | Path) -> CostSet:
    """Costs from a JSON file of schema `mtpref-costs-1`: plain, verify and draft must be there.

    Errors   MtprefError naming the key, what is there and what is expected
    """
    source = f"`costs` {printable(str(path), 400)}"
    data = _read_json(path, source)
    if data.get("schema") != SCHEMA:
        found = printable(repr(data.get("schema")), 60)
        raise MtprefError(f"{source}: schema {found}, expected {SCHEMA!r}; mtpref plan --save-costs FILE writes one")
    if data.get("unit", "ms") != "ms":
        raise MtprefError(f"{source}: unit {printable(repr(data['unit']), 40)}, expected 'ms', milliseconds")
    names = {entry.name for entry in fields(Costs)}
    unknown = sorted(set(data) - names - {"schema", "engine", "about", "unit", "samples"})
    if unknown:
        raise MtprefError(
            f"{source}: key {printable(unknown[0], 60)!r} is unknown, expected some of {', '.join(sorted(names))}"
        )
    costs = _costs(data, source)
    raw_samples = data.get("samples", [])
    if not isinstance(raw_samples, list) or not all(isinstance(sample, dict) for sample in raw_samples):
        raise MtprefError(f"{source}: samples is no list of objects, expected one, each with the keys of the whole")
    samples = tuple(_costs(sample, f"{source}: sample {i}") for i, sample in enumerate(raw_samples))
    for i, sample in enumerate(samples):
        if _shape(sample) != _shape(costs):
            raise MtprefError(f"{source}: sample {i} has other keys or widths, expected those of the whole")
    assumed = tuple(f"{name} = {of}" for name, of in STAND_INS.items() if name not in data)
    engine, about = (printable(read(str, data.get(key, ""), f"{source}: {key}"), 200) for key in ("engine", "about"))
    return CostSet(costs, samples or (costs,), engine or "unnamed", about, assumed)


def _read_json(path: str | Path, source: str) -> dict[str, Any]:
    raw = read_regular(path, source, "expected a small JSON file of costs", MAX_BYTES)
    expected = f", expected one object of schema {SCHEMA}"
    data = parse_json_at(raw, source, expected)
    if not isinstance(data, dict):
        raise MtprefError(f"{source}: a JSON {type(data).__name__}{expected}")
    return data


def _costs(data: dict[str, Any], source: str) -> Costs:
    for name in ("plain", "verify", "draft"):
        if name not in data:
            raise MtprefError(f"{source}: key {name!r} is missing, expected plain, verify and draft at least")
    values: dict[str, Any] = {}
    for entry in fields(Costs):
        if entry.name not in data:
            continue
        is_table = entry.name in ("verify", "verify_keep", "replay", "draft", "catch_up", "chain", "experts")
        value, at = data[entry.name], f"{source}: {entry.name}"
        values[entry.name] = _table(value, at, entry.name == "draft") if is_table else _number(value, at)
    costs = Costs(**values)
    if costs.plain <= 0:
        raise MtprefError(f"{source}: plain is {costs.plain:g}, expected more than 0 ms")
    return costs


def _number(value: Any, source: str) -> float:
    found: float = read(Milliseconds, value, source)
    return found


def _table(value: Any, source: str, is_rows: bool) -> dict[int, float]:
    what, high = ("rows of the head", 1 << 24) if is_rows else ("tokens of a pass", MAX_WIDTH)
    if not isinstance(value, dict) or not value:
        raise MtprefError(f"{source} is {describe(value)}, expected an object: {what} to milliseconds")
    table = {}
    for key, ms in value.items():
        n = int(key) if key.isascii() and key.isdigit() and len(key) <= 8 else 0
        if not 1 <= n <= high:
            raise MtprefError(f"{source}: key {printable(key, 40)!r}, expected {what}, 1 .. {high}")
        table[n] = _number(ms, f"{source}: {n}")
    return table


def _shape(costs: Costs) -> dict[str, Any]:
    return {name: sorted(value) if isinstance(value, Mapping) else None for name, value in asdict(costs).items()}
