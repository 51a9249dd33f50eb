"""`mtpref trace show` and `mtpref trace html`: what a run did, from its trace."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.front.cli.writing import OutputPath


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "trace",
        usage="mtpref trace ACTION [options]",
        help="show what a run did, from the trace that generate --trace wrote",
        description="Traces of `mtpref generate --trace FILE`; docs/trace.md describes the format.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, prog="mtpref trace")
    _add_show(actions)
    _add_html(actions)


def _add_show(actions: Any) -> None:
    parser = actions.add_parser(
        "show",
        usage="mtpref trace show [options] FILE",
        help="drafts, verdicts, roll backs, cooldown, near ties and draws, round by round",
        description="Show a trace round by round: each drafted token with its probability and verdict, the target's "
        "own token, roll backs, cooldown, near ties, the numbers that draws looked at, and why each run ended.",
    )
    parser.add_argument("file", metavar="FILE", help="the trace; - reads standard input")
    parser.add_argument(
        "-m",
        "--model",
        metavar="FNAME",
        help="GGUF file whose tokenizer names rejected tokens too (default: the embedded "
        "model's names where it ran, else ids)",
    )
    parser.add_argument("--rounds", metavar="A-B", help="only these rounds of each run: 12, 3-9, 40- (default: all)")
    parser.add_argument("--run", type=int, metavar="N", dest="run_number", help="only the N-th run (default: all)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--text", action="store_true", help="the text alone, coloured by origin (default: off)")
    form.add_argument("--json", action="store_true", help="a JSON object for each run, round and end (default: off)")
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto: on a terminal, unless NO_COLOR is set, or where FORCE_COLOR is (default: auto)",
    )
    parser.set_defaults(run=run_show)


def _add_html(actions: Any) -> None:
    parser = actions.add_parser(
        "html",
        usage="mtpref trace html [options] FILE [OTHER] -o PAGE",
        help="one self-contained page: the text by origin, a timeline of rounds, acceptance; two runs side by side",
        description="Write one HTML file that needs no network: the text coloured by origin, every round with its "
        "draft, verdicts and roll back, acceptance over time and by position, near ties, candidates. With two traces, "
        "both beside each other and the first place where they part.",
    )
    parser.add_argument("file", metavar="FILE", help="the trace")
    parser.add_argument("other", metavar="OTHER", nargs="?", help="a second trace, to be shown beside it")
    parser.add_argument("-o", "--output", type=OutputPath, metavar="PAGE", required=True, help="the page to write")
    parser.add_argument(
        "-m",
        "--model",
        metavar="FNAME",
        help="GGUF file whose tokenizer names rejected tokens too (default: the embedded "
        "model's names where it ran, else ids)",
    )
    parser.add_argument("--rounds", metavar="A-B", help="only these rounds: 12, 3-9, 40- (default: all)")
    parser.add_argument("--run", type=int, metavar="N", default=1, dest="run_number", help="the N-th run (default: 1)")
    parser.set_defaults(run=run_html)


def run_html(args: argparse.Namespace) -> int:
    from mtpref.files.gguf import human_bytes, write_whole
    from mtpref.look.html import read_side, render_page

    rounds = _rounds(args.rounds)
    if args.run_number < 1:
        raise MtprefError(f"--run: {args.run_number} is out of range, expected 1 or more")
    paths = [args.file] + ([] if args.other is None else [args.other])
    own = _pieces(args.model)
    sides = [
        read_side(path, run=args.run_number, rounds=rounds, piece_of=own or _pieces(_embedded(path))) for path in paths
    ]
    page = render_page(sides)
    write_whole(args.output, page)
    for side in sides:
        for note in side.notes:
            print(f"note: {side.label}: {note}", file=sys.stderr)
    print(f"{args.output}: {human_bytes(len(page))}")
    return 0


def run_show(args: argparse.Namespace) -> int:
    from mtpref.look.trace import read_trace

    rounds = _rounds(args.rounds)
    if args.run_number is not None and args.run_number < 1:
        raise MtprefError(f"--run: {args.run_number} is out of range, expected 1 or more")
    piece_of = _pieces(args.model or (None if args.text else _embedded(args.file)))
    with read_trace(args.file) as reader:
        events = _of_run(reader, args.run_number)
        if args.text:
            _show_text(events, args)
        elif args.json:
            _show_json(events, piece_of, rounds)
        else:
            _show_rounds(events, piece_of, rounds, args)
        if args.run_number is not None and args.run_number > reader.n_runs:
            raise MtprefError(f"--run: {args.run_number} is out of range, {reader.label} holds {reader.n_runs} runs")
        sys.stdout.flush()
        for note in reader.notes():
            print(f"note: {note}", file=sys.stderr)
    return 0


def _rounds(text: str | None) -> tuple[int, int | None]:
    found = re.fullmatch(r"(\d{1,9})(?:(-)(\d{1,9})?)?", text or "0-")
    if found is None or (found[3] and int(found[3]) < int(found[1])):
        raise MtprefError(f"--rounds: {text!r} is no range, expected A-B, A- or A, counted from 0")
    last = int(found[3]) if found[3] else None if found[2] else int(found[1])
    return int(found[1]), last


def _embedded(trace: str) -> str | None:
    """The embedded model's file where a trace says that it ran that one; standard input is not looked at."""
    from mtpref.base.events import RunStarted
    from mtpref.files.gguf import open_gguf
    from mtpref.front.api import tiny_path
    from mtpref.look.trace import read_trace

    if not Path(trace).is_file():
        return None
    with read_trace(trace) as reader:
        first = next(iter(reader), None)
    if not isinstance(first, RunStarted):
        return None
    with open_gguf(tiny_path()) as file:
        return str(tiny_path()) if first.model == file.kv.get("general.name") else None


def _pieces(path: str | None) -> Callable[[int], bytes | None] | None:
    """Token texts of a model's file, of which only the header is read; None without one."""
    if path is None:
        return None
    from mtpref.files.gguf import open_gguf
    from mtpref.files.vocab import load_vocab

    vocab = load_vocab(open_gguf(Path(path)).kv)
    return lambda id: vocab.piece(id, special=True) if 0 <= id < vocab.n_vocab else None


def _of_run(events: Iterable[Any], number: int | None) -> Iterator[Any]:
    from mtpref.base.events import RunStarted

    n = 0
    for event in events:
        n += isinstance(event, RunStarted)
        if number is None or n == number:
            yield event


def _show_rounds(
    events: Iterable[Any], piece_of: Any, rounds: tuple[int, int | None], args: argparse.Namespace
) -> None:
    from mtpref.front.cli.terminal import painted, wants_color, width_of
    from mtpref.look.trace import rounds_of
    from mtpref.look.trace.names import Names
    from mtpref.look.trace.show import RoundLines

    is_colored = wants_color(args.color, sys.stdout)
    view = RoundLines(width_of(sys.stdout), Names(piece_of), rounds)
    for item in rounds_of(events):
        for line in view.lines(item):
            _print(painted(line, is_colored) + "\n")


def _show_text(events: Iterable[Any], args: argparse.Namespace) -> None:
    from mtpref.base.events import RunEnded
    from mtpref.front.cli.output import legend_spans
    from mtpref.front.cli.terminal import painted, wants_color
    from mtpref.look.trace.show import TextSpans

    is_colored = wants_color(args.color, sys.stdout)
    if is_colored:
        print(painted(legend_spans(), True), file=sys.stderr)
    view, is_open = TextSpans(), False
    for event in events:
        spans = view.spans(event)
        _print("".join(painted([span], is_colored) if is_colored else span[0] for span in spans))
        is_open = not isinstance(event, RunEnded)
        if not is_open:
            _print("\n")
    if is_open:
        _print("\n")


def _show_json(events: Iterable[Any], piece_of: Any, rounds: tuple[int, int | None]) -> None:
    from mtpref.look.trace import Round, rounds_of
    from mtpref.look.trace.names import Names
    from mtpref.look.trace.normal import Records

    records = Records(Names(piece_of))
    for item in rounds_of(events):
        record = records.record(item)
        number = item.number if isinstance(item, Round) else None
        is_wanted = number is None or (rounds[0] <= number and (rounds[1] is None or number <= rounds[1]))
        if record is not None and is_wanted:
            print(json.dumps(record, ensure_ascii=True))


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
