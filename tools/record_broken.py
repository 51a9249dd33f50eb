"""Record a llama.cpp that was broken on purpose: what it decides under each mistake, for `mtpref diagnose --log`.

    patch -p1 -d LLAMA_CPP < tests/data/llama_cpp/broken/broken.patch
    cmake --build LLAMA_CPP/build --target llama-speculative-simple llama-tokenize
    python tools/record_broken.py --llama-bin LLAMA_CPP/build/bin -o tests/data/llama_cpp/broken [--model tiny]

The patch puts all mistakes behind one switch, the environment's LLAMA_BROKEN; tests/data/llama_cpp/broken/README.md
says what each is. A build without the patch is refused: each mistake must change the log of some model.
"""

import argparse
import gzip
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import make_micro
from record_llama_cpp import Case, record_log
from tiny.prompts import BROKEN

from mtpref.base.errors import MtprefError
from mtpref.front.api import tiny_path

SWITCH = "LLAMA_BROKEN"
HEALTHY = "healthy"
# The mistakes, and what each is in the catalogue of faults; "": nothing there.
BREAKAGES = {
    "concat": "G1-concat-swapped",
    "pre-norm": "G2-pre-norm-hidden",
    "chain-pre-norm": "C1-chain-pre-norm",
    "no-hnorm": "",
    "no-qk-norm": "G5-no-qk-norm",
    "gate-silu": "G4-gate-silu",
    "no-head-norm": "W7b-head-norm-skipped",
    "last-row": "C3-last-verify-row",
    "row-before": "C3b-row-before-last",
    "same-token": "C4-same-token-pairing",
    "no-prime": "K0-prompt-not-primed",
    "zero-pending": "",
}
MICRO_PROMPTS = ("The quick brown fox jumps over it", "0123456789 and more text to read here")
# Name of the recording -> its prompts and tokens after each.
MODELS = {"tiny": (BROKEN, 64), "micro-30-f32": (MICRO_PROMPTS, 48), "micro-60-f32": (MICRO_PROMPTS, 48)}
N_MAX, P_MIN = 3, 0.0


def model_file(name: str, folder: Path) -> Path:
    """The model under its own name in a folder: its name stands in the recording."""
    path = folder / f"{name}.gguf"
    if name == "tiny":
        path.symlink_to(tiny_path())
    else:
        make_micro.make_standard(name, path)
    return path


def record_breakage(bin_dir: Path, model: Path, breakage: str) -> str:
    """The runs of one model under one mistake."""
    prompts, n_predict = MODELS[model.stem]
    os.environ[SWITCH] = breakage
    try:
        cases = [Case(prompt, n_predict, N_MAX, P_MIN) for prompt in prompts]
        return "".join(record_log(bin_dir, model.name, case, model.parent) for case in cases)
    finally:
        del os.environ[SWITCH]


def record(bin_dir: Path, models: list[str], out: Path) -> None:
    """Write OUT/BREAKAGE.MODEL.log.gz of each mistake and model.

    Errors  MtprefError where a mistake changes no model's log: the build does not have it
    """
    changed = dict.fromkeys(BREAKAGES, False)
    texts: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in models:
            model = model_file(name, Path(folder))
            found = {breakage: record_breakage(bin_dir, model, breakage) for breakage in (HEALTHY, *BREAKAGES)}
            texts |= {f"{breakage}.{name}": text for breakage, text in found.items()}
            for breakage in BREAKAGES:
                changed[breakage] |= found[breakage] != found[HEALTHY]
            print(f"recorded {name}", file=sys.stderr)
    same = [breakage for breakage, is_changed in changed.items() if not is_changed]
    if same:
        raise MtprefError(
            f"{SWITCH}={same[0]} changes no log ({len(same)} of {len(BREAKAGES)} mistakes do not), expected a build "
            "with tests/data/llama_cpp/broken/broken.patch"
        )
    for stem, text in texts.items():
        (out / f"{stem}.log.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def main(argv: list[str] | None = None) -> int:
    """Record every model; exit code 2 and one line on stderr on failure."""
    parser = argparse.ArgumentParser(description="Record a llama.cpp that was broken on purpose.")
    parser.add_argument("--llama-bin", type=Path, required=True, help="folder of the broken build's programs")
    parser.add_argument("--model", action="append", choices=MODELS, help="only this one (repeatable; default: all)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the logs")
    args = parser.parse_args(argv)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        record(args.llama_bin.resolve(), args.model or list(MODELS), args.output)
    except (MtprefError, OSError, ValueError) as error:
        print(f"record_broken: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
