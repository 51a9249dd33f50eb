"""What a roll back must give, asked of any model: the state and the tokens of a run that never drafted."""

from collections.abc import Iterable, Sequence

import numpy as np

from mtpref.base.events import RolledBack
from mtpref.engine.decode import ScriptedDrafter
from mtpref.engine.model import Model
from tests.models import decode_plainly, has_nan, run_decoder


def check_planes(model: Model, prompt: Sequence[int], counts: Iterable[int]) -> None:
    """A plane of a pass of seven tokens, after so many tokens before it, is the state that never saw the dropped ones;
    so is what is run again after a checkpoint."""
    for n_before in counts:
        for n_drop in (1, 3, 6):
            state, other = model.new_state(poison=True), model.new_state(poison=True)
            for one in (state, other):
                if n_before:
                    model.trunk(one, prompt[:n_before], n_logits=0)
            saved = state.checkpoint()
            batch = [*prompt[4:10], 9]
            model.trunk(state, batch, n_logits=0, keep=7)
            state.choose_plane(n_drop)
            model.trunk(other, batch[: 7 - n_drop], n_logits=0)
            assert state.digest() == other.digest(), (n_before, n_drop)
            a, b = (model.trunk(one, [3, 5, 7, 200], n_logits=4).logits for one in (state, other))
            assert np.array_equal(a, b)
            state.restore(saved)
            model.trunk(state, batch[: 7 - n_drop], n_logits=0)
            model.trunk(state, [3, 5, 7, 200], n_logits=0)
            assert state.digest() == other.digest()


def check_roll_back(model: Model, prompt: Sequence[int], rollback: str) -> None:
    """Tokens and state of plain decoding."""
    plain = decode_plainly(model, prompt, 25, warm_head=True)
    run = run_decoder(model, prompt, 24, rollback=rollback, n_max=3)
    assert run.ids == plain.ids[len(prompt) : len(prompt) + 24]
    assert run.decoder.state.digest() == plain.digests[len(prompt) + 23]
    assert run.statistics["n_accept"] > 0
    assert not has_nan(run.decoder.state)


def check_partial_acceptance(model: Model, prompt: Sequence[int], rollback: str) -> None:
    """The same of drafts of which all, some or no tokens are right, by a script."""
    plain = decode_plainly(model, prompt, 21, warm_head=False)
    pattern = [[True, False, True], [False], [True, True, True], [True, True, False]]
    drafter = ScriptedDrafter(plain.ids[len(prompt) :], pattern, len(prompt), 256)
    run = run_decoder(model, prompt, 20, rollback=rollback, n_max=3, drafter=drafter)
    assert run.ids == plain.ids[len(prompt) : len(prompt) + 20]
    assert run.decoder.state.digest() == plain.digests[len(prompt) + 19]
    assert bool([e for e in run.events if isinstance(e, RolledBack)]) == (rollback != "two-phase")
