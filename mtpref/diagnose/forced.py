"""A port's run replayed under a hypothesis, along the port's own tokens.

Owns the forced loop: every draft step is given the token that the port drafted, every verdict is the port's. What the
hypothesis would have drafted and emitted itself is noted at each step, so that every single token is evidence. The loop
is that of mtpref/decode; only its two decisions are taken from the port.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.decode import Decoder, Drafter, Options
from mtpref.diagnose.port_run import PortRound, PortRun
from mtpref.events import Drafted, Draw, Event, Token
from mtpref.model import Model
from mtpref.model.model import Output
from mtpref.policy import PolicyConfig
from mtpref.state import ModelState
from mtpref.steps import Hidden

F32 = NDArray[np.float32]
NEAR = 0.03  # in standard deviations of the logits: a choice so close may fall either way
KNOWN_RULES = ("snapshot", "replay", "two-phase")
NO_LOGITS = np.empty((0, 0), np.float32)


@dataclass(frozen=True)
class Seen:
    """One row of logits as evidence: own choice, how far the port's token is below it, how far the second best is.

    gap, second   in standard deviations of the row; p: the port's token among the ten best (nan: not asked)
    """

    round: int
    own: int
    port: int
    gap: float
    second: float
    p: float = float("nan")
    p_port: float = float("nan")
    kind: str = "draft"

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


@dataclass
class Rows:
    """The target's rows of one round: its own choices, and what they say of the port's tokens."""

    own: list[int] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)


class ForcedJudge:
    """The port's verdict in the loop's place of a judge."""

    def __init__(self, port: PortRound, round: int, rows: Rows | None = None) -> None:
        self.ids = list(port.draft)
        self.rows = rows or Rows()
        self.draws: Sequence[Draw] = ()
        self._port, self._round, self._is_given = port, round, rows is not None
        self._n_shown = 0

    def see(self, logits: F32) -> F32:
        if self._is_given:
            self._n_shown = len(self.rows.own)
            return logits
        for row in logits:
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
    def target_ids(self) -> list[int]:
        told = [self._port_token(i) for i in range(self._n_shown)]
        return [own if port < 0 else port for own, port in zip(self.rows.own, told, strict=False)]

    @property
    def n_accepted(self) -> int:
        return min(self._n_shown, self._port.n_accepted)


class ForcedDrafter(Drafter):
    """Only says that the head's cells are kept; the replay drafts itself."""

    reads_head = True

    def draft(self, state: ModelState, id_last: int, limit: int) -> Any:
        raise AssertionError("the replay drafts itself")


@dataclass(frozen=True)
class Recorded:
    """The healthy trunk along the port's tokens: hidden rows of each pass, what each round's logits said, and those of
    a prompt's last row where it was processed whole."""

    hidden: list[Hidden] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    opening: list[Seen] = field(default_factory=list)


@dataclass(frozen=True)
class RecordingModel(Model):
    """A model that notes the hidden rows of every pass of its trunk."""

    recorded: Recorded = field(default_factory=Recorded)

    def trunk(self, state: ModelState, ids: Sequence[int], **how: Any) -> Output:
        out = super().trunk(state, ids, **how)
        self.recorded.hidden.append(out.hidden)
        return out


@dataclass(frozen=True)
class HeadOnlyModel(Model):
    """A model whose trunk's passes are read from a record: for hypotheses that touch only the head."""

    recorded: Recorded = field(default_factory=Recorded)
    n_read: list[int] = field(default_factory=lambda: [0])

    def new_state(self, n_ctx: int = 0, *, poison: bool = False) -> ModelState:
        mtp = self.mtp_layer.kind.state(self.mtp_layer.cfg, self.kv_type_draft) if self.mtp_layer else ()
        return ModelState([], mtp, self.config.n_embd, n_ctx or self.config.n_ctx_train, poison=poison)

    def trunk(self, state: ModelState, ids: Sequence[int], **how: Any) -> Output:
        hidden = self.recorded.hidden[self.n_read[0]]
        self.n_read[0] += 1
        state.reserve(len(ids))
        state.n_past += len(ids)
        return Output(NO_LOGITS, Hidden(hidden.pre.copy(), hidden.post.copy()))


def recording(model: Model) -> RecordingModel:
    return RecordingModel(**{f.name: getattr(model, f.name) for f in fields(Model)})


def head_only(model: Model, recorded: Recorded) -> HeadOnlyModel:
    return HeadOnlyModel(**{f.name: getattr(model, f.name) for f in fields(Model)}, recorded=recorded)


class Replay(Decoder):
    """One run along the port's tokens. `play` yields what was seen in each round."""

    def __init__(self, model: Model, run: PortRun, rows: list[Rows] | None = None) -> None:
        n_tokens = len(run.prompt_ids) + sum(max(len(r.emitted), len(r.draft) + 1) for r in run.rounds) + 8
        model = _ending(model, run)
        super().__init__(model, model.new_state(min(n_tokens, 1 << 30)), _options(run), ForcedDrafter())
        self.port = run
        self.opening: list[Seen] = list(model.recorded.opening) if isinstance(model, HeadOnlyModel) else []
        self.rows = rows
        self.all_rows: list[Rows] = []
        self._seen: list[Seen] = []
        self._judge: ForcedJudge | None = None

    def play(self) -> Iterator[list[Seen]]:
        """Errors  MtprefError, ValueError or IndexError where the hypothesis cannot run along these tokens"""
        opening = yield from self._quietly(self._prompt(list(self.port.prompt_ids), 0, ()))
        id_last = int(opening)
        for i, port in enumerate(self.port.rounds):
            self._seen = list(self.opening) if i == 0 else []
            id_last = port.id_last if port.id_last is not None else id_last
            yield from self._quietly(self._round(id_last))
            assert self._judge is not None
            self.all_rows.append(self._judge.rows)
            self._seen += self._verdict(port, self._judge.rows, i)
            id_last = port.emitted[-1]
            yield self._seen

    @staticmethod
    def _quietly(events: Generator[Event, None, Any]) -> Generator[list[Seen], None, Any]:
        """Run to the end and hand on what it returns."""
        while True:
            try:
                next(events)
            except StopIteration as end:
                return end.value
        yield []

    def _sampled(self, logits: F32) -> Token:
        """The token that opens the first round of a prompt which was processed whole is the port's."""
        told = self.port.rounds[0].id_last
        assert told is not None
        if logits.size and not is_drawn(self.port):
            self.opening = [look(logits[0], told, 0, "target")]
        return Token(self.state.n_past, told, b"", "plain", False)

    # ---------------------------------------------------------------------------- the loop's two decisions

    def _draft(self, id_last: int) -> tuple[Drafted, Any]:
        i, state, steps = len(self.all_rows), self.state, self.model.recipe.steps
        port = self.port.rounds[i]
        self._note_length(port, i)
        opening = steps.draft_opening(id_last, self._last_targets)
        if state.n_past >= self.model.recipe.contract.first_pos and port.draft:
            self._chain(opening, port, i)
        self._judge = ForcedJudge(port, i, None if self.rows is None else self.rows[i])
        return Drafted(i, state.n_past, id_last, list(port.draft), [], self.policy_state.n_cooldown), self._judge

    def _chain(self, opening: int, port: PortRound, round: int) -> None:
        """The draft chain, each step fed with the token that the port drafted before it."""
        model, state = self.model, self.state
        steps, contract = model.recipe.steps, model.recipe.contract
        pos0, token, hidden = state.n_past, opening, state.pending_h[None]
        for step, drafted in enumerate(port.draft):
            out = model.mtp(state, [token], hidden, pos0 + step, n_logits=1)
            row = out.logits[0]
            if model.d2t is not None:
                full = np.full(model.n_vocab, -np.inf, np.float32)
                full[model.d2t[: row.size]] = row
                row = full
            seen = look(row, drafted, round, "draft")
            if port.p is not None:
                ids, p = model.recipe.ops.top_candidates(row)
                own = float(p[list(ids).index(drafted)]) if drafted in ids else 0.0
                seen = Seen(round, seen.own, drafted, seen.gap, seen.second, own, port.p[step])
            self._seen.append(seen)
            token, hidden = drafted, steps.chain_hidden(out.hidden, contract)
        steps.trim_mtp(state, pos0)

    def _emit(self, drafted: Drafted, verdict: Any) -> Generator[Event, None, tuple[int, bool]]:
        yield from ()
        return drafted.id_last, False

    # --------------------------------------------------------------------------------------- evidence

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
            if own != id:
                gap = row.gap if own == row.own and id == row.port else float("inf")
                return [*found, Seen(i, own, id, gap, float("inf"), kind="target")]
            found.append(Seen(i, own, id, 0.0, row.second if id == row.port else float("inf"), kind="target"))
        is_end = i == len(self.port.rounds) - 1 or port.emitted[-1] in eog
        if len(emitted) > len(port.emitted) and not is_end:
            found.append(Seen(i, emitted[len(port.emitted)], -1, float("inf"), float("inf"), kind="target"))
        return found

    def _note_length(self, port: PortRound, i: int) -> None:
        """The draft's length, where the settings say what it must be. The last rounds are cut by the budget."""
        settings = self.port.settings
        told = {"n_max", "cooldown"} <= settings.keys()
        if not told or settings.get("p_min") or settings.get("n_min") or i >= len(self.port.rounds) - 2:
            return
        expected = self.model.recipe.steps.draft_limit(self.options.policy, self.policy_state, 1 << 20)
        far = float("inf")
        self._seen.append(Seen(i, int(expected), len(port.draft), far if expected != len(port.draft) else 0.0, far,
                               kind="length"))  # fmt: skip


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
    policy = PolicyConfig(n_max, 0, 0, whole("cooldown", 0), max(whole("cooldown_after", 1), 1))
    rollback = settings.get("rollback")
    n_batch = settings.get("n_batch")
    is_batch = isinstance(n_batch, int) and 0 < n_batch <= 1 << 20
    return Options(
        n_predict=-1, policy=policy, rollback=rollback if rollback in KNOWN_RULES else "snapshot",
        n_batch=n_batch if isinstance(n_batch, int) and is_batch else 512,
    )  # fmt: skip
