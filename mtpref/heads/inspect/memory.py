"""What the MTP head costs in memory, from the header alone: the sums of mtpref/engine/memory.py over a file's keys."""

from typing import Any

from mtpref.architectures import D2T, Block
from mtpref.base.errors import MtprefError
from mtpref.engine.memory import memory_of
from mtpref.files.gguf import GgufFile
from mtpref.heads.inspect.layers import Layout
from mtpref.spec.config import Metadata, Values
from mtpref.spec.state import StateSpec


def head_memory(f: GgufFile, layout: Layout, head: dict[str, Any]) -> dict[str, Any] | None:
    """Bytes by state of the head; None where the head is not whole, or a key is missing.

    file             of the head's tensors in the file; what it shares with a trunk in the same file is the trunk's
    absent, off, on  weights (that a run reads), kv_f16 and kv_f32 (of one token), pending (the hidden row)
    recurrent_state  one copy of the trunk's recurrent state: what a snapshot costs, whoever drafts
    """
    sheet = layout.sheet
    if head["status"] != "present" or sheet is None or sheet.head is None:
        return None
    shown = [t for block in head["blocks"] for t in block["tensors"] if t["source"] == "own" or not head["trunk"]]
    names = {t["from"] for t in shown}
    n_bytes = sum(f.tensors[name].n_bytes for name in (*sorted(names), D2T.name) if name in f.tensors)
    n_mtp, by_name = len(head["blocks"]), {block.name: block for block in sheet.layers.all_blocks()}
    n_trunk = len(layout.kinds) - n_mtp
    kinds = layout.kinds[:n_trunk] if head["trunk"] else []
    try:
        values = sheet.values(Metadata(f.kv, f.label))
        trunk = [s for il, kind in enumerate(kinds) for s in _state(by_name[kind], values.at(il), "F32")]
        n_hidden = sheet.head.n_hidden.value(values) or values["n_embd"]
        at, block = [values.at(n_trunk + i) for i in range(n_mtp)], sheet.head.block
        cells = {kv_type: [s for v in at for s in _state(block, v, kv_type)] for kv_type in ("F16", "F32")}
        half, whole = (memory_of(n_bytes, specs, trunk, n_hidden) for specs in cells.values())
    except MtprefError:
        return None
    on = {"weights": n_bytes, "kv_f16": half.kv_cell, "kv_f32": whole.kv_cell, "pending": whole.pending}
    nothing = dict.fromkeys(on, 0)
    return {"file": n_bytes, "absent": nothing, "off": nothing, "on": on, "recurrent_state": whole.recurrent}


def _state(block: Block, values: Values, kv_type: str) -> tuple[StateSpec, ...]:
    """What a sequence keeps for a block."""
    return tuple(s for kind in (block.mixer, block.ffn) for s in kind.state(kind.configure(values), kv_type))
