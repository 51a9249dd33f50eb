"""mtpref as a port of the loop's cases: acceptance, draft length and cooldown, rounds with given drafts, whole runs.

Owns the mapping from a case's parameters to the loop's options, and the hashes that stand for many small cases.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mtpref.base.events import Drafted, DraftStep, RunEnded, Token, Verified
from mtpref.engine.decode import Decoder, DraftLength, Options, PolicyConfig, SamplingConfig
from mtpref.engine.decode.drafters import Draft, Drafter
from mtpref.engine.model import Model
from mtpref.engine.recipe import Recipe
from mtpref.golden.format import param_float
from mtpref.golden.inputs import Inputs, Outputs
from mtpref.golden.port import distribution
from mtpref.spec import P_ONE, load_kv
from mtpref.spec.policy import FixedPolicy, PolicyState
from mtpref.spec.state import ModelState

FNV_OFFSET, FNV_PRIME, U64_MASK = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


# ------------------------------------------------------------------------------------ decisions without a model


def accept_greedy(recipe: Recipe, params: Mapping[str, Any], inputs: Inputs) -> Outputs:
    """n_accepted, and the ids that are emitted: the accepted ones and, unless the text ended, the target's own."""
    draft, target, eog = list(params["draft"]), list(params["target"]), frozenset(params["eog"])
    n = int(recipe.steps.accept_greedy(draft, target, eog))
    ended = n > 0 and draft[n - 1] in eog
    return {"n_accepted": n, "emitted": list(recipe.steps.emitted(draft, n, target))[: n if ended else None]}


def accept_match(recipe: Recipe, params: Mapping[str, Any], inputs: Inputs) -> Outputs:
    """The target's own draws, one a row, and how many drafted tokens they accept.

    target_p: (n + 1, V), values that float32 holds exactly; u: n + 1 hex floats.
    """
    steps, draft, eog = recipe.steps, list(params["draft"]), frozenset(params["eog"])
    targets = [distribution(row) for row in np.asarray(inputs["target_p"].values())]
    u = [float.fromhex(x) for x in params["u"]]
    ids = [steps.match_token(id, target, x) for id, target, x in zip(draft, targets, u, strict=False)]
    ids.append(steps.bonus_token(targets[-1], u[-1]))
    n = int(steps.accept_greedy(draft, ids, eog))
    ended = n > 0 and draft[n - 1] in eog
    return {"n_accepted": n, "emitted": [int(i) for i in steps.emitted(draft, n, ids)][: n if ended else None]}


def accept_residual(recipe: Recipe, params: Mapping[str, Any], inputs: Inputs) -> Outputs:
    """Rejection sampling of a draft whose distributions and uniform numbers are given: S29, then S23's count.

    target_p: (n + 1, V), draft_p: (n, V), values that float32 holds exactly; u_accept, u_residual: n hex floats each,
    u_bonus: one.
    """
    steps, draft, eog = recipe.steps, list(params["draft"]), frozenset(params["eog"])
    targets = [distribution(row) for row in np.asarray(inputs["target_p"].values())]
    drafts = [distribution(row) for row in np.asarray(inputs["draft_p"].values())] if draft else []
    row_ids = []
    for i, (id, q) in enumerate(zip(draft, drafts, strict=True)):
        if steps.accept_residual(targets[i].prob(id), q.prob(id), float.fromhex(params["u_accept"][i])):
            row_ids.append(id)
            continue
        rest = steps.residual(id, targets[i], q)
        row_ids.append(steps.draw(rest, float.fromhex(params["u_residual"][i])))
        break
    else:
        row_ids.append(steps.bonus_token(targets[-1], float.fromhex(params["u_bonus"])))
    n = int(steps.accept_greedy(draft, row_ids, eog))
    ended = n > 0 and draft[n - 1] in eog
    return {"n_accepted": n, "emitted": [int(i) for i in steps.emitted(draft, n, row_ids)][: n if ended else None]}


def policy_config(params: Mapping[str, Any]) -> FixedPolicy:
    return FixedPolicy(
        n_max=int(params["n_max"]), n_min=int(params.get("n_min", 0)), p_min=int(params.get("p_min", 0)),
        cooldown=int(params.get("cooldown", 0)), cooldown_after=int(params.get("cooldown_after", 1)),
    )  # fmt: skip


def policy(recipe: Recipe, params: Mapping[str, Any], inputs: Inputs) -> Outputs:
    """Draft length and cooldown over rounds of given candidates and acceptances. Probabilities in units of 2**-32."""
    cfg, state, steps = policy_config(params), PolicyState(), recipe.steps
    limits, n_drafted, cooldowns = [], [], []
    for step in params["rounds"]:
        limit = steps.draft_limit(cfg, state, int(step["n_room"]))
        taken = 0
        while taken < min(limit, len(step["p"])) and steps.takes(cfg, int(step["p"][taken])):
            taken += 1
        n = steps.proposed(cfg, taken, limit)
        state = steps.after_round(cfg, state, n, min(n, int(step["n_accepted"])))
        limits.append(limit)
        n_drafted.append(n)
        cooldowns.append(state.n_cooldown)
    return {"limits": limits, "n_drafted": n_drafted, "n_cooldown": cooldowns}


# --------------------------------------------------------------------------------- many cases in one hash


def splitmix64(seed: int, index: int) -> int:
    """The index-th integer (from 1) of splitmix64."""
    z = (seed + index * 0x9E3779B97F4A7C15) & U64_MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & U64_MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & U64_MASK
    return z ^ (z >> 31)


class Drawn:
    """Small integers of one generated case: draw k of case i is splitmix64(seed, 64 i + k + 1) % n."""

    def __init__(self, seed: int, case: int) -> None:
        self._seed, self._next = seed, 64 * case

    def below(self, n: int) -> int:
        self._next += 1
        return splitmix64(self._seed, self._next) % n


def drawn_accept(drawn: Drawn) -> dict[str, Any]:
    """Draws in order: n = below(5); eog = below(6); n target ids and one more, each below(4), of which the draft copies
    each with three chances in four (below(4) > 0), else it draws below(4)."""
    n, eog = drawn.below(5), drawn.below(6)
    target = [drawn.below(4) for _ in range(n + 1)]
    draft = [t if drawn.below(4) else drawn.below(4) for t in target[:n]]
    return {"draft": draft, "target": target, "eog": [eog]}


def drawn_policy(drawn: Drawn) -> dict[str, Any]:
    """Draws in order: n_max = below(5); n_min = below(n_max + 1); p_min = below(5) quarters; cooldown = below(4);
    cooldown_after = 1 + below(3); then 6 rounds: n_room = below(6), n_max candidates of below(5) quarters,
    n_accepted = below(n_max + 1)."""
    quarter = P_ONE // 4
    n_max = drawn.below(5)
    params: dict[str, Any] = {"n_max": n_max, "n_min": drawn.below(n_max + 1), "p_min": drawn.below(5) * quarter}
    params |= {"cooldown": drawn.below(4), "cooldown_after": 1 + drawn.below(3), "rounds": []}
    for _ in range(6):
        n_room = drawn.below(6)
        p = [drawn.below(5) * quarter for _ in range(n_max)]
        params["rounds"].append({"n_room": n_room, "p": p, "n_accepted": drawn.below(n_max + 1)})
    return params


def accumulated(recipe: Recipe, params: Mapping[str, Any], inputs: Inputs) -> Outputs:
    """A hash over the outputs of generated cases after each count of `after`: FNV-1a 64 whose units are whole 32-bit
    words, h = (h ^ word) * prime modulo 2**64, instead of bytes."""
    make, run = MACHINES[params["machine"]]
    seed, counts = int(params["seed"]), sorted(int(n) for n in params["after"])
    digest, hashes = FNV_OFFSET, {}
    for i in range(counts[-1]):
        for x in _flat(run(recipe, make(Drawn(seed, i)), inputs)):
            digest = ((digest ^ (x & 0xFFFFFFFF)) * FNV_PRIME) & U64_MASK
        if i + 1 in counts:
            hashes[str(i + 1)] = f"{digest:016x}"
    return {"hashes": hashes}


def _flat(outputs: Outputs) -> list[int]:
    """Outputs in their order; a list is preceded by its length."""
    flat: list[int] = []
    for out in outputs.values():
        flat += [len(out), *out] if isinstance(out, list) else [out]
    return flat


MACHINES: dict[str, tuple[Callable[[Drawn], dict[str, Any]], Callable[..., Outputs]]] = {
    "accept_greedy": (drawn_accept, accept_greedy),
    "policy": (drawn_policy, policy),
}


# ------------------------------------------------------------------------------------------ runs of a whole model


@dataclass(frozen=True)
class _OtherEnds:
    """A vocabulary with other end-of-generation ids."""

    vocab: Any
    eog_ids: frozenset[int]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vocab, name)


class GivenDrafts(Drafter):
    """Proposes the drafts of a list, one a round; nothing after its end."""

    reads_head = True  # the head's cells follow the text, as they would if it had drafted

    def __init__(self, drafts: Sequence[Sequence[int]]) -> None:
        self._drafts = iter(drafts)

    def draft(self, state: ModelState, id_last: int, length: DraftLength) -> Draft:
        ids = list(next(self._drafts, ()))[: max(length.limit, 0)]
        return Draft(ids, [DraftStep(state.n_past + 1 + i, [id], [1.0], 0.0, True) for i, id in enumerate(ids)])


def _options(params: Mapping[str, Any]) -> Options:
    return Options(
        n_predict=int(params["n_predict"]), rollback=str(params.get("rollback", "snapshot")),
        policy=_policy(params), spec_type="draft-mtp" if int(params["n_max"]) else "none",
        n_batch=int(params.get("n_batch", 512)), sampling=_sampling(params),
    )  # fmt: skip


def _policy(params: Mapping[str, Any]) -> PolicyConfig:
    """The policy of a case as a caller writes it; p_min / 2**32 is exact."""
    fixed = asdict(policy_config(params))
    return PolicyConfig(**fixed | {"p_min": fixed["p_min"] / P_ONE})


def _sampling(params: Mapping[str, Any]) -> SamplingConfig:
    """Greedy unless the case has a temperature."""
    if "temp" not in params:
        return SamplingConfig()
    return SamplingConfig(
        temp=param_float(params, "temp"), top_k=int(params["top_k"]), top_p=param_float(params, "top_p"),
        min_p=param_float(params, "min_p"), seed=int(params["seed"]), accept=str(params["accept"]),
    )  # fmt: skip


def _run(
    model: Model, params: Mapping[str, Any], tokens: list[int], drafter: Drafter | None, n_rounds: int | None = None
) -> tuple[Any, Outputs]:
    """A run to its end, or to the end of so many rounds: the state that it leaves, and what it said."""
    if "eog" in params:
        model = replace(model, vocab=_OtherEnds(model.vocab, frozenset(params["eog"])))  # type: ignore[arg-type]
    state = model.new_state(int(params.get("n_ctx", 0)))
    out: Outputs = {"ids": [], "drafts": [], "n_accepted": []}
    text = b""
    for event in Decoder(model, state, _options(params), drafter).run(tokens):
        if isinstance(event, Drafted) and event.round == n_rounds:
            break
        if isinstance(event, Token):
            out["ids"].append(event.id)
            text += event.piece
        elif isinstance(event, Drafted):
            out["drafts"].append(list(event.ids))
        elif isinstance(event, Verified):
            out["n_accepted"].append(event.n_accepted)
        elif isinstance(event, RunEnded):
            out |= {"reason": event.reason, "text": text.hex()}
    return state, out


def margins(model: Model, params: Mapping[str, Any], inputs: Inputs) -> tuple[list[float], list[tuple[int, float]]]:
    """How sure a greedy run is: the margin of each emitted token, and for each drafted candidate how many tokens had
    been emitted before its round and how far its probability is above the next one's."""
    tokens = [int(i) for i in inputs["tokens"].values()]
    state = model.new_state(int(params.get("n_ctx", 0)))
    sure: list[float] = []
    gaps: list[tuple[int, float]] = []
    n_emitted = 0
    for event in Decoder(model, state, _options(params)).run(tokens):
        if isinstance(event, Drafted):
            gaps += [(n_emitted, step.p[0] - step.p[1]) for step in event.steps if len(step.p) > 1]
        elif isinstance(event, Verified):
            sure += event.margins
        elif isinstance(event, Token):
            n_emitted += 1
    return sure[:n_emitted], gaps


def generate(model: Model, params: Mapping[str, Any], inputs: Inputs) -> Outputs:
    """A whole run that drafts with the head: ids, drafts and acceptances by round, why it ended."""
    return _run(model, params, [int(i) for i in inputs["tokens"].values()], None)[1]


def rounds(model: Model, params: Mapping[str, Any], inputs: Inputs) -> Outputs:
    """A run whose drafts are given, which ends with the round of the last one, and the model state that it leaves:
    what every layer carries, the rows of whole blocks, the pending hidden row, positions in the trunk, cells of the
    head."""
    drafter = GivenDrafts(params["drafts"])
    tokens = [int(i) for i in inputs["tokens"].values()]
    state, out = _run(model, params, tokens, drafter, len(params["drafts"]))
    for il, layer in enumerate(state.layers):
        for spec in layer.specs:
            kept = layer.arrays[spec.name]
            if spec.positional and spec.stride > 1:
                kept = kept[: spec.n_cells(state.n_past)]
            if not spec.positional or spec.stride > 1:
                out[f"{spec.name}_l{il}"] = np.array(load_kv(kept, spec.kv_type), np.float32)
    out |= {"pending_h": np.array(state.pending_h), "n_past": state.n_past, "n_mtp": state.heads[0].n_cells}
    return out


def head_cells(model: Model, params: Mapping[str, Any], inputs: Inputs) -> Outputs:
    """The cells of the MTP block's cache after a run that drafts with it: those of the tokens that stay, by array."""
    state, out = _run(model, params, [int(i) for i in inputs["tokens"].values()], None)
    head = state.heads[0]
    rows = {
        s.name.removeprefix("cache_"): np.array(
            load_kv(head.layer.arrays[s.name][: head.n_cells], s.kv_type), np.float32
        )
        for s in head.layer.specs
        if s.positional
    }
    return {"ids": out["ids"], "n_mtp": head.n_cells, **rows}


MODELLESS_ANSWERS: dict[str, Callable[[Recipe, Mapping[str, Any], Inputs], Outputs]] = {
    "accept_greedy": accept_greedy,
    "accept_match": accept_match,
    "accept_residual": accept_residual,
    "policy": policy,
    "accumulated": accumulated,
}
MODEL_ANSWERS: dict[str, Callable[[Model, Mapping[str, Any], Inputs], Outputs]] = {
    "generate": generate,
    "rounds": rounds,
    "head_cells": head_cells,
}
