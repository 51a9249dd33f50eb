"""Decisions compared: llama-speculative-simple's rounds beside the events of a run here.

Owns what counts as agreement, and what as a near tie: a choice so close that another order of sums may turn it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from mtpref.base.events import Drafted, DraftStep, Event, Verified
from mtpref.look.llama_cpp.log import Round, Step


@dataclass
class Agreement:
    """What was compared, and what was found.

    p_tolerance   how far a draft candidate's probability may be off    near_margin  a target's choice whose margin is
                  below this may turn
    n_near_ties   candidates exchanged, drafts and texts that parted there    mismatches  everything else that differs
    """

    p_tolerance: float
    near_margin: float
    n_candidates: int = 0
    n_rounds: int = 0
    n_near_ties: int = 0
    max_p_error: float = 0.0
    mismatches: list[str] = field(default_factory=list)


def compare_rounds(
    agreement: Agreement,
    theirs: Iterable[Round],
    events: Iterable[Event],
    n_predict: int,
    n_max: int,
    p_min: float,
    where: str = "",
) -> None:
    """Compare round by round, up to the last that both draft at full budget, or to a near tie at which they part.

    events  those of a greedy run with the same prompt, n_predict, n_max and p_min
    """
    kept = [event for event in events if isinstance(event, Drafted | Verified)]
    pairs = zip(kept[::2], kept[1::2], strict=False)
    n_emitted = 0
    for i, (their_round, (drafted, verified)) in enumerate(zip(theirs, pairs, strict=False)):
        assert isinstance(drafted, Drafted) and isinstance(verified, Verified)  # noqa: PT018
        if n_predict - n_emitted - 1 < n_max:
            return  # from here on the budget cuts our draft
        if not compare_round(agreement, f"{where} round {i}".strip(), their_round, drafted, verified, p_min):
            return
        n_emitted += len(their_round.emitted)


def compare_round(
    agreement: Agreement, where: str, theirs: Round, drafted: Drafted, verified: Verified, p_min: float
) -> bool:
    """One round; whether the next one can still be compared (texts have not parted, nothing differs)."""
    for i, (their_step, step) in enumerate(zip(theirs.steps, drafted.steps, strict=False)):
        compare_step(agreement, f"{where} step {i}", their_step, step)
        if their_step.candidates and their_step.candidates[0].id != step.candidates[0]:
            break  # what follows was drafted after another token
    if drafted.ids != theirs.draft:
        if not agreement.mismatches and _is_near(agreement, theirs.draft, drafted, p_min):
            agreement.n_near_ties += 1
            return False
        agreement.mismatches.append(f"{where}: draft {drafted.ids}, llama.cpp {theirs.draft}")
    if [*drafted.ids[: verified.n_accepted], verified.target_ids[-1]] != theirs.emitted:
        if min(verified.margins) < agreement.near_margin:
            agreement.n_near_ties += 1
            return False
        agreement.mismatches.append(f"{where}: emitted differs, llama.cpp {theirs.emitted}")
    agreement.n_rounds += 1
    return not agreement.mismatches


def compare_step(agreement: Agreement, where: str, theirs: Step, ours: DraftStep) -> None:
    """Up to three candidates of one draft step; an exchange of candidates of equal p is a near tie."""
    for rank, candidate in enumerate(theirs.candidates):
        agreement.n_candidates += 1
        p = ours.p[rank]
        agreement.max_p_error = max(agreement.max_p_error, abs(p - candidate.p))
        if abs(p - candidate.p) > agreement.p_tolerance:
            agreement.mismatches.append(f"{where} rank {rank}: p {p:.4f}, llama.cpp {candidate.p}")
        if ours.candidates[rank] != candidate.id:
            neighbours = [ours.p[r] for r in (rank - 1, rank + 1) if 0 <= r < len(ours.p)]
            if min(abs(p - q) for q in neighbours) > agreement.p_tolerance:
                agreement.mismatches.append(f"{where} rank {rank}: {ours.candidates[rank]}, not {candidate.id}")
            agreement.n_near_ties += 1


def _is_near(agreement: Agreement, theirs: list[int], drafted: Drafted, p_min: float) -> bool:
    """Whether two drafts part at a step whose best candidates are close, or whose best is close to p_min."""
    pairs = zip(drafted.ids, theirs, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(drafted.ids), len(theirs)))
    if at >= len(drafted.steps):
        return False
    p = drafted.steps[at].p
    is_exchanged = at < min(len(drafted.ids), len(theirs)) and p[0] - p[min(1, len(p) - 1)] <= agreement.p_tolerance
    return is_exchanged or (p_min > 0 and abs(p[0] - p_min) <= agreement.p_tolerance)
