"""One-line mutations of two trees, and which test notices each: whether a changed test suite has lost anything.

  python tools/mutations.py run TREE --label old --work DIR -o results.jsonl   go on where an earlier call ended
  python tools/mutations.py areas TREE --label new --work DIR -o results.jsonl  the same without a recording
  python tools/mutations.py table results.jsonl old new                        what was killed where, as Markdown
  python tools/mutations.py places TREE                                        where each mutation would be made

TREE is a checkout with the package and its tests, DIR an empty folder (or that of an earlier call) that takes copies,
coverage and compiled kernels. The first call runs every test of the tree once under coverage, a file at a time; then
each mutation of tools/mutating/mutations.toml is made in a copy. Its covering tests run to the first failure; where
none fails, all others do. Tests that fail when the source changes without changing a result are left out.
`areas` records nothing: an area's own test files run first (`areas` in the list), then, with --whole, all others.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from mutating.judging import Result, judge_all, judge_by_area, read_results
from mutating.places import Mutation, find, modules_of, read_areas, read_list
from mutating.recording import record

SUITE = ["tests/test_*.py"]


def table(results: list[Result], labels: list[str], mutations: list[Mutation]) -> str:
    """A line for each mutation, with its verdict in each tree; then the counts."""
    by = {(r.tree, r.id): r for r in results}
    lines = ["| mutation | " + " | ".join(labels) + " |", "|---|" + "---|" * len(labels)]
    for m in mutations:
        cells = [_cell(by.get((label, m.id))) + (f" ({m.equivalent})" if m.equivalent else "") for label in labels]
        lines.append(f"| {m.id} | " + " | ".join(cells) + " |")
    known = {m.id for m in mutations}
    for label in labels:
        counts = Counter(r.verdict for r in results if r.tree == label and r.id in known)
        words = ", ".join(f"{counts[v]} {v}" for v in ("killed", "lived", "gone"))
        lines.append(f"\n{label}: {words}, {len(known) - sum(counts.values())} not run.")
    return "\n".join(lines) + "\n"


def _cell(result: Result | None) -> str:
    if result is None:
        return "not run"
    if result.verdict != "killed":
        return f"**{result.verdict}**"
    test = result.by.rpartition("/")[2].partition("[")[0]
    return f"{test}{' (whole suite)' if result.stage == 'whole' else ''}"


def _run(args: argparse.Namespace, mutations: list[Mutation]) -> int:
    tree, work = args.tree.resolve(), args.work.resolve()
    recording = record(tree, work, args.suite)
    print(f"{len(recording.tests)} tests, {len(recording.left_out)} of them left out", file=sys.stderr)
    judge_all(mutations, tree, args.label, work, recording, args.output)
    return 0


def _areas(args: argparse.Namespace, mutations: list[Mutation]) -> int:
    areas = read_areas()
    judge_by_area(mutations, args.tree.resolve(), args.label, args.work.resolve(), areas, args.output, args.whole)
    return 0


def _places(args: argparse.Namespace, mutations: list[Mutation]) -> int:
    modules = modules_of(args.tree.resolve())
    places = [(m, find(m, modules)) for m in mutations]
    for m, place in places:
        print(f"{m.id}: {f'{place.path}:{place.lines[0]}' if place else 'gone'}")
    return int(any(place is None for _, place in places))


def _table(args: argparse.Namespace, mutations: list[Mutation]) -> int:
    print(table(read_results(args.results), args.labels, mutations), end="")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    run = verbs.add_parser("run")
    run.add_argument("tree", type=Path)
    run.add_argument("--label", required=True, help="what the results call the tree")
    run.add_argument("--work", type=Path, required=True)
    run.add_argument("-o", "--output", type=Path, required=True)
    run.add_argument("--suite", nargs="+", default=SUITE, metavar="GLOB", help="test files (default: all)")
    run.add_argument("--only", nargs="+", default=[], metavar="ID", help="these mutations (default: all)")
    run.set_defaults(do=_run)
    areas = verbs.add_parser("areas")
    areas.add_argument("tree", type=Path)
    areas.add_argument("--label", required=True, help="what the results call the tree")
    areas.add_argument("--work", type=Path, required=True)
    areas.add_argument("-o", "--output", type=Path, required=True)
    areas.add_argument("--only", nargs="+", default=[], metavar="ID", help="these mutations (default: all)")
    areas.add_argument("--whole", action="store_true", help="where an area's files let one live, run all others")
    areas.set_defaults(do=_areas)
    places = verbs.add_parser("places")
    places.add_argument("tree", type=Path)
    places.set_defaults(do=_places)
    shown = verbs.add_parser("table")
    shown.add_argument("results", type=Path)
    shown.add_argument("labels", nargs="+")
    shown.set_defaults(do=_table)
    args = parser.parse_args(argv)
    mutations = read_list()
    only = set(getattr(args, "only", []))
    if unknown := only - {m.id for m in mutations}:
        parser.error(f"--only: {', '.join(sorted(unknown))} is no mutation; try: places TREE")
    return int(args.do(args, [m for m in mutations if not only or m.id in only]))


if __name__ == "__main__":
    sys.exit(main())
