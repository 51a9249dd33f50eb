"""tools/mutations.py: every listed edit has one place in this tree, and a small tree shows what is killed by what."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import mutations  # noqa: E402
from mutating import judging, places, recording  # noqa: E402

LIST = places.read_list()
MODULE = """
LIMIT = 3


def kernel(x):
    return x + LIMIT


def wrapper(x):
    return run(kernel, x)


def run(function, x):
    return {}


def doubled(x):
    return x * 2


def unused(x):
    return x - 1
"""
TESTS = """
import hashlib
from pathlib import Path

import mtpref


def test_of_kernel():
    assert mtpref.wrapper(1) == 4


def test_of_doubled():
    assert mtpref.doubled(3) == 6


def test_the_source_is_this():
    assert hashlib.sha256(Path(mtpref.__file__).read_bytes()).hexdigest() == "{}"
"""


@pytest.fixture(scope="module")
def modules():
    return places.modules_of(ROOT)


@pytest.mark.parametrize("mutation", LIST, ids=lambda m: m.id)
def test_an_edit_has_one_place_and_makes_other_code(mutation, modules):
    place = places.find(mutation, modules)
    assert place is not None, "the line is gone: give the new one under `others`"
    assert compile(place.after, place.path, "exec") is not None
    assert sum(a != b for a, b in zip(place.before.splitlines(), place.after.splitlines(), strict=True)) == 1


def test_ids_are_unique_and_every_area_has_its_share():
    assert len({m.id for m in LIST}) == len(LIST) >= 60
    areas = {"spec", "ops", "decode", "state", "session", "kernels", "gguf", "convert", "check"}
    assert {m.area for m in LIST} == areas


def small_tree(folder):
    (folder / "mtpref").mkdir(parents=True)
    # What a compiled kernel looks like to coverage: its function is named, and no line of it is seen to run.
    module = MODULE.format("eval('x + LIMIT', {'x': x, 'LIMIT': LIMIT}) if function is kernel else x")
    (folder / "mtpref" / "__init__.py").write_text(module)
    (folder / "tests").mkdir()
    import hashlib

    (folder / "tests" / "test_small.py").write_text(TESTS.format(hashlib.sha256(module.encode()).hexdigest()))
    return folder


@pytest.mark.slow
def test_a_small_tree_is_judged_and_the_judgement_goes_on_where_it_ended(tmp_path, capsys):
    tree, work, target = small_tree(tmp_path / "tree"), tmp_path / "work", tmp_path / "results.jsonl"
    edits = [
        places.Mutation("spec-killed", "doubled", (("x * 2", "x * 3"),)),
        places.Mutation("spec-a-constant", "", (("LIMIT = 3", "LIMIT = 4"),)),
        places.Mutation("spec-equal", "doubled", (("x * 2", "x + x"),)),
        places.Mutation("spec-nobody-looks", "unused", (("x - 1", "x - 2"),)),
        places.Mutation("spec-gone", "doubled", (("x * 7", "x"),)),
        places.Mutation("spec-as-it-was-called", "doubled", (("x * 7", "x"), ("x * 2", "2"))),
    ]
    recorded = recording.record(tree, work, ["tests/test_*.py"])
    prefix = "tests/test_small.py::test_"
    assert recorded.left_out == [f"{prefix}the_source_is_this"]
    judging.judge_all(edits[:1], tree, "a", work, recorded, target)
    judging.judge_all(edits, tree, "a", work, recorded, target)
    results = {r.id.removeprefix("spec-"): r for r in judging.read_results(target)}
    assert len(target.read_text().splitlines()) == len(edits)
    assert (results["killed"].by, results["killed"].n_covering) == (f"{prefix}of_doubled", 1)
    assert (results["a-constant"].by, results["a-constant"].stage) == (f"{prefix}of_kernel", "covering")
    assert (results["equal"].verdict, results["equal"].n_covering) == ("lived", 1)
    assert (results["nobody-looks"].verdict, results["nobody-looks"].n_covering) == ("lived", 0)
    assert results["gone"].verdict == "gone"
    assert results["as-it-was-called"].by == f"{prefix}of_doubled"
    shown = mutations.table(list(results.values()), ["a", "b"], edits)
    assert "| spec-killed | test_small.py::test_of_doubled | not run |" in shown
    assert "| spec-equal | **lived** | not run |" in shown
    assert "a: 3 killed, 2 lived, 1 gone, 0 not run." in shown
    assert not (work / "numba" / "mtpref").exists()


def test_every_area_has_files_that_are_there():
    areas = places.read_areas()
    hashes = areas.pop("hashes")
    assert set(areas) == {m.area for m in LIST}
    for name in (f"tests/{name}.py" for names in areas.values() for name in names):
        assert (ROOT / name).exists()
    for file, _, test in (id.partition("::") for id in hashes):
        assert f"def {test}(" in (ROOT / file).read_text()


@pytest.mark.slow
def test_a_tree_is_judged_by_the_files_of_an_area_and_then_by_all(tmp_path):
    tree, work, target = small_tree(tmp_path / "tree"), tmp_path / "work", tmp_path / "results.jsonl"
    other = "import mtpref\n\n\ndef test_of_unused():\n    assert mtpref.unused(1) == 0\n"
    (tree / "tests" / "test_other.py").write_text(other)
    edits = [
        places.Mutation("spec-killed", "doubled", (("x * 2", "x * 3"),)),
        places.Mutation("spec-equal", "doubled", (("x * 2", "x + x"),)),
        places.Mutation("spec-elsewhere", "unused", (("x - 1", "x - 2"),)),
    ]
    areas = {"spec": ["test_small", "test_missing"], "hashes": ["tests/test_small.py::test_the_source_is_this"]}
    judged = {}
    for is_whole in (False, True):
        judging.judge_by_area(edits, tree, "a", work, areas, target, is_whole)
        results = judging.read_results(target)
        judged[is_whole] = {r.id.removeprefix("spec-"): (r.verdict, r.stage, r.by) for r in results}
    killed = ("killed", "area", "tests/test_small.py::test_of_doubled")
    assert judged[False] == {"killed": killed, "equal": ("lived", "area", ""), "elsewhere": ("lived", "area", "")}
    elsewhere = ("killed", "whole", "tests/test_other.py::test_of_unused")
    assert judged[True] == {"killed": killed, "equal": ("lived", "whole", ""), "elsewhere": elsewhere}
