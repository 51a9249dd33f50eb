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
        "MTP head comes from. Reads the header only. --memory: what the model takes without a head, with one that is "
        "off, on, and on in a file of its own; docs/keeping-the-head.md explains.",
    )
    parser.add_argument("file", metavar="FILE", help="GGUF file")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (default: off)")
    parser.add_argument("--memory", action="store_true", help="what it takes, on disk and in memory (default: off)")
    parser.add_argument(
        "-c", "--ctx-size", type=int, metavar="N", help="of --memory: tokens in the caches (default: 4096)"
    )
    parser.set_defaults(run=run_inspect)


def run_inspect(args: argparse.Namespace) -> int:
    from mtpref.base.errors import MtprefError
    from mtpref.front.cli.terminal import width_of
    from mtpref.heads import inspect

    if args.memory:
        return inspect.run_memory(args.file, args.json, args.ctx_size)
    if args.ctx_size is not None:
        raise MtprefError("--ctx-size: expected it with --memory")
    return inspect.run(args.file, args.json, width_of(sys.stdout))
