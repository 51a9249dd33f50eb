"""`mtpref compare`: two files of tensors, and the first one in which they differ."""

import argparse
import json
from typing import Any

from mtpref.front.cli.writing import OutputPath


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "compare",
        usage="mtpref compare [options] A B",
        help="compare two files of tensors and name the first divergence",
        description="Compare the tensors that two files have in common, in the execution order of the first: NMSE, "
        "relative L2, greatest difference, float32 steps, cosine, worst row; the first divergence and what feeds it. "
        "A file may be a GGUF (mtpref dump, llama-results, your own), .npz, .npy, .safetensors, a .bin of llama.cpp's "
        "model-conversion, or the text of llama-eval-callback. Exit code 1 if any tensor differs by more than the "
        "limit.",
    )
    parser.add_argument("a", metavar="A", help="the reference, e.g. from mtpref dump")
    parser.add_argument("b", metavar="B", help="the file to judge, e.g. from a port")
    parser.add_argument(
        "--limit", type=float, default=1e-6, metavar="NMSE", help="what counts as different (default: 1e-06)"
    )
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="REGEX=NAME",
        help=r"rename tensors of B, e.g. 'layers\.(\d+)\.out=l_out-\1'; repeatable, the first that matches a whole "
        "name is taken (default: none)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (default: off)")
    parser.add_argument(
        "--html", type=OutputPath, metavar="FILE", help="write a report with the error of each layer (default: none)"
    )
    parser.set_defaults(run=run_compare)


def run_compare(args: argparse.Namespace) -> int:
    from mtpref.base.errors import MtprefError
    from mtpref.files.tensor_files import write_whole
    from mtpref.look.compare import compare_files, parse_map, render, render_html

    if not 0.0 <= args.limit < float("inf"):
        raise MtprefError(f"--limit: {args.limit} is out of range, expected 0 or more")
    comparison = compare_files(args.a, args.b, args.limit, parse_map(args.map))
    if args.html:
        write_whole(args.html, render_html(comparison).encode("utf-8", "backslashreplace"))
    print(json.dumps(comparison.to_json()) if args.json else render(comparison))
    return 0 if comparison.first_divergence is None else 1
