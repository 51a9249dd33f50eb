"""`mtpref faults`: the catalogue of known mistakes."""

import argparse
import json
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtpref.faults import Fault

SCHEMA = "mtpref-faults-1"
WIDTH = 100


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "faults",
        usage="mtpref faults [--json] [ID ...]",
        help="list or describe the faults that --fault injects",
        description="List the faults that --fault injects, or describe those that are named. docs/faults.md has what "
        "each of them does to the embedded model.",
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="describe these, by id or number (default: list all)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (default: off)")
    parser.set_defaults(run=run_faults)


def run_faults(args: argparse.Namespace) -> int:
    from mtpref.faults import FAULTS, find_fault

    chosen = [find_fault(id) for id in args.ids] or list(FAULTS.values())
    if args.json:
        record = {"schema": SCHEMA, "faults": [fault.to_json() for fault in chosen]}
        print(json.dumps(record, ensure_ascii=True))
    else:
        print("\n\n".join(described(fault) for fault in chosen) if args.ids else listed(chosen))
    return 0


def listed(faults: "list[Fault]") -> str:
    """One line a fault, under the name of its family."""
    from mtpref.faults import FAMILIES

    width = max(len(fault.id) for fault in faults)
    lines = []
    for letter, name in FAMILIES.items():
        lines += [f"{letter}: {name}"]
        lines += [f"  {fault.id:{width}s}  {fault.title}" for fault in faults if fault.family == letter] + [""]
    return "\n".join(lines[:-1])


def described(fault: "Fault") -> str:
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
    lines = [f"{fault.id}: {fault.title}"]
    for name, text in rows:
        lines += textwrap.wrap(text, WIDTH, initial_indent=f"  {name:<17s}", subsequent_indent=" " * 19,
                               break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return "\n".join(lines)
