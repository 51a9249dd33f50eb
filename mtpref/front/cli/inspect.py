"""`mtpref inspect`: what is in a GGUF file, and is its MTP head there."""

import argparse
import sys
from typing import Any


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "inspect",
        usage="mtpref inspect [options] FILE",
        help="show hyper-parameters, layers, tensors and the MTP head of a GGUF file",
        description="Show hyper-parameters, layers by kind, tensors, the quantisation mix and where each tensor of the "
        "MTP head comes from. Reads the header only.",
    )
    parser.add_argument("file", metavar="FILE", help="GGUF file")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (default: off)")
    parser.set_defaults(run=run_inspect)


def run_inspect(args: argparse.Namespace) -> int:
    from mtpref.front.cli.terminal import width_of
    from mtpref.heads import inspect

    return inspect.run(args.file, args.json, width_of(sys.stdout))
