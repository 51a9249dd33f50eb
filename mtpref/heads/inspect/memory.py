"""What the MTP head costs in memory, from the header alone: the sums of mtpref/engine/memory.py over a file's keys."""

from dataclasses import dataclass
from typing import Any

from mtpref.architectures import D2T, Block
from mtpref.base.errors import MtprefError
from mtpref.engine.memory import memory_of
from mtpref.files.gguf import GgufFile
from mtpref.heads.inspect.layers import Layout
from mtpref.spec.config import Metadata, Values
from mtpref.spec.state import StateSpec


@dataclass(frozen=True)
class Sums:
    """What states and weights of a file take, in bytes.

    weights           of the head's tensors that a run reads; of a stand-alone head its own copy of what is shared too
    trunk_cell        KV of a token, all trunk layers, by KV type    head_cell: the same of the head
    recurrent         one copy of the trunk's recurrent state        pending: the head's hidden row
    """

    weights: int
    trunk_cell: dict[str, int]
    head_cell: dict[str, int]
    recurrent: int
    pending: int


KV_TYPES = ("F16", "F32")


def sums(f: GgufFile, layout: Layout, head: dict[str, Any]) -> Sums | None:
    """The sums of a file whose head is whole, or absent; None for another, and where a key is missing."""
    sheet = layout.sheet
    if head["status"] not in ("present", "absent") or sheet is None:
        return None
    shown = [t for block in head["blocks"] for t in block["tensors"] if t["source"] == "own" or not head["trunk"]]
    names = {t["from"] for t in shown}
    n_bytes = sum(f.tensors[name].n_bytes for name in (*sorted(names), D2T.name) if name in f.tensors)
    n_mtp, by_name = len(head["blocks"]), {block.name: block for block in sheet.layers.all_blocks()}
    n_trunk = len(layout.kinds) - n_mtp
    kinds = layout.kinds[:n_trunk] if layout.has_trunk else []
    try:
        values = sheet.values(Metadata(f.kv, f.label))
        trunk = {
            kv: [s for il, k in enumerate(kinds) for s in _state(by_name[k], values.at(il), kv)] for kv in KV_TYPES
        }
        at = [values.at(n_trunk + i) for i in range(n_mtp)]
        own = {kv: [s for v in at for s in _state(sheet.head.block, v, kv)] if sheet.head else [] for kv in KV_TYPES}
        n_hidden = (sheet.head.n_hidden.value(values) or values["n_embd"]) if sheet.head and n_mtp else 0
    except MtprefError:
        return None
    one = {kv: memory_of(n_bytes, own[kv], trunk[kv], n_hidden) for kv in KV_TYPES}
    cells = {kv: sum(s.n_bytes for s in trunk[kv] if s.positional) for kv in KV_TYPES}
    whole = one["F32"]
    return Sums(n_bytes, cells, {kv: one[kv].kv_cell for kv in KV_TYPES}, whole.recurrent, whole.pending)


def head_memory(f: GgufFile, layout: Layout, head: dict[str, Any]) -> dict[str, Any] | None:
    """Bytes by state of the head; None where the head is not whole, or a key is missing.

    file             of the head's tensors in the file; what it shares with a trunk in the same file is the trunk's
    absent, off, on  weights (that a run reads), kv_f16 and kv_f32 (of one token), pending (the hidden row)
    recurrent_state  one copy of the trunk's recurrent state: what a snapshot costs, whoever drafts
    """
    found = sums(f, layout, head) if head["status"] == "present" else None
    if found is None:
        return None
    cell = found.head_cell
    on = {"weights": found.weights, "kv_f16": cell["F16"], "kv_f32": cell["F32"], "pending": found.pending}
    nothing = dict.fromkeys(on, 0)
    return {"file": found.weights, "absent": nothing, "off": nothing, "on": on, "recurrent_state": found.recurrent}


def _state(block: Block, values: Values, kv_type: str) -> tuple[StateSpec, ...]:
    """What a sequence keeps for a block."""
    return tuple(s for kind in (block.mixer, block.ffn) for s in kind.state(kind.configure(values), kv_type))
