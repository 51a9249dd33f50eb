"""`mtpref probe`: teacher-forced acceptance of a head on texts."""

import argparse
import json
import sys
import time
from typing import Any

from mtpref.front.cli.options import add_model, load_model
from mtpref.front.cli.output import Notes, begin
from mtpref.front.cli.writing import OutputPath


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "probe",
        usage="mtpref probe [options] -f FILE...",
        help="how often the head agrees with the trunk on a text, with controls",
        description="Run texts once and draft from every position: teacher-forced acceptance by draft position, "
        "domain and context length, calibration, ranks, and controls beside it. docs/probe.md says what each number "
        "means.",
    )
    add_model(parser)
    add_texts(parser)
    run = parser.add_argument_group("probe")
    run.add_argument(
        "--spec-draft-n-max", dest="n_draft", type=int, default=3, metavar="N", help="draft steps (default: 3)"
    )
    add_positions(run)
    run.add_argument(
        "--block", type=int, default=128, metavar="N", help="tokens per block, the unit of the intervals (default: 128)"
    )
    run.add_argument("--no-controls", action="store_true", help="leave the negative controls out (default: off)")
    run.add_argument(
        "--contracts",
        action="store_true",
        help="also under every preset and single-field change of the contract (default: off)",
    )
    run.add_argument(
        "--plot", type=OutputPath, metavar="FILE", help="draw to FILE.png or FILE.svg (needs matplotlib; default: none)"
    )
    run.add_argument("--json", action="store_true", help="one JSON object instead of the tables (default: off)")
    parser.set_defaults(run=run_probe)


def add_texts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("texts")
    group.add_argument(
        "-f",
        "--file",
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="texts; LABEL=FILE puts several under one domain (default: each file is its own)",
    )


def add_positions(group: Any) -> None:
    group.add_argument(
        "--positions",
        type=int,
        default=1024,
        metavar="N",
        help="positions probed per text, evenly spaced; 0: all (default: 1024)",
    )
    group.add_argument("--stride", type=int, default=1, metavar="N", help="probe every Nth position (default: 1)")
    group.add_argument(
        "-c",
        "--ctx-size",
        type=int,
        default=0,
        metavar="N",
        help="longest context; longer texts are cut into windows (default: the model's context length)",
    )
    group.add_argument(
        "-b", "--batch-size", type=int, default=512, metavar="N", help="tokens per trunk pass (default: 512)"
    )


def run_probe(args: argparse.Namespace) -> int:
    from mtpref.measure.probe import Settings, probe, read_texts
    from mtpref.measure.probe.plot import check_plot, write_plot
    from mtpref.measure.probe.render import lines

    settings = Settings(
        n_draft=args.n_draft,
        stride=args.stride,
        n_positions=args.positions,
        n_ctx=args.ctx_size,
        n_batch=args.batch_size,
        block=args.block,
        with_controls=not args.no_controls,
        with_contracts=args.contracts,
    )
    if args.plot is not None:
        check_plot(args.plot)
    say = Notes()
    say.when_compiling(args)
    model = load_model(args).core
    texts = read_texts(args.file, model.vocab)
    count = "1 text" if len(texts) == 1 else f"{len(texts)} texts"
    say.line(f"model: {args.model or 'embedded tiny model'}; {count}, {sum(len(t.ids) for t in texts)} tokens")
    report = probe(model, texts, settings, Progress("probe"))
    if args.plot is not None:
        write_plot(report, args.plot)
    if args.json:
        print(json.dumps(report.to_json(), ensure_ascii=True))
    else:
        from mtpref.files.vocab import terminal_safe

        print(terminal_safe("\n".join(lines(report))))
    return 0


class Progress:
    """Tokens done, on stderr: one line that is rewritten on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, what: str) -> None:
        self._what, self._is_tty = what, sys.stderr.isatty()
        self._told = time.monotonic()

    def __call__(self, n_done: int, n_all: int) -> None:
        begin()
        text = f"{self._what}: {n_done} of {n_all} tokens"
        if self._is_tty:
            print(f"\r{text}", end="\n" if n_done == n_all else "", file=sys.stderr, flush=True)
        elif time.monotonic() - self._told >= 10:
            self._told = time.monotonic()
            print(text, file=sys.stderr, flush=True)
