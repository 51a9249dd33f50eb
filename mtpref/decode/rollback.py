"""Verification and roll back: three strategies, the same tokens and the same model state.

Owns what happens to the model state while a draft is verified. After `verify`, the state holds exactly the opening
token and the accepted ones, as if the rejected tokens had never been seen. It must not emit text or choose drafts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtpref.decode.statistics import Statistics
from mtpref.model import Model
from mtpref.state import ModelState
from mtpref.steps import Hidden

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Verdict:
    """What verification found.

    target_ids  the target's greedy choice at each row that was run, logits: those rows (R, n_vocab)
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

    @property
    def n_kept(self) -> int:
        return self.n_accepted + 1


Verify = Callable[[Model, ModelState, int, Sequence[int], Statistics], Verdict]


def verify_snapshot(model: Model, state: ModelState, id_last: int, draft: Sequence[int], stats: Statistics) -> Verdict:
    """One pass that keeps the recurrent state after each token; rolling back is choosing one of them."""
    ids = [id_last, *draft]
    steps = model.recipe.steps
    logits, hidden = _run(model, state, ids, stats, keep=len(ids))
    target_ids, n_accepted = _judge(model, logits, draft)
    n_dropped = len(draft) - n_accepted
    if n_dropped:
        with stats.timed("rollback"):
            steps.choose_plane(state, n_dropped)
    return Verdict(target_ids, logits, hidden, n_accepted, n_dropped, 0)


def verify_replay(model: Model, state: ModelState, id_last: int, draft: Sequence[int], stats: Statistics) -> Verdict:
    """A checkpoint, one pass; after a rejection the checkpoint is restored and the accepted prefix is run again."""
    ids = [id_last, *draft]
    steps, contract = model.recipe.steps, model.recipe.contract
    pending = state.pending_h
    with stats.timed("rollback"):
        saved = steps.checkpoint(state) if draft else None
    logits, hidden = _run(model, state, ids, stats, keep=1)
    target_ids, n_accepted = _judge(model, logits, draft)
    n_dropped = len(draft) - n_accepted
    if not n_dropped or saved is None:
        return Verdict(target_ids, logits, hidden, n_accepted, 0, 0)
    with stats.timed("rollback"):
        steps.restore(state, saved)
        out = model.trunk(state, ids[: n_accepted + 1], n_logits=0)
        stats.count_pass("replay", n_accepted + 1)
    replay_from = steps.pending_at_replay(pending, hidden, contract)
    hidden = steps.target_hidden(out.hidden, contract)
    return Verdict(target_ids, logits, hidden, n_accepted, n_dropped, n_accepted + 1, replay_from)


def verify_two_phase(model: Model, state: ModelState, id_last: int, draft: Sequence[int], stats: Statistics) -> Verdict:
    """One token at a time: a draft token is run only once it is accepted, so nothing is ever rolled back."""
    rows: list[tuple[F32, F32]] = []
    target_ids: list[int] = []
    n_accepted, token = 0, id_last
    while True:
        rows.append(_run(model, state, [token], stats, keep=1))
        target_ids += _choices(model, rows[-1][0])
        tried = draft[: n_accepted + 1]
        if model.recipe.steps.accept_greedy(tried, target_ids, model.vocab.eog_ids) <= n_accepted:
            break
        token = draft[n_accepted]
        n_accepted += 1
    logits = np.concatenate([logits for logits, _ in rows])
    hidden = np.concatenate([hidden for _, hidden in rows])
    return Verdict(target_ids, logits, hidden, n_accepted, 0, 0)


STRATEGIES: dict[str, Verify] = {
    "snapshot": verify_snapshot,
    "replay": verify_replay,
    "two-phase": verify_two_phase,
}


def _run(model: Model, state: ModelState, ids: Sequence[int], stats: Statistics, *, keep: int) -> tuple[F32, F32]:
    out = model.trunk(state, ids, n_logits=len(ids), keep=keep)
    stats.count_pass("verify" if len(ids) > 1 else "plain", len(ids))
    hidden: Hidden = out.hidden
    return out.logits, model.recipe.steps.target_hidden(hidden, model.recipe.contract)


def _judge(model: Model, logits: F32, draft: Sequence[int]) -> tuple[list[int], int]:
    target_ids = _choices(model, logits)
    return target_ids, model.recipe.steps.accept_greedy(draft, target_ids, model.vocab.eog_ids)


def _choices(model: Model, logits: F32) -> list[int]:
    """The target's greedy token at each row."""
    return [int(i) for i in model.recipe.ops.argmax(logits)]
