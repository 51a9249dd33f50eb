"""Every command of README.md runs. (.ci/run runs the two that set up a virtual environment.)"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtpref.front import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(marker):
    found = re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, re.S)
    assert found, f"README.md has no block marked {marker}"
    return found.group(1)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    (folder / "mtpref" / "data").mkdir(parents=True)
    (folder / "docs").mkdir()
    for name in ("mtpref/data/tiny.gguf", "README.md", "docs/glossary.md"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "golden", folder / "golden")
    return folder


def run(command, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_every_command_succeeds(workplace, monkeypatch, capfd):
    """In this process; that the program starts on its own is test_cli.py's."""
    monkeypatch.chdir(workplace)
    for line in block("commands").strip().splitlines():
        words = shlex.split(line)
        assert words[0] == "mtpref"
        code = cli.main(words[1:])
        out, err = capfd.readouterr()
        assert code == 0, f"{line}\n{err}"
        assert out or words[1] == "dump"


def test_the_library_example_runs(workplace):
    done = run([sys.executable, "-c", block("library")], workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_transcript_page_is_what_the_embedded_model_writes():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import write_transcript
    finally:
        sys.path.pop(0)
    page = (ROOT / "docs" / "transcript.md").read_text(encoding="utf-8")
    assert page == write_transcript.render(), "run: python tools/write_transcript.py"


def test_the_sample_is_what_the_first_command_prints(capfd):
    assert cli.main(["generate"]) == 0
    out, err = capfd.readouterr()
    for line in block("sample").strip().splitlines():
        beginning = line.removesuffix("...").rstrip("; ")
        assert any(own.startswith(beginning) for own in err.splitlines()), line
        assert line.endswith("...") or line in err.splitlines(), line
    assert out.split() == block("sample-text").split()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_setup_commands_are_one_line_each():
    for marker in ("run-generate", "run-tests"):
        assert len(block(marker).strip().splitlines()) == 1


def test_the_number_of_rules_is_the_specifications():
    """Numbers rise; some between are free."""
    rules = [int(n) for n in re.findall(r"(?m)^#+ S(\d+) ", (ROOT / "docs" / "spec.md").read_text("utf-8"))]
    assert rules == sorted(set(rules))
    last = rules[-1]
    guide = (ROOT / "docs" / "reading-guide.md").read_text("utf-8")
    assert f"[{len(rules)} numbered rules](docs/spec.md)" in README
    assert f"[the specification](docs/spec.md), S1 to S{last};" in README
    assert f"the rules S1 to S{last} as functions" in guide
    assert f"A rule has a number, S1 to S{last}." in guide


def test_the_number_of_faults_is_the_catalogues():
    page = (ROOT / "docs" / "faults.md").read_text("utf-8")
    count = re.search(r"(?m)^(\d+) faults, ", page)
    assert f"[{count[1]} faults](docs/faults.md)" in README
