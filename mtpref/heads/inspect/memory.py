"""What the MTP head costs in memory, from the header alone.

Sums over what the layer kinds say of their states:
    KV of one token        the positional arrays of the head's block, 2 bytes a value in F16 and BF16, 4 in F32
    recurrent state        the other arrays of the trunk's blocks, float32; roll back by snapshot keeps one more of it
                           for each token of a draft
"""

from typing import Any

from mtpref.architectures import D2T, Block
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import GgufFile
from mtpref.heads.inspect.layers import Layout
from mtpref.spec.config import Metadata, Values


def head_memory(f: GgufFile, layout: Layout, head: dict[str, Any]) -> dict[str, Any] | None:
    """Bytes by state of the head; None where the head is not whole, or a key is missing.

    file             of the head's tensors in the file; what it shares with a trunk in the same file is the trunk's
    absent, off, on  weights (that a run reads), kv_f16 and kv_f32 (of one token), pending (the hidden row)
    recurrent_state  one copy of the trunk's recurrent state: what a snapshot costs, whoever drafts
    """
    if head["status"] != "present":
        return None
    sheet = layout.sheet
    if sheet is None or sheet.head is None:
        return None
    try:
        values = sheet.values(Metadata(f.kv, f.label))
        cells = {kv: _bytes(sheet.head.block, values, kv, positional=True) for kv in ("F16", "F32")}
        by_name = {block.name: _bytes(block, values, "F32", positional=False) for block in sheet.layers.all_blocks()
                   if block.name in layout.kinds}  # fmt: skip
        pending = 4 * values["n_embd"]
    except MtprefError:
        return None
    shown = [t for block in head["blocks"] for t in block["tensors"] if t["source"] == "own" or not head["trunk"]]
    names = {t["from"] for t in shown}
    n_bytes = sum(f.tensors[name].n_bytes for name in (*sorted(names), D2T.name) if name in f.tensors)
    nothing = {"weights": 0, "kv_f16": 0, "kv_f32": 0, "pending": 0}
    n_mtp = len(head["blocks"])
    on = {"weights": n_bytes, "kv_f16": cells["F16"] * n_mtp, "kv_f32": cells["F32"] * n_mtp, "pending": pending}
    return {
        "file": n_bytes,
        "absent": nothing,
        "off": nothing,
        "on": on,
        "recurrent_state": sum(by_name.get(kind, 0) for kind in layout.kinds) if head["trunk"] else 0,
    }


def _bytes(block: Block, values: Values, kv_type: str, *, positional: bool) -> int:
    """Bytes of one cell of a block's positional arrays, or of its others."""
    specs = block.mixer.state(block.mixer.configure(values), kv_type)
    specs += block.ffn.state(block.ffn.configure(values), kv_type)
    return sum(s.n_bytes for s in specs if s.positional == positional)
