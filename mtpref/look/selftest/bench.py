"""What every check gets: the model, how much to run, and the text to run it on.

Owns the sizes, which depend on the file alone: the same file is tested the same way everywhere.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.events import Event, Token, Verified
from mtpref.engine.decode import Decoder, Drafter, Options
from mtpref.engine.model import Model
from mtpref.spec.state import ModelState

PASSAGE = (
    "The parser reads one line at a time and keeps the last good state, so that an error in the middle of a file\n"
    "does not lose what came before it.\n\n"
    "def read_lines(path):\n"
    '    """Return the lines of a text file without their line ends."""\n'
    "    with open(path, encoding='utf-8') as file:\n"
    "        return [line.rstrip('\\n') for line in file]\n\n"
    "for i in range(10):\n    print(i, i * i)\n"
)
# Bytes of weights that a pass reads, from which on less is run.
SMALL, LARGE = 256 << 20, 4 << 30
N_CTX = 1024


class Failed(Exception):
    """A check's verdict: what was found, in one line."""


class Skipped(Exception):
    """Why a check could not be made."""


@dataclass(frozen=True)
class Size:
    """How much a self-test does.

    n_predict  tokens of each run    n_prompt  tokens of a prompt    n_passage  tokens of the head's text
    n_rows  rows of each matrix that the specification computes too    draft_lengths, chunks, widths  what is varied
    is_full  no --quick: what takes long is done too
    """

    n_predict: int
    n_prompt: int
    n_passage: int
    n_rows: int
    draft_lengths: tuple[int, ...]
    chunks: tuple[int, ...]
    widths: tuple[int, ...]
    is_full: bool


def full(model: Model) -> Size:
    if n_weight_bytes(model) < SMALL:
        return Size(32, 24, 384, 16, (1, 2, 4), (1, 2, 3, 7), tuple(range(1, 9)), True)
    n = 1 if n_weight_bytes(model) < LARGE else 2
    return Size(16 // n, 16, 96 // n, 16, (1, 2, 4), (1, 3, 7), tuple(range(1, 9)), True)


def quick(model: Model) -> Size:
    if n_weight_bytes(model) < SMALL:
        return Size(12, 12, 384, 4, (3,), (1, 5), (1, 2, 4), False)
    n = 1 if n_weight_bytes(model) < LARGE else 2
    return Size(8 // n, 8, 64 // n, 4, (3,), (3,), (1, 4), False)


def n_weight_bytes(model: Model) -> int:
    """Bytes of the matrices that a pass of the trunk reads."""
    matrices = [w for layer in model.weights.layers for w in layer.values() if hasattr(w, "raw")]
    return int(sum(w.raw.size for w in matrices) + model.weights.output.raw.size)


@dataclass
class Outcome:
    """A finished run. margins: position -> logit margin of each row that decided (None for residual sampling)."""

    ids: list[int]
    margins: dict[int, float]
    n_past: int
    trunk: str
    whole: str
    statistics: Any


@dataclass
class Bench:
    """What the checks of a self-test work with.

    model   what is tested    path: its file    llama_bin: llama.cpp's programs, None where there are none
    say     called with a line of progress
    """

    model: Model
    size: Size
    path: Path
    llama_bin: Path | None = None
    say: Callable[[str], None] = lambda line: None

    @cached_property
    def prompt(self) -> list[int]:
        return self._tokens(PASSAGE, self.size.n_prompt)

    @cached_property
    def passage(self) -> list[int]:
        return self._tokens(PASSAGE, self.size.n_passage)

    def _tokens(self, text: str, n: int) -> list[int]:
        """The first n tokens of a text; repeated where a tokenizer makes fewer."""
        ids = self.model.vocab.encode(text)
        if not ids:
            raise Skipped("the tokenizer makes no tokens of the built-in text")
        return (ids * (1 + n // len(ids)))[: min(n, self.model.config.n_ctx_train // 2)]

    def new_state(self) -> ModelState:
        """A state whose unused cells are NaN, so that a read of one shows."""
        return self.model.new_state(min(N_CTX, self.model.config.n_ctx_train), poison=True)

    def run(self, options: Options, drafter: Drafter | None = None, model: Model | None = None) -> Outcome:
        """Generate after the prompt."""
        state = self.new_state()
        decoder = Decoder(model or self.model, state, options, drafter)
        events: list[Event] = list(decoder.run(self.prompt))
        margins: dict[int, float] = {}
        for event in events:
            if isinstance(event, Verified):
                margins |= {event.pos0 + 1 + i: margin for i, margin in enumerate(event.margins)}
        ids = [event.id for event in events if isinstance(event, Token)]
        return Outcome(ids, margins, state.n_past, trunk_digest(state), state.digest(), decoder.statistics)


def trunk_digest(state: ModelState) -> str:
    """A hash of the trunk's part of a state: plain decoding leaves the head's empty."""
    heads = enumerate(state.heads, len(state.layers))
    head = {f"{spec.name}_l{il}" for il, one in heads for spec in one.layer.specs} | {"pending_h"}
    sha = hashlib.sha256()
    for name, array in state.live_arrays():
        if name not in head:
            sha.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def n_different(a: NDArray, b: NDArray) -> int:
    """Values that differ in a bit; every NaN counts as the same."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return max(a.size, b.size, 1)
    both_nan = np.isnan(a) & np.isnan(b) if a.dtype.kind == "f" else np.zeros(a.shape, np.bool_)
    bits = np.dtype(f"u{a.dtype.itemsize}")
    same = np.ascontiguousarray(a).view(bits) == np.ascontiguousarray(b).view(bits)
    return int((~(same | both_nan)).sum())
