"""What verbs print beside their results: model text on stdout, notes on stderr.

Owns terminal safety, progress, and the rule that a refusal is one line: notes are held until the work has begun, and a
verb that refuses before then prints none. It must not decide anything about a run.
"""

import argparse
import sys
from typing import Any

from mtpref.front.cli.flags import flagged

ORIGINS = ("draft", "correction", "bonus", "plain")  # of tokens; plain has no colour


def legend_spans() -> list[tuple[str, str]]:
    """Each origin in its colour."""
    return [span for word in ORIGINS for span in ((word, word), (" ", ""))]


_held: list[str] | None = None  # None: notes are printed at once


def hold_notes() -> None:
    """From now on notes wait for `begin`."""
    global _held
    _held = []


def begin() -> None:
    """The work has begun, or is done: what is held is printed, and later notes at once."""
    global _held
    lines, _held = _held or [], None
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def drop_notes() -> None:
    """The verb refuses: what is held is not printed."""
    global _held
    _held = None


def note(line: str) -> None:
    """A line for stderr, harmless already; settings that it names become flags."""
    line = flagged(line)
    if _held is None:
        print(line, file=sys.stderr, flush=True)
    else:
        _held.append(line)


class Text:
    """Model text on stdout: exact bytes to a pipe or file; to a terminal whole characters, controls made visible.

    is_colored        tokens by where they came from; then controls are visible everywhere
    is_at_line_start  whether a line of another stream may follow at once
    """

    def __init__(self, *, is_silent: bool, is_colored: bool = False) -> None:
        from mtpref.files.vocab import StreamDecoder

        self._is_silent = is_silent
        self._is_tty = sys.stdout.isatty()
        self._decoder = StreamDecoder()
        self._spans: Any = None
        self.is_at_line_start = True
        if is_colored:
            from mtpref.look.trace.show import TextSpans

            self._spans = TextSpans()

    def event(self, event: Any) -> None:
        """What a Token or a RunEnded lets show."""
        if self._spans is None:
            self.write(event.text)
        elif not self._is_silent:
            from mtpref.front.cli.terminal import painted

            for span in self._spans.spans(event):
                self._put(painted([span], True), span[0])

    def write(self, piece: bytes) -> None:
        if self._is_silent:
            return
        if self._is_tty or self._spans is not None:
            self._show(self._decoder.push(piece))
        elif piece:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            self.is_at_line_start = piece.endswith(b"\n")

    def end(self) -> None:
        if self._is_tty and not self._is_silent:
            self._show(self._decoder.flush() + "\n")

    def _show(self, text: str) -> None:
        from mtpref.files.vocab import terminal_safe

        self._put(terminal_safe(text), text)

    def _put(self, shown: str, text: str) -> None:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
        if text:
            self.is_at_line_start = text.endswith("\n")


def wants_text_color(args: argparse.Namespace) -> bool:
    """--color of generate: on and off are llama.cpp's words."""
    from mtpref.front.cli.terminal import wants_color

    mode = {"on": "always", "off": "never"}.get(args.color, args.color)
    return not args.json and wants_color(mode, sys.stdout)


class Notes:
    """Lines on stderr."""

    def __init__(self) -> None:
        self._in_progress = False
        self._has_said_compiling = False

    def line(self, text: str) -> None:
        from mtpref.files.vocab import terminal_safe

        note(terminal_safe(text))

    def legend(self) -> None:
        """What the colours of the text mean."""
        from mtpref.front.cli.terminal import painted

        note("colours: " + painted(legend_spans(), True).rstrip())

    def when_compiling(self, args: argparse.Namespace) -> None:
        """Say what the run waits for, once, as soon as a kernel is not in the cache."""
        from mtpref import kernels

        if args.ops != "spec" and kernels.available():
            kernels.when_compiling(self._compiling)

    def _compiling(self) -> None:
        if not self._has_said_compiling:
            self._has_said_compiling = True
            said = "compiling kernels for this machine: once, up to half a minute; later starts use a cache"
            print(said, file=sys.stderr, flush=True)  # at once: it is what the user waits for

    def compiled(self) -> None:
        """After statistics: what their times leave out, where that is worth a line."""
        from mtpref import kernels

        if self._has_said_compiling:
            self.line(f"kernels were compiled for {kernels.compile_seconds():.1f} s, which the times above leave out")

    def model(self, args: argparse.Namespace, model: Any, options: Any) -> None:
        core = model.core
        name = args.model or "embedded tiny model"
        self.line(
            f"model: {name} ({core.config.arch}, {core.config.n_layer} layers, {core.n_vocab} tokens); "
            f"numerics {core.recipe.numerics}, KV {core.kv_type.lower()}"
        )
        for text in (*core.notes, *core.vocab.notes, *_slow_threads(args)):
            self.line(f"note: {text}")
        self._mtp(core, options)
        if not options.sampling.is_greedy:
            s = options.sampling
            self.line(
                f"sampling: temperature {s.temp:g}, top-k {s.top_k}, top-p {s.top_p:g}, min-p {s.min_p:g}, "
                f"order {';'.join(s.samplers)}, seed {s.seed}, accept by {s.accept}"
            )

    def _mtp(self, core: Any, options: Any) -> None:

        is_off = options.spec_type == "none" or options.policy.n_max == 0
        if core.mtp_status == "off" or (core.has_mtp and is_off):
            self.line("MTP: off, though the file has a head; every token costs a full pass")
            if core.mtp_status == "off":
                self.line("memory of the head: nothing; its tensors in the file are not read, and it has no KV cells")
        elif not core.has_mtp:
            self.line("MTP: the file has no head, so nothing is drafted and every token costs a full pass")
        else:
            from mtpref.engine.decode import most_drafted, notes_of

            chain = f"a chain of {len(core.heads)} heads, " if len(core.heads) > 1 else ""
            for text in notes_of(core, options.policy.n_max):
                self.line(f"note: {text}")
            self.line(
                f"MTP: on, {chain}drafts of up to {most_drafted(core, options.policy.n_max)}, "
                f"roll back by {options.rollback}, "
                f"contract {core.contract_name}{_draft_vocab(core, options)}{_origins(core.heads[0].weights)}"
            )
        if core.has_mtp:
            self.line(_head_memory(core, options, is_off=is_off))

    def progress(self, n_done: int, n_total: int) -> None:
        begin()
        if sys.stderr.isatty() and n_total > 64:
            print(f"\rprompt: {n_done} of {n_total} tokens", end="", file=sys.stderr, flush=True)
            self._in_progress = True

    def end_progress(self) -> None:
        if self._in_progress:
            print(file=sys.stderr)
            self._in_progress = False


def _head_memory(core: Any, options: Any, *, is_off: bool) -> str:
    """What a loaded head costs, computed; what a run allocated is in --json."""
    from mtpref.engine.memory import head_memory
    from mtpref.files.gguf import human_bytes

    cost = head_memory(core)
    n_max = 0 if is_off else options.policy.n_max
    return (
        f"memory of the head: weights {human_bytes(cost.weights)}, KV {human_bytes(cost.kv_cell)} a token, roll back "
        f"{human_bytes(cost.rollback(options.rollback, n_max))}"
    )


def _draft_vocab(core: Any, options: Any) -> str:
    """How many ids a trimmed head can name."""
    given = [options.n_draft_vocab, None if options.draft_ids is None else len(options.draft_ids)]
    n = min(count for count in (*given, core.n_head_rows) if count is not None)
    return "" if n == core.n_vocab else f", drafts name {n} of {core.n_vocab} ids"


def _origins(mtp: Any) -> str:
    """Where the head's parts come from, as far as they are not its own nextn tensors."""
    shared = [f"{part} = {mtp.origin[part]}" for part in mtp.borrowed]
    others = [
        f"{part} = {name}" for part, name in mtp.origin.items() if part not in mtp.borrowed and ".nextn." not in name
    ]
    from_file = f"; head of {mtp.file}" + (f" with its {', '.join(others)}" if others else "") if mtp.file else ""
    return from_file + (f"; shared with the trunk: {', '.join(shared)}" if shared else "")


def _slow_threads(args: argparse.Namespace) -> list[str]:
    """What to do where parallel loops are dear."""
    from mtpref import kernels

    if args.ops == "spec" or not kernels.available() or kernels.n_threads() == 1 or not kernels.has_only_workqueue():
        return []
    return [
        "Numba finds neither OpenMP nor TBB (threading layer workqueue), so each parallel loop costs some 100 us; "
        "install libgomp1 or the package tbb, or use -t 1"
    ]
