"""`mtpref compare-log`: a log of stock llama.cpp's llama-speculative-simple or llama-server against our own run."""

import argparse
import json
from dataclasses import replace
from typing import Annotated, Any

from mtpref.base.errors import MtprefError
from mtpref.base.typed import Within, read_number
from mtpref.front.cli.diagnose import add_run, given_ids
from mtpref.front.cli.options import add_model, add_prompt, load_model
from mtpref.front.cli.output import begin

SETTINGS = {"n_max": Annotated[int, Within(0, 1024)], "n_min": Annotated[int, Within(0, 1024)],
            "p_min": Annotated[float, Within(0, 1)]}  # fmt: skip


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "compare-log",
        usage="mtpref compare-log [options] FILE.log",
        help="compare a log of llama.cpp with the same run here",
        description="Run the prompt here and compare every event that `llama-speculative-simple -lv 5 --spec-type "
        "draft-mtp --temp 0` has printed (on stderr), or `llama-server -lv 5` of a request with temperature 0: draft "
        "candidates and their p, drafts, accept decisions, tokens. Name the first that differs and whether it is a "
        "near tie. The log's end may be missing. Exit code 1 if an event differs that is no near tie.",
    )
    parser.add_argument("log", metavar="FILE.log", help="the log, or a recording of several runs (.log.gz)")
    add_model(parser)
    add_prompt(parser)
    group = parser.add_argument_group("the run that was logged")
    group.add_argument("--ids", metavar="LIST", help="token ids of its prompt, as 1,2,3, in place of -p")
    add_run(group)
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
        metavar="P",
        help="differences of p that count as equal (default: by the file's weight type, docs/checks.md)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (default: off)")
    parser.set_defaults(run=run_compare_log)


def run_compare_log(args: argparse.Namespace) -> int:
    from mtpref.files.gguf import printable
    from mtpref.look.llama_cpp.log import read_runs
    from mtpref.look.llama_cpp.log_choice import choose_runs

    runs = read_runs(args.log)
    if args.p_limit is not None and not 0.0 <= args.p_limit <= 1.0:
        raise MtprefError(f"--p-limit: {args.p_limit} is out of range, expected 0 .. 1")
    if args.prompt is None and args.file is None:  # no vocabulary is needed: refused before a model is loaded
        choose_runs(runs, printable(args.log, 400), given_ids(args, None), args.which)
    model = load_model(args)
    if not model.has_mtp:
        raise MtprefError(f"compare-log: {model.core.config.name or 'the model'} has no MTP head, expected one")
    chosen = choose_runs(runs, printable(args.log, 400), given_ids(args, model), args.which)
    found = [_compare(model, run, ids, args) for run, ids in chosen]
    begin()
    if args.json:
        print(json.dumps(found[0].to_json() if len(found) == 1 else [f.to_json() for f in found]))
    else:
        for (run, _), agreement in zip(chosen, found, strict=True):
            if len(runs) > 1:
                print(f"run {runs.index(run)}:" + f" {run.log.name}" * bool(run.log.name))
            print("\n".join(agreement.lines()))
    return 1 if any(f.first_divergence is not None for f in found) else 0


def _compare(model: Any, run: Any, ids: list[int], args: argparse.Namespace) -> Any:
    from mtpref.engine.decode import Options, PolicyConfig
    from mtpref.look.compare import compare_log
    from mtpref.look.llama_cpp.limits import decision_limits, router_gap
    from mtpref.look.llama_cpp.loops import loops_of

    n_max, n_min, p_min = (_setting(args, run, name) for name in ("n_max", "n_min", "p_min"))
    if run.log.temp:
        raise MtprefError(f"{args.log}: the log says temp = {run.log.temp:g}, expected a greedy run: temperature 0")
    # Our budget never cuts what theirs did not: the rounds of both stay comparable to the end.
    n_predict = len(run.log.ids) + int(n_max) + 3
    policy = PolicyConfig(n_max=int(n_max), n_min=int(n_min), p_min=p_min)
    _check_ids(args, run, ids, model.core)
    core = model.core
    types = core.type_names | {core.kv_type, core.kv_type_draft}
    limits, near_gap = decision_limits(types, core.recipe.numerics), router_gap(types)
    p_limit = limits[0] if args.p_limit is None else args.p_limit
    found: list[Any] = []
    for loop in loops_of(run.log):
        options = Options(n_predict=n_predict, policy=policy, rollback=loop.rollback)
        events, margin = _run(_as_logged(model, run.log, loop), ids, options)
        found.append(
            compare_log(
                run.log,
                events,
                p_min=p_min,
                p_limit=p_limit,
                near_margin=limits[1],
                opening_margin=margin,
                near_gap=near_gap,
            )
        )
        found[-1].loop = loop.text()
        if found[-1].first_divergence is None:
            return found[-1]
    return found[0]


def _check_ids(args: argparse.Namespace, run: Any, ids: list[int], core: Any) -> None:
    if max(ids, default=0) >= core.n_vocab:
        raise MtprefError(f"prompt: id {max(ids)}, expected 0 .. {core.n_vocab - 1}: another model's")
    n_ctx, n_more = core.config.n_ctx_train, len(run.log.ids) + (run.log.request is not None)
    if len(ids) + n_more > n_ctx + 1:  # the last token opens no pass
        raise MtprefError(
            f"{args.log}: a prompt of {len(ids)} tokens and {n_more} more, expected a run within the "
            f"model's context of {n_ctx}"
        )


def _as_logged(model: Any, log: Any, loop: Any) -> Any:
    """The model under the contract's prompt_end of the program that wrote the log (llama-server's prompts are whole),
    and under what its loop starts a replay from."""
    from mtpref.front.api import LanguageModel

    recipe = model.core.recipe
    end = "hold" if log.request is None else "whole"
    contract = replace(recipe.contract, prompt_end=end, replay=loop.replay or recipe.contract.replay)
    return LanguageModel(replace(model.core, recipe=replace(recipe, contract=contract)))


def _run(model: Any, ids: list[int], options: Any) -> tuple[list[Any], float | None]:
    """Our events, and the margin of the token that a prompt which was processed whole gives."""
    from mtpref.base.events import Token

    run = model.generate(ids, options)
    events, margin = [], None
    for event in run:
        if isinstance(event, Token) and margin is None:
            margin = run.statistics.min_margin
        events.append(event)
    return events, margin


def _setting(args: argparse.Namespace, run: Any, name: str) -> float:
    """From the command line, else a recording's header, else the log's own lines."""
    given = getattr(args, f"spec_draft_{name}")
    if given is not None:  # its range is the policy's to check
        return float(given)
    summed = run.log.summary.get("n_draft") if name == "n_max" else None
    for value in (run.header.get(name), run.log.settings.get(name), summed):
        if value is not None:
            return float(read_number(SETTINGS[name], str(value), f"{args.log}: {name}"))
    if name == "n_max":
        raise MtprefError("compare-log: the log does not say how long a draft may be; use --spec-draft-n-max N")
    return 0.0
