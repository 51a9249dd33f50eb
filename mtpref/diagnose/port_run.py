"""A port's run: prompt, drafts, verdicts and tokens, whatever file they stand in.

Owns the three files that are read (a llama.cpp log, an mtpref trace, the small JSON of docs/diagnosis.md) and their
refusals. It must not know hypotheses.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mtpref.errors import MtprefError
from mtpref.events import RunStarted
from mtpref.files import TextStream, open_text, read_up_to
from mtpref.gguf import printable
from mtpref.llama_cpp.log import LlamaLog, read_text, runs_of
from mtpref.llama_cpp.log_choice import choose_runs
from mtpref.trace import read_trace
from mtpref.trace.rounds import Round as TraceRound
from mtpref.trace.rounds import rounds_of

SCHEMA = "mtpref-run-1"
MAX_JSON = 32 << 20
MAX_ROUNDS = 1 << 16
MAX_DRAFT = 1024
MAX_ID = 1 << 31
START_BYTES = 1 << 16  # in which the first line of a trace or a run ends


@dataclass(frozen=True)
class PortRound:
    """One round: the draft behind id_last (None: the last token so far), how many were accepted, what was emitted.

    p   the draft's own probability of each drafted token over its ten best, None where it is not known
    """

    draft: tuple[int, ...]
    n_accepted: int
    emitted: tuple[int, ...]
    id_last: int | None = None
    p: tuple[float, ...] | None = None


@dataclass(frozen=True)
class PortRun:
    """prompt_ids   is_whole: the prompt was run whole, and its last token did not open the first round
    settings     what is known of: n_max, n_min, p_min, cooldown, cooldown_after, temp, rollback, n_batch
    """

    label: str
    prompt_ids: tuple[int, ...]
    rounds: tuple[PortRound, ...]
    is_whole: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

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
    """Errors  MtprefError for what cannot be opened, or a log that is too large"""
    label = printable(str(path), 200)
    file = open_text(path, label, "expected a log, a trace or a JSON")
    if file.start(START_BYTES).lstrip()[:1] == b"{":
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
        settings: dict[str, Any] = {k: run.header[k] for k in ("n_max", "p_min") if k in run.header} | run.log.settings
        settings = {k: float(v) if k == "p_min" else int(v) for k, v in settings.items() if _is_number(v)}
        if run.log.temp is not None:
            settings["temp"] = run.log.temp
        rounds, request = _llama_rounds(run.log), run.log.request
        if request is not None and not request.is_first:
            raise MtprefError(f"{label}: {run.log.name}: not the first request of its slot, expected one: llama.cpp "
                              "pairs its first token with a hidden row of the request before, which no log holds; "
                              "start llama-server anew and send this request first")  # fmt: skip
        if request is not None and rounds:
            rounds = (replace(rounds[0], id_last=request.opening), *rounds[1:])
        found.append(PortRun(label, tuple(ids), rounds, request is not None, settings))
    return found


def _llama_rounds(log: LlamaLog) -> tuple[PortRound, ...]:
    rounds = []
    for r in log.rounds:
        p = tuple(step.candidates[0].p for step in r.steps[: r.n_draft])
        rounds.append(PortRound(tuple(r.draft), r.n_accepted, tuple(r.emitted), None, p))
    return tuple(rounds)


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


# -------------------------------------------------------------------------------------------------- trace


def _of_trace(file: TextStream, label: str) -> list[PortRun]:
    runs: list[PortRun] = []
    started: RunStarted | None = None
    rounds: list[PortRound] = []
    first_pos: int | None = None

    def close() -> None:
        if started is not None and rounds:
            is_whole = first_pos == len(started.prompt_ids)
            runs.append(PortRun(label, tuple(started.prompt_ids), tuple(rounds), is_whole, _trace_settings(started)))

    with read_trace(file) as events:
        for item in rounds_of(events):
            if isinstance(item, RunStarted):
                close()
                started, rounds, first_pos = item, [], None
                if item.n_reused:
                    raise MtprefError(f"{label}: a run that continues a session ({item.n_reused} tokens reused), "
                                      "expected runs that begin with an empty state")  # fmt: skip
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


def _object(record: dict[str, Any], name: str) -> dict[str, Any]:
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def _trace_settings(started: RunStarted) -> dict[str, Any]:
    found = started.settings
    policy, sampling = _object(found, "policy"), _object(found, "sampling")
    settings: dict[str, Any] = {k: policy[k] for k in ("n_max", "n_min", "cooldown", "cooldown_after") if k in policy}
    if isinstance(policy.get("p_min"), int):
        settings["p_min"] = policy["p_min"] / 2**32
    settings |= {k: sampling[k] for k in ("temp", "accept") if k in sampling}
    settings |= {k: found[k] for k in ("rollback", "n_batch", "n_predict") if k in found}
    return settings


# --------------------------------------------------------------------------------------------------- JSON


def _of_json(file: TextStream, label: str, prompt_ids: Sequence[int] | None) -> PortRun:
    raw = read_up_to(file, label, "expected a shorter run", MAX_JSON)
    try:
        record = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", type(error).__name__)
        raise MtprefError(f"{label}: it is no JSON ({reason}), expected an object of schema {SCHEMA}") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise MtprefError(
            f'{label}: no "schema": "{SCHEMA}" in it, expected the object that docs/diagnosis.md describes'
        )
    rounds = record.get("rounds")
    if not isinstance(rounds, list) or not 0 < len(rounds) <= MAX_ROUNDS:
        raise MtprefError(f"{label}: rounds is no list of 1 .. {MAX_ROUNDS} rounds, expected one object each")
    ids = _ids(record["prompt_ids"], label, "prompt_ids") if "prompt_ids" in record else prompt_ids
    if not ids:
        raise MtprefError(f"{label}: no prompt_ids in it, expected the prompt's token ids; or use -p, -f or --ids")
    end = record.get("prompt_end", "hold")
    if end not in ("hold", "whole"):
        raise MtprefError(f"{label}: prompt_end {printable(str(end), 40)!r} is unknown, expected hold or whole")
    settings = record.get("settings", {})
    if not isinstance(settings, dict):
        raise MtprefError(f'{label}: settings is no object, expected such as {{"n_max": 3}}')
    read = tuple(_json_round(r, label, i) for i, r in enumerate(rounds))
    if end == "whole" and read[0].id_last is None:
        raise MtprefError(f"{label}: rounds[0] has no id_last, expected the first token where prompt_end is whole")
    return PortRun(label, tuple(ids), read, end == "whole", settings)


def _json_round(record: Any, label: str, i: int) -> PortRound:
    where = f"rounds[{i}]"
    if not isinstance(record, dict):
        raise MtprefError(f"{label}: {where} is no object, expected draft, n_accepted, emitted")
    draft = _ids(record.get("draft"), label, f"{where}.draft")
    emitted = _ids(record.get("emitted"), label, f"{where}.emitted")
    n = record.get("n_accepted")
    if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= len(draft) <= MAX_DRAFT:
        raise MtprefError(f"{label}: {where}: n_accepted {printable(str(n), 20)} of {len(draft)} drafted, expected "
                          f"0 .. {min(len(draft), MAX_DRAFT)}")  # fmt: skip
    if not emitted:
        raise MtprefError(f"{label}: {where}.emitted is empty, expected the tokens that the round added to the text")
    id_last = record.get("id_last")
    if id_last is not None:
        id_last = _ids([id_last], label, f"{where}.id_last")[0]
    p = record.get("p")
    if p is not None:
        is_list = isinstance(p, list) and len(p) == len(draft)
        if not is_list or not all(isinstance(x, int | float) and 0 <= x <= 1 for x in p):
            raise MtprefError(
                f"{label}: {where}.p is no list of {len(draft)} probabilities, expected one a drafted token"
            )
        p = tuple(float(x) for x in p)
    return PortRound(tuple(draft), n, tuple(emitted), id_last, p)


def _ids(values: Any, label: str, where: str) -> list[int]:
    is_list = isinstance(values, list) and all(isinstance(x, int) and not isinstance(x, bool) for x in values)
    if not is_list or not all(0 <= x < MAX_ID for x in values):
        raise MtprefError(f"{label}: {where} is no list of token ids, expected such as [1, 2, 3]")
    return list(values)
