"""Traces: the lines of a run tell its whole story."""

import json
from dataclasses import fields
from pathlib import Path

from mtpref import load
from mtpref.base import events
from mtpref.engine.decode import Options, PolicyConfig
from mtpref.look.trace import TraceWriter, tee

DOC = Path(__file__).parent.parent / "docs" / "trace.md"


def traced(tmp_path, **settings):
    path = tmp_path / "run.jsonl"
    run = load().generate("Once upon a time", Options(n_predict=24, **settings))
    with TraceWriter(path) as writer:
        for _ in tee(run, writer):
            assert path.stat().st_size > 0  # each line is there before the next event
    return run, [json.loads(line) for line in path.read_text().splitlines()]


def test_a_trace_tells_drafts_verdicts_and_tokens_that_agree_with_the_statistics(tmp_path):
    run, lines = traced(tmp_path)
    assert lines[0]["schema"] == events.SCHEMA
    assert lines[0]["settings"]["policy"]["n_max"] == 3
    verified = [line for line in lines if line["event"] == "Verified"]
    assert sum(len(line["draft_ids"]) for line in verified) == run.statistics.n_drafted
    assert sum(line["n_accepted"] for line in verified) == run.statistics.n_accepted
    for line in verified:
        n = line["n_accepted"]
        assert line["verdicts"][:n] == ["accept"] * n
        assert line["draft_ids"][:n] == line["target_ids"][:n]
        assert len(line["margins"]) == len(line["target_ids"]) == n + 1
    assert [line["id"] for line in lines if line["event"] == "Token"] == run.ids
    assert lines[-1]["statistics"] == run.statistics.to_json()


def test_a_rejection_is_followed_by_its_roll_back(tmp_path):
    _, lines = traced(tmp_path, rollback="replay", policy=PolicyConfig(n_max=4))
    kinds = [line["event"] for line in lines]
    for i, line in enumerate(lines):
        if line["event"] == "Verified" and "reject" in line["verdicts"]:
            assert kinds[i + 1] == "RolledBack"
            rolled = lines[i + 1]
            assert rolled["to_pos"] == line["pos0"] + line["n_accepted"] + 1 < rolled["from_pos"]
            assert rolled["n_replayed"] == line["n_accepted"] + 1
    assert "RolledBack" in kinds


def test_draft_steps_hold_ten_candidates_best_first_whose_probabilities_sum_to_one(tmp_path):
    _, lines = traced(tmp_path, policy=PolicyConfig(p_min=0.5))
    steps = [step for line in lines if line["event"] == "Drafted" for step in line["steps"]]
    assert {step["is_taken"] for step in steps} == {True, False}
    for step in steps:
        assert len(step["candidates"]) == len(step["p"]) == 10
        assert abs(sum(step["p"]) - 1) < 1e-12
        assert step["p"] == sorted(step["p"], reverse=True)
        assert step["is_taken"] == (step["p"][0] >= 0.5)


def test_the_page_names_every_event_and_field():
    page = DOC.read_text(encoding="utf-8")
    for cls in (*events.Event.__args__, events.DraftStep, events.Draw):
        assert f"`{cls.__name__}`" in page, cls.__name__
        for field in fields(cls):
            assert f"`{field.name}`" in page, f"{cls.__name__}.{field.name}"
