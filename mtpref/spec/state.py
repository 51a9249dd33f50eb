"""Model state: everything that a sequence has left behind in a model, as one object.

Owns the arrays (KV cells, conv windows, recurrent matrices, MTP KV, pending hidden), and how they are
checkpointed, restored, trimmed and compared. It must not know why the loop does any of this, nor what the
arrays mean.

Positional arrays have one cell per position and are cut by their length; recurrent arrays have no past of
their own, so they need a checkpoint, or planes: their values after each of the last tokens of a batch.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.base.settings import Bounds, OneOf

KV_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.uint16),
    "BF16": np.dtype(np.uint16),
}
KV_POISON = {"F32": np.float32(np.nan), "F16": np.uint16(0x7E00), "BF16": np.uint16(0x7FC0)}
MIN_CELLS = 64
KvType = Annotated[str, OneOf(tuple(KV_DTYPES))]
Positions = Annotated[int, Bounds(0, (1 << 31) - 1)]  # 0: as many as the model was made for


@dataclass(frozen=True)
class StateSpec:
    """One array of a layer's state.

    positional  shape is that of one cell; otherwise the array starts at 0 and is carried from token to token
    stride      of positional arrays: tokens that a cell stands for, which is there once they all are
    kv_type     the type of its values: the cache's, or float32
    """

    name: str  # llama.cpp's: cache_k, cache_v, cache_r, cache_s
    shape: tuple[int, ...]
    positional: bool
    kv_type: str = "F32"
    stride: int = 1

    @property
    def n_bytes(self) -> int:
        """Bytes of one cell, or of the array that is carried."""
        return math.prod(self.shape) * KV_DTYPES[self.kv_type].itemsize

    def n_cells(self, n_tokens: int) -> int:
        """The cells of so many positions."""
        return n_tokens // self.stride


@dataclass
class LayerState:
    """The arrays of one layer; `planes` hold the recurrent ones after each of the last tokens of a batch: an array, or
    an object with its shape, nbytes and [i] that makes a plane when it is asked for one."""

    specs: tuple[StateSpec, ...]
    arrays: dict[str, NDArray] = field(default_factory=dict)
    planes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for spec in self.specs:
            shape: tuple[int, ...] = (0, *spec.shape) if spec.positional else spec.shape
            self.arrays[spec.name] = np.zeros(shape, KV_DTYPES[spec.kv_type])

    def branch(self) -> "LayerState":
        """The same arrays, in a record of its own."""
        other = copy(self)
        other.arrays, other.planes = dict(self.arrays), dict(self.planes)
        return other

    def reserve(self, n_cells: int, poison: bool) -> None:
        """Make room for n_cells positions; room that was never written is NaN where `poison` says so."""
        for spec in self.specs:
            old = self.arrays[spec.name]
            needed = spec.n_cells(n_cells)
            if not spec.positional or old.shape[0] >= needed:
                continue
            capacity = max(MIN_CELLS // spec.stride, 1 << (needed - 1).bit_length())
            new = np.empty((capacity, *spec.shape), old.dtype)
            new[: old.shape[0]] = old
            if poison:
                new[old.shape[0] :] = KV_POISON[spec.kv_type]
            self.arrays[spec.name] = new

    def poison_from(self, n_cells: int) -> None:
        for spec in self.specs:
            if spec.positional:
                self.arrays[spec.name][spec.n_cells(n_cells) :] = KV_POISON[spec.kv_type]


@dataclass
class HeadState:
    """What a sequence keeps for one MTP head: cell c of its layer is position start + c.

    held  hidden rows that the head is still to be given (S113), None where it is never late
    """

    layer: LayerState
    poison: bool = False
    n_cells: int = 0
    start: int = 0
    held: NDArray[np.float32] | None = None

    @property
    def pos(self) -> int:
        """The position that the next cell will hold."""
        return self.start + self.n_cells

    @property
    def lengths(self) -> tuple[int, int]:
        return self.n_cells, self.start

    def reserve(self, n_tokens: int) -> None:
        """Room for n_tokens more cells."""
        self.layer.reserve(self.n_cells + n_tokens, self.poison)

    def trim(self, pos: int) -> None:
        """Cut the cells at position `pos` and after it."""
        self.n_cells = min(self.n_cells, max(0, pos - self.start))
        if self.n_cells == 0:
            self.start = 0  # an empty cache is the same whatever it held
        if self.poison:
            self.layer.poison_from(self.n_cells)


@dataclass(frozen=True)
class Checkpoint:
    """What `ModelState.restore` needs: lengths and copies of whatever has no past of its own.

    heads  (n_cells, start) of each head
    held   the rows that each head holds back
    """

    n_past: int
    heads: tuple[tuple[int, int], ...]
    pending_h: NDArray[np.float32]
    recurrent: tuple[dict[str, NDArray], ...]
    held: tuple[NDArray[np.float32] | None, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Memory of the copies: the same at every position."""
        return self.pending_h.nbytes + sum(a.nbytes for arrays in self.recurrent for a in arrays.values())

    def without_head(self) -> "Checkpoint":
        """The same, for heads whose cells have all been cut."""
        return replace(self, heads=tuple((0, 0) for _ in self.heads))


class ModelState:
    """One sequence's state.

    n_past     positions 0 .. n_past - 1 are in the trunk
    heads      of each MTP head: its cells
    pending_h  the trunk's hidden row of position n_past - 1, which the next draft starts from: one for all heads
    """

    def __init__(
        self,
        layers: Sequence[tuple[StateSpec, ...]],
        heads: Sequence[tuple[StateSpec, ...]],
        n_hidden: int,
        n_ctx: int,
        *,
        poison: bool = False,
    ) -> None:
        self.n_ctx = n_ctx
        self.poison = poison
        self.layers = [LayerState(specs) for specs in layers]
        self.heads = [HeadState(LayerState(specs), poison) for specs in heads]
        self.n_past = 0
        self.pending_h = np.zeros(n_hidden, np.float32)

    def reserve(self, n_tokens: int) -> None:
        """Room for n_tokens more trunk positions.

        Errors  MtprefError where the context is full
        """
        needed = self.n_past + n_tokens
        if needed > self.n_ctx:
            raise MtprefError(
                f"context: {needed} positions needed, expected at most {self.n_ctx}; "
                "use a shorter prompt or a larger `n_ctx`"
            )
        for layer in self.layers:
            layer.reserve(needed, self.poison)

    def clear(self) -> None:
        """An empty sequence again; the pending hidden is left to the caller."""
        for layer in self.layers:
            for spec in layer.specs:
                if not spec.positional:
                    layer.arrays[spec.name] = np.zeros(spec.shape, KV_DTYPES[spec.kv_type])
            layer.planes = {}
        self._cut(0)
        self.trim_heads(0)
        for head in self.heads:
            head.held = None

    # --------------------------------------------------------------------------------- roll back

    def checkpoint(self) -> Checkpoint:
        """Copy what cannot be recovered by cutting."""
        mark = self.mark()
        recurrent = tuple({name: array.copy() for name, array in arrays.items()} for arrays in mark.recurrent)
        return replace(mark, recurrent=recurrent)

    def mark(self) -> Checkpoint:
        """A checkpoint that costs nothing: it refers to the recurrent arrays instead of copying them.

        Rule     a pass replaces recurrent arrays and never writes into them, so a mark stays right; but a mark may
                 keep all planes of its batch alive, so it is for the short run
        """
        recurrent = tuple(
            {s.name: layer.arrays[s.name] for s in layer.specs if not s.positional} for layer in self.layers
        )
        held = tuple(head.held for head in self.heads)  # replaced by every pass, never written into
        return Checkpoint(self.n_past, tuple(h.lengths for h in self.heads), self.pending_h.copy(), recurrent, held)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Back to the checkpoint, which stays usable. Cells after it are cut.

        Errors  ValueError where cells of the checkpoint have been cut: they cannot be brought back
        """
        own = [head.lengths for head in self.heads]
        pairs = zip(checkpoint.heads, own, strict=True)
        has_heads = all(n == 0 or (start == own_start and n <= own_n) for (n, start), (own_n, own_start) in pairs)
        if checkpoint.n_past > self.n_past or not has_heads:
            raise ValueError(
                f"checkpoint of {checkpoint.n_past} positions and {[n for n, _ in checkpoint.heads]} MTP cells, "
                f"the state holds {self.n_past} and {[n for n, _ in own]}"
            )
        for layer, saved in zip(self.layers, checkpoint.recurrent, strict=True):
            for name, array in saved.items():
                layer.arrays[name] = array.copy()
            layer.planes = {}
        self._cut(checkpoint.n_past)
        for head, (n_cells, start) in zip(self.heads, checkpoint.heads, strict=True):
            head.start = start
            head.trim(start + n_cells)
        for head, held in zip(self.heads, checkpoint.held, strict=False):
            head.held = held
        self.pending_h = checkpoint.pending_h.copy()

    def choose_plane(self, n_drop: int) -> None:
        """Forget the last n_drop tokens of the last batch: cut cells, take the planes of the token before
        them.

        Errors  MtprefError where the last batch kept fewer planes (a second roll back without a batch
                between)
        """
        if n_drop == 0:
            return
        for layer in self.layers:
            for name, planes in layer.planes.items():
                if n_drop >= planes.shape[0]:
                    raise MtprefError(
                        f"roll back: {n_drop} tokens, expected fewer than the {planes.shape[0]} "
                        "planes of the last batch; use `Options.rollback` replay"
                    )
                layer.arrays[name] = planes[planes.shape[0] - 1 - n_drop].copy()
            if not layer.planes and any(not s.positional for s in layer.specs):
                raise MtprefError("roll back: the last batch kept no planes; use `Options.rollback` replay")
            layer.planes = {}
        self._cut(self.n_past - n_drop)

    def branch(self) -> "ModelState":
        """The same sequence, which can go on by itself: passes over the one leave the other as it is, as long as that
        one runs nothing (cells after n_past are shared, and whoever runs last has written them)."""
        other = copy(self)
        other.layers = [layer.branch() for layer in self.layers]
        other.heads = [replace(head, layer=head.layer.branch()) for head in self.heads]
        return other

    def trim_heads(self, pos: int) -> None:
        """Cut every head's cells at position `pos` and after it."""
        for head in self.heads:
            head.trim(pos)

    def _cut(self, n_past: int) -> None:
        self.n_past = n_past
        if self.poison:
            for layer in self.layers:
                layer.poison_from(n_past)

    # ----------------------------------------------------------------------------------- compare

    def live_arrays(self) -> Iterator[tuple[str, NDArray]]:
        """Every array up to its length, by llama.cpp's name with the layer number ("cache_s_l3")."""
        n_layer = len(self.layers)
        lengths = [self.n_past] * n_layer + [head.n_cells for head in self.heads]
        for il, layer in enumerate([*self.layers, *(head.layer for head in self.heads)]):
            length = lengths[il]
            for spec in layer.specs:
                array = layer.arrays[spec.name]
                yield f"{spec.name}_l{il}", array[: spec.n_cells(length)] if spec.positional else array
        yield "pending_h", self.pending_h
        for i, head in enumerate(self.heads):
            if head.held is not None:
                yield f"held_{i}", head.held

    def digest(self) -> str:
        """SHA-256 over lengths and live bits: equal digests mean equal state."""
        lengths = [self.n_past, *(n for head in self.heads for n in head.lengths)]
        sha = hashlib.sha256(" ".join(map(str, lengths)).encode())
        for name, array in self.live_arrays():
            sha.update(name.encode())
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()
