"""`mtpref plan`: which settings give most tokens a second."""

import argparse
import json
import re
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.front.cli.options import add_model, load_model, threads_in_use, whole_numbers
from mtpref.front.cli.output import Notes, begin
from mtpref.front.cli.probe import Progress, add_texts
from mtpref.front.cli.sampling_options import add_sampling, sampling_config
from mtpref.front.cli.writing import OutputPath


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "plan",
        usage="mtpref plan [options] -f FILE...",
        help="which draft length, roll back, head vocabulary and rule give most tokens a second",
        description="Continue prompts from texts, measure what every pass costs, and say what each setting would give: "
        "tokens per second for every longest draft, strategy of roll back, head vocabulary and rule. docs/plan.md "
        "says what each number means.",
    )
    add_model(parser)
    add_texts(parser)
    add_sampling(parser)
    group = parser.add_argument_group("plan")
    group.add_argument(
        "--prompts", type=int, default=12, metavar="N", help="prompts from the texts; intervals need 10 (default: 12)"
    )
    group.add_argument("--prompt-tokens", type=int, default=48, metavar="N", help="tokens of a prompt (default: 48)")
    group.add_argument(
        "-n", "--predict", type=int, default=48, metavar="N", help="tokens generated after each (default: 48)"
    )
    group.add_argument(
        "--spec-draft-n-max", dest="n_max", type=int, default=8, metavar="N", help="longest draft compared (default: 8)"
    )
    group.add_argument(
        "--trims",
        metavar="LIST",
        help="head vocabularies: full, first N rows, files of ids, joined by commas (default: full, and a quarter of "
        "the rows, or 32768 of 65536 and more)",
    )
    group.add_argument(
        "--p-mins", default="0,0.5,0.75", metavar="LIST", help="values of --spec-draft-p-min (default: 0,0.5,0.75)"
    )
    group.add_argument("--cooldowns", default="1", metavar="LIST", help="values of --spec-cooldown (default: 1)")
    group.add_argument(
        "--costs", metavar="FILE", help="costs of another engine in place of measured ones (docs/plan.md)"
    )
    group.add_argument("--save-costs", type=OutputPath, metavar="FILE", help="write the measured costs, for --costs")
    group.add_argument("--samples", type=int, default=5, metavar="N", help="samples of every cost (default: 5)")
    group.add_argument(
        "--plot", type=OutputPath, metavar="FILE", help="draw to FILE.png or FILE.svg (needs matplotlib; default: none)"
    )
    group.add_argument(
        "--all", action="store_true", help="the rates of every setting too (default: the few that count)"
    )
    group.add_argument("--json", action="store_true", help="one JSON object instead of the tables (default: off)")
    parser.set_defaults(run=run_plan)


def run_plan(args: argparse.Namespace) -> int:
    from mtpref.engine.decode import most_drafted
    from mtpref.measure.bench import measure_costs, read_costs, write_costs
    from mtpref.measure.plan import plan, prompts_of, record
    from mtpref.measure.plan.plot import write_plot
    from mtpref.measure.plan.record import default_trims, trims_of
    from mtpref.measure.plan.render import lines
    from mtpref.measure.plan.report import Settings
    from mtpref.measure.probe import read_texts
    from mtpref.measure.probe.plot import check_plot

    settings = Settings(
        n_max=args.n_max,
        p_mins=_numbers(args.p_mins, "--p-mins"),
        cooldowns=whole_numbers(args.cooldowns, "--cooldowns", 4, "1,2"),
    )
    for flag, value, low in (
        ("--prompts", args.prompts, 1),
        ("--prompt-tokens", args.prompt_tokens, 2),
        ("--predict", args.predict, 2),
        ("--samples", args.samples, 1),
    ):
        if not low <= value <= 1 << 20:
            raise MtprefError(f"{flag}: {value} is out of range, expected {low} .. {1 << 20}")
    if args.costs is not None and args.save_costs is not None:
        raise MtprefError(
            "--costs and --save-costs: both are given, expected one of them; nothing is measured with --costs"
        )
    given = None if args.costs is None else read_costs(args.costs)
    if args.plot is not None:
        check_plot(args.plot)
    sampling = sampling_config(args)
    say = Notes()
    say.when_compiling(args)
    model = load_model(args).core
    if not model.has_mtp:
        raise MtprefError(
            "plan: the model has no MTP head, expected one; try: mtpref inspect FILE, or give a "
            "stand-alone head with -md"
        )
    trims = trims_of(model, args.trims.split(",") if args.trims else default_trims(model.n_head_rows))
    n_max = most_drafted(model, settings.n_max)  # what a chain of heads can draft; the plan says it
    prompts = prompts_of(read_texts(args.file, model.vocab), args.prompts, args.prompt_tokens)
    say.line(f"model: {args.model or 'embedded tiny model'}; {len(prompts)} prompts, {args.predict} tokens after each")
    texts = record(model, prompts, trims, n_max, args.predict, sampling, Progress("plan"))
    if given is None:
        longest = max(texts, key=lambda text: len(text.prompt + text.ids[: args.predict // 2]))
        context, following = longest.prompt + longest.ids[: args.predict // 2], longest.ids[args.predict // 2 :]
        say.line(f"costs: {args.samples} samples of every pass, after {len(context)} tokens")
        about = f"{threads_in_use()} threads, after {len(context)} tokens"
        heads = [t.head for t in trims]
        given = measure_costs(model, context, heads, n_max, args.samples, following=following, about=about)
        if args.save_costs is not None:
            write_costs(given, args.save_costs)
            say.line(f"costs written to {args.save_costs}")
    found = plan(texts, trims, given, settings)
    begin()
    if args.plot is not None:
        write_plot(found, args.plot)
    if args.json:
        print(json.dumps(found.to_json(), ensure_ascii=True))
    else:
        from mtpref.files.vocab import terminal_safe

        print(terminal_safe("\n".join(lines(found, is_whole=args.all))))
    return 0


def _numbers(text: str, flag: str) -> tuple[float, ...]:
    parts = text.split(",")
    if not all(re.fullmatch(r"[0-9]{1,4}(\.[0-9]{0,9})?", part) for part in parts):
        raise MtprefError(f"{flag}: {text[:60]!r} is no list of numbers, expected some such as 0,0.5")
    return tuple(dict.fromkeys(float(part) for part in parts))
