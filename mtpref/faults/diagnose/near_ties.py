"""What a dump says where no router's near tie can reach.

Owns the rows that a near tie leaves alone. A right port may choose another expert there; that moves the token's own row
from that router on, and from the next layer on the rows of all later tokens too. A fault is in other rows as well.
"""

import math

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.model import Model
from mtpref.faults.diagnose.evidence_dump import MIN_FACTOR, MIN_GAIN, WEIGHT, DumpEvidence, layer_of
from mtpref.faults.diagnose.hypotheses import Hypothesis
from mtpref.faults.diagnose.port_tensors import PortTensors, distance
from mtpref.faults.diagnose.predict import Predictor, run_head, run_trunk

MIN_TOKENS = 4  # of fewer it cannot be told which axis is the tokens'
Arrays = dict[str, NDArray[np.float32]]


def is_told_elsewhere(
    model: Model, port: PortTensors, evidence: DumpEvidence, floor: float, fault: Hypothesis, harmless: Hypothesis
) -> bool:
    """Whether the fault explains enough more than the best harmless hypothesis in rows that no near tie can reach."""
    n = len(evidence.ids)
    if n < MIN_TOKENS:
        return False
    by_token = _by_token(model, evidence)
    runs = [_run(model, evidence, one) for one in (fault, harmless)]
    gains = []
    for name in (name for name in evidence.names if name in by_token):
        clean = _clean(evidence, name, floor)
        found = [_masked(port.tensors[name], run[name], clean) if name in run else None for run in runs]
        if found[0] is not None and found[1] is not None:
            gains.append(math.log((found[1] + floor) / (found[0] + floor)))
    return bool(gains) and WEIGHT * sum(gains) > MIN_GAIN and max(gains) > math.log(MIN_FACTOR)


def _run(model: Model, evidence: DumpEvidence, hypothesis: Hypothesis) -> Arrays:
    made: Arrays = {}
    predictor = Predictor(model, evidence.ids, set(evidence.names))
    predictor.trunk(lambda name, array: made.__setitem__(name, np.array(array)))
    with np.errstate(all="ignore"):
        predictor.run(hypothesis, lambda name, array: made.__setitem__(name, np.array(array)))
    return made


def _by_token(model: Model, evidence: DumpEvidence) -> set[str]:
    """The names whose first axis is the tokens': it is as long as a prompt of two tokens, with or without the first."""
    short: dict[str, int] = {}
    ids = evidence.ids[:2]
    passed = run_trunk(model, ids, lambda name, array: short.__setitem__(name, len(array)), True)
    run_head(model, ids, passed, lambda name, array: short.__setitem__(name, len(array)), True)
    return {name for name, length in short.items() if length in (1, 2)}


def _clean(evidence: DumpEvidence, name: str, floor: float) -> NDArray[np.bool_]:
    """The tokens whose row of this tensor no near tie can reach."""
    n, at = len(evidence.ids), evidence.names.index(name)
    clean = np.ones(n, np.bool_)
    for router in (one for one in evidence.routers if one.n_before <= at):
        near = n - len(router.gaps) + router.open(floor)
        if near.size and layer_of(router.name) == layer_of(name):
            clean[near] = False
        elif near.size:
            clean[near.min() :] = False
    return clean


def _masked(port: NDArray[np.float32], predicted: NDArray[np.float32], clean: NDArray[np.bool_]) -> float | None:
    """The distance over clean rows; None where there are none, or shapes do not fit."""
    n = len(predicted)
    width = predicted.size // n if n else 0
    if not width or port.size % width or not len(clean) - 1 <= n <= len(clean):
        return None
    rows = min(n, port.size // width)
    mask = clean[len(clean) - rows :]
    if not mask.any():
        return None
    own, theirs = port.reshape(-1, width)[-rows:][mask], predicted.reshape(-1, width)[-rows:][mask]
    return distance(own, theirs)
