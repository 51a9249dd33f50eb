"""Sampling in the loop: which text, whatever is drafted and however it is rolled back; the edges; what a run tells."""

import json
import math
from collections import Counter
from dataclasses import asdict, replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpref import kernels, spec
from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, RunEnded, Token, Verified, to_json
from mtpref.engine.decode import (
    STRATEGIES,
    Decoder,
    InlineDrafter,
    Options,
    PolicyConfig,
    SamplingConfig,
    ScriptedDrafter,
)
from tests.models import CONTRACTS, StubVocab, micro, prompt_of, run_decoder, trunk_digest, with_eog
from tests.samples import diagonal

PROMPT = prompt_of(9)
ROLLBACKS = tuple(STRATEGIES)
HOT = SamplingConfig(temp=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=11)
RESIDUAL = replace(HOT, accept="residual")


@lru_cache(maxsize=64)
def plain_text(accept, contract, prompt, n, config, eog=frozenset()):
    """Sampling one token at a time, by nothing but the trunk and the rules."""
    model = micro(accept, "ggml", contract)
    state, ids = model.new_state(4096), list(prompt)
    rows = model.trunk(state, ids, n_logits=1).logits
    while len(ids) < len(prompt) + n and (len(ids) == len(prompt) or ids[-1] not in eog):
        row = spec.without_ids(rows, eog)[0] if config.ignore_eos else rows[0]
        dist = spec.filtered(row, config.chain)
        ids.append(spec.draw(dist, spec.uniform(config.seed, spec.TARGET, len(ids))))
        rows = model.trunk(state, ids[-1:], n_logits=1).logits
    return ids[len(prompt) :]


# ------------------------------------------------------------------------------------------------ match


@settings(max_examples=40, deadline=None)
@given(
    accept=st.sampled_from([30, 90]),
    contract=st.sampled_from(CONTRACTS),
    prompt=st.lists(st.integers(0, 255), min_size=1, max_size=9).map(tuple),
    n_predict=st.integers(1, 16),
    rollback=st.sampled_from(ROLLBACKS),
    n_max=st.integers(0, 4),
    p_min=st.sampled_from([0.0, 0.25, 0.5]),
    cooldown=st.integers(0, 2),
    n_draft_vocab=st.sampled_from([None, 100]),
    temp=st.sampled_from([0.3, 1.0, 6.0]),
    top_k=st.sampled_from([0, 1, 40]),
    top_p=st.sampled_from([0.5, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)
def test_match_is_plain_sampling_token_for_token(
    accept, contract, prompt, n_predict, rollback, n_max, p_min, cooldown, n_draft_vocab, temp, top_k, top_p, seed
):
    config = SamplingConfig(temp=temp, top_k=top_k, top_p=top_p, seed=seed)
    run = run_decoder(micro(accept, "ggml", contract), list(prompt), n_predict, rollback=rollback, sampling=config,
                      n_max=n_max, p_min=p_min, cooldown=cooldown, n_draft_vocab=n_draft_vocab)  # fmt: skip
    assert run.ids == plain_text(accept, contract, prompt, n_predict, config)


def test_match_accepts_and_rejects_in_these_runs():
    run = run_decoder(micro(90), PROMPT, 40, sampling=HOT)
    assert 0 < run.statistics["n_accept"] < run.statistics["n_drafted"]
    assert run.ids != run_decoder(micro(90), PROMPT, 40).ids


def test_the_seed_is_the_only_source_of_chance():
    texts = [run_decoder(micro(90), PROMPT, 30, sampling=replace(HOT, seed=seed)).ids for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


# ---------------------------------------------------------------------------------------------- residual


@pytest.mark.parametrize("policy", [{"n_max": 3}, {"n_max": 4, "n_min": 2, "p_min": 1 / 3}, {"n_max": 1}])
def test_residual_gives_the_same_text_and_state_by_every_roll_back(policy):
    runs = [run_decoder(micro(90), PROMPT, 40, rollback=r, sampling=RESIDUAL, **policy) for r in ROLLBACKS]
    assert runs[0].ids == runs[1].ids == runs[2].ids
    assert len({run.decoder.state.digest() for run in runs}) == 1
    assert runs[0].statistics["n_accept"] > 0
    assert runs[0].statistics["n_accept"] < runs[0].statistics["n_drafted"]
    told = [[e for e in run.events if isinstance(e, Verified | Token | Drafted)] for run in runs]
    assert told[0] == told[1] == told[2]


@pytest.mark.parametrize("config", [HOT, RESIDUAL], ids=["match", "residual"])
def test_the_state_behind_the_text_is_that_of_running_the_text(config):
    for rollback in ROLLBACKS:
        model = micro(90)
        run = run_decoder(model, PROMPT, 25, rollback=rollback, sampling=config)
        state = model.new_state(4096)
        model.trunk(state, [*PROMPT, *run.ids[:-1]], n_logits=0)
        assert trunk_digest(run.decoder.state) == trunk_digest(state)


def test_without_drafts_both_rules_are_plain_sampling():
    expected = plain_text(90, "llama.cpp", tuple(PROMPT), 20, HOT)
    for config in (HOT, RESIDUAL):
        assert run_decoder(micro(90), PROMPT, 20, sampling=config, spec_type="none").ids == expected
        assert run_decoder(micro(90), PROMPT, 20, sampling=config, n_max=0).ids == expected


def test_a_draft_under_residual_is_empty_or_as_long_as_n_min():
    run = run_decoder(micro(30), PROMPT, 60, sampling=RESIDUAL, n_max=4, n_min=2, p_min=0.4)
    lengths = Counter(len(e.ids) for e in run.events if isinstance(e, Drafted))
    assert lengths[0] > 0
    assert lengths[2] > 0
    short = [e for e in run.events if isinstance(e, Drafted) and len(e.ids) == 1]
    assert all(e.pos0 - len(PROMPT) + 1 >= 60 - 2 for e in short)  # the budget's end


@pytest.mark.parametrize("config", [HOT, RESIDUAL], ids=["match", "residual"])
def test_no_uniform_number_is_used_for_two_things(config, monkeypatch):
    """Also not one that was thrown away with a rejected draft: that would tie a draw to an earlier verdict."""
    names = []
    original = spec.uniform

    def recorded(*name):
        names.append((*name, 0) if len(name) == 3 else name)
        return original(*name)

    monkeypatch.setattr(spec, "uniform", recorded)
    run_decoder(micro(90), PROMPT, 40, sampling=config, n_max=4, p_min=1 / 8)
    repeated = {name for name, n in Counter(names).items() if n > 1}
    assert len(set(names)) >= 40
    if config.accept == "residual":
        assert not repeated
    else:  # the target's draw at a position is the same one in every round, as it must be
        assert {stream for _, stream, _, _ in repeated} == {spec.TARGET}


@pytest.mark.parametrize("config", [HOT, RESIDUAL], ids=["match", "residual"])
def test_a_scripted_drafter_works_with_both_rules(config):
    expected = plain_text(60, "llama.cpp", tuple(PROMPT), 30, HOT)
    for rollback in ROLLBACKS:
        drafter = ScriptedDrafter(expected, [[True, True, False]], len(PROMPT), micro(60).n_vocab)
        run = run_decoder(micro(60), PROMPT, 30, rollback=rollback, sampling=config, drafter=drafter)
        if config.accept == "match":
            assert run.ids == expected
            assert run.statistics["n_accept"] == 20
        else:
            judged = [d for e in run.events if isinstance(e, Verified) for d in e.draws if d.id is not None]
            assert {d.q for d in judged} == {1.0}
            assert all(d.p_accept == d.p for d in judged)


@pytest.mark.parametrize("row", ["last", "right"])
def test_the_inline_drafter_works_with_both_rules(row):
    texts = []
    for config, rollback in ((HOT, "snapshot"), (RESIDUAL, "snapshot"), (RESIDUAL, "snapshot")):
        model = micro(90)
        options = Options(n_predict=30, policy=PolicyConfig(n_max=1), rollback=rollback, sampling=config)
        decoder = Decoder(model, model.new_state(4096), options)
        decoder.drafter = InlineDrafter(model, decoder.statistics, sampler=decoder.sampler, row=row)
        texts.append([e.id for e in decoder.run(PROMPT) if isinstance(e, Token)])
    assert texts[0] == plain_text(90, "llama.cpp", tuple(PROMPT), 30, HOT)
    assert texts[1] == texts[2] != texts[0]


# ------------------------------------------------------------------------------------------------ greedy


@pytest.mark.parametrize("temp", [0.0, -1.0])
def test_temperature_0_is_greedy_whatever_the_filters_and_the_rule_say(temp):
    def told(run):
        return [e for e in run.events if isinstance(e, Drafted | Verified | Token)]

    greedy = run_decoder(micro(60), PROMPT, 30)
    for accept in ("match", "residual"):
        config = SamplingConfig(temp=temp, top_k=3, top_p=0.1, min_p=0.5, seed=9, accept=accept)
        run = run_decoder(micro(60), PROMPT, 30, sampling=config)
        assert told(run) == told(greedy)
        assert all(e.draws == [] for e in run.events if isinstance(e, Verified))
        assert run.statistics["p_accept"] is None


def test_top_k_1_gives_the_greedy_text():
    for accept in ("match", "residual"):
        config = SamplingConfig(temp=1.0, top_k=1, accept=accept)
        assert run_decoder(micro(60), PROMPT, 30, sampling=config).ids == run_decoder(micro(60), PROMPT, 30).ids


@pytest.mark.parametrize("config", [HOT, RESIDUAL], ids=["match", "residual"])
def test_kernels_and_spec_give_the_same_text(config):
    if not kernels.available():
        pytest.skip("Numba's JIT is off: there is nothing to compare the readable spec with")
    runs = [run_decoder(micro(90, use_kernels=flag), PROMPT, 8, sampling=config) for flag in (True, False)]
    assert runs[0].ids == runs[1].ids


# ------------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("config", [HOT, RESIDUAL], ids=["match", "residual"])
@pytest.mark.parametrize("rollback", ROLLBACKS)
def test_budget_and_context_end_a_sampled_run(config, rollback):
    texts = {}
    for n_predict in range(6):
        run = run_decoder(micro(90), PROMPT, n_predict, rollback=rollback, sampling=config, n_max=4)
        assert (len(run.ids), run.reason) == (n_predict, "length")
        texts[n_predict] = run.ids
    if config.accept == "match":
        assert all(texts[n] == texts[5][:n] for n in texts)
    run = run_decoder(micro(90), PROMPT, -1, n_ctx=len(PROMPT) + 5, rollback=rollback, sampling=config, n_max=4)
    assert (len(run.ids), run.reason, run.decoder.state.n_past) == (6, "context", len(PROMPT) + 5)


@pytest.mark.parametrize("rollback", ROLLBACKS)
@pytest.mark.parametrize("config", [HOT, RESIDUAL], ids=["match", "residual"])
def test_an_end_of_generation_inside_a_sampled_draft_ends_the_text_there(config, rollback):
    free = run_decoder(micro(90), PROMPT, 60, rollback=rollback, sampling=config, n_max=4)
    inside = [i for i, (a, b) in enumerate(zip(free.sources, free.sources[1:], strict=False)) if a == b == "draft"]
    at = next(i for i in inside if free.ids[i] not in free.ids[:i])
    run = run_decoder(with_eog(micro(90), free.ids[at]), PROMPT, 60, rollback=rollback, sampling=config, n_max=4)
    assert (run.ids, run.reason, run.sources[-1]) == (free.ids[: at + 1], "eog", "draft")
    assert run.decoder.state.n_past == len(PROMPT) + at + 1


@pytest.mark.parametrize("config", [HOT, RESIDUAL, SamplingConfig()], ids=["match", "residual", "greedy"])
@pytest.mark.parametrize("contract", ["llama.cpp", "prompt_end=whole"])
def test_ignored_ends_of_generation_are_never_chosen_nor_drafted(config, contract):
    free = run_decoder(micro(90, "ggml", contract), PROMPT, 40, sampling=config)
    ends = frozenset(free.ids[:3])
    run = run_decoder(
        with_eog(micro(90, "ggml", contract), *ends), PROMPT, 40, sampling=replace(config, ignore_eos=True)
    )
    assert (len(run.ids), run.reason) == (40, "length")
    assert ends.isdisjoint(run.ids)
    for event in run.events:
        if isinstance(event, Drafted):
            assert ends.isdisjoint(event.ids)
    if config is HOT:
        assert run.ids == plain_text(90, contract, tuple(PROMPT), 40, replace(HOT, ignore_eos=True), ends)


@pytest.mark.parametrize("config", [HOT, RESIDUAL, SamplingConfig()], ids=["match", "residual", "greedy"])
def test_a_head_that_can_name_ignored_ids_only_drafts_nothing(config):
    model = with_eog(micro(90), 0, 1)
    run = run_decoder(model, PROMPT, 12, sampling=replace(config, ignore_eos=True), n_draft_vocab=2)
    assert (len(run.ids), set(run.sources)) == (12, {"plain"})
    for event in run.events:
        json.dumps(to_json(event), allow_nan=False)


def test_a_prompt_processed_whole_draws_its_first_token_by_the_same_number():
    held, whole = (
        run_decoder(micro(90, "ggml", c), PROMPT, 20, sampling=HOT) for c in ("llama.cpp", "prompt_end=whole")
    )
    assert held.ids == whole.ids
    first = next(e for e in whole.events if isinstance(e, Token))
    assert first.u == spec.uniform(HOT.seed, spec.TARGET, len(PROMPT))


# ------------------------------------------------------------------------------------------ stop strings


def lettered(model):
    """The model with a letter for each id, none of which ends a text."""

    class Letters(StubVocab):
        def piece(self, id):
            return b"%02x" % id

    return replace(model, vocab=Letters(model.n_vocab, frozenset()))


@pytest.mark.parametrize(("config", "rollback"), diagonal((SamplingConfig(), HOT, RESIDUAL), ROLLBACKS))
def test_a_stop_string_ends_the_text_in_front_of_it_wherever_it_falls(config, rollback):
    model = lettered(micro(90))
    free = run_decoder(model, PROMPT, 40, rollback=rollback, sampling=config, n_max=4)
    whole = b"".join(e.piece for e in free.events if isinstance(e, Token)).decode()
    n_stopped = 0
    for at in range(3, 60, 3):  # also from the middle of one token to the middle of another
        stop = whole[at : at + 4]
        end = whole.index(stop) + 4
        run = run_decoder(model, PROMPT, 40, rollback=rollback, sampling=config, n_max=4, stop=(stop, "never"))
        texts = [e.text for e in run.events if isinstance(e, Token | RunEnded)]
        assert b"".join(texts).decode() == whole[: end - 4]
        assert run.reason == "stop"
        assert run.ids == free.ids[: (end + 1) // 2]
        assert run.decoder.state.n_past in (len(PROMPT) + len(run.ids) - 1, len(PROMPT) + len(run.ids))
        state = model.new_state(4096)
        model.trunk(state, [*PROMPT, *run.ids][: run.decoder.state.n_past], n_logits=0)
        assert trunk_digest(run.decoder.state) == trunk_digest(state)
        n_stopped += run.sources[-1] == "draft"
    assert n_stopped > 0


def test_text_that_was_held_back_is_told_when_the_run_ends():
    model = lettered(micro(90))
    whole = b"".join(e.piece for e in run_decoder(model, PROMPT, 10).events if isinstance(e, Token)).decode()
    run = run_decoder(model, PROMPT, 10, stop=(whole[-3:] + "zz",))
    tokens = [e for e in run.events if isinstance(e, Token)]
    ended = run.events[-1]
    assert (ended.text.decode(), ended.reason) == (whole[-3:], "length")
    assert b"".join(e.text for e in tokens).decode() == whole[:-3]
    assert b"".join(e.piece for e in tokens).decode() == whole


def test_a_stop_string_can_be_the_first_token_of_a_prompt_processed_whole():
    model = lettered(micro(90, "ggml", "prompt_end=whole"))
    first = run_decoder(model, PROMPT, 1).ids[0]
    run = run_decoder(model, PROMPT, 9, stop=(f"{first:02x}",))
    assert (run.ids, run.reason, run.events[-1].text) == ([first], "stop", b"")


# ------------------------------------------------------------------------------------- what a run tells


def test_draws_of_match_tell_number_and_probability_of_every_row():
    run = run_decoder(micro(90), PROMPT, 30, sampling=HOT)
    for event in run.events:
        if not isinstance(event, Verified):
            continue
        assert len(event.draws) == len(event.target_ids)
        for i, drawn in enumerate(event.draws):
            assert drawn.pos == event.pos0 + 1 + i
            assert drawn.u_target == spec.uniform(HOT.seed, spec.TARGET, drawn.pos)
            assert drawn.u_accept is drawn.u_residual is None
            assert drawn.id == (event.draft_ids[i] if i < len(event.draft_ids) else None)
            assert (drawn.q, drawn.p_accept) == ((None, None) if drawn.id is None else (1.0, drawn.p))
            assert drawn.edge is None or 0 <= drawn.edge <= 1


def test_draws_of_residual_tell_the_numbers_that_were_looked_at():
    run = run_decoder(micro(90), PROMPT, 60, sampling=RESIDUAL)
    n_kinds = Counter()
    for drafted, event in zip([e for e in run.events if isinstance(e, Drafted)],
                              [e for e in run.events if isinstance(e, Verified)], strict=True):  # fmt: skip
        for step, id in zip(drafted.steps, drafted.ids, strict=False):
            assert step.u == spec.uniform(HOT.seed, spec.DRAFT, step.pos, drafted.pos0)
            assert 0 < step.q <= 1
            assert id in range(256)
        for i, drawn in enumerate(event.draws):
            if drawn.id is None:
                n_kinds["bonus" if event.draft_ids else "plain"] += 1
                round_pos = event.pos0 if event.draft_ids else 0
                assert drawn.u_target == spec.uniform(HOT.seed, spec.TARGET, drawn.pos, round_pos)
                continue
            assert drawn.u_accept == spec.uniform(HOT.seed, spec.ACCEPT, drawn.pos, event.pos0)
            is_accepted = i < event.n_accepted
            assert is_accepted == (drawn.u_accept * drawn.q < drawn.p)
            u_residual = None if is_accepted else spec.uniform(HOT.seed, spec.RESIDUAL, drawn.pos, event.pos0)
            assert drawn.u_residual == u_residual
            assert 0 <= drawn.p_accept <= 1
            n_kinds["accepted" if is_accepted else "rejected"] += 1
    assert set(n_kinds) >= {"accepted", "rejected", "bonus"}


@pytest.mark.parametrize("config", [HOT, RESIDUAL], ids=["match", "residual"])
def test_the_expected_acceptance_is_the_mean_of_what_the_draws_tell(config):
    run = run_decoder(micro(90), PROMPT, 60, sampling=config)
    draws = [(i, d) for e in run.events if isinstance(e, Verified) for i, d in enumerate(e.draws) if d.id is not None]
    stats = run.statistics
    assert stats["p_accept"] == pytest.approx(np.mean([d.p_accept for _, d in draws]))
    for i, p in enumerate(stats["p_accept_per_pos"]):
        assert p == pytest.approx(np.mean([d.p_accept for at, d in draws if at == i]))
    assert any("expected acc per pos" in line for line in run.decoder.statistics.lines())


def test_residual_accepts_more_than_match_on_the_same_heads():
    """sum min(p, q) against p(argmax q), where both are flat."""
    flat = {"temp": 8.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    rates = []
    for accept in ("match", "residual"):
        runs = [
            run_decoder(micro(90), PROMPT, 60, sampling=SamplingConfig(**flat, seed=s, accept=accept)) for s in (1, 2)
        ]
        rates.append(np.mean([run.statistics["p_accept"] for run in runs]))
    assert rates[1] > rates[0]


def test_events_of_a_sampled_run_are_strict_json():
    run = run_decoder(micro(90), PROMPT, 20, sampling=RESIDUAL)
    for event in run.events:
        record = json.loads(json.dumps(to_json(event), allow_nan=False))
        if record["event"] == "Drafted":
            assert all(math.isfinite(s["u"]) for s in record["steps"])
    assert run.events[0].settings["sampling"] == json.loads(json.dumps(asdict(RESIDUAL))) | {
        "samplers": RESIDUAL.samplers
    }


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"temp": math.nan}, "temp"),
        ({"temp": math.inf}, "temp"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"samplers": ("top_k", "dry")}, "samplers"),
        ({"samplers": ("top_k", "top_k")}, "samplers"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"accept": "typical"}, "accept"),
    ],
)
def test_impossible_settings_are_refused_by_name(values, field):
    with pytest.raises(MtprefError, match=rf"^SamplingConfig\.{field}: ") as refusal:
        SamplingConfig(**values)
    assert "\n" not in str(refusal.value)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(MtprefError, match=r"^Options\.stop: the string is empty"):
        Options(stop=("x", ""))
