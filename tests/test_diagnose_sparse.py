"""Diagnosis of ports with an indexer, with compressed rows and with residual streams: healthy ones, stock llama.cpp's
among them, are healthy; mistakes are named; and each verb once on files of these architectures."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtpref.engine.model import Model, load
from mtpref.engine.recipe import make_recipe
from mtpref.faults import FAULTS, inject
from mtpref.faults.diagnose import PortTensors, Report, diagnose_dump, diagnose_log, diagnose_stats, read_port_runs
from mtpref.front.cli import main
from mtpref.look.dump import record
from tests.micro_moe import standard
from tests.models import prompt_of
from tests.test_diagnose_moe import run_of
from tests.test_faults_sparse import FILES, WHERE

DATA = Path(__file__).parent / "data" / "llama_cpp"
F32 = [part for flag in ("-ctk", "-ctv", "-ctkd", "-ctvd") for part in (flag, "f32")]
NAMES = ("deepseek32", "glm-dsa", "deepseek4, two files")
PROMPT = "Each of its words is a token of a vocabulary that no one has written down"
CHAIN = "H3b-chain-after-head"  # no dump shows it


def model(name: str, numerics: str = "ggml") -> Model:
    trunk, *head = map(standard, FILES[name])
    return load(trunk, make_recipe(numerics), model_draft=head[0] if head else None)


def dumped(name: str, id: str | None) -> Report:
    """A port in the other numerics with 1e-3 of noise."""
    port = model(name, "exact") if id is None else inject(model(name, "exact"), FAULTS[id])
    ids, random = prompt_of(36, 5), np.random.default_rng(5)
    tensors = {
        name: array * (1 + 1e-3 * random.standard_normal(array.shape)).astype(np.float32)
        for name, array in record(port, ids, ".").tensors.items()
        if array.dtype == np.float32
    }
    return diagnose_dump(model(name), PortTensors("port", ids, tensors))


FIRST = [("glm-dsa", "A8b-first-choice-shared"),
         ("deepseek4, two files", "H3-hidden-after-head")]  # fmt: skip
SICK = [(name, id) for id in WHERE for name in NAMES if name in WHERE[id][0] and not FAULTS[id].is_look_alike]
SLOW = [pytest.param(*pair, marks=pytest.mark.slow) for pair in SICK if pair not in FIRST]


@pytest.mark.parametrize("name", ["deepseek32", *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES[1:])])
def test_a_healthy_dump_is_healthy(name):
    assert dumped(name, None).verdict == "healthy"


@pytest.mark.parametrize(("name", "id"), [*FIRST, *SLOW])
def test_a_dump_names_the_mistake(name, id):
    report = dumped(name, id)
    if id == CHAIN:
        assert (report.verdict, id in report.invisible) == ("healthy", True)
        return
    assert report.verdict == "found", report.headline
    assert id in report.causes[0].ids, report.headline


@pytest.mark.parametrize("name", ["deepseek32", pytest.param("glm-dsa", marks=pytest.mark.slow)])
def test_an_indexer_without_its_rotation_is_no_mistake(name):
    report = dumped(name, "L16-indexer-unrotated")
    assert (report.verdict, report.causes[0].ids) == ("healthy", ["L16-indexer-unrotated"])


LOGGED = [
    pair for pair in SICK if pair[0] == "glm-dsa" or pair[1] in (CHAIN, "A9-sink-forgotten", "H1b-streams-interleaved")
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "id"), LOGGED)
def test_a_run_is_never_called_healthy_where_the_mistake_shows(name, id):
    """Where a fault changes tokens or p enough, it or one that cannot be told from it is named."""
    report = diagnose_log(model(name), [run_of(inject(model(name), FAULTS[id]), "deepseek2", 16)])
    if id in report.invisible:
        return
    assert report.verdict != "healthy", report.headline
    assert report.verdict != "found" or id in report.causes[0].ids, report.headline


@pytest.mark.parametrize("name", ["glm-dsa", "deepseek4"])
def test_rates_are_judged_by_faults_that_the_model_can_have(name):
    report = diagnose_stats([0.1, 0.02], model=model(name))
    asked = {id for cause in report.causes for id in cause.ids} | {*report.invisible}
    assert asked & {id for id, (names, _) in WHERE.items() if name in names}
    assert not asked & {id for id, (names, _) in WHERE.items() if name not in names}
    assert report.verdict == "found"


# --------------------------------------------------------------------------------------------------- stock llama.cpp

STREAMS = {
    "micro-deepseek4-f32": ("micro-deepseek4-f32",),
    "micro-deepseek4-own-f32": ("micro-deepseek4-own-f32",),
    "micro-deepseek4-q8_0": ("micro-deepseek4-q8_0",),
    "micro-deepseek4-two-files-f32": FILES["deepseek4, two files"],
}
CELLS = [f"micro-{name}" for name in ("deepseek32-f32", "deepseek32-yarn-f32", "deepseek32-q8_0", "glm-dsa-f32",
                                      "glm-dsa-yarn-f32", "glm-dsa-q8_0")]  # fmt: skip


def stock(name: str, folder: Path) -> Path:
    """A recording as the log of an engine."""
    path = folder / f"{name}.log"
    path.write_bytes(
        gzip.decompress((DATA / ("streams" if name in STREAMS else "moe") / f"{name}.log.gz").read_bytes())
    )
    return path


def cut(path: Path, n_rounds: int) -> list:
    run = next(run for run in read_port_runs(path, which="all") if len(run.rounds) >= n_rounds)
    return [replace(run, rounds=run.rounds[:n_rounds])]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STREAMS, *CELLS])
def test_a_stock_log_is_healthy(name, tmp_path):
    trunk, *head = map(standard, STREAMS.get(name, (name,)))
    own = load(trunk, kv_type="F32", kv_type_draft="F32", model_draft=head[0] if head else None)
    report = diagnose_log(own, cut(stock(name, tmp_path), 6 if name in STREAMS else 12))
    assert report.verdict == "healthy", report.headline


# ------------------------------------------------------------------------------------------------- the command line


def files_of(name: str) -> list[str]:
    return [part for pair in zip(("-m", "-md"), map(standard, FILES[name]), strict=False) for part in map(str, pair)]


@pytest.mark.parametrize(
    ("name", "recording"),
    [("deepseek4, two files", "micro-deepseek4-two-files-f32"), ("glm-dsa", "micro-glm-dsa-f32")],
)
def test_compare_log_follows_a_stock_log(name, recording, capsys):
    path = DATA / ("streams" if recording in STREAMS else "moe") / f"{recording}.log.gz"
    arguments = ["compare-log", *files_of(name), *F32, "--json", "--run", "1", str(path)]
    assert main(arguments) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["differences"] == []
    assert answer["n_tokens"] > 8
    assert main([*arguments, "--fault", "G1"]) == 1


@pytest.mark.parametrize(("name", "id"), [("deepseek4, two files", "H2"), ("glm-dsa", "A5c")])
def test_diagnose_names_the_mistake_of_a_dump_and_says_what_it_is(name, id, tmp_path, capsys):
    path, own = tmp_path / "port.gguf", [*files_of(name), "-p", PROMPT]
    pattern = "^(mtp_|h_nextn|kqv_out|top_k|indexer_q)"
    assert main(["dump", *own, "--numerics", "exact", "--fault", id, "--tensors", pattern, "-o", str(path)]) == 0
    capsys.readouterr()
    assert main(["diagnose", "--dump", str(path), *own, "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["verdict"] == "found"
    assert [one.split("-")[0] for one in answer["causes"][0]["ids"]] == [id]


def test_cells_of_another_type_hide_no_small_mistake():
    """The streams of these models are nearly equal, so that one row for all of them is a small mistake; cells in BF16
    move every tensor of the trunk."""
    name, id = "deepseek4", "H1-hnorm-of-mean"
    trunk = standard(FILES[name][0])
    port = inject(load(trunk, make_recipe("exact"), kv_type="BF16", kv_type_draft="BF16"), FAULTS[id])
    ids, random = prompt_of(36, 5), np.random.default_rng(1)
    tensors = {
        name: array * (1 + 3e-3 * random.standard_normal(array.shape)).astype(np.float32)
        for name, array in record(port, ids, ".").tensors.items()
        if array.dtype == np.float32
    }
    report = diagnose_dump(model(name), PortTensors("port", ids, tensors))
    assert (report.verdict, report.causes[0].ids) == ("found", [id]), report.headline
    assert "and BF16 cells come nearest" in report.evidence[1]
