"""The command line: `mtpref VERB ...` and `python -m mtpref VERB ...`.

Owns verbs, exit codes and the one-line error. Exit codes: 0 done, 1 a comparison found differences, 2 bad usage or
input, 130 interrupted, 141 the reader of stdout has gone. Each verb stands in a file of its own.
"""

import argparse
import contextlib
import gc
import os
import sys
from typing import Any

from mtpref import __version__
from mtpref.base.errors import MtprefError, one_line
from mtpref.files import doors as files
from mtpref.front.cli.flags import FLAGS
from mtpref.front.cli.output import begin, drop_notes, hold_notes
from mtpref.front.cli.writing import OutputPath

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141  # 128 + SIGPIPE: 1 would say that something was found

# Imports, compiled code and a vocabulary are some hundred thousand objects that stay. Looking through them for garbage
# after every 700 new ones, Python's default, takes a fifteenth of a start, and of compiling.
GARBAGE_AFTER = 100_000


class HelpFormatter(argparse.HelpFormatter):
    """One layout under every Python version and terminal width: docs/cli.md is compared with it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        values = "" if action.nargs == 0 else " " + self._format_args(action, action.dest.upper())
        return ", ".join(action.option_strings) + values


class _Parser(argparse.ArgumentParser):
    """argparse with one line for an error, as for every other bad input."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> "None":  # type: ignore[override]
        self.exit(EXIT_USAGE, one_line(f"{self.prog}: error: {message}; try: {self.prog} --help") + "\n")


def build_parser() -> argparse.ArgumentParser:
    from mtpref.front.cli import (
        bench,
        check,
        compare,
        compare_log,
        convert,
        diagnose,
        draft_vocab,
        dump,
        faults,
        generate,
        golden,
        heads,
        inspect,
        learn,
        plan,
        probe,
        quantize,
        selftest,
        story,
        trace,
    )

    parser = _Parser(
        prog="mtpref",
        usage="mtpref VERB [options]",
        description="The reference MTP (multi-token prediction) speculative decoder for GGUF models.",
    )
    parser.add_argument("--version", action="version", version=f"mtpref {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser, prog="mtpref")
    on_files, runs = (
        (inspect, check, heads, convert, quantize, dump, compare, compare_log),
        (golden, probe, plan, bench, draft_vocab, diagnose, faults, story, selftest),
    )
    for module in (generate, trace, *on_files, *runs, learn):
        module.add_parser(verbs)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    gc.set_threshold(GARBAGE_AFTER)
    arguments = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    if not arguments:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        names = f"unrecognized arguments: {' '.join(unknown)}"
        parser.exit(EXIT_USAGE, one_line(f"mtpref {args.verb}: error: {names}; try: mtpref {args.verb} --help") + "\n")
    if sys.stdout is None:
        return _refuse(args.verb, "standard output is closed, expected it open; redirect it to a file or /dev/null")
    hold_notes()
    try:
        with files.guarded():
            for value in vars(args).values():
                if isinstance(value, OutputPath):
                    files.claim_output(value)
            code = int(args.run(args))
        begin()
        sys.stdout.flush()
        return code
    except MtprefError as error:
        return _refuse(args.verb, error.told(FLAGS))
    except KeyboardInterrupt:
        begin()
        print(f"mtpref {args.verb}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout is gone (`| head`).
        _drop_stdout()
        return EXIT_PIPE
    except OSError as error:
        _drop_stdout()
        name = f"{error.filename}: " if error.filename else ""
        return _refuse(args.verb, f"{name}{error.strerror or error}; is the disk full, or the output closed?")
    except MemoryError:
        return _refuse(args.verb, "out of memory; try a smaller --ctx-size, or a shorter prompt")


def _refuse(verb: str, why: str) -> int:
    drop_notes()
    with contextlib.suppress(OSError):  # stderr may be what is full
        print(one_line(f"mtpref {verb}: error: {why}"), file=sys.stderr, flush=True)
    return EXIT_USAGE


def _drop_stdout() -> None:
    """What is still buffered may have nowhere to go, and must not raise again at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
