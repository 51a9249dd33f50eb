"""A checkpoint's tensors under GGUF names and conventions, as a plan of rows: which of which tensor, in which order.

Owns the inventory: what becomes what, what is set aside, what has no place. Every change that a conversion makes is a
choice of rows and columns and, for three kinds of tensor, one operation on values, so that any tensor can be streamed.
Names and orders come from the data sheet (mtpref/architectures). Experts are gathered in stacks.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mtpref.architectures import SHARED, Place, fused_of, is_idle, joined_of, place_of, stacks_of
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import printable
from mtpref.heads.hf.checkpoint import Checkpoint
from mtpref.heads.hf.config import TextConfig
from mtpref.heads.hf.formats.stored import FLOATS
from mtpref.heads.hf.names import canonical, is_buffer, is_multimodal
from mtpref.heads.hf.parts import Part
from mtpref.heads.hf.stacks import Stacks


@dataclass
class Inventory:
    """What a checkpoint holds. `unmapped`: without a place in a GGUF; `set_aside`: of vision and audio parts."""

    parts: list[Part] = field(default_factory=list)
    unmapped: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    n_mtp: int = 0  # MTP blocks among the tensors
    # of experts, and of tensors that cannot be read: is it the head's, what is wrong
    faults: list[tuple[bool, str]] = field(default_factory=list)
    shared_faults: dict[str, str] = field(default_factory=dict)  # GGUF name of what head and trunk share -> the same
    roots: list[Part] = field(default_factory=list)  # what a head has outside of blocks, in a file of its own
    idle: list[str] = field(default_factory=list)  # of layers that have no use for them, or that no graph reads

    def of_head(self) -> list[Part]:
        """What a stand-alone head's file holds: the head, what it shares with the trunk, and what is its own there."""
        return [*(part for part in self.parts if part.is_head or part.name in SHARED), *self.roots]

    def of_trunk(self) -> list[Part]:
        return [part for part in self.parts if not part.is_head]


def gguf_tensors(checkpoint: Checkpoint, config: TextConfig) -> Inventory:
    """The plan of every tensor, in the checkpoint's order.

    Errors   MtprefError: two tensors that become one, a shape that the operation cannot take
    """
    found, stacks, joined = Inventory(), Stacks(checkpoint, config), _Joined(checkpoint, config)
    unread = config.sheet.hf.unread if config.sheet.hf else ()
    taken: dict[str, str] = {}
    heads: list[str] = []  # names of the head's tensors
    for source in checkpoint.names:
        if is_multimodal(source):
            found.set_aside.append(source)
            continue
        if is_buffer(source):
            continue
        if canonical(source).startswith(unread) or is_idle(
            config.sheet, canonical(source), config.n_layer, config.blocks
        ):
            found.idle.append(source)
            continue
        fault = checkpoint.fault(source) or _no_floats(checkpoint, config, source)
        if fault is not None:
            place = _place_of_fault(config, source)
            if place is None:
                found.unmapped.append(source)
            elif place.name in SHARED:
                found.shared_faults[place.name] = fault
            else:
                stacks.unread(place)
                heads += [place.name] if place.is_head else []
                found.faults.append((place.is_head, fault))
            continue
        parts = stacks.add(source)
        if parts is None:
            parts = joined.add(source)
        if parts is None:
            parts = _parts(checkpoint, config, source)
        if parts is None:
            found.unmapped.append(source)
            continue
        for part in parts:
            if part.is_head and part.place.il is None:
                found.roots.append(part)
                continue
            if part.name in taken:
                raise MtprefError(
                    f"{checkpoint.label}: {printable(taken[part.name])} and {printable(source)} both "
                    f"become {part.name}, expected one of them"
                )
            taken[part.name] = source
            found.parts.append(part)
    found.faults += stacks.faults() + joined.faults()
    heads += [part.name for part in found.parts if part.is_head]
    blocks = {int(name.split(".")[1]) for name in heads}
    found.n_mtp = max(blocks) + 1 - config.n_layer if blocks else 0
    return found


def _no_floats(checkpoint: Checkpoint, config: TextConfig, source: str) -> str | None:
    """Why a tensor's values are none of a weight: plain integers, which are codes without what they mean, where no
    table is expected, or rows that were cut over ranks. None for all others."""
    dtype = checkpoint.dtype(source)
    place = place_of(config.sheet, canonical(source), config.n_layer, config.blocks)
    is_table = place is not None and place.tensor.below is not None
    ranks = checkpoint.stored(source).ranks
    if ranks[0] > 1 and not (place is not None and place.tensor.by_rank):
        return (
            f"{printable(source)}: its scales are those of {ranks[0]} tensor-parallel ranks, whose rows mtpref puts "
            f"together for others than {config.sheet.name} alone; expected the scales of the whole matrix"
        )
    if dtype in (("I32", "I64") if is_table else FLOATS):
        return None
    if is_table:
        return f"{printable(source)} is {dtype} {checkpoint.shape(source)}, expected a table of I32 or I64"
    return f"{printable(source)} is {dtype} {checkpoint.shape(source)}, expected floats, or codes whose scales are read"


def _place_of_fault(config: TextConfig, source: str) -> Place | None:
    """Where a tensor that cannot be read would belong."""
    name = canonical(source)
    places = stacks_of(config.sheet, name, config.n_layer)
    fused = fused_of(config.sheet, name, config.n_layer)
    name = fused[1][0] if fused else name
    return places[0] if places else place_of(config.sheet, name, config.n_layer, config.blocks)


def _parts(checkpoint: Checkpoint, config: TextConfig, source: str) -> list[Part] | None:
    """The GGUF tensors that one tensor of the checkpoint becomes, or None where it has no place."""
    name = canonical(source)
    shape, made = checkpoint.shape(source), []
    for piece, rows in _split(checkpoint, config, source, name, shape):
        place = place_of(config.sheet, piece, config.n_layer, config.blocks)
        if place is None:
            return None
        made.append(_part(checkpoint, config, source, place, rows))
    return made


class _Joined:
    """Tensors that are one in a GGUF, side by side, as they come."""

    def __init__(self, checkpoint: Checkpoint, config: TextConfig) -> None:
        self.checkpoint, self.config = checkpoint, config
        self._found: dict[str, dict[str, str]] = {}  # canonical name of the whole -> of a part -> the tensor
        self._parts: dict[str, tuple[str, ...]] = {}

    def add(self, source: str) -> list[Part] | None:
        """What is whole with this tensor; None where it is no part of another.

        Errors  MtprefError for parts that do not stand side by side
        """
        name = canonical(source)
        whole = joined_of(self.config.sheet, name, self.config.n_layer)
        if whole is None:
            return None
        self._parts[whole[0]] = whole[1]
        found = self._found.setdefault(whole[0], {})
        found[name] = source
        place = place_of(self.config.sheet, whole[0], self.config.n_layer)
        if place is None or len(found) < len(whole[1]):
            return []
        sources = tuple(found[part] for part in whole[1])
        shapes = [self.checkpoint.shape(one) for one in sources]
        if any(len(shape) != 2 for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
            named = " and ".join(f"{printable(one)} {shape}" for one, shape in zip(sources, shapes, strict=True))
            raise MtprefError(f"{self.checkpoint.label}: {named}, expected matrices of as many rows: they become one")
        del self._found[whole[0]]
        shape = (shapes[0][0], sum(shape[1] for shape in shapes))
        return [Part(place.name, sources, shape, None, None, place, is_joined=True)]

    def faults(self) -> list[tuple[bool, str]]:
        """(it is the head's, what is wrong) of those that lack a part."""
        lacking = [
            (found, next(p for p in self._parts[whole] if p not in found)) for whole, found in self._found.items()
        ]
        return [(True, f"{part} is missing beside {printable(next(iter(found.values())))}") for found, part in lacking]


def _split(
    checkpoint: Checkpoint, config: TextConfig, source: str, name: str, shape: tuple[int, ...]
) -> list[tuple[str, NDArray[np.intp] | None]]:
    """(canonical name, its rows; None: all), more than one for a fused tensor."""
    found = fused_of(config.sheet, name, config.n_layer)
    if found is None:
        return [(name, None)]
    fused, names = found
    if fused.rows is not None:
        return list(zip(names, fused.rows(config.values), strict=True))
    return [(part, _share(shape, i, len(names), checkpoint, source)) for i, part in enumerate(names)]


def _share(shape: tuple[int, ...], i: int, n: int, checkpoint: Checkpoint, source: str) -> NDArray[np.intp]:
    """The rows of part i of n equal ones."""
    if not shape or shape[0] % n:
        raise MtprefError(f"{checkpoint.label}: {printable(source)}: shape {shape}, expected rows in {n} equal parts")
    size = shape[0] // n
    return np.arange(i * size, (i + 1) * size)


def _part(
    checkpoint: Checkpoint,
    config: TextConfig,
    source: str,
    place: Place,
    rows: NDArray[np.intp] | None,
) -> Part:
    change = place.tensor.change
    shape = checkpoint.shape(source)
    what = f"{checkpoint.label}: {printable(source)}: shape {shape}"
    if not shape or len(shape) > 3 or min(shape) < 1:
        raise MtprefError(f"{what}, expected one to three positive dimensions")
    if change.squeeze:
        if len(shape) == 3 and shape[1] != 1:
            raise MtprefError(f"{what}, expected (channels, 1, kernel)")
        shape = (shape[0], shape[-1])
    if change.as_taps:
        if len(shape) == 1 or (len(shape) == 3 and shape[1] != 1):
            raise MtprefError(f"{what}, expected (channels, kernel) or (channels, 1, kernel)")
        return Part(place.name, (source,), (1, shape[0], 1, shape[-1]), rows, None, place)
    if change.as_column or change.groups:
        if len(shape) != 1:
            raise MtprefError(f"{what}, expected one dimension")
        n_rows = config.values[change.groups] if change.groups else shape[0]
        if shape[0] % n_rows:
            raise MtprefError(f"{what}, expected as many values for each of {n_rows} groups")
        return Part(place.name, (source,), (n_rows, shape[0] // n_rows), rows, None, place)
    if place.tensor.by_rank:
        rows = _gathered(checkpoint, config, source, place, what)
    if rows is not None and (n_needed := int(rows.max()) + 1) > shape[0]:
        raise MtprefError(f"{what}, expected {n_needed} rows or more, as config.json's sizes say")
    n_rows = shape[0] if rows is None else len(rows)
    order = change.rows.source(n_rows, config.values) if change.rows else None
    if order is not None:
        rows = order if rows is None else rows[order]
    columns = change.columns.source(shape[-1], config.values) if change.columns and len(shape) == 2 else None
    if change.heads:
        return _by_head(place, source, (n_rows, shape[-1]), rows, config.values[change.heads], what)
    stride = shape[1] if len(shape) == 3 else 0
    return Part(place.name, (source,), (n_rows, *shape[1:]), rows, columns, place, stride=stride)


def _gathered(
    checkpoint: Checkpoint, config: TextConfig, source: str, place: Place, what: str
) -> NDArray[np.intp] | None:
    """The rows of a matrix that was cut over ranks in the order of its parts; None where it was not."""
    ranks = checkpoint.stored(source).ranks
    if ranks == (1,):
        return None
    sizes = [dim.value(config.values_at(place.il or 0)) or 0 for _, dim in place.tensor.parts]
    if len(ranks) > 1:
        raise MtprefError(
            f"{what}: the shape of its scales leaves open whether it was cut over {' or '.join(map(str, ranks[1:]))} "
            "tensor-parallel ranks, expected a checkpoint that tells; save it in BF16 with the program that made it"
        )
    n = ranks[0]
    if sum(sizes) != checkpoint.shape(source)[0] or any(size % n for size in sizes):
        raise MtprefError(f"{what}, expected {' + '.join(map(str, sizes))} rows, each in {n} equal shares of ranks")
    shares, first, order = [size // n for size in sizes], 0, []
    for share in shares:
        order += [first + rank * sum(shares) + np.arange(share) for rank in range(n)]
        first += share
    return np.concatenate(order)


def _by_head(
    place: Place, source: str, shape: tuple[int, int], rows: NDArray[np.intp] | None, n_head: int, what: str
) -> Part:
    """A matrix for each head, which the checkpoint has one above the other."""
    n_rows, width = shape
    if n_rows % n_head:
        raise MtprefError(f"{what}, expected as many rows for each of {n_head} heads")
    one = (width, n_rows // n_head) if place.tensor.change.is_transposed else (n_rows // n_head, width)
    return Part(place.name, (source,), (n_head, *one), rows, None, place, 0, n_rows // n_head)
