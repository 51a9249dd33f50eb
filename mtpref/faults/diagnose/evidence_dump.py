"""Entrance (a): a port's tensors. Which hypothesis reproduces them?

Owns the likelihood of a dump: how near each hypothesis comes to each of the port's tensors, measured against the noise
that even the best of them leaves.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError, NotFiniteError
from mtpref.engine.model import Model
from mtpref.faults.diagnose.hypotheses import (
    KV_TYPES,
    Hypothesis,
    list_hypotheses,
    shares_pass,
    with_kv,
    with_other_numerics,
)
from mtpref.faults.diagnose.port_tensors import PortTensors, distance
from mtpref.faults.diagnose.predict import Predictor, tensor_names
from mtpref.faults.diagnose.rank import Group, Scored, grouped

START_FLOOR = 1e-8
MIN_TRUNK = 3  # trunk tensors that tell which numerics a port has
MIN_FLOOR = 1e-9  # rounding: nothing below it counts
WEIGHT = 0.5  # nats for each factor e of one tensor's distance; neighbours share their noise, so less than 1
# A fault is named where it explains at least so much better than every harmless hypothesis: in all, and at one tensor.
MIN_GAIN = 2.0
MIN_FACTOR = 4.0
SAME_FACTOR = 1.25  # two predictions are one where no tensor tells them apart by more
# The gap of a router or indexer below so many times the noise of an activation: two right ports may choose otherwise.
NEAR_GAP = 5.0
# What shows another choice, by the name of its gap: what a token's experts compute, what its heads gather. Rows nearer
# than this are of the same choice. Where a dump lacks that, the layer's row: what comes after it is as right as that
# is, so it must be within so many times the noise.
OF_CHOICE = {
    "ffn_moe_gap": ("ffn_moe_gate", "ffn_moe_up", "ffn_moe_down", "ffn_moe_weighted", "ffn_moe_out"),
    "top_k_gap": ("kqv_out",),
}
SAME_EXPERTS, SAME_ROW = 0.01, 30.0
NO_MEASURE = (*OF_CHOICE, "_topk", "top_k")  # a difference that is all noise; ids, whose distance means nothing
JUMP = 30.0  # what the best hypothesis leaves may grow by so much from one tensor to the next
MAX_UNEXPLAINED = 0.05
Progress = Callable[[int, int, str], None]


@dataclass
class Router:
    """A router of the healthy run, and how far the port is from that run after its choice, one value a token.

    n_before  how many of the compared tensors come before it
    experts   the greatest distance of what the experts compute, row the distance of the layer's row; infinite where the
              port does not have them
    """

    name: str
    gaps: NDArray[np.float32]
    n_before: int
    experts: NDArray[np.float64]
    row: NDArray[np.float64]

    def near(self, floor: float) -> NDArray[np.int64]:
        """The tokens for which two right ports may choose other experts."""
        return np.flatnonzero(self.gaps < NEAR_GAP * floor**0.5)

    def open(self, floor: float) -> NDArray[np.int64]:
        """Those of them for which this port may have done so."""
        is_same = np.where(np.isinf(self.experts), self.row < SAME_ROW * floor, self.experts < SAME_EXPERTS)
        return np.intersect1d(self.near(floor), np.flatnonzero(~is_same))


@dataclass
class DumpEvidence:
    """What a dump says for and against hypotheses.

    names      the port's tensors that were compared, in order of execution
    unknown    names of the port that the model has not, or of other shapes
    distances  by hypothesis id, one value for each name (mtpref/faults/diagnose/port_tensors.py `distance`)
    impossible hypotheses that this model cannot have
    routers    of the healthy run, in order of execution
    """

    ids: list[int]
    names: list[str]
    unknown: list[str]
    hypotheses: list[Hypothesis]
    numerics: str
    kv_type: str
    distances: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    impossible: list[str] = field(default_factory=list)
    routers: list["Router"] = field(default_factory=list)

    def best_fit(self) -> float:
        return max(_fit(row) for row in self.distances.values())


@dataclass
class DumpDiagnosis:
    """What a dump says. verdict: healthy, found, unknown or undecided.

    floor        the noise: what the best hypothesis leaves in front of the divergence
    near         undecided: the router's near tie (name, token, gap) before the divergence, after which a right port may
                 be anywhere
    doubt        found: the near tie before all that the fault explains (near_ties.py decides)
    divergence   the first tensor that the healthy run does not reproduce while the best hypothesis does ("unknown": the
                 first that none reproduces); None where healthy is best
    """

    verdict: str
    groups: list[Group]
    evidence: DumpEvidence
    floor: float
    divergence: str | None
    invisible: list[str]
    near: tuple[str, int, float] | None = None
    doubt: tuple[str, int, float] | None = None


def gather(model: Model, port: PortTensors, ids: Sequence[int], progress: Progress | None = None) -> DumpEvidence:
    """Replay the tokens under every hypothesis and measure.

    Errors  MtprefError where the port has no tensor that the model has
    """
    tokens = list(ids)
    order = list(tensor_names(model, tokens))
    known = [name for name in order if name in port.tensors and not any(part in name for part in NO_MEASURE)]
    if not known:
        raise MtprefError(
            f"{port.label}: none of its {len(port.tensors)} tensors has a name of this model, expected "
            f"cb() names such as mtp_eh_proj-{model.config.n_layer}; try: mtpref dump"
        )
    trunk = [name for name in known if not _is_of_head(name)]
    other = with_other_numerics(model)
    candidates = [model, other]
    if len(trunk) >= MIN_TRUNK:
        nearer = _nearest_trunk([model, other], port, tokens, trunk)
        # Cells of another type may hide a small fault; a fault may look like them: both are tried.
        cells = _nearest_trunk([nearer, *(with_kv(kv_type)(nearer) for kv_type in KV_TYPES)], port, tokens, trunk)
        candidates = [nearer] if cells is nearer else [nearer, cells]
    runs = [(one, _measure(one, port, tokens, known, progress)) for one in candidates]
    one, best = max(runs, key=lambda run: run[1].best_fit() - (run[0] is not candidates[0]) * MIN_GAIN)
    _look_at_routers(one, port, best, [name for name in order if _is_gap(name)])
    return best


def _is_of_head(name: str) -> bool:
    return name.startswith("mtp_")


def _nearest_trunk(models: Sequence[Model], port: PortTensors, ids: list[int], names: list[str]) -> Model:
    """Which of these the port's trunk is: the first unless another comes clearly nearer."""
    fits = []
    for one in models:
        values: list[float] = []
        Predictor(one, ids, set(names)).trunk(lambda name, array, v=values: v.append(_known(port, name, array)))  # type: ignore[misc]
        fits.append(_fit(np.asarray(values)))
    best = int(np.argmax(fits))
    return models[best] if fits[best] > fits[0] + MIN_GAIN else models[0]


def _known(port: PortTensors, name: str, array: NDArray) -> float:
    found = distance(port.tensors[name], array)
    return 2.0 if found is None else found


def _fit(distances: NDArray[np.float64]) -> float:
    return -WEIGHT * float(np.log(distances + START_FLOOR).sum())


def _measure(
    model: Model, port: PortTensors, tokens: list[int], known: list[str], progress: Progress | None
) -> DumpEvidence:
    """The distances of every hypothesis over one model."""
    predictor = Predictor(model, tokens, set(known))
    shared: dict[str, float | None] = {}
    predictor.trunk(lambda name, array: shared.__setitem__(name, distance(port.tensors[name], array)))
    found: dict[str, dict[str, float | None]] = {}
    impossible = []
    hypotheses = list_hypotheses(model)
    for i, hypothesis in enumerate(hypotheses):
        if progress is not None:
            progress(i, len(hypotheses), hypothesis.id)
        values = dict(shared)
        try:
            if "healthy" in found and shares_pass(hypothesis.apply(model), model):
                found[hypothesis.id] = found["healthy"]
                continue
            with np.errstate(all="ignore"):
                predictor.run(
                    hypothesis,
                    lambda name, array, v=values: v.__setitem__(name, distance(port.tensors[name], array)),  # type: ignore[misc]
                )
        except NotFiniteError:
            raise  # the model itself, and not what the hypothesis makes of it: faults are not looked at
        except (MtprefError, ValueError):
            impossible.append(hypothesis.id)
            continue
        found[hypothesis.id] = values
    # A shape that only some hypotheses give (a trimmed head) is evidence; one that none gives is another layout.
    names = [name for name in known if any(values.get(name) is not None for values in found.values())]
    if not names:
        raise MtprefError(
            f"{port.label}: no tensor has the shape that this model gives it for {len(tokens)} "
            f"tokens ({known[0]}: {port.tensors[known[0]].shape}); are they the port's?"
        )
    unknown = [name for name in port.tensors if name not in names]
    evidence = DumpEvidence(tokens, names, unknown, [], model.recipe.numerics, model.kv_type, impossible=impossible)
    for hypothesis in hypotheses:
        if hypothesis.id in found:
            values = found[hypothesis.id]
            evidence.hypotheses.append(hypothesis)
            # A tensor that a hypothesis does not give at all is unrelated to the port's.
            row = [2.0 if values.get(name) is None else values[name] for name in names]
            evidence.distances[hypothesis.id] = np.asarray(row, np.float64)
    return evidence


def _look_at_routers(model: Model, port: PortTensors, evidence: DumpEvidence, routers: list[str]) -> None:
    """Set what evidence says of routers, from the healthy run."""
    n_before, compared = 0, set(evidence.names)

    def look(name: str, array: NDArray) -> None:
        nonlocal n_before
        if _is_gap(name):
            gaps = np.array(array, np.float32).reshape(-1)
            far = np.full(len(gaps), np.inf)
            evidence.routers.append(Router(name, gaps, n_before, far, far))
        elif name in compared:
            n_before += 1
            if evidence.routers and layer_of(evidence.routers[-1].name) == layer_of(name):
                _look_after(evidence.routers[-1], name, port.tensors[name], array)

    if routers:
        predictor = Predictor(model, evidence.ids, {*compared, *routers})
        predictor.trunk(look)
        predictor.run(list_hypotheses(model)[0], look)


def _is_gap(name: str) -> bool:
    return any(gap in name for gap in OF_CHOICE)


def _look_after(router: Router, name: str, port: NDArray, predicted: NDArray) -> None:
    """How far the port's rows of a tensor after a router's choice are."""
    n = len(router.gaps)
    parts = next(parts for gap, parts in OF_CHOICE.items() if gap in router.name)
    is_of_experts, is_row = any(part in name for part in parts), "l_out" in name
    if port.size != predicted.size or port.size % n or not (is_of_experts or is_row):
        return
    a, b = (np.asarray(x, np.float64).reshape(n, -1) for x in (port, predicted))
    with np.errstate(all="ignore"):
        apart = 2.0 * ((a - b) ** 2).sum(axis=1) / ((a * a).sum(axis=1) + (b * b).sum(axis=1))
    apart = np.where(np.isfinite(apart), apart, np.inf)
    if is_row:
        router.row = apart
    else:
        router.experts = np.where(np.isinf(router.experts), apart, np.maximum(router.experts, apart))


def layer_of(name: str) -> int | None:
    """The number of a tensor's layer; what stands after all layers has none."""
    number = re.search(r"-(\d+)$", name)
    return int(number[1]) if number else None


def _near_tie(
    evidence: DumpEvidence, before: int, tokens: Callable[[Router], NDArray[np.int64]]
) -> tuple[str, int, float] | None:
    """The first router before that tensor that has such tokens: the one of the least gap."""
    for router in (one for one in evidence.routers if one.n_before <= before):
        found = tokens(router)
        if found.size:
            token = int(found[router.gaps[found].argmin()])
            return router.name, token, float(router.gaps[token])
    return None


def judge(evidence: DumpEvidence) -> DumpDiagnosis:
    """Rank, group, and decide."""
    best_id, floor = _settled_floor(evidence)
    best = evidence.distances[best_id]
    scored = [_score(h, evidence, best, floor) for h in evidence.hypotheses]

    def is_same(a: Scored, b: Scored) -> bool:
        return _same(evidence.distances[a.hypothesis.id], evidence.distances[b.hypothesis.id], floor)

    groups = grouped(scored, is_same)
    healthy = evidence.distances["healthy"]
    home = next(g for g in groups if "healthy" in g.ids)
    invisible = [s.hypothesis.id for s in home.members if not s.hypothesis.is_harmless]
    home.members = [s for s in home.members if s.hypothesis.is_harmless]
    home.members.sort(key=lambda s: s.hypothesis.id != "healthy")
    groups = _settle(groups, evidence, floor)
    top = groups[0]
    jump = _jump(evidence.distances[top.best.hypothesis.id], floor)
    at = _divergence(healthy, evidence.distances[top.best.hypothesis.id], floor)
    near = None if jump is None else _near_tie(evidence, jump, lambda router: router.near(floor))
    # What a fault explains before a router's near tie is not undone by what comes after it.
    is_told = near is not None and at is not None and jump is not None and at < jump and not top.is_harmless
    if jump is not None and not is_told:
        verdict = "unknown" if near is None else "undecided"
        return DumpDiagnosis(verdict, groups, evidence, floor, evidence.names[jump], invisible, near)
    if top.is_harmless:
        invisible += _not_cleared(groups, top)
        return DumpDiagnosis("healthy", groups, evidence, floor, None, invisible)
    doubt = None if at is None else _near_tie(evidence, at, lambda router: router.open(floor))
    divergence = None if at is None else evidence.names[at]
    return DumpDiagnosis("found", groups, evidence, floor, divergence, invisible, doubt=doubt)


def _not_cleared(groups: list[Group], healthy: Group) -> list[str]:
    """Faults that explain nearly as much as the healthy run does: too little to say that they are not there."""
    least = healthy.best.log_likelihood - MIN_GAIN
    members = [s for group in groups if group is not healthy for s in group.members]
    return [s.hypothesis.id for s in members if s.log_likelihood > least and not s.hypothesis.is_harmless]


def _settled_floor(evidence: DumpEvidence) -> tuple[str, float]:
    """The best hypothesis and the noise in front of its divergence: each decides the other, so twice round."""
    floor, best_id = START_FLOOR, "healthy"
    healthy = evidence.distances["healthy"]
    for _ in range(2):
        best_id = min(evidence.distances, key=lambda id: float(np.log(evidence.distances[id] + floor).sum()))
        best = evidence.distances[best_id]
        at = _divergence(healthy, best, floor)
        before = best[:at] if at else best[:0] if at == 0 else best
        floor = max(float(np.median(before)) if before.size else float(np.median(best)), MIN_FLOOR)
        floor = min(floor, 1e-2)
    return best_id, floor


def _divergence(healthy: NDArray[np.float64], best: NDArray[np.float64], floor: float) -> int | None:
    apart = np.flatnonzero((healthy + floor) > MIN_FACTOR * (best + floor))
    return int(apart[0]) if apart.size else None


def _jump(best: NDArray[np.float64], floor: float) -> int | None:
    """Where even the best hypothesis leaves far more than what it left before: what no hypothesis knows."""
    seen = max(floor, 1e-5)
    for i, value in enumerate(best):
        if value > MAX_UNEXPLAINED and value > JUMP * seen:
            return i
        seen = max(seen, float(value))
    return None


def _score(h: Hypothesis, evidence: DumpEvidence, best: NDArray[np.float64], floor: float) -> Scored:
    own = evidence.distances[h.id]
    log_likelihood = -WEIGHT * float(np.log((own + floor) / (best + floor)).sum())
    worst = int(own.argmax())
    words = f"leaves {own[worst]:.1e} at {evidence.names[worst]}" if own[worst] > floor else "reproduces every tensor"
    return Scored(h, log_likelihood, words)


def _same(a: NDArray[np.float64], b: NDArray[np.float64], floor: float) -> bool:
    return bool((np.abs(np.log((a + floor) / (b + floor))) < math.log(SAME_FACTOR)).all())


def _settle(groups: list[Group], evidence: DumpEvidence, floor: float) -> list[Group]:
    """A fault goes before the best harmless group only where it explains enough more."""
    harmless = next(g for g in groups if g.is_harmless)
    base = evidence.distances[harmless.best.hypothesis.id] + floor

    def is_proven(group: Group) -> bool:
        gains = np.log(base / (evidence.distances[group.best.hypothesis.id] + floor))
        return bool(WEIGHT * gains.sum() > MIN_GAIN and gains.max() > math.log(MIN_FACTOR))

    ahead = groups[: groups.index(harmless)]
    proven = [g for g in ahead if is_proven(g)]
    doubtful = [g for g in ahead if not is_proven(g)]
    return [*proven, harmless, *doubtful, *groups[len(ahead) + 1 :]]
