"""`mtpref fetch`: what a model on a server holds, and its head alone, without downloading it."""

import argparse
import contextlib
import json
import sys
from typing import Any

from mtpref.front.cli.signals import sigterm_as_interrupt
from mtpref.front.cli.writing import OutputPath, add_writing, writing

EXIT_UNSOUND, EXIT_CANNOT_JUDGE = 1, 3


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "fetch",
        usage="mtpref fetch [options] URL|hf:ORG/NAME",
        help="look into a model on a server, or take its MTP head alone",
        description="Read the headers of a GGUF model (one file or several) or of a checkpoint on a server, by HTTP "
        "ranges, and say whether an MTP head is declared, there, whole, and in which types. With --head, write the "
        "head alone: of a GGUF model an mtp-*.gguf for -md and graft, as `mtpref extract` makes it; of a checkpoint a "
        "small folder for convert --mtp, extract and graft. Exit code 0: the head is there; 1: not, or not whole; 2: "
        "no model, or a server that breaks the rules; 3: cannot judge. docs/keeping-the-head.md explains.",
    )
    parser.add_argument(
        "name",
        metavar="URL|hf:ORG/NAME",
        help="https:// URL of a .gguf file (the first of several) or of a checkpoint's folder (ending in /), or "
        "hf:ORG/NAME, hf:ORG/NAME@REVISION, hf:ORG/NAME:FILE (FILE: a path, or a type such as Q8_0)",
    )
    parser.add_argument(
        "--head", action="store_true", help="write the head alone to OUT (default: look, write nothing)"
    )
    parser.add_argument(
        "-o", "--output", type=OutputPath, metavar="OUT", help="of --head: the GGUF file, or the folder, to write"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep what comes in OUT.mtpref-parts until OUT is written, and go on with what a stopped run has left "
        "there (default: off)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (default: off)")
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="SECONDS", help="wait so long for a silent server (default: 30)"
    )
    add_writing(parser)
    parser.set_defaults(run=run_fetch)


def run_fetch(args: argparse.Namespace) -> int:
    from mtpref.base.errors import MtprefError
    from mtpref.files.remote import Client, Limits
    from mtpref.heads.fetch import look

    if args.head and args.output is None:
        raise MtprefError("--head: expected -o OUT, the file or folder to write")
    if args.output is not None and not args.head:
        raise MtprefError("-o: expected --head beside it; without, nothing is written")
    if args.resume and (not args.head or args.output.shown == "-"):
        raise MtprefError("--resume: expected --head and -o OUT, a file or folder, beside it")
    if args.json and args.head:
        raise MtprefError("--json: expected it without --head")
    if not 0.1 <= args.timeout <= 3600:
        raise MtprefError(f"--timeout: {args.timeout} is out of range, expected 0.1 to 3600 seconds")
    with sigterm_as_interrupt(), Client(Limits(timeout=args.timeout)) as client, look(client, args.name) as found:
        return _take(args, found) if args.head else _say(args, found)


def _say(args: argparse.Namespace, found: Any) -> int:
    from mtpref.files.vocab import terminal_safe
    from mtpref.front.cli.flags import flagged
    from mtpref.front.cli.terminal import width_of

    if args.json:
        print(flagged(json.dumps(found.to_json(), ensure_ascii=True)))
    else:
        for line in [*found.lines(width_of(sys.stdout)), "", *found.report.lines(), found.read_line()]:
            print(terminal_safe(flagged(line)))
    if found.report.is_sound is None:
        return EXIT_CANNOT_JUDGE
    return 0 if found.report.is_sound else EXIT_UNSOUND


def _take(args: argparse.Namespace, found: Any) -> int:
    from mtpref.base.errors import MtprefError
    from mtpref.files.gguf import human_bytes, printable
    from mtpref.files.remote import Spool

    if found.is_folder and getattr(args.output, "shown", "") == "-":
        raise MtprefError("-o: a checkpoint's head is a folder, which standard output cannot take; expected a name")
    with contextlib.ExitStack() as stack:
        options = stack.enter_context(writing(args))
        spool = stack.enter_context(Spool(args.output)) if args.resume else None
        taken = found.take(args.output, options, spool)
        if spool is not None:
            spool.done()
    print(f"{printable(str(taken.path), 400)}: {taken.n_tensors} tensors, {human_bytes(taken.n_bytes)}")
    print(found.read_line())
    return 0
