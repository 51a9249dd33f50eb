"""The experiment that would separate two hypotheses: computed by running both.

Owns the choice of the tensor. It must not judge which hypothesis is right.
"""

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.model import Model
from mtpref.faults.diagnose.hypotheses import Hypothesis
from mtpref.faults.diagnose.port_tensors import distance
from mtpref.faults.diagnose.predict import Predictor, tensor_names

CLEAR = 1e-6  # a distance that any port's numerics can show at a tensor of the head


def telling_tensor(model: Model, ids: list[int], a: Hypothesis, b: Hypothesis) -> tuple[str, float] | None:
    """The tensor of a dump in which two hypotheses differ most, and by how much; None where none differs clearly."""
    names = list(tensor_names(model, ids))
    predictor = Predictor(model, ids, set(names))
    trunk: dict[str, NDArray] = {}
    predictor.trunk(lambda name, array: trunk.__setitem__(name, np.array(array)))
    found = []
    for hypothesis in (a, b):
        tensors = dict(trunk)
        with np.errstate(all="ignore"):
            predictor.run(hypothesis, lambda name, array, t=tensors: t.__setitem__(name, np.array(array)))  # type: ignore[misc]
        found.append(tensors)
    apart = {name: _apart(found[0].get(name), found[1].get(name)) for name in names}
    apart = {name: value for name, value in apart.items() if value > CLEAR}
    if not apart:
        return None
    greatest = max(apart.values())
    # The first in the order of execution that shows nearly as much as any.
    name = next(name for name in names if apart.get(name, 0.0) > 0.5 * greatest)
    return name, apart[name]


def _apart(a: NDArray | None, b: NDArray | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else 2.0
    found = distance(a, b)
    return 2.0 if found is None else found
