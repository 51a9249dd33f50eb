"""`mtpref completion`: what a shell needs to complete verbs, flags, choices and files.

shtab makes it from the parsers. It is one file without dependencies that knows bash, zsh, fish and tcsh, and it reads
argparse as it is; argcomplete would start the program at every key, and click or typer would mean other parsers.
"""

import argparse
from typing import Any

from mtpref.base.errors import MtprefError

SHELLS = ("bash", "zsh", "fish", "tcsh")
# Metavars of arguments that name files.
FILES = ("FILE", "FNAME", "OUT", "IN", "DIR", "PAGE", "OTHER", "TRUNK", "SOURCE", "TEXT")


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "completion",
        usage="mtpref completion SHELL",
        help="print what makes bash, zsh, fish or tcsh complete verbs and flags",
        description="Print a completion script. bash: source it in ~/.bashrc; zsh: a file _mtpref in a folder of "
        "$fpath; fish: ~/.config/fish/completions/mtpref.fish.",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh, fish or tcsh")
    parser.set_defaults(run=run_completion)


def run_completion(args: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError:
        raise MtprefError(
            "completion: the package shtab is not installed, expected it; try: pip install shtab"
        ) from None
    from mtpref.front.cli import build_parser

    parser = build_parser()
    _mark_files(parser, shtab.FILE)
    print(shtab.complete(parser, shell=args.shell), end="")
    return 0


def _mark_files(parser: Any, file: Any) -> None:
    """Arguments that name files complete as files."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _mark_files(child, file)
        elif action.nargs != 0 and any(word in str(action.metavar) for word in FILES):
            action.complete = file
