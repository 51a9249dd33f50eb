"""Verification and roll back: three strategies, the same tokens and the same model state.

Owns what happens to the model state while a draft is verified. After `verify`, the state holds exactly the opening
token and the accepted ones, as if the rejected tokens had never been seen. It must not emit text or choose drafts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtpref.decode.sampling import Judge
from mtpref.decode.statistics import Statistics
from mtpref.events import Draw
from mtpref.model import Model
from mtpref.state import ModelState
from mtpref.steps import Hidden

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Verdict:
    """What verification found.

    target_ids  the token that the target gives at each row that was run, logits: those rows (R, n_vocab); draws: how
                they were sampled, empty for greedy decoding
    hidden      the trunk's rows of the opening token and of every verified draft token, as the contract wants them
    n_kept      n_accepted + 1: the tokens that stay in the state
    n_dropped   tokens that were run and rolled back; n_replayed: tokens that were run again for that
    replay_from the pending hidden that the replayed batch starts from, None without a replay
    """

    target_ids: list[int]
    logits: F32
    hidden: F32
    n_accepted: int
    n_dropped: int
    n_replayed: int
    replay_from: F32 | None = None
    draws: Sequence[Draw] = ()

    @property
    def n_kept(self) -> int:
        return self.n_accepted + 1


Verify = Callable[[Model, ModelState, int, Judge, Statistics], Verdict]


def verify_snapshot(model: Model, state: ModelState, id_last: int, judge: Judge, stats: Statistics) -> Verdict:
    """One pass that keeps the recurrent state after each token; rolling back is choosing one of them."""
    ids = [id_last, *judge.ids]
    steps = model.recipe.steps
    logits, hidden = _run(model, state, ids, judge, stats, keep=len(ids))
    n_accepted = judge.n_accepted
    n_dropped = len(judge.ids) - n_accepted
    if judge.ids:
        with stats.timed("rollback"):
            steps.choose_plane(state, n_dropped)
    return Verdict(judge.target_ids, logits, hidden, n_accepted, n_dropped, 0, draws=judge.draws)


def verify_replay(model: Model, state: ModelState, id_last: int, judge: Judge, stats: Statistics) -> Verdict:
    """A checkpoint, one pass; after a rejection the checkpoint is restored and the accepted prefix is run again."""
    ids = [id_last, *judge.ids]
    steps, contract = model.recipe.steps, model.recipe.contract
    pending = state.pending_h
    with stats.timed("rollback"):
        saved = steps.checkpoint(state) if judge.ids else None
    logits, hidden = _run(model, state, ids, judge, stats, keep=1)
    n_accepted = judge.n_accepted
    n_dropped = len(judge.ids) - n_accepted
    if not n_dropped or saved is None:
        return Verdict(judge.target_ids, logits, hidden, n_accepted, 0, 0, draws=judge.draws)
    with stats.timed("rollback"):
        steps.restore(state, saved)
        out = model.trunk(state, ids[: n_accepted + 1], n_logits=0)
        stats.count_pass("replay", n_accepted + 1)
    replay_from = steps.pending_at_replay(pending, hidden, contract)
    hidden = steps.target_hidden(out.hidden, contract)
    n_replayed = n_accepted + 1
    return Verdict(judge.target_ids, logits, hidden, n_accepted, n_dropped, n_replayed, replay_from, judge.draws)


def verify_two_phase(model: Model, state: ModelState, id_last: int, judge: Judge, stats: Statistics) -> Verdict:
    """One token at a time: a draft token is run only once it is accepted, so nothing is ever rolled back."""
    rows = [_run(model, state, [id_last], judge, stats, keep=1)]
    while judge.n_accepted == len(rows):
        rows.append(_run(model, state, [judge.ids[len(rows) - 1]], judge, stats, keep=1))
    logits = np.concatenate([logits for logits, _ in rows])
    hidden = np.concatenate([hidden for _, hidden in rows])
    return Verdict(judge.target_ids, logits, hidden, len(rows) - 1, 0, 0, draws=judge.draws)


STRATEGIES: dict[str, Verify] = {
    "snapshot": verify_snapshot,
    "replay": verify_replay,
    "two-phase": verify_two_phase,
}


def _run(
    model: Model, state: ModelState, ids: Sequence[int], judge: Judge, stats: Statistics, *, keep: int
) -> tuple[F32, F32]:
    """Run tokens and show their rows to the judge: logits as it saw them, hidden rows as the contract wants them."""
    out = model.trunk(state, ids, n_logits=len(ids), keep=keep)
    stats.count_pass("verify" if len(ids) > 1 else "plain", len(ids))
    hidden: Hidden = out.hidden
    logits = judge.see(out.logits)
    return logits, model.recipe.steps.target_hidden(hidden, model.recipe.contract)
