"""`--fault ID`: run a model with known mistakes in it, and say so in red."""

import argparse
import os
import sys
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.front.cli.output import note

RED, RESET = "\x1b[1;31m", "\x1b[0m"


def add_fault(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="ID",
        help="run with a known mistake, by id or number; repeatable; mtpref faults lists them (default: none)",
    )


def apply_faults(args: argparse.Namespace, core: Any) -> Any:
    """The model with the faults that the arguments name, each named on stderr.

    Errors  MtprefError for an unknown one, or one that is named twice
    """
    if not args.fault:
        return core
    from mtpref.faults import find_fault, inject

    faults = [find_fault(id) for id in args.fault]
    ids = [fault.id for fault in faults]
    if len(set(ids)) != len(ids):
        raise MtprefError(f"--fault: {', '.join(ids)} names one twice, expected each at most once")
    for fault in faults:
        kind = "look-alike" if fault.is_look_alike else "FAULT"
        note(in_red(f"{kind} {fault.id}: {fault.title}; nothing that follows is the reference's"))
    return inject(core, *faults)


def refuse_in_conversation(args: argparse.Namespace) -> None:
    """A session goes back by positions, so a state whose cells do not follow them cannot be one.

    Errors  MtprefError for a fault that moves cells
    """
    from mtpref.faults import find_fault

    moving = [fault.id for fault in map(find_fault, args.fault) if "steps.place_mtp" in fault.replaces]
    if moving:
        raise MtprefError(
            f"--fault {', '.join(moving)}: it moves cells away from their positions, so a conversation "
            "cannot go on from its state; run the turns as single prompts"
        )


def in_red(text: str) -> str:
    """The text in red where stderr is a terminal that wants colour (NO_COLOR is respected)."""
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        return f"{RED}{text}{RESET}"
    return text
