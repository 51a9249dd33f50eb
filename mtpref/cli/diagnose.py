"""`mtpref diagnose`: which known mistake explains what a port printed."""

import argparse
import json
import sys
from typing import Any

from mtpref.cli.options import add_model, add_prompt, load_model, read_prompt
from mtpref.cli.output import begin
from mtpref.errors import MtprefError

MAX_IDS = 1 << 20


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "diagnose",
        usage="mtpref diagnose (--dump FILE | --log FILE | --stats A1,A2,...) [options]",
        help="name the mistake that explains a port's tensors, its run or its rates",
        description="Replay what a port ran under every hypothesis (healthy, every contract, every fault of the "
        "catalogue) and rank them by how well they reproduce it. Exit code 0: healthy, 1: a mistake was found, or none "
        "of the known ones fits.",
    )
    evidence = parser.add_argument_group("evidence (one of them)")
    evidence.add_argument("--dump", metavar="FILE", help="a GGUF of the port's tensors under cb() names")
    evidence.add_argument(
        "--log",
        metavar="FILE",
        help="a run of the port: a log of llama-speculative-simple -lv 5, a trace of mtpref generate --trace, or the "
        "JSON of docs/diagnosis.md",
    )
    evidence.add_argument(
        "--stats", metavar="LIST", help="rates alone: accepted at draft position 1, 2, ... in parts of all rounds"
    )
    evidence.add_argument("--after-full", type=float, metavar="A", help="position 1's rate behind a full acceptance")
    evidence.add_argument("--after-partial", type=float, metavar="A", help="position 1's rate in the other rounds")
    evidence.add_argument(
        "--ids", metavar="LIST", help="tokens of the dump, or of the log's prompt, as 1,2,3, where the file lacks them"
    )
    add_model(parser)
    add_prompt(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (default: off)")
    parser.set_defaults(run=run_diagnose)


def run_diagnose(args: argparse.Namespace) -> int:
    from mtpref import diagnose
    from mtpref.faults import refuse_faults

    refuse_faults(args.fault, "diagnoses")

    given = [flag for flag in ("dump", "log", "stats") if getattr(args, flag) is not None]
    if len(given) != 1:
        what = f"{' and '.join('--' + flag for flag in given)} are given" if given else "none is given"
        raise MtprefError(f"evidence: {what}, expected one of --dump FILE, --log FILE, --stats LIST")
    if args.stats is not None:
        report = diagnose.diagnose_stats(parse_rates(args.stats), args.after_full, args.after_partial)
    elif args.dump is not None:
        port = diagnose.read_port(args.dump)
        model = load_model(args)
        report = diagnose.diagnose_dump(model.core, port, _given_ids(args, model), _progress())
    else:
        model = load_model(args)
        runs = diagnose.read_port_runs(args.log, _given_ids(args, model))
        report = diagnose.diagnose_log(model.core, runs, _progress())
    begin()
    print(json.dumps(report.to_json()) if args.json else diagnose.render(report))
    return 0 if report.verdict == "healthy" else 1


def _given_ids(args: argparse.Namespace, model: Any) -> list[int] | None:
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


def parse_rates(text: str) -> list[float]:
    """Rates as "0.8,0.6" or "80,60" (percent, where one is above 1).

    Errors  MtprefError for anything else
    """
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        raise MtprefError(f"--stats: {text[:40]!r} is no list of rates, expected such as 0.82,0.66,0.5") from None
    return [a / 100 for a in rates] if any(1 < a <= 100 for a in rates) else rates


def _progress() -> Any:
    if not sys.stderr.isatty():
        return None

    def show(i: int, n: int, what: str) -> None:
        print(f"\r{i + 1}/{n} {what:40.40s}", end="" if i + 1 < n else "\r\033[K", file=sys.stderr, flush=True)

    return show
