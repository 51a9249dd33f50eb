"""Counts with names, and sums of products of them: how a data sheet writes a shape.

`2 * n_head * n_embd_head` prints as it is written and has a value once its names have. Knows nothing of files or
models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

Terms = tuple[tuple[int, tuple[str, ...]], ...]  # of each product: its number, and the names that it multiplies


class Dim(ABC):
    """A count, or a sum of products of counts."""

    @property
    @abstractmethod
    def terms(self) -> Terms: ...

    @property
    def names(self) -> frozenset[str]:
        """The names of the counts that it is made of."""
        return frozenset(name for _, names in self.terms for name in names)

    def __add__(self, other: Dim | int) -> Dim:
        return _Sum(self.terms + _terms(other))

    def __sub__(self, other: Dim | int) -> Dim:
        return self + -1 * other

    def __mul__(self, other: Dim | int) -> Dim:
        return _Sum(tuple((m * n, a + b) for m, a in self.terms for n, b in _terms(other)))

    def __rmul__(self, other: int) -> Dim:
        return _Sum(tuple((other * n, names) for n, names in self.terms))

    def __str__(self) -> str:
        terms = ("*".join([str(n)] * (n != 1 or not names) + list(names)) for n, names in self.terms)
        return " + ".join(terms).replace("+ -1*", "- ")

    def value(self, values: Mapping[str, int]) -> int | None:
        """The number; None where one of its names has none."""
        if not all(name in values for _, names in self.terms for name in names):
            return None
        return sum(n * prod(values[name] for name in names) for n, names in self.terms)


@dataclass(frozen=True)
class _Sum(Dim):
    sum: Terms

    @property
    def terms(self) -> Terms:
        return self.sum

    __str__ = Dim.__str__


@dataclass(frozen=True)
class Named(Dim):
    """A count by its name."""

    name: str

    @property
    def terms(self) -> Terms:
        return ((1, (self.name,)),)

    __str__ = Dim.__str__


@dataclass(frozen=True)
class Share(Dim):
    """One count as a share of another: `of` / `parts`, without a remainder. It stands by itself, not in a product."""

    of: Dim
    parts: Dim

    @property
    def terms(self) -> Terms:
        """Those of both counts: for the names in them alone."""
        return (*self.of.terms, *self.parts.terms)

    def __add__(self, other: Dim | int) -> Dim:
        raise TypeError("a share stands by itself")

    __mul__ = __rmul__ = __add__

    @property
    def names(self) -> frozenset[str]:
        return self.of.names | self.parts.names

    def __str__(self) -> str:
        return f"{self.of} / {self.parts}"

    def value(self, values: Mapping[str, int]) -> int | None:
        of, parts = self.of.value(values), self.parts.value(values)
        return None if of is None or not parts else of // parts


@dataclass(frozen=True)
class OrElse(Dim):
    """One count, or another where a model has none of the first (0, or not said). It stands by itself."""

    first: Dim
    other: Dim

    @property
    def terms(self) -> Terms:
        """Those of both counts: for the names in them alone."""
        return (*self.first.terms, *self.other.terms)

    def __add__(self, other: Dim | int) -> Dim:
        raise TypeError("a choice stands by itself")

    __mul__ = __rmul__ = __add__

    def __str__(self) -> str:
        return f"{self.first} or {self.other}"

    def value(self, values: Mapping[str, int]) -> int | None:
        return self.first.value(values) or self.other.value(values)


ONE: Dim = _Sum(((1, ()),))
Shape = tuple[Dim, ...]


def numbers(shape: Sequence[Dim], values: Mapping[str, int]) -> tuple[int, ...] | None:
    """The shape in numbers; None where a name has none."""
    found = [dim.value(values) for dim in shape]
    return None if None in found else tuple(n for n in found if n is not None)


def _terms(x: Dim | int) -> Terms:
    return x.terms if isinstance(x, Dim) else ((x, ()),)
