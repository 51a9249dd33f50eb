"""The parser of the command line: argparse, without its surprises.

argparse reads `-rea` as `-r ea` and `-ngl` as `-n gl`; here a value stands apart from its flag, and a flag that does
not exist is answered with what is meant: llama.cpp's flags (habits.py), near ones, the verb that has it. Words of a
choice are taken in any case. Help is as wide as the terminal, ends with examples, and lists verbs by what one wants.
"""

import argparse
import difflib
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from mtpref.base.errors import one_line
from mtpref.front.cli import habits
from mtpref.front.cli.terminal import columns, width_of

EXIT_USAGE = 2
MAX_WIDTH = 110
_NUMBER = re.compile(r"-\d|-\.\d")
# What editors and pages make of the hyphens of a flag.
_DASHES = re.compile(r"[\u2010-\u2015\u2212\uff0d]+(?=\w)")
_NUMBERS: dict[Any, str] = {int: "a whole number", float: "a number"}


class HelpFormatter(argparse.HelpFormatter):
    """One layout under every Python version. width: columns; None: the terminal's, at most MAX_WIDTH."""

    width: int | None = None

    def __init__(self, prog: str) -> None:
        width = self.width or max(40, min(MAX_WIDTH, width_of(sys.stdout) - 1))
        super().__init__(prog, max_help_position=34 if width >= 100 else 24, width=width)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        values = "" if action.nargs == 0 else " " + self._format_args(action, action.dest.upper())
        return ", ".join(action.option_strings) + values

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:\n"):
            return text
        return super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """argparse with one line for an error, as for every other bad input.

    elsewhere   flag -> verbs that have it; groups: (what one wants, verbs), for the parser of the verbs
    """

    def __init__(self, *, groups: Sequence[tuple[str, Sequence[str]]] = (), **settings: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **settings)
        self.elsewhere: dict[str, list[str]] = {}
        self._groups = groups

    def error(self, message: str) -> "None":  # type: ignore[override]
        self.exit(EXIT_USAGE, one_line(f"{self.prog}: error: {message}; try: {self.prog} --help") + "\n")

    def refuse(self, message: str) -> "None":
        """An error whose message says already what to try."""
        self.exit(EXIT_USAGE, one_line(f"{self.prog}: error: {message}") + "\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        self._check_flags(words)
        return super().parse_known_args(words, namespace)

    # FLAGS

    @property
    def sub(self) -> "argparse._SubParsersAction[Parser] | None":
        """The action of the verbs, or of a verb's own actions."""
        return next((a for a in self._actions if isinstance(a, argparse._SubParsersAction)), None)

    def flags(self) -> list[str]:
        return list(self._option_string_actions)

    def _check_flags(self, words: Sequence[str]) -> None:
        for before, word in zip(["", *words], words, strict=False):
            is_word = not word.startswith("-") or len(word) == 1
            if is_word and not self._takes_value(before):
                self._check_dashes(word)
            if word == "--" or (is_word and self.sub is not None):
                return  # what follows is another parser's
            if is_word or _NUMBER.match(word) or word in self._option_string_actions:
                continue
            name, equals, value = word.partition("=")
            action = self._option_string_actions.get(name)
            if not equals or action is None:
                if " " not in word:
                    joined = f"; as a value: {self._joined(before, word)}" if self._takes_value(before) else ""
                    self.refuse(self._no_flag(word, name) + joined)
            elif action.nargs == 0:
                self.error(f"{name} takes no value, found {word}")
            elif not name.startswith("--"):
                write = self._joined(name, value) if value.startswith("-") else f"{name} {value}"
                self.refuse(f"{word}: a value stands apart from its flag; write {write}")

    def _takes_value(self, word: str) -> bool:
        action = self._option_string_actions.get(word)
        return action is not None and action.nargs != 0

    def _joined(self, flag: str, value: str) -> str:
        """A flag and a value that begins with a hyphen, as argparse takes it."""
        names = self._option_string_actions[flag].option_strings
        return f"{next((name for name in names if name.startswith('--')), flag)}={value}"

    def _check_dashes(self, word: str) -> None:
        """Refuse a flag with an en dash, an em dash, ... for its hyphens."""
        if not _DASHES.match(word):
            return
        bare = _DASHES.sub("", word, count=1)
        known = self._option_string_actions
        for flag in (f"--{bare}", f"-{bare}"):
            name = flag.partition("=")[0]
            if name in known or habits.answer(name) or (self.sub is not None and self._groups):
                self.refuse(f"{word[:60]!r} begins with the dash U+{ord(word[0]):04X}; write {flag[:60]}")

    def _no_flag(self, word: str, name: str) -> str:
        """What is wrong with a flag that does not exist, and what to try."""
        for known in (name, *_other_dashes(name), *_without_number(name)):
            answer = habits.answer(known)
            if answer is not None:
                return f"{known}: {answer}"
        if self.sub is not None and self._groups:
            return f"{word}: flags stand after the verb; e.g. mtpref generate {word}; mtpref --help lists the verbs"
        short = self._option_string_actions.get(word[:2])
        if short is not None and short.nargs != 0 and re.match(r"[\d./~]", word[2:]):
            return f"{word}: a value stands apart from its flag; write {word[:2]} {word[2:]}"
        same = [flag for flag in _other_dashes(name) if flag in self.flags()]
        near = " or ".join(same) or _near(name.replace("_", "-"), self.flags())
        if near:
            return f"unrecognized argument {word}; did you mean {near}? all of them: {self.prog} --help"
        verbs = self.elsewhere.get(name)
        if verbs:
            return f"unrecognized argument {word}; {_listed(verbs)} has it; try: {self.prog} --help"
        return f"unrecognized argument {word}; try: {self.prog} --help"

    def unexpected(self, words: Sequence[str]) -> "None":
        """Words that are left over: texts and files that want a flag."""
        word = words[0]
        flags = self._option_string_actions
        if "--model" in flags and word.lower().endswith(".gguf"):
            self.refuse(f"unexpected {word!r}; give a model with -m {word}")
        if "--prompt" in flags:
            self.refuse(f'unexpected {word[:60]!r}; give a prompt with -p, in quotes: -p "{" ".join(words)[:60]}"')
        self.error(f"unexpected {word[:60]!r}")

    # VALUES

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            value = super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            wanted = _NUMBERS.get(action.type)
            if wanted is None:
                raise
            raise argparse.ArgumentError(action, f"found {arg_string[:60]!r}, expected {wanted}") from None
        is_choice = isinstance(value, str) and action.choices is not None and value not in action.choices
        if is_choice and not isinstance(action, argparse._SubParsersAction):
            return next((c for c in action.choices if str(c).lower() == value.lower()), value)  # type: ignore[union-attr]
        return value

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        near = _near(str(value), known)
        guess = f"; did you mean {near}?" if near else ""
        if isinstance(action, argparse._SubParsersAction):
            what = "verb" if self._groups else "action"
            if what == "verb" and str(value).lower().endswith(".gguf"):
                self.refuse(f"{str(value)[:60]!r} is no verb; e.g. mtpref check {value}, mtpref generate -m {value}")
            if near:
                self.refuse(f"{str(value)[:60]!r} is no {what}{guess} all of them: {self.prog} --help")
            self.error(f"{str(value)[:60]!r} is no {what}, expected one of {_listed(known)}")
        raise argparse.ArgumentError(
            action, f"{str(value)[:60]!r} is unknown, expected one of {', '.join(known)}{guess}"
        )

    # HELP

    def format_help(self) -> str:
        if not self._groups or self.sub is None:
            return super().format_help()
        width = HelpFormatter(self.prog)._width
        told = {choice.dest: choice.help or "" for choice in self.sub._choices_actions}
        column = max(map(len, told)) + 4
        lines = [f"usage: {self.usage}", "", *textwrap.wrap(self.description or "", width), ""]
        for title, verbs in self._groups:
            lines += [f"{title}:", *columns([(f"  {verb:{column - 4}s}", told[verb]) for verb in verbs], width), ""]
        return "\n".join([*lines, self.epilog or "", ""])


def _near(word: str, known: Iterable[str]) -> str | None:
    """The known words that are near, best first; those that begin with it count as near."""
    known = list(known)
    bare = word.lstrip("-")
    begin = [k for k in known if len(bare) > 2 and k.lstrip("-").startswith(bare)]
    found = list(dict.fromkeys([*begin[:3], *difflib.get_close_matches(word, known, 3, 0.68)]))[:3]
    return " or ".join(found) or None


def _other_dashes(name: str) -> list[str]:
    """The flag with one hyphen for two, and two for one."""
    return [name[1:]] if name.startswith("--") else ["-" + name]


def _without_number(name: str) -> list[str]:
    """The flag of one to which a number is attached: -ngl of -ngl99."""
    bare = re.sub(r"\d+$", "", name)
    return [bare] if bare not in (name, "-") else []


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:8]) + (", ..." if len(words) > 8 else "")
