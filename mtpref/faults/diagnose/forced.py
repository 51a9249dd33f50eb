"""A port's run replayed under a hypothesis, along the port's own tokens.

Owns the forced loop: every draft step is given the token that the port drafted, every verdict is the port's. What the
hypothesis would have drafted and emitted itself is noted at each step, so that every single token is evidence. The loop
is that of engine/decode; who proposes, who judges and, where a hypothesis leaves the trunk alone, who runs the trunk
are given to it.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mtpref.base.events import Draw, Event
from mtpref.engine.decode import ALL_STRATEGIES, Decoder, Drafter, DraftLength, Options, PolicyConfig, most_drafted
from mtpref.engine.decode.drafters import Draft, late_rows
from mtpref.engine.model import Model, TextCells
from mtpref.engine.model.model import Output
from mtpref.faults.diagnose.port_run import PortRound, PortRun
from mtpref.look.llama_cpp.limits import router_gap
from mtpref.look.llama_cpp.rounds import UNTOLD
from mtpref.spec import Distribution
from mtpref.spec.state import ModelState
from mtpref.spec.steps import Hidden, is_chain

F32 = NDArray[np.float32]
NEAR = 0.03  # in standard deviations of the logits: a choice so close may fall either way
KNOWN_RULES = tuple(ALL_STRATEGIES)
NO_LOGITS = np.empty((0, 0), np.float32)
ROOM = 2048  # positions after the port's text: no draft is cut for want of them

Returned = TypeVar("Returned")


@dataclass(frozen=True)
class Seen:
    """One row of logits as evidence: own choice, how far the port's token is below it, how far the second best is.

    gap, second   in standard deviations of the row; p: the port's token among the ten best (nan: not asked)
    is_rerouted   a router's near tie came before: the port may have run another expert since then
    """

    round: int
    own: int
    port: int
    gap: float
    second: float
    p: float = float("nan")
    p_port: float = float("nan")
    kind: str = "draft"
    is_rerouted: bool = False

    @property
    def is_hit(self) -> bool:
        return self.own == self.port


def look(row: F32, port: int, round: int, kind: str) -> Seen:
    """What a row says about the port's token."""
    clean = np.where(np.isfinite(row), row, -np.inf)
    own = int(np.argmax(clean))
    finite = clean[np.isfinite(clean)]
    scale = max(float(finite.std()) if finite.size else 0.0, 1e-12)
    best = float(clean[own])
    top = np.partition(clean, clean.size - 2)[-2:] if clean.size > 1 else np.asarray([-np.inf, best])
    port_value = float(clean[port]) if 0 <= port < clean.size else -np.inf
    if not np.isfinite(best):
        return Seen(round, 0, port, 0.0 if port == 0 else float("inf"), float("inf"), kind=kind)
    return Seen(round, own, port, (best - port_value) / scale, (best - float(top[0])) / scale, kind=kind)


def _best_but(row: F32, refused: Sequence[int]) -> int:
    """The best token that is not among these few."""
    clean = np.where(np.isfinite(row), row, -np.inf)
    clean[list(refused)] = -np.inf
    return int(np.argmax(clean))


@dataclass
class Rows:
    """The target's rows of one round: its own choices, and what they say of the port's tokens.

    correction  the target's best token after the accepted ones that is not the rejected one: what a port whose log does
                not tell it has emitted
    """

    own: list[int] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    correction: int = UNTOLD


class ForcedJudge:
    """The port's verdict in the place of the target's own."""

    def __init__(self, port: PortRound, round: int, rows: Rows | None = None) -> None:
        self.ids: Sequence[int] = list(port.draft)
        self.rows = rows or Rows()
        self.draws: Sequence[Draw] = ()
        self._port, self._round, self._is_given = port, round, rows is not None
        self._n_shown = 0

    def see(self, logits: F32, /) -> F32:
        if self._is_given:
            self._n_shown = len(self.rows.own)
            return logits
        for row in logits:
            if len(self.rows.own) == self._port.n_accepted:
                self.rows.correction = _best_but(row, self._port.draft[self._port.n_accepted :][:1])
            found = look(row, self._port_token(len(self.rows.own)), self._round, "target")
            self.rows.own.append(found.own)
            self.rows.seen.append(found)
        self._n_shown = len(self.rows.own)
        return logits

    def _port_token(self, i: int) -> int:
        """What the port's target gave at row i, as far as it told."""
        if i < self._port.n_accepted:
            return self._port.draft[i]
        return self._port.emitted[-1] if i == self._port.n_accepted else -1

    @property
    def row_ids(self) -> list[int]:
        told = [self._port_token(i) for i in range(self._n_shown)]
        own = list(self.rows.own)
        if self._port.emitted[-1] == UNTOLD and self._n_shown > self._port.n_accepted:
            own[self._port.n_accepted] = self.rows.correction
        return [own if port < 0 else port for own, port in zip(own, told, strict=False)]

    @property
    def n_accepted(self) -> int:
        return min(self._n_shown, self._port.n_accepted)


class ForcedDrafter(Drafter):
    """Proposes what the port drafted, and notes what the head would have: each step is fed with the port's token."""

    reads_head = True

    def __init__(self, model: Model, run: PortRun, noted: TextCells | None, is_given: bool) -> None:
        self.model, self.run = model, run
        self._noted, self._is_given = noted, is_given
        self.near_gap = near_gap_of(model)
        self.n_rounds = 0
        self.seen: list[Seen] = []

    def draft(self, state: ModelState, id_last: int, length: DraftLength) -> Draft:
        i, port = self.n_rounds, self.run.rounds[self.n_rounds]
        self.n_rounds += 1
        self.seen = self._note_length(port, i, most_drafted(self.model, length.room))
        least = self.model.recipe.contract.first_pos if self._noted is None else 1  # cells to read
        if state.n_past >= least and port.draft:
            self._chain(state, id_last, port, i)
        return Draft(list(port.draft))

    def _cells(self, state: ModelState, opening: int) -> ModelState:
        """What the head reads, where it has no cells of its own."""
        if self._noted is None:
            return state
        if self._is_given:
            state = self._noted.at(state.n_past)
        else:
            self._noted.note(state)
        return self.model.recipe.steps.cells_to_read(state, opening)

    def _chain(self, state: ModelState, opening: int, port: PortRound, round: int) -> None:
        model = self.model
        steps, contract = model.recipe.steps, model.recipe.contract
        pos0, ids, hidden, is_rerouted = state.n_past, [opening], state.pending_h[None], False
        chained, n_heads = is_chain(len(model.heads), contract), len(model.heads)
        read, reads = self._cells(state, opening), self._noted is not None
        for step, drafted in enumerate(port.draft):
            head = steps.chain_head(step, n_heads, contract)
            if head is None:  # the port drafts more tokens than the chain has heads: what it drafts there is its own
                far = float("inf")
                self.seen.append(Seen(round, n_heads, len(port.draft), far, far, kind="length"))
                break
            if chained:
                steps.trim_mtp(state, pos0)
            at = steps.draft_position(pos0, step, len(ids), reads)
            out = model.mtp(read, ids, hidden, at, n_logits=1, head=head)
            row = out.logits[0]
            if model.d2t is not None:
                full = np.full(model.n_vocab, -np.inf, np.float32)
                full[model.d2t[: row.size]] = row
                row = full
            seen = look(row, drafted, round, "draft")
            if port.p is not None:
                best, p = model.recipe.ops.top_candidates(row)
                own = float(p[list(best).index(drafted)]) if drafted in best else 0.0
                seen = Seen(round, seen.own, drafted, seen.gap, seen.second, own, port.p[step])
            is_rerouted |= any(gap < self.near_gap for gap in out.gaps)
            self.seen.append(replace(seen, is_rerouted=is_rerouted))
            made = steps.chain_hidden(out.hidden, contract)
            ids, hidden = steps.chain_input(ids, hidden, drafted, steps.chain_row(made, contract), chained)
            if chained:
                hidden = late_rows(model, state, step + 1, hidden, made)
        steps.trim_mtp(state, pos0)

    def _note_length(self, port: PortRound, i: int, expected: int) -> list[Seen]:
        """The draft's length, where the settings say what it must be. The last rounds are cut by the budget."""
        settings = self.run.settings
        told = {"n_max", "cooldown"} <= settings.keys()
        if not told or settings.get("p_min") or settings.get("n_min") or i >= len(self.run.rounds) - 2:
            return []
        far = float("inf")
        gap = far if expected != len(port.draft) else 0.0
        return [Seen(i, expected, len(port.draft), gap, far, kind="length")]


@dataclass
class Recorded:
    """The trunk along the port's tokens: hidden rows of each pass, what each round's logits said, and those of the
    last row of a prompt that was processed whole. ties: whether a router's near tie is in the tokens that stay, after
    the prompt and after each round. cells: of an assistant, those that it read."""

    hidden: list[Hidden] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    opening: list[Seen] = field(default_factory=list)
    ties: list[bool] = field(default_factory=list)
    cells: TextCells | None = None


class RecordingTrunk:
    """The model's trunk, whose hidden rows are noted pass by pass."""

    def __init__(self, model: Model, recorded: Recorded) -> None:
        self._model, self._recorded = model, recorded

    def __call__(self, state: ModelState, ids: Sequence[int], *, n_logits: int, keep: int = 1) -> Output:
        out = self._model.trunk(state, ids, n_logits=n_logits, keep=keep)
        self._recorded.hidden.append(out.hidden)
        return out


class RecordedTrunk:
    """A trunk whose passes are read from a record: for hypotheses that touch only the head."""

    def __init__(self, recorded: Recorded) -> None:
        self._passes = iter(recorded.hidden)

    def __call__(self, state: ModelState, ids: Sequence[int], *, n_logits: int, keep: int = 1) -> Output:
        hidden = next(self._passes, None)
        if hidden is None:
            raise IndexError("the run makes more passes than the one that was recorded")
        state.reserve(len(ids))
        state.n_past += len(ids)
        return Output(NO_LOGITS, Hidden(hidden.pre.copy(), hidden.post.copy()))


class Replay:
    """One run along the port's tokens. `play` yields what was seen in each round, and fills `recorded`.

    given  what a replay of the same run recorded: the trunk's passes and rows are taken from it, none is run
    """

    def __init__(self, model: Model, run: PortRun, given: Recorded | None = None) -> None:
        n_tokens = len(run.prompt_ids) + sum(max(len(r.emitted), len(r.draft) + 1) for r in run.rounds) + ROOM
        model = _ending(model, run)
        state = model.new_state(min(n_tokens, 1 << 30))
        if given is not None:
            state.layers = []
        self.model, self.port, self.given, self.recorded = model, run, given, Recorded()
        self.recorded.cells = TextCells(model) if model.has_assistant else None
        noted = self.recorded.cells if given is None else given.cells
        self.drafter = ForcedDrafter(model, run, noted, given is not None)
        trunk = RecordingTrunk(model, self.recorded) if given is None else RecordedTrunk(given)
        self.decoder = Decoder(model, state, _options(run), self.drafter, self._judge, trunk)

    def play(self) -> Iterator[list[Seen]]:
        """Run a hypothesis along the port's rounds.

        Errors  MtprefError, ValueError or IndexError where the hypothesis cannot run along these tokens
        """
        self.recorded.opening = self._opening(_returned(self.decoder.prompt(self.port.prompt_ids)))
        id_last, opening = self.port.prompt_ids[-1], self.recorded.opening
        self._ties()
        for i, port in enumerate(self.port.rounds):
            _returned(self.decoder.round(id_last if port.id_last is None else port.id_last))
            before, after = self._ties()[i : i + 2]
            found = _marked(opening + self.drafter.seen, before)
            yield found + _marked(self._verdict(port, self.recorded.rows[i], i), after)
            id_last, opening = port.emitted[-1], []
            if id_last == UNTOLD:
                id_last = self.recorded.rows[i].correction
            if id_last in self.model.vocab.eog_ids:
                return  # llama.cpp's log tells one token more, which is none of the text

    def _ties(self) -> list[bool]:
        """`Recorded.ties` up to now, or all of what was given."""
        if self.given is not None:
            return self.given.ties
        least = self.decoder.statistics.min_router_gap
        self.recorded.ties.append(least is not None and least < self.drafter.near_gap)
        return self.recorded.ties

    def _opening(self, logits: F32 | None) -> list[Seen]:
        """What a prompt that was processed whole says of the port's first token."""
        told = self.port.rounds[0].id_last
        if self.given is not None:
            return list(self.given.opening)
        return [] if logits is None or told is None or is_drawn(self.port) else [look(logits[0], told, 0, "target")]

    def _judge(self, ids: Sequence[int], dists: Sequence[Distribution], pos0: int, /) -> ForcedJudge:
        i = len(self.recorded.rows)
        judge = ForcedJudge(self.port.rounds[i], i, None if self.given is None else self.given.rows[i])
        self.recorded.rows.append(judge.rows)
        return judge

    def _verdict(self, port: PortRound, rows: Rows, i: int) -> list[Seen]:
        """What the hypothesis would have emitted, token by token, up to the first disagreement.

        Rule  a row in which the port's token is nearly as good as the best counts for the port
        """
        if is_drawn(self.port) or not rows.own:
            return []
        steps = self.model.recipe.steps
        eog = self.model.vocab.eog_ids
        targets = [s.port if s.port >= 0 and s.gap < NEAR else s.own for s in rows.seen]
        n_accepted = int(steps.accept_greedy(list(port.draft), targets, eog))
        emitted = [int(id) for id in steps.emitted(list(port.draft), n_accepted, targets)]
        found: list[Seen] = []
        for j, id in enumerate(port.emitted):
            row = rows.seen[min(j, len(rows.seen) - 1)]
            own = emitted[j] if j < len(emitted) else -2
            if id == UNTOLD:
                if own in port.draft[j : j + 1]:  # it would have been accepted
                    return [*found, Seen(i, own, id, row.second, float("inf"), kind="target")]
                continue
            if own != id:
                gap = row.gap if own == row.own and id == row.port else float("inf")
                return [*found, Seen(i, own, id, gap, float("inf"), kind="target")]
            found.append(Seen(i, own, id, 0.0, row.second if id == row.port else float("inf"), kind="target"))
            if id in eog:
                return found
        is_end = i == len(self.port.rounds) - 1 or port.emitted[-1] in eog
        if len(emitted) > len(port.emitted) and not is_end:
            found.append(Seen(i, emitted[len(port.emitted)], -1, float("inf"), float("inf"), kind="target"))
        return found


def near_gap_of(model: Model) -> float:
    """The router gap below which a healthy port may choose another expert, by the file's weight types."""
    return router_gap(model.type_names | {model.kv_type, model.kv_type_draft})


def _marked(seen: list[Seen], is_rerouted: bool) -> list[Seen]:
    return [replace(s, is_rerouted=True) for s in seen] if is_rerouted else seen


def _returned(events: Generator[Event, None, Returned]) -> Returned:
    """What a part of the loop returns at its end; its events are of no interest here."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            returned: Returned = end.value
            return returned


def is_drawn(run: PortRun) -> bool:
    """Whether emitted tokens were drawn at a temperature, as far as the run tells."""
    return float(run.settings.get("temp") or 0.0) > 0


def _ending(model: Model, run: PortRun) -> Model:
    """The model under the prompt_end that the run had."""
    contract = replace(model.recipe.contract, prompt_end="whole" if run.is_whole else "hold")
    return replace(model, recipe=replace(model.recipe, contract=contract))


def _options(run: PortRun) -> Options:
    settings = run.settings

    def whole(name: str, default: int) -> int:
        value = settings.get(name, default)
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1024 else default

    longest = max((len(r.draft) for r in run.rounds), default=1)
    n_max = min(max(whole("n_max", longest), 1), 1024)
    policy = PolicyConfig(
        n_max=n_max, n_min=0, p_min=0, cooldown=whole("cooldown", 0), cooldown_after=max(whole("cooldown_after", 1), 1)
    )
    rollback = settings.get("rollback")
    n_batch = settings.get("n_batch")
    is_batch = isinstance(n_batch, int) and 0 < n_batch <= 1 << 20
    return Options(
        n_predict=-1,
        policy=policy,
        rollback=rollback if rollback in KNOWN_RULES else "snapshot",
        n_batch=n_batch if isinstance(n_batch, int) and is_batch else 512,
    )
