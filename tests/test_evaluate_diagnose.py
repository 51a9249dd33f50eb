"""tools/evaluate_diagnose.py: a reduced evaluation, and the walk-through of docs/diagnosis.md."""

import re
import shlex
import sys
from itertools import islice
from pathlib import Path

import pytest

from mtpref.front.cli import main

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def evaluate():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import evaluate_diagnose
    finally:
        sys.path.pop(0)
    return evaluate_diagnose


@pytest.mark.slow
def test_ports_that_differ_in_more_than_their_fault_are_diagnosed(evaluate, tmp_path):
    cases = list(islice(evaluate.fault_cases("dump", evaluate.Models(tmp_path)), 6))
    assert sum(evaluate.is_right(c, 1) for c in cases) >= 5, cases
    assert all(evaluate.is_right(c, 3) for c in cases), cases


@pytest.mark.slow
def test_healthy_ports_of_every_mixture_are_not_blamed(evaluate, tmp_path):
    models = evaluate.Models(tmp_path)
    for kind, n in (("dump", 8), ("log", 2)):
        cases = list(evaluate.healthy_cases(kind, models, n))
        assert [c["verdict"] for c in cases] == ["healthy"] * n, cases


def test_results_are_rendered_with_rates_confusion_and_misses(evaluate):
    right = {"kind": "log", "setting": "s", "true": "G1-x", "verdict": "found", "top": [["concat=he", "G1-x"]]}
    wrong = {"kind": "log", "setting": "s", "true": "K5-y", "verdict": "found", "top": [["K4-z"], ["K5-y"]]}
    healthy = {"kind": "dump", "setting": "s", "true": "healthy", "verdict": "healthy", "top": [["healthy"]]}
    page = evaluate.render([right, wrong, healthy])
    assert "| all | 2 | 50 % | 100 % |" in page
    assert "| G | 1 |  |" in page
    assert "K5-y (s): found, K4-z first; top-3" in page
    assert "1 healthy ports (1 dumps healthy): a fault was blamed in 0." in page


def test_the_walk_through_finds_what_was_seeded(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "diagnosis.md").read_text(encoding="utf-8")
    commands = re.search(r"<!-- walk -->\n```sh\n(.*?)```", page, re.S)[1].strip().splitlines()
    monkeypatch.chdir(tmp_path)
    for line in commands:
        words = shlex.split(line)
        code = main(words[1:])
        out = capsys.readouterr().out
        assert code == (1 if words[1] == "diagnose" else 0), line
        if words[1] == "diagnose":
            assert out.startswith("FOUND: G4-gate-silu")
            assert re.search(r"divergence +(round 0|mtp_attn_gated-4)", out)


def test_diagnose_refuses_a_reference_with_a_fault_in_it(capsys):
    assert main(["diagnose", "--stats", "0.5", "--fault", "G4"]) == 2
    assert "reference alone" in capsys.readouterr().err
