"""The edges of a run: budgets, the end of generation, the end of the context, short prompts, a second prompt."""

from itertools import count

import pytest

from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, Token, Verified
from mtpref.engine.decode import STRATEGIES, Decoder, Options, PolicyConfig, ScriptedDrafter
from mtpref.engine.model import Model
from tests.models import CONTRACTS, decode_plainly, micro, prompt_of, run_decoder, with_eog, without_head

PROMPT = prompt_of(9)
ROLLBACKS = tuple(STRATEGIES)
CONTINUATION = decode_plainly(micro(60), PROMPT, 40, warm_head=False).ids[len(PROMPT) :]


def scripted(pattern):
    return ScriptedDrafter(CONTINUATION, pattern, len(PROMPT), micro(60).n_vocab)


# --------------------------------------------------------------------------------------------- budget


@pytest.mark.parametrize("rollback", ROLLBACKS)
@pytest.mark.parametrize("n_predict", range(7))
@pytest.mark.covering
def test_never_more_than_n_tokens_for_every_draft_length(n_predict, rollback):
    for n_max in range(6):
        for drafter in (None, scripted([[True] * 6])):
            run = run_decoder(micro(60), PROMPT, n_predict, rollback=rollback, n_max=n_max, drafter=drafter)
            assert run.ids == CONTINUATION[:n_predict]
            assert run.reason == "length"
            assert run.statistics["n_predict"] == n_predict


@pytest.mark.parametrize("contract", ["llama.cpp", "prompt_end=whole"])
def test_n_0_runs_no_round_and_emits_nothing(contract):
    run = run_decoder(micro(60, "ggml", contract), PROMPT, 0)
    assert (run.ids, run.reason, run.statistics["n_rounds"]) == ([], "length", 0)


def test_n_1_never_drafts():
    run = run_decoder(micro(60), PROMPT, 1, n_max=4)
    assert run.ids == CONTINUATION[:1]
    assert run.statistics["n_drafted"] == 0
    assert run.statistics["passes"].get("mtp_draft", 0) == 0


def test_a_draft_is_cut_to_what_is_left():
    run = run_decoder(micro(60), PROMPT, 4, n_max=8, drafter=scripted([[True] * 8]))
    assert [len(e.ids) for e in run.events if isinstance(e, Drafted)] == [3]
    assert run.sources == ["draft"] * 3 + ["bonus"]


def test_n_min_does_not_silence_the_end_of_the_budget():
    run = run_decoder(micro(90), PROMPT, 3, n_max=4, n_min=4)
    assert run.statistics["n_drafted"] > 0


def test_n_max_0_is_the_same_run_as_no_drafter():
    for numerics in ("ggml", "exact"):
        zero = run_decoder(micro(60, numerics), PROMPT, 20, n_max=0)
        none = run_decoder(micro(60, numerics), PROMPT, 20, spec_type="none")
        assert zero.ids == none.ids
        assert zero.statistics["passes"] == none.statistics["passes"] == {"plain": 20, "prompt": 1}
        assert zero.decoder.state.digest() == none.decoder.state.digest()


# ---------------------------------------------------------------------------------- end of generation


def first_seen(ids):
    """Index of the first token that none before it equals, from index 2 on."""
    return next(i for i in count(2) if ids[i] not in ids[:i])


def eog_run(model: Model, n_ahead: int, rollback: str):
    """A run whose end-of-generation token is the n_ahead-th (from 0) of a fully right draft of 4."""
    at = first_seen(CONTINUATION)
    drafter = scripted([[True] * (at - n_ahead - 1), [True] * 4])
    return at, run_decoder(with_eog(model, CONTINUATION[at]), PROMPT, 40, rollback=rollback, n_max=8, drafter=drafter)


@pytest.mark.parametrize("rollback", ROLLBACKS)
@pytest.mark.parametrize("n_ahead", [0, 1])
def test_an_end_of_generation_token_inside_an_accepted_draft_ends_the_text_there(rollback, n_ahead):
    at, run = eog_run(micro(60), n_ahead, rollback)
    assert run.ids == CONTINUATION[: at + 1]
    assert run.reason == "eog"
    assert run.sources[-1] == "draft"
    last = [e for e in run.events if isinstance(e, Verified)][-1]
    assert last.n_accepted == n_ahead + 1
    assert len(last.draft_ids) == 4
    assert [e.is_eog for e in run.events if isinstance(e, Token)] == [False] * at + [True]
    # The state holds the text to its end and nothing of the draft after it.
    expected = decode_plainly(micro(60), PROMPT, at + 2, warm_head=False)
    assert run.decoder.state.digest() == expected.digests[len(PROMPT) + at + 1]


@pytest.mark.parametrize("rollback", ROLLBACKS)
def test_end_of_generation_as_the_last_drafted_token_has_no_bonus_behind_it(rollback):
    at = first_seen(CONTINUATION)
    drafter = scripted([[True] * (at + 1)])
    run = run_decoder(
        with_eog(micro(60), CONTINUATION[at]), PROMPT, 40, rollback=rollback, n_max=at + 1, drafter=drafter
    )
    assert (run.ids, run.sources) == (CONTINUATION[: at + 1], ["draft"] * (at + 1))


@pytest.mark.parametrize("rollback", ROLLBACKS)
@pytest.mark.parametrize(("last", "source"), [([], "bonus"), ([False], "correction")])
def test_end_of_generation_as_bonus_and_as_correction(rollback, last, source):
    at = first_seen(CONTINUATION)
    drafter = scripted([[True] * at + last])
    run = run_decoder(
        with_eog(micro(60), CONTINUATION[at]), PROMPT, 40, rollback=rollback, n_max=at + 1, drafter=drafter
    )
    assert (run.ids, run.reason) == (CONTINUATION[: at + 1], "eog")
    assert run.sources == ["draft"] * at + [source]


def test_end_of_generation_can_be_the_first_token():
    for contract in ("llama.cpp", "prompt_end=whole"):
        run = run_decoder(with_eog(micro(60, "ggml", contract), CONTINUATION[0]), PROMPT, 40)
        assert (run.ids, run.reason) == (CONTINUATION[:1], "eog")


def test_a_drafted_end_of_generation_token_that_is_wrong_ends_nothing():
    at = next(i for i in count() if CONTINUATION[i] + 1 not in CONTINUATION[: i + 4])
    model = with_eog(micro(60), CONTINUATION[at] + 1)
    run = run_decoder(model, PROMPT, at + 4, n_max=at + 1, drafter=scripted([[True] * at + [False], [True]]))
    assert next(e for e in run.events if isinstance(e, Drafted)).ids[-1] in model.vocab.eog_ids
    assert (run.ids, run.reason) == (CONTINUATION[: at + 4], "length")


# -------------------------------------------------------------------------------------------- context


@pytest.mark.parametrize("rollback", ROLLBACKS)
@pytest.mark.parametrize("n_predict", [-1, 40])
def test_a_full_context_ends_the_run_and_is_never_exceeded(rollback, n_predict):
    for n_ctx in range(len(PROMPT), len(PROMPT) + 6):
        for n_max in (0, 1, 4):
            run = run_decoder(micro(60), PROMPT, n_predict, n_ctx=n_ctx, rollback=rollback, n_max=n_max)
            assert run.reason == "context"
            assert run.decoder.state.n_past == n_ctx
            assert run.ids == CONTINUATION[: n_ctx - len(PROMPT) + 1]


def test_the_budget_and_the_context_may_end_together():
    run = run_decoder(micro(60), PROMPT, 4, n_ctx=len(PROMPT) + 3, n_max=4)
    assert (run.ids, run.reason) == (CONTINUATION[:4], "length")


def test_a_prompt_of_the_whole_context_leaves_room_for_one_token():
    for contract in ("llama.cpp", "prompt_end=whole"):
        run = run_decoder(micro(60, "ggml", contract), PROMPT, -1, n_ctx=len(PROMPT))
        assert (run.ids, run.reason) == (CONTINUATION[:1], "context")


# ------------------------------------------------------------------------------------------- refusals


def refused(match, model, prompt, **options):
    with pytest.raises(MtprefError, match=match) as refusal:
        run_decoder(model, prompt, **options)
    assert "\n" not in str(refusal.value)


def test_an_empty_prompt_is_refused():
    refused("prompt: it has no tokens", micro(60), [])


def test_a_prompt_longer_than_the_context_is_refused():
    refused("prompt: 9 tokens, expected at most 8", micro(60), PROMPT, n_ctx=8)


def test_a_token_outside_the_vocabulary_is_refused():
    refused("token id 256 is not in the vocabulary", micro(60), [3, 256, 4])


def test_mtp_without_a_head_is_refused_and_plain_decoding_is_not():
    model = without_head(micro(60))
    refused("no MTP head", model, PROMPT)
    assert run_decoder(model, PROMPT, 8, spec_type="none").ids == CONTINUATION[:8]
    assert run_decoder(model, PROMPT, 8, n_max=0).ids == CONTINUATION[:8]
    assert run_decoder(model, PROMPT, 8, drafter=scripted([[True, False]])).ids == CONTINUATION[:8]


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"spec_type": "eagle"}, "Options.spec_type"),
        ({"rollback": "undo"}, "Options.rollback"),
        ({"n_predict": -2}, "Options.n_predict"),
        ({"n_draft_vocab": 0}, "Options.n_draft_vocab"),
        ({"n_batch": 0}, "Options.n_batch"),
    ],
)
def test_impossible_options_are_refused_by_the_name_of_their_flag(values, flag):
    with pytest.raises(MtprefError, match=f"^{flag}: "):
        Options(**values)


# --------------------------------------------------------------------------------- prompts and drafts


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("n_prompt", [1, 2])
@pytest.mark.covering
def test_the_shortest_prompts_under_every_contract(contract, n_prompt):
    model, prompt = micro(90, "ggml", contract), prompt_of(n_prompt, seed=5)
    plain = decode_plainly(model, prompt, 17, warm_head=True)
    for rollback in ROLLBACKS:
        run = run_decoder(model, prompt, 16, rollback=rollback, n_max=3)
        assert run.ids == plain.ids[n_prompt : n_prompt + 16]
        assert run.statistics["n_drafted"] > 0
        assert run.decoder.state.digest() == plain.digests[n_prompt + 15]


@pytest.mark.parametrize("rollback", ROLLBACKS)
def test_a_second_prompt_on_the_same_state_equals_a_fresh_state(rollback):
    model, state = micro(60), micro(60).new_state(4096, poison=True)
    run_decoder(model, prompt_of(20, seed=1), 15, state=state, rollback=rollback)
    assert state.pending_h.any()
    second = run_decoder(model, PROMPT, 15, state=state, rollback=rollback)
    fresh = run_decoder(model, PROMPT, 15, rollback=rollback)
    assert second.ids == fresh.ids
    assert [e for e in second.events if isinstance(e, Drafted)] == [e for e in fresh.events if isinstance(e, Drafted)]
    assert second.decoder.state.digest() == fresh.decoder.state.digest()


def test_a_run_that_was_dropped_half_way_leaves_nothing_behind():
    model, state = micro(60), micro(60).new_state(4096, poison=True)
    events = Decoder(model, state, Options(n_predict=30)).run(prompt_of(20, seed=1))
    for _ in range(12):
        next(events)
    events.close()
    second = run_decoder(model, PROMPT, 15, state=state)
    assert second.decoder.state.digest() == run_decoder(model, PROMPT, 15).decoder.state.digest()


def test_a_stale_pending_row_changes_the_heads_first_cell_and_never_the_text():
    model = micro(60, "ggml", "new_prompt=stale")
    state = model.new_state(4096, poison=True)
    run_decoder(model, prompt_of(20, seed=1), 15, state=state)
    second, fresh = run_decoder(model, PROMPT, 15, state=state), run_decoder(model, PROMPT, 15)
    assert second.ids == fresh.ids == CONTINUATION[:15]
    cells = [dict(run.decoder.state.live_arrays())["cache_k_l4"] for run in (second, fresh)]
    assert (cells[0][0] != cells[1][0]).any()
    assert (cells[0][1:] == cells[1][1:]).all()


def test_a_stale_replay_spoils_one_head_cell_per_replay_and_never_the_text():
    model, prompt = micro(60, "ggml", "replay=stale"), PROMPT
    plain = run_decoder(micro(60), prompt, 30, rollback="replay")
    stale = run_decoder(model, prompt, 30, rollback="replay")
    assert stale.ids == plain.ids
    cells = [dict(run.decoder.state.live_arrays())["cache_k_l4"] for run in (stale, plain)]
    spoilt = {pos for pos in range(len(cells[0])) if (cells[0][pos] != cells[1][pos]).any()}
    replayed = {e.pos0 for e in stale.events if isinstance(e, Verified) and e.n_accepted < len(e.draft_ids)}
    assert spoilt
    assert spoilt <= replayed
    kept = run_decoder(model, prompt, 30, rollback="snapshot").decoder.state.digest()
    assert kept == plain.decoder.state.digest()


@pytest.mark.parametrize("rollback", ROLLBACKS)
@pytest.mark.parametrize(
    ("pattern", "accepted"),
    [
        ([[True, True, True]], [3, 3, 3]),
        ([[False, True, True]], [0, 0, 0]),
        ([[True, False, True], [True, True, False], []], [1, 2, 0]),
        ([[True], [False], [True, True]], [1, 0, 2]),
    ],
)
def test_a_scripted_pattern_is_accepted_exactly_as_written(pattern, accepted, rollback):
    run = run_decoder(micro(60), PROMPT, 30, rollback=rollback, n_max=3, drafter=scripted(pattern))
    verified = [e for e in run.events if isinstance(e, Verified)]
    assert [e.n_accepted for e in verified[:3]] == accepted
    assert run.ids == CONTINUATION[:30]


def test_a_scripted_run_of_nothing_is_plain_decoding():
    run = run_decoder(micro(60), PROMPT, 10, drafter=scripted([]))
    assert (run.ids, set(run.sources)) == (CONTINUATION[:10], {"plain"})


# ------------------------------------------------------------------------------------------- cooldown


@pytest.mark.parametrize("rollback", ROLLBACKS)
def test_rounds_of_silence_are_counted_and_the_head_stays_warm(rollback):
    model = micro(30)
    plain = decode_plainly(model, PROMPT, 40, warm_head=True)
    run = run_decoder(model, PROMPT, 40, rollback=rollback, n_max=3, cooldown=2)
    drafted = [e for e in run.events if isinstance(e, Drafted)]
    verified = [e for e in run.events if isinstance(e, Verified)]
    left, n_silent = 0, 0
    for draft, verdict in zip(drafted, verified, strict=True):
        assert draft.n_cooldown == left
        if left:
            assert (draft.ids, draft.steps) == ([], [])
            n_silent += 1
            left -= 1
        elif draft.ids and not verdict.n_accepted:
            left = 2
    assert run.statistics["n_cooldown_rounds"] == n_silent > 4
    assert run.ids == plain.ids[len(PROMPT) : len(PROMPT) + 40]
    assert run.decoder.state.digest() == plain.digests[len(PROMPT) + 39]
    without = run_decoder(model, PROMPT, 40, rollback=rollback, n_max=3)
    assert without.decoder.state.digest() == run.decoder.state.digest()


def test_cooldown_waits_for_as_many_misses_in_a_row_as_it_is_told():
    pattern = [[False], [True], [False], [False], [True]]
    run = run_decoder(micro(60), PROMPT, 20, n_max=1, cooldown=1, cooldown_after=2, drafter=scripted(pattern))
    silent = [e.round for e in run.events if isinstance(e, Drafted) and e.n_cooldown]
    assert silent == [4]


def test_policy_config_of_a_run_is_told_in_its_first_event():
    options = Options(n_predict=1, policy=PolicyConfig(n_max=2, cooldown=3))
    started = next(iter(Decoder(micro(60), micro(60).new_state(64), options).run(PROMPT)))
    assert started.settings["policy"]["cooldown"] == 3
    assert started.settings["n_ctx"] == 64
    assert started.contract["first"] == "zero_hidden"
    assert started.prompt_ids == PROMPT
