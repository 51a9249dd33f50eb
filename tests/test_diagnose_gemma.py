"""Diagnosis of a target with its assistant: healthy ports, stock llama.cpp's among them, are healthy; mistakes of the
assistant are named, from a dump, a run or a log."""

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtpref.engine.model import Model, load
from mtpref.engine.recipe import make_recipe
from mtpref.faults import FAULTS, inject
from mtpref.faults.diagnose import PortTensors, Report, diagnose_dump, diagnose_log, read_port_runs
from mtpref.faults.diagnose.hypotheses import list_hypotheses
from mtpref.look.dump import record
from mtpref.spec.contract import parse_contract
from tests.micro_moe import assistant, standard
from tests.models import prompt_of
from tests.test_diagnose_moe import run_of
from tests.test_faults_gemma import PLAIN, WHERE

DATA = Path(__file__).parent / "data" / "llama_cpp" / "gemma"
NAMES = [f"micro-gemma4-{n}" for n in ("f32", "edge-30-f32", "moe-f32", "apart-90-f32", "q8_0", "moe-q8_0")]
IN_LOOP = {id for id in WHERE if not FAULTS[id].predicted.dump}  # no dump of a prompt shows them
SICK = [id for id in WHERE if not FAULTS[id].is_look_alike]


def model(numerics: str = "ggml", contract: str = "llama.cpp", name: str = PLAIN, kv_type: str = "F16") -> Model:
    recipe = make_recipe(numerics, parse_contract(contract))
    return load(standard(name), recipe, kv_type=kv_type, model_draft=assistant(name))


def dumped(id: str | None, contract: str = "llama.cpp") -> Report:
    """A port in the other numerics with 1e-3 of noise."""
    port = model("exact", contract) if id is None else inject(model("exact", contract), FAULTS[id])
    ids, random = prompt_of(24, 5), np.random.default_rng(5)
    tensors = {
        name: array * (1 + 1e-3 * random.standard_normal(array.shape)).astype(np.float32)
        for name, array in record(port, ids, ".").tensors.items()
        if array.dtype == np.float32
    }
    return diagnose_dump(model(), PortTensors("port", ids, tensors))


def some(ids, fast):
    return [id if id in fast else pytest.param(id, marks=pytest.mark.slow) for id in ids]


def test_what_an_assistant_cannot_have_is_no_hypothesis():
    found = {h.id: h.kind for h in list_hypotheses(model())}
    assert not {"first=none", "prime=none", "chain=pre", "K0-prompt-not-primed", "contract training"} & set(found)
    # Another offset is a mistake where the keys are the target's, and no legal variant.
    assert found["pos_offset=-1"] == "contract"
    assert set(WHERE) <= set(found)


def test_a_healthy_dump_is_healthy():
    report = dumped(None)
    assert report.verdict == "healthy", report.headline
    assert set(report.invisible) >= IN_LOOP


@pytest.mark.parametrize("id", some([id for id in SICK if id not in IN_LOOP], ("K15-opening-cell-seen",)))
def test_a_dump_names_the_mistake(id):
    report = dumped(id)
    assert report.verdict == "found", report.headline
    assert id in report.causes[0].ids, report.headline


@pytest.mark.slow
def test_a_position_too_low_is_a_mistake_and_the_window_of_transformers_none():
    report = dumped(None, "pos_offset=-1")
    assert (report.verdict, report.causes[0].ids[0]) == ("found", "pos_offset=-1"), report.headline
    report = dumped("L18-window-of-transformers")
    assert (report.verdict, report.causes[0].ids) == ("healthy", ["L18-window-of-transformers"])


@pytest.mark.parametrize("id", some(SICK, ()))
def test_a_run_names_the_mistake(id):
    """Greedy, drafts of three tokens, with p, in the other numerics."""
    port = inject(model("exact", kv_type="F32"), FAULTS[id])
    report = diagnose_log(model(), [run_of(port, "gemma4", 32)])
    assert report.verdict == "found", report.headline
    assert id in report.causes[0].ids, report.headline


@pytest.mark.slow
@pytest.mark.parametrize("id", [None, "L18-window-of-transformers"])
def test_a_healthy_run_is_healthy(id):
    port = model("exact", kv_type="F32")
    report = diagnose_log(model(), [run_of(port if id is None else inject(port, FAULTS[id]), "gemma4", 32)])
    assert report.verdict == "healthy", report.headline


@pytest.mark.parametrize("name", some(NAMES, ()))
def test_a_stock_log_is_healthy(name, tmp_path):
    """llama.cpp's own run of target and assistant."""
    path = tmp_path / f"{name}.log"
    path.write_bytes(gzip.decompress((DATA / f"{name}.log.gz").read_bytes()))
    run = next(run for run in read_port_runs(path, which="all") if len(run.rounds) >= 8)
    own = model(name=name, kv_type="F32")
    report = diagnose_log(own, [replace(run, rounds=run.rounds[:8])])
    assert report.verdict == "healthy", report.headline
