"""`mtpref learn`: the chapters in a terminal, and the check of the exercise."""

import argparse
import re
import sys
import textwrap
from typing import Any

from mtpref.base.errors import MtprefError

MAX_WIDTH = 100


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "learn",
        usage="mtpref learn [N] [--answer K=FAULT]",
        help="twelve short chapters on MTP, run on the embedded tiny model",
        description="List the chapters, or run one and show its text, code and output. They need no network and take "
        "seconds. docs/learn has them as pages.",
    )
    parser.add_argument("chapter", nargs="?", type=int, metavar="N", help="the chapter to show (default: list them)")
    parser.add_argument(
        "--answer",
        metavar="K=FAULT",
        help="chapter 11: check that mystery K has this fault (mtpref faults lists them); exit code 0: right, 1: wrong "
        "(and a hint)",
    )
    parser.add_argument("--no-pager", action="store_true", help="print at once on a terminal too (default: off)")
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="colour titles, code (default: auto)",
    )
    parser.set_defaults(run=run_learn)


def run_learn(args: argparse.Namespace) -> int:
    from mtpref.front.cli.output import Notes
    from mtpref.front.cli.pager import paged
    from mtpref.front.cli.terminal import wants_color, width_of
    from mtpref.front.learn import CHAPTERS, find_chapter, run_chapter
    from mtpref.front.learn.render import terminal

    if args.answer is not None:
        return _answer(args.answer, args.chapter)
    width, is_colored = width_of(sys.stdout), wants_color(args.color, sys.stdout)
    if args.chapter is None:
        for c in CHAPTERS:
            print(f"{c.number:2d}  {c.title}")
            print(textwrap.fill(c.summary, min(width, MAX_WIDTH), initial_indent=" " * 4, subsequent_indent=" " * 4))
        print("\nmtpref learn N shows one")
        return 0
    chapter = find_chapter(args.chapter)
    args.ops = None
    Notes().when_compiling(args)
    with paged(sys.stdout, is_wanted=not args.no_pager) as out:
        for cell in run_chapter(chapter):
            out.write(terminal(cell, width, is_colored=is_colored) + "\n\n")
            out.flush()
    return 0


def _answer(text: str, chapter: int | None) -> int:
    from mtpref.faults import FAMILIES, find_fault
    from mtpref.front.learn import EXERCISE, is_answer, is_family

    found = re.fullmatch(r"([0-9]{1,4})=(.{1,80})", text)
    if found is None:
        raise MtprefError(f"--answer: {text[:60]!r} is not K=FAULT, expected e.g. 1=W6")
    if chapter not in (None, EXERCISE):
        raise MtprefError(f"--answer: chapter {chapter} has no exercise, expected {EXERCISE}")
    number, fault = int(found[1]), find_fault(found[2])
    if is_answer(number, fault.id):
        print(f"right: mystery {number} is {fault.id}. {fault.mechanism}")
        return 0
    print(f"no: mystery {number} is not {fault.id} ({fault.title})")
    family = f"{fault.family} ({FAMILIES[fault.family]})"
    if is_family(number, fault.id):
        print(f"hint: the family {family} is right; mtpref faults lists it, and mtpref faults ID says how each differs")
    else:
        print(
            f"hint: it is of another family than {family}; ask first whether the text stays right, and which tensor "
            "differs first"
        )
    return 1
