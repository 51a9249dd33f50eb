"""The targets: for each kind of input, sound seeds, random edits of them, and what is read and run with the result.

Owns nothing of mtpref: everything goes through the doors that users have. A case is named by target, seed and number,
and is the same on every machine.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fuzzing.edits import Edit, apply, random_byte_edit, single_edits
from fuzzing.fields import Doc, parse, write

Run = Callable[[bytes, Path, int], object]
Random = random.Random


@dataclass
class Target:
    """seeds     sound inputs
    run       (input, an empty-ish folder, the seed's number) reads it; raises what it raises
    share     cases in a round of the long mode: many of what is quick
    make_edit one random edit of a seed's bytes; None: of a GGUF file's fields and bytes
    """

    name: str
    seeds: Sequence[bytes]
    run: Run
    share: int
    make_edit: Callable[[Random, bytes], Edit] | None = None
    _cache: dict[int, tuple[Doc, list[Edit]]] = field(default_factory=dict)

    @cached_property
    def is_gguf(self) -> bool:
        return self.make_edit is None

    def fields(self, i: int) -> tuple[Doc, list[Edit]]:
        """A GGUF seed as fields, and every single edit of them."""
        if i not in self._cache:
            doc = parse(self.seeds[i])
            self._cache[i] = doc, single_edits(doc)
        return self._cache[i]

    def plan(self, seed: int, number: int) -> tuple[int, list[Edit]]:
        """The case's seed and edits: one to four, of fields or of bytes."""
        rng = Random(f"{self.name}:{seed}:{number}")
        i = rng.randrange(len(self.seeds))
        raw = self.seeds[i]
        edits = []
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
            if self.make_edit is not None:
                edits.append(self.make_edit(rng, raw))
            elif rng.random() < 0.65:
                edits.append(rng.choice(self.fields(i)[1]))
            else:
                edits.append(random_byte_edit(rng, len(raw)))
        return i, edits

    def build(self, i: int, edits: list[Edit]) -> bytes:
        if self.is_gguf:
            return apply(self.fields(i)[0], edits, write)
        raw = self.seeds[i]
        for edit in edits:
            if edit.on_bytes is not None:
                raw = edit.on_bytes(raw)
        return raw

    def n_singles(self) -> int:
        """Single edits of fields, over all seeds."""
        return sum(len(self.fields(i)[1]) for i in range(len(self.seeds))) if self.is_gguf else 0

    def single(self, number: int) -> tuple[int, list[Edit]]:
        for i in range(len(self.seeds)):
            edits = self.fields(i)[1]
            if number < len(edits):
                return i, [edits[number]]
            number -= len(edits)
        raise IndexError(number)
