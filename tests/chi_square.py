"""Pearson's chi-square test and Holm's correction, in plain Python."""

import math
from collections.abc import Mapping, Sequence


def tail(x: float, n_degrees: int) -> float:
    """P(chi-square with n degrees of freedom >= x): the regularised upper incomplete gamma function Q(n/2, x/2)."""
    a, z = n_degrees / 2, x / 2
    if z <= 0:
        return 1.0
    scale = math.exp(a * math.log(z) - z - math.lgamma(a))
    if z < a + 1:  # series of the lower function
        term = total = 1 / a
        n = a
        while term > total * 1e-16:
            n += 1
            term *= z / n
            total += term
        return 1 - scale * total
    b, c = z + 1 - a, 1e300  # continued fraction of the upper one, by Lentz
    d = 1 / b
    h = d
    for i in range(1, 500):
        an = -i * (i - a)
        b += 2
        d, c = 1 / (an * d + b), b + an / c
        h *= d * c
    return scale * h


def p_value(counts: Mapping[int, int], p: Mapping[int, float]) -> float:
    """How often chance alone departs as far from `p`. Cells that expect fewer than 5 are put together."""
    n = sum(counts.values())
    if any(count and not p.get(id) for id, count in counts.items()):
        return 0.0  # something impossible happened
    cells: list[tuple[float, float]] = []
    seen, expected = 0.0, 0.0
    for id in sorted(p, key=lambda id: p[id]):
        seen, expected = seen + counts.get(id, 0), expected + n * p[id]
        if expected >= 5:
            cells.append((seen, expected))
            seen, expected = 0.0, 0.0
    if expected:
        last = cells.pop()
        cells.append((last[0] + seen, last[1] + expected))
    assert len(cells) > 1, "too few draws for a test"
    assert all(e >= 5 for _, e in cells)
    return tail(sum((s - e) ** 2 / e for s, e in cells), len(cells) - 1)


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses are rejected, at a level for the whole family."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > level / (len(p_values) - rank):
            break
        rejected[i] = True
    return rejected
