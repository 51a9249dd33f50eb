"""`mtpref golden`: list and check golden vectors, and answer cases as a port."""

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mtpref.errors import MtprefError

SCHEMA = "mtpref-golden-check-1"


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "golden",
        usage="mtpref golden ACTION [options]",
        help="golden vectors: list them, check mtpref or another program with them",
        description="Golden vectors for ports: golden/README.md says what they hold and how a port consumes them.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, prog="mtpref golden")
    _add_list(actions)
    _add_check(actions)
    _add_port(actions)


def _add_list(actions: Any) -> None:
    parser = actions.add_parser(
        "list",
        usage="mtpref golden list [options] [DIR]",
        help="the suites, their cases, what they require and which faults they catch",
        description="List the suites of a folder of golden vectors.",
    )
    _add_folder(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (default: off)")
    parser.set_defaults(run=run_list)


def _add_check(actions: Any) -> None:
    parser = actions.add_parser(
        "check",
        usage="mtpref golden check [options] [DIR]",
        help="check mtpref, or the program of --cmd, with every case",
        description="Ask for every case and compare the answers. Exit code 1 if any case fails.",
    )
    _add_folder(parser)
    parser.add_argument(
        "--cmd", metavar="COMMAND", help="ask this program (filter protocol) instead of mtpref itself (default: mtpref)"
    )
    parser.add_argument(
        "--ops",
        choices=("numba", "spec"),
        default="numba",
        help="without --cmd: the compiled kernels or the readable specification (default: numba)",
    )
    parser.add_argument("--all", action="store_true", help="a line for passed cases too (default: off)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (default: off)")
    parser.set_defaults(run=run_check)


def _add_port(actions: Any) -> None:
    parser = actions.add_parser(
        "port",
        usage="mtpref golden port [DIR]",
        help="answer cases on stdin as mtpref: the example of the filter protocol",
        description="Read one case a line (JSON), answer one line each, until the input ends.",
    )
    parser.add_argument("folder", metavar="DIR", nargs="?", default="golden", help="folder (default: golden)")
    parser.set_defaults(run=run_port)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", nargs="?", default="golden", help="folder (default: golden)")
    parser.add_argument("--level", metavar="L", help="only this level: L0 .. L6 (default: all)")
    parser.add_argument("--suite", metavar="NAME", help="only this suite (default: all)")


def run_list(args: argparse.Namespace) -> int:
    from mtpref.golden import Folder

    suites = list(Folder(args.folder).suites(args.level, args.suite))
    if args.json:
        records = [
            {"suite": s.name, "level": s.level, "op": s.op, "about": s.about, "cases": [c.id for c in s.cases]}
            for s in suites
        ]
        print(json.dumps({"schema": "mtpref-golden-list-1", "suites": records}))
        return 0
    for s in suites:
        needs = sorted({need for case in s.cases for need in case.requires})
        needed = f"  [needs {', '.join(needs)}]" if needs else ""
        print(f"{s.level}  {s.name:18s} {len(s.cases):3d} cases  {s.about}{needed}")
    return 0


def run_check(args: argparse.Namespace) -> int:
    from mtpref.golden import Folder, Port, check_folder
    from mtpref.golden.filter import Filter

    folder = Folder(args.folder)
    chosen = {"level": args.level, "suite": args.suite}
    if args.cmd is None:
        results = check_folder(folder, Port(Path(args.folder), use_kernels=_use_kernels(args.ops)), **chosen)
        return _report(results, args)
    command = shlex.split(args.cmd)
    if not command:
        raise MtprefError("--cmd: it is empty, expected a program")
    with Filter(command, Path(args.folder)) as port:
        return _report(check_folder(folder, port, **chosen), args)


def _use_kernels(ops: str) -> bool:
    from mtpref import kernels

    return ops == "numba" and kernels.available()


def _report(results: Iterable[Any], args: argparse.Namespace) -> int:
    """A line a failed case, one for each reason to skip, and the counts."""
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    records = []
    for r in results:
        counts[r.verdict] += 1
        if r.verdict == "SKIP":
            skipped[r.skipped] += 1
        records.append({"id": r.case.id, "verdict": r.verdict, "wrong": [_wrong_text(w) for w in r.wrong]})
        if not args.json and (r.verdict == "FAIL" or args.all):
            first = f"  {_wrong_text(r.wrong[0])}" if r.wrong else ""
            print(f"{r.verdict}  {r.case.id}  [{', '.join(r.case.flags)}]{first}", flush=True)
    if not counts:
        raise MtprefError("golden check: no case matches, expected a level or suite of `mtpref golden list`")
    if args.json:
        print(json.dumps({"schema": SCHEMA, "counts": dict(counts), "cases": records}))
    else:
        for reason, n in skipped.items():
            print(f"SKIP  {n} cases: {reason}")
        print(f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped")
    return 1 if counts["FAIL"] else 0


def _wrong_text(wrong: Any) -> str:
    return f"{wrong.output}: {wrong.reason}"


def run_port(args: argparse.Namespace) -> int:
    from mtpref.golden import Port
    from mtpref.golden.filter import serve

    answers: Callable[..., Any] = Port(Path(args.folder))
    serve(answers, sys.stdin, sys.stdout)
    return 0
