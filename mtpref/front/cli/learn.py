"""`mtpref learn`: the chapters in a terminal, and the check of the exercise."""

import argparse
import re
import sys
from typing import Any

from mtpref.base.errors import MtprefError


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "learn",
        usage="mtpref learn [N] [--answer K=FAULT]",
        help="ten short chapters on MTP, run on the embedded tiny model",
        description="List the chapters, or run one and show its text, code and output. They need no network and take "
        "seconds. docs/learn has them as pages.",
    )
    parser.add_argument("chapter", nargs="?", type=int, metavar="N", help="the chapter to show (default: list them)")
    parser.add_argument(
        "--answer",
        metavar="K=FAULT",
        help="chapter 10: check that mystery K has this fault (mtpref faults lists them); exit code 0: right, 1: wrong",
    )
    parser.set_defaults(run=run_learn)


def run_learn(args: argparse.Namespace) -> int:
    from mtpref.front.cli.output import Notes
    from mtpref.front.learn import CHAPTERS, find_chapter, run_chapter
    from mtpref.front.learn.render import terminal

    if args.answer is not None:
        return _answer(args.answer, args.chapter)
    if args.chapter is None:
        print("\n".join(f"{c.number:2d}  {c.title}\n    {c.summary}" for c in CHAPTERS))
        print("\nmtpref learn N shows one")
        return 0
    chapter = find_chapter(args.chapter)
    args.ops = None
    Notes().when_compiling(args)
    for cell in run_chapter(chapter):
        print(terminal(cell) + "\n")
        sys.stdout.flush()
    return 0


def _answer(text: str, chapter: int | None) -> int:
    from mtpref.faults import find_fault
    from mtpref.front.learn import is_answer

    found = re.fullmatch(r"([0-9]{1,4})=(.{1,80})", text)
    if found is None:
        raise MtprefError(f"--answer: {text[:60]!r} is not K=FAULT, expected e.g. 1=W6")
    if chapter not in (None, 10):
        raise MtprefError(f"--answer: chapter {chapter} has no exercise, expected 10")
    number, fault = int(found[1]), find_fault(found[2])
    if is_answer(number, fault.id):
        print(f"right: mystery {number} is {fault.id}. {fault.mechanism}")
        return 0
    print(f"no: mystery {number} is not {fault.id} ({fault.title})")
    return 1
