"""A port's run: prompt, drafts, verdicts and tokens, whatever file they stand in.

Owns the three files that are read (a llama.cpp log, an mtpref trace, the small JSON of docs/diagnosis.md) and their
refusals. It must not know hypotheses.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from mtpref.base.errors import MtprefError
from mtpref.base.events import RunStarted
from mtpref.base.typed import Count, Ids, Sized, Within, parse_json_at, read, read_fields, read_number
from mtpref.files.doors import TextStream, open_text, read_up_to
from mtpref.files.gguf import printable
from mtpref.look.llama_cpp.log import LlamaLog, read_text, runs_of
from mtpref.look.llama_cpp.log_choice import MAX_PROMPT_IDS, choose_runs
from mtpref.look.llama_cpp.loops import loops_of
from mtpref.look.trace import read_trace
from mtpref.look.trace.rounds import Round as TraceRound
from mtpref.look.trace.rounds import rounds_of

SCHEMA = "mtpref-run-1"
MAX_JSON = 32 << 20
MAX_ROUNDS = 1 << 16
MAX_DRAFT = 1024
MAX_ID = 1 << 31
START_BYTES = 1 << 16  # in which the first line of a trace or a run ends


@dataclass(frozen=True)
class PortRound:
    """One round: the draft after id_last (None: the last token so far), how many were accepted, what was emitted
    (UNTOLD: a correction that the log does not tell).

    p   the draft's own probability of each drafted token over its ten best, None where it is not known
    """

    draft: tuple[int, ...]
    n_accepted: int
    emitted: tuple[int, ...]
    id_last: int | None = None
    p: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Settings:
    """What a run may say of its settings; None where it does not."""

    n_max: Annotated[int, Within(0, MAX_DRAFT)] | None = None
    n_min: Annotated[int, Within(0, MAX_DRAFT)] | None = None
    p_min: Annotated[float, Within(0, 1)] | None = None
    cooldown: Count | None = None
    cooldown_after: Count | None = None
    n_batch: Count | None = None
    n_predict: Annotated[int, Within(-1, (1 << 31) - 1)] | None = None
    temp: float | None = None
    accept: str | None = None
    rollback: str | None = None

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class PortRun:
    """What a port's log says of one run.

    prompt_ids   is_whole: the prompt was run whole, and its last token did not open the first round
    settings     what is known of: n_max, n_min, p_min, cooldown, cooldown_after, temp, rollback, n_batch
    loop         in words, what becomes of a draft that is accepted in part; "" where the file does not tell
    """

    label: str
    prompt_ids: tuple[int, ...]
    rounds: tuple[PortRound, ...]
    is_whole: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    loop: str = ""

    @property
    def n_drafted(self) -> int:
        return sum(len(r.draft) for r in self.rounds)


@dataclass(frozen=True)
class LogSource:
    """What --log names, opened once, since a pipe cannot be read twice: a log that has been read, or the open file of
    anything else."""

    label: str
    text: str = ""
    file: TextStream | None = None


def open_log(path: str | Path) -> LogSource:
    """Open a port's log to read it.

    Errors  MtprefError for what cannot be opened, or a log that is too large
    """
    label = printable(str(path), 200)
    file = open_text(path, label, "expected a log, a trace or a JSON")
    if file.start(START_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{":
        return LogSource(label, file=file)
    return LogSource(label, text=read_text(file))


def read_port_runs(
    path: str | Path | LogSource, prompt_ids: Sequence[int] | None = None, which: str | None = None
) -> list[PortRun]:
    """The runs of a log, a trace or a JSON file.

    prompt_ids  the prompt, where the file does not hold it    which  see llama_cpp.log_choice
    Errors      MtprefError, one line: unreadable, no such file, contradictory, or without a round
    """
    source = path if isinstance(path, LogSource) else open_log(path)
    label, file = source.label, source.file
    if file is None:
        runs = _of_log(source.text, label, prompt_ids, which)
    else:
        with file:
            first = file.start(START_BYTES).split(b"\n", 1)[0]
            is_trace = b'"event"' in first and b'"rounds"' not in first
            runs = _of_trace(file, label) if is_trace else [_of_json(file, label, prompt_ids)]
    runs = [run for run in runs if run.rounds]
    if not any(run.n_drafted for run in runs):
        raise MtprefError(f"{label}: no drafted token in it, expected the log of a run that drafts")
    return runs


# -------------------------------------------------------------------------------------------- llama.cpp


def _of_log(text: str, label: str, prompt_ids: Sequence[int] | None, which: str | None) -> list[PortRun]:
    found = []
    for run, ids in choose_runs(runs_of(text, label), label, prompt_ids, which):
        settings: dict[str, Any] = {k: _setting(k, run.header[k], label) for k in ("n_max", "p_min") if k in run.header}
        settings |= read_fields(Settings, dict(run.log.settings), f"{label}: settings").given()
        if run.log.temp is not None:
            settings["temp"] = run.log.temp
        rounds, request = _llama_rounds(run.log), run.log.request
        if request is not None and not request.is_first:
            raise MtprefError(
                f"{label}: {run.log.name}: not the first request of its slot, expected one: llama.cpp "
                "pairs its first token with a hidden row of the request before, which no log holds; "
                "start llama-server anew and send this request first"
            )
        if request is not None and rounds:
            rounds = (replace(rounds[0], id_last=request.opening), *rounds[1:])
        loop = loops_of(run.log)[0]
        if run.log.n_partial:
            settings["rollback"] = loop.rollback
        found.append(PortRun(label, tuple(ids), rounds, request is not None, settings, loop.words))
    return found


def _llama_rounds(log: LlamaLog) -> tuple[PortRound, ...]:
    rounds = []
    for r in log.rounds:
        p = tuple(step.candidates[0].p for step in r.steps[: r.n_draft])
        emitted = tuple(r.emitted)
        if r.is_replayed:  # the correction and the token after it: a round that drafted nothing (S52)
            rounds.append(PortRound(tuple(r.draft), r.n_accepted, emitted[:-1], None, p))
            rounds.append(PortRound((), 0, emitted[-1:], None, ()))
        else:
            rounds.append(PortRound(tuple(r.draft), r.n_accepted, emitted, None, p))
    return tuple(rounds)


def _setting(name: str, text: str, label: str) -> float:
    value: float = read_number(get_type_hints(Settings, include_extras=True)[name], text, f"{label}: header {name}")
    return value


# -------------------------------------------------------------------------------------------------- trace


def _of_trace(file: TextStream, label: str) -> list[PortRun]:
    runs: list[PortRun] = []
    started: RunStarted | None = None
    rounds: list[PortRound] = []
    first_pos: int | None = None

    def close() -> None:
        if started is not None and rounds:
            is_whole = first_pos == len(started.prompt_ids)
            settings = _trace_settings(started, label)
            runs.append(PortRun(label, tuple(started.prompt_ids), tuple(rounds), is_whole, settings))

    with read_trace(file) as events:
        for item in rounds_of(events):
            if isinstance(item, RunStarted):
                close()
                started, rounds, first_pos = item, [], None
                if item.n_reused:
                    raise MtprefError(
                        f"{label}: a run that continues a session ({item.n_reused} tokens reused), "
                        "expected runs that begin with an empty state"
                    )
            elif isinstance(item, TraceRound) and item.drafted is not None and item.verified is not None:
                first_pos = item.drafted.pos0 if first_pos is None else first_pos
                rounds.append(_trace_round(item))
    close()
    return runs


def _trace_round(item: TraceRound) -> PortRound:
    drafted, verified = item.drafted, item.verified
    assert drafted is not None
    assert verified is not None
    p = tuple(step.p[0] if step.p else 0.0 for step in drafted.steps[: len(drafted.ids)])
    emitted = tuple(token.id for token in item.tokens)
    has_p = len(p) == len(drafted.ids)
    return PortRound(tuple(drafted.ids), verified.n_accepted, emitted, drafted.id_last, p if has_p else None)


def _trace_settings(started: RunStarted, label: str) -> dict[str, Any]:
    found = started.settings
    policy, sampling = (x if isinstance(x, dict) else {} for x in (found.get("policy"), found.get("sampling")))
    settings: dict[str, Any] = {k: policy[k] for k in ("n_max", "n_min", "cooldown", "cooldown_after") if k in policy}
    if "p_min" in policy:
        settings["p_min"] = read(Annotated[int, Within(0, 1 << 32)], policy["p_min"], f"{label}: policy.p_min") / 2**32
    settings |= {k: sampling[k] for k in ("temp", "accept") if k in sampling}
    settings |= {k: found[k] for k in ("rollback", "n_batch", "n_predict") if k in found}
    given: dict[str, Any] = read_fields(Settings, settings, f"{label}: settings").given()
    return given


# --------------------------------------------------------------------------------------------------- JSON


@dataclass(frozen=True)
class _Round:
    """A round of the JSON, as diagnose/run.schema.json says."""

    draft: Annotated[Ids, Sized(0, MAX_DRAFT)]
    n_accepted: Count
    emitted: Annotated[Ids, Sized(1, MAX_ROUNDS)]
    id_last: Annotated[int, Within(0, MAX_ID - 1)] | None = None
    p: list[Annotated[float, Within(0, 1)]] | None = None


@dataclass(frozen=True)
class _Run:
    rounds: Annotated[list[_Round], Sized(1, MAX_ROUNDS)]
    prompt_ids: Annotated[Ids, Sized(1, MAX_PROMPT_IDS)] | None = None
    prompt_end: Literal["hold", "whole"] = "hold"
    settings: Settings = field(default_factory=Settings)


def _of_json(file: TextStream, label: str, prompt_ids: Sequence[int] | None) -> PortRun:
    raw = read_up_to(file, label, "expected a shorter run", MAX_JSON)
    record = parse_json_at(raw, label, f", expected an object of schema {SCHEMA}")
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise MtprefError(
            f'{label}: no "schema": "{SCHEMA}" in it, expected the object that docs/diagnosis.md describes'
        )
    run: _Run = read_fields(_Run, record, f"{label}: run")
    ids = run.prompt_ids or prompt_ids
    if not ids:
        raise MtprefError(f"{label}: no prompt_ids in it, expected the prompt's token ids; or use `prompt_ids`")
    rounds = tuple(_json_round(r, f"{label}: rounds[{i}]") for i, r in enumerate(run.rounds))
    is_whole = run.prompt_end == "whole"
    if is_whole and rounds[0].id_last is None:
        raise MtprefError(f"{label}: rounds[0] has no id_last, expected the first token where prompt_end is whole")
    return PortRun(label, tuple(ids), rounds, is_whole, run.settings.given())


def _json_round(r: _Round, where: str) -> PortRound:
    if r.n_accepted > len(r.draft):
        raise MtprefError(f"{where}: n_accepted {r.n_accepted} of {len(r.draft)} drafted, expected at most so many")
    if r.p is not None and len(r.p) != len(r.draft):
        raise MtprefError(f"{where}.p has {len(r.p)} entries, expected {len(r.draft)}, one a drafted token")
    return PortRound(tuple(r.draft), r.n_accepted, tuple(r.emitted), r.id_last, None if r.p is None else tuple(r.p))
