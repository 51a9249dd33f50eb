"""What even the best hypothesis leaves unexplained: then healthy is not said.

Owns the limits. A miss is judged by how far the port's token is below the hypothesis' own (Seen.gap, in standard
deviations of the row): within the noise of numerics and quantisation a near tie may fall either way, beyond it not.
Beyond it there are two grades: evidence against all that is known, and a doubt, which healthy ports in another
quantisation have shown as well. After a router's near tie the port may have run another expert: what differs there is
no doubt, and evidence only where there is more of it than such ties give.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtpref.faults.diagnose.forced import Seen

# Drafted tokens: so many clear misses, and errors of p (the upper quartile).
CLEAR_MISS = 0.1
MAX_MISSES = 0.05
MAX_P_ERROR = 0.1
# Emitted tokens: the target is the same model, so that clear misses are evidence (a lone one only above MAX_GAP: a file
# in another quantisation than the port's has given 0.44; up to there it is a doubt). How far a near tie may be is told
# by the errors of p, where the port printed them. Measured on the tiny model run by stock llama.cpp (F32, BF16, Q8_0,
# Q4_K_M, Q4_0; three prompts): no miss on the port's own file; up to 0.34 at a p error of 0.025 against the F32 file.
# Runs at temperature 0.8 have 4 to 15 misses, the greatest 0.48 to 0.82. Of what is drafted Q4_0 against the F32 file
# had 3 of 52 above CLEAR_MISS: up to twice as many as chance may give, each a near tie by the errors of p, are a doubt.
GAP_PER_P_ERROR = 15.0
MIN_GAP = 0.05
MAX_GAP = 0.6


@dataclass(frozen=True)
class Unexplained:
    """n of n_all drafted or emitted tokens (kind: "draft", "target", "length", "p") that the best hypothesis does not
    give; first: the first of them; is_doubt: too little to say that none of the known fits."""

    kind: str
    n: int
    n_all: int
    first: Seen | None
    is_doubt: bool = False


def unexplained(seen: Sequence[Seen]) -> Unexplained | None:
    """The evidence against the best hypothesis, else what is in doubt; emitted tokens first, as they speak of the
    target. None: it explains everything."""
    drafts, targets, lengths = ([s for s in seen if s.kind == kind] for kind in ("draft", "target", "length"))
    error = np.abs(np.asarray([s.p - s.p_port for s in drafts if np.isfinite(s.p - s.p_port)]))
    upper = float(np.quantile(error, 0.75)) if error.size else None
    wrong = _missed(targets, CLEAR_MISS if upper is None else _near(upper))
    clear = [s for s in wrong if upper is not None or len(wrong) > _most(targets) or s.gap > MAX_GAP]
    plain = [s for s in clear if not s.is_rerouted]
    if len(plain) > 1 or len(clear) > _most(targets) or any(s.gap > MAX_GAP for s in clear):
        return Unexplained("target", len(clear), len(targets), clear[0])
    moved = _missed(drafts, CLEAR_MISS)
    missed = _missed(drafts, CLEAR_MISS if upper is None else max(CLEAR_MISS, _near(upper)))
    if len(moved) > (_most(drafts) if missed else 2 * _most(drafts)):
        return Unexplained("draft", len(moved), len(drafts), moved[0])
    if upper is not None and upper > MAX_P_ERROR:
        return Unexplained("p", int((error > MAX_P_ERROR).sum()), len(drafts), None)
    longer = [s for s in lengths if s.port > s.own]  # a shorter draft may have reasons that the settings do not tell
    if len(longer) > _most(lengths):
        return Unexplained("length", len(longer), len(lengths), longer[0])
    missed = moved if len(moved) > _most(drafts) else missed
    for kind, found, of in (("target", wrong, targets), ("draft", missed, drafts), ("length", longer, lengths)):
        open = [s for s in found if not s.is_rerouted]  # too few to be evidence, and a router's near tie explains them
        if open:
            return Unexplained(kind, len(open), len(of), open[0], is_doubt=True)
    return None


def _missed(seen: Sequence[Seen], limit: float) -> list[Seen]:
    return [s for s in seen if not s.is_hit and s.gap > limit]


def _near(p_error: float) -> float:
    """The gap up to which a miss of an emitted token may be a near tie."""
    return float(np.clip(GAP_PER_P_ERROR * p_error, MIN_GAP, MAX_GAP))


def _most(seen: Sequence[Seen]) -> float:
    return max(2.0, MAX_MISSES * len(seen))
