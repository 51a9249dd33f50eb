"""Parser of what stock llama.cpp's llama-speculative-simple prints at `-lv 5` with `--spec-type draft-mtp`.

A round is: for each draft step up to three candidates (best first, p over the ten best), then one accept line.
The last candidates of a round may not have been drafted (p_min, budget): `n_draft` of the accept line rules.
Works on raw logs (with or without timestamps and prefixes) and on the recordings in tests/data/llama_cpp.
"""

import gzip
import re
from dataclasses import dataclass, field
from pathlib import Path

_EVENT = re.compile(
    r"draft candidate +(?P<rank>\d+), pos +(?P<pos>\d+): +(?P<id>-?\d+) \( *(?P<p>[0-9.]+)\) '(?P<piece>.*?)'(?=\n|$)"
    r"|accepted (?P<n_accepted>\d+)/(?P<n_draft>\d+) draft tokens, the last target token is: \((?P<id_last>-?\d+)\)"
    r"|partial acceptance: (?P<n_kept>\d+) < (?P<n_tried>\d+), restoring",
    re.DOTALL,
)
_SUMMARY = re.compile(r"(?m)\b(n_draft|n_predict|n_drafted|n_accept) += (\d+)$")
_COUNTS = re.compile(r"#(gen drafts|acc drafts|gen tokens|acc tokens|mean acc len) = +([0-9.]+)")
_CALLS = re.compile(r"#calls\(b,g,a\) = +(\d+) +(\d+) +(\d+)")
_RATES = re.compile(r"#acc rate/pos = \(([0-9., ]*)\)")


@dataclass(frozen=True)
class Candidate:
    """One of the best tokens of a draft step; p is the softmax over the ten best, to three decimals."""

    id: int
    p: float
    piece: str


@dataclass
class Step:
    """One draft step; `pos` counts from 0 within the round."""

    pos: int
    candidates: list[Candidate] = field(default_factory=list)


@dataclass
class Round:
    """One draft and its verdict. `id_last` is the correction or bonus token."""

    steps: list[Step]
    n_accepted: int
    n_draft: int
    id_last: int

    @property
    def draft(self) -> list[int]:
        """The ids that were verified: the best candidates of the first n_draft steps."""
        return [step.candidates[0].id for step in self.steps[: self.n_draft]]

    @property
    def emitted(self) -> list[int]:
        """The ids this round added to the text: accepted draft tokens, then the target's own token."""
        return [*self.draft[: self.n_accepted], self.id_last]


@dataclass
class LlamaLog:
    """A parsed run: rounds in order, the summary and statistics lines as the log gives them."""

    rounds: list[Round] = field(default_factory=list)
    n_partial: int = 0
    summary: dict[str, int] = field(default_factory=dict)
    statistics: dict[str, float] = field(default_factory=dict)
    calls: tuple[int, int, int] | None = None
    rates: list[float] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """All generated ids in order."""
        return [i for r in self.rounds for i in r.emitted]


@dataclass
class Run:
    """One recorded run: its header (model, prompt, prompt_ids, n_predict, n_max, p_min, ...) and its log."""

    header: dict[str, str]
    log: LlamaLog


def parse(text: str) -> LlamaLog:
    """Parse one run. Statistics that the text does not hold stay empty; an unfinished last round is dropped."""
    log = LlamaLog()
    steps: list[Step] = []
    for match in _EVENT.finditer(text):
        if match["rank"] is not None:
            if match["rank"] == "0":
                steps.append(Step(int(match["pos"])))
            steps[-1].candidates.append(Candidate(int(match["id"]), float(match["p"]), match["piece"]))
        elif match["n_accepted"] is not None:
            log.rounds.append(Round(steps, int(match["n_accepted"]), int(match["n_draft"]), int(match["id_last"])))
            steps = []
        else:
            log.n_partial += 1
    log.summary = {key: int(value) for key, value in _SUMMARY.findall(text)}
    log.statistics = {key: float(value) for key, value in _COUNTS.findall(text)}
    if calls := _CALLS.search(text):
        log.calls = (int(calls[1]), int(calls[2]), int(calls[3]))
    if rates := _RATES.search(text):
        log.rates = [float(part) for part in rates[1].split(",") if part.strip()]
    return log


def read_runs(path: str | Path) -> list[Run]:
    """The runs of a recording (.log or .log.gz): each starts at a line `# run`, then `# key: value` lines."""
    raw = Path(path).read_bytes()
    text = (gzip.decompress(raw) if str(path).endswith(".gz") else raw).decode()
    runs = []
    for part in re.split(r"(?m)^# run\n", text)[1:]:
        header = dict(re.findall(r"(?m)^# ([a-z0-9_]+): (.*)$", part))
        runs.append(Run(header, parse(part)))
    return runs
