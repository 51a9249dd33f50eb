"""Family G, the trunk's layers. These change the text."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.faults.fault import Fault, Signature, all_ops
from mtpref.spec.ops import OpEntries, Ops

F32 = NDArray[np.float32]


def _eps_times_n(ops: Ops) -> OpEntries:
    return {"l2_norm": lambda x, eps: ops.l2_norm(x, eps * x.shape[-1])}


L2_EPS = Fault(
    id="G12-l2-eps",
    title="The trunk's L2 norm has epsilon times n",
    mechanism="The norm of queries and keys in a DeltaNet layer is built from an RMS norm, whose epsilon is inside a "
    "mean: it counts n times.",
    bug_type="WRONG_RULE",
    replaces=("ops.l2_norm",),
    predicted=Signature("q_conv_predelta", "the same, unless keys are tiny"),
    needs=(),
    apply_recipe=all_ops(_eps_times_n),
)


def _grouped(ops: Ops) -> OpEntries:
    def delta_rule(q: F32, k: F32, v: F32, *rest: Any) -> Any:
        n = v.shape[1] // q.shape[1]
        return ops.delta_rule(np.repeat(q, n, axis=1), np.repeat(k, n, axis=1), v, *rest)

    return {"delta_rule": delta_rule}


V_HEADS_GROUPED = Fault(
    id="G13-v-heads-grouped",
    title="The trunk's value heads take the key head of their group",
    mechanism="In a DeltaNet layer value head h uses key head h div (H_v / H_k), the checkpoint's order; the file's "
    "is h mod H_k.",
    bug_type="WRONG_LAYOUT",
    replaces=("ops.delta_rule",),
    predicted=Signature("attn_output", "of another text: the trunk is broken", text=False),
    needs=(),
    apply_recipe=all_ops(_grouped),
)
