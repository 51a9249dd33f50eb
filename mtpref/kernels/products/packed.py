"""Weight matrices laid out anew for the kernels, beside their raw bytes.

Owns what such a matrix is: a `spec.Matrix` that everything else takes as one. It must not know how panels are made or
read; Numba is imported when the first are made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.spec.products import Matrix, Stack

PANEL_ROWS = 16


@dataclass(frozen=True)
class PackedMatrix(Matrix):
    """A matrix with panels (panels.py). Copies made with `dataclasses.replace` have none: their rows may be others.

    panels  uint8, the panels one after the other; None: products read the raw bytes in place
    """

    panels: NDArray[np.uint8] | None = field(default=None, init=False, repr=False, compare=False)

    def with_panels(self, panels: NDArray[np.uint8]) -> "PackedMatrix":
        """This matrix with panels of its own rows."""
        made = PackedMatrix(self.name, self.type_name, self.n_out, self.n_in, self.raw)
        object.__setattr__(made, "panels", panels)
        return made

    def rows(self, first: int, last: int) -> Matrix:
        """The rows first to last - 1, as a view; it has panels if it begins with one."""
        part = super().rows(first, last)
        if self.panels is None or first % PANEL_ROWS or not 0 <= first < last <= self.n_out:
            return part
        size = self.panels.size // -(-self.n_out // PANEL_ROWS)
        of_part = self.panels[first // PANEL_ROWS * size : -(-last // PANEL_ROWS) * size]
        return PackedMatrix(part.name, part.type_name, part.n_out, part.n_in, part.raw).with_panels(of_part)


@dataclass(frozen=True)
class PackedStack(Stack):
    """A stack whose matrices have panels. Copies made with `dataclasses.replace` have none.

    panels  uint8 (n, bytes of a matrix's panels); None: products read the raw bytes in place
    """

    panels: NDArray[np.uint8] | None = field(default=None, init=False, repr=False, compare=False)

    def with_panels(self, panels: NDArray[np.uint8]) -> "PackedStack":
        """This stack with panels of its own matrices."""
        made = PackedStack(self.name, self.type_name, self.n_out, self.n_in, self.raw)
        object.__setattr__(made, "panels", panels)
        return made

    def __getitem__(self, e: Any) -> Any:
        part = super().__getitem__(e)
        if self.panels is None or isinstance(e, slice):
            return part
        return PackedMatrix(part.name, part.type_name, part.n_out, part.n_in, part.raw).with_panels(self.panels[e])

    def rows(self, first: int, last: int) -> Stack:
        """The rows first to last - 1 of every matrix, as a view; it has panels if it begins with one."""
        part = super().rows(first, last)
        if self.panels is None or first % PANEL_ROWS or not 0 <= first < last <= self.n_out:
            return part
        size = self.panels.shape[1] // -(-self.n_out // PANEL_ROWS)
        of_part = self.panels[:, first // PANEL_ROWS * size : -(-last // PANEL_ROWS) * size]
        return PackedStack(part.name, part.type_name, part.n_out, part.n_in, part.raw).with_panels(of_part)


def pack(
    matrices: Sequence[Matrix | Stack], done: Callable[[Matrix | Stack], None] = lambda w: None
) -> list[Matrix | Stack]:
    """The matrices, those of a type with a layout as PackedMatrix or PackedStack, in the same order. The raw bytes stay
    what they are.

    done   called after each matrix, those of a stack one by one before the stack, when its raw bytes are not needed
           for now

    Cost   reads each once, in all threads; as much memory again (a little more for types with packed scales)
    """
    from mtpref.kernels.products import panels

    return panels.pack(matrices, done)
