"""What the MTP head costs in memory, from the header alone.

Sums (n_head_kv, n_embd_head, ... as in tensor_names.SYMBOLS):
    KV of one token        2 * n_head_kv * n_embd_head values, 2 bytes each in F16 and BF16, 4 in F32
    recurrent state        for each DeltaNet layer (d_conv - 1) * (2 * n_k_head + n_v_head) * d_state
                           + n_v_head * d_state^2 values of float32; roll back by snapshot keeps one more of it for
                           each token of a draft
"""

from typing import Any

from mtpref.gguf import GgufFile
from mtpref.inspect.layers import Layout
from mtpref.tensor_names import D2T

STATES = ("absent", "off", "on")


def head_memory(f: GgufFile, layout: Layout, head: dict[str, Any]) -> dict[str, Any] | None:
    """Bytes by state of the head; None where the head is not whole, or a key is missing.

    file             of the head's tensors in the file; what it shares with a trunk in the same file is the trunk's
    absent, off, on  weights (that a run reads), kv_f16 and kv_f32 (of one token), pending (the hidden row)
    recurrent_state  one copy of the trunk's recurrent state: what a snapshot costs, whoever drafts
    """
    if head["status"] != "present":
        return None
    v = layout.values
    try:
        cell = 2 * v["n_head_kv"] * v["n_embd_head"]
        window = (v["d_conv"] - 1) * (2 * v["n_k_head"] + v["n_v_head"]) * v["d_state"]
        one = 4 * (window + v["n_v_head"] * v["d_state"] ** 2)
        pending = 4 * v["n_embd"]
    except KeyError:
        return None
    shown = [t for block in head["blocks"] for t in block["tensors"] if t["source"] == "own" or not head["trunk"]]
    names = {t["from"] for t in shown}
    n_bytes = sum(f.tensors[name].n_bytes for name in (*sorted(names), D2T.name) if name in f.tensors)
    nothing = {"weights": 0, "kv_f16": 0, "kv_f32": 0, "pending": 0}
    n_mtp = len(head["blocks"])
    on = {"weights": n_bytes, "kv_f16": 2 * cell * n_mtp, "kv_f32": 4 * cell * n_mtp, "pending": pending}
    return {
        "file": n_bytes,
        "absent": nothing,
        "off": nothing,
        "on": on,
        "recurrent_state": one * layout.kinds.count("delta_net") if head["trunk"] else 0,
    }
