"""A trace in words: lines of spans, each with the name of a style. Who paints them, and how, is the caller's.

Owns what a round, a run and its text look like. It must not know terminals; it is told a width.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

from mtpref.base.events import DraftStep, Event, PromptProgress, RunEnded, RunStarted, Token, Verified
from mtpref.engine.decode.statistics import NEAR_GAP
from mtpref.files.vocab import StreamDecoder, terminal_safe
from mtpref.look.trace.names import Names, cells, fit, pad, quoted
from mtpref.look.trace.rounds import Round

# Text and style: "draft" (an accepted token), "correction", "bonus", "plain", "reject", "discard", "near tie", "note",
# "head" (a headline), or "" for ordinary words.
Span = tuple[str, str]
Line = list[Span]

MIN_WIDTH = 32
NAME_WIDTH = 20
VERDICT_WIDTH = 10
INDENT = "    "


class RoundLines:
    """Lines for whatever `rounds_of` yields.

    width  columns that no line exceeds (at least MIN_WIDTH)
    rounds first and last round to show, both included; the last may be None
    """

    def __init__(self, width: int, names: Names | None = None, rounds: tuple[int, int | None] = (0, None)) -> None:
        self.width = max(MIN_WIDTH, width)
        self.names = names or Names()
        self.first, self.last = rounds
        self.settings: dict[str, Any] = {}
        self._n_runs = self._n_hidden = 0

    def lines(self, item: RunStarted | PromptProgress | Round | RunEnded) -> list[Line]:
        if isinstance(item, RunStarted):
            self._n_runs += 1
            self.settings = item.settings
            return self._started(item)
        if isinstance(item, PromptProgress):
            return self._wrap([[("prompt", "head")], _told(f"{item.n_done} of {item.n_total} tokens")])
        if isinstance(item, RunEnded):
            return self._hidden() + self._ended(item)
        for token in item.tokens:
            self.names.learn(token.id, token.piece)
        if item.number is not None and not self._is_wanted(item.number):
            self._n_hidden += 1
            return []
        return self._hidden() + self._round(item)

    def _is_wanted(self, number: int) -> bool:
        return self.first <= number and (self.last is None or number <= self.last)

    def _hidden(self) -> list[Line]:
        n, self._n_hidden = self._n_hidden, 0
        return self._wrap([[(f"({n} rounds not shown)", "note")]]) if n else []

    # --------------------------------------------------------------------------------------- runs

    def _started(self, run: RunStarted) -> list[Line]:
        reused = f", {run.n_reused} of them reused" if run.n_reused else ""
        head: list[Line] = [
            [(f"run {self._n_runs}", "head")],
            _told(f"model {run.model or 'without a name'}"),
            _told(f"{run.numerics} numerics"),
            _told(f"prompt of {len(run.prompt_ids)} tokens{reused}"),
        ]
        if run.changes:
            head.append([(f"changed on purpose: {', '.join(run.changes)}", "reject")])
        settings: list[Line] = [[("settings", "head")], *(_told(text) for text in _settings(run.settings))]
        contract: list[Line] = [
            [("contract", "head")],
            *(_told(f"{_short(k)}={_short(v)}") for k, v in run.contract.items()),
        ]
        return [[]] * (self._n_runs > 1) + self._wrap(head) + self._wrap(settings) + self._wrap(contract)

    def _ended(self, run: RunEnded) -> list[Line]:
        s = run.statistics
        fields: list[Line] = [[("ended", "head")], _told(f"by {run.reason}")]
        for name, text in (("n_predict", "{} tokens"), ("n_trunk_passes", "{} trunk passes"), ("n_rounds", "{} rounds"),
                           ("n_near_ties", "{} near ties"), ("n_cooldown_rounds", "{} cooldown rounds")):  # fmt: skip
            if isinstance(s.get(name), int):
                fields.append(_told(text.format(s[name])))
        if isinstance(s.get("n_accept"), int) and isinstance(s.get("n_drafted"), int):
            share = f" = {100 * s['n_accept'] / s['n_drafted']:.1f} %" if s["n_drafted"] else ""
            fields.append(_told(f"accepted {s['n_accept']} of {s['n_drafted']} drafted{share}"))
        return self._wrap(fields)

    # ------------------------------------------------------------------------------------- rounds

    def _round(self, r: Round) -> list[Line]:
        d, v = r.drafted, r.verified
        if d is None:
            return [line for token in r.tokens for line in self._token_line(token)]
        head: list[Line] = [
            [(f"round {d.round}", "head")],
            _told(f"pos {d.pos0}"),
            _told(f"after {fit(self.names.name(d.id_last), NAME_WIDTH)}"),
        ]
        if d.n_cooldown:
            head.append([(f"cooldown, rounds of silence left: {d.n_cooldown}", "note")])
        elif not d.ids:
            head.append([("no draft", "note")])
        if v is None:
            head.append([("not verified: the run ended here", "note")])
        out = self._wrap(head)
        for i, id in enumerate(d.ids):
            out += self._draft_line(r, i, id)
        for step in d.steps[len(d.ids) :]:
            why = "cut from the draft" if step.is_taken else self._why_not(step)
            told: list[Line] = [*_step(step, None), [(why, "discard")]]
            out += self._row(step.pos, self._best(step), ("unproposed", "discard"), told)
        out += self._target_line(r)
        return out + self._roll_back(r)

    def _why_not(self, step: DraftStep) -> str:
        """Which gate ended the draft: p_min, or an adaptive rule."""
        policy, rule = self.settings.get("policy"), self.settings.get("adaptive")
        p_min = policy.get("p_min") if isinstance(policy, dict) else None
        is_above = not isinstance(p_min, int) or (bool(step.p) and step.p[0] * 2**32 >= p_min)
        is_adaptive = isinstance(rule, dict) and rule.get("rule") == "expected"
        return "not worth a row" if is_adaptive and is_above and step.p else "below p_min"

    def _best(self, step: DraftStep) -> str:
        return self.names.name(step.candidates[0]) if step.candidates else "(nothing)"

    def _draft_line(self, r: Round, i: int, id: int) -> list[Line]:
        """A drafted token and its verdict."""
        d, v = r.drafted, r.verified
        assert d is not None
        fields = _step(d.steps[i], id) if i < len(d.steps) else []
        verdict = v.verdicts[i] if v is not None and i < len(v.verdicts) else ""
        style = {"accept": "draft", "reject": "reject", "discard": "discard"}.get(verdict, "")
        if v is not None and i < v.n_accepted:
            fields += _row_facts(v, i)
        return self._row(d.pos0 + 1 + i, self.names.name(id), (verdict, style), fields)

    def _target_line(self, r: Round) -> list[Line]:
        """The token that the target gave at the first row that no draft decided: correction, bonus or plain."""
        d, v = r.drafted, r.verified
        if d is None or v is None:
            return []
        i, n_draft = v.n_accepted, len(v.draft_ids)
        source = "plain" if not n_draft else "bonus" if i == n_draft else "correction"
        fields = _row_facts(v, i)
        token = next((t for t in r.tokens if t.pos == d.pos0 + 1 + i), None)
        if token is None and r.tokens:
            fields.append([("after the end of the text", "note")])
        elif token is not None and token.is_eog:
            fields.append([("end of generation", "note")])
        return self._row(d.pos0 + 1 + i, self.names.name(v.target_ids[i]), (source, source), fields)

    def _roll_back(self, r: Round) -> list[Line]:
        b = r.rolled_back
        if b is None:
            return []
        again = [_told(f"{b.n_replayed} tokens run again")] if b.n_replayed else []
        told = [[(f"{INDENT}rolled back", "note")], _told(f"{b.from_pos} -> {b.to_pos}"), _told(f"by {b.strategy}")]
        return self._wrap([*told, *again])

    def _token_line(self, token: Token) -> list[Line]:
        fields: list[Line] = [] if token.u is None else [_told(f"u {token.u:.4f}")]
        if token.is_eog:
            fields.append([("end of generation", "note")])
        return self._row(token.pos, quoted(token.piece), (token.source, token.source), fields)

    # ------------------------------------------------------------------------------------- layout

    def _row(self, pos: int, name: str, verdict: Span, fields: list[Line]) -> list[Line]:
        """One token: its position, text, and what became of it, then whatever there is to say."""
        width = max(8, min(NAME_WIDTH, self.width - 22))
        word, style = verdict
        word = pad(fit(terminal_safe(word).replace("\n", " "), VERDICT_WIDTH), VERDICT_WIDTH)
        head = [(f"{pos:>7}  ", ""), (pad(fit(name, width), width), style), ("  ", ""), (word, style)]
        return self._wrap([head, *fields])

    def _wrap(self, fields: list[Line]) -> list[Line]:
        """Fields with two blanks between them; one that does not fit begins a new line."""
        out: list[Line] = [[]]
        used = 0
        for field in fields:
            need = sum(cells(text) for text, _ in field)
            if out[-1] and used + 2 + need > self.width:
                out.append([(INDENT, "")])
                used = len(INDENT)
            elif out[-1]:
                out[-1].append(("  ", ""))
                used += 2
            for text, style in field:
                text = fit(text, max(0, self.width - used))
                out[-1].append((text, style))
                used += cells(text)
        return out


def _told(text: str) -> Line:
    """A field of ordinary words, harmless and on one line."""
    return [(terminal_safe(text).replace("\n", "\\n").replace("\t", "\\t"), "")]


def _step(step: DraftStep, id: int | None) -> list[Line]:
    """What the drafter saw; id: the token taken (None: the best candidate)."""
    rank = 0 if id is None else step.candidates.index(id) if id in step.candidates else None
    fields = [] if rank is None or not step.p else [_told(f"p {step.p[rank]:.3f}")]
    if rank:
        fields.append(_told(f"candidate {rank + 1}"))
    if step.q is not None:
        fields.append(_told(f"q {step.q:.3f}"))
    if step.u is not None:
        fields.append(_told(f"u_draft {step.u:.4f}"))
    return fields


def _row_facts(v: Verified, i: int) -> list[Line]:
    """What decided row i of the target."""
    draw = v.draws[i] if v.draws else None
    fields: list[Line] = [_told(f"margin {v.margins[i]:.3g}")]
    if v.near_ties[i]:
        fields.append([("near tie", "near tie")])
    if v.router_gaps and v.router_gaps[i] < NEAR_GAP:
        fields.append([(f"near tie of a router or indexer, gap {v.router_gaps[i]:.2g}", "near tie")])
    if draw is not None:
        for name in ("p", "p_accept", "u_target", "u_accept", "u_residual", "edge"):
            value = getattr(draw, name)
            if value is not None:
                fields.append(_told(f"{'p_target' if name == 'p' else name} {value:.4g}"))
    return fields


def _settings(settings: dict[str, Any]) -> Iterator[str]:
    """The settings that decide what a round looks like, as far as they are there."""
    policy = settings.get("policy")
    policy = policy if isinstance(policy, dict) else {}
    if settings.get("spec_type") == "none":
        yield "no drafts"
    elif "n_max" in policy:
        yield f"drafts of up to {_short(policy['n_max'])}"
        yield f"roll back by {_short(settings.get('rollback'))}"
    if isinstance(policy.get("p_min"), int) and policy["p_min"]:
        yield f"p_min {policy['p_min'] / 2**32:.4g}"
    adaptive = settings.get("adaptive")
    if isinstance(adaptive, dict) and adaptive.get("rule") in ("heuristic", "expected"):
        yield f"adaptive by {adaptive['rule']}"
    if policy.get("cooldown"):
        yield f"cooldown {_short(policy['cooldown'])} after {_short(policy.get('cooldown_after'))}"
    sampling = settings.get("sampling")
    if isinstance(sampling, dict) and isinstance(sampling.get("temp"), float | int) and sampling["temp"] > 0:
        yield f"temperature {sampling['temp']:g}"
        yield f"seed {_short(sampling.get('seed'))}"
        yield f"accept by {_short(sampling.get('accept'))}"
    else:
        yield "greedy"
    chat = settings.get("chat")
    if isinstance(chat, dict):
        yield f"chat template {_short(chat.get('template'))}"


def _short(value: Any) -> str:
    return fit(str(value) if isinstance(value, str | int | float) else ascii(value), 60)


class TextSpans:
    """The text alone, by origin: spans of harmless text as it comes, what stop strings hold back left out."""

    MAX_HELD = 1 << 20

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._decoder = StreamDecoder()
        self._held: deque[tuple[bytes, str]] = deque()
        self._n_held = 0

    def spans(self, event: Event) -> list[Span]:
        if isinstance(event, RunStarted):
            self._reset()
        elif isinstance(event, Token):
            self._held.append((event.piece, "draft" if event.source == "draft" else event.source))
            self._n_held += len(event.piece)
            return self._shown(len(event.text) if self._n_held <= self.MAX_HELD else self._n_held)
        elif isinstance(event, RunEnded):
            return [*self._shown(len(event.text)), (terminal_safe(self._decoder.flush()), "")]
        return []

    def _shown(self, n_bytes: int) -> list[Span]:
        """The first n_bytes of what is held, each part in the style of the token that it came with."""
        out = []
        while self._held and n_bytes > 0:
            piece, style = self._held.popleft()
            if len(piece) > n_bytes:
                self._held.appendleft((piece[n_bytes:], style))
                piece = piece[:n_bytes]
            n_bytes -= len(piece)
            self._n_held -= len(piece)
            out.append((terminal_safe(self._decoder.push(piece)), style))
        return [span for span in out if span[0]]
