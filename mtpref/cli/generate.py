"""`mtpref generate`: text on stdout, everything else on stderr."""

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from mtpref.cli.options import add_model, add_prompt, load_model, read_prompt
from mtpref.errors import MtprefError

SCHEMA = "mtpref-generate-1"
DEFAULT_N_PREDICT = 128


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "generate",
        usage="mtpref generate [options]",
        help="generate text, drafting with the model's MTP head",
        description="Generate text greedily, drafting with the model's MTP head and verifying with the model itself. "
        "stdout is the text only; notes and statistics go to stderr.",
    )
    add_model(parser)
    add_prompt(parser)
    run = parser.add_argument_group("generation")
    run.add_argument(
        "-n",
        "--predict",
        "--n-predict",
        dest="n_predict",
        type=int,
        default=DEFAULT_N_PREDICT,
        metavar="N",
        help=f"tokens to generate at most, -1: no limit (default: {DEFAULT_N_PREDICT})",
    )
    run.add_argument(
        "-c", "--ctx-size", type=int, default=0, metavar="N", help="context length, 0: the model's (default: 0)"
    )
    run.add_argument(
        "-b", "--batch-size", type=int, default=512, metavar="N", help="prompt tokens per pass (default: 512)"
    )
    _add_spec(parser)
    out = parser.add_argument_group("output")
    out.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the text (default: off)")
    out.add_argument("--trace", metavar="FILE.jsonl", help="write every event to a file as it happens (default: none)")
    parser.set_defaults(run=run_generate)


def _add_spec(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("speculative decoding")
    group.add_argument(
        "--spec-type",
        choices=("draft-mtp", "none"),
        help="draft-mtp or none (default: draft-mtp where the file has an MTP head)",
    )
    group.add_argument(
        "--spec-draft-n-max", type=int, default=3, metavar="N", help="longest draft, 0: none (default: 3)"
    )
    group.add_argument("--spec-draft-n-min", type=int, default=0, metavar="N", help="shortest draft (default: 0)")
    group.add_argument(
        "--spec-draft-p-min",
        type=float,
        default=0.0,
        metavar="P",
        help="least probability of a drafted token among the ten best (default: 0.0)",
    )
    group.add_argument(
        "--spec-draft-vocab", type=int, metavar="N", help="draft only the first N ids, FastMTP (default: all)"
    )
    group.add_argument(
        "--spec-rollback",
        choices=("snapshot", "replay", "two-phase"),
        default="snapshot",
        help="how a rejected draft leaves the model state (default: snapshot)",
    )
    group.add_argument(
        "--spec-cooldown", type=int, default=0, metavar="K", help="rounds without drafts after rejections (default: 0)"
    )
    group.add_argument(
        "--spec-cooldown-after",
        type=int,
        default=1,
        metavar="R",
        help="cool down after R rounds without an acceptance (default: 1)",
    )


def run_generate(args: argparse.Namespace) -> int:
    from mtpref.trace import TraceWriter

    prompt = read_prompt(args)
    say = _Notes()
    say.when_compiling(args)
    started = time.perf_counter()
    model = load_model(args)
    load_seconds = time.perf_counter() - started
    options = _options(args, model)
    say.model(args, model, options)
    if args.prompt is None and args.file is None:
        say.line(f"prompt: {prompt!r} (give your own with -p or -f)")
    run = model.generate(prompt, options, n_ctx=_n_ctx(args, model))
    run.statistics.seconds["load"] = load_seconds
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(TraceWriter(args.trace)) if args.trace else None
        reason = _consume(run, writer, _Text(is_silent=args.json), say)
    if args.json:
        _print_json(run, reason)
    for line in run.statistics.lines():
        say.line(line)
    return 130 if reason == "interrupted" else 0


def _options(args: argparse.Namespace, model: Any) -> Any:
    from mtpref.decode import Options, PolicyConfig
    from mtpref.spec import P_ONE

    if not 0.0 <= args.spec_draft_p_min <= 1.0:
        raise MtprefError(f"--spec-draft-p-min: {args.spec_draft_p_min} is out of range, expected 0 .. 1")
    policy = PolicyConfig(
        n_max=args.spec_draft_n_max,
        n_min=args.spec_draft_n_min,
        p_min=int(args.spec_draft_p_min * P_ONE),
        cooldown=args.spec_cooldown,
        cooldown_after=args.spec_cooldown_after,
    )
    return Options(
        n_predict=args.n_predict,
        spec_type=args.spec_type or ("draft-mtp" if model.has_mtp else "none"),
        policy=policy,
        rollback=args.spec_rollback,
        n_draft_vocab=args.spec_draft_vocab,
        n_batch=args.batch_size,
    )


def _n_ctx(args: argparse.Namespace, model: Any) -> int:
    n_train = model.core.config.n_ctx_train
    if args.ctx_size < 0 or args.ctx_size > n_train:
        raise MtprefError(f"--ctx-size: {args.ctx_size} is out of range, expected 0 .. {n_train}, the model's context")
    return int(args.ctx_size)


def _consume(run: Any, writer: Any, text: "_Text", say: "_Notes") -> str:
    """Print the text as it comes; returns why it ended."""
    from mtpref.events import PromptProgress, RunEnded, Token
    from mtpref.trace import tee

    reason = "interrupted"
    try:
        with _sigterm_as_interrupt():
            for event in tee(run, writer):
                if isinstance(event, Token):
                    say.end_progress()
                    text.write(event.piece)
                elif isinstance(event, PromptProgress):
                    say.progress(event.n_done, event.n_total)
                elif isinstance(event, RunEnded):
                    reason = event.reason
    except KeyboardInterrupt:
        if writer is not None:
            writer.write(RunEnded(reason, run.statistics.to_json()))
    say.end_progress()
    text.end()
    return reason


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: with its statistics."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Text:
    """Model text on stdout: exact bytes to a pipe or file; to a terminal whole characters, controls made visible."""

    def __init__(self, *, is_silent: bool) -> None:
        from mtpref.vocab import StreamDecoder

        self._is_silent = is_silent
        self._is_tty = sys.stdout.isatty()
        self._decoder = StreamDecoder()

    def write(self, piece: bytes) -> None:
        if self._is_silent:
            return
        if self._is_tty:
            self._show(self._decoder.push(piece))
        else:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()

    def end(self) -> None:
        if self._is_tty and not self._is_silent:
            self._show(self._decoder.flush() + "\n")

    def _show(self, text: str) -> None:
        from mtpref.vocab import terminal_safe

        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(terminal_safe(text).encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()


class _Notes:
    """Lines on stderr."""

    def __init__(self) -> None:
        self._in_progress = False
        self._has_said_compiling = False

    def line(self, text: str) -> None:
        from mtpref.vocab import terminal_safe

        print(terminal_safe(text), file=sys.stderr, flush=True)

    def when_compiling(self, args: argparse.Namespace) -> None:
        """Say what the run waits for, once, as soon as a kernel is not in the cache."""
        from mtpref import kernels

        if args.ops != "spec" and kernels.available():
            kernels.when_compiling(self._compiling)

    def _compiling(self) -> None:
        if not self._has_said_compiling:
            self._has_said_compiling = True
            self.line("compiling kernels for this machine: once, up to half a minute; later starts use a cache")

    def model(self, args: argparse.Namespace, model: Any, options: Any) -> None:
        core = model.core
        name = args.model or "embedded tiny model"
        self.line(
            f"model: {name} ({core.config.arch}, {core.config.n_layer} layers, {core.n_vocab} tokens); "
            f"numerics {core.recipe.numerics}, KV {core.kv_type.lower()}"
        )
        for note in (*core.notes, *core.vocab.notes):
            self.line(f"note: {note}")
        self._mtp(core, options)

    def _mtp(self, core: Any, options: Any) -> None:
        from mtpref.contract import describe

        if not core.has_mtp:
            self.line("MTP: the file has no head, so nothing is drafted and every token costs a full pass")
        elif options.spec_type == "none" or options.policy.n_max == 0:
            self.line("MTP: off, though the file has a head; every token costs a full pass")
        else:
            borrowed = [f"{part} = {name}" for part, name in core.weights.mtp.origin.items() if ".nextn." not in name]
            shared = f"; shared with the trunk: {', '.join(borrowed)}" if borrowed else ""
            self.line(
                f"MTP: on, drafts of up to {options.policy.n_max}, roll back by {options.rollback}, "
                f"contract {describe(core.recipe.contract)}{shared}"
            )

    def progress(self, n_done: int, n_total: int) -> None:
        if sys.stderr.isatty() and n_total > 64:
            print(f"\rprompt: {n_done} of {n_total} tokens", end="", file=sys.stderr, flush=True)
            self._in_progress = True

    def end_progress(self) -> None:
        if self._in_progress:
            print(file=sys.stderr)
            self._in_progress = False


def _print_json(run: Any, reason: str) -> None:
    record = {
        "schema": SCHEMA,
        "prompt_ids": run.prompt_ids,
        "ids": run.ids,
        "text": run.text,
        "reason": reason,
        "statistics": run.statistics.to_json(),
    }
    print(json.dumps(record, ensure_ascii=True))
