"""The training text as tokens: whole stories and code, and the windows that a step learns from.

Stories come from tools/tiny/stories, made in several processes; code is CPython's standard library (data.py).
A window of stories starts where a story starts and holds whole ones, each followed by the end-of-text token; only the
last may be cut. A window of code starts at the beginning of a line.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from .stories import HELD_OUT_SEED, stories, story

# A window's gap is filled with the longest of this many stories that fits into it.
CANDIDATES = 24
BLOCK = 500


@dataclass(frozen=True)
class Tokens:
    """One part of the text: ``stories`` and ``code`` are token streams (uint16), the rest says where windows may start.

    story_ends : (n_stories + 1,) offsets, story i being stories[story_ends[i] : story_ends[i + 1]], its last token
        end-of-text.
    code_starts : offsets of lines of code.
    """

    stories: np.ndarray
    story_ends: np.ndarray
    code: np.ndarray
    code_starts: np.ndarray

    def story_window(self, rng: np.random.Generator, length: int) -> np.ndarray:
        """``length`` tokens: stories drawn by chance, then the ones that fill the rest best, the last one cut."""
        parts: list[np.ndarray] = []
        left = length
        n_stories = len(self.story_ends) - 1
        while left > 0:
            drawn = rng.integers(0, n_stories, CANDIDATES)
            sizes = self.story_ends[drawn + 1] - self.story_ends[drawn]
            # The first one is any; later ones should end at the window's end, or leave room for one more.
            fits = np.flatnonzero(sizes <= left) if parts else np.arange(1)
            choice = drawn[fits[np.argmax(sizes[fits])]] if len(fits) else drawn[0]
            start = self.story_ends[choice]
            parts.append(self.stories[start : min(start + left, self.story_ends[choice + 1])])
            left -= len(parts[-1])
        return np.concatenate(parts)

    def code_window(self, rng: np.random.Generator, length: int) -> np.ndarray:
        last = int(np.searchsorted(self.code_starts, len(self.code) - length))
        start = self.code_starts[rng.integers(0, max(1, last))]
        return self.code[start : start + length]

    def batch(self, key: Sequence[int], n_rows: int, length: int, code_share: float) -> np.ndarray:
        """(n_rows, length) int64, a function of ``key`` alone; each row is code with probability ``code_share``."""
        rng = np.random.default_rng(list(key))
        is_code = rng.random(n_rows) < code_share
        rows = [(self.code_window if code else self.story_window)(rng, length) for code in is_code]
        return np.stack(rows).astype(np.int64)


def _block(first: int) -> list[str]:
    made = (story(seed) for seed in range(first, first + BLOCK))
    return [one.text for one in made if not one.held_out]


def training_stories(seed: int, n_stories: int, processes: int) -> list[str]:
    """The first ``n_stories`` stories from a seed on that are not held out, made in several processes."""
    first = seed * 10_000_000
    if processes <= 1 or n_stories <= BLOCK:
        return [one.text for one in itertools.islice(stories(first, held_out=False), n_stories)]
    n_blocks = -(-n_stories * 27 // (BLOCK * 25))
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        blocks = pool.imap(_block, range(first, first + n_blocks * BLOCK, BLOCK))
        return list(itertools.islice(itertools.chain.from_iterable(blocks), n_stories))


def held_out_stories(n_stories: int) -> list[str]:
    """Stories that share neither seed nor combination with training."""
    return [one.text for one in itertools.islice(stories(HELD_OUT_SEED, held_out=True), n_stories)]


def digest(texts: Sequence[str]) -> str:
    """sha256 over each text and a NUL."""
    total = hashlib.sha256()
    for text in texts:
        total.update(text.encode() + b"\0")
    return total.hexdigest()


def encode(tokenizer: Tokenizer, texts: Sequence[str], files: Sequence[tuple[str, str]], eos_id: int) -> Tokens:
    """Stories and code files as token streams, each text followed by ``eos_id``."""
    stories_, ends, code, starts = [], [0], [], []
    for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
        stories_.append(np.asarray([*encoding.ids, eos_id], dtype=np.uint16))
        ends.append(ends[-1] + len(stories_[-1]))
    newlines = {i for token, i in tokenizer.get_vocab().items() if token.endswith("\u010a")}
    size = 0
    for encoding in tokenizer.encode_batch([text for _, text in files], add_special_tokens=False):
        ids = np.asarray([*encoding.ids, eos_id], dtype=np.uint16)
        breaks = np.flatnonzero(np.isin(ids, list(newlines))) + 1
        starts.append(size + np.concatenate([[0], breaks[breaks < len(ids)]]))
        code.append(ids)
        size += len(ids)
    return Tokens(np.concatenate(stories_), np.asarray(ends), np.concatenate(code), np.concatenate(starts))
