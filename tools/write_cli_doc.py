"""Write docs/cli.md from the parsers' own help. `--check` only compares (the tests do that).

python tools/write_cli_doc.py
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mtpref.front.cli import build_parser, habits
from mtpref.front.cli.parser import HelpFormatter

TARGET = Path(__file__).parent.parent / "docs" / "cli.md"
INTRO = """# Command line

Written by `python tools/write_cli_doc.py` from the program's own help. Flag names are llama.cpp's where it has the
flag.

stdout holds the text (or the JSON object, or the report); everything else goes to stderr. Exit codes: 0 done, 1 a
comparison found differences, 2 bad usage or input (one line says what, found, expected, what to try), 3 cannot judge
(check, diagnose), 130 interrupted. A reader of stdout that goes away (`| head`) is no error, but where the code is a
verdict it is 141 then.
Model text is written to a pipe or file byte for byte; on a terminal, control characters are shown as escapes.

`-o -` writes a file to standard output, and what is printed beside it to stderr. A prompt can come through a pipe:
`echo "A letter came for" | mtpref generate`. A value stands apart from its flag (`-n 64`) or after `=` with a long one;
words of a choice and names of types are taken in any case. Help is as wide as the terminal.

## Completion

    mtpref completion bash

prints what makes the shell complete verbs, flags and choices; zsh, fish and tcsh too. The script is made from the
parsers by [shtab](https://pypi.org/project/shtab/): one file without dependencies, which reads argparse as it is.
argcomplete would start Python at every key; click and typer would mean other parsers, and rich-argparse more start-up
time than the colours of a help page are worth.

## Flags of llama.cpp

Flags that are here have llama.cpp's names. Others are taken as what they mean here:

{taken}

or answered, with exit code 2:

{answered}
"""


def render() -> str:
    HelpFormatter.width = 110
    try:
        return _render()
    finally:
        HelpFormatter.width = None


def _intro() -> str:
    taken = "\n".join(f"| {_codes(names)} | {meant} |" for names, meant in habits.TAKEN)
    answered = "\n".join(f"| {_codes(names)} | {said} |" for names, said in habits.ANSWERS)
    head = "| llama.cpp | here |\n|---|---|\n"
    return INTRO.format(taken=head + taken, answered=head + answered)


def _codes(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _render() -> str:
    parser = build_parser()
    parts = [_intro(), _section("mtpref", parser)]
    verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    parts += [_section(f"mtpref {name}", verb) for name, verb in verbs.choices.items()]
    return "\n".join(parts)


def _section(title: str, parser: argparse.ArgumentParser) -> str:
    return f"## {title}\n\n```text\n{parser.format_help().rstrip()}\n```\n"


def main() -> int:
    text = render()
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.read_text(encoding="utf-8") == text else 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
