"""The golden vectors: mtpref passes them, regeneration gives the same bytes, damaged folders are refused."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import open_gguf
from mtpref.front.cli import main
from mtpref.golden import Folder, Port, check_folder, loops
from mtpref.golden.format import CLASSES, sha256_of
from mtpref.golden.gen import tensors_sha256
from mtpref.golden.sources import source_sha256

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "golden"
sys.path.insert(0, str(ROOT / "tools"))
import make_golden  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def _long_hashes_once():
    """The hashes over 100,000 cases take seconds; the check asks for the same ones as the regeneration."""
    known, answer = {}, loops.MODELLESS_ANSWERS["accumulated"]

    @functools.wraps(answer)  # the hash of its sources goes by its name
    def accumulated(recipe, params, inputs):
        key = (recipe.steps, json.dumps(params, sort_keys=True))
        if key not in known:
            known[key] = answer(recipe, params, inputs)
        return known[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(loops.MODELLESS_ANSWERS, "accumulated", accumulated)
        yield


# All of L5 is run by the README's `mtpref golden check` (test_readme.py).
@pytest.mark.parametrize(
    "level", [pytest.param(level, marks=pytest.mark.slow if level == "L5" else ()) for level in make_golden.MAKERS]
)
def test_every_case_passes(level):
    results = list(check_folder(Folder(GOLDEN), Port(GOLDEN, use_kernels=True), level=level))
    assert not [(r.case.id, r.wrong) for r in results if r.verdict != "PASS"]
    assert results


# Loops and texts have the same bits with kernels and without: test_api.py and test_decode_properties.py hold that.
@pytest.mark.parametrize(
    "level", ["L0", "L1", "L2", *(pytest.param(level, marks=pytest.mark.slow) for level in ("L3", "L4"))]
)
def test_every_case_below_the_loop_passes_without_kernels(level):
    results = list(check_folder(Folder(GOLDEN), Port(GOLDEN, use_kernels=False), level=level))
    assert results
    assert not [(r.case.id, r.wrong) for r in results if r.verdict != "PASS"]


# What is below the loop, the next test but some makes whole, without kernels: what makes it uses none. L5 is made of
# what L3, L4 and L6 are, and every case of it is run by the README's command.
@pytest.mark.parametrize("levels", [("L6",), pytest.param(tuple(make_golden.MAKERS), marks=pytest.mark.slow)])
def test_regeneration_gives_the_same_bytes(tmp_path, levels):
    shutil.copy(GOLDEN / "VERSION", tmp_path)
    shutil.copytree(GOLDEN / "models", tmp_path / "models")
    make_golden.make(tmp_path, levels)
    ours, theirs = (json.loads((folder / "manifest.json").read_text()) for folder in (tmp_path, GOLDEN))
    if levels != tuple(make_golden.MAKERS):
        for part in ("files", "suites"):
            theirs[part] = [record for record in theirs[part] if record["path"].startswith((*levels, "models"))]
    assert ours == theirs
    assert {record["level"] for record in ours["suites"]} == set(levels)


def test_the_manifest_belongs_to_these_sources():
    for record in Folder(GOLDEN).suite_records():
        assert record["source_sha256"] == source_sha256(record["op"]), record["suite"]
    assert Folder(GOLDEN).classes == CLASSES


def test_every_file_is_in_the_manifest_with_its_hash_and_every_tensor_is_used():
    folder = Folder(GOLDEN)
    for path in folder.files:
        folder.verify(path)
    for suite in folder.suites():
        used = {name for case in suite.cases for name in case.inputs.values()}
        used |= {out.tensor for case in suite.cases for out in case.expected if out.tensor}
        assert set(folder.tensors(suite)) == used, suite.name


def test_case_ids_are_unique_and_belong_to_their_suite():
    ids = [case.id for suite in Folder(GOLDEN).suites() for case in suite.cases]
    assert len(ids) == len(set(ids))
    for suite in Folder(GOLDEN).suites():
        assert all(case.id.startswith(f"{suite.name}/") for case in suite.cases)


@pytest.mark.parametrize("path", sorted(p.relative_to(GOLDEN).as_posix() for p in GOLDEN.glob("L*/*.json")))
def test_suites_fit_their_schema(path):
    schema = json.loads((GOLDEN / "schemas" / "suite.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(json.loads((GOLDEN / path).read_text()))


def test_the_manifest_fits_its_schema():
    schema = json.loads((GOLDEN / "schemas" / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(json.loads((GOLDEN / "manifest.json").read_text()))


def test_a_wrong_answer_fails_and_says_where():
    def wrong(suite, case, inputs):
        given = Port(GOLDEN, use_kernels=False)(suite, case, inputs)
        return {name: -np.asarray(x) for name, x in given.items()}

    results = list(check_folder(Folder(GOLDEN), wrong, suite="rms_norm"))
    assert {r.verdict for r in results if not r.case.id.endswith("zero_row")} == {"FAIL"}
    assert results[0].wrong[0].output == "y"
    assert "NMSE" in results[0].wrong[0].reason


def test_hex_floats_are_compared_by_value():
    folder = Folder(GOLDEN)

    def rewritten(change):
        def answers(suite, case, inputs):
            return {"u": [change(u) for u in Port(GOLDEN)(suite, case, inputs)["u"]]}

        return [r.verdict for r in check_folder(folder, answers, suite="uniform")]

    assert set(rewritten(lambda u: u.replace("p", "00p").upper().replace("0X", "0x"))) == {"PASS"}
    assert set(rewritten(lambda u: "-" + u)) == {"FAIL"}
    assert set(rewritten(lambda u: "0xno")) == {"FAIL"}


def test_an_answer_that_lacks_an_output_fails_and_no_answer_skips():
    folder = Folder(GOLDEN)
    assert {r.verdict for r in check_folder(folder, lambda *_: {}, suite="swiglu")} == {"FAIL"}
    assert {r.verdict for r in check_folder(folder, lambda *_: None, suite="swiglu")} == {"SKIP"}


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "g", ignore=shutil.ignore_patterns("runners", "models"))
    return tmp_path / "g"


def refused(copy):
    with pytest.raises(MtprefError) as error:
        list(check_folder(Folder(copy), Port(GOLDEN, use_kernels=False), suite="rms_norm"))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_damaged_folders_are_refused_with_one_line(copy):
    suite = copy / "L1-operations" / "rms_norm.json"
    text = suite.read_text()
    suite.write_text(text.replace("basic", "Basic", 1))
    assert "SHA-256" in refused(copy)
    suite.unlink()
    assert "cannot be read" in refused(copy)
    manifest = copy / "manifest.json"
    for damage, message in (
        ("", "no JSON"),
        ("[1]", "expected an object"),
        ('{"format": "x"}', "format x"),
        ('{"format": "mtpref-golden-1"}', "files is null, expected a list"),
        ("[" * 100000, "nested more than 32 deep"),
    ):
        manifest.write_text(damage)
        assert message in refused(copy)


def test_a_suite_that_lacks_a_field_is_refused(copy):
    suite = copy / "L1-operations" / "rms_norm.json"
    data = json.loads(suite.read_text())
    del data["cases"][0]["params"]
    suite.write_text(json.dumps(data))
    manifest = json.loads((copy / "manifest.json").read_text())
    for record in manifest["files"]:
        if record["path"] == "L1-operations/rms_norm.json":
            record["sha256"] = sha256_of(suite)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "no suite of mtpref-golden-1" in refused(copy)


def test_derived_models_have_the_hashes_of_the_manifest(tmp_path):
    hashes = json.loads((GOLDEN / "manifest.json").read_text())["models"]
    for name, wanted in hashes.items():
        assert main(["golden", "derive", name, "-o", str(tmp_path / name)]) == 0
        with open_gguf(tmp_path / name) as file:
            assert tensors_sha256(file) == wanted
    assert main(["golden", "derive", "tiny-q9", "-o", str(tmp_path / "x")]) == 2


def test_regeneration_without_jit_and_without_numpys_vector_code_gives_the_same_bytes(tmp_path):
    """Levels that need the oracle and the specification only."""
    shutil.copy(GOLDEN / "VERSION", tmp_path)
    shutil.copytree(GOLDEN / "models", tmp_path / "models")
    levels = [word for level in ("L0", "L1", "L2", "L3", "L4") for word in ("--level", level)]
    env = os.environ | {"NUMBA_DISABLE_JIT": "1", "NPY_DISABLE_CPU_FEATURES": " ".join(__cpu_dispatch__)}
    command = [sys.executable, str(ROOT / "tools" / "make_golden.py"), "-o", str(tmp_path), *levels]
    subprocess.run(command, env=env, check=True, capture_output=True)
    ours = json.loads((tmp_path / "manifest.json").read_text())["files"]
    theirs = json.loads((GOLDEN / "manifest.json").read_text())["files"]
    assert len(ours) > 40
    assert ours == [record for record in theirs if record["path"][:2] not in ("L5", "L6")]
