"""Sampling written naively, from the papers and from llama.cpp's documentation of its samplers: loops and math.exp.

An oracle for S25 to S29. It must not import the package.
"""

import math
from collections.abc import Sequence
from fractions import Fraction


def philox(counter: Sequence[int], key: Sequence[int], n_rounds: int = 10) -> list[int]:
    """Salmon et al. 2011, section 3.3: two pairs (left, right) of 32-bit words, and a key that grows."""
    left0, right0, left1, right1 = counter[1], counter[0], counter[3], counter[2]
    for r in range(n_rounds):
        k = [(key[0] + r * 0x9E3779B9) % 2**32, (key[1] + r * 0xBB67AE85) % 2**32]
        a, b = 0xD2511F53 * right0, 0xCD9E8D57 * right1
        right0, left0, right1, left1 = (b // 2**32) ^ left0 ^ k[0], b % 2**32, (a // 2**32) ^ left1 ^ k[1], a % 2**32
    return [right0, left0, right1, left1]


def softmax(logits: dict[int, float]) -> dict[int, float]:
    top = max(logits.values())
    weight = {i: math.exp(max(x - top, -700.0)) for i, x in logits.items()}
    total = math.fsum(weight.values())
    return {i: w / total for i, w in weight.items()}


def filtered(logits: Sequence[float], chain: Sequence[tuple[str, float]]) -> dict[int, float]:
    """id -> probability, for finite logits (NaN and -infinity left out)."""
    left = {i: float(x) for i, x in enumerate(logits) if not math.isnan(x) and x > -math.inf}
    for name, value in chain:
        ranked = sorted(left, key=lambda i: (-left[i], i))
        if name == "top_k" and value > 0:
            ranked = ranked[: int(value)]
        if name == "top_p" and value < 1:
            p, running, n = softmax(left), 0.0, 0
            while n < len(ranked) and (n == 0 or running < value):
                running += p[ranked[n]]
                n += 1
            ranked = ranked[:n]
        if name == "min_p" and value > 0:
            ranked = [i for i in ranked if left[i] - left[ranked[0]] >= math.log(value)]
        top = left[ranked[0]]
        left = {i: (left[i] - top) / value if name == "temperature" else left[i] for i in ranked}
    return softmax(left)


def residual(p: dict[int, Fraction], q: dict[int, Fraction]) -> dict[int, Fraction]:
    rest = {i: max(p.get(i, Fraction(0)) - q.get(i, Fraction(0)), Fraction(0)) for i in p}
    total = sum(rest.values())
    return {i: x / total for i, x in rest.items() if x} if total else dict(p)
