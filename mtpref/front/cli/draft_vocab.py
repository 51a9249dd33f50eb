"""`mtpref draft-vocab`: a list of ids for a trimmed head, from a corpus."""

import argparse
import json
from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError, NotFiniteError
from mtpref.front.cli.options import add_model, load_model
from mtpref.front.cli.output import Notes
from mtpref.front.cli.probe import Progress, add_positions, add_texts
from mtpref.front.cli.writing import OutputPath


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "draft-vocab",
        usage="mtpref draft-vocab [options] -f FILE... -o OUT",
        help="make a draft vocabulary (FastMTP, d2t) from texts, and measure what it costs",
        description="Rank token ids by their frequency in a corpus and write the best of them for --spec-draft-vocab. "
        "Coverage and acceptance, beside the full head and the head's first rows, are measured on held-out text. "
        "docs/probe.md explains.",
    )
    add_model(parser)
    add_texts(parser)
    group = parser.add_argument_group("list")
    group.add_argument("-n", "--ids", type=int, default=32768, metavar="N", help="ids in the list (default: 32768)")
    group.add_argument(
        "-o",
        "--output",
        type=OutputPath,
        required=True,
        metavar="OUT",
        help="the file to write: OUT.gguf with the tensor d2t, or any other name: text, one id a line, best first",
    )
    group.add_argument(
        "--always",
        choices=("none", "eog", "control"),
        default="control",
        help="ids that are in the list whatever the corpus says: eog: those that end generation; control: and every "
        "control token (default: control)",
    )
    measure = parser.add_argument_group("measurement")
    measure.add_argument(
        "--held-out",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="texts to measure on, not counted (default: every fifth block of -f, which is not counted then)",
    )
    measure.add_argument("--no-measure", action="store_true", help="count everything, run no model (default: off)")
    measure.add_argument(
        "--spec-draft-n-max", dest="n_draft", type=int, default=3, metavar="N", help="draft steps (default: 3)"
    )
    add_positions(measure)
    measure.add_argument("--json", action="store_true", help="one JSON object instead of the table (default: off)")
    parser.set_defaults(run=run_draft_vocab)


def run_draft_vocab(args: argparse.Namespace) -> int:
    from mtpref.measure.probe import Settings
    from mtpref.measure.probe.vocabulary import (
        always_ids,
        check_target,
        counts_of,
        held_out_texts,
        rank_ids,
        read_corpus,
        write_ids,
    )
    from mtpref.measure.probe.vocabulary_report import lines, measure

    settings = Settings(
        n_draft=args.n_draft,
        stride=args.stride,
        n_positions=args.positions,
        n_ctx=args.ctx_size,
        n_batch=args.batch_size,
        with_controls=False,
    )
    check_target(args.output)
    _check_apart(args.file, args.held_out or [])
    say = Notes()
    say.when_compiling(args)
    model = load_model(args).core
    if not model.has_mtp and not args.no_measure:
        raise MtprefError(
            "the model has no MTP head to measure with, expected one; give a stand-alone head with -md, "
            "or count alone with --no-measure"
        )
    n_vocab = model.n_vocab
    rank_ids(_no_counts(n_vocab), args.ids, always := always_ids(model.vocab, n_vocab, args.always), model.d2t)
    holds_out = not args.held_out and not args.no_measure
    domains = read_corpus(args.file, model.vocab, n_vocab, holds_out=holds_out)
    counts = counts_of(domains)
    ids = rank_ids(counts, args.ids, always, model.d2t)
    write_ids(args.output, ids, model)
    say.line(f"{args.output}: {len(ids)} ids from {int(counts.sum())} tokens, {len(always)} of them always there")
    if args.no_measure:
        return 0
    if args.held_out:
        measured = held_out_texts(args.held_out, model.vocab, n_vocab)
        measured[0].counts += counts  # what the report calls counted
    else:
        measured = domains
    try:
        report = measure(model, ids, measured, settings, Progress("draft-vocab"))
    except NotFiniteError as error:
        raise MtprefError(f"{args.output} is written; {error}") from None
    print(json.dumps(report.to_json(), ensure_ascii=True) if args.json else _safe(lines(report)))
    return 0


def _no_counts(n_vocab: int) -> Any:
    import numpy as np

    return np.zeros(n_vocab, np.int64)


def _safe(text: list[str]) -> str:
    from mtpref.files.vocab import terminal_safe

    return terminal_safe("\n".join(text))


def _check_apart(counted: list[str], held_out: list[str]) -> None:
    """Refuse a text that is both counted and measured on."""
    from mtpref.files.gguf import printable
    from mtpref.measure.probe.texts import named_files

    both = {Path(p).absolute() for _, p in named_files(counted)} & {
        Path(p).absolute() for _, p in named_files(held_out)
    }
    if both:
        raise MtprefError(
            f"--held-out {printable(str(min(both)), 400)}: it is given with -f too, expected one that was not counted"
        )
