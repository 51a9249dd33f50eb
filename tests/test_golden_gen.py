"""Golden vectors of one's own model: mtpref passes what it made, another model is refused, digests refute."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from mtpref.front.api import tiny_path
from mtpref.front.cli import main
from mtpref.golden.digest import digest_difference, digest_of
from tests.models import MICRO
from tests.samples import one_in

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = str(MICRO / "micro-60-q8_0.gguf")


def gen(out, *more):
    return main(["golden", "gen", "-m", MODEL, "-p", "ab", "-p", "hello", "-n", "12", "-o", str(out), *more])


@pytest.mark.parametrize(
    "more", one_in(2, [["--digest"], [], ["--rows=all", "--contract=training"], ["-b", "2", "--rows", "0"]])
)
def test_mtpref_passes_the_vectors_that_it_made(tmp_path, capsys, more):
    assert gen(tmp_path / "g", "--rollbacks", "snapshot,replay,two-phase", *more) == 0
    assert main(["golden", "check", str(tmp_path / "g"), "-m", MODEL, "--ops", "spec"]) == 0
    assert " 0 failed, 0 skipped" in capsys.readouterr().out
    for path in (tmp_path / "g").rglob("*.json"):
        kind = "manifest" if path.name == "manifest.json" else "suite"
        schema = json.loads((GOLDEN / "schemas" / f"{kind}.schema.json").read_text())
        jsonschema.Draft202012Validator(schema).validate(json.loads(path.read_text()))


def test_the_same_bytes_again_and_an_old_folder_is_replaced_whole(tmp_path):
    assert gen(tmp_path / "a") == 0
    assert gen(tmp_path / "b", "-p", "a third") == 0
    assert gen(tmp_path / "b") == 0
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file())
    assert all((tmp_path / "a" / p).read_bytes() == (tmp_path / "b" / p).read_bytes() for p in files)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_an_interrupted_run_leaves_the_old_folder(tmp_path, monkeypatch):
    assert gen(tmp_path / "g") == 0
    before = (tmp_path / "g" / "manifest.json").read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mtpref.golden.gen.manifest", interrupt)
    assert gen(tmp_path / "g", "--digest") == 130
    assert (tmp_path / "g" / "manifest.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["g"]


def test_another_model_is_refused(tmp_path, capsys):
    assert gen(tmp_path / "g") == 0
    capsys.readouterr()
    assert main(["golden", "check", str(tmp_path / "g"), "-m", str(tiny_path())]) == 2
    assert "the vectors were made for" in capsys.readouterr().err
    assert main(["golden", "check", str(tmp_path / "g")]) == 2
    assert "expected it with -m" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tensors", "("], "no regular expression"),
        (["--tensors", "nothing"], "matches no activation"),
        (["--rows", "99"], "out of range"),
        (["--rows", "x"], "no list of numbers"),
        (["--drafts", "-1"], "no list of numbers"),
        (["--rollbacks", "none"], "unknown"),
        (["-b", "0"], "out of range"),
        (["-p", ""], "no tokens"),
        (["-md", MODEL], "name one file"),
        (["--rope-scale", "4"], "do not record them"),
        (["--fault", "G1-concat-swapped"], "fault"),
    ],
)
def test_bad_settings_are_one_line_and_nothing_is_written(tmp_path, capsys, more, message):
    assert gen(tmp_path / "g", *more) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("x")
    assert gen(tmp_path) == 2
    assert "holds no golden vectors" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("theirs", ['{"name": "a web page"}', '{"format": "mtpref-golden-1", "models": {}}', "[", "7"])
def test_a_folder_with_a_manifest_of_another_kind_is_left_alone(tmp_path, capsys, theirs):
    (tmp_path / "manifest.json").write_text(theirs)
    (tmp_path / "page.html").write_text("x")
    assert gen(tmp_path) == 2
    assert "holds no golden vectors of golden gen" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "page.html"]


@pytest.mark.parametrize("name", ["notes.txt", "L3-trunk/notes.txt", "link"])
def test_a_file_that_was_put_into_a_golden_folder_is_not_lost(tmp_path, capsys, name):
    assert gen(tmp_path / "g", "-n", "0") == 0
    mine = tmp_path / "g" / name
    mine.symlink_to(tmp_path) if name == "link" else mine.write_text("x")
    capsys.readouterr()
    assert gen(tmp_path / "g", "-n", "0") == 2
    assert f"holds {name}, which golden gen did not write" in capsys.readouterr().err
    assert mine.is_symlink() or mine.read_text() == "x"


def test_digests_pass_within_a_class_and_refute_beyond():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 40)).astype(np.float32)
    digest = digest_of(x)
    assert digest_difference(digest, x, 0.0) is None
    near = x + (1e-5 * rng.standard_normal(x.shape)).astype(np.float32)  # NMSE 1e-10
    assert digest_difference(digest, near, 1e-8) is None
    assert digest_difference(digest, near, 0.0) == "other bytes than the digest's"
    assert "norm" in digest_difference(digest, x * np.float32(1.01), 1e-6)
    assert "value [0]" in digest_difference(digest, x[:, ::-1], 1e-6)
    swapped = x.copy()
    swapped[2] = -x[2]
    assert "sum" in digest_difference(digest, swapped, 1e-6)
    assert "not finite" in digest_difference(digest, x * np.float32(np.nan), 1e-6)
    assert "200" in digest_difference(digest, x[:4], 1e-6)
