"""What an MTP head costs in memory: absent, in the file but off, and on.

Owns the sums over what layers keep, and over a state; heads/inspect/memory.py asks for them from a file's header alone.
A test holds both, and what a run has allocated, to the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mtpref import spec
from mtpref.spec.state import ModelState, StateSpec

if TYPE_CHECKING:  # a header's sums need no model
    from mtpref.engine.model import Model
    from mtpref.engine.weights import MtpWeights

SNAPSHOT, REPLAYS = "snapshot", ("replay", "replay-with-correction")


@dataclass(frozen=True)
class HeadMemory:
    """Bytes. All are 0 for a head that is absent or off: it is not read then, and has no cells.

    weights     the head's own; parts that it shares with the trunk cost nothing
    kv_cell     one cell (a token) of its KV cache
    recurrent   one copy of the trunk's recurrent state, which roll back keeps: see `rollback`
    pending     the hidden row that the next draft starts from
    """

    weights: int = 0
    kv_cell: int = 0
    recurrent: int = 0
    pending: int = 0

    def kv(self, n_cells: int) -> int:
        return n_cells * self.kv_cell

    def rollback(self, strategy: str, n_max: int) -> int:
        """What drafts of up to n_max tokens keep beside the one state that plain decoding has.

        snapshot: the state after each of the n_max tokens; replay: one checkpoint; two-phase: nothing
        """
        return self.recurrent * (n_max if strategy == SNAPSHOT else strategy in REPLAYS)

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def head_memory(model: Model) -> HeadMemory:
    """The sums for a loaded model."""
    if not model.heads:
        return HeadMemory()
    arrays = [array for head in model.heads for array in _arrays(head.weights)]
    unique = {array.__array_interface__["data"][0]: array for array in arrays}  # token_embd may serve as output too
    weights = sum(array.nbytes for array in unique.values())
    heads = [s for head in model.heads for layer, _ in head.stack for s in layer.state(model.kv_type_draft)]
    trunk = [s for layer in model.layers for s in layer.state(model.kv_type)]
    return memory_of(weights, heads, trunk, model.heads[0].n_hidden)


def memory_of(weights: int, heads: Iterable[StateSpec], trunk: Iterable[StateSpec], n_hidden: int) -> HeadMemory:
    """The sums. weights: bytes; heads, trunk: what a sequence keeps for each of their layers"""
    recurrent = sum(s.n_bytes for s in trunk if not s.positional)
    return HeadMemory(weights, sum(s.n_bytes for s in heads), recurrent, 4 * n_hidden)


def measured(state: ModelState) -> dict[str, int]:
    """Bytes that a state has allocated: the head's KV, the trunk's recurrent arrays, planes of its last batch."""
    recurrent = [layer.arrays[s.name] for layer in state.layers for s in layer.specs if not s.positional]
    return {
        "kv": sum(array.nbytes for head in state.heads for array in head.layer.arrays.values()),
        "recurrent": sum(array.nbytes for array in recurrent),
        "planes": sum(array.nbytes for layer in state.layers for array in layer.planes.values()),
        "pending": state.pending_h.nbytes,
    }


def _arrays(head: MtpWeights) -> list[Any]:
    """The arrays of a head's own tensors."""
    names = ("enorm", "hnorm", "eh_proj", "embed_tokens", "shared_head_norm", "shared_head_head")
    own = [getattr(head, name) for name in names if name not in head.borrowed]
    d2t = [] if head.d2t is None else [head.d2t]
    blocks = [part for block in (*head.before, head.block) for part in block.values()]
    leave = [] if head.post_projection is None else [head.post_projection]
    return [_data(part) for part in (*own, *blocks, *leave, *d2t) if not _is_empty(part)]


def _is_empty(part: Any) -> bool:
    """What an assistant has nothing of."""
    return not isinstance(part, spec.Matrix | spec.Stack) and part.size == 0


def _data(part: Any) -> Any:
    return part.raw if isinstance(part, spec.Matrix | spec.Stack) else part
