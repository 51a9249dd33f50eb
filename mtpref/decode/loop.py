"""The draft/verify loop: draft, verify, accept, roll back, catch up, emit.

Owns the order of these steps and the edges of a run: its budget, the end of generation, the end of the context. The
numerics are the model's, the hand-over of hidden rows is that of `Steps`, the length of drafts is mtpref/policy.py's.
"""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from mtpref.adaptive import AdaptiveConfig, AdaptiveState, adaptive_limit, after_adaptive_round
from mtpref.decode.drafters import Drafter, MtpDrafter, NoDrafter
from mtpref.decode.rollback import STRATEGIES, Verdict
from mtpref.decode.sampling import Judge, Sampler, SamplingConfig
from mtpref.decode.statistics import Statistics, margin
from mtpref.decode.stops import StopStrings
from mtpref.errors import MtprefError
from mtpref.events import Drafted, Event, PromptProgress, RolledBack, RunEnded, RunStarted, Token, Verified
from mtpref.model import Model
from mtpref.policy import PolicyConfig, PolicyState
from mtpref.spec import fixed_probability
from mtpref.state import ModelState
from mtpref.vocab import Vocab

F32 = NDArray[np.float32]
SPEC_TYPES = ("draft-mtp", "none")


@dataclass(frozen=True)
class Options:
    """n_predict      tokens to generate at most; -1: until the end of generation or of the context
    spec_type      draft-mtp or none
    policy         draft length and cooldown
    rollback       snapshot, replay or two-phase
    n_draft_vocab  FastMTP: only the first so many rows of the head can be drafted (None: all)
    draft_ids      FastMTP: only these ids can be drafted (None: all)
    n_batch        prompt tokens per trunk pass
    sampling       temperature, filters, seed, the rule that accepts a draft
    stop           strings that end the text and are not part of it
    adaptive       a rule that makes drafts shorter than the policy allows (docs/adaptive.md)
    """

    n_predict: int = 128
    spec_type: str = "draft-mtp"
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    rollback: str = "snapshot"
    n_draft_vocab: int | None = None
    n_batch: int = 512
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    stop: tuple[str, ...] = ()
    draft_ids: tuple[int, ...] | None = None
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)

    def __post_init__(self) -> None:
        if self.spec_type not in SPEC_TYPES:
            raise MtprefError(f"--spec-type: {self.spec_type!r} is unknown, expected one of {', '.join(SPEC_TYPES)}")
        if self.rollback not in STRATEGIES:
            raise MtprefError(f"--spec-rollback: {self.rollback!r} is unknown, expected one of {', '.join(STRATEGIES)}")
        if self.n_predict < -1:
            raise MtprefError(f"--predict: {self.n_predict} is out of range, expected -1 (no limit) or more")
        if self.n_draft_vocab is not None and self.n_draft_vocab < 1:
            raise MtprefError(f"--spec-draft-vocab: {self.n_draft_vocab} is out of range, expected 1 or more")
        if self.n_batch < 1:
            raise MtprefError(f"--batch-size: {self.n_batch} is out of range, expected 1 or more")
        if "" in self.stop:
            raise MtprefError("--reverse-prompt: the string is empty, expected at least one character")


class Decoder:
    """One run of one sequence. `run` yields events; `statistics` can be read at any time, also after an interrupt."""

    def __init__(self, model: Model, state: ModelState, options: Options, drafter: Drafter | None = None) -> None:
        self.model = model
        self.state = state
        self.options = options
        self.statistics = Statistics(clock=model.recipe.clock)
        self.policy_state = PolicyState()
        self.adaptive_state = AdaptiveState()
        uses_mtp = drafter is None and options.spec_type == "draft-mtp" and options.policy.n_max > 0
        if uses_mtp and not model.has_mtp:
            is_off = model.mtp_status == "off"
            why = "the MTP head was not loaded (mtp=False)" if is_off else "the file has no MTP head"
            raise MtprefError(f"--spec-type draft-mtp: {why}; use --spec-type none, or try: mtpref inspect FILE")
        n_draft_vocab = options.n_draft_vocab
        trimmed = model.with_draft_ids(options.draft_ids)
        if n_draft_vocab is not None and n_draft_vocab > trimmed.n_head_rows:
            what = "the size of the vocabulary" if trimmed.d2t is None else "the rows of the trimmed head"
            raise MtprefError(f"--spec-draft-vocab: {n_draft_vocab} is out of range, expected 1 .. "
                              f"{trimmed.n_head_rows}, {what}")  # fmt: skip
        self.sampler = Sampler(model, options.sampling)
        self.stop_strings = StopStrings(options.stop)
        if drafter is None and uses_mtp:
            rest = (options.n_draft_vocab, self.sampler, options.adaptive)
            drafter = MtpDrafter(trimmed, options.policy, self.statistics, *rest)
        self.drafter: Drafter = drafter or NoDrafter()
        self.keeps_head_warm = self.drafter.reads_head
        self._verify = STRATEGIES[options.rollback]
        self._last_targets: list[int] = []

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
        id_last = yield from self._prompt(list(prompt_ids), n_reused, stops)
        reason = None if id_last is not None else self._ended()
        while id_last is not None and reason is None:
            reason = self._out_of_room()
            if reason is None:
                id_last, is_end = yield from self._round(id_last)
                reason = self._ended() if is_end else None
        yield RunEnded(reason or self._ended(), self.statistics.to_json(), self.stop_strings.flush())

    # ----------------------------------------------------------------------------------- prompt

    def check_prompt(self, prompt_ids: Sequence[int]) -> None:
        if not prompt_ids:
            raise MtprefError("prompt: it has no tokens, expected at least one; give a text with -p or -f")
        if len(prompt_ids) > self.state.n_ctx:
            raise MtprefError(f"prompt: {len(prompt_ids)} tokens, expected at most {self.state.n_ctx}; "
                              "use a shorter prompt or a larger --ctx-size")  # fmt: skip

    def _started(self, prompt_ids: Sequence[int], n_reused: int) -> RunStarted:
        settings = asdict(self.options)
        settings["draft_ids"] = _summary(self.options.draft_ids)
        settings |= {"n_ctx": self.state.n_ctx, "kv_type": self.model.kv_type}
        settings |= {"kv_type_draft": self.model.kv_type_draft, "drafter": type(self.drafter).__name__}
        if self.statistics.chat is not None:
            settings["chat"] = self.statistics.chat
        recipe = self.model.recipe
        ids = [int(i) for i in prompt_ids]
        return RunStarted(
            self.model.config.name, recipe.numerics, asdict(recipe.contract), settings, ids, n_reused=n_reused
        )

    def _prompt(self, prompt_ids: list[int], n_reused: int, stops: Sequence[int]) -> Generator[Event, None, int | None]:
        """Run the prompt through trunk and head; returns the token that opens the first round (None: ended)."""
        model, state, stats = self.model, self.state, self.statistics
        steps, contract = model.recipe.steps, model.recipe.contract
        stats.n_prompt, stats.n_reused = len(prompt_ids), n_reused
        is_held = contract.prompt_end == "hold" or self.options.n_predict == 0
        ids = prompt_ids[:-1] if is_held else prompt_ids
        if not n_reused:
            state.clear()
            state.pending_h = steps.pending_at_prompt(state.pending_h, contract)
        logits = np.empty((0, 0), np.float32)
        for pos0, end in _passes(n_reused, len(ids), self.options.n_batch, stops):
            with stats.timed("prompt"):
                chunk = ids[pos0:end]
                is_last = end == len(ids)
                out = model.trunk(state, chunk, n_logits=int(is_last and not is_held))
                stats.count_pass("prompt", len(chunk))
                hidden = steps.target_hidden(out.hidden, contract)
                n_primed = steps.prime_rows(len(chunk), contract)
                primed = steps.prime_ids(chunk, pos0, state.pending_h)[:n_primed]
                self._catch_up(primed, hidden[:n_primed], pos0, state.pending_h, "mtp_prompt")
                state.pending_h = steps.prompt_pending(hidden, is_last)
                logits = out.logits
            yield PromptProgress(end, len(ids), n_reused)
        if is_held:
            return prompt_ids[-1]
        token = self._sampled(logits)
        yield token
        return None if token.is_eog or self.stop_strings.is_complete else token.id

    def _sampled(self, logits: F32) -> Token:
        """The token behind a prompt that was processed whole."""
        logits = self.sampler.biased(logits)
        self.statistics.count_margin(margin(logits[0]))
        if self.options.sampling.is_greedy:
            return self._token(self.sampler.greedy(logits)[0], self.state.n_past, "plain")
        id, drawn = self.sampler.plain(logits[0], self.state.n_past)
        return self._token(id, self.state.n_past, "plain", drawn.u_target)

    # ------------------------------------------------------------------------------------ round

    def _ended(self) -> str:
        """Why the text ended where it did not run out of room."""
        return "stop" if self.stop_strings.is_complete else "eog"

    def _out_of_room(self) -> str | None:
        n_predict = self.options.n_predict
        if 0 <= n_predict <= self.statistics.n_predict:
            return "length"
        return "context" if self.state.n_past >= self.state.n_ctx else None

    def _limit(self) -> int:
        """The longest draft that the policy and the room allow."""
        n_room = self.state.n_ctx - self.state.n_past - 1
        if self.options.n_predict >= 0:
            n_room = min(n_room, self.options.n_predict - self.statistics.n_predict - 1)
        return int(self.model.recipe.steps.draft_limit(self.options.policy, self.policy_state, n_room))

    def _draft(self, id_last: int) -> tuple[Drafted, Judge]:
        """Ask the drafter, within what is useful: a round of n drafts can give n + 1 tokens.

        Tokens behind one that completes a stop string are cut: they matter only if it is accepted, and then the text
        has ended. Drafts that were drawn (`residual`) are cut for nothing else.
        """
        state, policy, steps = self.state, self.options.policy, self.model.recipe.steps
        limit = adaptive_limit(self.options.adaptive, self.adaptive_state, self._limit())
        self.drafter.adapts(self.adaptive_state)
        with self.statistics.timed("draft"):
            draft = self.drafter.draft(state, steps.draft_opening(id_last, self._last_targets), limit)
        ids = draft.ids if draft.dists else draft.ids[: steps.proposed(policy, len(draft.ids), limit)]
        ids = ids[: self.stop_strings.n_useful([self._piece(id) for id in ids])]
        n_round, n_cooldown = self.statistics.n_rounds, self.policy_state.n_cooldown
        drafted = Drafted(n_round, state.n_past, id_last, ids, draft.steps, n_cooldown)
        return drafted, Judge(self.sampler, ids, draft.dists, state.n_past)

    def _round(self, id_last: int) -> Generator[Event, None, tuple[int, bool]]:
        """One round: returns the next opening token, and whether the text has ended."""
        state, stats, steps = self.state, self.statistics, self.model.recipe.steps
        limit = self._limit()
        drafted, judge = self._draft(id_last)
        yield drafted
        with stats.timed("verify"):
            verdict = self._verify(self.model, state, id_last, judge, stats)
        yield self._verified(drafted, verdict)
        if verdict.n_dropped:
            to_pos = drafted.pos0 + verdict.n_kept
            yield RolledBack(
                drafted.round, self.options.rollback, to_pos + verdict.n_dropped, to_pos, verdict.n_replayed
            )
        kept = [id_last, *drafted.ids][: verdict.n_kept]
        pending = state.pending_h if verdict.replay_from is None else verdict.replay_from
        n_rows = steps.kept_rows(verdict.n_kept, len(drafted.ids))
        with stats.timed("catch-up"):
            self._catch_up(kept[:n_rows], verdict.hidden[:n_rows], drafted.pos0, pending, "mtp_catch_up")
            state.pending_h = steps.next_pending(verdict.hidden, verdict.n_accepted)
        self.drafter.saw(verdict.target_ids, verdict.hidden, verdict.n_kept)
        self._last_targets = verdict.target_ids[: len(verdict.hidden)]
        stats.count_round(len(drafted.ids), verdict.n_accepted, self.policy_state.n_cooldown > 0)
        n_drafted, n_accepted = len(drafted.ids), verdict.n_accepted
        self.policy_state = steps.after_round(self.options.policy, self.policy_state, n_drafted, n_accepted)
        ps = [fixed_probability(step.p[0]) for step in drafted.steps[:n_drafted]]
        self.adaptive_state = after_adaptive_round(self.options.adaptive, self.adaptive_state, ps, n_accepted, limit)
        return (yield from self._emit(drafted, verdict))

    def _emit(self, drafted: Drafted, verdict: Verdict) -> Generator[Event, None, tuple[int, bool]]:
        n_accepted = verdict.n_accepted
        last = "plain" if not drafted.ids else "bonus" if n_accepted == len(drafted.ids) else "correction"
        steps = self.model.recipe.steps
        ids = steps.emitted(drafted.ids, n_accepted, verdict.target_ids)
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
        vocab: Vocab = self.model.vocab
        return vocab.piece(token) if token < vocab.n_vocab else b""

    def _catch_up(self, ids: Sequence[int], hidden: F32, pos0: int, pending: F32, kind: str) -> None:
        """Run kept tokens through the head with the trunk's hidden rows, so that its KV never keeps a guess."""
        if not self.keeps_head_warm or not ids:
            return
        rows = self.model.recipe.steps.pair_hidden(hidden, pending)
        n_skip = max(0, self.model.recipe.contract.first_pos - pos0)
        if n_skip >= len(ids):
            return
        self.model.mtp(self.state, ids[n_skip:], rows[n_skip:], pos0 + n_skip, n_logits=0)
        self.statistics.count_pass(kind, len(ids) - n_skip)

    def _verified(self, drafted: Drafted, verdict: Verdict) -> Verified:
        """Margins, near ties and draws of the rows that decided: up to the first disagreement."""
        margins = [margin(row) for row in verdict.logits[: verdict.n_kept]]
        near_ties = [self.statistics.count_margin(value) for value in margins]
        n_accepted = verdict.n_accepted
        n_behind = max(0, len(drafted.ids) - n_accepted - 1)
        n_rejected = len(drafted.ids) - n_accepted - n_behind
        verdicts = ["accept"] * n_accepted + ["reject"] * n_rejected + ["discard"] * n_behind
        target_ids, drawn = verdict.target_ids[: verdict.n_kept], list(verdict.draws[: verdict.n_kept])
        self.statistics.count_draws(drawn)
        return Verified(
            drafted.round, drafted.pos0, drafted.ids, target_ids, margins, near_ties, n_accepted, verdicts, drawn
        )


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
