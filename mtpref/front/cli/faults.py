"""`mtpref faults`: the catalogue of known mistakes."""

import argparse
import json
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from mtpref.front.cli.terminal import columns, width_of

if TYPE_CHECKING:
    from mtpref.faults import Fault

SCHEMA = "mtpref-faults-1"
MAX_WIDTH = 100  # of prose


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "faults",
        usage="mtpref faults [--json] [ID | WORD ...]",
        help="list or describe the faults that --fault injects",
        description="List the faults that --fault injects, describe those that are named, or list those whose title or "
        "mechanism has all the words. docs/faults.md has what each of them does to the embedded model.",
    )
    parser.add_argument(
        "ids",
        nargs="*",
        metavar="ID|WORD",
        help="describe these, by id or number, list a family by its letter, or search for words (default: list all)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (default: off)")
    parser.set_defaults(run=run_faults)


def run_faults(args: argparse.Namespace) -> int:
    chosen, is_named = _chosen(args.ids)
    if args.json:
        record = {"schema": SCHEMA, "faults": [fault.to_json() for fault in chosen]}
        print(json.dumps(record, ensure_ascii=True))
    else:
        described_one = is_named or (args.ids and len(chosen) == 1)
        width = width_of(sys.stdout)
        prose = min(width, MAX_WIDTH)
        told = "\n\n".join(described(fault, prose) for fault in chosen) if described_one else listed(chosen, width)
        print(told)
    return 0


def _chosen(words: list[str]) -> "tuple[list[Fault], bool]":
    """The faults of these ids, and True; or those that have all words, and False.

    Errors  MtprefError where nothing fits
    """
    from mtpref.faults import FAULTS, find_fault, find_named

    if not words:
        return list(FAULTS.values()), False
    if any(find_named(word) for word in words):
        return [find_fault(word) for word in words], True
    found = [
        f for f in FAULTS.values() if [words[0].upper(), *words[1:]] == [f.family]
    ]  # a letter of the list's headings
    if found:
        return found, False
    for told in (lambda f: f"{f.id} {f.title}", lambda f: f"{f.id} {f.title} {f.mechanism} {f.bug_type}"):
        found = [f for f in FAULTS.values() if all(word.lower() in told(f).lower() for word in words)]
        if found:
            return found, False
    return [find_fault(" ".join(words))], True  # says what is near


def listed(faults: "list[Fault]", width: int) -> str:
    """A fault and its title, under the name of its family."""
    from mtpref.faults import FAMILIES

    longest = max(len(fault.id) for fault in faults)
    lines = []
    for letter, name in FAMILIES.items():
        own = [(f"  {fault.id:{longest}s}", fault.title) for fault in faults if fault.family == letter]
        if own:
            heading = textwrap.wrap(f"{letter}: {name}", width, subsequent_indent="   ")
            lines += [*heading, *columns(own, width), ""]
    return "\n".join(lines[:-1])


def described(fault: "Fault", width: int) -> str:
    """Everything that the catalogue says about a fault."""
    from mtpref.faults import NEEDS, PLACES

    said = fault.predicted
    greedy, sampled = ("stays right" if ok else "changes" for ok in (said.text, said.distribution))
    rows = [
        ("mechanism", fault.mechanism),
        ("type", fault.bug_type),
        ("replaces", ", ".join(fault.replaces)),
        ("needs", "; ".join(NEEDS[need] for need in fault.needs) or "nothing"),
        *[("in models with", " and ".join(PLACES[place][0] for place in fault.where))] * bool(fault.where),
        ("first in a dump", said.dump or "no tensor: only the loop shows it"),
        ("acceptance", said.acceptance),
        ("by round", said.split),
        ("with length", said.drift),
        ("text", f"greedy text {greedy}; the distribution of sampled text {sampled}"),
        ("reported", fault.effect or "without figures" if fault.seen else "not seen in an engine"),
        *(("seen in", f"{engine}  {link}") for engine, link in fault.seen),
    ]
    told = columns([(f"  {name:<15s}", text) for name, text in rows], width)
    return "\n".join([f"{fault.id}: {fault.title}", *told])
