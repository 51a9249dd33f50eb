"""`mtpref compare`: two files of tensors, and the first one in which they differ."""

import argparse
import json
from typing import Any


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "compare",
        usage="mtpref compare [options] A.gguf B.gguf",
        help="compare two files of tensors and name the first divergence",
        description="Compare the tensors that two GGUF files have in common, in the execution order of the first: "
        "NMSE, greatest difference, worst row, first divergence. Exit code 1 if any differs by more than the limit.",
    )
    parser.add_argument("a", metavar="A.gguf", help="the reference, e.g. from mtpref dump")
    parser.add_argument("b", metavar="B.gguf", help="the file to judge, e.g. from a port")
    parser.add_argument(
        "--limit", type=float, default=1e-6, metavar="NMSE", help="what counts as different (default: 1e-06)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (default: off)")
    parser.set_defaults(run=run_compare)


def run_compare(args: argparse.Namespace) -> int:
    from mtpref.compare import compare_files, render

    comparison = compare_files(args.a, args.b, args.limit)
    print(json.dumps(comparison.to_json()) if args.json else render(comparison))
    return 0 if comparison.first_divergence is None else 1
