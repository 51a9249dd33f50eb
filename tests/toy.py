"""A model that is two tables: what follows a text is looked up, not computed. The real loop runs on it.

Owns the least that the loop asks of a model and of its state. Logits depend on the whole text, target's and draft's in
different ways, so that a token judged against the wrong row or the wrong prefix shows.
"""

from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from mtpref import spec
from mtpref.engine.model.model import Output
from mtpref.engine.recipe import Recipe
from mtpref.spec.contract import MtpContract
from mtpref.spec.ops import spec_ops
from mtpref.spec.steps import Hidden, Steps
from tests.models import StubVocab
from tests.random_weights import normal


@lru_cache(maxsize=4096)
def table_row(kind: str, text: tuple[int, ...], n_vocab: int, scale: float) -> np.ndarray:
    """Logits behind a text. The draft's are the target's with noise: right often, not always."""
    seed = sum((token + 1) * 7**i for i, token in enumerate(text)) % 1_000_003
    row = normal(seed, "target", n_vocab)
    if kind == "draft":
        row = row + normal(seed, "draft", n_vocab)
    return (scale * row).astype(np.float32)


@lru_cache(maxsize=4096)
def remembered_candidates(row: bytes) -> tuple:
    return spec.top_candidates(np.frombuffer(row, np.float32))


OPS = spec_ops("exact").replaced(top_candidates=lambda row: remembered_candidates(row.tobytes()))


@dataclass
class ToyState:
    """ids: the trunk's tokens; mtp_ids: the head's, by position."""

    n_ctx: int = 64
    ids: list[int] = field(default_factory=list)
    mtp_ids: list[int] = field(default_factory=list)
    pending_h: np.ndarray = field(default_factory=lambda: np.zeros(1, np.float32))
    heads: list[Any] = field(default_factory=lambda: [SimpleNamespace(held=None)])

    @property
    def n_past(self) -> int:
        return len(self.ids)

    def clear(self) -> None:
        self.ids, self.mtp_ids = [], []

    def checkpoint(self) -> list[int]:
        return list(self.ids)

    def restore(self, saved: list[int]) -> None:
        self.ids = list(saved)

    def choose_plane(self, n_drop: int) -> None:
        del self.ids[len(self.ids) - n_drop :]

    def trim_heads(self, pos: int) -> None:
        del self.mtp_ids[pos:]


class ToyModel:
    """Satisfies what the loop reads of a Model."""

    kv_type = kv_type_draft = "F32"
    changes = ()
    has_mtp = True
    d2t: np.ndarray | None = None
    heads = (SimpleNamespace(sheet=SimpleNamespace(reads_target=False)),)

    def __init__(self, n_vocab: int, scale: float = 1.0, eog_ids: frozenset[int] = frozenset(), **steps) -> None:
        self.n_vocab, self.scale = n_vocab, scale
        self.config = SimpleNamespace(name="toy")
        self.vocab = StubVocab(n_vocab, eog_ids)
        self.recipe = Recipe("exact", OPS, Steps(**steps), MtpContract().resolved("post", "post"))

    @property
    def n_head_rows(self) -> int:
        return self.n_vocab if self.d2t is None else len(self.d2t)

    def with_draft_ids(self, ids):
        if ids is None:
            return self
        trimmed = copy(self)
        trimmed.d2t = np.array(ids, np.int64)
        return trimmed

    def target(self, text: tuple[int, ...]) -> np.ndarray:
        return table_row("target", text, self.n_vocab, self.scale)

    def draft(self, text: tuple[int, ...]) -> np.ndarray:
        return table_row("draft", text, self.n_vocab, self.scale)

    def trunk(self, state, ids, *, n_logits, keep=1):
        first = state.n_past + len(ids) - n_logits
        state.ids += ids
        rows = [self.target(tuple(state.ids[: pos + 1])) for pos in range(first, state.n_past)]
        return self._output(rows, len(ids))

    def mtp(self, state, ids, hidden, first_pos, *, n_logits, head=0, n_draft_vocab=None, tap=None):
        assert first_pos == len(state.mtp_ids)
        state.mtp_ids += ids
        row = self.draft(tuple(state.mtp_ids))
        row = row if self.d2t is None else row[self.d2t]
        rows = [row[:n_draft_vocab]] if n_logits else []
        return self._output(rows, len(ids))

    @staticmethod
    def _output(rows, n_tokens):
        hidden = np.zeros((n_tokens, 1), np.float32)
        return Output(np.array(rows, np.float32) if rows else np.empty((0, 0), np.float32), Hidden(hidden, hidden))
