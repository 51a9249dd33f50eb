"""The walk over a text: one trunk pass in chunks, shared by every head that is probed.

Owns what is recorded of each position. Hidden rows exist for one chunk at a time and logits for a few rows at a time;
what stays is a few numbers a position, and the KV. It must not know how anything is counted.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.decode import most_drafted
from mtpref.engine.decode.statistics import margin
from mtpref.engine.model import Model, TextCells
from mtpref.measure.probe.assistant import AssistantWindow
from mtpref.measure.probe.head import HeadWindow, tiles
from mtpref.measure.probe.texts import Window
from mtpref.spec.steps import Hidden

F32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
NO_ID = -1
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Variant:
    """A head to probe. model: its head under its recipe is run, on the trunk's rows of the model that is probed.

    n_draft   draft steps    delay   see HeadWindow    about   what is different, in a few words
    """

    name: str
    model: Model
    n_draft: int
    about: str = ""
    delay: int = 0


@dataclass
class TrunkSeen:
    """The trunk over a window, at every position p that some draft step is judged by.

    target   (T,) its argmax at p, a guess of token p + 1; NO_ID where it was not needed
    margin   (T,) how far the best logit is above the second best
    lp_text  (T,) natural logarithm of the probability of the text's own token p + 1 (NaN at the end)
    """

    target: Ints
    margin: Floats
    lp_text: Floats


@dataclass
class HeadSeen:
    """A head's drafts from R positions of a window.

    draft    (R, n) drafted ids; NO_ID where the chain was not continued
    p        (R, n) probability among the ten best candidates (S22): what p_min is compared with
    p_full   (R,)   probability of step 1's id among all ids that the head can name
    rank     (R,)   of the trunk's argmax among the head's ids at step 1, 1 is best; 0: the head cannot name it
    lp_target, lp_text   (R,) log-probability, at step 1, of the trunk's argmax and of the text's token; -inf: not named
    candidates           (R, n, 10) ids and probabilities, if asked for
    """

    draft: Ints
    p: Floats
    p_full: Floats
    rank: Ints
    lp_target: Floats
    lp_text: Floats
    candidates: tuple[Ints, Floats] | None = None


@dataclass
class Seen:
    """Everything recorded of one window."""

    window: Window
    trunk: TrunkSeen
    heads: dict[str, HeadSeen] = field(default_factory=dict)


def walk(
    model: Model,
    window: Window,
    variants: Sequence[Variant],
    *,
    n_batch: int = 512,
    whole_chains: bool = False,
    keep_candidates: bool = False,
    poison: bool = False,
    progress: Progress | None = None,
) -> Seen:
    """Run one window.

    whole_chains   draft to the end from every position, as the loop does; otherwise a chain ends after a token that
                   is not the text's, since what follows cannot be judged by the text
    """
    ids = np.asarray(window.ids, np.int64)
    n_draft = max([2, *(v.n_draft for v in variants)])
    seen = Seen(window, _no_trunk(len(ids)))
    needed = _needed(window.positions, n_draft, len(ids))
    state = model.new_state(len(ids), poison=poison)
    cells = TextCells(model) if model.has_assistant else None
    heads = [_window_of(v, cells, len(ids), poison) for v in variants]
    for v in variants:
        seen.heads[v.name] = _no_head(len(window.positions), v.n_draft, keep_candidates)
    recorders = [_Recorder(ids, seen, v, head, whole_chains) for v, head in zip(variants, heads, strict=True)]
    for pos0 in range(0, len(ids), n_batch):
        chunk = ids[pos0 : pos0 + n_batch]
        keep = 1 if cells is None else len(chunk)  # an assistant reads the cells of every position
        hidden = model.trunk(state, chunk.tolist(), n_logits=0, keep=keep).hidden
        if cells is not None:
            cells.note(state)
        _see_trunk(model, seen.trunk, ids, hidden.post, pos0, needed)
        for recorder in recorders:
            recorder.chunk(chunk.astype(np.int32), hidden, pos0)
        if progress is not None:
            progress(pos0 + len(chunk), len(ids))
    return seen


def _window_of(variant: Variant, cells: TextCells | None, n_ctx: int, poison: bool) -> HeadWindow | AssistantWindow:
    if cells is not None:
        return AssistantWindow(variant.model, cells, delay=variant.delay)
    return HeadWindow(variant.model, n_ctx, delay=variant.delay, poison=poison)


def walk_all(
    model: Model,
    windows: Iterable[Window],
    variants: Sequence[Variant],
    progress: Progress | None = None,
    n_batch: int = 512,
) -> list[Seen]:
    """Every window in turn; progress counts tokens over all of them."""
    windows = list(windows)
    n_all, n_done, seen = sum(len(w.ids) for w in windows), 0, []
    for window in windows:
        tell = None if progress is None else _after(progress, n_done, n_all)
        seen.append(walk(model, window, variants, n_batch=n_batch, progress=tell))
        n_done += len(window.ids)
    return seen


def _after(progress: Progress, n_before: int, n_all: int) -> Progress:
    return lambda n_done, _: progress(n_before + n_done, n_all)


# TRUNK


def _needed(positions: Sequence[int], n_draft: int, n_tokens: int) -> NDArray[np.bool_]:
    """Rows whose logits are needed: p .. p + n_draft - 1 of each probed position p."""
    needed = np.zeros(n_tokens + n_draft, bool)
    for k in range(n_draft):
        needed[np.asarray(positions) + k] = True
    return needed[:n_tokens]


def _see_trunk(model: Model, seen: TrunkSeen, ids: Ints, post: F32, pos0: int, needed: NDArray[np.bool_]) -> None:
    rows = np.flatnonzero(needed[pos0 : pos0 + len(post)])
    for first, logits in tiles(model, None, post[rows]):
        pos = pos0 + rows[first : first + len(logits)]
        seen.target[pos] = model.recipe.ops.argmax(logits)
        for p, row in zip(pos, logits, strict=True):
            seen.margin[p] = margin(row)
            if p + 1 < len(ids):
                seen.lp_text[p] = float(row[ids[p + 1]]) - log_sum_exp(row)


def log_sum_exp(logits: F32) -> float:
    """ln sum_j exp(l_j), in float64, NaN logits left out: for reports, not for decisions."""
    wide = logits.astype(np.float64)
    wide = wide[~np.isnan(wide)]
    if not wide.size or not np.isfinite(wide.max()):
        return float("inf")
    return float(wide.max() + np.log(np.exp(wide - wide.max()).sum()))


# HEAD


class _Recorder:
    """One head's drafts over the chunks of a window."""

    def __init__(
        self, ids: Ints, seen: Seen, variant: Variant, head: HeadWindow | AssistantWindow, whole_chains: bool
    ) -> None:
        self.ids, self.head, self.whole = ids, head, whole_chains
        self.n_draft = most_drafted(variant.model, variant.n_draft)
        self.trunk, self.out = seen.trunk, seen.heads[variant.name]
        self.positions = np.asarray(seen.window.positions, np.int64)

    def chunk(self, tokens: NDArray[np.int32], hidden: Hidden, pos0: int) -> None:
        first, rows = self.head.advance(tokens, hidden, pos0)
        low, high = np.searchsorted(self.positions, [first, pos0 + len(tokens)])
        at, pos = np.arange(low, high), self.positions[low:high]
        if not len(at):
            return
        rows = Hidden(rows.pre[pos - first], rows.post[pos - first])
        drafted = self._read(rows, at, 0)
        chains = self.head.chains(pos)
        for step in range(1, self.n_draft):
            goes_on = np.flatnonzero(self._goes_on(drafted, pos + step))
            if not len(goes_on):
                return
            at, pos, drafted = at[goes_on], pos[goes_on], drafted[goes_on]
            chains.keep(goes_on)
            rows = chains.step(drafted, Hidden(rows.pre[goes_on], rows.post[goes_on]))
            drafted = self._read(rows, at, step)

    def _goes_on(self, drafted: Ints, pos: Ints) -> NDArray[np.bool_]:
        """Whether the token drafted for position pos is the text's."""
        if self.whole:
            return np.ones(len(drafted), bool)
        inside = pos < len(self.ids)
        return inside & (drafted == self.ids[np.minimum(pos, len(self.ids) - 1)])

    def _read(self, rows: Hidden, at: Ints, step: int) -> Ints:
        """What the head proposes at these rows of the record, as the loop reads it (S22)."""
        model, out = self.head.model, self.out
        for first, logits in self.head.logits(rows, step):
            for i, row in zip(at[first : first + len(logits)], logits, strict=True):
                compact, p = model.recipe.ops.top_candidates(row)
                ids = compact if model.d2t is None else model.d2t[compact]
                out.draft[i, step], out.p[i, step] = ids[0], p[0]
                if out.candidates is not None:
                    out.candidates[0][i, step, : len(ids)], out.candidates[1][i, step, : len(ids)] = ids, p
                if step == 0:
                    self._first(i, row, int(compact[0]))
        return out.draft[at, step]

    def _first(self, i: int, row: F32, best: int) -> None:
        """What only step 1 is asked: rank and probabilities."""
        out, pos = self.out, int(self.positions[i])
        total = log_sum_exp(row)
        with np.errstate(invalid="ignore", over="ignore"):
            out.p_full[i] = np.exp(float(row[best]) - total)
        target = self._row_of(int(self.trunk.target[pos]))
        if target is not None:
            above = (row > row[target]).sum() + (row[:target] == row[target]).sum()
            out.rank[i], out.lp_target[i] = 1 + int(above), float(row[target]) - total
        text = self._row_of(int(self.ids[pos + 1])) if pos + 1 < len(self.ids) else None
        if text is not None:
            out.lp_text[i] = float(row[text]) - total

    def _row_of(self, id: int) -> int | None:
        """The head's row of an id; None where a trimmed head lacks it."""
        d2t = self.head.model.d2t
        if d2t is None:
            return id
        row = int(np.searchsorted(d2t, id))
        return row if row < len(d2t) and d2t[row] == id else None


def _no_trunk(n: int) -> TrunkSeen:
    return TrunkSeen(np.full(n, NO_ID, np.int64), np.full(n, np.nan), np.full(n, np.nan))


def _no_head(n: int, n_draft: int, keep_candidates: bool) -> HeadSeen:
    candidates = None
    if keep_candidates:
        candidates = np.full((n, n_draft, 10), NO_ID, np.int64), np.zeros((n, n_draft, 10))
    draft, p = np.full((n, n_draft), NO_ID, np.int64), np.full((n, n_draft), np.nan)
    lp_target, lp_text = np.full(n, -np.inf), np.full(n, -np.inf)
    return HeadSeen(draft, p, np.full(n, np.nan), np.zeros(n, np.int64), lp_target, lp_text, candidates)
