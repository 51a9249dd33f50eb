"""A log of llama-speculative-simple against our run: events, near ties, budgets, tails, the command line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import mtpref
from mtpref.base.events import Drafted, Verified
from mtpref.engine.decode import Options, PolicyConfig
from mtpref.front.cli import main
from mtpref.look.compare import compare_log
from mtpref.look.llama_cpp.log import Candidate, parse, read_runs

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data" / "llama_cpp"
MICRO = ROOT / "golden" / "models" / "micro-60-f32.gguf"
RAW = DATA / "micro-60-f32.raw.log"
PROMPT = "The quick brown fox jumps"
KV = [part for flag in ("-ctk", "-ctv", "-ctkd", "-ctvd") for part in (flag, "f32")]


@pytest.fixture(scope="module")
def events():
    model = mtpref.load(MICRO, kv_type="F32", kv_type_draft="F32")
    return list(model.generate(PROMPT, Options(n_predict=20, policy=PolicyConfig(n_max=3))))


@pytest.fixture
def log():
    return parse(RAW.read_text())


def changed_candidate(log, round_, step, rank, **changes):
    candidates = log.rounds[round_].steps[step].candidates
    candidates[rank] = replace(candidates[rank], **changes)


def test_a_log_agrees_with_our_run_up_to_the_end_of_its_budget(log, events):
    found = compare_log(log, events)
    assert found.first is None
    assert found.is_complete
    assert (found.n_tokens, found.n_tokens_theirs, found.n_cut) == (13, 13, 1)
    assert found.n_rounds >= 6
    assert found.n_candidates >= 54
    assert 0 < found.max_p_error <= 0.0006
    assert "no event differs" in found.lines()


def test_the_first_wrong_probability_is_named(log, events):
    changed_candidate(log, 2, 1, 0, p=0.3)
    changed_candidate(log, 3, 0, 0, p=0.3)
    first = compare_log(log, events).first_divergence
    assert first is not None
    assert (first.round, first.what, first.index, first.theirs) == (2, "p", 1, 0.3)
    assert "round 2, position" in first.text()
    assert compare_log(log, events, p_limit=0.7).first_divergence is None


def test_another_candidate_is_a_near_tie_only_where_its_p_is_near(log, events):
    best = log.rounds[1].steps[0].candidates
    best[0], best[1] = replace(best[0], id=best[1].id), replace(best[1], id=best[0].id)
    found = compare_log(log, events)
    assert found.first_divergence is not None
    assert (found.first_divergence.what, found.first_divergence.round) == ("candidate", 1)
    assert found.first_divergence.gap == pytest.approx(0.193, abs=0.001)
    near = compare_log(log, events, p_limit=0.2)
    assert near.first_divergence is None
    assert near.n_near_ties >= 1
    assert near.first is not None
    assert "(a near tie)" in near.first.text()


def test_a_wrong_accept_decision_is_named_with_the_targets_margin(log, events):
    log.rounds[3].n_accepted -= 1
    log.rounds[3].id_last += 1
    found = compare_log(log, events)
    assert found.first_divergence is not None
    assert (found.first_divergence.what, found.first_divergence.round) == ("token", 3)
    assert found.first_divergence.gap is not None
    assert not found.is_parted


def test_texts_that_part_at_a_near_tie_are_no_divergence(log, events):
    log.rounds[3].id_last += 1
    tied = [replace(e, near_ties=[True] * len(e.near_ties)) if isinstance(e, Verified) else e for e in events]
    found = compare_log(log, tied)
    assert found.first_divergence is None
    assert found.is_parted
    assert found.n_tokens < found.n_tokens_theirs
    assert any("part at a near tie" in line for line in found.lines())


def test_a_run_of_ours_that_ends_early_is_a_divergence(log, events):
    found = compare_log(log, events[: len(events) // 2])
    assert found.first_divergence is not None
    assert found.first_divergence.ours == "(the end)"


def test_a_shorter_draft_that_no_budget_explains_is_a_divergence(log, events):
    cut = [replace(e, ids=e.ids[:1]) if isinstance(e, Drafted) and e.round == 1 else e for e in events]
    first = compare_log(log, cut).first_divergence
    assert first is not None
    assert (first.what, first.round) == ("draft", 1)


@pytest.mark.parametrize("n_lines", [3, 8, 20, 50])
def test_a_log_without_its_end_is_compared_as_far_as_it_goes(events, n_lines):
    log = parse("\n".join(RAW.read_text().splitlines()[:n_lines]))
    found = compare_log(log, events)
    assert found.first is None
    assert not found.is_complete
    assert found.n_candidates == sum(
        len(s.candidates) for s in [*(s for r in log.rounds for s in r.steps), *log.unfinished]
    )
    assert any("ends early" in line for line in found.lines())


def test_a_wrong_candidate_of_an_unfinished_round_is_found(events):
    log = parse("\n".join(RAW.read_text().splitlines()[:8]))
    assert log.rounds == []
    log.unfinished[0].candidates[0] = Candidate(1, 0.9, "")
    assert compare_log(log, events).first_divergence is not None


# ------------------------------------------------------------------------------------ command line


def test_the_command_reads_settings_from_the_log(capsys):
    assert main(["compare-log", "-m", str(MICRO), "-p", PROMPT, *KV, str(RAW), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == "mtpref-compare-log-1"
    assert (record["n_tokens"], record["differences"], record["is_complete"]) == (13, [], True)


def test_the_command_ends_with_1_where_the_run_was_another(capsys):
    assert main(["compare-log", "-m", str(MICRO), "-p", "another prompt", *KV, str(RAW)]) == 1
    assert "first divergence: round 0, " in capsys.readouterr().out
    assert main(["compare-log", "-m", str(MICRO), "-p", PROMPT, *KV, "--spec-draft-n-max", "1", str(RAW)]) == 1
    assert main(["compare-log", "-m", str(MICRO), "-p", PROMPT, *KV, "--spec-draft-p-min", "0.9", str(RAW)]) == 1


def test_the_command_reads_recordings_of_several_runs(capsys):
    path = DATA / "micro-60-f32.log.gz"
    assert main(["compare-log", "-m", str(MICRO), *KV, str(path)]) == 0
    assert capsys.readouterr().out.count("no event differs") == len(read_runs(path))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([str(RAW)], "does not hold the prompt"),
        (["-p", PROMPT, str(ROOT / "README.md")], "run it again with -lv 5"),
        (["-p", PROMPT, str(RAW), "--spec-draft-p-min", "2"], "out of range"),
        (["-p", PROMPT, str(RAW), "--p-limit", "nan"], "out of range"),
        (["-p", PROMPT, str(RAW), "--spec-draft-n-max", "-1"], "--spec-draft-n-max: -1 is out of range"),
        (["-p", "", str(RAW)], "prompt"),
    ],
)
def test_bad_input_ends_in_one_line(capsys, arguments, reason):
    assert main(["compare-log", "-m", str(MICRO), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert reason in err
    assert err.count("\n") == 1


# ROUTERS


def with_tie(events, n_round, row=0, gap=1e-8):
    """The events with a router's near tie at a row of a round."""
    changed = []
    for event in events:
        if isinstance(event, Verified) and event.round == n_round:
            gaps = [1.0] * len(event.target_ids)
            gaps[row] = gap
            event = replace(event, router_gaps=gaps)
        changed.append(event)
    return changed


def test_a_routers_near_tie_before_a_difference_explains_it_and_ends_the_comparison(log, events):
    changed_candidate(log, 2, 1, 0, p=0.3)
    changed_candidate(log, 3, 0, 0, p=0.3)
    found = compare_log(log, with_tie(events, 1))
    assert found.first_divergence is None
    assert found.is_rerouted
    assert found.is_parted
    assert len(found.differences) == 1
    assert "a near tie of a router or indexer at position" in found.first.text()
    assert any("another expert" in line for line in found.lines())
    json.dumps(found.to_json())


def test_a_routers_near_tie_after_a_difference_does_not_explain_it(log, events):
    changed_candidate(log, 2, 1, 0, p=0.3)
    for n_round in (2, 3):
        first = compare_log(log, with_tie(events, n_round)).first_divergence
        assert first is not None
        assert first.what == "p"
    assert compare_log(log, with_tie(events, 1, gap=1e-3)).first_divergence is not None


def test_a_near_tie_of_the_heads_router_explains_its_own_draft(log, events):
    changed_candidate(log, 2, 1, 0, p=0.3)
    n, changed = -1, []
    for event in events:
        if isinstance(event, Drafted):
            n += 1
            steps = [replace(step, router_gap=1e-8 if n == 2 and i == 1 else 1.0) for i, step in enumerate(event.steps)]
            event = replace(event, steps=steps)
        changed.append(event)
    assert compare_log(log, changed).is_rerouted
