"""`mtpref golden`: list and check golden vectors, and answer cases as a port."""

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.front.cli.options import add_model, load_model, read_file, rope_overrides
from mtpref.front.cli.terminal import columns, width_of
from mtpref.front.cli.writing import OutputPath

SCHEMA = "mtpref-golden-check-1"
FOLDER_HELP = "folder (default: golden here, else the vectors that came with the package)"


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "golden",
        usage="mtpref golden ACTION [options]",
        help="golden vectors: list them, check mtpref or another program with them",
        description="Golden vectors for ports: golden/README.md says what they hold and how a port consumes them.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, prog="mtpref golden")
    _add_list(actions)
    _add_check(actions)
    _add_gen(actions)
    _add_derive(actions)
    _add_port(actions)
    _add_export(actions)


def _add_list(actions: Any) -> None:
    parser = actions.add_parser(
        "list",
        usage="mtpref golden list [options] [DIR]",
        help="the suites, their cases, what they require and which faults they catch",
        description="List the suites of a folder of golden vectors.",
    )
    _add_folder(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (default: off)")
    parser.set_defaults(run=run_list)


def _add_check(actions: Any) -> None:
    parser = actions.add_parser(
        "check",
        usage="mtpref golden check [options] [DIR]",
        help="check mtpref, or the program of --cmd, with every case",
        description="Ask for every case and compare the answers. Exit code 1 if any case fails, 2 if some could not be "
        "answered: the vectors are of another version. These are listed last.",
    )
    _add_folder(parser)
    parser.add_argument(
        "--cmd", metavar="COMMAND", help="ask this program (filter protocol) instead of mtpref itself (default: mtpref)"
    )
    parser.add_argument(
        "--ops",
        choices=("numba", "spec"),
        default="numba",
        help="without --cmd: the compiled kernels or the readable specification (default: numba)",
    )
    parser.add_argument(
        "-m", "--model", metavar="FNAME", help="the model that the vectors were made for (default: none)"
    )
    parser.add_argument("--all", action="store_true", help="a line for passed cases too (default: off)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (default: off)")
    parser.set_defaults(run=run_check)


def _add_gen(actions: Any) -> None:
    parser = actions.add_parser(
        "gen",
        usage="mtpref golden gen [options] -o DIR",
        help="make golden vectors of a model of your own",
        description="Record activations and greedy runs of prompts as golden vectors of any supported GGUF. The model "
        "is named by the hash of its tensors; check a port with: mtpref golden check DIR -m MODEL --cmd ...",
    )
    add_model(parser)
    what = parser.add_argument_group("what to record")
    what.add_argument("-p", "--prompt", metavar="TEXT", action="append", help="a prompt; repeatable")
    what.add_argument("-f", "--file", metavar="FNAME", action="append", help="a prompt from a file; repeatable")
    what.add_argument(
        "-o", "--output", type=OutputPath, metavar="DIR", required=True, help="folder to write, whole or not at all"
    )
    what.add_argument(
        "--tensors", metavar="REGEX", help="cb() names to record (default: layer outputs, norms, logits, the head's)"
    )
    what.add_argument(
        "--rows", default="last", metavar="ROWS", help="last, all, or token numbers such as 0,7,31 (default: last)"
    )
    what.add_argument("-b", "--batch-size", type=int, default=512, metavar="N", help="tokens per pass (default: 512)")
    what.add_argument(
        "-n", "--predict", dest="n_predict", type=int, default=32, metavar="N",
        help="tokens of each run, 0: no runs (default: 32)",
    )  # fmt: skip
    what.add_argument("--drafts", default="0,3", metavar="LIST", help="longest drafts of the runs (default: 0,3)")
    what.add_argument(
        "--rollbacks", default="snapshot", metavar="LIST", help="snapshot, replay, two-phase (default: snapshot)"
    )
    what.add_argument(
        "--digest", action="store_true", help="hash, sum, norm and a few values instead of tensors (default: off)"
    )
    parser.set_defaults(run=run_gen)


def _add_derive(actions: Any) -> None:
    parser = actions.add_parser(
        "derive",
        usage="mtpref golden derive NAME -o FILE",
        help="write the model of cases that name one derived from the tiny model",
        description="Make a quantisation of the packaged tiny model that golden cases name (tiny: a copy of it).",
    )
    parser.add_argument("name", metavar="NAME", help="tiny, tiny-f16, tiny-q4_0 or tiny-q5_1")
    parser.add_argument("-o", "--output", type=OutputPath, metavar="FILE", required=True, help="GGUF file to write")
    parser.set_defaults(run=run_derive)


def _add_port(actions: Any) -> None:
    parser = actions.add_parser(
        "port",
        usage="mtpref golden port [DIR]",
        help="answer cases on stdin as mtpref: the example of the filter protocol",
        description="Read one case a line (JSON), answer one line each, until the input ends.",
    )
    parser.add_argument("folder", metavar="DIR", nargs="?", default=None, help=FOLDER_HELP)
    parser.add_argument(
        "-m", "--model", metavar="FNAME", help="the model that the vectors were made for (default: none)"
    )
    parser.set_defaults(run=run_port)


def _add_export(actions: Any) -> None:
    parser = actions.add_parser(
        "export",
        usage="mtpref golden export [options] [DIR] -o OUT",
        help="write the vectors as npz or safetensors, or logits for stock llama.cpp",
        description="Write suites as npz or safetensors (names kept, the suite's JSON beside), or the trunk's logits "
        "of the F32 models as files of llama-results or as .bin files of llama.cpp's model-conversion. For those, "
        "the commands by which stock llama.cpp checks itself are printed.",
    )
    _add_folder(parser)
    parser.add_argument(
        "--format", required=True, choices=("npz", "safetensors", "llama-results", "bin"), help="what to write"
    )
    parser.add_argument("-o", "--output", type=OutputPath, required=True, metavar="OUT", help="folder to write to")
    parser.add_argument(
        "-p", "--prompt", action="append", metavar="TEXT", help="prompt for logits; repeatable (default: three)"
    )
    parser.set_defaults(run=run_export)


def default_folder() -> str:
    """golden in this folder or in the tree that mtpref is run from; else the package's own."""
    package = Path(__file__).parents[2]
    places = (Path("golden"), package / "golden_vectors", package.parent / "golden")
    return str(next((place for place in places if (place / "manifest.json").is_file()), places[0]))


def _folder(args: argparse.Namespace) -> Any:
    """The vectors that are meant, opened; args.folder says from now on where they are."""
    from mtpref.golden import Folder

    args.folder = args.folder or default_folder()
    return Folder(args.folder)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", nargs="?", default=None, help=FOLDER_HELP)
    parser.add_argument("--level", type=str.upper, metavar="L", help="only this level: L0 .. L6 (default: all)")
    parser.add_argument("--suite", metavar="NAME", help="only this suite (default: all)")


def run_list(args: argparse.Namespace) -> int:

    suites = list(_folder(args).suites(args.level, args.suite))
    if args.json:
        records = [
            {"suite": s.name, "level": s.level, "op": s.op, "about": s.about, "cases": [c.id for c in s.cases]}
            for s in suites
        ]
        print(json.dumps({"schema": "mtpref-golden-list-1", "suites": records}))
        return 0
    rows = []
    for s in suites:
        needs = sorted({need for case in s.cases for need in case.requires})
        needed = f"  [needs {', '.join(needs)}]" if needs else ""
        rows.append((f"{s.level}  {s.name:18s} {len(s.cases):3d} cases", f"{s.about}{needed}"))
    print("\n".join(columns(rows, width_of(sys.stdout))))
    print(f"\nvectors: {args.folder}; a port consumes them as {args.folder}/README.md says")
    return 0


def run_gen(args: argparse.Namespace) -> int:
    from mtpref.faults import refuse_faults
    from mtpref.front import api
    from mtpref.golden.gen import Plan, generate_vectors

    refuse_faults(args.fault, "golden vectors")
    _refuse_what_is_not_recorded(args)
    prompts = _prompts(args)
    plan = Plan(
        tensors=args.tensors or Plan.tensors, rows=_rows(args.rows),
        n_batch=_at_least("--batch-size", args.batch_size, 1),
        n_predict=_at_least("--predict", args.n_predict, 0), drafts=_numbers("--drafts", args.drafts),
        rollbacks=_rollbacks(args.rollbacks), is_digest=args.digest,
    )  # fmt: skip
    model = load_model(args)
    if not model.has_mtp:
        plan = replace(plan, drafts=(0,))
    limit = model.core.config.n_ctx_train
    ids = [(name, model.encode(text, limit=limit)) for name, text in prompts]
    path = args.model or api.tiny_path()
    generate_vectors(model.core, path, ids, plan, Path(args.output), _say)
    print(f"{args.output}: {sum(p.stat().st_size for p in Path(args.output).rglob('*') if p.is_file())} bytes")
    return 0


def _refuse_what_is_not_recorded(args: argparse.Namespace) -> None:
    """A check opens one file with its own keys: vectors of anything else could not be checked."""
    from mtpref.spec.rope_scaling import RopeOverrides

    if args.model_draft is not None:
        raise MtprefError(
            "-md: golden vectors name one file, expected a model with its head in it; without a head the "
            "vectors are the trunk's"
        )
    if rope_overrides(args) != RopeOverrides():
        raise MtprefError("--rope-*, --yarn-*: golden vectors do not record them, expected the keys in the file itself")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _prompts(args: argparse.Namespace) -> list[tuple[str, str]]:
    texts = [*(args.prompt or ()), *(read_file(name) for name in args.file or ())]
    if not texts:
        raise MtprefError("prompt: none is given, expected a text; use -p TEXT or -f FNAME")
    return [(f"{i}", text) for i, text in enumerate(texts)]


def _rows(text: str) -> str | tuple[int, ...]:
    return text if text in ("last", "all") else _numbers("--rows", text)


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and len(part) < 10 for part in parts):
        raise MtprefError(f"{flag}: {text[:40]!r} is no list of numbers, expected something like 0,3")
    return tuple(int(part) for part in parts)


def _rollbacks(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in ("snapshot", "replay", "two-phase"):
            raise MtprefError(f"--rollbacks: {name[:40]!r} is unknown, expected some of snapshot, replay, two-phase")
    return names


def _at_least(flag: str, n: int, low: int) -> int:
    if n < low:
        raise MtprefError(f"{flag}: {n} is out of range, expected {low} or more")
    return n


def run_check(args: argparse.Namespace) -> int:
    from mtpref.golden import Port, check_folder
    from mtpref.golden.filter import Filter
    from mtpref.golden.gen import check_model

    folder = _folder(args)
    if args.model is not None:
        check_model(folder.manifest.get("model"), args.model)
    chosen = {"level": args.level, "suite": args.suite}
    if args.cmd is None:
        results = check_folder(folder, Port(Path(args.folder), _use_kernels(args.ops), given=_given(args)), **chosen)
        return _report(results, args)
    command = shlex.split(args.cmd)
    if not command:
        raise MtprefError("--cmd: it is empty, expected a program")
    with Filter(command, Path(args.folder)) as port:
        return _report(check_folder(folder, port, **chosen), args)


def _given(args: argparse.Namespace) -> Path | None:
    return None if args.model is None else Path(args.model)


def _use_kernels(ops: str) -> bool:
    from mtpref import kernels

    return ops == "numba" and kernels.available()


def _report(results: Iterable[Any], args: argparse.Namespace) -> int:
    """A line a failed case, one for each reason to skip, the counts, the faults that would fail the same cases, and the
    cases that could not be answered.

    Errors  MtprefError where there are such: nothing is known of them
    """
    from mtpref.golden.suspects import rank

    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    unfit = {}
    records = []
    for r in results:
        counts[r.verdict] += 1
        if r.verdict == "SKIP":
            skipped[r.skipped] += 1
        elif r.verdict == "UNFIT":
            unfit[r.case.id] = r.skipped
        wrong = [_wrong_text(w) for w in r.wrong] + ([r.skipped] if r.verdict == "UNFIT" else [])
        records.append({"id": r.case.id, "verdict": r.verdict, "wrong": wrong})
        if not args.json and (r.verdict == "FAIL" or args.all):
            first = f"  {_wrong_text(r.wrong[0])}" if r.wrong else ""
            print(f"{r.verdict}  {r.case.id}  [{', '.join(r.case.flags)}]{first}", flush=True)
    if not counts:
        raise MtprefError("golden check: no case matches, expected a level or suite of `mtpref golden list`")
    failed = [r["id"] for r in records if r["verdict"] == "FAIL"]
    suspects = rank(Path(args.folder), failed, [r["id"] for r in records if r["verdict"] == "PASS"])
    if args.json:
        told = [asdict(s) for s in suspects]
        print(json.dumps({"schema": SCHEMA, "counts": dict(counts), "cases": records, "suspects": told}))
    else:
        for reason, n in skipped.items():
            print(f"SKIP  {n} cases: {reason}")
        print(f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped")
        for s in suspects:
            explained = f"explains {s.n_shared} of {s.n_failed} failures, would fail {s.n_fault}"
            print(f"suspect: {s.fault} ({explained}); try: mtpref faults {s.fault}")
        for why in unfit.values():
            print(f"UNFIT  {why}")
    if unfit:
        n, first = len(unfit), next(iter(unfit))
        raise MtprefError(
            f"golden check: {n} of {sum(counts.values())} cases could not be answered (the first: {first}), expected "
            "vectors of the version of who answers; fetch the folder again, or use the version that it came with"
        )
    return 1 if counts["FAIL"] else 0


def _wrong_text(wrong: Any) -> str:
    return f"{wrong.output}: {wrong.reason}"


def run_derive(args: argparse.Namespace) -> int:
    from mtpref.front import api
    from mtpref.golden.derive import derive

    derive(args.name, api.tiny_path(), Path(args.output))
    return 0


def run_port(args: argparse.Namespace) -> int:
    from mtpref.golden import Port
    from mtpref.golden.filter import serve

    args.folder = args.folder or default_folder()

    answers: Callable[..., Any] = Port(Path(args.folder), given=_given(args))
    serve(answers, sys.stdin, sys.stdout)
    return 0


def run_export(args: argparse.Namespace) -> int:
    from mtpref.golden.export import CONTAINERS, PROMPTS, export_logits, export_suites

    folder, out = _folder(args), Path(args.output)
    if args.format in CONTAINERS:
        if args.prompt:
            raise MtprefError(f"-p: {args.format} holds suites, expected a prompt only for llama-results or bin")
        written = export_suites(folder, args.format, out, args.level, args.suite)
    else:
        if args.level or args.suite:
            raise MtprefError(f"--level, --suite: {args.format} holds logits of prompts, expected npz or safetensors")
        written = export_logits(folder, args.format, out, args.prompt or PROMPTS)
    for w in written:
        print(w.check or f"{w.path}: {w.about}")
    return 0
