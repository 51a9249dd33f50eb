"""The command line: what goes where, exit codes, one-line errors."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtpref.front.api import tiny_path
from mtpref.front.cli import main

ROOT = Path(__file__).parent.parent
PROMPT = "Once upon a time"


def run_main(capfdbinary, *argv):
    code = main(list(argv))
    out, err = capfdbinary.readouterr()
    return code, out, err.decode()


def test_stdout_is_the_text_only_and_the_same_with_and_without_mtp(capfdbinary):
    code, with_mtp, err = run_main(capfdbinary, "generate", "-p", PROMPT, "-n", "24")
    assert code == 0
    assert "MTP: on" in err
    for line in ("n_predict = 24", "n_drafted = ", "n_accept  = ", "accept    = ", "acc per pos = ("):
        assert line in err
    code, without, err = run_main(capfdbinary, "generate", "-p", PROMPT, "-n", "24", "--spec-type", "none")
    assert code == 0
    assert "MTP: off, though the file has a head" in err
    assert with_mtp == without
    assert with_mtp


def test_json_is_one_object_whose_ids_and_text_agree(capfdbinary):
    code, out, _ = run_main(capfdbinary, "generate", "-p", PROMPT, "-n", "9", "--json")
    record = json.loads(out)
    assert code == 0
    assert record["schema"] == "mtpref-generate-1"
    assert len(record["ids"]) == record["statistics"]["n_predict"] == 9
    assert record["reason"] == "length"
    _, text, _ = run_main(capfdbinary, "generate", "-p", PROMPT, "-n", "9")
    assert record["text"].encode() == text


def test_a_sampled_text_depends_on_the_seed_and_not_on_drafts(capfdbinary):
    argv = ["generate", "-p", PROMPT, "-n", "16", "--temp", "1.2", "--top-k", "0"]
    code, text, err = run_main(capfdbinary, *argv, "--seed", "5")
    assert code == 0
    assert "sampling: temperature 1.2, top-k 0" in err
    assert "seed 5, accept by match" in err
    for more in (["--spec-type", "none"], ["--spec-rollback", "two-phase", "--spec-draft-n-max", "4"]):
        assert run_main(capfdbinary, *argv, "--seed", "5", *more)[1] == text
    assert run_main(capfdbinary, *argv, "--seed", "6")[1] != text
    _, greedy, err = run_main(capfdbinary, "generate", "-p", PROMPT, "-n", "16", "--top-k", "1")
    assert "sampling:" not in err
    assert run_main(capfdbinary, *argv[:-1], "1", "--seed", "5")[1] == greedy


def test_a_random_seed_is_told_and_can_be_repeated(capfdbinary):
    argv = [
        "generate",
        "-p",
        PROMPT,
        "-n",
        "8",
        "--temp",
        "1.5",
        "--samplers",
        "temp;top_k",
        "--spec-accept",
        "residual",
    ]
    _, text, err = run_main(capfdbinary, *argv, "-s", "-1")
    seed = re.search(r"order temperature;top_k, seed (\d+), accept by residual", err)[1]
    assert run_main(capfdbinary, *argv, "-s", seed)[1] == text


def test_a_stop_string_is_not_printed_and_ends_the_text(capfdbinary):
    _, free, _ = run_main(capfdbinary, "generate", "-p", "The pie was gone.", "-n", "72")
    end = free.index(b"\n\n")
    for stop, more in (("\n\n", []), (r"\n\n", ["-e"])):
        _, text, _ = run_main(
            capfdbinary, "generate", "-p", "The pie was gone.", "-n", "72", "-r", "zz", "-r", stop, *more
        )
        assert text == free[:end]
    _, out, _ = run_main(capfdbinary, "generate", "-p", "The pie was gone.", "-n", "72", "-r", "\n\n", "--json")
    record = json.loads(out)
    assert (record["text"].encode(), record["reason"]) == (free[:end], "stop")


def test_without_a_prompt_the_embedded_model_gets_one_and_says_so(capfdbinary):
    code, out, err = run_main(capfdbinary, "generate", "-n", "3")
    assert code == 0
    assert out
    assert "give your own with -p or -f" in err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["generate", "-p", ""], "prompt: it has no tokens"),
        (["generate", "-m", str(tiny_path())], "prompt: none is given"),
        (["generate", "-p", "x", "-f", "y"], "both are given"),
        (["generate", "-f", "/no/such/file"], "cannot be read"),
        (["generate", "-m", "/no/such/model.gguf", "-p", "x"], "/no/such/model.gguf"),
        (["generate", "-p", "x", "--contract", "hidden=sideways"], "expected one of post, pre"),
        (["generate", "-p", "x", "--contract", "nonsense"], "expected one of llama.cpp, training"),
        (["generate", "-p", "x", "--spec-draft-n-max", "-1"], "--spec-draft-n-max: -1 is out of range"),
        (["generate", "-p", "x", "--spec-draft-n-min", "5"], "is more than --spec-draft-n-max 3"),
        (["generate", "-p", "x", "--spec-draft-p-min", "1.5"], "--spec-draft-p-min: 1.5 is out of range"),
        (["generate", "-p", "x", "--spec-draft-vocab", "0"], "--spec-draft-vocab: 0 is out of range"),
        (["generate", "-p", "x", "--spec-draft-vocab", "99999999"], "the size of the vocabulary"),
        (["generate", "-p", "x", "--temp", "nan"], "--temp: nan is out of range"),
        (["generate", "-p", "x", "--temp", "inf"], "--temp: inf is out of range"),
        (["generate", "-p", "x", "--top-k", "-1"], "--top-k: -1 is out of range, expected 0 (off) or more"),
        (["generate", "-p", "x", "--top-p", "1.1"], "--top-p: 1.1 is out of range, expected 0 .. 1"),
        (["generate", "-p", "x", "--min-p", "nan"], "--min-p: nan is out of range, expected 0 .. 1"),
        (["generate", "-p", "x", "--seed", "-2"], "--seed: -2 is out of range"),
        (["generate", "-p", "x", "--seed", str(1 << 64)], "is out of range, expected 0 .. 18446744073709551615"),
        (["generate", "-p", "x", "--samplers", "top_k;typ_p"], "--samplers: 'typ_p' is unknown, expected some of"),
        (["generate", "-p", "x", "--samplers", "temp;temperature"], "names one twice"),
        (["generate", "-p", "x", "-r", ""], "--reverse-prompt: the string is empty"),
        (["generate", "-p", "x", "-n", "-2"], "--predict: -2 is out of range"),
        (["generate", "-p", "x", "-c", "99999999"], "--ctx-size: 99999999 is out of range"),
        (["generate", "-p", "x y z " * 99, "-c", "9"], "tokens, expected at most 9"),
        (["generate", "-p", "x", "-t", "0"], "--threads: 0 is out of range"),
        (["generate", "-p", "x", "-b", "0"], "--batch-size: 0 is out of range"),
        (["generate", "-p", "x", "-ctk", "f32", "-ctv", "f16"], "expected the same type"),
        (["generate", "-p", "x", "--trace", "/no/such/folder/t.jsonl"], "cannot be written"),
        (["dump", "-p", "x", "--tensors", "(", "-o", "/tmp/never"], "is no regular expression"),
        (["dump", "-p", "x", "--tensors", "^zzz", "-o", "/tmp/never"], "matches none of"),
        (["inspect", "/no/such/file.gguf"], "/no/such/file.gguf"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capfdbinary, argv, expected):
    code, out, err = run_main(capfdbinary, *argv)
    assert code == 2
    assert out == b""
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"mtpref {argv[0]}: error: ")
    assert expected in last
    assert "Traceback" not in err


@pytest.mark.parametrize("argv", [["generate", "--no-such-flag"], ["nonsense"], ["dump", "-p", "x"]])
def test_bad_usage_is_one_line_and_exit_code_2(capfdbinary, argv):
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code == 2
    assert capfdbinary.readouterr().err.decode().count("\n") == 1


def test_cli_page_is_the_programs_own_help():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import write_cli_doc
    finally:
        sys.path.pop(0)
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == write_cli_doc.render(), (
        "run: python tools/write_cli_doc.py"
    )


def test_escapes_in_the_prompt_are_read_with_e(capfdbinary):
    _, out, _ = run_main(capfdbinary, "generate", "-e", "-p", r"a\n\tb\\n", "-n", "1", "--json")
    _, plain, _ = run_main(capfdbinary, "generate", "-p", "a\n\tb\\n", "-n", "1", "--json")
    assert json.loads(out)["prompt_ids"] == json.loads(plain)["prompt_ids"]


def test_an_escape_that_follows_an_escaped_backslash_stays_as_written():
    from mtpref.front.cli.options import unescape

    assert unescape(r"\\n") == r"\n"
    assert unescape(r"\\\n") == "\\\n"
    assert unescape("\0\\t") == "\0\t"


def test_prompt_comes_from_standard_input_and_from_a_file(tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT)
    command = [sys.executable, "-m", "mtpref", "generate", "-n", "4"]
    given = [
        subprocess.run([*command, "-p", "-"], input=PROMPT.encode(), capture_output=True, cwd=ROOT, check=True),
        subprocess.run([*command, "-f", str(file)], capture_output=True, cwd=ROOT, check=True),
        subprocess.run([*command, "-p", PROMPT], capture_output=True, cwd=ROOT, check=True),
    ]
    assert given[0].stdout == given[1].stdout == given[2].stdout


def test_interrupt_ends_with_statistics_and_a_readable_trace(tmp_path):
    trace = tmp_path / "run.jsonl"
    command = [sys.executable, "-m", "mtpref", "generate", "-p", PROMPT, "-n", "-1", "--trace", str(trace)]
    # A shell gives its background jobs an ignored SIGINT, which children inherit: not so here.
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
    assert b"n_drafted = " in err
    assert b"Traceback" not in err
    events = [json.loads(line) for line in trace.read_text().splitlines()]
    assert events[-1]["event"] == "RunEnded"
    assert events[-1]["reason"] == "interrupted"


def test_what_to_try_names_the_verb(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "-q"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "mtpref generate: error: unrecognized argument -q; try: mtpref generate --help\n"


def test_a_reader_that_goes_away_is_no_error():
    """But 141, as of a program that SIGPIPE ends, where the code is a verdict: 0 and 1 would say what was found."""
    broken = "import sys; from mtpref.files import doors; from mtpref.front.cli import main; "
    code = f"{broken}import mtpref.front.cli.VERB as v; v.run_VERB = lambda args: print('x' * 999999) or 1; "
    for verb, expected in (("faults", b"0"), ("check", b"141")):
        program = (code + "sys.exit(main(['VERB', 'x']))").replace("VERB", verb)
        command = f'{{ {sys.executable} -c "{program}"; echo $? >&2; }} | head -c 1 >/dev/null'
        done = subprocess.run(command, shell=True, capture_output=True, cwd=ROOT)
        assert done.stderr.split() == [expected]
    command = f"{sys.executable} -m mtpref generate -p x -n 64 | head -c 1 >/dev/null"
    done = subprocess.run(command, shell=True, capture_output=True, cwd=ROOT)
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


def test_control_characters_of_a_model_never_reach_a_terminal(monkeypatch):
    """A pseudo-terminal in place of stdout; the model's pieces are replaced by hostile ones."""
    import pty

    from mtpref.front.cli.output import Text

    leader, follower = pty.openpty()
    with os.fdopen(follower, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        text = Text(is_silent=False)
        for piece in (b"a\x1b[2J", "\u202e".encode(), "\u00e9".encode()[:1], "\u00e9".encode()[1:], b"\x9b\x07"):
            text.write(piece)
        text.end()
        terminal.flush()
        time.sleep(0.05)
        shown = os.read(leader, 4096).decode()
    os.close(leader)
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown
    assert r"\x1b[2J" in shown
    assert "\u00e9" in shown


@pytest.mark.slow
def test_a_cold_start_says_what_it_waits_for_and_a_warm_one_does_not(tmp_path):
    command = [sys.executable, "-m", "mtpref", "generate", "-p", "x", "-n", "1", "--spec-type", "none"]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    if environment.pop("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        pytest.skip("Numba's JIT is off: nothing is compiled")
    cold, warm = (
        subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True) for _ in range(2)
    )
    assert cold.stderr.count("compiling kernels") == 1
    assert "compiling kernels" not in warm.stderr
    assert cold.stdout == warm.stdout
    assert "which the times above leave out" in cold.stderr
    assert "leave out" not in warm.stderr
    assert float(re.search(r"prompt ([0-9.]+) s", cold.stderr)[1]) < 1.0  # a kernel takes seconds to compile
    assert list(tmp_path.rglob("*.kernel"))


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="POSIX signals")
@pytest.mark.parametrize("how", ["INT", "TERM", "KILL"])
def test_no_helper_outlives_a_cold_start_that_is_ended(tmp_path, how):
    from mtpref import kernels

    if not kernels.available() or kernels.n_threads() == 1:
        pytest.skip("no JIT, or one processor: no helper is started")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "mtpref", "generate", "-p", "x", "-n", "1"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **streams)
    end = time.monotonic() + 60
    while len(in_group(process.pid)) < 2:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    if how == "INT":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.send_signal(getattr(signal, "SIG" + how))
    process.communicate(timeout=60)
    end = time.monotonic() + 20
    while in_group(process.pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def in_group(group):
    """Processes of a group."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.split()[0] == str(group) and "Z" not in line.split()[1]]


@pytest.mark.parametrize("missing", [(), ("omppool",), ("omppool", "tbbpool")])
def test_where_only_numbas_own_queue_is_a_note_says_what_to_install(monkeypatch, capfd, missing):
    from mtpref import kernels

    if not kernels.available():
        pytest.skip("Numba's JIT is off: there are no threads")
    for pool in ("omppool", "tbbpool"):
        module = None if pool in missing else sys  # None in sys.modules makes an import fail
        monkeypatch.setitem(sys.modules, f"numba.np.ufunc.{pool}", module)
    monkeypatch.setattr(kernels, "n_threads", lambda: 2)
    assert main(["generate", "-p", "x", "-n", "1", "--spec-type", "none"]) == 0
    assert ("libgomp1" in capfd.readouterr().err) == (len(missing) == 2)


# ----------------------------------------------------------------------------------------------- faults


def test_a_fault_is_injected_and_said_so_in_one_line(capsys):
    for ids, n_lines in (([], 0), (["G1"], 1), (["G1-concat-swapped", "c1"], 2)):
        faults = [word for id in ids for word in ("--fault", id)]
        assert main(["generate", "-n", "6", "--json", "-p", "def f(x):", *faults]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["ids"]
        said = [line for line in err.splitlines() if "FAULT" in line]
        assert len(said) == n_lines
        assert "\x1b" not in err
        assert not n_lines or said[0].startswith("FAULT G1-concat-swapped: ")


def test_a_fault_is_red_on_a_terminal_that_wants_colour(monkeypatch):
    from mtpref.front.cli import fault_options

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert fault_options.in_red("x") == "\x1b[1;31mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert fault_options.in_red("x") == "x"


def test_faults_are_refused_where_they_are_unknown_doubled_or_would_become_a_reference(capsys, tmp_path):
    for args, message in (
        (["generate", "--fault", "Z1"], "'Z1' is unknown"),
        (["generate", "--fault", "W1", "--fault", "w1"], "names one twice"),
        (["golden", "gen", "-o", str(tmp_path / "g"), "-p", "a", "--fault", "W1"], "come from the reference alone"),
        (["faults", "Q9"], "'Q9' is unknown"),
        (["generate", "-p", "a", "--prompt-cache", str(tmp_path / "c"), "--fault", "K7"], "from the reference alone"),
        (["generate", "-cnv", "--chat-template", "chatml", "-p", "a", "--fault", "K7"], "cannot go on from its state"),
    ):
        assert main(args) == 2
        assert message in capsys.readouterr().err


def test_faults_lists_all_and_describes_some(capsys):
    from mtpref.faults import FAULTS

    assert main(["faults"]) == 0
    listed = capsys.readouterr().out
    assert all(id in listed for id in FAULTS)
    assert main(["faults", "c6", "L9"]) == 0
    described = capsys.readouterr().out
    assert "https://github.com/ggml-org/llama.cpp/pull/20700" in described
    assert "not seen in an engine" in described
    assert main(["faults", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [fault["id"] for fault in record["faults"]] == list(FAULTS)
