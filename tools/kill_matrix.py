"""Which golden cases catch which fault: every fault of the catalogue against every golden case.

    python tools/kill_matrix.py [ID ...] [--cases REGEX]

With ids, only those are tried again, and those that never were; with --cases, only on cases of such ids: for cases that
are new. Writes golden/flags.json (what each flag means),
golden/kill_matrix.json (fault -> cases that fail under it) and golden/kill-matrix.md. A case that carries a fault's
flag must fail under it, and no case may fail under a look-alike; the tool ends with an error where that is not so.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model
from mtpref.engine.recipe import Recipe
from mtpref.faults import FAULTS, Fault, inject, is_possible
from mtpref.faults.fault import everywhere
from mtpref.golden import Case, Folder, Port, Suite, check_case
from mtpref.golden.build import write_json

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "golden"
PAGE = GOLDEN / "kill-matrix.md"
# Look-alikes that are other settings than a case states, or make other tensors on the way to the same: a port that has
# them does not run the case.
SETTINGS = (
    "L4-p-min", "L10-trimmed-vocabulary", "L11-activation-quantisation", "L12-longer-drafts", "L13-cooldown",
    "L16-indexer-unrotated", "L17-values-scaled-first",
)  # fmt: skip
OWN_FLAGS = {
    "basic": "an ordinary case without edges: if it fails, suspect the harness first",
    "carry": "state that is carried from pass to pass",
    "drift": "a long run: errors must not grow",
    "edge.block": "extreme bits of a block",
    "edge.context": "the end of the context",
    "edge.eps": "values of the size of an epsilon",
    "edge.gate": "gates at their ends",
    "edge.large": "large values",
    "edge.length": "lengths that no vector width divides",
    "edge.scale": "scales at their ends",
    "edge.sections": "pairs that no section covers",
    "edge.short": "the shortest input",
    "edge.tie": "equal or nearly equal values",
    "edge.weight": "weights whose size says nothing",
    "edge.zero": "zeros",
}


def faulty_port(fault: Fault) -> Port:
    """mtpref with the fault in it, as a port."""

    def change(recipe: Recipe) -> Recipe:
        return recipe if fault.apply_recipe is None else everywhere(fault.apply_recipe(recipe))

    def changed(model: Model) -> Model:
        return inject(model, fault) if is_possible(fault, model) else model

    return Port(GOLDEN, change_recipe=change, change_model=changed)


HEALTHY = Port(GOLDEN)  # keeps each case's model


def reaches(fault: Fault, case: Case) -> bool:
    """Whether a fault is in what answers a case: in its model, or, without one, in the operations."""
    if "model" not in case.params:
        return fault.apply_recipe is not None
    return is_possible(fault, HEALTHY.model(case))


def failing(fault: Fault, cases: Iterable[tuple[Suite, Case, dict[str, Any]]], folder: Folder) -> Iterator[str]:
    """The ids of the cases that fail under a fault. A fault that makes a case impossible fails it."""
    port = faulty_port(fault)
    for suite, case, tensors in cases:
        if not reaches(fault, case):
            continue
        try:
            verdict = check_case(folder, suite, case, tensors, port).verdict
        except (MtprefError, ValueError, IndexError):
            verdict = "FAIL"
        if verdict == "FAIL":
            yield case.id


def all_cases(folder: Folder) -> list[tuple[Suite, Case, dict[str, Any]]]:
    return [(suite, case, folder.tensors(suite)) for suite in folder.suites() for case in suite.cases]


def worth_trying(fault: Fault, suite: Suite, case: Case) -> bool:
    """All but the dequantisers, the runs that repeat others on larger models, and what is long and not claimed."""
    is_repeat = suite.op == "dequantize" or suite.name == "tiny" or "micro_60_q8_0" in case.id
    return not is_repeat and (suite.op != "accumulated" or fault.id in case.flags)


def matrix(folder: Folder, asked: Sequence[str] = (), pattern: str = "") -> dict[str, dict[str, list[str]]]:
    """Fault -> the cases that claim it and those that it fails. asked, pattern: which faults are tried again, and on
    which cases; the rest is as it was written"""
    cases = all_cases(folder)
    known = json.loads((GOLDEN / "kill_matrix.json").read_text()) if asked or pattern else {}
    found = {}
    for fault in FAULTS.values():
        if fault.id in SETTINGS:
            continue
        killed_by = set(known.get(fault.id, {"killed_by": ()})["killed_by"])
        if fault.id not in known or not asked or fault.id in asked:
            own = [entry for entry in cases if fault.id not in known or re.search(pattern, entry[1].id)]
            killed_by -= {case.id for _, case, _ in own}
            killed_by |= set(failing(fault, [entry for entry in own if worth_trying(fault, *entry[:2])], folder))
            print(f"{fault.id}: {len(killed_by)} cases", file=sys.stderr, flush=True)
        found[fault.id] = {"claimed": claims(cases, fault.id), "killed_by": sorted(killed_by)}
    return found


def complaints(found: dict[str, dict[str, list[str]]]) -> list[str]:
    """What must not be: a claim that does not hold, a look-alike that fails a case."""
    lines = []
    for id, entry in found.items():
        idle = sorted(set(entry["claimed"]) - set(entry["killed_by"]))
        if idle and not FAULTS[id].is_look_alike:
            lines.append(f"{id} does not fail {', '.join(idle)}, which carry its flag")
        if entry["killed_by"] and FAULTS[id].is_look_alike:
            lines.append(f"the look-alike {id} fails {', '.join(entry['killed_by'])}")
    return lines


def claims(cases: list[tuple[Suite, Case, dict[str, Any]]], id: str) -> list[str]:
    return sorted(case.id for _, case, _ in cases if id in case.flags)


def flags() -> dict[str, Any]:
    """Every flag that a case may carry."""
    known: dict[str, Any] = {id: {"title": text} for id, text in OWN_FLAGS.items()}
    for fault in FAULTS.values():
        known[fault.id] = {"title": fault.title, "bug_type": fault.bug_type, "mechanism": fault.mechanism,
                           "links": list(fault.links)}  # fmt: skip
    return {"flags": known}


def page(found: dict[str, dict[str, list[str]]]) -> str:
    """golden/kill-matrix.md: how many cases of each level a fault fails, and the first ones."""
    folder = Folder(GOLDEN)
    level = {case.id: suite.level for suite in folder.suites() for case in suite.cases}
    columns = ("L1", "L2", "L3", "L4", "L5", "L6")
    lines = [
        "# Which golden cases catch which fault",
        "",
        "Every fault of the [catalogue](../docs/faults.md) against every golden case: mtpref with the fault in it is",
        "checked as any port would be. A case that carries a flag fails under that fault; look-alikes (other summation",
        "orders, a float16 cache) fail nothing; those that are other settings than a case states are not tried. Faults",
        "without a case need what the vectors do not have (the catalogue says what), or change only acceptance.",
        "",
        "Made by `python tools/kill_matrix.py`; the full lists are in [kill_matrix.json](kill_matrix.json).",
        "",
        "| fault | " + " | ".join(columns) + " | claimed by | first case |",
        "|---|" + "---|" * (len(columns) + 2),
    ]
    for id, entry in found.items():
        counts = [sum(level[c] == name for c in entry["killed_by"]) for name in columns]
        first = min(entry["killed_by"], key=lambda c: (level[c], c), default="")
        cells = [str(n or "") for n in counts]
        lines.append(f"| {id} | {' | '.join(cells)} | {len(entry['claimed'])} | {first} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", metavar="ID", help="faults to try again, and those that were never tried")
    parser.add_argument("--cases", default="", metavar="REGEX", help="cases to try again")
    args = parser.parse_args()
    found = matrix(Folder(GOLDEN), args.ids, args.cases)
    write_json(GOLDEN / "flags.json", flags())
    write_json(GOLDEN / "kill_matrix.json", found)
    PAGE.write_text(page(found), encoding="ascii")
    wrong = complaints(found)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
