"""llama.cpp's programs: found, run, refused; logs that lose their tail are run again. Live with MTPREF_LLAMA_CPP."""

import os
import stat
import sys
from pathlib import Path

import pytest

from mtpref.base.errors import MtprefError
from mtpref.front.api import tiny_path
from mtpref.front.cli import main
from mtpref.look.llama_cpp.programs import Programs, run_to_statistics

RAW = (Path(__file__).parent / "data" / "llama_cpp" / "micro-60-f32.raw.log").read_text()


def program(folder, name, code):
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport sys, pathlib\nhere = pathlib.Path({str(folder)!r})\n{code}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


@pytest.mark.parametrize("below", [".", "bin", "build/bin"])
def test_programs_are_found_where_builds_put_them(below, tmp_path):
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    program(folder, "llama-tokenize", "print('loading'); print('[1, 2, 3]')")
    assert Programs(tmp_path).tokenize(Path("m.gguf"), "text") == [1, 2, 3]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("sys.stderr.write('no such model\\n'); sys.exit(3)", "ended with 3: no such model"),
        ("print('ids: 1 2')", "expected a list of ids"),
        ("print('[1, \"a\"]')", "expected a list of ids"),
        ("import time; time.sleep(60)", "more than 1 s"),
    ],
)
def test_a_program_that_fails_is_one_line(code, words, tmp_path):
    program(tmp_path, "llama-tokenize", code)
    with pytest.raises(MtprefError, match=words):
        Programs(tmp_path, timeout_s=1 if "sleep" in code else 60).tokenize(Path("m.gguf"), "text")


def test_what_is_no_program_is_one_line(tmp_path):
    (tmp_path / "llama-tokenize").write_text("text")
    with pytest.raises(MtprefError, match="cannot be run"):
        Programs(tmp_path).tokenize(Path("m.gguf"), "text")


LOSES_TAIL = """
count = here / 'count'
n = int(count.read_text()) if count.exists() else 0
count.write_text(str(n + 1))
log = (here / 'log').read_text()
sys.stderr.write(log if n >= N else log[: len(log) * (n + 1) // 40])
"""


def test_a_log_that_lost_its_tail_is_run_again(tmp_path):
    (tmp_path / "log").write_text(RAW)
    program(tmp_path, "llama-speculative-simple", LOSES_TAIL.replace("N else", "2 else"))
    log = Programs(tmp_path).speculative(Path("m.gguf"), "x", 8, 3, 0.0)
    assert (tmp_path / "count").read_text() == "3"
    assert log.is_complete


def test_of_logs_without_an_end_the_longest_is_given(tmp_path):
    (tmp_path / "log").write_text(RAW)
    program(tmp_path, "llama-speculative-simple", LOSES_TAIL.replace("N else", "99 else"))
    log = Programs(tmp_path).speculative(Path("m.gguf"), "x", 8, 3, 0.0)
    assert (tmp_path / "count").read_text() == "3"
    assert not log.is_complete
    with pytest.raises(MtprefError, match="no statistics line"):
        run_to_statistics([str(tmp_path / "llama-speculative-simple")])


def test_a_live_llama_cpp_agrees_with_the_tiny_model(capsys):
    root = os.environ.get("MTPREF_LLAMA_CPP")
    if not root:
        pytest.skip("set MTPREF_LLAMA_CPP=DIR to a llama.cpp tree that was built in DIR/build")
    names = [part for what in ("tokens", "logits", "drafts") for part in ("--only", f"llama.cpp {what}")]
    argv = ["selftest", "-m", str(tiny_path()), "--quick", "--llama-bin", str(Path(root) / "build" / "bin"), *names]
    assert main(argv) == 0
    assert "3 passed, 0 failed, 0 skipped" in capsys.readouterr().out
