"""The draft/verify loop: draft, verify, accept, roll back, catch up, emit.

Owns the order of these steps and the edges of a run: its budget, the end of generation, the end of the context. The
numerics are the model's, the hand-over of hidden rows is that of `Steps`, the length of drafts is spec/policy.py's.
"""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mtpref.base.events import Drafted, Event, PromptProgress, RolledBack, RunEnded, RunStarted, Token, Verified
from mtpref.base.settings import SettingError
from mtpref.engine.decode.drafters import Draft, Drafter, MtpDrafter, NoDrafter, notes_of
from mtpref.engine.decode.lengths import DraftLength
from mtpref.engine.decode.options import Options
from mtpref.engine.decode.passes import Passes, Trunk
from mtpref.engine.decode.rollback import ALL_STRATEGIES, Verdict
from mtpref.engine.decode.sampling import MakeJudge, Sampler, TargetJudge
from mtpref.engine.decode.statistics import Statistics, margin
from mtpref.engine.decode.stops import StopStrings
from mtpref.engine.model import Model
from mtpref.spec import fixed_probability
from mtpref.spec.state import ModelState
from mtpref.spec.steps import Batch

F32 = NDArray[np.float32]


class Decoder:
    """One run of one sequence. `run` yields events; `statistics` can be read at any time, also after an interrupt.

    drafter  who proposes (None: the model's head, as the options say)
    judge    who makes the judge of each round (None: the target decides)
    trunk    who runs the trunk (None: the model)
    """

    def __init__(
        self,
        model: Model,
        state: ModelState,
        options: Options,
        drafter: Drafter | None = None,
        judge: MakeJudge | None = None,
        trunk: Trunk | None = None,
    ) -> None:
        self.model, self.state, self.options = model, state, options
        self.statistics = Statistics(clock=model.recipe.clock)
        self.sampler = Sampler(model, options.sampling)
        self.stop_strings = StopStrings(options.stop)
        self.length = DraftLength(options.policy.fixed(), options.adaptive.fixed(), model.recipe.steps)
        self.drafter = _drafter(model, options, self.statistics, self.sampler, drafter)
        self.judge: MakeJudge = judge or partial(TargetJudge, self.sampler)
        self.keeps_head_warm = self.drafter.reads_head
        self.passes = Passes(model, state, self.statistics, trunk or model.trunk, self.keeps_head_warm)
        self.verify = ALL_STRATEGIES[options.rollback]
        self._last_ids: list[int] = []
        self._runs_alone = False  # the token that opens the next round: nothing is drafted after it

    def run(self, prompt_ids: Sequence[int], *, n_reused: int = 0, stops: Sequence[int] = ()) -> Iterator[Event]:
        """Process the prompt, then generate.

        n_reused  so many prompt tokens are in the state already, with their pending hidden and head cells; the last
                  token is never among them. 0: whatever the state held is cleared first
        stops     prompt passes also end at these positions, so that the state can be seen there
        Errors    MtprefError for an empty prompt, or one that leaves no room in the context
        """
        self.check_prompt(prompt_ids)
        if n_reused and not 0 < n_reused == self.state.n_past < len(prompt_ids):
            raise ValueError(f"{n_reused} of {len(prompt_ids)} prompt tokens reused, {self.state.n_past} in the state")
        yield self._started(prompt_ids, n_reused)
        logits = yield from self.prompt(prompt_ids, n_reused=n_reused, stops=stops)
        id_last, is_end = prompt_ids[-1], False
        if logits is not None:
            token = self._sampled(logits)
            yield token
            id_last, is_end = token.id, token.is_eog or self.stop_strings.is_complete
        reason = self._ended() if is_end else self._out_of_room()
        while reason is None:
            drafted, verdict = yield from self.round(id_last)
            id_last, is_end = yield from self._emit(drafted, verdict)
            reason = self._ended() if is_end else self._out_of_room()
        yield RunEnded(reason, self.statistics.to_json(), self.stop_strings.flush())

    # ----------------------------------------------------------------------------------- prompt

    def check_prompt(self, prompt_ids: Sequence[int]) -> None:
        if not prompt_ids:
            raise SettingError("prompt", "it has no tokens, expected at least one; give {text}", text="a text")
        if len(prompt_ids) > self.state.n_ctx:
            problem = (
                f"{len(prompt_ids)} tokens, expected at most {self.state.n_ctx}; use a shorter prompt or a larger "
            )
            raise SettingError("prompt", problem + "{n_ctx}", n_ctx="n_ctx")

    def _started(self, prompt_ids: Sequence[int], n_reused: int) -> RunStarted:
        settings = self.options.to_json()
        settings["draft_ids"] = _summary(self.options.draft_ids)
        settings |= {"n_ctx": self.state.n_ctx, "kv_type": self.model.kv_type}
        settings |= {"kv_type_draft": self.model.kv_type_draft, "drafter": type(self.drafter).__name__}
        if self.statistics.chat is not None:
            settings["chat"] = self.statistics.chat
        recipe = self.model.recipe
        ids = [int(i) for i in prompt_ids]
        return RunStarted(
            self.model.config.name, recipe.numerics, asdict(recipe.contract), settings, ids, n_reused=n_reused,
            changes=list(self.model.changes), notes=self.notes(),
        )  # fmt: skip

    def notes(self) -> list[str]:
        """What of the options this model cannot follow, a line each."""
        return notes_of(self.model, self.options.policy.n_max) if isinstance(self.drafter, MtpDrafter) else []

    def prompt(
        self, prompt_ids: Sequence[int], *, n_reused: int = 0, stops: Sequence[int] = ()
    ) -> Generator[Event, None, F32 | None]:
        """Run the prompt through trunk and head. Returns its last row of logits, (1, n_vocab); None where the last
        token is held back and opens the first round."""
        state, stats = self.state, self.statistics
        steps, contract = self.model.recipe.steps, self.model.recipe.contract
        stats.n_prompt, stats.n_reused = len(prompt_ids), n_reused
        is_held = contract.prompt_end == "hold" or self.options.n_predict == 0
        ids = list(prompt_ids[:-1] if is_held else prompt_ids)
        if not n_reused:
            state.clear()
            state.pending_h = steps.pending_at_prompt(state.pending_h, contract)
        logits = None
        for pos0, end in _passes(n_reused, len(ids), self.options.n_batch, stops):
            chunk, is_last = ids[pos0:end], end == len(ids)
            with stats.timed("prompt"):
                rows, hidden = self.passes.trunk(chunk, "prompt", n_logits=int(is_last and not is_held))
                self.passes.catch_up(Batch(chunk, pos0, state.pending_h), hidden, "mtp_prompt")
                state.pending_h = steps.prompt_pending(hidden, is_last)
                logits = None if is_held else rows
            gaps = [stats.count_gap(gap) for gap in self.passes.router_gaps.values()]
            self.passes.router_gaps.clear()
            yield PromptProgress(end, len(ids), n_reused, min(gaps, default=None))
        return logits

    def _sampled(self, logits: F32) -> Token:
        """The token after a prompt that was processed whole."""
        logits = self.sampler.biased(logits)
        self.statistics.count_margin(margin(logits[0]))
        if self.options.sampling.is_greedy:
            return self._token(self.sampler.greedy(logits)[0], self.state.n_past, "plain")
        id, drawn = self.sampler.plain(logits[0], self.state.n_past)
        return self._token(id, self.state.n_past, "plain", drawn.u_target)

    # ------------------------------------------------------------------------------------ round

    def round(self, id_last: int) -> Generator[Event, None, tuple[Drafted, Verdict]]:
        """One round after the token id_last, which is in the text and not yet in the state: all but its emission."""
        state, stats, steps, length = self.state, self.statistics, self.model.recipe.steps, self.length

        # DRAFT
        length.open(0 if self._runs_alone else self._n_room())
        with stats.timed("draft"):
            draft = self.drafter.draft(state, steps.draft_opening(id_last, self._last_ids), length)
        ids, pos0 = self._useful(draft), state.n_past
        drafted = Drafted(stats.n_rounds, pos0, id_last, ids, draft.steps, length.n_silent)
        yield drafted

        # VERIFY, ROLL BACK
        judge = self.judge(ids, draft.dists, pos0)
        with stats.timed("verify"):
            verdict = self.verify(self.passes, id_last, judge)
        yield self._verified(drafted, verdict)
        if verdict.n_dropped:
            to_pos = pos0 + verdict.n_kept
            from_pos = to_pos + verdict.n_dropped
            yield RolledBack(drafted.round, self.options.rollback, from_pos, to_pos, verdict.n_replayed)

        # CATCH UP
        pending = state.pending_h if verdict.replay_from is None else verdict.replay_from
        kept = [id_last, *ids][: verdict.n_kept]
        with stats.timed("catch-up"):
            self.passes.catch_up(Batch(kept, pos0, pending, len(ids)), verdict.hidden, "mtp_catch_up")
            state.pending_h = steps.next_pending(verdict.hidden, verdict.n_accepted)

        # REMEMBER
        self._last_ids = verdict.row_ids[: len(verdict.hidden)]
        self._runs_alone = verdict.runs_alone
        self.drafter.saw(verdict.row_ids, verdict.hidden, verdict.n_kept)
        stats.count_round(len(ids), verdict.n_accepted, length.n_silent > 0)
        ps = [fixed_probability(step.p[0]) for step in draft.steps[: len(ids)]]
        length.close(len(ids), verdict.n_accepted, ps)
        return drafted, verdict

    def _n_room(self) -> int:
        """Drafted tokens that could be of use: a round of n drafts can give n + 1 tokens."""
        n_room = self.state.n_ctx - self.state.n_past - 1
        n_predict = self.options.n_predict
        return n_room if n_predict < 0 else min(n_room, n_predict - self.statistics.n_predict - 1)

    def _useful(self, draft: Draft) -> list[int]:
        """What is proposed of a draft.

        Tokens after one that completes a stop string are cut: they matter only if it is accepted, and then the text
        has ended. Drafts that were drawn (`residual`) are cut for nothing else.
        """
        ids = draft.ids if draft.dists else draft.ids[: self.length.proposed(len(draft.ids))]
        return ids[: self.stop_strings.n_useful([self._piece(id) for id in ids])]

    def _verified(self, drafted: Drafted, verdict: Verdict) -> Verified:
        """Margins, near ties and draws of the rows that decided: up to the first disagreement."""
        margins = [margin(row) for row in verdict.logits[: verdict.n_kept]]
        near_ties = [self.statistics.count_margin(value) for value in margins]
        n_accepted = verdict.n_accepted
        n_behind = max(0, len(drafted.ids) - n_accepted - 1)
        n_rejected = len(drafted.ids) - n_accepted - n_behind
        verdicts = ["accept"] * n_accepted + ["reject"] * n_rejected + ["discard"] * n_behind
        row_ids, drawn = verdict.row_ids[: verdict.n_kept], list(verdict.draws[: verdict.n_kept])
        self.statistics.count_draws(drawn)
        at, found = range(drafted.pos0, drafted.pos0 + verdict.n_kept), self.passes.router_gaps
        gaps = [self.statistics.count_gap(found[pos]) for pos in at if pos in found]
        found.clear()
        return Verified(
            drafted.round, drafted.pos0, drafted.ids, row_ids, margins, near_ties, n_accepted, verdicts, drawn, gaps
        )

    # ------------------------------------------------------------------------------------- text

    def _emit(self, drafted: Drafted, verdict: Verdict) -> Generator[Event, None, tuple[int, bool]]:
        """S40. The tokens of a round; returns the last of them, and whether the text has ended with it.

        Rule     one by one, up to the first that ends the text: an end-of-generation token, or one that completes a
                 stop string
        """
        n_accepted = verdict.n_accepted
        last = "plain" if not drafted.ids else "bonus" if n_accepted == len(drafted.ids) else "correction"
        steps = self.model.recipe.steps
        ids = steps.emitted(drafted.ids, n_accepted, verdict.row_ids)
        for i, id in enumerate(ids):
            is_last = i == len(ids) - 1
            token = self._token(id, drafted.pos0 + 1 + i, last if is_last else "draft")
            yield token
            if steps.ends_text(token.is_eog, is_last) or self.stop_strings.is_complete:
                return id, True
        return id, False

    def _token(self, token: int, pos: int, source: str, u: float | None = None) -> Token:
        self.statistics.n_predict += 1
        piece = self._piece(token)
        return Token(pos, token, piece, source, token in self.model.vocab.eog_ids, self.stop_strings.push(piece), u)

    def _piece(self, token: int) -> bytes:
        vocab = self.model.vocab
        return vocab.piece(token) if token < vocab.n_vocab else b""

    def _ended(self) -> str:
        """Why the text ended where it did not run out of room."""
        return "stop" if self.stop_strings.is_complete else "eog"

    def _out_of_room(self) -> str | None:
        if 0 <= self.options.n_predict <= self.statistics.n_predict:
            return "length"
        return "context" if self.state.n_past >= self.state.n_ctx else None


def _drafter(
    model: Model, options: Options, statistics: Statistics, sampler: Sampler, given: Drafter | None
) -> Drafter:
    """Who drafts: the one that is given, the model's head, or nobody.

    Errors  MtprefError where the options ask for a head, or for rows of it, that the model does not have
    """
    uses_mtp = given is None and options.spec_type == "draft-mtp" and options.policy.n_max > 0
    if uses_mtp and not model.has_mtp:
        is_off = model.mtp_status == "off"
        why = "the MTP head was not loaded (mtp=False)" if is_off else "the file has no MTP head"
        problem = f"draft-mtp is asked for, and {why}; use {{spec_type}} none, or try: mtpref inspect FILE"
        raise SettingError("Options.spec_type", problem, spec_type="Options.spec_type")
    n_draft_vocab = options.n_draft_vocab
    trimmed = model.with_draft_ids(options.draft_ids)
    if n_draft_vocab is not None and n_draft_vocab > trimmed.n_head_rows:
        what = "the size of the vocabulary" if trimmed.d2t is None else "the rows of the trimmed head"
        problem = f"{n_draft_vocab} is out of range, expected 1 .. {trimmed.n_head_rows}, {what}"
        raise SettingError("Options.n_draft_vocab", problem)
    if given is None and uses_mtp:
        return MtpDrafter(trimmed, statistics, n_draft_vocab, sampler)
    return given or NoDrafter()


def _passes(first: int, end: int, n_batch: int, stops: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Positions first .. end - 1 in passes of at most n_batch, none of which crosses a stop."""
    for stop in [*sorted({s for s in stops if first < s < end}), end]:
        for start in range(first, stop, n_batch):
            yield start, min(start + n_batch, stop)
        first = stop


def _summary(draft_ids: Sequence[int] | None) -> dict[str, int | str] | None:
    """A list of ids as a trace names it: how many, and the SHA-256 of the ids in decimal, joined by commas."""
    if draft_ids is None:
        return None
    return {"n": len(draft_ids), "sha256": hashlib.sha256(",".join(map(str, draft_ids)).encode()).hexdigest()}
