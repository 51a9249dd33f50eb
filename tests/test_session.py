"""Sessions: whatever is reused, every bit is that of a fresh run.

All states are poisoned: a cell that was never written, or was cut, is NaN.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, PromptProgress, RolledBack, RunStarted, Token, Verified
from mtpref.engine.decode import STRATEGIES, Decoder, Options, PolicyConfig, SamplingConfig, ScriptedDrafter
from mtpref.engine.session import Session
from mtpref.spec.contract import PRESETS
from tests.models import ACCEPTS, CONTRACTS, has_nan, micro, prompt_of, with_eog, without_head
from tests.samples import diagonal

ROLLBACKS = tuple(STRATEGIES)
NUMERICS = ("ggml", "exact")
FIRST = prompt_of(14, seed=3)
OTHER = prompt_of(9, seed=4)


def options_of(n_predict=10, rollback="snapshot", n_max=3, spec_type="draft-mtp", **more):
    return Options(
        n_predict=n_predict, spec_type=spec_type, policy=PolicyConfig(n_max=n_max), rollback=rollback, **more
    )


class Bits:
    """A run's tokens, and the bits of every verified row that decided one."""

    def __init__(self, decoder, events):
        self.rows: list[tuple[int, bytes, bytes]] = []
        self.ids: list[int] = []
        verify = decoder.verify

        def recording(passes, id_last, judge):
            pos0 = passes.state.n_past
            verdict = verify(passes, id_last, judge)
            assert not np.isnan(verdict.logits).any()
            for i in range(verdict.n_kept):
                self.rows.append((pos0 + i, verdict.logits[i].tobytes(), verdict.hidden[i].tobytes()))
            return verdict

        decoder.verify = recording
        self.events = []
        for event in events:
            self.events.append(event)
            if isinstance(event, Token):
                self.ids.append(event.id)
        self.n_reused = self.events[0].n_reused

    def passes_of(self, kind):
        return self.events[-1].statistics["tokens"].get(kind, 0)


def run_fresh(model, prompt, options, drafter=None):
    state = model.new_state(poison=True)
    decoder = Decoder(model, state, options, drafter)
    return Bits(decoder, decoder.run(prompt)), state


def run_in(session, prompt, options, drafter=None, **named):
    events = session.run(prompt, options, drafter, **named)
    return Bits(session.decoder, events)


def check_same(session, prompt, options, expected_reuse=None, **named):
    """Run `prompt` in the session and on a fresh state: the same tokens, rows and state."""
    found = run_in(session, prompt, options, **named)
    fresh, state = run_fresh(session.core, prompt, options)
    assert found.ids == fresh.ids
    assert found.rows == fresh.rows
    assert [e for e in found.events if isinstance(e, Drafted | Verified | RolledBack)] == [
        e for e in fresh.events if isinstance(e, Drafted | Verified | RolledBack)
    ]
    assert session.state.digest() == state.digest()
    assert not has_nan(session.state)
    assert session.ids == [*prompt, *found.ids][: state.n_past]
    assert len(session.ids) == session.n_past == session.state.n_past
    if expected_reuse is not None:
        assert found.n_reused == expected_reuse
    is_held = session.core.recipe.contract.prompt_end == "hold" or options.n_predict == 0
    n_run = len(prompt) - found.n_reused - is_held
    assert found.passes_of("prompt") == n_run
    return found


def new_session(model, **named):
    return Session(model, poison=True, **named)


# ---------------------------------------------------------------------------------------------- reuse


@pytest.mark.parametrize(("contract", "rollback"), diagonal(tuple(CONTRACTS), ROLLBACKS))
def test_a_conversation_goes_on_from_the_end_and_runs_nothing_again(contract, rollback):
    for accept in ACCEPTS:
        session, prompt = new_session(micro(accept, "ggml", contract)), list(FIRST)
        expected = 0
        for turn in range(3):
            run = check_same(session, prompt, options_of(7, rollback), expected)
            expected = len(session.ids)
            assert expected == len(prompt) + 6
            prompt = [*prompt, *run.ids, *prompt_of(5, seed=10 + turn)]


N_COMMON = (0, 1, 3, 6, 12, 13, 14, 17, 22, 23)
# Every roll back under the presets; the other contracts, which differ in what the head is fed, under one.
RUNS = [(c, r) for c in CONTRACTS for r in ROLLBACKS if c in PRESETS or (r == "snapshot" and c != "new_prompt=stale")]


@pytest.mark.parametrize(("n_common", "how"), diagonal(N_COMMON, RUNS))
def test_a_prompt_that_shares_a_prefix_goes_back_to_a_checkpoint_before_the_difference(n_common, how):
    """The state holds 14 prompt tokens and 9 of the 10 generated ones; checkpoints stand at 13 and every 4."""
    contract, rollback = how
    model = micro(ACCEPTS[n_common % 3], "ggml", contract)
    session = new_session(model, checkpoint_every=4, n_checkpoints=64)
    first = check_same(session, FIRST, options_of(10, rollback), 0)
    positions = [c.n_past for c in session.checkpoints]
    assert {4, 8, 12, 13} <= set(positions)
    held = [*FIRST, *first.ids][:23]
    assert session.ids == held
    last_round = [e.pos0 for e in first.events if isinstance(e, Drafted)][-1]
    prompt = [*held[:n_common], *[(x + 1) % 256 for x in held[n_common : n_common + 1]], *OTHER]
    expected = max([p for p in [*positions, last_round, 23] if p <= n_common], default=0)
    check_same(session, prompt, options_of(8, rollback), expected)


def test_checkpoints_of_a_text_stand_exactly_so_far_apart():
    """Without drafts a round is a token: 14 of the prompt, then 4 tokens from checkpoint to checkpoint."""
    session = new_session(micro(60), checkpoint_every=4, n_checkpoints=64)
    list(session.run(FIRST, Options(n_predict=14, spec_type="none")))
    assert [c.n_past for c in session.checkpoints] == [4, 8, 12, 13, 17, 21, 25]


@pytest.mark.parametrize(
    "contract", ["llama.cpp", "training", "prompt_end=whole", "training,prompt_end=whole,hidden=pre"]
)
@pytest.mark.parametrize("numerics", NUMERICS)
def test_the_same_prompt_again_runs_its_last_token_only(numerics, contract):
    session = new_session(micro(60, numerics, contract))
    first = check_same(session, FIRST, options_of(), 0)
    again = check_same(session, FIRST, options_of(), len(FIRST) - 1)
    assert again.ids == first.ids


def test_a_prompt_that_ends_inside_what_the_state_holds_goes_back():
    session = new_session(micro(60), checkpoint_every=1, n_checkpoints=99)
    first = check_same(session, FIRST, options_of(10), 0)
    held = [*FIRST, *first.ids]
    rounds = [e.pos0 for e in first.events if isinstance(e, Drafted)]
    for n_prompt in (1, 2, 5, 14, 16, 20):
        # One token is always run: the row of the last one is what the first new token is read from.
        expected = max([p for p in [*range(14), *rounds] if p < n_prompt], default=0)
        fork = new_session(micro(60), checkpoint_every=1, n_checkpoints=99)
        run_in(fork, FIRST, options_of(10))
        check_same(fork, held[:n_prompt], options_of(6), expected)


def test_without_a_checkpoint_in_front_of_the_difference_everything_is_run_again():
    """Never the nearest checkpoint: the one at 13 is only two tokens behind the difference."""
    session = new_session(micro(60))
    check_same(session, FIRST, options_of(), 0)
    check_same(session, [*FIRST[:11], *OTHER], options_of(), 0)


def test_checkpoints_of_another_past_are_forgotten():
    session = new_session(micro(60), checkpoint_every=4, n_checkpoints=64)
    first = check_same(session, FIRST, options_of(12), 0)
    check_same(session, [*FIRST[:6], *OTHER], options_of(12), 4)
    assert session.ids[:6] == FIRST[:6]
    # Position 8 of this text, not that of the first one.
    check_same(session, [*FIRST[:6], *OTHER[:4], 1, 2, 3], options_of(12), 8)
    # The long text again: nothing after position 6 may come from its first run.
    check_same(session, [*FIRST, *first.ids], options_of(4), 4)


def test_positions_can_be_asked_for():
    session = new_session(micro(60))
    check_same(session, FIRST, options_of(), 0, checkpoint_at=[5, 0, 99])
    assert [c.n_past for c in session.checkpoints] == [5, 13]
    check_same(session, [*FIRST[:7], *OTHER], options_of(), 5)


def test_a_template_that_rewrites_the_opening_of_an_answer_costs_the_last_turn_only():
    """The prompt of the next turn differs from this one's end: the answer was opened with two tokens that go."""
    session = new_session(with_eog(micro(60), 7))
    turn = [1, 2, 3, 7, 4, 5, 6, 7]
    check_same(session, [*turn, 8, 9], options_of(3), 0)
    check_same(session, [*turn, 10, 11, 12, 7, 8, 9], options_of(3), len(turn))


@pytest.mark.parametrize("accept", ["match", "residual"])
def test_sampled_text_is_that_of_a_fresh_run(accept):
    model = micro(60)
    options = replace(
        options_of(10), sampling=SamplingConfig(temp=5.0, top_k=0, top_p=1.0, min_p=0.0, seed=5, accept=accept)
    )
    session = new_session(model)
    first = check_same(session, FIRST, options, 0)
    assert first.ids != run_fresh(model, FIRST, options_of(10))[0].ids
    check_same(session, [*FIRST, *first.ids, *OTHER], options, 23)
    check_same(session, [*FIRST, 1, 2], options, 13)


@settings(max_examples=60)
@given(
    accept=st.sampled_from(ACCEPTS),
    numerics=st.sampled_from(NUMERICS),
    contract=st.sampled_from([c for c in CONTRACTS if c != "new_prompt=stale"]),
    rollback=st.sampled_from(ROLLBACKS),
    every=st.sampled_from([0, 1, 3]),
    n_batch=st.sampled_from([1, 3, 512]),
    turns=st.lists(
        st.tuples(st.floats(0, 1), st.lists(st.integers(0, 255), max_size=6), st.integers(0, 6), st.booleans()),
        min_size=2,
        max_size=4,
    ),
)
def test_any_history_leaves_no_trace(accept, numerics, contract, rollback, every, n_batch, turns):
    """Each turn keeps some share of what is known, adds some tokens and generates, with or without the head."""
    session = new_session(micro(accept, numerics, contract), checkpoint_every=every, n_checkpoints=3)
    known: list[int] = []
    for share, added, n_predict, is_mtp in turns:
        prompt = [*known[: int(share * len(known) + 0.5)], *added] or [7]
        spec_type = "draft-mtp" if is_mtp else "none"
        run = check_same(session, prompt, options_of(n_predict, rollback, spec_type=spec_type, n_batch=n_batch))
        known = [*prompt, *run.ids]


# ------------------------------------------------------------------------------- the head's own state


def test_a_head_that_missed_tokens_is_not_reused_by_a_run_that_reads_it():
    session = new_session(micro(60))
    plain = check_same(session, FIRST, options_of(spec_type="none"), 0)
    longer = [*FIRST, *plain.ids, *OTHER]
    check_same(session, longer, options_of(spec_type="draft-mtp"), 0)
    # A run without the head reuses what a run with it left, and leaves no cell behind.
    check_same(session, [*longer, 1, 2, 3], options_of(spec_type="none"), len(longer) - 1)
    assert session.state.heads[0].n_cells == 0
    assert all(n == 0 for c in session.checkpoints for n, _ in c.heads)


def test_a_model_without_head_reuses_as_well():
    session = new_session(without_head(micro(60)))
    first = check_same(session, FIRST, options_of(spec_type="none"), 0)
    check_same(session, [*FIRST, *first.ids, *OTHER], options_of(spec_type="none"), len(FIRST) + 9)


def test_stale_contract_starts_a_reused_prompt_from_the_wrong_row_and_nothing_else_differs():
    """llama.cpp's server: checkpoints do not carry the pending hidden, so one cell of the head's KV is wrong."""
    model, right = micro(60, "ggml", "new_prompt=stale"), micro(60)
    session = new_session(model)
    first = run_in(session, FIRST, options_of())
    prompt = [*FIRST, (first.ids[0] + 1) % 256, *OTHER]
    wrong = run_in(session, prompt, options_of(6))
    expected, state = run_fresh(right, prompt, options_of(6))
    assert wrong.n_reused == 13
    assert wrong.ids == expected.ids
    pairs = zip(session.state.live_arrays(), state.live_arrays(), strict=True)
    differing = {name: np.flatnonzero((a != b).reshape(len(a), -1).any(axis=1)) for (name, a), (_, b) in pairs}
    differing = {name: list(cells) for name, cells in differing.items() if len(cells)}
    assert differing == {"cache_k_l4": [13], "cache_v_l4": [13]}


# --------------------------------------------------------------------------------- the ends of runs


@pytest.mark.parametrize("rollback", ROLLBACKS)
def test_ids_are_exact_behind_an_end_of_generation_token(rollback):
    continuation = run_fresh(micro(90), FIRST, options_of(24))[0].ids
    eog = next(x for i, x in enumerate(continuation) if i > 3 and x not in continuation[:i])
    model = with_eog(micro(90), eog)
    session = new_session(model)
    run = check_same(session, FIRST, options_of(24, rollback), 0)
    assert run.ids[-1] == eog
    assert eog not in session.ids[len(FIRST) :] or session.ids[-1] == eog
    check_same(session, [*FIRST, *run.ids, *OTHER], options_of(5, rollback), len(session.ids))


def test_a_full_context_can_be_gone_back_from():
    model = micro(60)
    session = Session(model, 24, poison=True)
    run = run_in(session, FIRST, options_of(-1))
    assert run.events[-1].reason == "context"
    assert len(session.ids) == 24
    assert run_in(session, [*FIRST, 9], options_of(3)).n_reused == 13
    with pytest.raises(MtprefError, match="25 tokens, expected at most 24"):
        run_in(session, prompt_of(25), options_of(3))
    assert run_in(session, [*FIRST, 9], options_of(3)).n_reused == 14


def test_a_refused_prompt_changes_nothing():
    session = new_session(micro(60))
    run_in(session, FIRST, options_of())
    ids, digest = session.ids, session.state.digest()
    with pytest.raises(MtprefError, match="no tokens"):
        run_in(session, [], options_of())
    with pytest.raises(MtprefError, match="out of range"):
        session.run(FIRST, options_of(n_draft_vocab=10**9))
    assert (session.ids, session.state.digest()) == (ids, digest)


def test_a_bad_token_in_the_prompt_leaves_a_session_that_can_be_used():
    session = new_session(micro(60))
    run_in(session, FIRST, options_of())
    with pytest.raises(MtprefError, match="not in the vocabulary"):
        run_in(session, [*FIRST, 10**6], options_of())
    assert session.ids == FIRST
    check_same(session, [*FIRST, *OTHER], options_of(), 14)


@pytest.mark.parametrize(
    ("contract", "rollback"), diagonal(("llama.cpp", "training", "prompt_end=whole", "prime=none"), ROLLBACKS)
)
def test_a_run_may_be_left_at_any_event(contract, rollback):
    model = micro(60, "ggml", contract)
    fresh = run_fresh(model, FIRST, options_of(12, rollback))[0]
    continuation, n_events = fresh.ids, len(fresh.events)
    for n_seen in range(1, n_events + 1):
        session = new_session(model, checkpoint_every=5)
        events = session.run(FIRST, options_of(12, rollback))
        seen = [next(events) for _ in range(n_seen)]
        emitted = [e.id for e in seen if isinstance(e, Token)]
        events.close()
        held = session.ids
        assert held == [*FIRST, *continuation][: len(held)]
        # Tokens that were decided but not yet handed out are held as well; the round's start is where they are left.
        n_known = len(FIRST) + len(emitted)
        starts = [e.pos0 for e in seen if isinstance(e, Drafted)]
        expected = len(held) if len(held) <= n_known else starts[-1]
        assert expected >= n_known - 4 or not emitted
        unlike = [(continuation[len(emitted)] + 1) % 256] if len(emitted) < 12 else [1]
        check_same(session, [*FIRST, *emitted, *unlike, *OTHER], options_of(6, rollback), expected)


class Interrupt(Exception):
    """What Ctrl-C is to a run, for a test."""


@pytest.mark.parametrize("rollback", ROLLBACKS)
def test_a_run_may_be_interrupted_inside_any_operation(rollback):
    """The n-th layer of the run raises, with some layers advanced and others not."""
    model = micro(60)
    calls = [0, 0]

    def breaking(name):
        original = getattr(model.recipe.ops, name)

        def op(*args, **named):
            result = original(*args, **named)
            calls[0] += 1
            if calls[0] == calls[1]:
                raise Interrupt
            return result

        return op

    recipe = model.recipe.with_ops(delta_layer=breaking("delta_layer"), attn_layer=breaking("attn_layer"))
    breaking_model = replace(model, recipe=recipe)
    for at in (1, 3, 6, 9, 11, 14, 17, 22, 30):
        calls[:] = [0, at]
        session = new_session(breaking_model)
        with pytest.raises(Interrupt):
            run_in(session, FIRST, options_of(12, rollback, n_batch=5))
        calls[1] = 0
        held = session.ids
        assert held == FIRST[: len(held)] or held[: len(FIRST)] == FIRST
        check_same(session, [*(held if len(held) > 14 else FIRST), *OTHER], options_of(6, rollback), len(held))


# ---------------------------------------------------------------------------------- several sequences


def test_two_interleaved_sequences_are_two_separate_ones():
    model = micro(60)
    for rollbacks in (("snapshot", "replay"), ("two-phase", "snapshot")):
        prompts = (FIRST, OTHER)
        alone = [run_fresh(model, p, options_of(12, r)) for p, r in zip(prompts, rollbacks, strict=True)]
        sessions = [new_session(model) for _ in prompts]
        runs = [s.run(p, options_of(12, r)) for s, p, r in zip(sessions, prompts, rollbacks, strict=True)]
        ids: list[list[int]] = [[], []]
        alive = {0, 1}
        while alive:
            for i in sorted(alive):
                event = next(runs[i], None)
                if event is None:
                    alive.discard(i)
                elif isinstance(event, Token):
                    ids[i].append(event.id)
        for i in (0, 1):
            assert ids[i] == alone[i][0].ids
            assert sessions[i].state.digest() == alone[i][1].digest()


def test_sequences_in_two_threads_are_two_separate_ones():
    """What is promised: sessions take turns, an event at a time, whatever the threading layer of the kernels."""
    model, prompts = micro(60), [FIRST, OTHER, prompt_of(11, seed=8)]
    alone = [run_fresh(model, prompt, options_of(12)) for prompt in prompts]
    sessions = [new_session(model) for _ in prompts]
    start = threading.Barrier(len(prompts))

    def work(i):
        start.wait()
        return [event.id for event in sessions[i].run(prompts[i], options_of(12)) if isinstance(event, Token)]

    with ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(work, range(len(prompts))))
    assert found == [run.ids for run, _ in alone]
    assert [s.state.digest() for s in sessions] == [state.digest() for _, state in alone]


def test_a_run_that_was_overtaken_is_refused():
    session = new_session(micro(60))
    first = session.run(FIRST, options_of())
    next(first)
    run_in(session, OTHER, options_of())
    with pytest.raises(MtprefError, match="a later run has begun"):
        next(first)
    check_same(session, OTHER, options_of(), len(OTHER) - 1)


# ------------------------------------------------------------------------------------------- bounds


def test_the_number_of_checkpoints_is_bounded_and_they_stay_spread():
    session = new_session(micro(60), checkpoint_every=2, n_checkpoints=4)
    run_in(session, prompt_of(40), options_of(30))
    positions = [c.n_past for c in session.checkpoints]
    assert len(positions) == 4
    assert positions == sorted(set(positions))
    assert positions[0] < 30
    assert positions[-1] > 60
    assert len({c.n_bytes for c in session.checkpoints}) == 1


def test_no_checkpoints_still_continue_from_the_end():
    session = new_session(micro(60), n_checkpoints=0)
    first = check_same(session, FIRST, options_of(), 0)
    assert session.checkpoints == []
    check_same(session, [*FIRST, *first.ids, 1], options_of(), 23)
    check_same(session, FIRST, options_of(), 0)


def test_events_say_what_was_reused():
    session = new_session(micro(60))
    run_in(session, FIRST, options_of(n_batch=4))
    run = run_in(session, [*FIRST, *OTHER], options_of(n_batch=4))
    assert isinstance(run.events[0], RunStarted)
    assert run.events[0].n_reused == 13
    progress = [(e.n_done, e.n_total, e.n_reused) for e in run.events if isinstance(e, PromptProgress)]
    assert progress == [(17, 22, 13), (21, 22, 13), (22, 22, 13)]
    assert run.events[-1].statistics["n_reused"] == 13
    assert any("n_reused  = 13 of 23 prompt tokens" in line for line in session.decoder.statistics.lines())


def test_a_scripted_drafter_needs_no_head():
    model = micro(60)
    continuation = run_fresh(model, FIRST, options_of(20))[0].ids
    session = new_session(model)
    drafter = ScriptedDrafter(continuation, [[True, False]], len(FIRST), model.n_vocab)
    assert run_in(session, FIRST, options_of(9), drafter).ids == continuation[:9]
    assert session.state.heads[0].n_cells == 0
    check_same(session, [*FIRST, *continuation[:9], 5], options_of(5, spec_type="none"), 22)
