"""What fingers know: llama.cpp's flags, near misses, pipes, any case. And what help shows."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mtpref.faults import FAULTS
from mtpref.front.api import tiny_path
from mtpref.front.cli import GROUPS, build_parser, commands, habits, main
from mtpref.front.cli.examples import EXAMPLES
from mtpref.front.cli.parser import HelpFormatter

ROOT = Path(__file__).parent.parent
PROGRAM = [sys.executable, "-m", "mtpref"]


def refusal(capsys, *argv):
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err.strip()


# -------------------------------------------------------------------------------------- flags that are not


@pytest.mark.parametrize("flag", [flag for flags, _ in habits.ANSWERS for flag in flags])
def test_a_flag_of_llama_cpp_that_is_not_here_is_answered(flag, capsys):
    said = refusal(capsys, "generate", "-p", "x", flag, "99")
    assert said == f"mtpref generate: error: {flag}: {habits.answer(flag)}"


def test_no_answer_hides_a_flag_that_there_is():
    parsers = dict(commands(build_parser()))
    known = {flag for parser in parsers.values() for flag in parser.flags()}
    assert not known & {flag for flags, _ in habits.ANSWERS for flag in flags} - {"-v"}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("generate -reb", "unrecognized argument -reb;"),
        ("generate -rea off", "-rea: the template decides on thinking"),
        ("generate -ngl99", "error: -ngl: there is no GPU here"),
        ("generate -ub512", "error: -ub: a pass is as wide"),
        ("generate --fa on", "error: -fa: attention has one order"),
        ("generate --ngl 99", "error: -ngl: there is no GPU here"),
        ("generate -temp 0", "did you mean --temp?"),
        ("generate -model x", "did you mean --model?"),
        ("generate \u2013temp 0", "begins with the dash U+2013; write --temp"),
        ("generate \u2014temp 0", "begins with the dash U+2014; write --temp"),
        ("generate \u2011ngl 9", "begins with the dash U+2011; write -ngl"),
        ("generate \u2212n 9", "begins with the dash U+2212; write -n"),
        ("quantize \u2013allow-requantize a b Q8_0", "begins with the dash U+2013; write --allow-requantize"),
        ("\u2013version", "begins with the dash U+2013; write --version"),
        ("generate \u2013", "unexpected '\u2013'; give a prompt with -p"),
        ("generate \u2013hello", "unexpected '\u2013hello'; give a prompt with -p"),
        ("generate -p=-x", "-p=-x: a value stands apart from its flag; write --prompt=-x"),
        ("generate -p -x", "unrecognized argument -x; try: mtpref generate --help; as a value: --prompt=-x"),
        ("generate -n x", "argument -n/--predict/--n-predict: found 'x', expected a whole number; try"),
        ("generate --temp=", "found '', expected a number; try"),
        ("generate -n64", "-n64: a value stands apart from its flag; write -n 64"),
        ("generate -n=64", "-n=64: a value stands apart from its flag; write -n 64"),
        ("generate -e=3", "-e takes no value, found -e=3"),
        ("generate --json=1", "--json takes no value"),
        ("generate -nr3", "unrecognized argument -nr3"),
        ("generate --ctx_size 9", "did you mean --ctx-size"),
        ("generate --spec-draft-n", "did you mean --spec-draft-n-max or --spec-draft-n-min"),
        ("generate --quick", "selftest has it"),
        ("generate hello world", '-p, in quotes: -p "hello world"'),
        ("generate model.gguf", "give a model with -m model.gguf"),
        ("generte", "'generte' is no verb; did you mean generate? all of them: mtpref --help"),
        ("model.gguf", "'model.gguf' is no verb; e.g. mtpref check model.gguf, mtpref generate -m model.gguf"),
        ("golden chek", "'chek' is no action; did you mean check?"),
        ("trace", "the following arguments are required: ACTION"),
        ("-m model.gguf", "flags stand after the verb; e.g. mtpref generate -m"),
        ("generate --numerics exat", "'exat' is unknown, expected one of ggml, exact; did you mean exact?"),
    ],
)
def test_a_near_miss_says_what_is_meant(argv, said, capsys):
    assert said in refusal(capsys, *argv.split())


def test_nothing_is_read_as_a_cluster():
    """argparse's own reading of -rea is -r ea."""
    parser = dict(commands(build_parser()))["generate"]
    assert parser.parse_args(["-r", "ea"]).reverse_prompt == ["ea"]
    assert parser.parse_args(["-n", "-1", "-p", "-", "-s", "-1"]).n_predict == -1
    assert parser.parse_args(["-p", "- a list"]).prompt == "- a list"
    assert parser.parse_args(["-p", "\u2013temp"]).prompt == "\u2013temp"
    assert parser.parse_args(["--prompt=-x"]).prompt == "-x"


# -------------------------------------------------------------------------------------- flags that are taken


def test_llama_cpps_older_names_are_taken():
    parser = dict(commands(build_parser()))["generate"]
    given = "--draft-max 5 --draft-min 2 --draft-p-min 0.4 --spec-type MTP --jinja -st -no-cnv -ctk F16 -ctkd BF16"
    args = parser.parse_args(given.split())
    assert (args.spec_draft_n_max, args.spec_draft_n_min, args.spec_draft_p_min) == (5, 2, 0.4)
    assert (args.spec_type, args.chat, args.conversation) == ("draft-mtp", True, False)
    assert (args.cache_type_k, args.cache_type_k_draft) == ("f16", "bf16")
    assert parser.parse_args(["--spec-draft-type-k", "f32"]).cache_type_k_draft == "f32"
    assert parser.parse_args([]).spec_draft_n_max == 3


def test_every_taken_flag_is_of_generate():
    flags = dict(commands(build_parser()))["generate"].flags()
    for names, meant in habits.TAKEN:
        assert all(name.split()[0] in flags for name in names), names
        for flag in re.findall(r"--[a-z-]+", meant):
            assert flag in flags


def test_types_are_named_in_any_case(tmp_path, capsys):
    for kind, name in (("q4_0", "q8_0"), ("Q4_0", "Q8_0")):
        more = ["--tensor", f"ffn_down={name}", "--mtp-type", name, "--allow-requantize"]
        assert main(["quantize", str(tiny_path()), str(tmp_path / kind), kind, *more]) == 0
    assert (tmp_path / "q4_0").read_bytes() == (tmp_path / "Q4_0").read_bytes()
    assert main(["quantize", str(tiny_path()), str(tmp_path / "x"), "iq2_xs"]) == 2
    assert "llama.cpp writes it" in capsys.readouterr().err


def test_words_of_a_text_keep_their_case():
    args = build_parser().parse_args(["generate", "-p", "TRACE", "--json"])
    assert args.prompt == "TRACE"


# -------------------------------------------------------------------------------------- faults by words


def test_faults_are_found_by_words(capsys):
    assert main(["faults", "rope"]) == 0
    out = capsys.readouterr().out
    wanted = [fault.id for fault in FAULTS.values() if "rope" in f"{fault.id} {fault.title}".lower()]
    assert len(wanted) > 2
    assert re.findall(r"^  (\S+)", out, re.M) == wanted
    assert main(["faults", "g5b"]) == 0
    assert capsys.readouterr().out.startswith("G5b-no-rope: ")


def test_a_letter_is_a_family_of_faults(capsys):
    for letter in ("P", "p"):
        assert main(["faults", letter]) == 0
        found = re.findall(r"^  (\S+)", capsys.readouterr().out, re.M)
        assert found == [fault.id for fault in FAULTS.values() if fault.family == "P"]


def test_verbs_with_actions_show_an_example_of_each(capsys):
    for verb, actions in (
        ("trace", ("show", "html")),
        ("golden", ("list", "check", "gen", "derive", "port", "export")),
    ):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        shown = capsys.readouterr().out.partition("\nexamples:\n")[2].splitlines()
        assert [line.split()[:3] for line in shown] == [["mtpref", verb, action] for action in actions]


def test_a_word_that_no_fault_has_names_near_ones(capsys):
    assert main(["faults", "roep"]) == 2
    assert "expected e.g. G5b-no-rope" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["faults", "faults G5b", "docs", "golden list"])
def test_lists_fit_the_width_and_lose_no_word(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    assert main(words.split()) == 0
    whole = capsys.readouterr().out
    for width in (60, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        assert main(words.split()) == 0
        told = capsys.readouterr().out
        assert told.split() == whole.split()
        fits = [line for line in told.splitlines() if "vectors:" not in line and "README.md" not in line]
        # A link, or a list of ids without a blank, stays whole.
        assert all(len(line) <= width or len(line.split()) == 1 for line in fits)


# -------------------------------------------------------------------------------------- pipes


@pytest.mark.parametrize("words", ["faults", "--help", "--version", "generate -n 2 -p a"])
def test_a_closed_stdout_is_one_line(words):
    ended = run(words.split(), preexec_fn=lambda: os.close(1))
    assert (ended.returncode, ended.stderr.count(b"\n")) == (2, 1)
    assert b"standard output is closed" in ended.stderr


def test_a_closed_stderr_sends_no_notes_into_the_text():
    words = ["generate", "-n", "4", "-p", "A letter came for"]
    ended = run(words, preexec_fn=lambda: os.close(2))
    assert (ended.returncode, ended.stdout) == (0, run(words).stdout)


def run(words, **settings):
    return subprocess.run([*PROGRAM, *words], capture_output=True, cwd=ROOT, **settings)


def test_a_prompt_is_taken_from_a_pipe_and_from_a_file(tmp_path):
    words = ["generate", "-n", "4"]
    given = run([*words, "-p", "A letter came for"]).stdout
    (tmp_path / "prompt").write_text("A letter came for")
    assert run(words, input=b"A letter came for").stdout == given
    with open(tmp_path / "prompt") as file:
        assert run(words, stdin=file).stdout == given
    assert run([*words, "-p", "A letter came for"], input=b"something else").stdout == given
    nothing = run(words, input=b"")
    assert (nothing.returncode, b"give your own with -p or -f" in nothing.stderr) == (0, True)


def test_a_model_that_cannot_be_read_is_told_before_a_prompt_that_is_not_there(tmp_path, capsys):
    (tmp_path / "no.gguf").write_bytes(b"GGUX")
    for more in ([], ["--chat"], ["-p", "a", "-f", "b"], ["-f", "/no/such/text"]):
        assert main(["generate", "-m", str(tmp_path / "no.gguf"), *more]) == 2
        assert "no.gguf" in capsys.readouterr().err
        assert main(["generate", "-m", str(tiny_path()), *more]) == 2
        assert "no.gguf" not in capsys.readouterr().err


def test_dash_is_standard_output(tmp_path):
    file = tmp_path / "head.gguf"
    assert main(["extract", str(tiny_path()), "-o", str(file)]) == 0
    piped = run(["extract", str(tiny_path()), "-o", "-"])
    assert (piped.returncode, piped.stdout) == (0, file.read_bytes())
    assert piped.stderr.startswith(b"-: 17 tensors")
    dump = run(["dump", "-p", "x", "--tensors", "^h_", "-o", "-"])
    assert dump.stdout[:4] == b"GGUF"
    assert dump.stderr.startswith(b"-: ")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["generate", "-p", "x", "--trace", "-"], "--trace: - is standard output, expected a name"),
        (["golden", "derive", "tiny", "-o", "-"], "-o: - is standard output, expected a name"),
        (["extract", "/no/such.gguf", "-o", "-"], "/no/such.gguf: cannot be read"),
    ],
)
def test_what_cannot_go_to_standard_output(argv, said, capsys):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert (out, said in err) == ("", True)


def test_a_terminal_gets_no_bytes(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["extract", str(tiny_path()), "-o", "-"]) == 2
    assert "is a terminal" in capsys.readouterr().err


# -------------------------------------------------------------------------------------- help


def test_every_verb_is_in_one_group_and_every_command_has_examples():
    parser = build_parser()
    assert sorted(verb for _, verbs in GROUPS for verb in verbs) == sorted(parser.sub.choices)
    assert set(EXAMPLES) == {name for name, _ in commands(parser)}


def test_every_example_is_read_by_its_parser():
    """test_doc_commands.py runs them."""
    parser = build_parser()
    for command, lines in EXAMPLES.items():
        for line in lines:
            args = parser.parse_args([*command.split(), *shlex.split(line.partition(" > ")[0])])
            assert args.run


@pytest.mark.parametrize("width", [70, 80, 140])
def test_help_fits_the_terminal(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main([]) == 0
    assert main(["help"]) == 0
    for words in (["generate", "--help"], ["help", "plan"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "examples:\n  mtpref plan" in out
    allowed = [line for line in out.splitlines() if not re.match(r"  mtpref |  -|  +\S+$|usage:", line)]
    assert max(map(len, allowed)) < max(width, 110 if width > 110 else width)
    assert HelpFormatter.width is None


def test_bare_mtpref_lists_the_verbs_by_what_one_wants(capsys):
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [title for title, _ in GROUPS] == re.findall(r"^([a-zA-Z ]+):$", out, re.M)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_a_completion_is_made_of_the_parsers(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    for word in ("compare-log", "spec-draft-n-max", "two-phase"):
        assert word in out


def test_bash_completes_verbs_and_flags(tmp_path, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "mtpref.bash"
    script.write_text(capsys.readouterr().out)
    for words, wanted in (("gener", "generate"), ("generate --spec-draft-n-ma", "--spec-draft-n-max"),
                          ("generate --spec-rollback two", "two-phase"), ("golden che", "check")):  # fmt: skip
        given = ["mtpref", *words.split()]
        call = f"""source {script}
COMP_WORDS=({" ".join(given)}); COMP_CWORD={len(given) - 1}; COMP_LINE="mtpref {words}"; COMP_POINT=${{#COMP_LINE}}
$(complete -p mtpref | sed 's/.*-F \\([^ ]*\\).*/\\1/') mtpref {given[-1]} {given[-2]}
printf '%s\\n' "${{COMPREPLY[@]}}" """
        done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, env={**os.environ})
        assert wanted in done.stdout.split(), (words, done.stdout, done.stderr)


def test_hidden_flags_are_not_in_help(capsys):
    parser = dict(commands(build_parser()))["generate"]
    hidden = [flag for a in parser._actions if a.help == argparse.SUPPRESS for flag in a.option_strings]
    assert "--draft-max" in hidden
    assert not any(f" {flag}" in parser.format_help() for flag in hidden)


# -------------------------------------------------------------------------------------- colours and numbers


def colored(capfd, *more):
    assert main(["generate", "-p", "import os\nimport sys\n", "-n", "24", *more]) == 0
    return capfd.readouterr()


def test_color_shows_where_each_token_came_from(capfd, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain, quiet = colored(capfd)
    out, err = colored(capfd, "--color", "always")
    assert "colours: \x1b[32mdraft\x1b[0m \x1b[33mcorrection" in err
    assert "colours" not in quiet
    assert re.sub(r"\x1b\[[\d;]*m", "", out) == plain
    n_draft, n_bonus = (out.count(f"\x1b[{code}m") for code in (32, 36))
    accepted = int(re.search(r"n_accept  = (\d+)", err)[1])
    assert 0 < n_draft <= accepted
    assert n_bonus > 0


def test_color_is_off_for_pipes_and_under_no_color(capfd, monkeypatch):
    assert "\x1b" not in colored(capfd, "--color")[0]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in colored(capfd, "--color")[0]
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" in colored(capfd, "--color")[0]


def test_a_stop_string_and_its_beginning_are_coloured_as_they_are_shown(capfd):
    plain, _ = colored(capfd, "-r", "import re")
    out, _ = colored(capfd, "-r", "import re", "--color", "on")
    assert re.sub(r"\x1b\[[\d;]*m", "", out) == plain


def test_statistics_never_stick_to_the_text():
    done = subprocess.run(
        [*PROGRAM, "generate", "-p", "A letter came for", "-n", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
    )
    assert re.search(rb"(^|\n)encoded ", done.stdout)


def test_nothing_drafted_is_said_in_words(capfd):
    _, err = colored(capfd, "--spec-type", "none")
    assert "accept    = nothing was drafted" in err
    assert "nan" not in err
