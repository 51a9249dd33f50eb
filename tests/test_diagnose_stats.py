"""mtpref diagnose --stats: what rates alone can say."""

import json
import re
import sys
from pathlib import Path

import pytest

from mtpref.faults import FAULTS
from mtpref.faults.diagnose import diagnose_stats, read_port_runs
from mtpref.faults.diagnose.of_stats import signatures
from mtpref.front.cli import main

ROOT = Path(__file__).resolve().parent.parent


def ids_of(report, n=5):
    return [id for cause in report.causes[:n] for id in cause.ids]


def test_usual_rates_are_nothing_unusual():
    assert diagnose_stats([0.82, 0.66, 0.52]).verdict == "healthy"


def test_no_acceptance_at_all_lists_the_faults_that_give_none():
    report = diagnose_stats([0.0, 0.0, 0.0])
    assert report.verdict == "found"
    assert {"W5-constant-draft", "W7-head-not-attached", "W1-norm-shift-missing", "G1-concat-swapped"} <= set(
        ids_of(report)
    )
    assert "healthy" not in ids_of(report)


def test_a_collapse_behind_the_first_position_lists_the_chain():
    assert "C2-hidden-overwritten" in ids_of(diagnose_stats([0.85, 0.3, 0.1, 0.04]))


def test_a_flat_curve_near_one_lists_lax_verification():
    assert "V1-lax-accept" in ids_of(diagnose_stats([0.99, 0.99, 0.98, 0.98]))


def test_the_split_behind_full_and_partial_acceptance_counts():
    def weight(report):
        return sum(c.weight for c in report.causes if "C3-last-verify-row" in c.ids)

    rates = [0.6, 0.4, 0.3]
    assert weight(diagnose_stats(rates, 0.95, 0.4)) > weight(diagnose_stats(rates, 0.6, 0.6))


def test_no_cause_is_certain_from_rates_alone():
    for rates in ([0.8, 0.6, 0.5], [0.3, 0.1, 0.0], [0.0, 0.0]):
        assert diagnose_stats(rates).causes[0].weight < 0.9


def test_signatures_are_those_of_the_catalogue():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import write_signatures
    finally:
        sys.path.pop(0)
    record = json.loads(write_signatures.SOURCE.read_text())
    found = write_signatures.TARGET.read_text()
    assert found == write_signatures.render(record), "run: python tools/write_signatures.py"
    assert set(signatures()) - {"healthy"} <= set(FAULTS)


@pytest.mark.parametrize("args", [["1,x"], ["0.5,0.9"], ["-1"], ["nan"], ["0.5", "--after-full", "0.5"], ["700"]])
def test_rates_that_cannot_be_end_in_one_line(args, capsys):
    assert main(["diagnose", f"--stats={args[0]}", *args[1:]]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mtpref diagnose: error: ")
    assert err.count("\n") == 1


def test_percent_are_read_too(capsys):
    main(["diagnose", "--stats", "80,60,50", "--json"])
    a = json.loads(capsys.readouterr().out)
    main(["diagnose", "--stats", "0.8,0.6,0.5", "--json"])
    assert json.loads(capsys.readouterr().out) == a


def test_the_example_of_the_page_is_read_and_keeps_to_the_schema(tmp_path):
    page = (ROOT / "docs" / "diagnosis.md").read_text()
    example = re.search(r"<!-- run -->\n```json\n(.*?)```", page, re.S)[1]
    path = tmp_path / "run.json"
    path.write_text(example)
    run = read_port_runs(path)[0]
    assert len(run.rounds) == 2
    schema = json.loads((ROOT / "mtpref" / "faults" / "diagnose" / "run.schema.json").read_text())
    record = json.loads(example)
    assert set(schema["required"]) <= set(record) <= set(schema["properties"])
    for r in record["rounds"]:
        assert (
            set(schema["definitions"]["round"]["required"])
            <= set(r)
            <= set(schema["definitions"]["round"]["properties"])
        )
