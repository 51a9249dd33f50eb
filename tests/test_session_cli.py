"""--prompt-cache: what is reused, what is written, and when."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_cli import PROMPT, run_main

ROOT = Path(__file__).parent.parent


def generate(capfdbinary, *argv):
    return run_main(capfdbinary, "generate", "-n", "8", "-c", "256", "--json", *argv)


def test_the_second_run_reuses_the_first_and_prints_the_same(capfdbinary, tmp_path):
    cache = str(tmp_path / "state.gguf")
    code, first, err = generate(capfdbinary, "-p", PROMPT, "--prompt-cache", cache)
    n_prompt = len(json.loads(first)["prompt_ids"])
    assert code == 0
    assert f"prompt cache: 0 of {n_prompt} prompt tokens reused" in err
    assert f"prompt cache: {n_prompt + 7} tokens saved to " in err
    _, again, err = generate(capfdbinary, "-p", PROMPT, "--prompt-cache", cache)
    assert f"prompt cache: {n_prompt - 1} of {n_prompt} prompt tokens reused" in err
    assert f"n_reused  = {n_prompt - 1} of {n_prompt} prompt tokens" in err
    assert json.loads(again)["ids"] == json.loads(first)["ids"]
    longer = PROMPT + json.loads(first)["text"] + "\n    pass"
    _, reused, err = generate(capfdbinary, "-p", longer, "--prompt-cache", cache)
    _, plain, _ = generate(capfdbinary, "-p", longer)
    assert json.loads(reused)["ids"] == json.loads(plain)["ids"]
    assert json.loads(reused)["statistics"]["n_reused"] >= n_prompt - 1


def test_read_only_leaves_the_file_alone(capfdbinary, tmp_path):
    cache = tmp_path / "state.gguf"
    generate(capfdbinary, "-p", PROMPT, "--prompt-cache", str(cache))
    before = cache.read_bytes()
    code, _, err = generate(capfdbinary, "-p", PROMPT + " x", "--prompt-cache", str(cache), "--prompt-cache-ro")
    assert code == 0
    assert "saved" not in err
    assert "prompt tokens reused" in err
    assert cache.read_bytes() == before


def test_an_empty_file_is_a_new_one(capfdbinary, tmp_path):
    cache = tmp_path / "state.gguf"
    cache.touch()
    code, _, _ = generate(capfdbinary, "-p", PROMPT, "--prompt-cache", str(cache))
    assert code == 0
    assert cache.stat().st_size > 1000


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--prompt-cache", "{good}", "--contract", "training"], "expected training, that of this run (--contract)"),
        (["--prompt-cache", "{good}", "-c", "4"], "tokens, expected at most 4"),
        (["--prompt-cache", "{junk}"], "junk"),
        (["--prompt-cache", "{none}", "--prompt-cache-ro"], "is not there, expected a state file"),
        (["--prompt-cache", "/no/such/folder/state"], "cannot be written, expected a writable folder"),
        (["--prompt-cache-ro"], "no file is given"),
        (["--checkpoint-every", "-1"], "--checkpoint-every: -1 is out of range"),
    ],
)
def test_a_cache_that_does_not_fit_is_one_line_and_no_text(capfdbinary, tmp_path, argv, expected):
    paths = {name: str(tmp_path / name) for name in ("good", "junk", "none")}
    generate(capfdbinary, "-p", PROMPT, "--prompt-cache", paths["good"])
    before = Path(paths["good"]).read_bytes()
    Path(paths["junk"]).write_bytes(b"junk" * 99)
    code, out, err = run_main(capfdbinary, "generate", "-p", PROMPT, "-n", "2", *[a.format(**paths) for a in argv])
    assert (code, out) == (2, b"")
    assert expected in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert Path(paths["good"]).read_bytes() == before


def test_an_interrupted_run_saves_what_it_had_and_the_next_one_goes_on(capfdbinary, tmp_path):
    cache = tmp_path / "state.gguf"
    command = [sys.executable, "-m", "mtpref", "generate", "-p", PROMPT, "-n", "-1", "--prompt-cache", str(cache)]
    process = subprocess.Popen(
        [*command, "--ops", "spec"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"tokens saved to" in err
    assert os.listdir(tmp_path) == ["state.gguf"]
    _, again, err_again = run_main(
        capfdbinary, "generate", "-p", PROMPT, "-n", "5", "--json", "--prompt-cache", str(cache)
    )
    _, plain, _ = run_main(capfdbinary, "generate", "-p", PROMPT, "-n", "5", "--json")
    assert json.loads(again)["ids"] == json.loads(plain)["ids"]
    n_prompt = len(json.loads(again)["prompt_ids"])
    assert f"{n_prompt - 1} of {n_prompt} prompt tokens reused" in err_again
