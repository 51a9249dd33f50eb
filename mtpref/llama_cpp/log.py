"""Parser of what stock llama.cpp's llama-speculative-simple prints at `-lv 5` with `--spec-type draft-mtp`.

A round is: for each draft step up to three candidates (best first, p over the ten best), then one accept line.
The last candidates of a round may not have been drafted (p_min, budget): `n_draft` of the accept line rules.
Works on raw logs (with or without timestamps and prefixes) and on recordings, where several runs stand behind headers.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from mtpref.errors import MtprefError
from mtpref.files import TextStream, open_text, unpacked
from mtpref.gguf import printable

MAX_LOG_BYTES = 32 << 20
# A piece is short: without a bound an unfinished line would be searched to the end of the file.
_EVENT = re.compile(
    r"draft candidate +(?P<rank>\d{1,3}), pos +(?P<pos>\d{1,9}): +(?P<id>-?\d{1,9}) \( *(?P<p>\d{1,3}\.\d{1,9})\) "
    r"'(?P<piece>.{0,400}?)'(?=\n|$)"
    r"|accepted (?P<n_accepted>\d{1,9})/(?P<n_draft>\d{1,9}) draft tokens, "
    r"the last target token is: \((?P<id_last>-?\d{1,9})\)"
    r"|partial acceptance: (?P<n_kept>\d{1,9}) < (?P<n_tried>\d{1,9}), restoring",
    re.DOTALL,
)
_SETTINGS = re.compile(r"- n_max=(\d{1,9}), n_min=(\d{1,9}), p_min=(\d{1,3}\.\d{1,9})")
_SUMMARY = re.compile(r"(?m)\b(n_draft|n_predict|n_drafted|n_accept) += (\d{1,12})$")
_COUNTS = re.compile(r"#(gen drafts|acc drafts|gen tokens|acc tokens|mean acc len) = +(\d{1,12}(?:\.\d{1,9})?)")
_CALLS = re.compile(r"#calls\(b,g,a\) = +(\d{1,12}) +(\d{1,12}) +(\d{1,12})")
_RATES = re.compile(r"#acc rate/pos = \(((?:\d{1,3}\.\d{1,9}[, ]*){0,4096})\)")


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
    """A parsed run: rounds in order, the summary and statistics lines as the log gives them.

    settings    n_max, n_min, p_min as the drafter printed them when it was made (p_min to two decimals)
    unfinished  the steps of a round whose accept line the log does not hold
    """

    rounds: list[Round] = field(default_factory=list)
    n_partial: int = 0
    settings: dict[str, float] = field(default_factory=dict)
    summary: dict[str, int] = field(default_factory=dict)
    statistics: dict[str, float] = field(default_factory=dict)
    calls: tuple[int, int, int] | None = None
    rates: list[float] = field(default_factory=list)
    unfinished: list[Step] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """All generated ids in order."""
        return [i for r in self.rounds for i in r.emitted]

    @property
    def is_complete(self) -> bool:
        """Whether its own count of tokens is there and agrees: a log may lose its tail."""
        return self.summary.get("n_predict") == len(self.ids)


@dataclass
class Run:
    """One recorded run: its header (model, prompt, prompt_ids, n_predict, n_max, p_min, ...) and its log."""

    header: dict[str, str]
    log: LlamaLog


def parse(text: str) -> LlamaLog:
    """Parse one run. Statistics that the text does not hold stay empty.

    Errors  MtprefError where lines contradict each other (lines that are missing in the middle)
    """
    log = LlamaLog()
    steps: list[Step] = []
    for match in _EVENT.finditer(text):
        if match["rank"] is not None:
            if match["rank"] == "0":
                steps.append(Step(int(match["pos"])))
            if not steps or int(match["rank"]) != len(steps[-1].candidates) or int(match["pos"]) != len(steps) - 1:
                raise _hole(log, f"candidate {match['rank']} of pos {match['pos']} comes out of order")
            steps[-1].candidates.append(Candidate(int(match["id"]), float(match["p"]), match["piece"]))
        elif match["n_accepted"] is not None:
            found = Round(steps, int(match["n_accepted"]), int(match["n_draft"]), int(match["id_last"]))
            if not found.n_accepted <= found.n_draft <= len(steps):
                raise _hole(log, f"accepted {found.n_accepted}/{found.n_draft} of {len(steps)} draft steps")
            log.rounds.append(found)
            steps = []
        else:
            log.n_partial += 1
    log.unfinished = steps
    _read_counts(log, text)
    return log


def _hole(log: LlamaLog, what: str) -> MtprefError:
    return MtprefError(f"log: round {len(log.rounds)}: {what}; expected the log of one run of llama-speculative-simple "
                       "-lv 5 --spec-type draft-mtp with no line missing")  # fmt: skip


def _read_counts(log: LlamaLog, text: str) -> None:
    if settings := _SETTINGS.search(text):
        log.settings = {"n_max": int(settings[1]), "n_min": int(settings[2]), "p_min": float(settings[3])}
    log.summary = {key: int(value) for key, value in _SUMMARY.findall(text)}
    log.statistics = {key: float(value) for key, value in _COUNTS.findall(text)}
    if calls := _CALLS.search(text):
        log.calls = (int(calls[1]), int(calls[2]), int(calls[3]))
    if rates := _RATES.search(text):
        log.rates = [float(part) for part in rates[1].split(",") if part.strip()]


def read_runs(path: str | Path | TextStream) -> list[Run]:
    """The runs of a raw log (one, without header) or of a recording, where each starts at a line `# run`, then
    `# key: value` lines. path: a file, a pipe, "-" or a text that is open; what gzip has packed is unpacked.

    Errors  MtprefError for a file that cannot be read, is too large, or holds no event
    """
    text = _read_text(path)
    parts = re.split(r"(?m)^# run\n", text)
    try:
        if len(parts) == 1:
            runs = [Run({}, parse(text))]
        else:
            runs = [Run(dict(re.findall(r"(?m)^# ([a-z0-9_]+): (.*)$", part)), parse(part)) for part in parts[1:]]
    except MtprefError as error:
        raise MtprefError(f"{printable(str(path), 400)}: {error}") from None
    if not any(run.log.rounds or run.log.unfinished for run in runs):
        raise MtprefError(f"{printable(str(path), 400)}: no draft candidate and no acceptance in it, expected the log "
                          "of llama-speculative-simple -lv 5 --spec-type draft-mtp (it goes to stderr)")  # fmt: skip
    return runs


def _read_text(source: str | Path | TextStream) -> str:
    """The text, unpacked where gzip has packed it. A piece at a time: its bytes are held once, and so is the text."""
    label, expected = printable(str(source), 400), "expected the log of a run"
    raw = bytearray()
    with source if isinstance(source, TextStream) else open_text(source, label, expected) as file:
        for piece in unpacked(file, label, expected):
            # A line's end that two pieces share is put together before it is looked at.
            tail = raw[-1:] if raw.endswith(b"\r") else b""
            del raw[len(raw) - len(tail) :]
            raw += (tail + piece).replace(b"\r\n", b"\n")
            if len(raw) > MAX_LOG_BYTES:
                raise MtprefError(f"{label}: more than {MAX_LOG_BYTES >> 20} MiB, expected the log of a shorter run")
    return raw.decode("utf-8", "replace")
