"""`generate -cnv`: what a turn is, what it reuses, what an interrupt ends; from a pipe and on a pseudo-terminal."""

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mtpref
from mtpref.base.events import Token
from mtpref.engine.decode import SamplingConfig
from mtpref.front.cli import main
from mtpref.front.cli.chat_options import ChatSettings
from mtpref.front.cli.conversation import Conversation
from mtpref.front.cli.output import Text
from tests.chat_cases import THINKING

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "mtpref", "generate", "-cnv", "--chat-template", "chatml"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}


@pytest.fixture(scope="module")
def model():
    return mtpref.load()


class Pipe:
    """Standard input that is no terminal."""

    def __init__(self, data):
        import io

        self.buffer = io.BytesIO(data)

    def isatty(self):
        return False


def converse(monkeypatch, capfdbinary, data, *argv):
    """(exit code, the JSON object of each turn, stderr) of a conversation from a pipe."""
    monkeypatch.setattr(sys, "stdin", Pipe(data))
    code = main(["generate", "-cnv", "--json", *argv])
    out, err = capfdbinary.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err.decode()


def fresh_turns(model, template, contents, n_predict, system=None, sampling=None, **args):
    """Each turn's prompt and answer by runs that share nothing."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    for content in contents:
        messages.append({"role": "user", "content": content})
        prompt = model.chat_prompt(messages, template=template, **args)
        run = model.generate(
            prompt, mtpref.Options(n_predict=n_predict, sampling=sampling or SamplingConfig())
        ).finish()
        yield run
        messages.append({"role": "assistant", "content": run.text})


def test_turns_from_a_pipe_are_those_of_fresh_runs_and_reuse_what_they_share(model, monkeypatch, capfdbinary):
    code, turns, err = converse(
        monkeypatch, capfdbinary, b"def f(x):\n\n  \nimport os\r\nclass A:", "--chat-template", "chatml", "-n", "6",
        "--system", "s",
    )  # fmt: skip
    fresh = list(fresh_turns(model, "chatml", ["def f(x):", "import os", "class A:"], 6, "s"))
    assert code == 0
    assert [turn["prompt_ids"] for turn in turns] == [run.prompt_ids for run in fresh]
    assert [turn["ids"] for turn in turns] == [run.ids for run in fresh]
    reused = [turn["statistics"]["n_reused"] for turn in turns]
    assert reused[0] == 0
    assert [n > 0 for n in reused[1:]] == [True, True]
    assert f"{len(fresh[1].prompt_ids)} tokens, {reused[1]} reused]" in err
    n_prompt = sum(len(run.prompt_ids) for run in fresh)
    assert f"turns = 3, prompt tokens = {n_prompt}, reused = {sum(reused)}, generated = 18, accept = " in err
    assert "> " not in err


def test_a_template_that_writes_an_earlier_answer_otherwise_leaves_all_before_it_shared(
    model, monkeypatch, capfdbinary
):
    """The argument opens the answer with an empty thought, which later prompts leave out."""
    code, turns, _ = converse(
        monkeypatch, capfdbinary, b"import os\nimport re\nimport io\n", "--chat-template", THINKING, "-n", "6",
        "--chat-template-kwargs", '{"enable_thinking": false}', "--system", "Be brief.",
    )  # fmt: skip
    contents = ["import os", "import re", "import io"]
    fresh = list(fresh_turns(model, THINKING, contents, 6, "Be brief.", enable_thinking=False))
    assert code == 0
    for i in (1, 2):
        earlier, prompt = turns[i - 1]["prompt_ids"], turns[i]["prompt_ids"]
        n_common = next(i for i, (a, b) in enumerate(zip(earlier, prompt, strict=False)) if a != b)
        n_opening = len(model.encode("<|im_start|>assistant\n<think>\n\n</think>\n\n"))
        assert len(earlier) - n_opening <= turns[i]["statistics"]["n_reused"] <= n_common < len(earlier)
    assert [turn["prompt_ids"] for turn in turns] == [run.prompt_ids for run in fresh]
    assert [turn["ids"] for turn in turns] == [run.ids for run in fresh]


def test_reset_forgets_the_turns_and_stats_shows_the_last(model, monkeypatch, capfdbinary):
    data = b"/stats\nimport os\n/stats\n/reset\nimport os\n"
    _, turns, err = converse(monkeypatch, capfdbinary, data, "--chat-template", "chatml", "-n", "3")
    assert turns[0]["prompt_ids"] == turns[1]["prompt_ids"]
    assert turns[0]["ids"] == turns[1]["ids"]
    assert turns[1]["statistics"]["n_reused"] > 0
    assert err.count("forgotten") == err.count("no turn yet") == err.count("\nn_predict = 3\n") == 1


def test_the_first_turn_can_be_given_and_lines_can_have_escapes(model, monkeypatch, capfdbinary):
    _, turns, _ = converse(
        monkeypatch, capfdbinary, rb"b\nc", "-p", r"a\tb", "-e", "-n", "2", "--chat-template", "chatml"
    )
    fresh = list(fresh_turns(model, "chatml", ["a\tb", "b\nc"], 2))
    assert [turn["prompt_ids"] for turn in turns] == [run.prompt_ids for run in fresh]


def test_sampled_turns_are_those_of_fresh_runs_with_the_same_seed(model, monkeypatch, capfdbinary):
    argv = ["--chat-template", "chatml", "-n", "8", "--temp", "0.9", "--seed", "5"]
    _, turns, _ = converse(monkeypatch, capfdbinary, b"import os\nimport re\n", *argv)
    sampling = SamplingConfig(temp=0.9, seed=5)
    fresh = list(fresh_turns(model, "chatml", ["import os", "import re"], 8, sampling=sampling))
    assert [turn["ids"] for turn in turns] == [run.ids for run in fresh]
    assert turns[1]["statistics"]["n_reused"] > 0


def test_after_an_interrupted_answer_the_next_turn_is_that_of_a_fresh_run(model):
    """The first answer is left in the middle of a round, as Ctrl-C leaves it."""
    settings = argparse.Namespace(
        chat=False, conversation=True, system=None, chat_template="chatml", chat_template_kwargs=None, chat_date=None
    )

    def consume(run, text):
        tokens = (event for event in run if isinstance(event, Token))
        for n_tokens, _ in enumerate(tokens, start=1):
            if n_tokens == 6 and len(conversation.messages) == 0:
                return "interrupted"
        return "length"

    options = mtpref.Options(n_predict=12)
    conversation = Conversation(model, ChatSettings(settings), options, model.new_session(), consume)
    first, reason = conversation.turn("import os", Text(is_silent=True))
    assert (len(first.ids), reason) == (6, "interrupted")
    second, _ = conversation.turn("import re", Text(is_silent=True))
    messages = [
        {"role": "user", "content": "import os"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "import re"},
    ]
    fresh = model.generate(model.chat_prompt(messages, template="chatml"), options).finish()
    assert second.prompt_ids == fresh.prompt_ids
    assert second.ids == fresh.ids
    assert second.statistics.n_reused > 0


def test_a_trace_holds_every_turn(monkeypatch, capfdbinary, tmp_path):
    trace = tmp_path / "run.jsonl"
    argv = ["--chat-template", "chatml", "-n", "2", "--trace", str(trace)]
    converse(monkeypatch, capfdbinary, b"a\nb\n", *argv)
    events = [json.loads(line) for line in trace.read_text().splitlines()]
    started = [event for event in events if event["event"] == "RunStarted"]
    assert [event["n_reused"] > 0 for event in started] == [False, True]
    assert all(event["settings"]["chat"]["template"] == "chatml" for event in started)
    assert sum(event["event"] == "RunEnded" for event in events) == 2


@pytest.mark.parametrize(
    ("data", "argv", "expected"),
    [
        (b"x\n", [], "tokenizer.chat_template: missing"),
        (b"x\n" + b"y z " * 99, ["--chat-template", "chatml", "-c", "60", "-n", "2"], "tokens, expected at most 60"),
        (b"x\n", ["--chat-template", "{{ raise_exception('no') }}"], "the template refuses this conversation: no"),
    ],
)
def test_a_refused_turn_from_a_pipe_is_one_line_and_exit_code_2(monkeypatch, capfdbinary, data, argv, expected):
    code, _, err = converse(monkeypatch, capfdbinary, data, *argv)
    assert code == 2
    assert expected in err.splitlines()[-1]
    assert "Traceback" not in err


def test_answers_in_a_pipe_are_the_text_and_a_line_feed_each(model):
    done = subprocess.run([*COMMAND, "-n", "4"], input=b"import os\nimport re\n", capture_output=True, env=ENVIRONMENT)
    fresh = list(fresh_turns(model, "chatml", ["import os", "import re"], 4))
    assert done.returncode == 0
    assert done.stdout.decode() == "".join(run.text + "\n" for run in fresh)


class Terminal:
    """A program on a pseudo-terminal of its own."""

    def __init__(self, *argv):
        import pty

        self.leader, follower = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *argv],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=ENVIRONMENT,
            start_new_session=True,
            # A shell gives its background jobs an ignored SIGINT, which children inherit: not so here.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(follower)
        self.shown = ""

    def read_until(self, text, seconds=120):
        """What is shown up to `text`."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self.leader], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} did not come, only {self.shown!r}"
            try:
                self.shown += os.read(self.leader, 4096).decode("utf-8", "replace")
            except OSError:  # the other end is closed
                assert text in self.shown, self.shown
        before, self.shown = self.shown.split(text, 1)
        return before + text

    def type_until_answered(self, line, tries=8):
        """Type a line until something comes after its echo: a late interrupt throws a half-read line away."""
        for _ in range(tries):
            self.type(line + "\n")
            self.read_until(line + "\r\n")
            while select.select([self.leader], [], [], 15)[0]:
                self.shown += os.read(self.leader, 4096).decode("utf-8", "replace")
                if self.shown.replace("> ", "").strip():
                    return
        raise AssertionError(f"no answer to {line!r}, only {self.shown!r}")

    def interrupt_until(self, text):
        """Ctrl-C, again and again: one that comes just before input() begins to wait is not noticed by it."""
        self.shown = ""
        while text not in self.shown:
            self.process.send_signal(signal.SIGINT)
            while text not in self.shown and select.select([self.leader], [], [], 3)[0]:
                self.shown += os.read(self.leader, 4096).decode("utf-8", "replace")
            assert self.process.poll() is None
        while select.select([self.leader], [], [], 0.3)[0]:  # the prompts of further interrupts
            os.read(self.leader, 4096)
        self.shown = ""

    def type(self, text):
        os.write(self.leader, text.encode())

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.leader)


@pytest.fixture
def terminal():
    pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    opened = []

    def start(*argv):
        opened.append(Terminal(*argv))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_two_turns_on_a_terminal(model, terminal):
    screen = terminal("-n", "4")
    assert "Ctrl-D or /exit ends" in screen.read_until("> ")
    fresh = list(fresh_turns(model, "chatml", ["import os", "import re"], 4))
    for i, (content, run) in enumerate(zip(["import os", "import re"], fresh, strict=True)):
        screen.type(content + "\n")
        shown = screen.read_until("reused]").replace("\r\n", "\n")
        assert run.text in shown
        assert f"[turn {i + 1}: 4 tokens (length, -n -1 lifts the limit)" in shown
        screen.read_until("> ")
    screen.type("\x04")
    screen.read_until("turns = 2, ")
    assert screen.process.wait(60) == 0


def test_an_interrupt_on_a_terminal_ends_the_answer_and_not_the_conversation(terminal):
    screen = terminal("-n", "-1", "--ops", "spec")
    screen.read_until("> ")
    screen.interrupt_until("> ")  # at the prompt: a fresh one
    screen.type_until_answered("def f(x):")
    screen.process.send_signal(signal.SIGINT)
    assert "(interrupted)" in screen.read_until("reused]")
    screen.read_until("> ")
    screen.type("{{\n")
    screen.read_until("{{\r\n")
    screen.process.send_signal(signal.SIGTERM)
    assert screen.process.wait(60) == 130
    assert "Traceback" not in screen.shown


def test_a_refused_turn_on_a_terminal_is_a_line_and_the_conversation_goes_on(terminal):
    screen = terminal("-n", "2", "-c", "60")
    screen.read_until("> ")
    screen.type("y z " * 99 + "\n")
    assert "expected at most 60" in screen.read_until("> ").split("error:")[1]
    screen.type("x\n")
    screen.read_until("[turn 1: ")
    screen.read_until("> ")
    screen.type("\x04")
    assert screen.process.wait(60) == 0
