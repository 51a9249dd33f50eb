"""Make the tiny trained model from scratch: ``python tools/make_tiny.py -o OUT.gguf --steps 4000``.

Writes stories (tools/tiny/stories), reads the standard library of the running CPython, trains a tokenizer, the trunk
and then the MTP block, writes a Q8_0 GGUF (and an F32 one with ``--f32``), measures it on held-out text and says which
criteria it meets (tools/evaluate_tiny.py says the same of a file). Needs torch (``pip install '.[train]'``);
everything else of mtpref runs without it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from mtpref.base.errors import MtprefError  # noqa: E402


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train and write the tiny qwen35 model with an MTP head.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="GGUF to write (Q8_0)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--budget-minutes", type=float, default=70.0, help="wall time of training (default 70)")
    length.add_argument("--steps", type=int, help="number of steps instead of a time budget: repeats exactly")
    parser.add_argument("--seed", type=int, default=1, help="seed of initial weights and batches (default 1)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--f32", type=Path, help="also write an F32 GGUF here")
    parser.add_argument("--work", type=Path, help="folder for log and checkpoints (default: a temporary one)")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --work")
    parser.add_argument("--stories", type=int, default=100_000, help="training stories to write (default 100000)")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 products, on CPUs that have them too")
    parser.add_argument(
        "--eval-prompts", type=int, default=20, help="held-out prompts to judge the text by (default 20)"
    )
    parser.add_argument("--llama-cpp", type=Path, help="folder of a built llama.cpp, to compare decisions with")
    parser.add_argument("--report", type=Path, help="write the measurements and the data hashes here (JSON)")
    args = parser.parse_args(argv)
    args.command = " ".join(["python tools/make_tiny.py", *(sys.argv[1:] if argv is None else argv)])
    if args.resume and args.work is None:
        raise MtprefError("--resume: no folder to continue from, expected --work DIR of the earlier run")
    if args.stories < 1:
        raise MtprefError(f"--stories: {args.stories}, expected at least 1")
    if args.steps is not None and args.steps < 1:
        raise MtprefError(f"--steps: {args.steps}, expected at least 1")
    if args.budget_minutes <= 0:
        raise MtprefError(f"--budget-minutes: {args.budget_minutes}, expected more than 0")
    if not args.output.parent.is_dir():
        raise MtprefError(f"{args.output}: folder {args.output.parent} does not exist; create it first")
    return args


def run(args: argparse.Namespace, work: Path) -> dict[str, object]:
    """All stages; returns the report."""
    import torch
    from tiny.export import write_gguf
    from tiny.model import TinyConfig
    from tiny.pipeline import described, file_hash, measure, prepare, train_model
    from tiny.train import TrainPlan

    cfg = TinyConfig()
    data = prepare(cfg, args.seed, args.stories, args.threads)
    print(f"data: {json.dumps(described(data))}", flush=True)
    budget_s = None if args.steps is not None else 60.0 * args.budget_minutes
    bfloat16 = not args.float32 and torch.cpu._is_avx512_bf16_supported()
    plan = TrainPlan(seed=args.seed, budget_s=budget_s, steps=args.steps, bfloat16=bfloat16)
    print(f"products in {'bfloat16' if bfloat16 else 'float32'}, {args.threads} threads", flush=True)
    model = train_model(cfg, data, plan, work, args.threads, args.resume)
    version = data.corpus.python_version
    write_gguf(args.output, model, data.vocab, version, quantised=True)
    made: dict[str, object] = {"torch": torch.__version__, "bfloat16": bfloat16, "threads": args.threads}
    if args.f32 is not None:
        write_gguf(args.f32, model, data.vocab, version, quantised=False)
        made["sha256_f32"] = file_hash(args.f32)
    report, table = measure(args.output, cfg, data, args.eval_prompts, args.llama_cpp)
    print(table)
    return {"command": args.command, **made, **report}


def main(argv: list[str] | None = None) -> int:
    try:
        args = parse_args(argv)
        try:
            import torch  # noqa: F401
        except ImportError:
            raise MtprefError("torch is not installed; training needs it, try: pip install '.[train]'") from None
        if args.work is not None:
            report = run(args, args.work)
        else:
            with tempfile.TemporaryDirectory() as folder:
                report = run(args, Path(folder))
        text = json.dumps(report, indent=2)
        print(text)
        if args.report is not None:
            args.report.write_text(text + "\n")
    except MtprefError as error:
        print(f"make_tiny: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
