"""The tap of golden cases: copies of the activations that a case compares."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray


class Tap:
    """Keeps chosen tokens of chosen tensors, in the order of execution, while a prompt goes by in batches.

    is_wanted   by name
    rows        token numbers, rising; None: all
    pos0        of the batch that is running; matters where there are `rows`
    kept        name -> float32; a name that comes again is extended along the tokens. One whose rows are as wide as
                there are cells (an indexer's scores) is kept of a prompt in one batch alone
    """

    def __init__(self, is_wanted: Callable[[str], bool] = lambda name: True, rows: Sequence[int] | None = None) -> None:
        self.kept: dict[str, NDArray] = {}
        self.pos0 = 0
        self._grown: set[str] = set()
        self._is_wanted, self._rows = is_wanted, None if rows is None else np.asarray(rows)

    def __call__(self, name: str, array: NDArray) -> None:
        if not self._is_wanted(name):
            return
        at = np.arange(len(array)) if self._rows is None else self._rows - self.pos0
        new = np.array(array[at[(at >= 0) & (at < len(array))]], np.float32)
        if name in self._grown:
            return
        before = self.kept.get(name, new[:0])
        if before.shape[1:] == new.shape[1:]:
            self.kept[name] = np.concatenate([before, new])
        else:
            self._grown.add(name)
            del self.kept[name]


def tap_of(names: Collection[str], rows: Sequence[int] | None = None) -> Tap:
    """A tap of these names; of all where none is given."""
    wanted = frozenset(names)
    return Tap(lambda name: not wanted or name in wanted, rows)
