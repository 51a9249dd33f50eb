"""`mtpref story`: llama.cpp PR #20700's table, run on a model."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mtpref.front.cli.options import add_model, add_prompt, load_model, read_prompt
from mtpref.front.cli.output import Notes, begin

if TYPE_CHECKING:
    from mtpref.measure.story import Line, Story

DEFAULT_N_PREDICT = 48


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "story",
        usage="mtpref story [options]",
        help="what stale rows, cooldown, roll back and a trimmed head cost (llama.cpp PR #20700)",
        description="Run llama.cpp PR #20700's inline drafter in every combination of row, cooldown, roll back and "
        "head, and print acceptance, text identity and passes per token, with the ceilings. docs/pr-20700.md explains.",
    )
    add_model(parser)
    add_prompt(parser)
    run = parser.add_argument_group("run")
    run.add_argument(
        "-n",
        "--predict",
        "--n-predict",
        dest="n_predict",
        type=int,
        default=DEFAULT_N_PREDICT,
        metavar="N",
        help=f"tokens to generate from each prompt, 12 or more (default: {DEFAULT_N_PREDICT}); without -p and -f the "
        "prompts are twelve built-in ones",
    )
    run.add_argument("--json", action="store_true", help="one JSON object instead of the tables (default: off)")
    parser.set_defaults(run=run_story)


def run_story(args: argparse.Namespace) -> int:
    from mtpref.measure.story import PROMPTS, tell, to_json

    prompts = PROMPTS if args.prompt is None and args.file is None else (read_prompt(args),)
    say = Notes()
    say.when_compiling(args)
    model = load_model(args).core
    count = "1 prompt" if len(prompts) == 1 else f"{len(prompts)} prompts"
    say.line(f"model: {args.model or 'embedded tiny model'}; {count}, {args.n_predict} tokens each, 18 runs of each")
    story = tell(model, prompts, args.n_predict)
    begin()
    if args.json:
        print(json.dumps(to_json(story), ensure_ascii=True))
    else:
        print("\n".join([*table(story), "", *ceilings(story), "", *notes(story)]))
    return 0


def table(story: "Story") -> list[str]:
    """The runs as a Markdown table."""
    rows = [
        ("head", "decoding", "row", "cooldown", "acceptance", "fresh", "stale", "new text", "same text",
         "passes / token", "tokens / pass"),
        *(_row(story, line) for line in story.lines),
    ]  # fmt: skip
    return _markdown(rows, n_left=3)


def _row(story: "Story", line: "Line") -> tuple[str, ...]:
    setup = line.setup
    same = f"{line.n_same} of {story.n_prompts}"
    return (
        "full" if setup.n_draft_vocab is None else f"first {setup.n_draft_vocab}",
        setup.decoding,
        setup.row,
        str(setup.cooldown),
        _percent(line.n_accepted, line.n_drafted),
        "{} / {}".format(*line.fresh),
        "{} / {}".format(*line.stale),
        _percent(*line.new),
        same if line.differs_at is None else f"{same} (from token {line.differs_at + 1})",
        f"{line.n_passes} / {line.n_tokens} = {line.n_passes / line.n_tokens:.3f}",
        f"{line.n_tokens / line.n_passes:.2f}",
    )


def ceilings(story: "Story") -> list[str]:
    """The ceilings, derived and run, as a Markdown table."""
    if not story.ceilings:
        return ["(no ceilings: every text ended within 12 tokens)"]
    rows = [("a drafter that knows the text", "arithmetic", "ceiling", "run: tokens / passes")]
    for c in story.ceilings:
        run = f"{c.n_tokens} / {c.n_passes} = {c.n_tokens / c.n_passes:.2f}"
        rows.append((c.what, c.arithmetic, f"{c.rule[0] / c.rule[1]:.2f}x", run))
    return _markdown(rows, n_left=2)


def notes(story: "Story") -> list[str]:
    nameable = _percent(story.n_nameable, story.n_tokens)
    repeated = _percent(story.n_repeated, story.n_grams)
    return [
        f"{story.n_nameable} of {story.n_tokens} tokens of the plain texts ({nameable}) are among the trimmed head's "
        f"first {story.n_draft_vocab} of {story.n_vocab} ids.",
        f"{story.n_repeated} of {story.n_grams} 4-grams of the plain texts ({repeated}) are repetitions: looping text "
        "is easy to draft. 'new text' counts only the tokens that end a new 4-gram.",
    ]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _markdown(rows: Sequence[tuple[str, ...]], n_left: int) -> list[str]:
    """Columns of one width, the first n_left aligned to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rule = "|".join("-" * (w + 2) if i < n_left else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i < n_left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [lines[0], f"|{rule}|", *lines[1:]]
