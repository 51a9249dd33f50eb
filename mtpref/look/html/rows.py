"""A run of a trace as the rows of a page: tokens with their origin, rounds with drafts, verdicts and roll backs, rates.

Owns what a page shows and how it is named. Texts of a model are made visible here and escaped by page.py. It must not
know how a page looks.
"""

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mtpref.base.errors import MtprefError, one_line
from mtpref.base.events import DraftStep, RolledBack, RunEnded, RunStarted, Verified
from mtpref.files.vocab import StreamDecoder, terminal_safe
from mtpref.look.trace import Round, read_trace, rounds_of
from mtpref.look.trace.names import Names, drafts_by

MAX_ROUNDS = 50_000
MAX_CANDIDATES = 10
MAX_PROMPT = 4000  # characters of a prompt on a page: its end, which the text goes on from
N_POINTS = 240  # of the curve of acceptance over time
LEAST_WINDOW = 8  # rounds that a point of it averages over
JOINERS = "\u200c\u200d"  # invisible, but part of how words and emoji look


@dataclass
class Side:
    """One run. tokens: [id, text as shown, origin, index of the round]; rounds: see `_round`; ids: the text's ids.

    prompt     the prompt's text as shown, "" where its tokens' texts are not known
    """

    label: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    prompt_ids: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    tokens: list[list[Any]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    near_ties: list[list[Any]] = field(default_factory=list)  # [index of the round, position, margin]
    per_pos: list[list[int]] = field(default_factory=list)  # [proposed, judged, accepted] of draft position 1, 2, ...
    over_time: list[list[float]] = field(default_factory=list)  # [index of the round, accepted / drafted around it]
    notes: list[str] = field(default_factory=list)
    prompt: str = ""
    n_started: int = 0  # how many of the facts are from the run's start

    def to_json(self) -> dict[str, Any]:
        names = (
            "label",
            "prompt",
            "facts",
            "tokens",
            "rounds",
            "near_ties",
            "per_pos",
            "over_time",
            "notes",
        )
        return {name: getattr(self, name) for name in names}


def read_side(
    path: str,
    *,
    run: int = 1,
    rounds: tuple[int, int | None] = (0, None),
    piece_of: Callable[[int], bytes | None] | None = None,
) -> Side:
    """The run-th run (from 1) of a trace, its rounds first to last; piece_of: texts of tokens that the trace lacks.

    Errors  MtprefError: not a trace, no such run, more than MAX_ROUNDS rounds to show
    """
    reader = _SideReader(path, rounds, Names(piece_of))
    with read_trace(path) as events:
        n = 0
        for item in rounds_of(events):
            n += isinstance(item, RunStarted)
            if n == run:
                reader.take(item)
        if n < run:
            raise MtprefError(f"`run`: {run} is out of range, {path} holds {n} runs")
        reader.side.notes += [one_line(note) for note in events.notes()]
        if n > 1:
            reader.side.notes.append(f"run {run} of {n} in this file; --run shows another")
    return reader.finish()


class _SideReader:
    def __init__(self, path: str, rounds: tuple[int, int | None], names: Names) -> None:
        self.side = Side(one_line(path))
        self.names = names
        self._path, (self._first, self._last) = path, rounds
        self._decoder = StreamDecoder()
        self._raw: list[Round] = []

    def take(self, item: Any) -> None:
        if isinstance(item, RunStarted):
            self.side.prompt_ids = item.prompt_ids
            self.side.facts += _started(item)
            self.side.n_started = len(self.side.facts)
        elif isinstance(item, RunEnded):
            self.side.facts += _ended(item)
        elif isinstance(item, Round):
            self._take_round(item)

    def _take_round(self, r: Round) -> None:
        for token in r.tokens:
            self.names.learn(token.id, token.piece)
        number = r.number if r.number is not None else self._first
        if number < self._first or (self._last is not None and number > self._last):
            return
        if len(self._raw) >= MAX_ROUNDS:
            raise MtprefError(
                f"{self._path}: more than {MAX_ROUNDS} rounds, expected at most that many on a page; "
                "choose some with `rounds` A-B"
            )
        self._raw.append(r)

    def finish(self) -> Side:
        """Names are complete only now: a rejected token may have entered the text later."""
        side = self.side
        side.prompt = self._prompt()
        for r in self._raw:
            self._add(r)
        rest = self._decoder.flush()
        if rest and side.tokens:
            side.tokens[-1][1] += visible(rest)
        side.over_time = _over_time([(len(r["d"]), r["a"]) for r in side.rounds])
        return side

    def _prompt(self) -> str:
        pieces = [self.names.piece(id) for id in self.side.prompt_ids]
        if not pieces or any(piece is None for piece in pieces):
            return ""
        text = b"".join(piece for piece in pieces if piece is not None).decode("utf-8", "replace")
        return visible(text if len(text) <= MAX_PROMPT else "..." + text[-MAX_PROMPT:])

    def _add(self, r: Round) -> None:
        side, i = self.side, len(self.side.rounds)
        for token in r.tokens:
            is_cooling = token.source == "plain" and r.drafted is not None and r.drafted.n_cooldown > 0
            origin = "cooldown" if is_cooling else one_line(token.source)
            text = visible(self._decoder.push(token.piece))
            side.tokens.append([token.id, text, origin, i])
            side.ids.append(token.id)
        row = self._round(r)
        row["t"] = len(r.tokens)
        side.rounds.append(row)
        v = r.verified
        if v is None:
            return
        side.near_ties += [
            [i, v.pos0 + 1 + k, rounded(m)]
            for k, (m, tie) in enumerate(zip(v.margins, v.near_ties, strict=False))
            if tie
        ]
        for k in range(len(v.draft_ids)):
            if k == len(side.per_pos):
                side.per_pos.append([0, 0, 0])
            counts = side.per_pos[k]
            counts[0] += 1
            counts[1] += k <= v.n_accepted
            counts[2] += k < v.n_accepted

    def _round(self, r: Round) -> dict[str, Any]:
        """n number, p position of the opening token, o its text, c cooldown left, d drafted tokens, u steps that were
        not proposed, g target's token [id, text, origin, margin, near tie], a accepted, b roll back in words."""
        d, v = r.drafted, r.verified
        row: dict[str, Any] = {"n": r.number, "a": 0, "c": 0, "d": [], "u": [], "g": None, "b": None}
        row["p"] = d.pos0 if d else v.pos0 if v else r.tokens[0].pos if r.tokens else 0
        if d is None:
            return row
        row["o"], row["c"] = self.names.name(d.id_last), d.n_cooldown
        for i, id in enumerate(d.ids):
            step = d.steps[i] if i < len(d.steps) else None
            verdict = one_line(v.verdicts[i]) if v is not None and i < len(v.verdicts) else "not judged"
            row["d"].append([id, self.names.name(id), verdict, self._candidates(step), self._chance(r, i)])
        for step in d.steps[len(d.ids) :]:
            why = "cut from the draft" if step.is_taken else "a gate ended the draft"
            row["u"].append([why, self._candidates(step)])
        if v is not None:
            row["a"], row["g"] = v.n_accepted, self._target(v)
        if r.rolled_back is not None:
            row["b"] = restored(r.rolled_back, d.pos0, len(d.ids))
        return row

    def _candidates(self, step: DraftStep | None) -> list[list[Any]]:
        if step is None:
            return []
        pairs = list(zip(step.candidates, step.p, strict=False))[:MAX_CANDIDATES]
        return [[id, self.names.name(id), rounded(p)] for id, p in pairs]

    @staticmethod
    def _chance(r: Round, i: int) -> list[Any]:
        """Under a temperature: [p of the target, q of the draft, probability of acceptance]; else nothing."""
        v = r.verified
        if v is None or i >= len(v.draws):
            return []
        draw = v.draws[i]
        return [None if x is None else rounded(x) for x in (draw.p, draw.q, draw.p_accept)]

    def _target(self, v: Verified) -> list[Any] | None:
        i, n = v.n_accepted, len(v.draft_ids)
        if not 0 <= i < len(v.target_ids):
            return None
        origin = "plain" if not n else "bonus" if i == n else "correction"
        id = v.target_ids[i]
        margin = rounded(v.margins[i]) if i < len(v.margins) else None
        return [id, self.names.name(id), origin, margin, bool(i < len(v.near_ties) and v.near_ties[i])]


def restored(b: RolledBack, pos0: int, n_drafted: int) -> str:
    """Which state a roll back went to, in words. Batch: the opening token at pos0 and the draft after it."""
    span = f"from position {b.from_pos} to {b.to_pos}"
    if b.strategy == "snapshot":
        return (
            f"snapshot, {span}: the recurrent state kept after token {b.to_pos - pos0} of {n_drafted + 1} "
            f"of the batch was chosen, KV cells from {b.to_pos} on were cut"
        )
    if b.strategy == "replay":
        return f"replay, {span}: the checkpoint before position {pos0} was restored, {b.n_replayed} tokens run again"
    again = f", {b.n_replayed} tokens run again" if b.n_replayed else ""
    return f"{one_line(b.strategy)}, {span}{again}"


def visible(text: str) -> str:
    r"""Text as a page shows it: what steers or hides (control, bidirectional, zero-width characters) as \u escapes."""
    safe = terminal_safe(text)
    if safe.isascii():
        return safe
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) == "Cf" and c not in JOINERS else c for c in safe)


def rounded(x: float) -> float | str:
    """Four significant digits; what JSON has no number for, as its name."""
    return float(f"{x:.4g}") if x - x == 0 else str(x)


def _over_time(rounds: list[tuple[int, int]]) -> list[list[float]]:
    """[round, accepted / drafted in a window around it], at most N_POINTS; windows without drafts are left out."""
    window = max(LEAST_WINDOW, len(rounds) // 50)
    step = max(1, len(rounds) // N_POINTS)
    out = []
    for at in range(0, len(rounds), step):
        part = rounds[max(0, at - window // 2) : at + window // 2 + 1]
        n_drafted = sum(n for n, _ in part)
        if n_drafted:
            out.append([at, round(sum(a for _, a in part) / n_drafted, 4)])
    return out


def _started(run: RunStarted) -> Iterator[tuple[str, str]]:
    s = run.settings
    policy, sampling = _dict(s.get("policy")), _dict(s.get("sampling"))
    yield "model", one_line(run.model or "without a name")
    if run.changes:
        yield "changed on purpose", one_line(", ".join(run.changes))
    yield "numerics", one_line(run.numerics)
    yield "contract", one_line(", ".join(f"{k}={v}" for k, v in run.contract.items()) or "not told")
    yield "drafts", one_line(f"{drafts_by(s.get('drafter'))}, up to {policy.get('n_max', '?')}")
    yield "roll back", one_line(str(s.get("rollback", "unknown")))
    adaptive = s.get("adaptive")
    if isinstance(adaptive, dict) and adaptive.get("rule") not in (None, "off"):
        yield "adaptive", one_line(str(adaptive["rule"]))
    if policy.get("cooldown"):
        yield "cooldown", one_line(f"{policy['cooldown']} after {policy.get('cooldown_after', '?')}")
    temp = sampling.get("temp")
    is_drawn = isinstance(temp, int | float) and temp > 0
    yield "sampling", one_line(f"temperature {temp}, accept by {sampling.get('accept')}" if is_drawn else "greedy")
    yield "prompt", f"{len(run.prompt_ids)} tokens"


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _ended(run: RunEnded) -> Iterator[tuple[str, str]]:
    s = run.statistics
    yield "ended by", one_line(run.reason)
    for name, key in (("tokens", "n_predict"), ("rounds", "n_rounds"), ("trunk passes", "n_trunk_passes")):
        if isinstance(s.get(key), int):
            yield name, one_line(str(s[key]))
    accept, n = s.get("accept"), s.get("n_drafted")
    if isinstance(accept, int | float) and isinstance(n, int):
        yield "acceptance", f"{100 * accept:.1f} % ({s.get('n_accept')} of {n})"


def divergence(a: Side, b: Side) -> dict[str, Any]:
    """Where two runs part first. kind: prompt (at: token), text (at: token of the text, rounds: of each side),
    rounds (same text; rounds: the first whose draft, verdict or roll back differs), numbers (rounds: the first whose
    candidates, probabilities or margins differ) or none. started: names of what the runs were started with otherwise.

    A text that is the beginning of the other parts where it ends.
    """
    started = _started_otherwise(a, b)
    at = _first_difference(a.prompt_ids, b.prompt_ids)
    if at is not None:
        return {"kind": "prompt", "at": at, "rounds": None, "started": started}
    at = _first_difference(a.ids, b.ids)
    if at is not None:
        places = [s.tokens[min(at, len(s.tokens) - 1)][3] if s.tokens else None for s in (a, b)]
        return {"kind": "text", "at": at, "rounds": places, "started": started}
    shapes = [[(r["p"], [x[:3:2] for x in r["d"]], r["a"], r["b"]) for r in s.rounds] for s in (a, b)]
    numbers = [[([x[3:] for x in r["d"]], r["u"], r["g"]) for r in s.rounds] for s in (a, b)]
    for kind, one in (("rounds", shapes), ("numbers", numbers)):
        at = _first_difference(*one)
        if at is not None:
            places = [min(at, max(0, len(s.rounds) - 1)) for s in (a, b)]
            return {"kind": kind, "at": at, "rounds": places, "started": started}
    return {"kind": "none", "at": None, "rounds": None, "started": started}


def _started_otherwise(a: Side, b: Side) -> list[str]:
    """Names of the facts about a run's start that only one has, or that differ. What it ended with is no start."""
    ours, theirs = dict(a.facts[: a.n_started]), dict(b.facts[: b.n_started])
    return [name for name in {**ours, **theirs} if name != "prompt" and ours.get(name) != theirs.get(name)]


def _first_difference(a: list[Any], b: list[Any]) -> int | None:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))
