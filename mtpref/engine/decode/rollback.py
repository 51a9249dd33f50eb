"""Verification and roll back: three strategies, the same tokens and the same model state, and another engine's.

Owns what happens to the model state while a draft is verified. After `verify`, the state holds exactly the opening
token and the accepted ones, as if the rejected tokens had never been seen. It must not emit text or choose drafts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mtpref.base.events import Draw
from mtpref.engine.decode.passes import Passes
from mtpref.engine.decode.sampling import Judge

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Verdict:
    """What verification found.

    row_ids     the token that each row that was run gives, logits: those rows (R, n_vocab); draws: how they were
                sampled, empty for greedy decoding
    hidden      the trunk's rows of the opening token and of every verified draft token, as the contract wants them
    n_kept      n_accepted + 1: the tokens that stay in the state
    n_dropped   tokens that were run and rolled back; n_replayed: tokens that were run again for that
    replay_from the pending hidden that the replayed batch starts from, None without a replay
    runs_alone  the correction is run before anything is drafted after it: the next round drafts nothing
    """

    row_ids: list[int]
    logits: F32
    hidden: F32
    n_accepted: int
    n_dropped: int
    n_replayed: int
    replay_from: F32 | None = None
    draws: Sequence[Draw] = ()
    runs_alone: bool = False

    @property
    def n_kept(self) -> int:
        return self.n_accepted + 1


Verify = Callable[[Passes, int, Judge], Verdict]


def verify_snapshot(passes: Passes, id_last: int, judge: Judge) -> Verdict:
    """S38. One pass that keeps the recurrent state after each token; rolling back is choosing one of them."""
    ids = [id_last, *judge.ids]
    logits, hidden = _run(passes, ids, judge, keep=len(ids))
    n_accepted = judge.n_accepted
    n_dropped = len(judge.ids) - n_accepted
    if judge.ids:
        with passes.statistics.timed("rollback"):
            passes.model.recipe.steps.choose_plane(passes.state, n_dropped)
    return Verdict(judge.row_ids, logits, hidden, n_accepted, n_dropped, 0, draws=judge.draws)


def verify_replay(passes: Passes, id_last: int, judge: Judge) -> Verdict:
    """S38. A checkpoint, one pass; after a rejection back to the checkpoint, and the accepted prefix is run again."""
    ids, state, stats = [id_last, *judge.ids], passes.state, passes.statistics
    steps, contract = passes.model.recipe.steps, passes.model.recipe.contract
    pending = state.pending_h
    with stats.timed("rollback"):
        saved = state.checkpoint() if judge.ids else None
    logits, rejected = _run(passes, ids, judge, keep=1)
    n_accepted = judge.n_accepted
    n_dropped = len(judge.ids) - n_accepted
    if not n_dropped or saved is None:
        return Verdict(judge.row_ids, logits, rejected, n_accepted, 0, 0, draws=judge.draws)
    with stats.timed("rollback"):
        steps.restore(state, saved)
        _, hidden = passes.trunk(ids[: n_accepted + 1], "replay", n_logits=0)
    replay_from = steps.pending_at_replay(pending, rejected, contract)
    n_replayed = n_accepted + 1
    return Verdict(judge.row_ids, logits, hidden, n_accepted, n_dropped, n_replayed, replay_from, judge.draws)


def verify_two_phase(passes: Passes, id_last: int, judge: Judge) -> Verdict:
    """S38. One token at a time: a draft token is run only once it is accepted, so nothing is ever rolled back."""
    rows = [_run(passes, [id_last], judge, keep=1)]
    while judge.n_accepted == len(rows):
        rows.append(_run(passes, [judge.ids[len(rows) - 1]], judge, keep=1))
    logits = np.concatenate([logits for logits, _ in rows])
    hidden = np.concatenate([hidden for _, hidden in rows])
    return Verdict(judge.row_ids, logits, hidden, len(rows) - 1, 0, 0, draws=judge.draws)


def verify_replay_with_correction(passes: Passes, id_last: int, judge: Judge) -> Verdict:
    """S52. As a replay, but the correction is part of the batch that is run again: it is run before anything is drafted
    after it, and the batch's last row gives one token more.

    Rule     the round ends with the correction, and the next one drafts nothing: a token's bits do not depend on its
             batch, so the two passes give the same text, cells and pending row as the one batch does
    """
    verdict = verify_replay(passes, id_last, judge)
    return replace(verdict, runs_alone=verdict.n_replayed > 0)


STRATEGIES: dict[str, Verify] = {
    "snapshot": verify_snapshot,
    "replay": verify_replay,
    "two-phase": verify_two_phase,
}
WITH_CORRECTION = "replay-with-correction"
# With the loop of an engine that this one would not choose: for comparing with it, draft by draft.
ALL_STRATEGIES: dict[str, Verify] = {**STRATEGIES, WITH_CORRECTION: verify_replay_with_correction}


def _run(passes: Passes, ids: Sequence[int], judge: Judge, *, keep: int) -> tuple[F32, F32]:
    """Run tokens and show their rows to the judge: logits as it saw them, hidden rows as the contract wants them."""
    kind = "verify" if len(ids) > 1 else "plain"
    logits, hidden = passes.trunk(ids, kind, n_logits=len(ids), keep=keep)
    return judge.see(logits), hidden
