"""Record stock llama.cpp's MTP decisions and trunk logits as fixtures for tests.

    python tools/record_llama_cpp.py --llama-bin DIR --micro -o tests/data/llama_cpp
    python tools/record_llama_cpp.py --llama-bin DIR --tiny -o tests/data/llama_cpp
    python tools/record_llama_cpp.py --llama-bin DIR --rope -o tests/data/llama_cpp
    python tools/record_llama_cpp.py --llama-bin DIR --moe -o tests/data/llama_cpp/moe
    python tools/record_llama_cpp.py --llama-bin DIR --streams -n 32 -o tests/data/llama_cpp/streams
    python tools/record_llama_cpp.py --llama-bin DIR --chains -n 32 -o tests/data/llama_cpp/chains
    python tools/record_llama_cpp.py --llama-bin DIR --single -n 40 -o tests/data/llama_cpp/single
    python tools/record_llama_cpp.py --llama-bin DIR --gemma -n 40 -o tests/data/llama_cpp/gemma
    python tools/record_llama_cpp.py --llama-bin DIR -m MODEL.gguf -o OUT [-p PROMPT ...] [-n 48]

For each model: NAME.log.gz (every draft candidate, accept decision, statistics and the text of llama-speculative-
simple over prompts x draft lengths x p_min) and NAME.results.gguf (tokens and logits of llama-results). Only lines
that depend on model and flags are kept: no times, paths or hardware. Read the log with mtpref/look/llama_cpp/log.py.
"""

import argparse
import gzip
import hashlib
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import make_micro  # noqa: E402
from tiny.prompts import DECISIONS  # noqa: E402

from mtpref.base.errors import MtprefError  # noqa: E402
from mtpref.front.api import tiny_path  # noqa: E402
from mtpref.look.llama_cpp.programs import NUMERICS, SPECULATIVE, run, run_to_statistics  # noqa: E402
from tests.quantize_cases import write_tiny  # noqa: E402

PROMPTS = ("The quick brown fox jumps", "def main(argv): return 0", "0123456789 and more text to read here", "a")
# (--spec-draft-n-max, --spec-draft-p-min)
SETTINGS = ((1, 0.0), (2, 0.0), (3, 0.0), (3, 0.5))
# Models with experts: fewer runs of each, since there are many. Of quantised ones the weights as they lie in the file.
MOE_PROMPTS = ("0123456789 and more text to read here abc", "The quick brown fox jumps")
MOE_SETTINGS = ((1, 0.0), (3, 0.0), (3, 0.5))
# An indexer leaves cells out only where there are more than it chooses.
INDEXED = ("deepseek32", "glm-dsa")
# With cells of 16 bits the rotation of an indexer's keys shows: the recording's name -> the standard model, the prompt.
HALF_CELLS = {
    "micro-deepseek32-f16-cells": ("micro-deepseek32-f32", "".join(f"{i * i:05}" for i in range(100, 190))),
    "micro-deepseek4-f16-cells": ("micro-deepseek4-f32", "".join(f"{i * i:06}" for i in range(600, 690))),
}
INDEXED_PROMPTS = ("".join(f"{i * i:05}" for i in range(100, 140)), "The quick brown fox jumps")
# Several heads in a chain: more tokens than there are heads are asked for, too.
CHAIN_SETTINGS = ((1, 0.0), (2, 0.0), (3, 0.0), (4, 0.0), (3, 0.5))
# Single heads that are followed through more prompts and every draft length.
FOLLOWED = ("bailingmoe3",)
# RoPE scaling shows at far positions: 72 tokens, more than the original context of the models with scaling.
ROPE_PROMPTS = ("".join(f"{i * i:05}" for i in range(100, 172)), "The quick brown fox jumps")
# Compressed rows of 128 tokens: the prompts begin before one and after one. The second is that of the logits.
STREAMS_PROMPTS = ("".join(f"{i * i:05}" for i in range(100, 222)), "".join(f"{i * i:05}" for i in range(200, 340)))
# Name of the recording -> the standard model, and the head's file where there are two.
STREAMS_RECORDINGS: dict[str, tuple[str, str]] = {
    "micro-deepseek4-f32": ("micro-deepseek4-f32", ""),
    "micro-deepseek4-own-f32": ("micro-deepseek4-own-f32", ""),
    "micro-deepseek4-q8_0": ("micro-deepseek4-q8_0", ""),
    "micro-deepseek4-two-files-f32": ("micro-deepseek4-trunk-f32", "micro-deepseek4-head-f32"),
}
# A target and its assistant. A prompt of one token leaves the assistant without a cell, and llama.cpp's logits are NaN.
GEMMA_PROMPTS = (*PROMPTS[:2], "two words", PROMPTS[2])
# Name of the recording -> the standard model, and flags that set its RoPE in place of the file's keys.
ROPE_RECORDINGS: dict[str, tuple[str, str]] = {
    "micro-60-rope-linear-f32": ("micro-60-rope-linear-f32", ""),
    "micro-60-rope-yarn-f32": ("micro-60-rope-yarn-f32", ""),
    "micro-60-rope-flags-f32": (
        "micro-60-f32",
        "--rope-scaling yarn --rope-scale 3 --yarn-orig-ctx 48 --yarn-ext-factor 0.75 --yarn-beta-fast 3 "
        "--yarn-beta-slow 0.5 --rope-freq-base 5000",
    ),
    "micro-60-rope-attn-factor-f32": (
        "micro-60-rope-yarn-f32",
        "--rope-scaling linear --rope-freq-scale 0.3 --yarn-attn-factor 1.5",
    ),
}
KEEP = re.compile(
    r"draft candidate +\d+, pos +\d+: +-?\d+ \( *[0-9.]+\) '.*?'(?=\n|$)"
    r"|accepted \d+/\d+ draft tokens, the last target token is: \(-?\d+\)"
    r"|partial acceptance: \d+ < \d+, restoring checkpoint"
    r"|(?<!\w)(?:n_draft|n_predict|n_drafted|n_accept) += \d+"
    r"|(?<!\w)accept +=  *[0-9.na-]+%"
    r"|statistics +draft-mtp:.*?#acc rate/pos = \([^)]*\)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Case:
    """One run of llama-speculative-simple."""

    prompt: str
    n_predict: int
    n_max: int
    p_min: float
    extra: str = ""

    def flags(self, model: str) -> list[str]:
        """The whole command line after the program's name."""
        size = ["-n", str(self.n_predict), "--spec-draft-n-max", str(self.n_max)]
        fixed = ["--spec-draft-p-min", f"{self.p_min:g}", *SPECULATIVE, *NUMERICS]
        return ["-m", model, "-p", self.prompt, *size, *fixed, *self.extra.split()]


def prompt_ids(bin_dir: Path, model: str, prompt: str, cwd: Path) -> str:
    """The prompt's token ids as llama-tokenize prints them: "[1, 2, 3]"."""
    command = [str(bin_dir / "llama-tokenize"), "-m", model, "-p", prompt, "--ids", "--log-disable"]
    return run(command, cwd).stdout.strip().splitlines()[-1]


def record_log(bin_dir: Path, model: str, case: Case, cwd: Path) -> str:
    """One run as text: a header, the kept lines, and the text it wrote to stdout (prompt included)."""
    done = run_to_statistics([str(bin_dir / "llama-speculative-simple"), *case.flags(model)], cwd)
    head = {
        "model": model,
        "model_sha256": hashlib.sha256((cwd / model).read_bytes()).hexdigest(),
        "prompt": case.prompt,
        "prompt_ids": prompt_ids(bin_dir, model, case.prompt, cwd),
        "n_predict": str(case.n_predict),
        "n_max": str(case.n_max),
        "p_min": f"{case.p_min:g}",
        "stdout": repr(done.stdout.strip("\n")),
    }
    if case.extra:
        head["flags"] = case.extra
    lines = ["# run", *(f"# {key}: {value}" for key, value in head.items())]
    return "\n".join([*lines, *KEEP.findall(done.stderr)]) + "\n"


def record_model(
    bin_dir: Path,
    model: Path,
    out: Path,
    prompts: tuple[str, ...],
    n_predict: int,
    name: str = "",
    extra: str = "",
    settings: tuple[tuple[int, float], ...] = SETTINGS,
    head: Path | None = None,
) -> None:
    """Write OUT/NAME.log.gz and OUT/NAME.results.gguf for one model, run under its bare file name.

    name: the recording's, if not the model's; extra: flags for both programs; head: the draft's file
    """
    name = name or model.stem
    flags = f"-md {head.name} {extra}" if head else extra
    cases = [Case(prompt, n_predict, n_max, p_min, flags) for prompt in prompts for n_max, p_min in settings]
    with tempfile.TemporaryDirectory() as folder:
        cwd = Path(folder)
        for path in (model, head) if head else (model,):
            (cwd / path.name).symlink_to(path.resolve())
        text = "".join(record_log(bin_dir, model.name, case, cwd) for case in cases)
        if head is None:
            record_logits(bin_dir, model.name, out / f"{name}.results.gguf", prompts[-2], cwd, extra)
    (out / f"{name}.log.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def record_logits(bin_dir: Path, model: str, out: Path, prompt: str, cwd: Path, extra: str = "") -> None:
    """Write what llama-results gives for a model in the folder cwd."""
    results = cwd / "results.gguf"
    command = [str(bin_dir / "llama-results"), "-m", model, "-p", prompt, "-o", results.name, *NUMERICS]
    run([*command, *extra.split()], cwd)
    shutil.copyfile(results, out)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Record llama.cpp's MTP decisions and logits as fixtures.")
    parser.add_argument("--llama-bin", type=Path, required=True, help="folder with llama-speculative-simple, ...")
    parser.add_argument("-m", "--model", type=Path, action="append", default=[], help="model file (repeatable)")
    parser.add_argument("--micro", action="store_true", help="the standard micro F32 models, made on the fly")
    parser.add_argument("--tiny", action="store_true", help="the embedded tiny model, and the same in F32")
    parser.add_argument("--moe", action="store_true", help="the standard micro models with experts")
    parser.add_argument("--streams", action="store_true", help="the standard micro models of several streams")
    parser.add_argument(
        "--only", action="append", help="of --moe and --single only models whose name starts so (repeatable)"
    )
    parser.add_argument("--chains", action="store_true", help="the standard micro models with a chain of heads")
    parser.add_argument("--single", action="store_true", help="the standard micro models of other single heads")
    parser.add_argument("--gemma", action="store_true", help="the standard micro models of gemma4, with assistants")
    parser.add_argument("--rope", action="store_true", help="the standard recordings of RoPE scaling")
    parser.add_argument("-p", "--prompt", action="append", default=[], help="prompt (repeatable; default: built in)")
    parser.add_argument("-n", "--predict", type=int, default=48, help="tokens to generate (default 48)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the fixtures")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Record every model; exit code 2 and one line on stderr on failure."""
    args = parse_args(argv)
    prompts = tuple(args.prompt) or PROMPTS
    prompts = prompts if len(prompts) > 1 else prompts * 2
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            models = list(args.model)
            if args.tiny:
                prompts = DECISIONS
                models += [tiny_path(), write_tiny(Path(folder)).rename(Path(folder) / "tiny-f32.gguf")]
            for name in [n for n in make_micro.STANDARD if n.endswith("f32")] if args.micro else []:
                if make_micro.STANDARD[name][3].rope is None:
                    models.append(Path(folder) / f"{name}.gguf")
                    make_micro.make_standard(name, models[-1])
            for model in models:
                record_model(args.llama_bin.resolve(), model, args.output, prompts, args.predict)
                print(f"recorded {model.name}", file=sys.stderr)
            starts = tuple(args.only or ("",))
            with_experts = make_micro.STANDARD_MOE | make_micro.STANDARD_TIES
            for name in [n for n in with_experts if args.moe and n.startswith(starts)]:
                model = Path(folder) / f"{name}.gguf"
                make_micro.make_standard(name, model)
                extra = "" if name.endswith("f32") else "--no-repack"
                said = INDEXED_PROMPTS if with_experts[name][0] in INDEXED else MOE_PROMPTS
                record_model(
                    args.llama_bin.resolve(), model, args.output, said, args.predict, name, extra, MOE_SETTINGS
                )
                print(f"recorded {name}", file=sys.stderr)
            for name in [n for n in make_micro.STANDARD_SINGLE if args.single and n.startswith(starts)]:
                model = Path(folder) / f"{name}.gguf"
                make_micro.make_standard(name, model)
                extra = "" if name.endswith("f32") else "--no-repack"
                is_followed = make_micro.STANDARD_SINGLE[name][0] in FOLLOWED
                texts: tuple[str, ...] = PROMPTS if is_followed else MOE_PROMPTS
                settings = CHAIN_SETTINGS if is_followed else MOE_SETTINGS
                record_model(args.llama_bin.resolve(), model, args.output, texts, args.predict, name, extra, settings)
                print(f"recorded {name}", file=sys.stderr)
            for name in [*make_micro.STANDARD_CHAINS, *make_micro.STANDARD_MOE_CHAINS] if args.chains else ():
                model = Path(folder) / f"{name}.gguf"
                make_micro.make_standard(name, model)
                extra = "" if name.endswith("f32") else "--no-repack"
                record_model(
                    args.llama_bin.resolve(), model, args.output, prompts, args.predict, name, extra, CHAIN_SETTINGS
                )
                print(f"recorded {name}", file=sys.stderr)
            for name in [n for n in make_micro.STANDARD_TRUNKS if args.moe and n.startswith(starts)]:
                make_micro.make_standard(name, Path(folder) / f"{name}.gguf")
                to, extra = args.output / f"{name}.results.gguf", "" if name.endswith("f32") else "--no-repack"
                record_logits(args.llama_bin.resolve(), f"{name}.gguf", to, MOE_PROMPTS[0], Path(folder), extra)
                print(f"recorded {name}, logits", file=sys.stderr)
            for name, (model_name, prompt) in HALF_CELLS.items():
                is_asked = args.streams if "deepseek4" in name else args.moe
                if not is_asked or not model_name.startswith(starts):
                    continue
                make_micro.make_standard(model_name, Path(folder) / f"{model_name}.gguf")
                to, extra = args.output / f"{name}.results.gguf", "-ctk f16 -ctv f16"
                record_logits(args.llama_bin.resolve(), f"{model_name}.gguf", to, prompt, Path(folder), extra)
                print(f"recorded {name}, logits", file=sys.stderr)
            for name, (model_name, head_name) in STREAMS_RECORDINGS.items() if args.streams else ():
                model, head = (Path(folder) / f"{n}.gguf" if n else None for n in (model_name, head_name))
                for path in (model, head):
                    if path is not None and not path.exists():
                        make_micro.make_standard(path.stem, path)
                assert model is not None
                extra = "" if name.endswith("f32") else "--no-repack"
                record_model(
                    args.llama_bin.resolve(), model, args.output, STREAMS_PROMPTS, args.predict, name, extra,
                    MOE_SETTINGS, head,
                )  # fmt: skip
                print(f"recorded {name}", file=sys.stderr)
            for name in make_micro.STANDARD_GEMMA if args.gemma else ():
                if make_micro.STANDARD_GEMMA[name][-1] or not name.startswith(starts):
                    continue
                model, head = (Path(folder) / f"{n}.gguf" for n in (name, make_micro.assistant_of(name)))
                for path in (model, head):
                    make_micro.make_standard(path.stem, path)
                extra = "" if name.endswith("f32") else "--no-repack"
                bin_dir = args.llama_bin.resolve()
                record_model(
                    bin_dir, model, args.output, GEMMA_PROMPTS, args.predict, name, extra, CHAIN_SETTINGS, head
                )
                to = args.output / f"{name}.results.gguf"
                record_logits(bin_dir, model.name, to, GEMMA_PROMPTS[-1], Path(folder), extra)
                print(f"recorded {name}", file=sys.stderr)
            for name, (model_name, extra) in ROPE_RECORDINGS.items() if args.rope else ():
                model = Path(folder) / f"{model_name}.gguf"
                make_micro.make_standard(model_name, model)
                record_model(args.llama_bin.resolve(), model, args.output, ROPE_PROMPTS, args.predict, name, extra)
                print(f"recorded {name}", file=sys.stderr)
    except (MtprefError, RuntimeError, OSError, ValueError) as error:
        print(f"record_llama_cpp: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
