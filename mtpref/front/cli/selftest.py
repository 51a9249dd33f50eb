"""`mtpref selftest`: what holds on this machine and for this file, in one table."""

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.front.cli.flags import flagged
from mtpref.front.cli.options import set_threads

SCHEMA = "mtpref-selftest-1"


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "selftest",
        usage="mtpref selftest [options]",
        help="check kernels, invariances, losslessness, head and llama.cpp's agreement on your machine and file",
        description="Check on this machine, and on your file, what mtpref claims; with llama.cpp's programs also that "
        "both agree. A table on stdout, progress on stderr; no network. Exit code 1 if a check fails. docs/checks.md "
        "explains each check.",
    )
    parser.add_argument("-m", "--model", metavar="FNAME", help="GGUF file (default: the embedded tiny model)")
    parser.add_argument(
        "-md",
        "--model-draft",
        metavar="FNAME",
        help="MTP head in a file of its own, or Gemma 4's assistant (default: the model's own)",
    )
    parser.add_argument(
        "--llama-bin",
        metavar="DIR",
        help="llama.cpp's programs: llama-tokenize, llama-results, llama-speculative-simple (default: none)",
    )
    parser.add_argument(
        "--numerics", choices=("ggml", "exact"), default="ggml", help="which numerics to check (default: ggml)"
    )
    parser.add_argument(
        "--contract", default="llama.cpp", metavar="C", help="what the MTP head is fed (default: llama.cpp)"
    )
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="threads (default: all processors)")
    parser.add_argument("--quick", action="store_true", help="shorter runs, fewer settings (default: off)")
    parser.add_argument("--only", metavar="NAME", action="append", help="only this check; repeatable (default: all)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table (default: off)")
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="colours in the table (default: auto)"
    )
    parser.set_defaults(run=run_selftest, ops=None)


def run_selftest(args: argparse.Namespace) -> int:
    from mtpref.front import api
    from mtpref.front.cli.output import Notes, begin
    from mtpref.look import selftest

    checks = _chosen(args.only)
    if args.llama_bin is not None and not Path(args.llama_bin).is_dir():
        raise MtprefError(f"--llama-bin {args.llama_bin}: no such folder, expected one with llama.cpp's programs")
    say = Notes()
    say.when_compiling(args)
    set_threads(args.threads)
    path = Path(args.model) if args.model else api.tiny_path()
    model = api.load(path, numerics=args.numerics, contract=args.contract, model_draft=args.model_draft).core
    size = selftest.quick(model) if args.quick else selftest.full(model)
    llama_bin = Path(args.llama_bin).resolve() if args.llama_bin else None
    facts = _facts(args, model)
    for line in (*facts, *(f"note: {note}" for note in (*model.notes, *model.vocab.notes))):
        say.line(line)
    bench = selftest.Bench(model, size, path.resolve(), llama_bin, say.line)
    results = []
    begin()
    for result in selftest.run_checks(bench, checks):
        say.line(f"{result.check.name}: {result.verdict} ({result.seconds:.1f} s)")
        results.append(result)
    counts = {v: sum(r.verdict == v for r in results) for v in ("PASS", "FAIL", "SKIP")}
    if args.json:
        _print_json(facts, results, counts)
    else:
        _print_table(results, counts, args.color)
    return 1 if counts["FAIL"] else 0


def _chosen(names: list[str] | None) -> Any:
    from mtpref.look.selftest import CHECKS

    known = {check.name: check for check in CHECKS}
    for name in names or ():
        if name not in known:
            raise MtprefError(f"--only: {name!r} is unknown, expected one of {', '.join(known)}")
    return tuple(check for check in CHECKS if not names or check.name in names)


def _facts(args: argparse.Namespace, model: Any) -> list[str]:
    """What was tested, on what."""
    from mtpref import __version__, kernels

    lines = [
        f"model: {args.model or 'embedded tiny model'} ({model.config.arch}, {model.config.n_layer} layers, "
        f"{model.n_vocab} tokens), numerics {model.recipe.numerics}"
    ]
    machine = f"mtpref {__version__}, Python {sys.version.split()[0]}"
    if kernels.available():
        from mtpref.look.selftest.numerics import describe_target

        _, cpu, features = kernels.effective_target()
        machine += f", kernels for {describe_target(cpu, features)}, {kernels.n_threads()} threads"
    else:
        machine += ", no kernels (NUMBA_DISABLE_JIT)"
    return [*lines, machine]


def _print_table(results: list[Any], counts: dict[str, int], color: str) -> None:
    from mtpref.files.vocab import terminal_safe
    from mtpref.front.cli.terminal import painted, wants_color, width_of

    is_colored, width = wants_color(color, sys.stdout), max(60, width_of(sys.stdout))
    left = max(len("check"), *(len(r.check.name) for r in results))
    free = width - left - 4 - 3 * 2
    columns = (left, 4, free - free * 2 // 5, free * 2 // 5)
    rows = [("check", "", "what was found", "what a PASS means")]
    rows += [
        (r.check.name, r.verdict, terminal_safe(flagged(r.found)).replace("\n", " "), r.check.means) for r in results
    ]
    for i, row in enumerate(rows):
        style = "head" if i == 0 else row[1].lower()
        cells = [textwrap.wrap(text, n) or [""] for text, n in zip(row, columns, strict=True)]
        for k in range(max(len(cell) for cell in cells)):
            texts = [cell[k] if k < len(cell) else "" for cell in cells]
            line = [
                (text.ljust(n) + "  ", style if j == 1 or i == 0 else "")
                for j, (text, n) in enumerate(zip(texts, columns, strict=True))
            ]
            print(painted(line, is_colored).rstrip())
    print(f"\n{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped")


def _print_json(facts: list[str], results: list[Any], counts: dict[str, int]) -> None:
    checks = [
        {"check": r.check.name, "result": r.verdict, "found": r.found, "means": r.check.means,
         "seconds": round(r.seconds, 3)} for r in results
    ]  # fmt: skip
    data = {"schema": SCHEMA, "facts": facts, "counts": counts, "checks": checks}
    print(flagged(json.dumps(data, ensure_ascii=True)))
