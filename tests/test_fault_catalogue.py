"""The catalogue page: equal to the code, equal to new measurements, and its claims borne out by them."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from mtpref.engine.decode import PolicyConfig, SamplingConfig
from mtpref.faults import FAULTS, inject
from mtpref.spec import P_ONE, Distribution
from mtpref.spec.policy import FixedPolicy, PolicyState
from mtpref.spec.steps import Steps
from tests.models import micro, prompt_of, run_decoder, with_eog

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import fault_distance  # noqa: E402
import measure_faults  # noqa: E402
import write_faults  # noqa: E402

DATA = json.loads((ROOT / "docs" / "faults.json").read_text())
SAMPLED = [id for id, f in FAULTS.items() if {"sampling", "residual"} & set(f.needs)]


def steps_with(id: str) -> Steps:
    return FAULTS[id].apply_recipe(micro(60).recipe).steps


def test_the_page_is_what_code_and_measurements_give():
    assert (ROOT / "docs" / "faults.md").read_text(encoding="utf-8") == write_faults.render()
    assert list(DATA["faults"]) == list(FAULTS)


@pytest.mark.parametrize("id", ["G4-gate-silu", "S3-conv-window-kept", "E3-weights-unnormed"])
def test_a_new_measurement_gives_the_recorded_one(id):
    assert measure_faults.measure(FAULTS[id]) == DATA["faults"][id]


@pytest.mark.parametrize("id", FAULTS)
def test_the_measured_first_tensor_is_the_predicted_one(id):
    first = DATA["faults"][id]["first_tensor"] or ""
    assert re.sub(r"-\d+$", "", first) == FAULTS[id].predicted.dump


@pytest.mark.parametrize("id", [id for id, f in FAULTS.items() if id not in SAMPLED and not f.is_look_alike])
def test_greedy_text_changes_where_it_is_predicted_to_and_only_there(id):
    """The text of the small models that stand in is planted, and some faults leave it."""
    is_same, predicted = DATA["faults"][id]["text"]["differs_at"] is None, FAULTS[id].predicted
    is_planted = measure_faults.setup_of(FAULTS[id]).stand_in != ""
    assert is_same == predicted.text or (is_planted and is_same)


@pytest.mark.parametrize("id", [id for id, f in FAULTS.items() if f.is_look_alike])
def test_a_look_alike_changes_text_at_near_ties_alone(id):
    """Products in another order, or of quantised activations, may; the others may not at all."""
    fault, text = FAULTS[id], DATA["faults"][id]["text"]
    assert fault.predicted.text
    assert fault.predicted.distribution
    in_bits = {"ops.mul_mat", "ops.route", "ops.experts", "ops.index_cells"} & set(fault.replaces)
    assert text["margin"] < 0.1 if in_bits else text["differs_at"] is None


def test_sampled_text_leaves_the_targets_distribution_where_it_is_predicted_to():
    for id in SAMPLED:
        measured = DATA["faults"][id]
        options = " ".join(measured["options"])
        healthy = DATA["healthy"][options]["distance"]
        far = any(measured["distance"][row] > 2 * healthy[row] + 0.01 for row in ("first", "second"))
        assert far == (not FAULTS[id].predicted.distribution), id


def test_a_new_draw_shows_the_missing_residual():
    model = measure_faults.healthy("ggml", None)
    sampling = SamplingConfig(temp=1.0, top_k=40, top_p=0.9, min_p=0.0, accept="residual")
    healthy, faulty = (
        fault_distance.measure(model, fault, measure_faults.TV_PROMPT, PolicyConfig(n_max=1), sampling, 400)
        for fault in (None, FAULTS["V5-no-residual"])
    )
    assert faulty["first"] > healthy["first"] + 0.04


# ------------------------------------------------------- decisions that the prompts of the page do not meet


def test_zero_probability_is_accepted_at_a_draw_of_zero_alone():
    accept = steps_with("V9-zero-probability-accepted").accept_residual
    assert (accept(0.0, 0.5, 0.0), accept(0.0, 0.5, 2.0**-53), accept(0.3, 0.5, 0.5)) == (True, False, True)
    assert not Steps().accept_residual(0.0, 0.5, 0.0)


def test_an_end_inside_a_draft_is_passed():
    model, prompt = micro(90), prompt_of(9, 9)
    plain = run_decoder(model, prompt, 12, n_max=3)
    sources = plain.sources
    at = next(i for i in range(2, 12) if sources[i] == "draft" and sources[i + 1] == "draft")
    model = with_eog(model, plain.ids[at])
    first = plain.ids.index(plain.ids[at])
    clean = run_decoder(model, prompt, 12, n_max=3)
    faulty = run_decoder(inject(model, FAULTS["V14-eog-passed"]), prompt, 12, n_max=3)
    assert clean.ids == plain.ids[: first + 1]
    assert len(faulty.ids) > len(clean.ids) or sources[first] != "draft"


def test_id_zero_is_taken_for_padding():
    accept = steps_with("V20-padding-compared").accept_greedy
    assert accept([5, 0, 7], [5, 0, 7, 8], frozenset()) == 1
    assert accept([5, 6], [5, 6, 0], frozenset()) == 2


def test_the_row_behind_is_compared():
    accept = steps_with("V21-wrong-verify-row").accept_greedy
    assert accept([5, 6, 7], [4, 5, 6, 7], frozenset()) == 3
    assert accept([5, 6, 7], [5, 6, 7, 8], frozenset()) == 0


def test_a_drawn_token_is_judged_by_its_own_probability():
    steps, cfg = steps_with("V22-gate-after-draw"), FixedPolicy(n_max=3, p_min=P_ONE // 2)
    assert steps.takes(cfg, 0, 0)
    assert not steps.takes(cfg, P_ONE // 2 - 1)
    assert (steps.keeps_drawn(cfg, P_ONE // 2 - 1), steps.keeps_drawn(cfg, P_ONE // 2)) == (False, True)
    assert Steps().keeps_drawn(cfg, 0)


def test_a_matched_draft_is_never_drawn_again():
    steps = steps_with("V3-sampled-draft-matched")
    dist = Distribution(np.array([3, 5, 9]), np.array([0.5, 0.25, 0.25]))
    assert steps.residual(3, dist, dist).ids.tolist() == [5, 9]
    assert steps.residual(3, dist, dist).p.tolist() == [0.5, 0.5]


def test_policy_faults_change_draft_lengths_and_silences():
    cooling = FixedPolicy(n_max=3, cooldown=1)
    silent = PolicyState(0, 1)
    assert Steps().after_round(cooling, silent, 0, 0).n_cooldown == 0
    assert steps_with("P1-cooldown-endless").after_round(cooling, silent, 0, 0).n_cooldown == 1
    assert Steps().after_round(cooling, PolicyState(), 3, 2).n_cooldown == 0
    assert steps_with("P2-cooldown-after-acceptance").after_round(cooling, PolicyState(), 3, 2).n_cooldown == 1
    n_min = FixedPolicy(n_max=3, n_min=2)
    assert (Steps().proposed(n_min, 1, 3), steps_with("P3-n-min-ignored").proposed(n_min, 1, 3)) == (0, 1)
    past = steps_with("P4-draft-past-budget").draft_limit
    assert (Steps().draft_limit(cooling, PolicyState(), 1), past(cooling, PolicyState(), 1)) == (1, 3)
    assert past(cooling, silent, 1) == 0


def test_a_draft_past_the_budget_writes_more_than_was_asked():
    model = inject(micro(90), FAULTS["P4-draft-past-budget"])
    lengths = {len(run_decoder(model, prompt_of(9, 9), n, n_max=3).ids) - n for n in range(4, 9)}
    assert max(lengths) > 0


def test_a_lost_token_is_in_the_state_and_not_in_the_text():
    clean = run_decoder(micro(90), prompt_of(9, 9), 12, n_max=2)
    faulty = run_decoder(inject(micro(90), FAULTS["V15-token-lost"]), prompt_of(9, 9), 8, n_max=2)
    rest = iter(clean.ids)
    assert all(id in rest for id in faulty.ids[:6])  # a subsequence of the healthy text
    assert faulty.ids != clean.ids[: len(faulty.ids)]
