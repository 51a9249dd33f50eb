"""mtpref diagnose --dump: the mistake behind a port's tensors."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.engine.recipe import make_recipe
from mtpref.faults import FAULTS, inject, is_possible
from mtpref.faults.diagnose import PortTensors, diagnose_dump, read_port, render
from mtpref.faults.diagnose.hypotheses import list_hypotheses
from mtpref.faults.diagnose.port_tensors import distance
from mtpref.files.gguf import write_gguf
from mtpref.front.cli import main
from mtpref.look import dump
from mtpref.spec.contract import parse_contract
from tests.models import micro

IDS = [3, 17, 4, 250, 9, 31, 77, 5, 12, 200, 8, 41]


def port_of(model, noise=0.0, rows=None, pattern=".", seed=0):
    """What a port would have written: its tensors, noisy, perhaps only the last rows, perhaps only some."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, array in dump.record(model, IDS, pattern).tensors.items():
        noisy = array * (1 + noise * rng.standard_normal(array.shape))
        is_by_token = array.ndim and array.shape[0] >= len(IDS) - 1
        tensors[name] = (noisy[-rows:] if rows and is_by_token else noisy).astype(np.float32)
    return PortTensors("port", list(IDS), tensors)


def exact(model, contract="llama.cpp"):
    return replace(model, recipe=make_recipe("exact", parse_contract(contract)), kv_type="F32", kv_type_draft="F32")


def test_a_healthy_port_with_other_numerics_and_noise_is_healthy():
    for seed in range(3):
        report = diagnose_dump(micro(60), port_of(exact(micro(60)), noise=5e-3, seed=seed))
        assert report.verdict == "healthy", render(report)
        assert "contract llama.cpp" in report.headline


def test_a_healthy_port_of_another_contract_is_healthy_and_the_contract_is_named():
    report = diagnose_dump(micro(60), port_of(exact(micro(60), "training"), noise=2e-3))
    assert report.verdict == "healthy"
    assert "contract training" in report.headline


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("id", ["W1-norm-shift-missing", "G1-concat-swapped"])
def test_a_fault_is_found_in_noise_and_in_the_last_rows_alone(id, rows):
    report = diagnose_dump(micro(60), port_of(inject(exact(micro(60)), FAULTS[id]), noise=5e-3, rows=rows))
    assert report.verdict == "found"
    assert id in report.causes[0].ids
    assert report.causes[0].weight > 0.9
    assert report.divergence.startswith("mtp_")
    assert f"docs/faults.md#{id.lower()}" in report.causes[0].links


def test_the_first_divergence_is_where_the_fault_is():
    report = diagnose_dump(micro(60), port_of(inject(micro(60), FAULTS["G1-concat-swapped"])))
    assert report.divergence == f"mtp_concat-{micro(60).config.n_layer}"


def test_a_few_tensors_of_the_head_are_enough():
    port = port_of(
        inject(exact(micro(60)), FAULTS["G1-concat-swapped"]), pattern="^mtp_(eh_proj|result_output)", noise=2e-3
    )
    report = diagnose_dump(micro(60), port)
    assert "G1-concat-swapped" in report.causes[0].ids


def test_hypotheses_that_give_the_same_tensors_stand_in_one_line():
    report = diagnose_dump(micro(60), port_of(inject(micro(60), FAULTS["G1-concat-swapped"])))
    assert set(report.causes[0].ids) == {"concat=he", "G1-concat-swapped"}
    assert "one of" in render(report)


def test_what_leaves_no_trace_in_a_dump_is_listed_and_never_blamed():
    report = diagnose_dump(micro(60), port_of(inject(micro(60), FAULTS["K0-prompt-not-primed"])))
    assert report.verdict == "healthy"
    assert "K0-prompt-not-primed" in report.invisible
    assert "--log" in report.experiment


def test_tensors_that_nothing_reproduces_are_none_of_the_known():
    port = port_of(micro(60))
    name = f"mtp_eh_proj-{micro(60).config.n_layer}"
    port.tensors[name] = np.roll(port.tensors[name], 7, axis=1)
    report = diagnose_dump(micro(60), port)
    assert report.verdict == "unknown"
    assert report.divergence == name


def test_the_experiment_names_a_tensor_in_which_the_rivals_differ():
    port = port_of(exact(micro(60), "hidden=pre"), noise=1e-3)
    report = diagnose_dump(micro(60), port)
    assert report.verdict == "found"
    assert "differs most" in report.experiment


def test_every_hypothesis_has_its_own_id_and_says_what_it_is():
    hypotheses = list_hypotheses(micro(60))
    assert len({h.id for h in hypotheses}) == len(hypotheses)
    assert all(h.title and h.mechanism for h in hypotheses)
    assert {id for id, f in FAULTS.items() if is_possible(f, micro(60))} <= {h.id for h in hypotheses}


def test_distance_is_0_for_equal_2_for_unrelated_and_4_for_opposite_values():
    a = np.asarray([[1.0, 2.0], [3.0, 4.0]])
    assert distance(a, a) == 0
    assert distance(a, -a) == 4
    assert distance(np.asarray([1.0, 0.0]), np.asarray([0.0, 1.0])) == 2
    assert distance(a[1:], a) == 0
    assert distance(a, a[1:]) == pytest.approx(1.0)  # half of the port's rows are not explained
    assert distance(a, np.zeros(3)) is None
    assert distance(np.asarray([np.nan, 1.0]), np.asarray([2.0, 1.0])) == 4
    assert distance(np.asarray([np.nan, 1.0]), np.asarray([np.nan, 1.0])) == 0


def write_port(path, tensors, ids=IDS):
    items = [] if ids is None else [("tokens", "I32", (len(ids),), np.asarray(ids, np.int32))]
    items += [(name, "F32", array.shape, array) for name, array in tensors.items()]
    write_gguf(path, [("general.architecture", "port", "str")], items)


def run(capsys, *args):
    code = main(["diagnose", *map(str, args)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_line_prints_text_or_json(tmp_path, capsys):
    path = tmp_path / "port.gguf"
    core = micro(60)
    dump.write_dump(path, core, IDS, dump.record(inject(core, FAULTS["G1-concat-swapped"]), IDS, "mtp_").tensors)
    model = "tests/data/micro/micro-60-q8_0.gguf"
    code, out, _ = run(capsys, "--dump", path, "-m", model)
    assert code == 1
    assert out.startswith("FOUND: one of ")
    code, out, _ = run(capsys, "--dump", path, "-m", model, "--json")
    assert json.loads(out)["causes"][0]["ids"] == ["concat=he", "G1-concat-swapped"]


@pytest.mark.parametrize(
    "case",
    ["nothing", "no tensors", "no tokens", "other tokens", "bad id", "strange names", "shapes", "no file", "ids"],
)
def test_hostile_dumps_end_in_one_line(case, tmp_path, capsys):
    path = tmp_path / "port.gguf"
    tensors = {"mtp_eh_proj-4": np.ones((2, 3), np.float32)}
    args = ["--dump", path, "-m", "tests/data/micro/micro-60-q8_0.gguf"]
    if case == "no tensors":
        write_port(path, {})
    elif case == "no tokens":
        write_port(path, tensors, None)
    elif case == "bad id":
        write_port(path, tensors, [1, 10**9])
    elif case == "strange names":
        write_port(path, {"x": np.ones(3, np.float32)})
    elif case == "nothing":
        args = args[2:]
    elif case != "no file":
        write_port(path, tensors)
    args += {"other tokens": ["--ids", "1,2"], "ids": ["--ids", "1,x"]}.get(case, [])
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "")
    assert err.startswith("mtpref diagnose: error: ")
    assert err.count("\n") == 1


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    path = tmp_path / "port.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(MtprefError):
        read_port(path)
