"""Exports of golden vectors: what is read back is what the vectors hold; stock llama.cpp accepts its own files."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mtpref.files.gguf import open_gguf
from mtpref.files.tensor_files import NpzFile, SafetensorsFile
from mtpref.front.cli import main
from mtpref.golden import Folder
from mtpref.golden.export import LLAMA_FLAGS, PROMPTS
from mtpref.look.compare import compare_files, open_source
from tests.gguf_copy import llama_cpp

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "golden"
READERS = {"npz": NpzFile, "safetensors": SafetensorsFile}


def export(form, out, *options):
    assert main(["golden", "export", str(GOLDEN), "--format", form, "-o", str(out), *options]) == 0


def check_index(out):
    index = json.loads((out / "export.json").read_text())
    assert index["format"] == "mtpref-golden-export-1"
    listed = {f["path"]: f for f in index["files"]}
    assert set(listed) == {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} - {"export.json"}
    for path, record in listed.items():
        raw = (out / path).read_bytes()
        assert (record["bytes"], record["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    return index


@pytest.mark.parametrize("form", READERS)
def test_every_tensor_of_every_suite_comes_back_under_its_name(tmp_path, capsys, form):
    export(form, tmp_path)
    index = check_index(tmp_path)
    folder = Folder(GOLDEN)
    suites = list(folder.suites())
    assert len(index["suites"]) == len(suites)
    for suite, path in zip(suites, index["suites"], strict=True):
        data = json.loads((tmp_path / path).read_text())
        assert [case["id"] for case in data["cases"]] == [case.id for case in suite.cases]
        tensors = folder.tensors(suite)
        if not tensors:
            assert "tensors" not in data
            continue
        file = READERS[form]((tmp_path / path).with_name(data["tensors"]))
        assert set(file.names) == set(tensors)
        for name, tensor in tensors.items():
            found = file.values(name)
            if name in data["types"]:
                assert data["types"][name] == {"type": tensor.type_name, "shape": list(tensor.shape)}
                assert found.tobytes() == tensor.raw.tobytes()
            elif tensor.type_name == "F16":
                assert found.tobytes() == tensor.raw.tobytes()
            else:
                assert np.array_equal(found, tensor.values(), equal_nan=True)
                assert found.shape == tensor.shape


def test_a_level_or_a_suite_alone_is_exported(tmp_path, capsys):
    export("npz", tmp_path / "l", "--level", "L4")
    assert all(path.startswith("L4") for path in check_index(tmp_path / "l")["suites"])
    export("npz", tmp_path / "s", "--suite", "rms_norm")
    assert check_index(tmp_path / "s")["suites"] == ["L1-operations/rms_norm.json"]


def test_an_export_is_the_same_bytes_again(tmp_path, capsys):
    for out in ("a", "b"):
        export("safetensors", tmp_path / out, "--level", "L1")
    assert (tmp_path / "a" / "export.json").read_bytes() == (tmp_path / "b" / "export.json").read_bytes()


def test_results_hold_the_trunks_logits_and_the_path_that_llama_results_insists_on(tmp_path, capsys):
    export("llama-results", tmp_path)
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == len(PROMPTS)
    path = tmp_path / "micro-60-f32-3.gguf"
    with open_gguf(path) as file:
        assert file.get("path_model") == str(GOLDEN / "models" / "micro-60-f32.gguf")
        assert file.tensors["logits"].ne == (2, 256)
    check_index(tmp_path)
    recorded = ROOT / "tests" / "data" / "llama_cpp" / "llamacpp-micro-60-f32.bin"
    comparison = compare_files(path, recorded)
    assert comparison.first_divergence is None
    assert [d.name for d in comparison.differences] == ["tokens", "result_output"]


def test_bin_files_have_the_names_and_values_that_model_conversion_looks_for(tmp_path, capsys):
    export("bin", tmp_path, "-p", "abcdef")
    data = tmp_path / "micro-60-f32-1" / "data"
    stem = "pytorch-micro-60-f32"
    assert {p.name for p in data.iterdir()} == {
        f"{stem}.bin",
        f"{stem}.txt",
        f"{stem}-tokens.bin",
        f"{stem}-prompt.txt",
    }
    logits = np.fromfile(data / f"{stem}.bin", np.float32)
    assert np.fromfile(data / f"{stem}-tokens.bin", np.int32).tolist() == [99, 102]
    text = [float(line.split(": ")[1]) for line in (data / f"{stem}.txt").read_text().splitlines()]
    assert np.allclose(text, logits, rtol=1e-5)
    assert (data / f"{stem}-prompt.txt").read_text() == "prompt: abcdef\nn_tokens: 2\ntoken ids: 99, 102\n"
    recorded = ROOT / "tests" / "data" / "llama_cpp" / "llamacpp-micro-60-f32.bin"
    assert compare_files(data / f"{stem}.bin", recorded).first_divergence is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--format", "npz", "--suite", "nonsense"], "no suite matches"),
        (["--format", "npz", "-p", "x"], "expected a prompt only for"),
        (["--format", "bin", "--level", "L1"], "holds logits of prompts"),
        (["--format", "llama-results", "-p", ""], "a prompt without tokens"),
    ],
)
def test_bad_use_ends_in_one_line(tmp_path, capsys, options, reason):
    assert main(["golden", "export", str(GOLDEN), *options, "-o", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert reason in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_vectors_themselves_are_never_overwritten(tmp_path, capsys):
    before = (GOLDEN / "L1-operations" / "rms_norm.json").read_bytes()
    assert main(["golden", "export", str(GOLDEN), "--format", "npz", "-o", str(GOLDEN / "models" / "..")]) == 2
    assert "choose another" in capsys.readouterr().err
    assert (GOLDEN / "L1-operations" / "rms_norm.json").read_bytes() == before


def test_a_manifest_cannot_name_a_file_outside(tmp_path, capsys):
    shutil.copytree(GOLDEN / "L1-operations", tmp_path / "g" / "x")
    raw = (tmp_path / "g" / "x" / "draw.json").read_bytes()
    (tmp_path / "evil.json").write_bytes(raw)
    manifest = {"format": "mtpref-golden-1", "classes": {},
                "suites": [{"path": "../evil.json", "suite": "draw", "level": "L1"}],
                "files": [{"path": "../evil.json", "sha256": hashlib.sha256(raw).hexdigest()}]}  # fmt: skip
    (tmp_path / "g" / "manifest.json").write_text(json.dumps(manifest))
    assert main(["golden", "export", str(tmp_path / "g"), "--format", "npz", "-o", str(tmp_path / "out")]) == 2
    assert "expected a path inside the folder" in capsys.readouterr().err


# --------------------------------------------------------------------- with a built llama.cpp, optional


def llama(program, *arguments, cwd):
    """A finished run of one of its programs."""
    command = [str(llama_cpp(program)), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace", timeout=60, check=False)


def test_llama_results_accepts_the_exported_files(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["golden", "export", "golden", "--format", "llama-results", "-o", str(tmp_path)]) == 0
    capsys.readouterr()
    for k, prompt in enumerate(PROMPTS, 1):
        flags = ["-m", "golden/models/micro-60-f32.gguf", "-o", str(tmp_path / f"micro-60-f32-{k}.gguf"), "-p", prompt]
        done = llama("llama-results", *flags, *LLAMA_FLAGS.split(), "--check", cwd=ROOT)
        assert done.returncode == 0, done.stderr[-500:]
        assert "OK" in done.stdout


def test_llama_debugs_logits_agree_with_the_exported_ones(tmp_path, capsys):
    export("bin", tmp_path, "-p", "abcdef")
    data = tmp_path / "micro-60-f32-1" / "data"
    llama("llama-debug", "-m", str(GOLDEN / "models" / "micro-60-f32.gguf"), "-p", "abcdef", *LLAMA_FLAGS.split(),
          "--save-logits", "--logits-output-dir", str(data), cwd=tmp_path)  # fmt: skip
    found = compare_files(data / "pytorch-micro-60-f32.bin", data / "llamacpp-micro-60-f32.bin")
    assert found.first_divergence is None
    assert len(found.differences) == 2


def test_live_text_of_llama_eval_callback_agrees_with_a_dump(tmp_path, capsys):
    model, prompt = str(GOLDEN / "models" / "micro-60-f32.gguf"), "0123456789 and more text"
    done = llama("llama-eval-callback", "-m", model, "-p", prompt, "-n", "1", *LLAMA_FLAGS.split(), cwd=tmp_path)
    (tmp_path / "theirs.txt").write_text(done.stdout)
    assert (
        main(["dump", "-m", model, "-p", prompt, "-ctk", "f32", "-ctv", "f32", "-o", str(tmp_path / "ours.gguf")]) == 0
    )
    found = compare_files(tmp_path / "ours.gguf", tmp_path / "theirs.txt")
    assert found.first_divergence is None
    assert len(found.differences) > 60
    with open_source(tmp_path / "theirs.txt") as source:
        assert source.kind == "printed"


def test_live_log_of_llama_speculative_simple_agrees_with_our_run(tmp_path, capsys):
    model, prompt = str(GOLDEN / "models" / "micro-60-f32.gguf"), "def main(argv): return 0"
    flags = [
        "-n",
        "32",
        "--spec-draft-n-max",
        "3",
        "--spec-type",
        "draft-mtp",
        "--temp",
        "0",
        "--top-k",
        "1",
        "-lv",
        "5",
    ]
    flags = ["-m", model, "-p", prompt, *flags, "-ctkd", "f32", "-ctvd", "f32", *LLAMA_FLAGS.split()]
    done = llama("llama-speculative-simple", *flags, cwd=tmp_path)
    (tmp_path / "run.log").write_text(done.stderr)
    kv = [part for flag in ("-ctk", "-ctv", "-ctkd", "-ctvd") for part in (flag, "f32")]
    assert main(["compare-log", "-m", model, "-p", prompt, *kv, str(tmp_path / "run.log")]) == 0
    assert "no event differs" in capsys.readouterr().out
