"""`mtpref compare-log`: a log of stock llama.cpp's llama-speculative-simple against our own run."""

import argparse
import json
from typing import Annotated, Any

from mtpref.cli.options import add_model, add_prompt, load_model, read_prompt
from mtpref.cli.output import begin
from mtpref.errors import MtprefError
from mtpref.typed import Ids, Sized, Within, parse_json, read, read_text

SETTINGS = {"n_max": Annotated[int, Within(0, 1024)], "n_min": Annotated[int, Within(0, 1024)],
            "p_min": Annotated[float, Within(0, 1)]}  # fmt: skip


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "compare-log",
        usage="mtpref compare-log [options] FILE.log",
        help="compare a log of llama-speculative-simple with the same run here",
        description="Run the prompt here and compare every event that `llama-speculative-simple -lv 5 --spec-type "
        "draft-mtp --temp 0` has printed (on stderr): draft candidates and their p, drafts, accept decisions, tokens. "
        "Name the first that differs and whether it is a near tie. The logs' end may be missing. Exit code 1 if an "
        "event differs that is no near tie.",
    )
    parser.add_argument("log", metavar="FILE.log", help="the log, or a recording of several runs (.log.gz)")
    add_model(parser)
    add_prompt(parser)
    group = parser.add_argument_group("the run that was logged")
    group.add_argument("--spec-draft-n-max", type=int, metavar="N", help="longest draft (default: as the log says)")
    group.add_argument("--spec-draft-n-min", type=int, metavar="N", help="shortest draft (default: as the log says)")
    group.add_argument(
        "--spec-draft-p-min",
        type=float,
        metavar="P",
        help="least p of a drafted token (default: as the log says, to two decimals)",
    )
    group.add_argument(
        "--p-limit",
        type=float,
        default=0.002,
        metavar="P",
        help="differences of p that count as equal (default: 0.002)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (default: off)")
    parser.set_defaults(run=run_compare_log)


def run_compare_log(args: argparse.Namespace) -> int:
    from mtpref.llama_cpp.log import read_runs

    runs = read_runs(args.log)
    if not 0.0 <= args.p_limit <= 1.0:
        raise MtprefError(f"--p-limit: {args.p_limit} is out of range, expected 0 .. 1")
    is_recorded = all("prompt_ids" in run.header for run in runs)
    if not is_recorded and (args.prompt is None and args.file is None):
        raise MtprefError("compare-log: the log does not hold the prompt, expected the one that llama.cpp was given; "
                          "use -p TEXT or -f FNAME")  # fmt: skip
    prompt = None if is_recorded else read_prompt(args)
    model = load_model(args)
    if not model.has_mtp:
        raise MtprefError(f"compare-log: {model.core.config.name or 'the model'} has no MTP head, expected one")
    found = [_compare(model, run, args, prompt) for run in runs]
    begin()
    if args.json:
        print(json.dumps(found[0].to_json() if len(found) == 1 else [f.to_json() for f in found]))
    else:
        for i, agreement in enumerate(found):
            if len(found) > 1:
                print(f"run {i}:")
            print("\n".join(agreement.lines()))
    return 1 if any(f.first_divergence is not None for f in found) else 0


def _compare(model: Any, run: Any, args: argparse.Namespace, prompt: str | None) -> Any:
    from mtpref.compare import compare_log
    from mtpref.decode import Options, PolicyConfig
    from mtpref.spec import P_ONE

    n_max, n_min, p_min = (_setting(args, run, name) for name in ("n_max", "n_min", "p_min"))
    if not 0.0 <= p_min <= 1.0:
        raise MtprefError(f"--spec-draft-p-min: {p_min} is out of range, expected 0 .. 1")
    ids = _recorded_ids(run, model) if prompt is None else model.encode(prompt, limit=model.core.config.n_ctx_train)
    # Our budget never cuts what theirs did not: the rounds of both stay comparable to the end.
    n_predict = len(run.log.ids) + int(n_max) + 2
    policy = PolicyConfig(n_max=int(n_max), n_min=int(n_min), p_min=int(p_min * P_ONE))
    n_ctx = model.core.config.n_ctx_train
    if len(ids) + len(run.log.ids) > n_ctx + 1:  # the last token opens no pass
        raise MtprefError(f"{args.log}: a prompt of {len(ids)} tokens and {len(run.log.ids)} more, expected a run "
                          f"within the model's context of {n_ctx}")  # fmt: skip
    events = model.generate(ids, Options(n_predict=n_predict, policy=policy))
    return compare_log(run.log, events, p_min=p_min, p_limit=args.p_limit)


def _setting(args: argparse.Namespace, run: Any, name: str) -> float:
    """From the command line, else a recording's header, else the log's own lines."""
    given = getattr(args, f"spec_draft_{name}")
    if given is not None:  # its range is the policy's to check
        return float(given)
    for value in (run.header.get(name), run.log.settings.get(name)):
        if value is not None:
            return float(read_text(SETTINGS[name], str(value), f"{args.log}: {name}"))
    if name == "n_max" and run.log.summary.get("n_draft") is not None:
        return float(run.log.summary["n_draft"])
    if name == "n_max":
        raise MtprefError("compare-log: the log does not say how long a draft may be; use --spec-draft-n-max N")
    return 0.0


def _recorded_ids(run: Any, model: Any) -> list[int]:
    try:
        ids: list[int] = read(Annotated[Ids, Sized(1, 1 << 20)], parse_json(run.header["prompt_ids"].encode()), "ids")
    except MtprefError as error:
        raise MtprefError(f"recording: prompt_ids: {error}; expected a list in the header of each run") from None
    if max(ids) >= model.core.n_vocab:
        raise MtprefError(f"recording: prompt id {max(ids)}, expected 0 .. {model.core.n_vocab - 1}: another model's")
    return ids
