"""A log of stock llama.cpp's llama-speculative-simple or llama-server against our own run, event by event.

Owns the alignment and the verdict: every printed draft candidate and its p, every draft, every accept decision, every
token. Takes events, runs nothing. Rounds are matched by the number of tokens emitted before them, since budgets may
differ near the end: llama.cpp cuts a draft to what is left of -n, and drafts without a limit where nothing is left.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mtpref.base.events import Drafted, DraftStep, Event, PromptProgress, Token, Verified
from mtpref.engine.decode.statistics import NEAR_GAP
from mtpref.look.llama_cpp.log import LlamaLog, Round, Step
from mtpref.look.llama_cpp.rounds import UNTOLD

SCHEMA = "mtpref-compare-log-1"
FEW = 0.5  # of the tokens: a comparison that ended earlier says little
P_DIGIT = 0.0005  # p is printed to three decimals
SAMPLED = "the tokens are not the target's best: was it run with --temp 0, and with this prompt?"
BLURRED = (
    "it is not the first request of its slot: llama.cpp pairs its first token with a hidden row of the request before, "
    "which no log holds; its tokens were compared, its drafts were not judged"
)


@dataclass(frozen=True)
class LogDifference:
    """One event that differs.

    what    "candidate" (an id), "p", "draft" or "token"
    index   of the step in its draft, or of the token in its round
    gap     what the decision hung on: the distance in p to the nearest candidate, or the target's margin in logits
    router  (position, gap) of a router's near tie before it, which may have sent a token to another expert there: then
            it counts as a near tie, and nothing after it can be compared
    """

    round: int
    pos: int
    what: str
    index: int
    ours: Any
    theirs: Any
    gap: float | None
    is_near_tie: bool
    router: tuple[int, float] | None = None

    def text(self) -> str:
        tie = " (a near tie)" if self.is_near_tie else ""
        unit = "in logits" if self.what == "token" else "in p"
        gap = "" if self.gap is None else f"; margin {self.gap:.3g} {unit}{tie}"
        place = f"round {self.round}, position {self.pos}, {'step' if self.what != 'token' else 'token'} {self.index}"
        why = ""
        if self.router is not None:
            position, least = self.router
            why = f"; a near tie of a router or indexer at position {position}, gap {least:.2g}, explains it"
        return f"{place}: {self.what} {self.ours}, llama.cpp {self.theirs}{gap}{why}"


@dataclass
class LogAgreement:
    """What was compared and what differs. first: the first event that differs, whether a near tie or not.

    p_limit, near_margin   see compare_log    is_blurred: a later request of its slot
    n_untold   tokens that the log does not tell: corrections of drafts that were run again
    n_apart    rounds whose drafts were not judged, as an earlier one had parted and its roll back left a trace in them
    loop       in words, how the log's program rolls a rejected draft back; "" where nothing was rejected
    """

    p_limit: float
    near_margin: float
    is_blurred: bool = False
    n_rounds: int = 0
    n_rounds_theirs: int = 0
    n_candidates: int = 0
    n_tokens: int = 0
    n_tokens_theirs: int = 0
    n_untold: int = 0
    n_apart: int = 0
    loop: str = ""
    n_near_ties: int = 0
    n_cut: int = 0
    max_p_error: float = 0.0
    is_complete: bool = True
    differences: list[LogDifference] = field(default_factory=list)

    @property
    def first(self) -> LogDifference | None:
        return self.differences[0] if self.differences else None

    @property
    def first_divergence(self) -> LogDifference | None:
        """The first difference that no near tie explains."""
        return next((d for d in self.differences if not d.is_near_tie), None)

    @property
    def is_parted(self) -> bool:
        """The texts went apart at a near tie, so that nothing after it could be compared."""
        return self.is_rerouted or any(d.what == "token" and d.is_near_tie for d in self.differences)

    @property
    def is_rerouted(self) -> bool:
        """A router's near tie came before a difference: the two may have run different experts since then."""
        return any(d.router is not None for d in self.differences)

    @property
    def is_hardly_compared(self) -> bool:
        """The texts parted so early that most tokens were not compared: no difference then says little."""
        return self.is_parted and self.n_tokens < FEW * self.n_tokens_theirs

    @property
    def hint(self) -> str | None:
        """What to look at first, where the texts part at a token that no near tie explains."""
        first = self.first_divergence
        return SAMPLED if first is not None and first.what == "token" and first.gap is not None else None

    def to_json(self) -> dict[str, Any]:
        record = {name: value for name, value in vars(self).items() if name != "differences"}
        first = self.first_divergence
        return {
            "schema": SCHEMA,
            **record,
            "is_parted": self.is_parted,
            "is_hardly_compared": self.is_hardly_compared,
            "hint": self.hint,
            "first_divergence": vars(first) if first else None,
            "differences": [vars(d) for d in self.differences],
        }

    def lines(self) -> list[str]:
        lines = [
            f"{self.n_rounds} of {self.n_rounds_theirs} rounds, {self.n_candidates} candidates and {self.n_tokens} of "
            f"{self.n_tokens_theirs} tokens compared; greatest difference in p {self.max_p_error:.4f} "
            f"(limit {self.p_limit:g}; three decimals are printed); {self.n_near_ties} near ties"
        ]
        if self.loop:
            lines.append(f"its loop: {self.loop}")
        if self.n_untold:
            lines.append(
                f"{self.n_untold} tokens are corrections that the log does not tell, what follows them was compared"
            )
        if self.n_cut:
            lines.append(f"{self.n_cut} drafts were cut by llama.cpp's budget, as far as they go they were compared")
        if self.n_apart:
            lines.append(
                f"the drafts of {self.n_apart} rounds were not judged: an earlier one went another way, by a near tie "
                "or by the budget, and its roll back left a trace in those after it"
            )
        if not self.is_complete:
            lines.append(
                "the log ends early: no count of tokens that agrees with its rounds; what it holds was compared"
            )
        if self.first is not None and self.first is not self.first_divergence:
            lines.append(f"first near tie: {self.first.text()}")
        parted = (
            "a near tie of a router or indexer may have chosen another expert, or other cells"
            if self.is_rerouted
            else ""
        )
        if self.is_hardly_compared:
            sampled = "the texts part at a near tie, as those of a sampled run do; was it run with --temp 0?"
            lines.append(
                f"HARDLY ANYTHING WAS COMPARED: {self.n_tokens} of {self.n_tokens_theirs} tokens, then "
                f"{parted or sampled}"
            )
        elif self.is_rerouted:
            lines.append(f"{parted} there: what follows was not compared")
        elif self.is_parted:
            lines.append(
                "the texts part at a near tie: what follows was not compared (a run without --temp 0 parts, too)"
            )
        if self.is_blurred:
            lines.append(BLURRED)
        if self.first_divergence is not None:
            lines.append(f"first divergence: {self.first_divergence.text()}")
        else:
            lines.append("no event differs" + " beyond near ties" * bool(self.n_near_ties))
        if self.hint is not None:
            lines.append(self.hint)
        return lines


def compare_log(
    log: LlamaLog,
    events: Iterable[Event],
    *,
    p_min: float = 0.0,
    p_limit: float = 0.002,
    near_margin: float = 0.01,
    opening_margin: float | None = None,
    near_gap: float = NEAR_GAP,
) -> LogAgreement:
    """Compare a log with our run of the same prompt and settings, greedy, whose budget is at least as large.

    p_min        the least p of a drafted token, as both were told
    p_limit      differences of p up to this count as equal, the rounding of the print beside it; candidates that are
                 so close may change places
    near_margin  a target's choice whose margin in logits is below this may turn: the comparison ends there
    opening_margin  that of the token which a request of llama-server begins with: our prompt was processed whole
    near_gap     a router gap below this may turn: what differs after it may have been run by another expert
    """
    is_blurred = log.request is not None and not log.request.is_first
    events = list(events)
    drafted, verified, opening = _rounds(events)
    ties = router_ties(events, near_gap)
    agreement = LogAgreement(
        p_limit, near_margin, is_blurred, n_rounds_theirs=len(log.rounds), n_tokens_theirs=len(log.ids)
    )
    agreement.is_complete = log.is_complete
    starts = {}
    n_ours = 0
    for d, v in zip(drafted, verified, strict=False):
        starts[n_ours] = (d, v)
        n_ours += v.n_accepted + 1
    judge = _Judge(agreement, p_min, _ours(verified, _end_of_text(events)), log.request is not None, ties)
    judge.is_replayed, judge.near_gap = log.n_partial > 0, near_gap
    if opening is not None and not judge.opening(log, opening, opening_margin):
        return agreement
    at = 0
    for i, theirs in enumerate(log.rounds):
        if at in starts:
            judge.round(i, theirs, *starts[at])
        if agreement.is_rerouted or not judge.tokens(i, theirs, at):
            return agreement
        at += len(theirs.emitted)
    if log.unfinished and (at in starts or len(drafted) > len(verified)):
        last = starts[at][0] if at in starts else drafted[-1]
        judge.steps(len(log.rounds), log.unfinished, last)
    return agreement


@dataclass(frozen=True)
class _Emitted:
    """One token of ours: id, position, margin, whether it is a near tie, whether it ends the text."""

    id: int
    pos: int
    margin: float
    is_near_tie: bool
    is_end: bool = False


def _rounds(events: Iterable[Event]) -> tuple[list[Drafted], list[Verified], Token | None]:
    """Drafts, verdicts, and the token that was sampled from a prompt that was processed whole."""
    drafted: list[Drafted] = []
    verified: list[Verified] = []
    opening = None
    for event in events:
        if isinstance(event, Token) and not drafted:
            opening = event
        if isinstance(event, Drafted):
            drafted.append(event)
        elif isinstance(event, Verified):
            verified.append(event)
    return drafted, verified, opening


def router_ties(events: Iterable[Event], near_gap: float = NEAR_GAP) -> list[tuple[int, float]]:
    """(position, gap) of every near tie of a router or indexer, of the tokens that stayed; of a prompt's, its end."""
    ties = []
    for event in events:
        if isinstance(event, PromptProgress) and event.router_gap is not None and event.router_gap < near_gap:
            ties.append((event.n_done - 1, event.router_gap))
        if isinstance(event, Verified):
            ties += [(event.pos0 + i, gap) for i, gap in enumerate(event.router_gaps) if gap < near_gap]
    return ties


def _end_of_text(events: Iterable[Event]) -> int | None:
    """The position of the token that ends our text, where it is one that does."""
    return next((e.pos for e in events if isinstance(e, Token) and e.is_eog), None)


def _ours(verified: list[Verified], end: int | None) -> list[_Emitted]:
    """Up to the end of the text. llama.cpp names the token that ends it as the last of its round, though the row after
    it was run: there it stands twice."""
    out = []
    for v in verified:
        for row in range(v.n_accepted + 1):
            pos = v.pos0 + row + 1
            out.append(_Emitted(v.target_ids[row], pos, v.margins[row], v.near_ties[row], pos == end))
            if pos == end:
                return [*out, out[-1]]
    return out


class _Judge:
    """Notes differences; the rounds after a difference in the tokens are not judged."""

    def __init__(
        self,
        agreement: LogAgreement,
        p_min: float,
        ours: list[_Emitted],
        is_request: bool,
        ties: Sequence[tuple[int, float]] = (),
    ) -> None:
        self.agreement, self.p_min, self.ours, self.is_request = agreement, p_min, ours, is_request
        self.is_replayed = False  # a draft that was accepted in part leaves its trace in the drafts after it (S52)
        self.is_apart = False
        self.ties = ties
        self.near_gap = NEAR_GAP
        self.of_head: tuple[int, float] | None = None  # a near tie of the head's router in the draft at hand
        self.n_before = 0  # positions that the trunk had run when the draft at hand was made

    def round(self, i: int, theirs: Round, ours: Drafted, verdict: Verified) -> None:
        """Draft and lengths. In a loop that replays, a draft that went another way, by a near tie or by the budget,
        changes those after it where either was accepted in part: they are not judged."""
        if self.is_apart:
            self.agreement.n_apart += 1
            return
        self.draft(i, theirs, ours)
        is_partial = theirs.is_replayed or verdict.n_accepted < len(ours.ids)
        self.is_apart = self.is_replayed and is_partial and theirs.draft != ours.ids

    def draft(self, i: int, theirs: Round, ours: Drafted) -> None:
        """The candidates of each step, then the ids that were verified."""
        self.agreement.n_rounds += 1
        self.n_before, self.of_head = ours.pos0, None
        before = len(self.agreement.differences)
        self.steps(i, theirs.steps, ours)
        if ours.ids == theirs.draft or len(self.agreement.differences) > before:
            return
        n = min(len(ours.ids), len(theirs.draft))
        if ours.ids[:n] == theirs.draft[:n] and self._is_cut(theirs, ours):
            self.agreement.n_cut += 1
            return
        gap = self._gap_to_p_min(theirs, ours, n)
        is_tie = gap is not None and gap <= self.agreement.p_limit + P_DIGIT
        self._note(LogDifference(i, ours.pos0, "draft", n, ours.ids, theirs.draft, gap, is_tie))

    def steps(self, i: int, theirs: list[Step], ours: Drafted) -> None:
        self.n_before = ours.pos0
        for n, (a, b) in enumerate(zip(theirs, ours.steps, strict=False)):
            if b.router_gap is not None and b.router_gap < self.near_gap:
                self.of_head = (b.pos, b.router_gap)
            if not self._step(i, n, a, b, ours.pos0 + n):
                return

    def _step(self, i: int, n: int, theirs: Step, ours: DraftStep, pos: int) -> bool:
        """Up to three candidates; False where the draft went another way."""
        slack = self.agreement.p_limit + P_DIGIT
        for rank, (candidate, p) in enumerate(zip(theirs.candidates, ours.p, strict=False)):
            self.agreement.n_candidates += 1
            error = abs(p - candidate.p)
            self.agreement.max_p_error = max(self.agreement.max_p_error, error)
            if ours.candidates[rank] != candidate.id:
                near = [abs(p - ours.p[r]) for r in (rank - 1, rank + 1) if 0 <= r < len(ours.p)]
                gap = min(near, default=None)
                is_tie = gap is not None and gap <= slack
                self._note(LogDifference(i, pos, "candidate", n, ours.candidates[rank], candidate.id, gap, is_tie))
                if rank == 0:
                    return False
            elif error > slack:
                self._note(LogDifference(i, pos, "p", n, round(p, 4), candidate.p, None, False))
        return True

    def opening(self, log: LlamaLog, ours: Token, margin: float | None) -> bool:
        """The token after a prompt that was processed whole; False where the texts part at it."""
        theirs = log.request.opening if log.request is not None else None
        if theirs is None or theirs == ours.id:
            return True
        is_tie = margin is not None and margin < self.agreement.near_margin
        self._note(LogDifference(0, ours.pos, "token", 0, ours.id, theirs, margin, is_tie))
        return False

    def tokens(self, i: int, round: Round, at: int) -> bool:
        """The tokens of a round against ours; False where the texts part or ours ends. A correction that is not told is
        none that was drafted: else it had been accepted."""
        emitted = round.emitted
        for n, (theirs, ours) in enumerate(zip(emitted, self.ours[at:], strict=False)):
            is_untold = theirs == UNTOLD
            self.agreement.n_untold += is_untold
            is_refused = is_untold and ours.id == round.draft[n] and not ours.is_end
            if is_refused or (not is_untold and theirs != ours.id):
                is_tie = ours.is_near_tie or ours.margin < self.agreement.near_margin
                told = f"not {ours.id}" if is_refused else theirs
                self._note(LogDifference(i, ours.pos, "token", n, ours.id, told, ours.margin, is_tie))
                return False
            self.agreement.n_tokens += 1
        n_left = len(self.ours) - at
        if len(emitted) > n_left:
            pos = self.ours[-1].pos + 1 if self.ours else 0
            self._note(LogDifference(i, pos, "token", n_left, "(the end)", emitted[n_left], None, False))
        return len(emitted) <= n_left

    def _is_cut(self, theirs: Round, ours: Drafted) -> bool:
        """Theirs is the shorter draft, and p_min did not end it: their budget did. (Ours is never cut.)"""
        n = theirs.n_draft
        if not theirs.steps and self.is_request:
            return True  # llama-server does not draft at all where there is no room for it
        return n < min(len(ours.ids), len(theirs.steps)) and theirs.steps[n].candidates[0].p >= self.p_min - P_DIGIT

    def _gap_to_p_min(self, theirs: Round, ours: Drafted, n: int) -> float | None:
        """How far from p_min the step was at which only one of the two stopped."""
        return abs(ours.steps[n].p[0] - self.p_min) if n < len(ours.steps) else None

    def _note(self, difference: LogDifference) -> None:
        if self.agreement.is_blurred and difference.what != "token":
            return
        if not difference.is_near_tie:
            end = difference.pos if difference.what == "token" else self.n_before
            router = next((tie for tie in self.ties if tie[0] < end), None)
            router = router or (self.of_head if difference.what != "token" else None)
            difference = replace(difference, router=router, is_near_tie=router is not None)
        self.agreement.differences.append(difference)
        self.agreement.n_near_ties += difference.is_near_tie
