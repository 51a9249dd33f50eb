"""`mtpref diagnose`: which known mistake explains what a port printed."""

import argparse
import json
import sys
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.front.cli.options import add_model, add_prompt, load_model, read_prompt
from mtpref.front.cli.output import begin

MAX_IDS = 1 << 20
CANNOT_JUDGE = 3  # exit code


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "diagnose",
        usage="mtpref diagnose (--dump FILE | --log FILE | --stats RATES) [options]",
        help="name the mistake that explains a port's tensors, its run or its rates",
        description="Replay what a port ran under every hypothesis (healthy, every contract, every fault of the "
        "catalogue) and rank them by how well they reproduce it. Exit code 0: healthy, 1: a mistake was found, or none "
        "of the known ones fits, 3: cannot tell.",
    )
    evidence = parser.add_argument_group("evidence (one of them)")
    evidence.add_argument("--dump", metavar="FILE", help="a GGUF of the port's tensors under cb() names")
    evidence.add_argument(
        "--log",
        metavar="FILE",
        help="a run of the port: a log of llama-speculative-simple or llama-server -lv 5, a trace of mtpref generate "
        "--trace, the JSON of docs/diagnosis.md, or a log with the rate lines of llama-server, vLLM, SGLang, ...",
    )
    evidence.add_argument(
        "--stats",
        metavar="RATES",
        help="rates alone: by draft position in parts of all rounds (0.82,0.66,0.5), accepted/drafted (44/120), a mean "
        'length ("mean 2.34"), or a line that an engine printed',
    )
    evidence.add_argument(
        "--n-max", type=int, metavar="N", help="draft length of an aggregate or of the log (default: not known)"
    )
    evidence.add_argument(
        "--rounds", type=int, metavar="N", help="rounds that the rates are from (default: not known, many)"
    )
    evidence.add_argument("--after-full", type=float, metavar="A", help="position 1's rate after a full acceptance")
    evidence.add_argument("--after-partial", type=float, metavar="A", help="position 1's rate in the other rounds")
    evidence.add_argument(
        "--ids", metavar="LIST", help="tokens of the dump, or of the log's prompt, as 1,2,3, where the file lacks them"
    )
    add_run(evidence)
    add_model(parser)
    add_prompt(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (default: off)")
    parser.set_defaults(run=run_diagnose)


def add_run(group: Any) -> None:
    """The choice among the runs of one log."""
    group.add_argument(
        "--run",
        dest="which",
        metavar="N",
        help="the run that had this prompt, counted from 0, or all (default: the only one)",
    )


def run_diagnose(args: argparse.Namespace) -> int:
    from mtpref.faults import diagnose, refuse_faults

    refuse_faults(args.fault, "diagnoses")

    given = [flag for flag in ("dump", "log", "stats") if getattr(args, flag) is not None]
    if len(given) != 1:
        what = f"{' and '.join('--' + flag for flag in given)} are given" if given else "none is given"
        raise MtprefError(f"evidence: {what}, expected one of --dump FILE, --log FILE, --stats RATES")
    log = None if args.log is None else diagnose.open_log(args.log)
    rates = _rates(args, log)
    if rates is not None:
        core = None if args.model is None else load_model(args).core
        report = diagnose.diagnose_stats(rates, args.after_full, args.after_partial, core)
    elif log is None:
        port = diagnose.read_port(args.dump)
        model = load_model(args)
        report = diagnose.diagnose_dump(model.core, port, given_ids(args, model), _progress())
    else:
        assert log is not None
        needs_vocab = args.prompt is not None or args.file is not None
        model = load_model(args) if needs_vocab else None
        runs = diagnose.read_port_runs(log, given_ids(args, model), args.which)
        model = model or load_model(args)  # a run that cannot be judged is refused before it
        report = diagnose.diagnose_log(model.core, runs, _progress())
    begin()
    print(json.dumps(report.to_json()) if args.json else diagnose.render(report))
    return {"healthy": 0, "undecided": CANNOT_JUDGE}.get(report.verdict, 1)


def _rates(args: argparse.Namespace, log: Any) -> Any:
    """Rates, where they are the evidence: --stats, or a log without draft candidates. The model is not needed then."""
    from mtpref.faults import diagnose

    found: Any = None
    if args.stats is not None:
        found = diagnose.parse_stats(args.stats, args.n_max, args.rounds)
    elif log is not None:
        found = diagnose.read_rates(log)
    if found is not None:
        return diagnose.with_n_max(found, args.n_max)
    for flag in ("n_max", "rounds", "after_full", "after_partial"):
        if getattr(args, flag) is not None:
            raise MtprefError(f"--{flag.replace('_', '-')}: goes with rates, expected --stats or a log of rates")
    return None


def given_ids(args: argparse.Namespace, model: Any) -> list[int] | None:
    """The prompt's ids by --ids, -p or -f; None: none of them was given."""
    if args.ids is not None:
        if args.prompt is not None or args.file is not None:
            raise MtprefError("--ids and -p or -f: both are given, expected one of them")
        return parse_ids(args.ids)
    if args.prompt is None and args.file is None:
        return None
    ids: list[int] = model.encode(read_prompt(args), limit=model.core.config.n_ctx_train)
    return ids


def parse_ids(text: str) -> list[int]:
    """Token ids as "1,2,3" or "[1, 2, 3]".

    Errors  MtprefError for anything else
    """
    parts = text.strip().removeprefix("[").removesuffix("]").split(",")
    if len(parts) > MAX_IDS or not all(part.strip().isdigit() and len(part.strip()) < 10 for part in parts):
        raise MtprefError(f"--ids: {text[:40]!r} is no list of token ids, expected such as 1,2,3")
    return [int(part) for part in parts]


def _progress() -> Any:
    if not sys.stderr.isatty():
        return None

    def show(i: int, n: int, what: str) -> None:
        print(f"\r{i + 1}/{n} {what:40.40s}", end="" if i + 1 < n else "\r\033[K", file=sys.stderr, flush=True)

    return show
