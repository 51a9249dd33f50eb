"""Judge a tiny model: ``python tools/evaluate_tiny.py MODEL.gguf [--llama-cpp DIR] [--texts]``.

Prints the table of criteria of docs/models.md and which are not met; exit code 1 where one is not. The teacher-forced
figures need torch and a file that tools/make_tiny.py wrote.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from mtpref.base.errors import MtprefError  # noqa: E402


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Judge a tiny model by the criteria that it must meet to ship.")
    parser.add_argument("model", type=Path, help="GGUF file")
    parser.add_argument("--prompts", type=int, default=20, help="held-out stories to begin (default 20)")
    parser.add_argument("--llama-cpp", type=Path, help="folder of a built llama.cpp, to compare decisions with")
    parser.add_argument("--texts", action="store_true", help="print the generated texts, too")
    parser.add_argument("--report", type=Path, help="write the figures here (JSON)")
    args = parser.parse_args(argv)
    if args.prompts < 1:
        raise MtprefError(f"--prompts: {args.prompts}, expected at least 1")
    if not args.model.is_file():
        raise MtprefError(f"{args.model}: no such file, expected a GGUF")
    if importlib.util.find_spec("torch") is None:
        raise MtprefError("torch is not installed; the teacher-forced figures need it, try: pip install '.[train]'")
    return args


def forced_figures(path: Path) -> dict[str, float]:
    """Teacher-forced figures of a file on held-out stories."""
    import torch
    from tiny.evaluate import teacher_forced
    from tiny.export import read_gguf_state
    from tiny.model import TinyConfig, TinyModel
    from tiny.text import encode, held_out_stories
    from tiny.tokenizer import read_tokenizer

    cfg = TinyConfig()
    model = TinyModel(cfg)
    model.load_state_dict({name: torch.from_numpy(x) for name, x in read_gguf_state(path, cfg).items()})
    tokenizer, eos_id = read_tokenizer(path)
    return teacher_forced(model, encode(tokenizer, held_out_stories(100), [("", "\n")], eos_id), 0.0)


def main(argv: list[str] | None = None) -> int:
    try:
        args = parse_args(argv)
        from tiny.criteria import judge

        judged = judge(args.model, args.prompts, args.llama_cpp, forced_figures(args.model))
        if args.texts:
            for text in [*judged.figures["texts"], *judged.figures["code_texts"]]:  # type: ignore[misc]
                print(f"{text}\n\n---\n")
        print(judged.table())
        if args.report is not None:
            args.report.write_text(json.dumps(judged.figures, indent=2) + "\n")
    except MtprefError as error:
        print(f"evaluate_tiny: {error}", file=sys.stderr)
        return 2
    return 1 if judged.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
