"""`mtpref generate -cnv`: turns of a conversation, typed on a terminal or given a line each.

Owns reading turns, what an interrupt ends, and the totals. The session decides how much of a prompt it holds already.
"""

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.front.cli.chat_options import ChatSettings
from mtpref.front.cli.options import MAX_PROMPT_BYTES, unescape
from mtpref.front.cli.output import Notes, Text, begin, wants_text_color
from mtpref.front.cli.signals import sigterm_as_interrupt

BANNER = "conversation: Ctrl-C stops an answer, Ctrl-D or /exit ends; /help lists the commands"
COMMANDS = {
    "/help": "lists these",
    "/reset": "forgets all turns",
    "/stats": "shows the numbers of the last turn and of all",
    "/exit": "ends, as Ctrl-D and /quit do",
}
ALIASES = {"/?": "/help", "/quit": "/exit", "/bye": "/exit", "/clear": "/reset"}
Message = dict[str, str]


@dataclass
class Totals:
    """Sums over the turns of a conversation."""

    n_turns: int = 0
    n_prompt: int = 0
    n_reused: int = 0
    n_predict: int = 0
    n_drafted: int = 0
    n_accepted: int = 0

    def add(self, stats: Any) -> None:
        self.n_turns += 1
        self.n_prompt += stats.n_prompt
        self.n_reused += stats.n_reused
        self.n_predict += stats.n_predict
        self.n_drafted += stats.n_drafted
        self.n_accepted += stats.n_accepted

    def line(self) -> str:
        return (
            f"turns = {self.n_turns}, prompt tokens = {self.n_prompt}, reused = {self.n_reused}, "
            f"generated = {self.n_predict}, {_accept(self.n_accepted, self.n_drafted)}"
        )


class Conversation:
    """The messages so far and the session that holds their tokens.

    consume  (run, text) -> why it ended: prints a run's text as it comes
    """

    def __init__(
        self, model: Any, chat: ChatSettings, options: Any, session: Any, consume: Callable[[Any, Text], str]
    ) -> None:
        self.model, self.chat, self.options, self.session = model, chat, options, session
        self.totals = Totals()
        self.last: Any = None  # the statistics of the last turn
        self.messages: list[Message] = chat.first_messages()
        self._consume = consume

    def turn(self, content: str, text: Text) -> tuple[Any, str]:
        """One question and its answer; a question that gets no token of an answer is forgotten."""
        messages = [*self.messages, {"role": "user", "content": content}]
        run = self.model.generate(self.chat.prompt(self.model, messages), self.options, session=self.session)
        reason = self._consume(run, text)
        self.last = run.statistics
        self.totals.add(run.statistics)
        if run.ids:
            self.messages = [*messages, {"role": "assistant", "content": run.text}]
        return run, reason

    def reset(self) -> None:
        """Forget the turns. The session keeps its tokens: the next prompt shares its beginning with them."""
        self.messages = self.chat.first_messages()

    def lines(self) -> list[str]:
        return ["no turn yet"] if self.last is None else [*self.last.lines(), self.totals.line()]


def run_conversation(
    args: argparse.Namespace,
    conversation: Conversation,
    first: str | None,
    say: Notes,
    report: Callable[[Any, str], None],
) -> int:
    """Turns until the input ends; returns the exit code.

    first   the first question, from -p or -f
    report  (run, reason): what is printed of a turn under --json
    Errors  on a terminal a refused turn is a line and the conversation goes on; elsewhere MtprefError ends it
    """
    is_terminal = sys.stdin.isatty()
    is_colored = wants_text_color(args)
    if is_colored:
        say.legend()
    if is_terminal:
        say.line(BANNER)
        begin()
    reason = ""
    with sigterm_as_interrupt() as is_terminated:
        for content in _contents(first, is_terminal, args.escape, is_terminated):
            command = _command(content)
            if command == "/exit":
                break
            if command is not None:
                for line in _answer(command, conversation):
                    say.line(line)
            elif content.strip():
                reason = _turn(conversation, content, args.json, is_colored, is_terminal, say, report)
            if is_terminated() or (reason == "interrupted" and not is_terminal):
                break
    if conversation.totals.n_turns:
        say.line(conversation.totals.line())
    return 130 if is_terminated() or (reason == "interrupted" and not is_terminal) else 0


def _command(content: str) -> str | None:
    """The word of a line that is a slash and one word, such as /reset; None for a message. A path is a message."""
    word = content.strip()
    found = re.fullmatch(r"/[a-z?]{1,20}", word)
    return ALIASES.get(word, word) if found else None


def _answer(command: str, conversation: Conversation) -> list[str]:
    if command == "/help":
        return [f"{name:8s}{told}" for name, told in COMMANDS.items()]
    if command == "/reset":
        conversation.reset()
        return ["forgotten: the next turn is the first"]
    if command == "/stats":
        return conversation.lines()
    near = get_close_matches(command, COMMANDS, 1)
    return [
        f"{command} is no command{f', did you mean {near[0]}?' if near else ''}; /help lists them; to send it as it "
        "is, put a dot or a word after it"
    ]


def _turn(
    conversation: Conversation,
    content: str,
    is_json: bool,
    is_colored: bool,
    is_terminal: bool,
    say: Notes,
    report: Callable[[Any, str], None],
) -> str:
    """One turn with its note; returns why it ended."""
    try:
        run, reason = conversation.turn(content, Text(is_silent=is_json, is_colored=is_colored))
    except MtprefError as error:
        if not is_terminal:
            raise
        say.line(f"error: {error}; /reset forgets all turns")
        return "error"
    except KeyboardInterrupt:  # before the run began
        if not is_terminal:
            raise
        return "interrupted"
    stats = run.statistics
    if is_json:
        report(run, reason)
    elif not sys.stdout.isatty():
        sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()
    limit = ", -n -1 lifts the limit" if reason == "length" else ""
    say.line(
        f"[turn {conversation.totals.n_turns}: {stats.n_predict} tokens ({reason}{limit}), "
        f"{_accept(stats.n_accepted, stats.n_drafted)}, prompt {stats.n_prompt} tokens, {stats.n_reused} reused]"
    )
    return reason


def _accept(n_accepted: int, n_drafted: int) -> str:
    if not n_drafted:
        return "nothing was drafted"
    return f"accept = {100 * n_accepted / n_drafted:.1f}% ({n_accepted} of {n_drafted})"


# READING


def _contents(
    first: str | None, is_terminal: bool, is_escaped: bool, is_terminated: Callable[[], bool]
) -> Iterator[str]:
    """The user's messages: the first one given, then typed lines or lines of the input, until it ends."""
    if first is not None:
        yield first
    read = _typed_line if is_terminal else _next_line
    if is_terminal:
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (line editing for input())
    while True:
        try:
            line = read()
        except EOFError:
            return
        except KeyboardInterrupt:
            if not is_terminal or is_terminated():
                raise
            print(file=sys.stderr)
            continue
        yield unescape(line) if is_escaped else line


def _typed_line() -> str:
    if sys.stdout.isatty():
        return input("> ")
    print("> ", end="", file=sys.stderr, flush=True)  # stdout is for the text alone
    return _next_line()


def _next_line() -> str:
    raw = sys.stdin.buffer.readline(MAX_PROMPT_BYTES)
    if not raw:
        raise EOFError
    return raw.decode("utf-8", "surrogateescape").rstrip("\r\n")
