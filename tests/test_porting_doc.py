"""docs/porting.md: every command is run.

Those of stock llama.cpp live where MTPREF_LLAMA_CPP names a built tree; without one, what they would have written is
taken from the recordings. Those of the C++ runner are in test_golden_runner.py.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtpref.front.cli import main
from tests.gguf_copy import llama_cpp
from tests.test_golden_runner import SEEDED

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "porting.md").read_text()
DATA = ROOT / "tests" / "data" / "llama_cpp"
BLOCKS = [(kind.strip(), body.splitlines()) for kind, body in re.findall(r"(?ms)^```sh *([^\n]*)\n(.*?)^```$", TEXT)]
RECORDED = {"theirs.txt": "micro-60-f32.eval-callback.txt", "run.log": "micro-60-f32.raw.log"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that looks like the repository's root, to write into."""
    for name in ("golden", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_own(line, capsys):
    line = line.replace('"python -m', f'"{sys.executable} -m')
    code = main(shlex.split(line)[1:])
    out, err = capsys.readouterr()
    assert code == ("sick.jsonl" in line and "diagnose" in line), (line, out[-500:], err)  # 1: a fault is found
    return out


def test_every_block_is_of_a_kind_that_a_test_runs():
    assert {kind for kind, _ in BLOCKS} == {"", "stock llama.cpp", "stock llama.cpp, torch", "g++"}
    assert all(line.startswith("mtpref ") for kind, lines in BLOCKS if not kind for line in lines)


def test_our_own_commands_do_what_the_page_says(folder, capsys):
    for target, recorded in RECORDED.items():
        (folder / target).symlink_to(DATA / recorded)
    said = "".join(run_own(line, capsys) for kind, lines in BLOCKS if not kind for line in lines)
    assert "no tensor differs by more than NMSE 1e-06 (88 compared)" in said
    (result,) = re.findall(r"(?ms)^Result:\n\n```\n(6 of 7 rounds.*?)```", TEXT)
    assert result in said
    assert (folder / "report.html").exists()
    assert "FOUND: A9-sink-forgotten" in said
    printed = [shlex.split(line) for line in said.splitlines() if line.startswith("llama-results")]
    for command in next(lines for kind, lines in BLOCKS if kind and lines[0].startswith("llama-results")):
        assert shlex.split(command) in printed


def run_theirs(line, environment):
    """One line in a shell; its stdout."""
    name = shlex.split(line)[0]
    if name.startswith("llama-"):
        llama_cpp(name)
    elif name == "g++" and shutil.which("g++") is None:
        pytest.skip("no g++ to build docs/dump_cb_eval.cpp with")
    line = line.replace(" python ", f" {sys.executable} ")
    command = ["bash", "-c", line]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (line, done.stdout[-500:], done.stderr[-500:])
    return done.stdout


def test_commands_of_stock_llama_cpp_do_what_the_page_says(folder, capsys):
    programs = llama_cpp("llama-eval-callback").parent
    environment = {**os.environ, "LLAMA": str(programs.parent.parent), "PATH": f"{programs}:{os.environ['PATH']}"}
    has_torch = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    n_ok = 0
    for kind, lines in BLOCKS:
        for line in lines if kind != "g++" else ():
            if line.startswith("mtpref "):
                run_own(line, capsys)
            elif "torch" not in kind:
                n_ok += "OK" in run_theirs(line, environment)
            elif has_torch:
                assert "Lightweight model check successful" in run_theirs(line, environment)
    assert n_ok == 3


def test_the_walk_through_is_one_that_the_runners_tests_make():
    (lines,) = (lines for kind, lines in BLOCKS if kind == "g++")
    (fault,) = re.findall(r"SEEDED_FAULT=(\S+)", " ".join(lines))
    assert SEEDED[fault] == "L5"


def test_links_of_the_page_lead_somewhere():
    heads = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"(?m)^## (.*)$", TEXT)}
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert link[1:] in heads if link.startswith("#") else (ROOT / "docs" / link.partition("#")[0]).exists(), link
