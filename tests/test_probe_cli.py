"""`mtpref probe`: output, plots, and one line for everything that cannot be probed."""

import json
import sys
from pathlib import Path

import pytest

from mtpref.front.cli import main
from tests.head_files import write_pair
from tests.models import MICRO, micro, prompt_of

MODEL = str(MICRO / "micro-60-q8_0.gguf")
RAW = bytes(prompt_of(300, seed=4))  # bytes of every value: no UTF-8
N_TOKENS = len(micro(60).vocab.encode(RAW.decode("utf-8", "surrogateescape")))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.bin"
    path.write_bytes(RAW)
    return str(path)


def refused(capsys, *arguments):
    assert main(["probe", *arguments]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith(("model: ", "compiling "))]
    assert out == ""
    assert len(lines) == 1
    assert lines[0].startswith("mtpref probe: error: ")
    return lines[0]


def test_tables_and_json_of_any_bytes(capsys, text):
    assert main(["probe", "-m", MODEL, "-f", text, "--contracts", "-b", "16"]) == 0
    out, err = capsys.readouterr()
    assert "acceptance by draft position" in out
    assert "contracts, at the same positions" in out
    assert f"{N_TOKENS} tokens" in err
    assert (
        main(["probe", "-m", MODEL, "-f", f"noise={text}", f"noise={text}", text, "--json", "--positions", "10"]) == 0
    )
    record = json.loads(capsys.readouterr().out)
    assert [group["name"] for group in record["domains"]] == ["noise", "text.bin"]
    assert [group["n"] for group in record["domains"]] == [20, 10]
    assert record["settings"]["n_positions"] == 10


def test_a_long_text_is_cut_into_windows(capsys, text):
    assert main(["probe", "-m", MODEL, "-f", text, "-c", "16", "--json", "--no-controls"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert N_TOKENS > 32
    assert record["n_windows"] == -(-N_TOKENS // 16)
    assert record["n_positions"] == N_TOKENS - record["n_windows"]
    assert record["controls"] == []
    assert record["verdict"] is None


@pytest.mark.parametrize(("content", "expected"), [(b"", "0 tokens"), (b"x", "1 token,")])
def test_a_text_without_a_pair_of_tokens_is_one_line(capsys, tmp_path, content, expected):
    path = tmp_path / "short"
    path.write_bytes(content)
    assert expected in refused(capsys, "-m", MODEL, "-f", str(path))


def test_files_that_cannot_be_read_are_one_line(capsys, tmp_path, text):
    assert "No such file" in refused(capsys, "-m", MODEL, "-f", str(tmp_path / "none"))
    assert "a folder, not" in refused(capsys, "-m", MODEL, "-f", str(tmp_path))
    assert "no file can have this name" in refused(capsys, "-m", MODEL, "-f", "a\0b")
    assert "--block: 0" in refused(capsys, "-m", MODEL, "-f", text, "--block", "0")


def test_a_model_without_a_head_is_one_line(capsys, tmp_path, text):
    path, _ = write_pair(Path(MODEL), tmp_path)
    assert "no MTP head" in refused(capsys, "-m", str(path), "-f", text)


def test_a_plot_is_refused_before_anything_runs(capsys, tmp_path, text, monkeypatch):
    assert "expected one of them" in refused(capsys, "-f", text, "--plot", "x.jpg")
    assert "folder does not exist" in refused(capsys, "-f", text, "--plot", str(tmp_path / "no" / "x.png"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in refused(capsys, "-f", text, "--plot", str(tmp_path / "x.png"))


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_plot_is_drawn(capsys, tmp_path, text, ending):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: plot)")
    path = tmp_path / f"x.{ending}"
    assert main(["probe", "-m", MODEL, "-f", text, "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG" if ending == "png" else b"<?xml")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
