"""What a probe reports beside acceptance: calibration, ranks, probabilities, margins, stretches of context.

Owns these tables as plain records. It must not know how they are printed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.measure.probe.count import Bools, Estimate, Judged
from mtpref.measure.probe.walk import HeadSeen, Seen

Floats = NDArray[np.float64]
N_BINS = 10
CONTEXT_EDGES = (1, 32, 128, 512, 2048, 8192, 32768, 131072)
RANK_EDGES = (1, 2, 3, 6, 11, 101, 1001)
MARGIN_EDGES = (0.0, 0.01, 0.1, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Bin:
    """Positions whose number is in low <= x < high: how many, their mean, and the share that was right."""

    low: float
    high: float | None
    n: int
    mean: float | None
    right: float | None

    def to_json(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "n": self.n, "mean": self.mean, "right": self.right}


@dataclass(frozen=True)
class Calibration:
    """A probability against what happened. ece: sum over bins of n / N |mean p - share right|."""

    what: str
    bins: list[Bin]
    ece: float | None

    def to_json(self) -> dict[str, Any]:
        return {"what": self.what, "ece": self.ece, "bins": [b.to_json() for b in self.bins]}


def calibration(what: str, p: Floats, reached: Bools, right: Bools) -> Calibration:
    """Reliability over ten equal bins of p, the last one closed, of the positions that were reached."""
    known = reached & np.isfinite(p)
    p, right = p[known], right[known]
    edges = np.linspace(0.0, 1.0, N_BINS + 1)
    at = np.clip((p * N_BINS).astype(int), 0, N_BINS - 1)
    bins = [_bin(float(edges[i]), float(edges[i + 1]), p[at == i], right[at == i]) for i in range(N_BINS)]
    total = sum(b.n for b in bins)
    ece = sum(b.n * abs((b.mean or 0.0) - (b.right or 0.0)) for b in bins) / total if total else None
    return Calibration(what, bins, ece)


def binned(x: Floats, edges: Sequence[float], reached: Bools, right: Bools) -> list[Bin]:
    """Shares right in x's bins between the edges, the last one open; empty bins at the end are left out."""
    bins = []
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        inside = reached & (x >= low) & (x < (np.inf if high is None else high) if high is not None else x >= low)
        bins.append(_bin(low, high, x[inside], right[inside]))
    while bins and not bins[-1].n:
        bins.pop()
    return bins


def _bin(low: float, high: float | None, x: Floats, right: Bools) -> Bin:
    finite = x[np.isfinite(x)]
    mean = float(finite.mean()) if len(finite) else None
    return Bin(low, high, len(x), mean, float(right.mean()) if len(right) else None)


@dataclass(frozen=True)
class Ranks:
    """The trunk's argmax among the head's ids at step 1. shares: by RANK_EDGES; n_unnamed: a trimmed head lacks it."""

    n: int
    n_unnamed: int
    median: float | None
    bins: list[tuple[int, int | None, int]]
    mean_p: float | None
    geometric_mean_p: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "n_unnamed": self.n_unnamed,
            "median": self.median,
            "bins": [{"low": low, "high": high, "n": n} for low, high, n in self.bins],
            "mean_p_target": self.mean_p,
            "geometric_mean_p_target": self.geometric_mean_p,
        }


def ranks(rank: NDArray[np.int64], lp_target: Floats) -> Ranks:
    named = rank[rank > 0]
    bins = []
    for low, high in zip(RANK_EDGES, [*RANK_EDGES[1:], None], strict=True):
        inside = (named >= low) & ((named < high) if high is not None else True)
        bins.append((low, high, int(inside.sum())))
    p = np.exp(lp_target[np.isfinite(lp_target)])
    mean_p = float(np.where(np.isfinite(lp_target), np.exp(lp_target), 0.0).mean()) if len(lp_target) else None
    geometric = float(np.exp(lp_target.mean())) if len(p) and len(p) == len(lp_target) else None
    median = float(np.median(named)) if len(named) else None
    return Ranks(len(rank), int((rank == 0).sum()), median, bins, mean_p, geometric)


@dataclass(frozen=True)
class Language:
    """Trunk and head as predictors of the text's own next token: share of right guesses, and nats per token."""

    n: int
    trunk_right: float | None
    head_right: float | None
    trunk_nats: float | None
    head_nats: float | None

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


def language(windows: Sequence[Seen], name: str) -> Language:
    trunk_right, head_right, trunk_lp, head_lp = [], [], [], []
    for seen in windows:
        ids, pos = np.asarray(seen.window.ids), np.asarray(seen.window.positions)
        keep = pos + 1 < len(ids)
        pos = pos[keep]
        trunk_right.append(seen.trunk.target[pos] == ids[pos + 1])
        head_right.append(seen.heads[name].draft[keep, 0] == ids[pos + 1])
        trunk_lp.append(seen.trunk.lp_text[pos])
        head_lp.append(seen.heads[name].lp_text[keep])
    means = [_mean(np.concatenate(parts)) for parts in (trunk_right, head_right, trunk_lp, head_lp)]
    nats = [None if mean is None else -mean for mean in means[2:]]
    return Language(sum(len(part) for part in trunk_right), means[0], means[1], nats[0], nats[1])


def _mean(x: NDArray[Any]) -> float | None:
    mean = float(x.mean()) if len(x) else float("nan")
    return mean if np.isfinite(mean) else None


@dataclass(frozen=True)
class Group:
    """A share of the positions with its own rates: a domain, a stretch of context."""

    name: str
    n: int
    conditional: list[Estimate]
    unconditional: list[Estimate]
    mean_length: Estimate

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "n": self.n,
            "conditional": [e.to_json() for e in self.conditional],
            "unconditional": [e.to_json() for e in self.unconditional],
            "mean_length": self.mean_length.to_json(),
        }


def group(name: str, judged: Judged) -> Group:
    return Group(name, judged.n_reached[0], judged.conditional(), judged.unconditional(), judged.mean_length())


def by_label(windows: Sequence[Seen], judged: Judged) -> list[Group]:
    labels = np.concatenate([[seen.window.label] * len(seen.window.positions) for seen in windows])
    return [group(str(label), judged.where(labels == label)) for label in dict.fromkeys(labels.tolist())]


def by_context(windows: Sequence[Seen], judged: Judged) -> list[Group]:
    """By position in the window: how many tokens the head has before it."""
    pos = np.concatenate([seen.window.positions for seen in windows])
    groups = []
    for low, high in zip(CONTEXT_EDGES, [*CONTEXT_EDGES[1:], None], strict=True):
        inside = (pos >= low) & ((pos < high) if high is not None else True)
        if inside.any():
            groups.append(group(f"{low}-{high - 1}" if high is not None else f"{low}-", judged.where(inside)))
    return groups


def joined(windows: Sequence[Seen], name: str) -> HeadSeen:
    """One head's records of all windows."""
    heads = [seen.heads[name] for seen in windows]
    return HeadSeen(
        draft=np.concatenate([h.draft for h in heads]),
        p=np.concatenate([h.p for h in heads]),
        p_full=np.concatenate([h.p_full for h in heads]),
        rank=np.concatenate([h.rank for h in heads]),
        lp_target=np.concatenate([h.lp_target for h in heads]),
        lp_text=np.concatenate([h.lp_text for h in heads]),
    )


def margins(windows: Sequence[Seen]) -> Floats:
    """The trunk's margin at every probed position."""
    return np.concatenate([seen.trunk.margin[list(seen.window.positions)] for seen in windows])
