"""Stacks of experts: many tensors of a checkpoint that become one, or one that becomes several.

Owns the two forms, a tensor for each expert (in any order, over any files) or one for all of them, and what may be
wrong with either. A layer's stacks are there when its last expert is, in the order of their names, as llama.cpp's
converter writes them (conversion/qwen.py, modify_tensors).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mtpref.architectures import Place, numbers, place_of, stacks_beside, stacks_of
from mtpref.architectures.names import EXPERT
from mtpref.files.gguf import printable
from mtpref.heads.hf.checkpoint import Checkpoint
from mtpref.heads.hf.config import TextConfig
from mtpref.heads.hf.names import canonical
from mtpref.heads.hf.parts import Part


@dataclass
class _Block:
    """The experts of one layer that have come.

    first      the tensor that came first    found: checkpoint name with {e} -> expert -> tensor; empty when made
    """

    is_head: bool
    is_fused: bool
    first: str
    found: dict[str, dict[int, str]] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    is_made: bool = False

    def lacking(self, n_expert: int) -> str | None:
        """What is wrong with experts that did not all come."""
        missing = [t.replace(EXPERT, str(e)) for t, own in self.found.items() for e in range(n_expert) if e not in own]
        if self.is_made or self.is_fused or not missing:
            return None
        n_all = n_expert * len(self.found)
        return (
            f"{missing[0]} is missing, one of {len(missing)}: expected the tensors of {n_expert} experts, {n_all} "
            "a layer; was the checkpoint saved whole?"
        )


class Stacks:
    """The experts of a checkpoint, as they come."""

    def __init__(self, checkpoint: Checkpoint, config: TextConfig) -> None:
        self.checkpoint, self.config, self.values = checkpoint, config, config.values
        self.n_expert = self.values.get("n_expert", 0)
        self._blocks: dict[int, _Block] = {}
        self._faults: list[tuple[bool, str]] = []
        self._unread: set[int] = set()

    def unread(self, place: Place) -> None:
        """An expert that cannot be read, which is said elsewhere: the others of its layer are not missing one."""
        self._unread.add(-1 if place.il is None else place.il)

    def add(self, source: str) -> list[Part] | None:
        """What is whole with this tensor; None where it is no tensor of experts."""
        name = canonical(source)
        places = stacks_of(self.config.sheet, name, self.config.n_layer)
        if places is not None:
            return self._whole(source, places)
        place = place_of(self.config.sheet, name, self.config.n_layer, self.config.blocks)
        if place is None or place.expert is None:
            return None
        return self._one(source, name, place)

    def faults(self) -> list[tuple[bool, str]]:
        """(whether it is the head's, what is wrong), experts that never came among it."""
        blocks = {il: block for il, block in self._blocks.items() if il not in self._unread}
        named = {il: (block.is_head, block.lacking(self.n_expert)) for il, block in blocks.items()}
        return self._faults + [(is_head, text) for _, (is_head, text) in sorted(named.items()) if text]

    def _one(self, source: str, name: str, place: Place) -> list[Part]:
        block = self._block(place, source, is_fused=False)
        if block is None:
            return []
        if not block.found:
            block.found = {template: {} for template in stacks_beside(self.config.sheet, name, self.config.n_layer)}
        e = place.expert or 0
        if e >= self.n_expert:
            self._fault(place, f"{printable(source)}: expert {e}, expected 0 .. {self.n_expert - 1}: config.json "
                               f"counts {self.n_expert} experts")  # fmt: skip
            return []
        expected = (numbers(place.tensor.shape, self.values) or ())[1:]
        shape = self.checkpoint.shape(source)
        if shape != expected:
            self._fault(place, f"{printable(source)}: shape {shape}, expected {expected} as config.json's sizes say")
        template = next(t for t in block.found if t.replace(EXPERT, str(e)) == name)
        if block.is_made or e in block.found[template]:
            self._fault(place, f"{printable(source)}: expert {e} a second time, expected it once")
            return []
        block.places[template] = place
        block.found[template][e] = source
        return self._made(block) if all(len(own) == self.n_expert for own in block.found.values()) else []

    def _made(self, block: _Block) -> list[Part]:
        """The stacks of a layer whose experts are all there, by name or in the sheet's order."""
        made, hf = [], self.config.sheet.hf
        order = sorted(block.found)
        if hf is not None and not hf.sorts_stacks:
            own = [tensor.name for one in self.config.sheet.blocks for tensor in one.all_tensors()]
            order.sort(key=lambda template: own.index(block.places[template].tensor.name))
        for template in order:
            found, place = block.found[template], block.places[template]
            sources = tuple(found[e] for e in range(self.n_expert))
            shape = (self.n_expert, *self.checkpoint.shape(sources[0]))
            made.append(Part(place.name, sources, shape, None, None, place))
            found.clear()
        block.is_made = True
        return made

    def _whole(self, source: str, places: list[Place]) -> list[Part]:
        """The stacks of a tensor that holds every expert."""
        if self._block(places[0], source, is_fused=True) is None:
            return []
        shapes = [numbers(place.tensor.shape, self.values) for place in places]
        if any(shape is None for shape in shapes):
            return []
        known = [shape for shape in shapes if shape is not None]
        stride = sum(shape[1] for shape in known)
        expected, shape = (known[0][0], stride, known[0][2]), self.checkpoint.shape(source)
        if shape != expected:
            text = f"{printable(source)}: shape {shape}, expected {expected} as config.json's sizes say"
            self._fault(places[0], text)
            return []
        made, skip = [], 0
        for place, own in zip(places, known, strict=True):
            made.append(Part(place.name, (source,), own, None, None, place, skip, stride))
            skip += own[1]
        return made

    def _block(self, place: Place, source: str, *, is_fused: bool) -> _Block | None:
        """The block that a tensor belongs to; None where its experts came in the other form."""
        il = -1 if place.il is None else place.il
        block = self._blocks.setdefault(il, _Block(place.is_head, is_fused, source))
        if block.is_fused != is_fused:
            self._fault(place, f"{printable(block.first)} and {printable(source)}: experts of one layer both by "
                               "themselves and all in one tensor, expected one of the two")  # fmt: skip
            return None
        return block

    def _fault(self, place: Place, text: str) -> None:
        self._faults.append((place.is_head, text))
