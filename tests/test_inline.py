"""The inline drafter: the right row is MtpDrafter's; the last row is stale after a rejection and costs acceptance."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, Token, Verified
from mtpref.engine.decode import STRATEGIES, Decoder, DraftLength, InlineDrafter, Options, PolicyConfig, Statistics
from mtpref.engine.decode.inline import ROWS
from tests import naive_loop, naive_model
from tests.models import CONTRACTS, MICRO, decode_plainly, micro, prompt_of, run_decoder

PROMPT = prompt_of(9, seed=4)
N = 24


def run_inline(model, row, *, n=N, prompt=PROMPT, rollback="snapshot", n_draft_vocab=None, **policy):
    """The loop with an inline drafter, on a poisoned state: decoder, ids, and (was stale, ids, accepted) a round."""
    options = Options(n_predict=n, policy=PolicyConfig(n_max=1, **policy), rollback=rollback)
    statistics = Statistics()
    drafter = InlineDrafter(model, statistics, n_draft_vocab, row=row)
    decoder = Decoder(model, model.new_state(4096, poison=True), options, drafter)
    ids, rounds, events = [], [], []
    for event in decoder.run(prompt):
        events.append(event)
        if isinstance(event, Drafted):
            rounds.append([drafter.is_stale, event.ids, 0])
        elif isinstance(event, Verified):
            rounds[-1][2] = event.n_accepted
        elif isinstance(event, Token):
            ids.append(event.id)
    return decoder, ids, [tuple(r) for r in rounds], events


@cache
def naive_inputs(accept):
    return naive_model.load_gguf(MICRO / f"micro-{accept}-q8_0.gguf")


@pytest.mark.parametrize("accept", [30, 60, 90])
@pytest.mark.parametrize("cooldown", [0, 1])
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.covering(2)
def test_every_round_is_that_of_a_naive_engine_with_the_head_inside_the_pass(accept, row, cooldown):
    hparams, weights = naive_inputs(accept)
    ids, naive_rounds = naive_loop.inline(weights, hparams, PROMPT, 20, row, cooldown)
    _, got, rounds, _ = run_inline(micro(accept, "exact"), row, n=20, cooldown=cooldown)
    assert got == ids
    assert [(r[1], r[2]) for r in rounds] == [(r.draft, len(r.emitted) - 1) for r in naive_rounds]
    assert [r[0] and bool(r[1]) for r in rounds] == [r.is_stale for r in naive_rounds]
    if accept < 90:
        assert any(r.is_stale for r in naive_rounds) == (row == "last" and cooldown == 0)


@pytest.mark.parametrize("rollback", STRATEGIES)
@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.covering
def test_the_right_row_gives_the_drafts_of_the_chain_with_one_token(contract, rollback):
    model = micro(60, "ggml", contract)
    _, _, _, events = run_inline(model, "right", rollback=rollback, p_min=0.25)
    chain = run_decoder(model, PROMPT, N, rollback=rollback, n_max=1, p_min=0.25)
    assert [e for e in events if isinstance(e, Drafted | Verified)] == [
        e for e in chain.events if isinstance(e, Drafted | Verified)
    ]


@pytest.mark.parametrize("rollback", STRATEGIES)
@pytest.mark.parametrize("cooldown", [0, 1])
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.covering(2)
def test_text_and_state_are_those_of_plain_decoding_whatever_the_row(row, cooldown, rollback):
    model = micro(30)
    plain = decode_plainly(model, PROMPT, N + 1, warm_head=True)
    decoder, ids, _, _ = run_inline(model, row, rollback=rollback, cooldown=cooldown)
    assert ids == plain.ids[len(PROMPT) :][:N]
    assert decoder.state.digest() == plain.digests[decoder.state.n_past]


def test_a_stale_draft_comes_from_the_hidden_row_of_the_rejected_token():
    model, seen = micro(30), []

    def mtp(state, ids, hidden, first_pos, **settings):
        seen.append((list(ids), hidden.copy(), first_pos))
        return type(model).mtp(model, state, ids, hidden, first_pos, **settings)

    drafter = InlineDrafter(model, Statistics())
    state = model.new_state(64)
    rejected = model.trunk(state, [*PROMPT, 7], n_logits=2)
    state.clear()
    kept = model.trunk(state, PROMPT, n_logits=1)
    rows = model.recipe.steps.pair_hidden(kept.hidden.post, np.zeros_like(kept.hidden.post[0]))
    model.mtp(state, PROMPT, rows, 0, n_logits=0)
    state.pending_h = kept.hidden.post[-1].copy()
    target_ids = [int(row.argmax()) for row in rejected.logits]
    drafter.saw(target_ids, rejected.hidden.post[-2:], 1)
    assert drafter.is_stale
    object.__setattr__(drafter, "model", _Spy(model, mtp))
    drafter.draft(state, target_ids[0], DraftLength.of(1))
    ((ids, hidden, pos),) = seen
    assert (ids, pos) == (target_ids, len(PROMPT))
    assert (hidden == rejected.hidden.post[-2:]).all()
    assert (hidden[0] == kept.hidden.post[-1]).all()
    drafter.saw([5], rejected.hidden.post[:1], 1)
    assert not drafter.is_stale


class _Spy:
    """The model with another mtp()."""

    def __init__(self, model, mtp):
        self.model, self.mtp = model, mtp

    def __getattr__(self, name):
        return getattr(self.model, name)


@pytest.mark.parametrize("rollback", ["replay", "two-phase"])
def test_no_row_is_stale_where_rejected_tokens_are_not_in_the_last_batch(rollback):
    for cooldown in (0, 1):
        last = run_inline(micro(30), "last", rollback=rollback, cooldown=cooldown)
        right = run_inline(micro(30), "right", rollback=rollback, cooldown=cooldown)
        assert last[2] == right[2]
        assert not any(was_stale for was_stale, _, _ in last[2])
        assert any(ids and not n for _, ids, n in last[2])


def test_stale_rows_follow_rejections_and_cost_acceptance():
    stale, fresh = [], []
    for seed in range(12):
        _, _, rounds, _ = run_inline(micro(60), "last", n=20, prompt=prompt_of(9, seed))
        for (_, ids, n_accepted), (was_stale, _, _) in pairwise(rounds):
            assert was_stale == (len(ids) > n_accepted)
        for was_stale, ids, n_accepted in rounds:
            (stale if was_stale else fresh).extend([n_accepted] * len(ids))
    assert sum(stale) / len(stale) < 0.05
    assert sum(fresh) / len(fresh) > 0.4


def test_a_cooldown_of_one_round_makes_every_draft_a_fresh_one():
    _, _, rounds, _ = run_inline(micro(60), "last", n=200, cooldown=1)
    _, _, right, _ = run_inline(micro(60), "right", n=200, cooldown=1)
    assert not any(was_stale and ids for was_stale, ids, _ in rounds)
    assert [r[1:] for r in rounds] == [r[1:] for r in right]


def test_drafts_of_a_trimmed_head_are_below_its_size():
    _, _, rounds, _ = run_inline(micro(60), "last", n_draft_vocab=100)
    drafted = [id for _, ids, _ in rounds for id in ids]
    assert drafted
    assert max(drafted) < 100


def test_another_row_is_refused():
    with pytest.raises(MtprefError, match="row 'first' is unknown, expected one of last, right"):
        InlineDrafter(micro(60), Statistics(), row="first")
