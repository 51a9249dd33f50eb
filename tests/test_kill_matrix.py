"""The kill matrix: every claim of a golden case holds, look-alikes fail nothing, the committed tables are these."""

import json
import sys
from pathlib import Path

import pytest

from mtpref.faults import FAULTS
from mtpref.golden import Folder
from mtpref.golden.suspects import rank
from tests.samples import one_in

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import kill_matrix  # noqa: E402

COMMITTED = json.loads((ROOT / "golden" / "kill_matrix.json").read_text())
# What a port's author must be able to rely on.
PROVEN = (
    "G1-concat-swapped", "G2-pre-norm-hidden", "C1-chain-pre-norm", "W1-norm-shift-missing", "W2-norm-shift-doubled",
    "G13-v-heads-grouped", "G12-l2-eps", "G6-rope-interleaved", "G4-gate-silu", "S3-conv-window-kept",
    "S3b-recurrent-state-kept", "S4-checkpoint-after", "V21-wrong-verify-row", "C4-same-token-pairing",
    "K0-prompt-not-primed", "K7-not-trimmed", "V7-bonus-dropped", "V1-lax-accept", "V5-no-residual",
)  # fmt: skip


@pytest.fixture(scope="module")
def cases():
    return kill_matrix.all_cases(Folder(kill_matrix.GOLDEN))


# Each fault is seeded and seen by default in test_faults.py; the vectors of every third are run here.
@pytest.mark.parametrize("id", one_in(3, sorted(set(FAULTS) - set(kill_matrix.SETTINGS))))
def test_a_case_that_carries_a_flag_fails_under_the_fault(id, cases):
    claimed = [entry for entry in cases if id in entry[1].flags and entry[0].op != "accumulated"]
    if FAULTS[id].is_look_alike:
        assert not list(kill_matrix.failing(FAULTS[id], claimed, Folder(kill_matrix.GOLDEN)))
    else:
        failed = set(kill_matrix.failing(FAULTS[id], claimed, Folder(kill_matrix.GOLDEN)))
        assert failed == {entry[1].id for entry in claimed}


def test_the_faults_that_ports_have_most_are_proven():
    assert [id for id in PROVEN if not COMMITTED[id]["claimed"] or not COMMITTED[id]["killed_by"]] == []


def test_the_committed_tables_belong_to_this_catalogue_and_these_cases(cases):
    assert set(COMMITTED) == set(FAULTS) - set(kill_matrix.SETTINGS)
    assert not kill_matrix.complaints(COMMITTED)
    for id, entry in COMMITTED.items():
        assert entry["claimed"] == kill_matrix.claims(cases, id)
    assert json.loads((ROOT / "golden" / "flags.json").read_text()) == kill_matrix.flags()
    assert kill_matrix.PAGE.read_text() == kill_matrix.page(COMMITTED)


def test_every_flag_is_known(cases):
    known = set(kill_matrix.flags()["flags"])
    assert {flag for _, case, _ in cases for flag in case.flags} <= known


@pytest.mark.parametrize(
    "id", one_in(2, ["S3-conv-window-kept", "G1-concat-swapped", "V5-no-residual", "K7-not-trimmed"])
)
def test_the_suspect_is_named_from_the_cases_that_fail(id, cases):
    judged = [entry for entry in cases if kill_matrix.worth_trying(FAULTS[id], *entry[:2])]
    failed = set(kill_matrix.failing(FAULTS[id], judged, Folder(kill_matrix.GOLDEN)))
    assert sorted(failed) == COMMITTED[id]["killed_by"]
    suspects = rank(kill_matrix.GOLDEN, failed, {entry[1].id for entry in judged} - failed)
    assert suspects[0].likeness == 1.0
    assert id in [s.fault for s in suspects if s.likeness == 1.0]
    assert rank(kill_matrix.GOLDEN, set(), {entry[1].id for entry in judged}) == []
    assert rank(kill_matrix.ROOT, failed, ()) == []
