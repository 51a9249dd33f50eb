"""Names of a checkpoint and names of a GGUF file, each from the other, as a data sheet has them.

Canonical checkpoint names only: hf/names.py takes off what depends on the class that saved them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from mtpref.architectures.sheet import Architecture, Block, Fused, Tensor
from mtpref.base.errors import MtprefError

EXPERT = "{e}"  # an expert's number in the checkpoint name of a stack
_NUMBER = re.compile(r"0|[1-9]\d{0,5}")


@dataclass(frozen=True)
class Place:
    """Where a checkpoint's tensor belongs.

    il      its block, None outside of blocks: a head's there is its own, for a file of its own
    expert  which matrix of the stack it is; None for the whole tensor
    """

    tensor: Tensor
    il: int | None
    is_head: bool
    expert: int | None = None

    @property
    def name(self) -> str:
        """The GGUF name."""
        return self.tensor.name if self.il is None else self.tensor.at(self.il).name


@dataclass(frozen=True)
class _Table:
    """The tensors under one prefix. kind: "root", "layer", "head", "head_block" or "head_root", what a head's own file
    has outside of blocks."""

    kind: str
    pattern: re.Pattern[str]
    prefix: str
    tensors: Mapping[str, Tensor]  # by checkpoint name below the prefix
    stacks: Mapping[tuple[str, str], Tensor]  # by what stands before and after the expert's number


@cache
def _tables(sheet: Architecture) -> tuple[_Table, ...]:
    hf, head = sheet.hf, sheet.head
    if hf is None:
        raise MtprefError(f"checkpoints of {sheet.name} are not known, expected a GGUF file")
    layers = [tensor for block in sheet.layers.all_blocks() for tensor in block.all_tensors()]
    groups = [("root", "", sheet.tensors), ("layer", hf.layer, layers)]
    if head is not None:
        groups += [("head", hf.head, head.tensors), ("head_block", hf.head_block, _of_blocks(head.blocks))]
        own = sheet.streams.tensors if sheet.streams else ()
        groups += [("head_root", hf.head, [tensor for tensor in sheet.tensors if tensor.name in own])]
    return tuple(_table(kind, prefix, tensors) for kind, prefix, tensors in groups)


def _of_blocks(blocks: Iterable[Block]) -> tuple[Tensor, ...]:
    return tuple(tensor for block in blocks for tensor in block.all_tensors())


def _table(kind: str, prefix: str, tensors: Iterable[Tensor]) -> _Table:
    named = {tensor.hf: tensor for tensor in tensors if tensor.hf}
    plain = {hf: tensor for hf, tensor in named.items() if EXPERT not in hf}
    stacks = {(hf.split(EXPERT)[0], hf.split(EXPERT)[1]): t for hf, t in named.items() if EXPERT in hf}
    return _Table(kind, _pattern(prefix), prefix, plain, stacks)


def _pattern(prefix: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(il?)\\}", r"(?P<\1>\\d{1,6})", re.escape(prefix)))


Blocks = Sequence[Block] | None  # of the trunk's layers, where they are known


def place_of(sheet: Architecture, name: str, n_layer: int, blocks: Blocks = None) -> Place | None:
    """The place of a checkpoint's tensor; None where a model of n_layer layers has none for it.

    blocks   tell which tensor a name is that means one thing in one layer, and another in another
    """
    for table, i, rest in _prefixed(sheet, name, n_layer, blocks):
        is_head = table.kind.startswith("head")
        if rest in table.tensors:
            return Place(table.tensors[rest], None if table.kind == "head_root" else i, is_head)
        for (before, after), tensor in table.stacks.items():
            number = rest[len(before) : len(rest) - len(after)]
            if rest == before + number + after and _NUMBER.fullmatch(number):
                return Place(tensor, i, is_head, int(number))
    return None


def stacks_of(sheet: Architecture, name: str, n_layer: int) -> list[Place] | None:
    """The stacks that a checkpoint's tensor holds for all experts at once, in its order; None for any other name."""
    for table, i, rest in _prefixed(sheet, name, n_layer):
        for one in sheet.hf.stacks if sheet.hf and table.stacks else ():
            if rest in (one.hf, f"{one.hf}.weight"):
                named = {EXPERT.join(ends): tensor for ends, tensor in table.stacks.items()}
                return [Place(named[part], i, table.kind.startswith("head")) for part in one.parts]
    return None


def stacks_beside(sheet: Architecture, name: str, n_layer: int) -> dict[str, Tensor]:
    """The stacks of the block that a checkpoint's name belongs to, by checkpoint name with {e} for the number."""
    for table, _, rest in _prefixed(sheet, name, n_layer):
        if table.stacks:
            prefix = name[: len(name) - len(rest)]
            return {prefix + EXPERT.join(ends): tensor for ends, tensor in sorted(table.stacks.items())}
    return {}


def fused_of(sheet: Architecture, name: str, n_layer: int) -> tuple[Fused, list[str]] | None:
    """The fused tensor that a checkpoint's name is, and the names of its parts; None for any other."""
    for table, _, rest in _prefixed(sheet, name, n_layer):
        for fused in sheet.hf.fused if sheet.hf and table.kind in ("layer", "head_block") else ():
            if fused.hf == rest:
                prefix = name[: len(name) - len(rest)]
                return fused, [prefix + part for part in fused.parts]
    return None


def joined_of(sheet: Architecture, name: str, n_layer: int) -> tuple[str, tuple[str, ...]] | None:
    """Of a checkpoint's name that is one of several: that of the whole, and of all its parts; None for any other."""
    for table, _, rest in _prefixed(sheet, name, n_layer):
        for joined in sheet.hf.joined if sheet.hf and table.kind == "head" else ():
            if rest in joined.parts:
                prefix = name[: len(name) - len(rest)]
                return prefix + joined.hf, tuple(prefix + part for part in joined.parts)
    return None


def is_idle(sheet: Architecture, name: str, n_layer: int, blocks: Sequence[Block] | None) -> bool:
    """Whether a checkpoint's tensor is of a layer that has no use for it. blocks: of the layers, where known"""
    for table, il, rest in _prefixed(sheet, name, n_layer):
        if table.kind == "layer" and sheet.hf and rest in sheet.hf.idle and blocks and il is not None:
            return all(tensor.hf != rest for tensor in blocks[il].all_tensors())
    return False


def _prefixed(
    sheet: Architecture, name: str, n_layer: int, blocks: Blocks = None
) -> Iterator[tuple[_Table, int | None, str]]:
    """The tables that a name could be in: its block there, and what stands after the prefix."""
    for table in _tables(sheet):
        match = table.pattern.match(name)
        if match is None:
            continue
        groups, il = match.groupdict(), None
        if table.kind != "root":
            il = int(groups["il"]) if "il" in groups else n_layer + int(groups.get("i", 0))
            if (il < n_layer) != (table.kind == "layer"):
                continue
        rest = name[match.end() :]
        if table.kind == "layer" and blocks is not None and il is not None:
            yield _table_of(sheet, blocks[il].name), il, rest
        yield table, il, rest


@cache
def _table_of(sheet: Architecture, block: str) -> _Table:
    """The tensors of one of the trunk's blocks."""
    prefix = sheet.hf.layer if sheet.hf else ""
    return _table("layer", prefix, _of_blocks(one for one in sheet.layers.all_blocks() if one.name == block))


def _placed(sheet: Architecture, name: str, n_layer: int, blocks: Blocks = None) -> Place:
    place = place_of(sheet, name, n_layer, blocks)
    if place is None:
        raise MtprefError(f"{name}: no GGUF name in a {sheet.name} model of {n_layer} layers")
    return place


def hf_to_gguf_name(sheet: Architecture, name: str, n_layer: int, blocks: Blocks = None) -> str:
    """blocks: as place_of. Errors: MtprefError for a name without a place"""
    return _placed(sheet, name, n_layer, blocks).name


def gguf_to_hf_name(sheet: Architecture, name: str, n_layer: int, blocks: Blocks = None) -> str:
    """blocks: as place_of. Errors: MtprefError for a name that no checkpoint has"""
    for table, tensor, il in _gguf_places(sheet, name, n_layer, blocks):
        numbers = {} if il is None else {"il": il, "i": il - n_layer}
        return table.prefix.format(**numbers) + tensor.hf
    raise MtprefError(f"{name}: no checkpoint name in a {sheet.name} model of {n_layer} layers")


def tensor_of(sheet: Architecture, name: str, n_layer: int) -> Tensor:
    """The data sheet's tensor of a GGUF name that checkpoints have, too. Errors: MtprefError for another"""
    for _, tensor, _ in _gguf_places(sheet, name, n_layer):
        return tensor
    raise MtprefError(f"{name}: not a tensor of a {sheet.name} model of {n_layer} layers")


def _gguf_places(
    sheet: Architecture, name: str, n_layer: int, blocks: Blocks = None
) -> Iterator[tuple[_Table, Tensor, int | None]]:
    match = re.fullmatch(r"blk\.(\d{1,6})\.(.+)", name)
    il, short = (int(match[1]), match[2]) if match else (None, name)
    for table in _tables(sheet):
        if (table.kind == "root") == (il is None) and (il is None or (il < n_layer) == (table.kind == "layer")):
            if table.kind == "layer" and blocks is not None and il is not None:
                table = _table_of(sheet, blocks[il].name)
            everything = (*table.tensors.values(), *table.stacks.values())
            yield from ((table, tensor, il) for tensor in everything if tensor.name == short)


def state_to_gguf(
    sheet: Architecture, state: Mapping[str, np.ndarray], values: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """A whole state dict under GGUF names and conventions, in the order given. values: n_layer, and what shapes need

    Experts become stacks, in the order of their numbers.
    """
    made: dict[str, np.ndarray] = {}
    experts: dict[str, dict[int, np.ndarray]] = {}
    for name, x in state.items():
        place = _placed(sheet, name, values["n_layer"])
        if place.expert is None:
            made[place.name] = place.tensor.change.to_gguf(x, values)
        else:
            experts.setdefault(place.name, {})[place.expert] = x
    return made | {name: np.stack([found[e] for e in sorted(found)]) for name, found in experts.items()}


def state_from_gguf(
    sheet: Architecture, tensors: Mapping[str, np.ndarray], values: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """A whole GGUF tensor table (dequantised) under checkpoint names and conventions, experts each by itself."""
    n_layer = values["n_layer"]
    state: dict[str, np.ndarray] = {}
    for name, x in tensors.items():
        hf_name = gguf_to_hf_name(sheet, name, n_layer)
        if EXPERT in hf_name:
            state |= {hf_name.replace(EXPERT, str(e)): matrix for e, matrix in enumerate(x)}
        else:
            state[hf_name] = tensor_of(sheet, name, n_layer).change.from_gguf(x, values)
    return state
