"""Write docs/cli.md from the parsers' own help. `--check` only compares (the tests do that).

python tools/write_cli_doc.py
"""

import argparse
import sys
from pathlib import Path

from mtpref.front.cli import build_parser

TARGET = Path(__file__).parent.parent / "docs" / "cli.md"
INTRO = """# Command line

Written by `python tools/write_cli_doc.py` from the program's own help. Flag names are llama.cpp's where it has the
flag.

stdout holds the text (or the JSON object, or the report); everything else goes to stderr. Exit codes: 0 done, 1 a
comparison found differences, 2 bad usage or input (one line says what, found, expected, what to try), 3 cannot judge
(check, diagnose), 130 interrupted, 141 the reader of stdout has gone (`| head`).
Model text is written to a pipe or file byte for byte; on a terminal, control characters are shown as escapes.
"""


def render() -> str:
    parser = build_parser()
    parts = [INTRO, _section("mtpref", parser)]
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
