"""L1 and L5 of sampling: uniform numbers, filters, draws, rejection sampling with given uniforms."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from golden.l1_operations import ours
from golden.streams import bell
from mtpref.golden.build import SuiteBuilder, close, value
from mtpref.golden.format import hex_float
from tests import naive


def uniform() -> SuiteBuilder:
    about = "Philox4x32-10 by seed, stream and position, as a multiple of 2**-53 in [0, 1): [stream, pos, round_pos]."
    suite = SuiteBuilder("L1", "uniform", "uniform", ("S25",), about)
    draws = [[0, 0, 0], [0, 1, 0], [1, 7, 5], [2, 7, 5], [3, 7, 5], [0, 1048575, 0], [3, 4294967295, 4294967290]]
    for id, seed in (("seed_zero", 0), ("seed_small", 42), ("seed_full", (1 << 64) - 1)):
        params = {"seed": seed, "draws": draws}
        suite.case(id, "seven draws", inputs={}, params=params, flags=["basic"], requires=["sampling"],
                   out={"u": value(ours("uniform", params, {})["u"])})  # fmt: skip
    return suite


def oracle_filtered(logits: NDArray, chain: list[tuple[str, float]]) -> tuple[list[int], NDArray]:
    """The filters in their obvious form: sort, add up, cut."""
    l64 = naive.f64(logits)
    ids = list(range(len(l64)))
    for name, amount in chain:
        ranked = sorted(ids, key=lambda i: (-l64[i], i))
        if name == "top_k" and amount > 0:
            ids = sorted(ranked[: int(amount)])
        elif name == "top_p" and amount < 1:
            p, kept, total = naive.softmax(l64[ranked]), [], 0.0
            for i, share in zip(ranked, p, strict=True):
                kept.append(i)
                total += float(share)
                if total >= amount:
                    break
            ids = sorted(kept)
        elif name == "min_p" and amount > 0:
            p = naive.softmax(l64[ids])
            ids = [i for i, share in zip(ids, p, strict=True) if share >= amount * p.max()]
        elif name == "temperature":
            l64 = l64 / amount
    return ids, naive.softmax(l64[ids])


def filtered() -> SuiteBuilder:
    about = "The filters in the order given, then a softmax over what is left; ids rising."
    suite = SuiteBuilder("L1", "filtered", "filtered", ("S27",), about)
    logits = bell("filtered/logits", (60,), 2.5)
    for id, comment, chain, flags in (
        ("temperature", "temperature alone", [("temperature", 0.7)], ("basic",)),
        ("top_k", "the greatest five", [("top_k", 5), ("temperature", 1.0)], ("basic",)),
        ("top_p", "the fewest that reach 0.8", [("top_p", 0.8), ("temperature", 1.0)], ("basic",)),
        ("min_p", "at least a tenth of the best", [("min_p", 0.1), ("temperature", 1.0)], ("basic",)),
        ("default_order", "top_k, top_p, min_p, temperature",
         [("top_k", 20), ("top_p", 0.9), ("min_p", 0.05), ("temperature", 0.8)], ("V10-filter-order",)),
        ("temperature_first", "the same filters, temperature first: another set",
         [("temperature", 3.0), ("top_k", 20), ("top_p", 0.9), ("min_p", 0.05)], ("V10-filter-order",)),
    ):  # fmt: skip
        params = {"chain": [[name, hex_float(amount)] for name, amount in chain]}
        ids, p = oracle_filtered(logits, chain)
        given = ours("filtered", params, {"logits": logits})
        out = {"ids": value(ids), "p": close("op_f32", p, given["p"])}
        suite.case(id, comment, inputs={"logits": logits}, params=params, out=out, flags=flags, requires=["sampling"])
    return suite


def draw() -> SuiteBuilder:
    about = "The first id by rising id whose running sum of p exceeds u; an id of probability 0 is never drawn."
    suite = SuiteBuilder("L1", "draw", "draw", ("S28",), about)
    p = np.array([0, 0.25, 0, 0.5, 0.25, 0], np.float32)
    u = [0.0, 0.125, 0.25, 0.5, 0.75, 1 - 2.0**-53]
    ids = [next(i for i in range(6) if sum(p[: i + 1].tolist()) > x) for x in u]
    params = {"u": [hex_float(x) for x in u]}
    suite.case("boundaries", "u on the running sums themselves", inputs={"p": p}, requires=["sampling"], params=params,
               out={"ids": value(ids)}, flags=["basic", "edge.tie"])  # fmt: skip
    return suite


def oracle_residual(
    target: NDArray, q: NDArray, draft: list[int], eog: list[int], u_accept: list[float], u_rest: list[float],
    u_bonus: float,
) -> tuple[int, list[int]]:  # fmt: skip
    """Leviathan's rule in fractions."""

    def pick(p: list[Fraction], u: float) -> int:
        total = Fraction(0)
        for i, share in enumerate(p):
            total += share
            if total > Fraction(u):
                return i
        return max(i for i, share in enumerate(p) if share)

    rows = [[Fraction(float(x)) for x in row] for row in target]
    emitted: list[int] = []
    for i, id in enumerate(draft):
        qs = [Fraction(float(x)) for x in q[i]]
        if Fraction(u_accept[i]) * qs[id] < rows[i][id]:
            emitted.append(id)
            if id in eog:
                return len(emitted), emitted
            continue
        rest = [max(a - b, Fraction(0)) for a, b in zip(rows[i], qs, strict=True)]
        rest = [x / sum(rest) for x in rest] if sum(rest) else rows[i]
        return len(emitted), [*emitted, pick(rest, u_rest[i])]
    return len(emitted), [*emitted, pick(rows[-1], u_bonus)]


def accept_residual() -> SuiteBuilder:
    about = (
        "Rejection sampling of a draft. A token is accepted if u_accept * q < p; else a token is drawn from "
        "max(p - q, 0), normalised, by u_residual; after a full acceptance the bonus token is drawn by u_bonus."
    )
    suite = SuiteBuilder("L5", "accept_residual", "accept_residual", ("S23", "S28", "S29", "S39", "S40"), about)
    even, peak = [0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.125, 0.125]
    tail, hole = [0.0, 0.25, 0.25, 0.5], [0.0, 0.5, 0.5, 0.0]
    for id, comment, target, q, draft, eog, u_accept, u_rest, u_bonus, flags in (
        ("accept_all", "both accepted, a bonus token", [even, even, tail], [peak, peak], [1, 2], [],
         [0.5, 0.9], [0.5, 0.5], 0.3, ("basic", "V6-bonus-argmax", "V7-bonus-dropped")),
        ("reject_first", "u = 3/4 over p/q = 1/2: drawn from the rest", [even, even, even], [peak, peak], [0, 1], [],
         [0.75, 0.1], [0.3, 0.1], 0.1, ("V5-no-residual",)),
        ("u_is_the_ratio", "u = p/q exactly: rejected, < is strict", [even, even], [peak], [0], [], [0.5], [0.3], 0.1,
         ("edge.tie",)),
        ("zero_p_at_u_zero", "p = 0 at u = 0: never accepted", [tail, even], [peak], [0], [], [0.0], [0.0], 0.1,
         ("V9-zero-probability-accepted",)),
        ("equal_distributions", "p = q: always accepted", [peak, even], [peak], [3], [], [1 - 2.0**-53], [0.5], 0.99,
         ("basic", "V6-bonus-argmax")),
        ("greedy_draft", "a draft without a choice (q = 1): accepted with probability p", [even, even],
         [[0.0, 1.0, 0.0, 0.0]], [1], [], [0.3], [0.5], 0.1, ("basic",)),
        ("disjoint", "no id in common: the target's draw", [hole, even], [[0.5, 0.0, 0.0, 0.5]],
         [3], [], [0.1], [0.5], 0.1, ("basic",)),
        ("eog_accepted", "an accepted end of generation: no bonus", [even, even], [even], [2], [2], [0.1], [0.1], 0.1,
         ("basic",)),
    ):  # fmt: skip
        target_p, draft_p = np.array(target, np.float32), np.array(q, np.float32)
        n, emitted = oracle_residual(target_p, draft_p, draft, eog, u_accept, u_rest, u_bonus)
        params = {"draft": draft, "eog": eog, "u_accept": [hex_float(u) for u in u_accept],
                  "u_residual": [hex_float(u) for u in u_rest], "u_bonus": hex_float(u_bonus)}  # fmt: skip
        out = {"n_accepted": value(n), "emitted": value(emitted)}
        suite.case(id, comment, inputs={"target_p": target_p, "draft_p": draft_p}, params=params, out=out, flags=flags,
                   requires=["residual", "sampling"])  # fmt: skip
    return suite


def operations() -> Iterator[SuiteBuilder]:
    for make in (uniform, filtered, draw):
        yield make()
