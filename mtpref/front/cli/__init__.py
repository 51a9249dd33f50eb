"""The command line: `mtpref VERB ...` and `python -m mtpref VERB ...`.

Owns verbs, exit codes and the one-line error. Exit codes: 0 done, 1 a comparison found differences, 2 bad usage or
input, 3 cannot judge, 130 interrupted. A reader of stdout that goes away is no error; where the code is a verdict it is
141 then. Each verb stands in a file of its own.
"""

import contextlib
import gc
import os
import sys
from collections.abc import Iterator

from mtpref import __version__
from mtpref.base.errors import MtprefError, one_line
from mtpref.files import doors as files
from mtpref.front.cli.examples import epilog
from mtpref.front.cli.flags import FLAGS
from mtpref.front.cli.output import begin, drop_notes, hold_notes
from mtpref.front.cli.parser import EXIT_USAGE, Parser
from mtpref.front.cli.writing import OutputPath, output_to_stdout

EXIT_INTERRUPTED = 130
EXIT_PIPE = 141  # 128 + SIGPIPE
# Verbs whose exit code says what was found: 0 would be a verdict where none was reached.
VERDICTS = ("check", "compare", "compare-log", "diagnose", "fetch", "golden", "selftest")

# Imports, compiled code and a vocabulary are some hundred thousand objects that stay. Looking through them for garbage
# after every 700 new ones, Python's default, takes a fifteenth of a start, and of compiling.
GARBAGE_AFTER = 100_000


GROUPS = (
    ("run a model", ("generate", "trace", "story", "warmup")),
    ("look inside", ("inspect", "dump", "compare", "compare-log", "selftest")),
    ("measure", ("probe", "plan", "bench", "draft-vocab")),
    ("keep the head", ("check", "fetch", "convert", "quantize", "imatrix", "extract", "strip", "graft")),
    ("bring MTP to an engine", ("golden", "diagnose", "faults")),
    ("learn", ("learn", "docs", "completion")),
)
EPILOG = """Without -m, verbs run the tiny model inside the package. A start:

  mtpref generate -p "Once upon a time"
  mtpref learn 1
  mtpref check model.gguf

mtpref VERB --help shows a verb's options with examples;
mtpref docs NAME prints a page of docs/."""


def build_parser() -> Parser:
    """The parser of every verb, with examples."""
    from mtpref.front.cli import (
        bench,
        check,
        compare,
        compare_log,
        completion,
        convert,
        diagnose,
        docs,
        draft_vocab,
        dump,
        faults,
        fetch,
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

    parser = Parser(
        groups=GROUPS,
        prog="mtpref",
        usage="mtpref VERB [options]",
        description="The reference MTP (multi-token prediction) speculative decoder for GGUF models.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"mtpref {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser, prog="mtpref")
    on_files, runs = (
        (inspect, check, fetch, heads, convert, quantize, dump, compare, compare_log),
        (golden, probe, plan, bench, draft_vocab, diagnose, faults, story, selftest),
    )
    for module in (generate, trace, *on_files, *runs, learn, docs, completion):
        module.add_parser(verbs)
    leaves = dict(commands(parser))
    elsewhere: dict[str, list[str]] = {}
    for command, leaf in leaves.items():
        leaf.epilog = epilog(command)
        for flag in leaf.flags():
            elsewhere.setdefault(flag, []).append(command)
    for leaf in leaves.values():
        leaf.elsewhere = elsewhere
    for verb, child in verbs.choices.items():
        child.epilog = epilog(verb)
    return parser


def commands(parser: Parser, name: str = "") -> Iterator[tuple[str, Parser]]:
    """(command, its parser) of everything that runs: `generate`, `trace show`, ..."""
    if parser.sub is None:
        yield name, parser
        return
    for verb, child in parser.sub.choices.items():
        yield from commands(child, f"{name} {verb}".strip())


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    gc.set_threshold(GARBAGE_AFTER)
    if sys.stderr is None:
        # print(file=None) would write notes into the text.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        why = "standard output is closed, expected it open; redirect it to a file or /dev/null"
        print(f"mtpref: error: {why}", file=sys.stderr)
        return EXIT_USAGE
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if not arguments or arguments == ["help"]:
        parser.print_help()
        return 0
    if arguments[0] == "help":
        arguments = [*arguments[1:], "--help"]
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        command = args.verb if getattr(args, "action", None) is None else f"{args.verb} {args.action}"
        dict(commands(parser))[command].unexpected(unknown)
    hold_notes()
    try:
        with files.guarded(), output_to_stdout(args):
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
        # The reader of stdout is gone (`| head`): it has read what it wanted.
        _drop_stdout()
        return EXIT_PIPE if args.verb in VERDICTS else 0
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
