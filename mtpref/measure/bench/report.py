"""A benchmark from end to end: every kind of pass, and MTP at a scripted acceptance, alternated and repeated.

Owns what is measured, in which order, and the schema. All of one round comes before the next, so that drift of the
machine meets everything alike; numbers are medians over rounds, with the least and the greatest beside them.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from mtpref.base.events import PromptProgress, Token
from mtpref.base.settings import Bounds, SettingError, check_fields
from mtpref.engine.decode import (
    Decoder,
    MtpDrafter,
    Options,
    PolicyConfig,
    ScriptedDrafter,
    Statistics,
    most_drafted,
    n_in_chain,
)
from mtpref.engine.model import Model
from mtpref.measure.bench.bandwidth import read_gb_per_second
from mtpref.measure.bench.llama import LlamaBench
from mtpref.measure.bench.passes import Passes
from mtpref.measure.bench.scripted import WorkingDrafter, script
from mtpref.measure.experts import mean_touched, n_used, weight_bytes

SCHEMA = "mtpref-bench-1"
PARTS = ("prompt", "decode", "verify", "draft", "rollback", "mtp")
Progress = Callable[[int, int], None]
Heads = Sequence[tuple[str, Model]]  # a name, and the model with that head vocabulary


MOST = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and how long.

    parts      what is measured, of PARTS
    n_prompt   tokens of a prompt pass          n_gen     tokens of a plain run
    widths     tokens of verify passes          n_depth   tokens that are in the context before any pass
    drafts     draft lengths of the MTP runs    acceptance of each of their tokens
    n_rounds   how often everything is measured
    """

    parts: tuple[str, ...] = PARTS
    n_prompt: Annotated[int, Bounds(1, MOST)] = 512
    n_gen: Annotated[int, Bounds(2, MOST)] = 32
    widths: tuple[Annotated[int, Bounds(2, MOST)], ...] = (2, 4, 8)
    n_depth: Annotated[int, Bounds(2, MOST)] = 64
    drafts: tuple[Annotated[int, Bounds(1, MOST)], ...] = (1, 2, 3)
    acceptance: Annotated[float, Bounds(0, 1)] = 0.8
    n_rounds: Annotated[int, Bounds(1, MOST)] = 5

    def __post_init__(self) -> None:
        check_fields(self, "bench.Settings")
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            problem = f"{(unknown or [''])[0]!r} is unknown, expected some of {','.join(PARTS)}"
            raise SettingError("bench.Settings.parts", problem)


@dataclass
class Row:
    """One line of the table.

    ms       milliseconds of each round            n_tokens   tokens that they give
    n_bytes  bytes of weights that a pass reads, 0 where that says nothing
    theirs   the same of llama-bench, if it was run
    n_experts  distinct experts a layer that a pass touched, the same in each round; 0 for a model without
    """

    part: str
    name: str
    n_tokens: float
    n_bytes: int = 0
    ms: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    n_experts: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens per second: of the median."""
        return 1000 * self.n_tokens / statistics.median(self.ms)

    @property
    def ratio(self) -> float | None:
        """How much faster than llama-bench, by medians."""
        return statistics.median(self.theirs) / statistics.median(self.ms) if self.theirs else None

    def share_of(self, gb_per_second: float | None) -> float | None:
        """Of plain-read bandwidth, what the pass reads of weights."""
        if not gb_per_second or not self.n_bytes:
            return None
        return self.n_bytes / (statistics.median(self.ms) / 1000) / 1e9 / gb_per_second

    def to_json(self) -> dict[str, Any]:
        values = asdict(self) | {"tokens_per_second": self.rate, "ratio": self.ratio}
        return {name: _rounded(value) for name, value in values.items()}


@dataclass(frozen=True)
class Bench:
    """What was measured. read_gb: plain-read bandwidth in GB/s, before the first round and after each."""

    settings: Settings
    n_threads: int
    rows: tuple[Row, ...]
    read_gb: tuple[float, ...]
    theirs: str = ""

    @property
    def bandwidth(self) -> float | None:
        return statistics.median(self.read_gb) if self.read_gb else None

    def row(self, part: str, name: str) -> Row | None:
        return next((row for row in self.rows if (row.part, row.name) == (part, name)), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "settings": asdict(self.settings),
            "n_threads": self.n_threads,
            "read_gb_per_second": [_rounded(gb) for gb in self.read_gb],
            "llama_bench": self.theirs,
            "rows": [row.to_json() for row in self.rows],
        }


def bench(
    model: Model,
    heads: Heads,
    settings: Settings,
    n_threads: int,
    llama: LlamaBench | None = None,
    progress: Progress | None = None,
) -> Bench:
    """Measure everything that the settings name.

    heads   head vocabularies of draft steps and MTP runs; none: the model has no head
    """
    measured = _Measured(model, heads, settings, llama)
    measured.round()  # compiles, and fills caches
    measured.clear()
    read_gb = [read_gb_per_second()]
    for i in range(settings.n_rounds):
        measured.round()
        read_gb.append(read_gb_per_second())
        if progress is not None:
            progress(i + 1, settings.n_rounds)
    rows = tuple(row for row in measured.rows.values() if row.ms)
    return Bench(settings, n_threads, rows, tuple(gb for gb in read_gb if gb), "" if llama is None else llama.about)


class _Measured:
    """The rows as they fill."""

    def __init__(self, model: Model, heads: Heads, settings: Settings, llama: LlamaBench | None) -> None:
        self.model, self.heads, self.settings, self.llama = model, heads, settings, llama
        self.ids = some_ids(model, settings.n_depth)
        self.drafts = tuple(dict.fromkeys(most_drafted(model, n) for n in settings.drafts))
        n_max = max([*settings.widths, *(n + 1 for n in self.drafts)]) - 1
        self.passes = Passes(model, [head for _, head in heads], self.ids, n_max)
        self.rows: dict[str, Row] = {}

    def clear(self) -> None:
        for row in self.rows.values():
            row.ms.clear()
            row.theirs.clear()

    def _put(self, part: str, name: str, n_tokens: float, ms: float, n_bytes: int = 0, n_experts: float = 0.0) -> None:
        row = self.rows.setdefault(f"{part} {name}", Row(part, name, n_tokens, n_bytes, n_experts=n_experts))
        row.ms.append(ms)

    def round(self) -> None:
        s = self.settings
        theirs = {} if self.llama is None else self.llama.run(s.n_prompt, s.n_gen, s.widths, s.n_depth, s.parts)
        for part in s.parts:
            getattr(self, f"_{part}")()
        for name, ms in theirs.items():
            if name in self.rows:
                self.rows[name].theirs.append(ms)

    def _prompt(self) -> None:
        n = self.settings.n_prompt
        ids, state = some_ids(self.model, n), self.model.new_state(n)
        start = time.perf_counter()
        out = self.model.trunk(state, ids, n_logits=1)
        ms = 1000 * (time.perf_counter() - start)
        self._put("prompt", str(n), n, ms, n_experts=mean_touched(out.routings))

    def _decode(self) -> None:
        ms, text = self._run(Options(n_predict=self.settings.n_gen, spec_type="none"), None)
        used = n_used(self.model)
        self._put("decode", "1", len(text), ms, trunk_bytes(self.model, used) * len(text), used)

    def _verify(self) -> None:
        for n in self.settings.widths:
            ms = self.passes.trunk(n, keep=n)
            n_experts = self.passes.n_experts
            self._put("verify", str(n), n, ms, trunk_bytes(self.model, n_experts), n_experts)

    def _draft(self) -> None:
        for name, head in self.heads:
            self._put("draft", name, 1, self.passes.draft(head), head_bytes(head))
            for n in range(2, n_in_chain(head) + 1):
                self._put("draft", f"{name} step {n}", 1, self.passes.chain(head, n), head_bytes(head, n - 1))

    def _rollback(self) -> None:
        """What a strategy adds to a pass over the same tokens: per draft length."""
        if not self.heads:
            return
        for n in self.drafts:
            keeping, alone = self.passes.trunk(n + 1, keep=n + 1), self.passes.trunk(n + 1, keep=1)
            self._put("rollback", f"snapshot n={n}", 1, max(0.001, keeping - alone + self.passes.choose(n)))
            again = self.passes.restore() + self.passes.trunk(1, keep=1, with_logits=False)
            self._put("rollback", f"replay n={n}", 1, self.passes.checkpoint() + again)

    def _mtp(self) -> None:
        s = self.settings
        if not self.heads:
            return
        ms, text = self._run(Options(n_predict=s.n_gen, spec_type="none"), None)
        self._put("mtp", "plain", len(text), ms)
        for name, head in self.heads:
            for n in self.drafts:
                policy = PolicyConfig(n_max=n)
                drafter = MtpDrafter(head, Statistics())
                scripted = ScriptedDrafter(text, script(s.acceptance, n, s.n_gen), len(self.ids), self.model.n_vocab)
                ms, ids = self._run(Options(n_predict=s.n_gen, policy=policy), WorkingDrafter(drafter, scripted))
                if ids != text[: len(ids)]:
                    raise AssertionError("the text with drafts is not the text without")
                self._put("mtp", f"{name} n={n}", len(ids), ms)

    def _run(self, options: Options, drafter: Any) -> tuple[float, list[int]]:
        """Milliseconds after the prompt of a run, and its ids."""
        decoder = Decoder(self.model, self.model.new_state(len(self.ids) + options.n_predict + 20), options, drafter)
        ids, start = [], 0.0
        for event in decoder.run(self.ids):
            if isinstance(event, Token):
                ids.append(event.id)
            elif isinstance(event, PromptProgress):
                start = time.perf_counter()
        return 1000 * (time.perf_counter() - start), ids


def some_ids(model: Model, n: int) -> list[int]:
    """n ids spread over the vocabulary: what they say does not matter, that they are not all one row does."""
    return [(7919 * i + 11) % model.n_vocab for i in range(n)]


def trunk_bytes(model: Model, n_experts: float) -> int:
    """Bytes of weight matrices that a pass reads, every layer's and the output's, with so many experts of a layer."""
    w = model.weights
    return int(weight_bytes([*(m for layer in w.layers for m in layer.values()), w.output], n_experts))


def head_bytes(model: Model, head: int = 0) -> int:
    """Bytes of weight matrices that a draft step reads. head: which of a chain"""
    if not model.heads:
        return 0
    mtp = model.heads[head].weights
    return int(weight_bytes([*mtp.block.values(), mtp.eh_proj, mtp.shared_head_head], n_used(model)))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    return [_rounded(item) for item in value] if isinstance(value, list) else value
