"""`mtpref bench` and `mtpref warmup`: how fast it is here, and compiling ahead of time."""

import argparse
import json
import shlex
import sys
import time
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.front.cli.options import add_model, load_model, threads_in_use, whole_numbers
from mtpref.front.cli.output import Notes, begin


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "bench",
        usage="mtpref bench [options]",
        help="time prompt, decode, verify, draft and roll back, MTP at a chosen acceptance, and llama-bench beside it",
        description="Time every kind of pass, in turn and several times: medians, spread, and the share of plain-read "
        "memory bandwidth. docs/performance.md explains the numbers.",
    )
    add_model(parser)
    group = parser.add_argument_group("benchmark")
    group.add_argument(
        "--parts",
        default="prompt,decode,verify,draft,rollback,mtp",
        metavar="LIST",
        help="what is measured (default: prompt,decode,verify,draft,rollback,mtp)",
    )
    group.add_argument("-p", "--n-prompt", type=int, default=512, metavar="N", help="tokens of a prompt (default: 512)")
    group.add_argument("-n", "--n-gen", type=int, default=32, metavar="N", help="tokens of a run (default: 32)")
    group.add_argument(
        "-d", "--n-depth", type=int, default=64, metavar="N", help="tokens in the context before (default: 64)"
    )
    group.add_argument("--widths", default="2,4,8", metavar="LIST", help="tokens of verify passes (default: 2,4,8)")
    group.add_argument("--drafts", default="1,2,3", metavar="LIST", help="draft lengths of MTP (default: 1,2,3)")
    group.add_argument(
        "--acceptance", type=float, default=0.8, metavar="A", help="of each drafted token of MTP (default: 0.8)"
    )
    group.add_argument("-r", "--repetitions", type=int, default=5, metavar="N", help="rounds (default: 5)")
    group.add_argument(
        "--vs-llama-bench", metavar="PATH", help="alternate with this program on the same file (default: none)"
    )
    group.add_argument(
        "--llama-args", default="", metavar="TEXT", help="further arguments for it, e.g. '-fa 1' (default: none)"
    )
    group.add_argument("--json", action="store_true", help="one JSON object instead of the table (default: off)")
    parser.set_defaults(run=run_bench)

    warm = verbs.add_parser(
        "warmup",
        usage="mtpref warmup [options]",
        help="compile every kernel that a model needs, ahead of time",
        description="Run a few tokens of prompt, draft and verification, so that all kernels for this model and "
        "machine are in the cache. Says where the cache is and how long it took.",
    )
    add_model(warm)
    warm.set_defaults(run=run_warmup)


def run_bench(args: argparse.Namespace) -> int:
    from mtpref.engine.decode import notes_of
    from mtpref.front.api import tiny_path
    from mtpref.measure.bench.llama import LlamaBench
    from mtpref.measure.bench.render import lines
    from mtpref.measure.bench.report import Settings, bench
    from mtpref.measure.plan.record import default_trims, trims_of

    settings = Settings(
        parts=tuple(args.parts.split(",")),
        n_prompt=args.n_prompt,
        n_gen=args.n_gen,
        widths=whole_numbers(args.widths, "--widths", 7, "2,4,8"),
        n_depth=args.n_depth,
        drafts=whole_numbers(args.drafts, "--drafts", 7, "2,4,8"),
        acceptance=args.acceptance,
        n_rounds=args.repetitions,
    )
    say = Notes()
    say.when_compiling(args)
    model = load_model(args).core
    n_needed, n_ctx = max(settings.n_prompt, settings.n_depth + settings.n_gen + 20), model.config.n_ctx_train
    if n_needed > n_ctx:
        raise MtprefError(
            f"bench: {n_needed} positions, expected at most {n_ctx}, the model's context; use a smaller -p, -n or -d"
        )
    n_threads = threads_in_use()
    llama = None
    if args.vs_llama_bench is not None:
        extra = shlex.split(args.llama_args)
        llama = LlamaBench(args.vs_llama_bench, str(args.model or tiny_path()), n_threads, extra)
    trims = trims_of(model, default_trims(model.n_head_rows)) if model.has_mtp else []
    heads = [(trim.name, trim.head) for trim in trims]
    for note in notes_of(model, max(settings.drafts)) if model.has_mtp else ():
        say.line(note)
    say.line(f"model: {args.model or 'embedded tiny model'}; the first round, which warms up, is not counted")
    found = bench(model, heads, settings, n_threads, llama, _progress(say))
    begin()
    if args.json:
        print(json.dumps(found.to_json(), ensure_ascii=True))
    else:
        from mtpref.files.vocab import terminal_safe

        print(terminal_safe("\n".join(lines(found))))
    return 0


def _progress(say: Notes) -> Any:
    def tell(i: int, n: int) -> None:
        begin()
        if not sys.stderr.isatty() or i == n:
            say.line(f"round {i} of {n}")

    return tell


def run_warmup(args: argparse.Namespace) -> int:
    from mtpref import kernels
    from mtpref.engine.decode import STRATEGIES, Options, PolicyConfig

    say = Notes()
    if args.ops == "spec" or not kernels.available():
        raise MtprefError(
            "warmup: the specification runs without kernels, so nothing is to be compiled; "
            "leave --ops spec and NUMBA_DISABLE_JIT out"
        )
    say.when_compiling(args)
    start = time.perf_counter()
    model = load_model(args)
    spec_type = "draft-mtp" if model.has_mtp else "none"
    ids = [(7919 * i + 11) % model.core.n_vocab for i in range(40)]
    for strategy in STRATEGIES:
        options = Options(n_predict=4, spec_type=spec_type, policy=PolicyConfig(n_max=3), rollback=strategy)
        model.generate(ids, options, n_ctx=64).finish()
    print(
        f"kernels ready in {time.perf_counter() - start:.1f} s, threads: {kernels.threading_layer()}, "
        f"cache: {kernels.cache_folder()}"
    )
    return 0
