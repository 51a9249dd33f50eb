"""Counting: which draft steps a text can judge, the rates, and how sure they are.

Owns the definitions of acceptance. docs/probe.md says the same in words. It must not know how a row was computed.

Step k of a draft at position p proposes the token of position p + k. The trunk's rows are those of the text, so a row
p + k - 1 is the very row that verification would see only if the steps before were the text's own tokens. Hence:

against the trunk   step k is reached where every earlier step was right (its token is the trunk's argmax) and the text
                    went the same way; it is right where its token is the trunk's argmax at p + k - 1
against the text    step k is reached where every earlier step gave the text's token; right where it does, too
conditional c_k     right / reached
unconditional a_k   c_1 c_2 ... c_k. Against the text that is nearly the plain share of whole prefixes; against the
                    trunk it is the Kaplan-Meier estimate: a draft that was right where the text went another way has
                    not failed, but says nothing of the next step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.measure.probe.walk import Seen

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Z_95 = 1.959963984540054
MIN_BLOCKS = 10
# A difference is believed when it is this large, and so many half intervals of 95 % lie between it and 0. Where about
# 30 are tried, 2 of them (3.9 standard errors) is a chance of one in 300 for a head that is sound.
LEAST_GAIN, SURE = 0.02, 2.0


@dataclass(frozen=True)
class Estimate:
    """A rate and its interval. low, high: 95 %, None where there are fewer than 10 blocks with anything counted."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def shown(self, digits: int = 3) -> str:
        """0.774 [0.760, 0.788]; "-" without a value."""
        if self.value is None:
            return "-"
        ends = "" if self.low is None else f" [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return f"{self.value:.{digits}f}{ends}"

    def to_json(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Judged:
    """R positions, n steps: reached, right: (R, n). blocks: (R,) the block of text that each belongs to."""

    reached: Bools
    right: Bools
    blocks: NDArray[np.int64]

    def where(self, rows: Bools) -> "Judged":
        return Judged(self.reached[rows], self.right[rows], self.blocks[rows])

    @property
    def n_reached(self) -> list[int]:
        return [int(n) for n in self.reached.sum(axis=0)]

    @property
    def n_right(self) -> list[int]:
        return [int(n) for n in (self.right & self.reached).sum(axis=0)]

    def conditional(self) -> list[Estimate]:
        return self._estimates(_conditional)

    def unconditional(self) -> list[Estimate]:
        return self._estimates(_unconditional)

    def mean_length(self) -> Estimate:
        """Tokens that a round of n drafts gives: 1 + a_1 + ... + a_n."""
        return self._estimates(lambda sums: 1 + _unconditional(sums).sum(axis=-1, keepdims=True), high=None)[0]

    def _estimates(self, rates: Callable[[Floats], Floats], high: float | None = 1.0) -> list[Estimate]:
        return jackknife(_sums([self]), lambda sums: rates(sums[..., 0, :, :]), 0.0, high)


def judge(windows: Sequence[Seen], name: str, against: str, block: int) -> Judged:
    """A head's drafts. against: `trunk` (its argmax) or `text`; block: tokens per block."""
    parts = [_judge_window(seen, name, against) for seen in windows]
    reached, right = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return Judged(reached, right, block_ids(windows, block))


def _judge_window(seen: Seen, name: str, against: str) -> tuple[Bools, Bools]:
    draft, ids = seen.heads[name].draft, np.asarray(seen.window.ids)
    pos = np.asarray(seen.window.positions)
    reached, right = np.zeros(draft.shape, bool), np.zeros(draft.shape, bool)
    alive = np.ones(len(pos), bool)
    # A text judges a step at p + k as long as it has that token; the trunk has one row more.
    n_rows = len(ids) if against == "trunk" else len(ids) - 1
    for k in range(draft.shape[1]):
        row = pos + k
        alive = alive & (row < n_rows) & (draft[:, k] >= 0)
        is_text = (row + 1 < len(ids)) & (draft[:, k] == ids[np.minimum(row + 1, len(ids) - 1)])
        is_target = draft[:, k] == seen.trunk.target[np.minimum(row, len(ids) - 1)]
        reached[:, k], right[:, k] = alive, alive & (is_target if against == "trunk" else is_text)
        alive = right[:, k] & is_text
    return reached, right


def block_ids(windows: Sequence[Seen], block: int) -> NDArray[np.int64]:
    """Stretches of `block` tokens of one text: neighbours share their luck, so they are counted as one draw."""
    ids, n = [], 0
    for seen in windows:
        own = np.asarray(seen.window.positions) // block
        ids.append(n + own)
        n += int(own.max()) + 1 if len(own) else 0
    return np.concatenate(ids).astype(np.int64) if ids else np.zeros(0, np.int64)


def _sums(parts: Sequence[Judged]) -> Floats:
    """(B, parts, 2, n): reached and right of every block, for quantities that share their blocks."""
    blocks = parts[0].blocks
    _, at = np.unique(blocks, return_inverse=True)
    n_blocks = int(at.max()) + 1 if len(at) else 0
    n = max(part.reached.shape[1] for part in parts)
    sums = np.zeros((n_blocks, len(parts), 2, n))
    for i, part in enumerate(parts):
        for j, flags in enumerate((part.reached, part.right & part.reached)):
            for k in range(flags.shape[1]):
                sums[:, i, j, k] = np.bincount(at, flags[:, k], n_blocks)
    return sums


def _conditional(sums: Floats) -> Floats:
    """(..., 2, n) -> (..., n)."""
    reached, right = sums[..., 0, :], sums[..., 1, :]
    rates = np.full(right.shape, np.nan)
    return np.divide(right, reached, out=rates, where=reached > 0)


def _unconditional(sums: Floats) -> Floats:
    """The product of the conditional rates; 0 after a rate of 0, where no later step is reached."""
    rates = _conditional(sums)
    product = np.cumprod(rates, axis=-1)
    dead = np.cumsum(rates == 0, axis=-1) > 0
    return np.where(dead, 0.0, product)


def jackknife(
    sums: Floats, statistic: Callable[[Floats], Floats], low: float | None = None, high: float | None = None
) -> list[Estimate]:
    """Estimates with 95 % intervals by the delete-one-block jackknife.

    Formula   s^2 = (B - 1) / B sum_b (t_b - mean t)^2, t_b without block b; value -+ 1.96 s, cut to low .. high
    Shapes    sums: (B, ...), statistic: (..., ...) -> (..., m); nothing random is in it
    """
    total = sums.sum(axis=0)
    values = np.atleast_1d(statistic(total))
    n_blocks = int((sums.reshape(len(sums), -1).sum(axis=1) > 0).sum())
    if n_blocks < MIN_BLOCKS:
        return [Estimate(_number(value)) for value in values]
    without = statistic(total[None] - sums)
    spread = np.sqrt((len(sums) - 1) / len(sums) * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    return [_interval(float(value), float(s), low, high) for value, s in zip(values, spread, strict=True)]


def _interval(value: float, spread: float, low: float | None, high: float | None) -> Estimate:
    if not np.isfinite(value) or not np.isfinite(spread):
        return Estimate(_number(value))
    ends = value - Z_95 * spread, value + Z_95 * spread
    return Estimate(
        value, max(ends[0], -np.inf if low is None else low), min(ends[1], np.inf if high is None else high)
    )


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def difference(a: Judged, b: Judged, step: int = 0) -> Estimate:
    """a_{step+1} of one head less that of another, at the same positions: paired by block."""
    sums = _sums([a, b])

    def less(s: Floats) -> Floats:
        return (
            _unconditional(s[..., 0, :, :])[..., step : step + 1]
            - _unconditional(s[..., 1, :, :])[..., step : step + 1]
        )

    return jackknife(sums, less)[0]


def total_difference(a: Judged, b: Judged) -> Estimate:
    """The same for the mean length 1 + a_1 + ... + a_n."""

    def less(s: Floats) -> Floats:
        lengths = _unconditional(s).sum(axis=-1)
        return (lengths[..., 0] - lengths[..., 1])[..., None]

    return jackknife(_sums([a, b]), less)[0]


def is_sure(gain: Estimate, least: float = LEAST_GAIN) -> bool:
    """Whether a gain is believed: large enough, and many half intervals from 0."""
    if gain.value is None or gain.low is None:
        return False
    return gain.value >= least and gain.value - SURE * (gain.value - gain.low) > 0
