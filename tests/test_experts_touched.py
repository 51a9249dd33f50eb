"""Experts that a pass touches, and router gaps: counted, priced, told in events, traces and comparisons."""

import itertools
import json
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from mtpref.base.events import PromptProgress, RunStarted, Verified, to_json
from mtpref.engine.decode import Decoder, Options, PolicyConfig
from mtpref.engine.decode.statistics import NEAR_GAP
from mtpref.engine.model import load
from mtpref.front.cli import main
from mtpref.look.compare.log import router_ties
from mtpref.look.trace import TraceWriter, tee
from mtpref.look.trace.typed import from_json
from mtpref.measure.bench import measure_costs
from mtpref.measure.bench.costs import Costs, CostSet
from mtpref.measure.bench.passes import Passes
from mtpref.measure.bench.render import lines as bench_lines
from mtpref.measure.bench.report import Settings as BenchSettings
from mtpref.measure.bench.report import bench, trunk_bytes
from mtpref.measure.experts import touched_by_width
from mtpref.measure.plan import plan, record
from mtpref.measure.plan.record import trims_of
from mtpref.measure.plan.render import lines
from mtpref.measure.plan.report import Settings
from mtpref.spec import Stack
from tests.micro_moe import NAMES, standard
from tests.models import micro, prompt_of

NAME = next(name for name in NAMES if name.startswith("micro-qwen35moe") and name.endswith("-f32"))


@lru_cache(maxsize=1)
def model():
    return load(standard(NAME))


def run(one, n_predict=10, n_max=2):
    decoder = Decoder(one, one.new_state(64), Options(n_predict=n_predict, policy=PolicyConfig(n_max=n_max)))
    return list(decoder.run(prompt_of(6))), decoder.statistics


# COUNTS


def test_windows_count_every_expert_once():
    rng = np.random.default_rng(3)
    texts = [np.argsort(rng.random((n, 3, 7)), axis=2)[..., :2] for n in (1, 5, 9)]
    found = touched_by_width(texts, 6)
    for w in range(1, 7):
        sizes = [len(set(text[t : t + w, il].reshape(-1).tolist())) for text in texts
                 for t in range(len(text) - w + 1) for il in range(3)]  # fmt: skip
        assert found[w] == pytest.approx(sum(sizes) / len(sizes))
    assert touched_by_width(texts[:1], 3) == {1: 2.0}
    assert touched_by_width([], 3) == {}


def test_a_pass_says_how_many_experts_it_touched():
    passes = Passes(model(), [model()], prompt_of(6), 3, following=[9, 40, 41])
    passes.trunk(1, keep=1)
    n_used = model().layers[-1].ffn_cfg.n_used
    assert passes.n_experts == n_used
    passes.trunk(4, keep=4)
    state = model().new_state(64)
    model().trunk(state, prompt_of(6)[:-1], n_logits=0)
    out = model().trunk(state, [prompt_of(6)[-1], 9, 40, 41], n_logits=1)
    assert passes.n_experts == np.mean([len(set(r.ids.reshape(-1).tolist())) for r in out.routings])


def test_bytes_of_a_pass_count_the_experts_it_touches():
    stacks = [w for layer in model().weights.layers for w in layer.values() if isinstance(w, Stack)]
    assert stacks
    one = sum(stack.raw[0].nbytes for stack in stacks)
    assert trunk_bytes(model(), 3) - trunk_bytes(model(), 1) == 2 * one
    assert trunk_bytes(model(), 1000) - trunk_bytes(model(), 0) == sum(stack.raw.nbytes for stack in stacks)


def test_the_benchmark_tells_them():
    settings = BenchSettings(parts=("decode", "verify"), n_gen=3, widths=(3,), n_depth=4, n_rounds=1)
    found = bench(model(), [], settings, 1)
    n_used = model().layers[-1].ffn_cfg.n_used
    assert found.row("decode", "1").n_experts == n_used
    assert n_used < found.row("verify", "3").n_experts <= 3 * n_used
    assert f"{n_used:.1f} experts a layer" in "\n".join(bench_lines(found))


# PRICES

MEASURED = Costs(plain=10, verify={2: 16, 3: 20}, draft={8: 1}, verify_keep={2: 18, 3: 24}, experts={1: 4, 2: 7, 3: 9})


def test_a_text_with_other_experts_has_other_costs():
    """At width 2 the slope is (20 - 10) / (9 - 4) = 2 ms an expert, at width 3 (20 - 16) / (9 - 7)."""
    found = MEASURED.for_text({1: 4.0, 2: 6.0, 3: 10.0})
    assert found.verify == {2: pytest.approx(14), 3: pytest.approx(22)}
    assert found.verify_keep[2] == pytest.approx(18 - 14 / 5)
    assert found.plain == 10
    assert MEASURED.for_text({}) == MEASURED
    assert replace(MEASURED, experts={}).for_text({2: 6.0}).verify == {2: 16, 3: 20}
    assert MEASURED.for_text(MEASURED.experts) == MEASURED


def test_costs_are_measured_on_the_text_with_their_experts():
    ids = prompt_of(8)
    found = measure_costs(model(), ids[:4], (), 2, 1, following=ids[4:], warm=False)
    state = model().new_state(64)
    model().trunk(state, ids[:3], n_logits=0)
    out = model().trunk(state, ids[3:6], n_logits=1)
    expected = np.mean([len(set(r.ids.reshape(-1).tolist())) for r in out.routings])
    assert found.costs.experts[3] == expected
    assert found.costs.experts[1] == model().layers[-1].ffn_cfg.n_used
    assert measure_costs(micro(60), ids[:4], (), 1, 1, warm=False).costs.experts == {}


def test_a_plan_prices_passes_with_the_texts_experts():
    trims = trims_of(model(), ["full"])
    texts = record(model(), [("text", tuple(prompt_of(7, seed))) for seed in (0, 1)], trims, 2, 12)
    assert all(text.experts is not None and len(text.experts) == len(text.ids) for text in texts)
    given = CostSet(MEASURED, (MEASURED,), "e")
    found = plan(texts, trims, given, Settings(n_max=2, p_mins=(0.0,), cooldowns=()))
    assert found.experts == touched_by_width([text.experts for text in texts], 3)
    assert found.costs.costs == MEASURED.for_text(found.experts)
    assert found.experts_of_costs == dict(MEASURED.experts)
    assert "distinct experts a layer" in "\n".join(lines(found))
    unknown = replace(MEASURED, experts={})
    blind = plan(texts, trims, CostSet(unknown, (unknown,), "e"), Settings(n_max=2, p_mins=(0.0,), cooldowns=()))
    assert blind.costs.costs == unknown
    assert "taken as they are" in "\n".join(lines(blind))
    json.dumps(found.to_json())


# GAPS


def test_events_hold_the_least_gap_of_every_token_that_stays():
    events, statistics = run(model())
    ids = [*prompt_of(6)]
    for event in events:
        if isinstance(event, Verified):
            ids += event.target_ids
    out = model().trunk(model().new_state(64), ids, n_logits=0)
    expected = np.min([routing.gap for routing in out.routings], axis=0)
    prompt = [event for event in events if isinstance(event, PromptProgress)]
    n_prompt = prompt[-1].n_done
    assert prompt[-1].router_gap == expected[:n_prompt].min()
    told = {e.pos0 + i: gap for e in events if isinstance(e, Verified) for i, gap in enumerate(e.router_gaps)}
    assert told
    assert all(gap == expected[pos] for pos, gap in told.items())
    assert statistics.min_router_gap == min([*told.values(), prompt[-1].router_gap])
    assert "least gap" in "\n".join(statistics.lines())
    assert statistics.to_json()["min_router_gap"] == statistics.min_router_gap


def test_models_without_experts_say_nothing_of_gaps():
    events, statistics = run(micro(60))
    text = json.dumps([to_json(event) for event in events])
    assert "router" not in text
    assert "router" not in "\n".join(statistics.lines()) + json.dumps(statistics.to_json())
    assert router_ties(events) == []


def test_a_trace_gives_gaps_back_and_show_marks_near_ties(tmp_path, capsys):
    events, _ = run(model())
    for event in events:
        if not isinstance(event, RunStarted):
            assert from_json(json.loads(json.dumps(to_json(event)))) == event
    i = next(i for i, event in enumerate(events) if isinstance(event, Verified))
    events[i] = replace(events[i], router_gaps=[NEAR_GAP / 2] * len(events[i].router_gaps))
    with TraceWriter(tmp_path / "t.jsonl") as writer:
        assert list(tee(iter(events), writer)) == events
    assert main(["trace", "show", str(tmp_path / "t.jsonl")]) == 0
    assert "near tie of a router or indexer, gap 5e-07" in " ".join(capsys.readouterr().out.split())


def test_ties_are_told_by_position():
    events = [
        PromptProgress(4, 4, router_gap=NEAR_GAP / 2),
        Verified(0, 4, [], [7], [1.0], [False], 0, [], router_gaps=[1.0]),
        Verified(1, 5, [8], [8, 9], [1.0, 1.0], [False, False], 1, ["accept"], router_gaps=[1.0, 0.0]),
    ]
    assert router_ties(events) == [(3, NEAR_GAP / 2), (6, 0.0)]
    assert list(itertools.islice(router_ties([]), 1)) == []
