"""L1 of experts: the router's steps one by one, sums, shared gate, projections. Expected values are naive float64."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.l1_operations import ours
from golden.streams import bell, stream, uniform
from mtpref.golden.build import SuiteBuilder, close, exact, value
from mtpref.golden.format import hex_float
from tests import naive

F32 = NDArray[np.float32]
LEAST_SUM = 2.0**-14
NEEDS = ("moe",)


def _case(
    suite: SuiteBuilder, id: str, comment: str, inputs: Mapping[str, NDArray], oracle: Mapping[str, NDArray],
    params: Mapping[str, Any], flags: tuple[str, ...],
) -> None:  # fmt: skip
    """Outputs are the oracle's, with the specification's noise."""
    given = ours(suite.op, params, inputs)
    out = {name: close("op_f32", wanted, given[name]) for name, wanted in oracle.items()}
    suite.case(id, comment, inputs=inputs, out=out, params=params, flags=flags, requires=NEEDS)


def ids_of(name: str, n_tokens: int, n_expert: int, n_used: int) -> NDArray[np.int32]:
    """Different ids for each token, in no order."""
    keys = stream(name, n_tokens * n_expert).reshape(n_tokens, n_expert)
    return np.argsort(keys, axis=1, kind="stable")[:, :n_used].astype(np.int32)


def expert_probs() -> SuiteBuilder:
    about = "The router's probabilities: a softmax over all experts, or a sigmoid of each."
    suite = SuiteBuilder("L1", "expert_probs", "expert_probs", ("S41",), about)
    for id, comment, gating, scale, flags in (
        ("softmax", "seven experts", "softmax", 2.0, ("basic", "E7-sigmoid-router")),
        ("sigmoid", "seven experts", "sigmoid", 2.0, ("basic", "E7b-softmax-router")),
        ("softmax_wide", "one expert takes nearly all: the greatest is subtracted first", "softmax", 60.0,
         ("edge.large",)),
        ("sigmoid_wide", "sigmoid far out on both sides", "sigmoid", 30.0, ("edge.large",)),
    ):  # fmt: skip
        logits = bell(f"expert_probs/{id}", (4, 7), scale)
        rows = [naive.softmax(row) if gating == "softmax" else naive.sigmoid(row) for row in logits]
        _case(suite, id, comment, {"logits": logits}, {"p": np.stack(rows)}, {"gating": gating}, flags)
    return suite


def expert_scores() -> SuiteBuilder:
    suite = SuiteBuilder("L1", "expert_scores", "expert_scores", ("S42",), "What is chosen by: p plus the bias.")
    p, bias = uniform("expert_scores/p", (3, 7), 0.0, 1.0), bell("expert_scores/bias", (7,), 0.3)
    _case(suite, "biased", "a bias for each expert", {"p": p, "bias": bias}, {"scores": naive.f64(p) + bias}, {},
          ("basic", "E2-selection-unbiased"))  # fmt: skip
    _case(suite, "unbiased", "a model without a bias", {"p": p}, {"scores": p}, {}, ("basic",))
    return suite


def group_scores() -> SuiteBuilder:
    about = "Groups of neighbouring experts: the score of each is the sum of its two best."
    suite = SuiteBuilder("L1", "group_scores", "group_scores", ("S43",), about)
    for id, comment, n_group, n_expert in (("basic", "three groups of four", 3, 12), ("pairs", "groups of two", 3, 6)):
        scores = uniform(f"group_scores/{id}", (3, n_expert), 0.0, 1.0)
        groups = naive.f64(scores).reshape(3, n_group, -1)
        wanted = np.array([[sum(sorted(group)[-2:]) for group in row] for row in groups])
        _case(suite, id, comment, {"scores": scores}, {"scores": wanted}, {"n_group": n_group},
              ("basic", "E8-groups-by-best"))  # fmt: skip
    return suite


def limit_groups() -> SuiteBuilder:
    about = "Scores of the groups that were chosen; every other score is -infinity."
    suite = SuiteBuilder("L1", "limit_groups", "limit_groups", ("S43",), about)
    scores, groups = uniform("limit_groups", (2, 6), 0.0, 1.0), np.array([[2, 0], [1, 2]], np.int32)
    wanted = scores.copy()
    wanted[0, 2:4], wanted[1, 0:2] = -np.inf, -np.inf
    suite.case("basic", "two of three groups of two", inputs={"scores": scores, "groups": groups},
               params={"n_group": 3}, out={"scores": exact(wanted)}, flags=("basic", "E8b-groups-ignored"),
               requires=NEEDS)  # fmt: skip
    return suite


def select_experts() -> SuiteBuilder:
    about = "The ids of the greatest scores, the best first, the lower id among equals; token by token."
    suite = SuiteBuilder("L1", "select_experts", "select_experts", ("S44",), about)
    ties = (stream("select_experts/ties", 60) % np.uint64(4)).astype(np.float32).reshape(3, 20)
    masked = uniform("select_experts/masked", (2, 8), 0.0, 1.0)
    masked[:, 2:6] = -np.inf
    for id, comment, scores, n_used, flags in (
        ("basic", "three of seven", uniform("select_experts", (4, 7), 0.0, 1.0), 3, ("basic",)),
        ("all", "all of them: the order still counts", bell("select_experts/all", (2, 4)), 4, ("edge.length",)),
        ("one", "a single expert a token", bell("select_experts/one", (3, 5)), 1, ("edge.short",)),
        ("ties", "equal scores among twenty: the lowest ids. llama.cpp's sort has no order here", ties, 4,
         ("edge.tie",)),
        ("masked", "scores at -infinity are never chosen", masked, 3, ("basic",)),
    ):  # fmt: skip
        wanted = [sorted(range(len(row)), key=lambda e: (-row[e], e))[:n_used] for row in scores.tolist()]
        suite.case(id, comment, inputs={"scores": scores}, params={"n_used": n_used}, flags=flags, requires=NEEDS,
                   out={"ids": value([e for row in wanted for e in row])})  # fmt: skip
    return suite


def expert_weights() -> SuiteBuilder:
    about = "Weights of the chosen experts: p of each, divided by their sum (at least 2^-14), scaled unless by 0 or 1."
    suite = SuiteBuilder("L1", "expert_weights", "expert_weights", ("S45",), about)
    unasked = ("E4-softmax-after-selection", "E4b-renormed-unasked")
    for id, comment, high, normalise, scale, flags in (
        ("normalised", "divided by their sum", 1.0, True, 0.0, ("basic", "E3-weights-unnormed")),
        ("plain", "as they are", 1.0, False, 0.0, ("basic", *unasked)),
        ("scaled", "divided, then scaled", 1.0, True, 2.5, ("E3-weights-unnormed", "E5-scale-forgotten")),
        ("plain_scaled", "scaled alone", 1.0, False, 1.8, ("E5-scale-forgotten", *unasked)),
        ("scale_of_one", "a scale of 1 is none", 1.0, True, 1.0, ("edge.scale",)),
        ("tiny_sum", "a sum below 2^-14: they are divided by that", 1e-6, True, 0.0, ("edge.eps",)),
    ):
        p, ids = uniform(f"expert_weights/{id}", (3, 7), 0.0, high), ids_of(f"expert_weights/{id}/ids", 3, 7, 3)
        w = np.take_along_axis(naive.f64(p), ids, axis=1)
        if normalise:
            w = w / np.maximum(w[:, :1] + w[:, 1:2] + w[:, 2:], LEAST_SUM)
        w = w if scale in (0.0, 1.0) else w * float(np.float32(scale))
        params = {"normalise": normalise, "scale": hex_float(float(np.float32(scale)))}
        _case(suite, id, comment, {"p": p, "ids": ids}, {"w": w}, params, flags)
    return suite


def sum_experts() -> SuiteBuilder:
    suite = SuiteBuilder("L1", "sum_experts", "sum_experts", ("S46",), "Results times weights, added up.")
    for id, comment, n_used in (("basic", "three experts a token", 3), ("one", "one expert a token", 1)):
        y, w = bell(f"sum_experts/{id}", (4, n_used, 16)), uniform(f"sum_experts/{id}/w", (4, n_used), 0.0, 1.0)
        wanted = naive.f64(y[:, 0]) * naive.f64(w[:, :1])
        for i in range(1, n_used):
            wanted = wanted + naive.f64(y[:, i]) * naive.f64(w[:, i : i + 1])
        _case(suite, id, comment, {"results": y, "w": w}, {"y": wanted}, {}, ("basic",))
    return suite


def shared_gate() -> SuiteBuilder:
    about = "The shared expert's result times sigmoid of one logit a token."
    suite = SuiteBuilder("L1", "shared_gate", "shared_gate", ("S47",), about)
    x, logit = bell("shared_gate", (5, 12)), np.array([[-30.0], [-1.0], [0.0], [0.5], [30.0]], np.float32)
    _case(suite, "basic", "logits from -30 to 30", {"x": x, "logit": logit},
          {"y": naive.f64(x) * naive.sigmoid(logit)}, {},
          ("basic", "E9b-shared-ungated", "E9c-shared-gated-twice"))  # fmt: skip
    return suite


def add_bias() -> SuiteBuilder:
    suite = SuiteBuilder("L1", "add_bias", "add_bias", ("S49",), "A projection's bias, added to its result.")
    x, bias = bell("add_bias/x", (3, 16)), bell("add_bias/bias", (16,))
    _case(suite, "basic", "three rows", {"x": x, "bias": bias}, {"y": naive.f64(x) + bias}, {}, ("basic",))
    return suite


def repeat_heads() -> SuiteBuilder:
    about = "Grouped key heads: value head h takes key head h div (H_v / H_k)."
    suite = SuiteBuilder("L1", "repeat_heads", "repeat_heads", ("S50",), about)
    x = bell("repeat_heads", (2, 3, 4))
    wanted = np.stack([x[:, h // 2] for h in range(6)], axis=1)
    suite.case("basic", "three key heads for six value heads", inputs={"x": x}, params={"n_head": 6},
               out={"y": exact(wanted)}, flags=("basic", "G13b-v-heads-tiled"), requires=("ssm_ba",))  # fmt: skip
    return suite


def split_beta_alpha() -> SuiteBuilder:
    about = "ssm_ba: for each key head its r betas, then its r alphas, r = H_v / H_k."
    suite = SuiteBuilder("L1", "split_beta_alpha", "split_beta_alpha", ("S51",), about)
    ba, r = bell("split_beta_alpha", (3, 12)), 3
    beta = np.stack([ba[:, 2 * r * (h // r) + h % r] for h in range(6)], axis=1)
    alpha = np.stack([ba[:, 2 * r * (h // r) + r + h % r] for h in range(6)], axis=1)
    suite.case("basic", "two key heads, six value heads", inputs={"ba": ba}, params={"n_k_heads": 2},
               out={"beta": exact(beta), "alpha": exact(alpha)}, requires=("ssm_ba",),
               flags=("basic", "G16-beta-alpha-swapped", "G16b-beta-alpha-halves"))  # fmt: skip
    return suite


def split_qkvz() -> SuiteBuilder:
    about = "ssm_in: for each key head [q S | k S | v r S | z r S]. Out: all q, all k, all v; and z."
    suite = SuiteBuilder("L1", "split_qkvz", "split_qkvz", ("S51",), about)
    size, r = 4, 2
    x = bell("split_qkvz", (2, 2 * (2 + 2 * r) * size))
    parts: list[list[F32]] = [[], [], [], []]
    at = 0
    for _ in range(2):
        for part, n in zip(parts, (size, size, r * size, r * size), strict=True):
            part.append(x[:, at : at + n])
            at += n
    qkv = np.concatenate([*parts[0], *parts[1], *parts[2]], axis=1)
    suite.case("basic", "two key heads, four value heads", inputs={"qkvz": x},
               params={"n_k_heads": 2, "d_state": size}, requires=("ssm_ba",), flags=("basic",),
               out={"qkv": exact(qkv), "z": exact(np.concatenate(parts[3], axis=1))})  # fmt: skip
    return suite


def suites() -> Iterator[SuiteBuilder]:
    for make in (
        expert_probs, expert_scores, group_scores, limit_groups, select_experts, expert_weights, sum_experts,
        shared_gate, add_bias, repeat_heads, split_beta_alpha, split_qkvz,
    ):  # fmt: skip
        yield make()
