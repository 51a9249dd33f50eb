"""One sequence that outlives a run: its tokens, its model state, and the checkpoints that a later prompt goes back to.

Owns which part of a prompt is run again. It must not know how a round is decoded (decode) or how a file is laid out
(file.py). docs/sessions.md says what reuse needs, and what goes wrong elsewhere.
"""

import threading
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, Event, PromptProgress, RunEnded, Token, Verified
from mtpref.base.settings import Bounds, check_arguments, check_path
from mtpref.engine.decode import Decoder, Drafter, Options
from mtpref.engine.model import Model
from mtpref.engine.session.file import MAX_CHECKPOINTS, read_session, write_session
from mtpref.spec.contract import MtpContract
from mtpref.spec.state import Checkpoint, ModelState, Positions

N_CHECKPOINTS = 4
# Kernels use all threads anyway, and not every threading layer of Numba may be entered from two threads at once.
_ONE_AT_A_TIME = threading.RLock()


class Session:
    """One sequence of a model.

    Rule     the state is always that of a fresh run over `ids`, bit for bit; `run` reuses the longest common prefix
             that a checkpoint stands in front of, and runs the rest
    Memory   one state, and at most n_checkpoints copies of what has no past of its own (`Checkpoint.n_bytes` each)

    n_ctx             positions at most (0: the model's context length)
    n_checkpoints     checkpoints kept at most; of more, the one that leaves the smallest gap goes, never the newest
    checkpoint_every  keep one every so many tokens too (0: at the ends of prompts and at the starts of runs only)
    poison            fill unused cells with NaN (tests)
    Errors            SettingError for an argument of another kind, or out of range
    """

    def __init__(
        self,
        core: Model,
        n_ctx: int = 0,
        *,
        n_checkpoints: Annotated[int, Bounds(0, MAX_CHECKPOINTS)] = N_CHECKPOINTS,
        checkpoint_every: Positions = 0,
        poison: bool = False,
    ) -> None:
        given = {"n_ctx": n_ctx, "n_checkpoints": n_checkpoints, "checkpoint_every": checkpoint_every, "poison": poison}
        check_arguments(Session.__init__, given)
        self.core = core
        self.state: ModelState = core.new_state(n_ctx, poison=poison)
        self.n_checkpoints = n_checkpoints
        self.checkpoint_every = checkpoint_every
        self.checkpoints: list[Checkpoint] = []
        self.decoder: Decoder | None = None  # of the last run: its statistics
        # The last moment at which trunk, head and pending hidden agreed: a run that stops between two such moments,
        # in whatever way, leaves a state that is put back to here. `_ids` may reach further than the mark.
        self.mark: Checkpoint = self.state.mark()
        # The mark at which the last round began: a run that is left among the tokens of a round goes on from here.
        self._round_start: Checkpoint = self.mark
        self._ids: list[int] = []
        self._id_last = 0
        self._stops: frozenset[int] = frozenset()

    @property
    def ids(self) -> list[int]:
        """The tokens that the state holds. The last token of a run is not among them: it opens the next pass."""
        return self._ids[: self.mark.n_past]

    @property
    def n_past(self) -> int:
        return self.mark.n_past

    def __repr__(self) -> str:
        kept = [saved.n_past for saved in self.checkpoints]
        return f"<mtpref.Session: {self.n_past} of {self.state.n_ctx} positions used, checkpoints at {kept}>"

    def run(
        self,
        prompt_ids: Sequence[int],
        options: Options,
        drafter: Drafter | None = None,
        *,
        checkpoint_at: Sequence[int] = (),
    ) -> Iterator[Event]:
        """Process what the state does not hold of the prompt, then generate; nothing runs before the first `next`.

        checkpoint_at  keep checkpoints at these positions of the prompt too, for example where the last message begins
        Errors         those of `Decoder`; MtprefError when the iterator is used after a later run has begun
        """
        return self.start(prompt_ids, options, drafter, checkpoint_at=checkpoint_at)[1]

    def start(
        self,
        prompt_ids: Sequence[int],
        options: Options,
        drafter: Drafter | None = None,
        *,
        checkpoint_at: Sequence[int] = (),
    ) -> tuple[Decoder, Iterator[Event]]:
        """`run`, with the decoder of the run, whose statistics can be read at any time."""
        decoder = Decoder(self.core, self.state, options, drafter)
        self.decoder = decoder
        return decoder, self._events(decoder, [int(i) for i in prompt_ids], checkpoint_at)

    def _events(self, decoder: Decoder, prompt_ids: list[int], checkpoint_at: Sequence[int]) -> Iterator[Event]:
        events: Iterator[Event] | None = None
        while True:
            with _ONE_AT_A_TIME:
                if self.decoder is not decoder:
                    raise MtprefError("session: a later run has begun, expected one run at a time; finish a run first")
                if events is None:
                    decoder.check_prompt(prompt_ids)
                    self._stops = self._checkpoint_positions(prompt_ids, checkpoint_at)
                    n_reused = self._go_back(prompt_ids, decoder.keeps_head_warm)
                    events = decoder.run(prompt_ids, n_reused=n_reused, stops=sorted(self._stops))
                event = next(events, None)
                if event is None:
                    return
                self._follow(event, prompt_ids)
            yield event

    # --------------------------------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """Write tokens, state and checkpoints to a file, as of the last consistent moment; also in the middle of a run.

        Errors  MtprefError where the file cannot be written; it is replaced whole or not at all
        """
        check_path(path, "path")
        with _ONE_AT_A_TIME:
            write_session(path, self.core, self.state, self.ids, self.mark, self.checkpoints)

    @classmethod
    def load(cls, core: Model, path: str | Path, n_ctx: int = 0, **settings: Any) -> "Session":
        """The session that `save` wrote. settings: as for a new one.

        Errors  MtprefError, one line, for a file of another model or run, and for a damaged one
        """
        check_path(path, "path")
        session = cls(core, n_ctx, **settings)
        saved = read_session(path, core, session.state)
        session._ids, session.checkpoints = saved.ids, saved.checkpoints
        session.mark = session._round_start = saved.mark
        session._thin_out()
        return session

    # -------------------------------------------------------------------------------------- reuse

    def _go_back(self, prompt_ids: list[int], reads_head: bool) -> int:
        """Put the state back to where the prompt can go on; returns how many of its tokens are held then.

        Rule  never to the nearest checkpoint, only to one at or before the first difference, and before the prompt's
              last token, whose row is needed; where the head is read, only to one with all of the head's cells
        """
        state, steps, contract = self.state, self.core.recipe.steps, self.core.recipe.contract
        has_cells = any(head.keeps_cells for head in self.core.heads)
        needs_head = reads_head and contract.prime == "prompt" and has_cells
        n_common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.ids, prompt_ids, strict=False)))
        usable = [
            saved
            for saved in (*self.checkpoints, self._round_start, self.mark)
            if 0 < saved.n_past <= min(n_common, len(prompt_ids) - 1)
            and (not needs_head or has_whole_head(saved, contract))
        ]
        if not usable:
            self.checkpoints = []
            state.clear()
            self.mark = self._round_start = state.mark()
            return 0
        saved = max(usable, key=lambda c: c.n_past)
        left_over = state.pending_h
        self.checkpoints = [c for c in self.checkpoints if c.n_past <= saved.n_past]
        self.mark = self._round_start = saved
        steps.restore(state, saved)
        if not needs_head:  # a fresh run would have no cells here, and would leave a hole after any that stayed
            self.checkpoints = [c.without_head() for c in self.checkpoints]
            self.mark = self._round_start = saved.without_head()
            steps.trim_mtp(state, 0)
        state.pending_h = steps.pending_at_prompt(left_over, contract, state.pending_h)
        self.mark = self._round_start = state.mark()
        self._keep_checkpoint()
        return saved.n_past

    def _follow(self, event: Event, prompt_ids: list[int]) -> None:
        """Keep ids and mark in step with the loop."""
        if isinstance(event, PromptProgress):
            self._ids[self.mark.n_past :] = prompt_ids[self.mark.n_past : event.n_done]
        elif isinstance(event, Drafted):
            self._id_last = event.id_last
        elif isinstance(event, Verified):
            self._ids[event.pos0 :] = [self._id_last, *event.draft_ids[: event.n_accepted]]
        if isinstance(event, PromptProgress | Drafted | Token | RunEnded):
            self.mark = self.state.mark()
            if isinstance(event, Drafted):
                self._round_start = self.mark
            every = self.checkpoint_every
            last = self.checkpoints[-1].n_past if self.checkpoints else 0
            if self.mark.n_past in self._stops or 0 < every <= self.mark.n_past - last:
                self._keep_checkpoint()

    # -------------------------------------------------------------------------------- checkpoints

    def _checkpoint_positions(self, prompt_ids: list[int], checkpoint_at: Sequence[int]) -> frozenset[int]:
        """Where the prompt's passes must end: in front of its last token, after its last turn, at what was asked for,
        and every so often.

        A turn ends with an end-of-generation token. What a chat template writes after the last one opens the answer,
        and is written differently once the answer is there (without its thinking, for example).
        """
        n_prompt, every = len(prompt_ids), self.checkpoint_every
        regular = range(every, n_prompt, every) if every > 0 else ()
        eog_ids = self.core.vocab.eog_ids
        turns = [pos + 1 for pos, id in enumerate(prompt_ids) if id in eog_ids][-1:]
        return frozenset(pos for pos in (n_prompt - 1, *turns, *checkpoint_at, *regular) if 0 < pos < n_prompt)

    def _keep_checkpoint(self) -> None:
        kept = self.checkpoints
        if self.n_checkpoints < 1 or (kept and kept[-1].n_past >= self.state.n_past):
            return
        kept.append(self.state.checkpoint())
        self._thin_out()

    def _thin_out(self) -> None:
        kept = self.checkpoints
        while len(kept) > self.n_checkpoints:
            ends = [0, *(c.n_past for c in kept)]
            gaps = [ends[i + 2] - ends[i] for i in range(len(kept) - 1)]
            del kept[gaps.index(min(gaps)) if gaps else 0]


def has_whole_head(saved: Checkpoint, contract: MtpContract) -> bool:
    """Whether the head has seen every token that a fresh, primed run would have shown it."""
    n_cells = max(0, saved.n_past - contract.first_pos)
    whole = (n_cells, contract.first_pos if n_cells else 0)
    return all(lengths == whole for lengths in saved.heads)
