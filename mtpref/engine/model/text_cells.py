"""The target's cells that a head without cells of its own reads, of a whole text, by position.

Owns what a layer with a window forgets: at any position of the text the cells can be had that the target held there.
That serves whoever drafts from many positions of one text. It must not know what is done with them.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.model.model import Model
from mtpref.spec.state import LayerState, ModelState, StateSpec


def layers_read(model: Model) -> tuple[int, ...]:
    """The trunk's layers whose cells the heads read."""
    read = {layer.cfg.source for head in model.heads if head.sheet.reads_target for layer, _ in head.stack}
    return tuple(sorted(read))


@dataclass
class TextCells:
    """Cells of the layers that the heads of a model read, taken from a state as its text grows.

    layers   their numbers
    n_past   positions that were noted
    """

    model: Model
    layers: tuple[int, ...] = ()
    n_past: int = 0
    _cells: dict[tuple[int, str], NDArray] = field(default_factory=dict)
    _ends: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.layers = layers_read(self.model)

    def note(self, state: ModelState) -> None:
        """Take over what the state's last pass added, where it kept its planes: every position of it can be asked for;
        else the last one alone. A text that was cut is taken from where it is now."""
        first = min(self.n_past, state.n_past)
        self._ends = {n for n in self._ends if n <= first}
        for il in self.layers:
            layer = state.layers[il]
            for spec in layer.specs:
                if spec.positional:
                    self._put(il, spec, first, layer.arrays[spec.name][first : state.n_past])
                else:
                    self._put_windows(il, spec, state.n_past, layer)
        self._ends |= set(range(state.n_past - self._n_whole(state, state.n_past - first) + 1, state.n_past + 1))
        self.n_past = state.n_past

    def at(self, n_past: int) -> ModelState:
        """A sequence of the first n_past tokens, of whose layers only those have cells that are read.

        Errors  IndexError for a position at which nothing was noted
        """
        if n_past not in self._ends:
            raise IndexError(f"cells of {n_past} tokens were not noted")
        model = self.model
        heads = [head.layer.state(model.kv_type_draft) for head in model.heads]
        state = ModelState([], heads, model.heads[0].n_hidden, max(n_past, 1))
        state.layers = [LayerState(()) for _ in range(max(self.layers) + 1)]
        for il in self.layers:
            specs = model.layers[il].state(model.kv_type)
            state.layers[il].specs = specs
            for spec in specs:
                low = 0 if spec.positional else max(0, n_past - spec.shape[0])
                state.layers[il].arrays[spec.name] = self._cells[il, spec.name][low:n_past]
        state.n_past = n_past
        return state

    def _n_whole(self, state: ModelState, n_new: int) -> int:
        """At how many of the last positions every cell is known."""
        windowed = [state.layers[il] for il in self.layers if any(not s.positional for s in state.layers[il].specs)]
        return min((len(next(iter(layer.planes.values()), [0])) for layer in windowed), default=n_new)

    def _put_windows(self, il: int, spec: StateSpec, n_past: int, layer: LayerState) -> None:
        planes = layer.planes.get(spec.name, layer.arrays[spec.name][None])
        first = n_past - len(planes) + 1  # the position after the first plane's last cell
        self._put(il, spec, first - spec.shape[0], planes[0])
        self._put(il, spec, first, np.asarray(planes[1:, -1]))

    def _put(self, il: int, spec: StateSpec, first: int, cells: NDArray) -> None:
        """Cells at positions from `first` on; those before 0 are none."""
        cells, first = cells[max(0, -first) :], max(0, first)
        own = self._cells.get((il, spec.name))
        needed = first + len(cells)
        if own is None or len(own) < needed:
            shape = spec.shape if spec.positional else spec.shape[1:]
            new = np.empty((1 << max(6, (needed - 1).bit_length()), *shape), cells.dtype)
            if own is not None:
                new[: len(own)] = own
            own = self._cells[il, spec.name] = new
        own[first:needed] = cells
