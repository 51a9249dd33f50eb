"""Costs: the file round trip, what is refused, and that measuring leaves no trace and orders costs as they must be."""

import json

import pytest

from mtpref.base.errors import MtprefError
from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.measure.bench import measure_costs, read_costs, write_costs
from mtpref.measure.bench.costs import Costs, CostSet, mean_costs
from tests.micro_moe import standard
from tests.models import micro, prompt_of

GOOD = {"schema": "mtpref-costs-1", "plain": 10, "verify": {"2": 12}, "draft": {"100": 1}}


def write(tmp_path, change):
    path = tmp_path / "costs.json"
    path.write_text(change if isinstance(change, str) else json.dumps(GOOD | change))
    return path


def test_a_file_gives_back_what_was_written(tmp_path):
    a = Costs(plain=1.5, verify={2: 2.0, 3: 2.5}, draft={64: 0.5, 32: 0.25}, catch_up={1: 0.125}, round=0.25)
    b = Costs(plain=1.75, verify={2: 2.0, 3: 2.5}, draft={64: 0.5, 32: 0.25}, catch_up={1: 0.125}, round=0.5)
    found = CostSet(mean_costs((a, b)), (a, b), "engine", "2 threads")
    write_costs(found, tmp_path / "costs.json")
    again = read_costs(tmp_path / "costs.json")
    assert again.costs == found.costs
    assert again.samples == found.samples
    assert (again.engine, again.about) == ("engine", "2 threads")


def test_means_are_of_every_number():
    samples = [Costs(plain=p, verify={2: v}, draft={1: 0.0}) for p, v in ((1, 9), (3, 4), (2, 5))]
    assert mean_costs(samples) == Costs(plain=2, verify={2: 6}, draft={1: 0.0})


def test_three_numbers_are_enough_and_the_rest_is_named(tmp_path):
    found = read_costs(write(tmp_path, {}))
    assert found.costs.verify_at(2, keep=True) == 12
    assert found.costs.replay_at(1) == 10
    assert found.costs.catch_up_at(3) == 0
    assert "verify_keep = verify" in found.assumed
    assert "checkpoint = 0" in found.assumed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("{", "no JSON (Expecting property name"),
        ("[1]", "a JSON list"),
        ({"schema": "other"}, "schema 'other', expected 'mtpref-costs-1'"),
        ({"unit": "s"}, "unit 's', expected 'ms'"),
        ({"pain": 3}, "key 'pain' is unknown"),
        ({"plain": "3"}, "plain is '3', expected a number 0 .. 1e+09"),
        ({"plain": 0}, "plain is 0"),
        ({"plain": -1}, "plain is -1"),
        ({"plain": True}, "plain is true"),
        ({"plain": float("nan")}, "NaN is no number of JSON"),
        ({"verify": {}}, "verify is an empty object"),
        ({"verify": {"0": 1}}, "key '0', expected tokens"),
        ({"verify": {"2": None}}, "verify: 2 is null"),
        ({"draft": {"x": 1}}, "key 'x', expected rows"),
        ({"draft": 3}, "draft is 3"),
        ({"samples": 3}, "samples is no list"),
        ({"samples": [{"plain": 1, "verify": {"3": 1}, "draft": {"100": 1}}]}, "sample 0 has other keys or widths"),
        ({"samples": [{"plain": 1}]}, "sample 0: key 'verify' is missing"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, change, words):
    with pytest.raises(MtprefError) as refused:
        read_costs(write(tmp_path, change))
    assert words in str(refused.value)


@pytest.mark.parametrize("name", ["plain", "verify", "draft"])
def test_a_missing_number_is_named(tmp_path, name):
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({key: value for key, value in GOOD.items() if key != name}))
    with pytest.raises(MtprefError, match=f"key '{name}' is missing"):
        read_costs(path)


def test_a_huge_file_is_refused(tmp_path):
    path = tmp_path / "costs.json"
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(MtprefError, match="more than 1 MiB"):
        read_costs(path)


def test_every_pass_is_measured():
    model = micro(60)
    found = measure_costs(model, prompt_of(12), [model, model.with_draft_ids(range(64))], 3, 2)
    costs = found.costs
    assert len(found.samples) == 2
    assert set(costs.verify) == set(costs.verify_keep) == {2, 3, 4}
    assert set(costs.replay) == {1, 2, 3}
    assert set(costs.catch_up) == {1, 2, 3, 4}
    assert set(costs.draft) == {256, 64}
    assert min(costs.plain, costs.choose, costs.checkpoint, costs.restore, costs.token, *costs.verify.values()) > 0
    assert costs.round >= 0


def test_without_a_head_no_head_is_measured():
    model = micro(60)
    costs = measure_costs(model, prompt_of(4), (), 2, 1).costs
    assert not costs.catch_up
    assert costs.draft == {1: 0.0}


def test_a_prompt_of_one_token_is_refused():
    with pytest.raises(MtprefError, match="expected at least 2"):
        measure_costs(micro(60), [1], (), 2, 1)


def test_of_a_chain_every_step_is_measured():
    model = load(standard("micro-mimo2-f32"), make_recipe("ggml"))
    found = measure_costs(model, prompt_of(8), [model, model.with_draft_ids(range(64))], 3, 1, warm=False)
    assert set(found.costs.chain) == {1, 2, 3}
    assert min(found.costs.chain.values()) > 0
    assert set(found.costs.draft) == {256, 64}
    assert not measure_costs(micro(60), prompt_of(4), [micro(60)], 2, 1, warm=False).costs.chain
