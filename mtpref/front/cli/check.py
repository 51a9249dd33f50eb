"""`mtpref check`: is the MTP head there, and is it sound?"""

import argparse
import json
import sys
import textwrap
from typing import Any

from mtpref.front.cli.output import Notes
from mtpref.front.cli.probe import Progress

EXIT_UNSOUND, EXIT_CANNOT_JUDGE = 1, 3
STYLES = {"ok": "pass", "note": "note", "warning": "skip", "CANNOT": "fail", "FAIL": "fail", "verdict:": "head"}


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "check",
        usage="mtpref check [options] FILE|HF_DIR",
        help="is the MTP head there, and is it sound?",
        description="Check a GGUF file or a checkpoint folder for its MTP head: keys against tensors, shapes, "
        "norms, halves of eh_proj, NaN, types, tokenizer and template; then run the head on a built-in text beside "
        "itself with one thing changed. Exit code 0: sound; 1: no head, or something is wrong with it; 2: not a model; "
        "3: cannot judge, since the file holds something that mtpref does not know, such as a new type. "
        "docs/keeping-the-head.md says what each finding means.",
    )
    parser.add_argument(
        "path", metavar="FILE|HF_DIR", help="GGUF file, the first of a split model, or a checkpoint folder"
    )
    parser.add_argument(
        "-md",
        "--model-draft",
        metavar="FNAME",
        help="the head in a file of its own, mtp-*.gguf, or an assistant: checked with FILE as its trunk (default: the "
        "head of FILE)",
    )
    parser.add_argument(
        "--against", metavar="OTHER", help="another quantisation, or the checkpoint that the file comes from"
    )
    parser.add_argument("--fast", action="store_true", help="headers and samples alone; run nothing (default: off)")
    parser.add_argument("--positions", type=int, default=384, metavar="N", help="positions of each text (default: 384)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (default: off)")
    parser.set_defaults(run=run_check, ops=None)


def run_check(args: argparse.Namespace) -> int:
    from mtpref.base.errors import MtprefError
    from mtpref.files.vocab import terminal_safe
    from mtpref.front.cli.flags import flagged
    from mtpref.front.cli.terminal import wants_color, width_of
    from mtpref.heads.check import check_path

    if args.positions < 1:
        raise MtprefError(f"--positions: {args.positions} is out of range, expected 1 or more")
    if args.fast and args.against is not None:
        raise MtprefError("--fast: it compares no tensors, expected it without --against")
    say = Notes()
    if not args.fast:
        say.when_compiling(args)
    report = check_path(
        args.path,
        model_draft=args.model_draft,
        against=args.against,
        fast=args.fast,
        n_positions=args.positions,
        progress=Progress("check"),
    )
    if args.json:
        print(flagged(json.dumps(report.to_json(), ensure_ascii=True)))
    else:
        width, is_colored = width_of(sys.stdout), wants_color("auto", sys.stdout)
        print("\n".join(_shown(terminal_safe(flagged(line)), width, is_colored) for line in report.lines()))
    if report.is_sound is None:
        return EXIT_CANNOT_JUDGE
    return 0 if report.is_sound else EXIT_UNSOUND


def _shown(line: str, width: int, is_colored: bool) -> str:
    """A finding within the width, the mark at its beginning in colour; names are never broken."""
    from mtpref.front.cli.terminal import painted

    text = textwrap.fill(line, width, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False)
    mark = line.split(maxsplit=1)[0]
    return painted([(mark, STYLES[mark])], is_colored) + text[len(mark) :] if mark in STYLES else text
