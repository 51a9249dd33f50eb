"""Every command of every page: run here, or named below with the test that runs it or the reason that none does.

Commands are the lines of `sh` blocks and indented lines that begin with a program's name. In code spans, verbs and
flags are checked against the parser.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mtpref.files.gguf import write_gguf
from mtpref.front import cli
from mtpref.front.cli.examples import EXAMPLES
from tests.gguf_copy import copy_of
from tests.hf_folder import read_state, write_checkpoint

ROOT = Path(__file__).parent.parent
TINY = ROOT / "mtpref" / "data" / "tiny.gguf"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "golden").rglob("*.md")])

# Pages whose commands all run in another test.
ELSEWHERE = {
    "README.md": "test_readme.py; the two that set up, in .ci/run",
    "docs/porting.md": "test_porting_doc.py",
    "golden/runners/README.md": "test_golden_runner.py builds and runs them",
}
# Commands that another test runs, or that none does: the beginning of the line, and why.
NOT_HERE = {
    ("docs/keeping-the-head.md", "mtpref check trunk.gguf -md"): "test_check.py has the like of it",
    ("docs/keeping-the-head.md", "mtpref check finetuned"): "test_keeping_doc.py",
    ("docs/keeping-the-head.md", "mtpref convert finetuned"): "test_keeping_doc.py",
    ("docs/keeping-the-head.md", "mtpref graft trunk.gguf original"): "test_keeping_doc.py",
    ("docs/keeping-the-head.md", "mtpref check model.gguf --against HF_DIR"): "test_keeping_doc.py has one like it",
    ("docs/keeping-the-head.md", "mtpref check model-q4_0.gguf --against"): "test_keeping_doc.py",
    ("docs/keeping-the-head.md", "mtpref quantize model.gguf model-q4_0.gguf"): "test_keeping_doc.py",
    ("docs/keeping-the-head.md", "mtpref fetch"): "test_keeping_doc.py, with a server",
    ("docs/keeping-the-head.md", "mtpref graft trunk.gguf head"): "test_keeping_doc.py, with a server",
    ("docs/keeping-the-head.md", "mtpref convert --mtp head"): "test_keeping_doc.py, with a server",
    ("docs/keeping-the-head.md", "mtpref convert v3"): "test_keeping_doc.py",
    ("docs/keeping-the-head.md", "mtpref check --fast dropped.gguf"): "test_keeping_doc.py",
    ("docs/keeping-the-head.md", "mtpref graft dropped.gguf"): "test_keeping_doc.py",
    ("docs/keeping-the-head.md", "mtpref graft --hf"): "test_keeping_doc.py",
    ("docs/keeping-the-head.md", "mtpref check --fast quantised"): "test_keeping_doc.py",
    ("docs/keeping-the-head.md", "mtpref check --fast calibrated"): "test_keeping_doc.py",
    ("docs/keeping-the-head.md", "mtpref convert calibrated"): "test_keeping_doc.py",
    ("docs/architectures.md", "python tools/record_llama_cpp.py"): "stock llama.cpp; test_llama_chains.py reads it",
    ("docs/architectures.md", "python -m pytest"): "test_llama_chains.py itself",
    ("docs/checkpoints.md", "mtpref graft trunk.gguf HF_DIR"): "test_checkpoints.py grafts from every kind of folder",
    ("docs/diagnosis.md", "mtpref diagnose --log port.jsonl"): "test_evaluate_diagnose.py: it replays every fault",
    ("docs/diagnosis.md", "mtpref diagnose --dump port.gguf"): "test_evaluate_diagnose.py: it replays every fault",
    ("docs/models.md", "python tools/make_tiny.py"): "trains for two hours; test_make_tiny.py runs its steps",
    ("docs/models.md", "llama-quantize"): "stock llama.cpp; test_kernels.py reads what it wrote",
    ("docs/transcript.md", "mtpref generate"): "test_readme.py holds the page to its output",
    ("docs/learn/README.md", "python tools/write_chapters.py"): "test_learn.py makes every notebook",
}
# What a placeholder stands for, and fewer positions or tokens where a page has a real model's worth of work.
STAND_INS = {
    "TEXT": "chat.txt", "TEXT...": "chat.txt", "...": "A letter came for",
    "Q4_K_M": "Q4_0", "ffn_down=Q8_0": "ffn_down=Q8_0",
}  # fmt: skip
FEWER = {
    "bench": ["-p", "16", "-n", "6", "-r", "1"],
    "check": ["--positions", "64"],
    "plan": ["--prompts", "2", "-n", "8", "--samples", "1", "--spec-draft-n-max", "2"],
}
WRITERS = ("convert", "quantize", "imatrix", "extract", "strip", "graft")  # pages write the same name more than once
EXIT_CODES = {"mtpref learn 11 --answer 1=W6": 1}


@dataclass(frozen=True)
class Command:
    page: str
    line: str

    @property
    def argv(self):
        return shlex.split(self.line, comments=True)

    @property
    def reason(self):
        reasons = [why for (page, start), why in NOT_HERE.items() if page == self.page and self.line.startswith(start)]
        return ELSEWHERE.get(self.page) or (reasons[0] if reasons else None)


def commands(path):
    text = path.read_text("utf-8").replace("\\\n", " ")
    page = str(path.relative_to(ROOT))
    blocks = [body for _, body in re.findall(r"(?ms)^```(sh|bash|console)\b[^\n]*\n(.*?)^```", text)]
    indented = re.findall(r"(?m)^    ((?:mtpref|python|llama-\w+) [^\n]*)$", re.sub(r"(?ms)^```.*?^```", "", text))
    lines = [line.strip() for body in blocks for line in body.splitlines()]
    return [Command(page, line) for line in [*lines, *indented] if line and not line.startswith("#")]


COMMANDS = [command for path in PAGES for command in commands(path)]
HERE = {page: [c for c in COMMANDS if c.page == page and c.reason is None] for page in {c.page for c in COMMANDS}}


def parsers():
    parser = cli.build_parser()
    [choices] = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(choices)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with what the pages talk of: a model, texts, costs, a checkpoint folder."""
    pairs, tensors = copy_of(TINY)
    template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    write_gguf(tmp_path / "model.gguf", [*pairs, ("tokenizer.chat_template", template, "str")], tensors)
    (tmp_path / "mtpref" / "data").mkdir(parents=True)
    shutil.copy(TINY, tmp_path / "mtpref" / "data" / "tiny.gguf")
    text = (ROOT / "docs" / "trace.md").read_text("utf-8")
    for name in ("chat.txt", "notes.md"):
        (tmp_path / name).write_text(text[:1200])
    [costs] = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "plan.md").read_text("utf-8"), re.S)
    (tmp_path / "engine.json").write_text(json.dumps(json.loads(costs)))
    state, config, tokenizer = read_state()
    write_checkpoint(tmp_path / "HF_DIR", state, config, tokenizer)
    for name in ("golden", "docs", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", sorted(page for page, own in HERE.items() if own))
def test_the_commands_of_a_page_run_in_order(page, workplace, capfd):
    for command in HERE[page]:
        words = [STAND_INS.get(word, word) for word in command.argv]
        if words[0] == "python":
            done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
            assert done.returncode == 0, (command.line, done.stderr)
            continue
        assert words[0] == "mtpref", f"{command.line}: run it, or give a reason in NOT_HERE"
        force = ["--force"] if words[1] in WRITERS else []
        code = cli.main([*words[1:], *FEWER.get(words[1], []), *force])
        out, err = capfd.readouterr()
        assert code == EXIT_CODES.get(command.line, 0), (command.line, out[-400:], err[-400:])


# Files that examples name, which the workplace lacks; and examples that find something.
EXAMPLE_FILES = {
    "other.jsonl": "run.jsonl",
    "port.gguf": "reference.gguf",
    "model-q4_0.gguf": "model.gguf",
    "trunk.gguf": "model.gguf",
}
EXAMPLES_ELSEWHERE = {
    "generate -m model.gguf -cnv": "test_conversation.py types turns on a terminal",
    "compare-log": "test_compare_log.py has logs",
    "diagnose": "test_diagnose_log.py, test_diagnose_dump.py",
    "fetch": "test_fetch.py has servers",
    "golden port": "test_golden_filter.py",
    "graft --as-shard": "test_as_shard.py",
    "graft --hf": "test_into_hf.py",
    "golden check golden --level L1 --cmd": "test_golden_filter.py",
    "selftest -m": "test_selftest.py",
    "completion": "test_cli_habits.py",
}
EXAMPLE_CODES = {"learn 11 --answer 1=W6": 1}


@pytest.mark.slow
def test_the_examples_of_help_run(workplace, capfd):
    wrong = []
    for command, lines in EXAMPLES.items():
        for line in lines:
            whole = f"{command} {line}".strip()
            if any(whole.startswith(start) for start in EXAMPLES_ELSEWHERE) or "-o -" in whole:
                continue
            words = shlex.split(whole)
            for word, stand_in in EXAMPLE_FILES.items():
                if word in words and not Path(word).exists() and Path(stand_in).exists():
                    shutil.copy(stand_in, word)
            more = [*FEWER.get(words[0], []), *(["--force"] if words[0] in WRITERS else [])]
            more += ["--allow-requantize"] if words[0] == "quantize" else []
            code = cli.main([*words, *more])
            out, err = capfd.readouterr()
            if code != EXAMPLE_CODES.get(whole, 0):
                wrong.append((whole, code, out[-400:], err[-400:]))
    assert not wrong


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: f"{c.page}: {c.line[:60]}")
def test_the_verb_and_the_flags_of_a_command_exist(command):
    words = command.argv
    if "mtpref" in words[:1]:
        check_flags(words[1:], command.line)


def check_flags(words, line):
    known = parsers()
    assert words[0] in known, line
    flags = flags_of(known[words[0]])
    for word in words[1:]:
        if re.match(r"--?[a-zA-Z]", word):
            assert word.partition("=")[0] in flags, f"{line}: {word}"


def flags_of(parser):
    found = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                found |= flags_of(sub)
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_verbs_and_flags_in_code_spans_exist(path):
    text = re.sub(r"(?ms)^```.*?^```", "", path.read_text("utf-8"))
    for span in re.findall(r"`(mtpref [a-z][^`\n]*)`", text):
        try:
            words = shlex.split(span)
        except ValueError:
            continue
        if words[1] in ("VERB",):
            continue
        check_flags(words[1:], span)


def test_every_reason_is_of_a_command_and_names_a_test():
    for (page, start), why in NOT_HERE.items():
        assert any(c.page == page and c.line.startswith(start) for c in COMMANDS), (page, start)
        named = re.findall(r"test_\w+\.py", why)
        assert named, why
        assert all((ROOT / "tests" / name).exists() for name in named), why
    for page, why in ELSEWHERE.items():
        assert (ROOT / page).exists()
        assert all((ROOT / "tests" / name).exists() for name in re.findall(r"test_\w+\.py", why))
