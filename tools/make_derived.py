"""Make again what rests on the embedded tiny model, in order: ``python tools/make_derived.py [--run]``.

Without ``--run`` the steps are listed, each with its command and what it needs. With it they are run one after another;
the first that fails ends the run, and ``--from NAME`` goes on there. A step whose need is not given is skipped and said
to be. What no command makes is listed last, under "by hand".

    python tools/make_derived.py --run --llama-bin LLAMA_CPP/build/bin --broken-bin BROKEN/build/bin

BROKEN is a llama.cpp with tests/data/llama_cpp/broken/broken.patch. Prompts are those of tools/tiny/prompts.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from tiny.prompts import HF_TEXT  # noqa: E402

from mtpref.base.errors import MtprefError  # noqa: E402

TINY = "mtpref/data/tiny.gguf"


@dataclass(frozen=True)
class Step:
    """A command and what it makes. needs: of "llama", "broken" (folders of programs) and "torch" (extra `oracle`)."""

    name: str
    command: tuple[str, ...]
    makes: str
    needs: str = ""


def _step(name: str, command: str, makes: str, needs: str = "") -> Step:
    return Step(name, tuple(command.split()), makes, needs)


STEPS = (
    _step(
        "decisions",
        "tools/record_llama_cpp.py --llama-bin LLAMA_BIN --tiny -o tests/data/llama_cpp",
        "tests/data/llama_cpp/tiny*.log.gz and tiny*.results.gguf",
        "llama",
    ),
    _step(
        "logs",
        "tools/record_logs.py --llama-bin LLAMA_BIN",
        "tests/data/llama_cpp/logs, tests/data/rates",
        "llama",
    ),
    _step(
        "broken builds",
        "tools/record_broken.py --llama-bin BROKEN_BIN --model tiny -o tests/data/llama_cpp/broken",
        "tests/data/llama_cpp/broken/*.tiny.log.gz",
        "broken",
    ),
    _step(
        "quantisations",
        "tools/record_quantisers.py --llama-cpp LLAMA_BIN/.. --tiny",
        "tests/data/quantized.json",
        "llama",
    ),
    _step(
        "conversions",
        "tools/record_converted.py --llama-cpp LLAMA_BIN/../.. --tiny",
        "tests/data/converted.json",
        "llama torch",
    ),
    Step(
        "transformers",
        (*f"tools/record_hf.py --gguf {TINY} --rows 2 --tokens HF_TOKENS --out tests/data/hf_tiny.npz".split(),),
        "tests/data/hf_tiny.npz",
        "torch",
    ),
    _step("golden", "tools/make_golden.py --level L6", "golden L6 and the hashes of derived models"),
    _step("fault measurements", "tools/measure_faults.py", "docs/faults.json"),
    _step("fault pages", "tools/write_faults.py", "docs/faults.md"),
    _step("signatures", "tools/write_signatures.py", "mtpref/faults/diagnose/signatures.json"),
    _step("kill matrix", "tools/kill_matrix.py", "golden/kill_matrix.json, golden/kill-matrix.md"),
    _step("diagnosis of dumps", "tools/evaluate_diagnose.py dump -o results-dump.jsonl", "results-dump.jsonl"),
    _step("diagnosis of logs", "tools/evaluate_diagnose.py log -o results-log.jsonl", "results-log.jsonl"),
    _step(
        "diagnosis page",
        "tools/evaluate_diagnose.py render results-dump.jsonl results-log.jsonl --page docs/diagnosis.md",
        "the matrices in docs/diagnosis.md",
    ),
    _step(
        "diagnosis of broken builds",
        "tools/diagnose_broken.py --model tiny",
        "a column of a table in docs/diagnosis.md",
    ),
    _step("probe", "tools/write_probe.py", "docs/probe.md"),
    _step("story", "tools/write_story.py", "docs/pr-20700.md"),
    _step("transcript", "tools/write_transcript.py", "docs/transcript.md"),
    _step("chapters", "tools/write_chapters.py", "docs/learn"),
    _step("picture", "tools/write_picture.py", "docs/pictures/round.svg"),
    _step("checks of the page", "tools/write_check_doc.py", "docs/checks.md, generated part"),
    _step("command line", "tools/write_cli_doc.py", "docs/cli.md"),
    _step("manifest", "tools/make_golden.py --manifest", "golden/manifest.json"),
)
BY_HAND = (
    "version of the goldens and CHANGELOG.md",
    "README.md: the run of `generate`, its text and statistics (tests/test_readme.py runs it)",
    "docs/models.md: the card; docs/tiny-training-log.csv: the log of the run",
    "docs/keeping-the-head.md, table of methods: python tools/compare_head_quants.py F32.gguf (make_tiny.py --f32)",
    "docs/plan.md and docs/adaptive.md: python tools/check_plan.py, python tools/compare_adaptive.py (times)",
    "docs/pictures/trace-*.png and plan.png: the pages' own commands, in a browser",
    "docs/checks.md: rounds and near ties of llama.cpp's runs of the tiny model",
    "docs/diagnosis.md: words on the table of broken builds, and limits that were measured on the tiny model",
    "values in tests: python -m pytest, then each that names what the old model said",
)


def hf_tokens() -> str:
    """The first 40 ids of a function, as record_hf.py takes them."""
    import mtpref

    ids = mtpref.load().encode(HF_TEXT * 4)[:40]
    return ",".join(map(str, ids))


Bins = dict[str, Path | None]  # by what a step needs


def missing(step: Step, bins: Bins) -> str:
    """What a step needs and does not have."""
    for need in step.needs.split():
        if need in bins and bins[need] is None:
            return f"--{need}-bin"
    if "torch" in step.needs and importlib.util.find_spec("transformers") is None:
        return "torch and transformers (pip install '.[oracle]')"
    return ""


def run(step: Step, bins: Bins) -> None:
    """Run one step; MtprefError where it fails."""
    parts = list(step.command)
    for need in step.needs.split():
        if need in bins:
            parts = [part.replace(f"{need.upper()}_BIN", str(bins[need])) for part in parts]
    if "HF_TOKENS" in parts:
        parts[parts.index("HF_TOKENS")] = hf_tokens()
    started = time.monotonic()
    done = subprocess.run([sys.executable, *parts], cwd=ROOT, check=False)
    if done.returncode:
        raise MtprefError(f"{step.name}: exit {done.returncode}; after mending it: --from {step.name!r}")
    print(f"{step.name}: done in {time.monotonic() - started:.0f} s", flush=True)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make again what rests on the embedded tiny model, in order.")
    parser.add_argument("--run", action="store_true", help="run the steps (default: list them)")
    parser.add_argument("--from", dest="first", metavar="NAME", help="begin with this step")
    parser.add_argument("--llama-bin", type=Path, help="folder of llama.cpp's programs")
    parser.add_argument("--broken-bin", type=Path, help="that of a build with broken.patch")
    args = parser.parse_args(argv)
    names = [step.name for step in STEPS]
    if args.first is not None and args.first not in names:
        raise MtprefError(f"--from: no step {args.first!r}, expected one of {', '.join(names)}")
    for flag in ("llama_bin", "broken_bin"):
        folder = getattr(args, flag)
        if folder is not None and not folder.is_dir():
            raise MtprefError(
                f"--{flag.replace('_', '-')}: {folder} is no folder, expected that of llama.cpp's programs"
            )
        if folder is not None:
            setattr(args, flag, folder.resolve())
    return args


def main(argv: list[str] | None = None) -> int:
    try:
        args = parse_args(argv)
        names = [step.name for step in STEPS]
        bins: Bins = {"llama": args.llama_bin, "broken": args.broken_bin}
        for step in STEPS[names.index(args.first) if args.first else 0 :]:
            lacks = missing(step, bins)
            command = " ".join(repr(part) if " " in part else part for part in step.command)
            print(f"{step.name}: python {command}  ->  {step.makes}" + (f"  (SKIPPED: needs {lacks})" if lacks else ""))
            if args.run and not lacks:
                run(step, bins)
    except MtprefError as error:
        print(f"make_derived: {error}", file=sys.stderr)
        return 2
    print("by hand:")
    for line in BY_HAND:
        print(f"  {line}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
