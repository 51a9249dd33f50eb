"""Every tensor of the tiny model altered by itself, as real files, and what `mtpref check` may say of each.

The rule: what is said names the part that the tensor belongs to, or says that it cannot tell which part it is. Nothing
is said of the head where the trunk is altered, nor of the trunk where the head is. Saying nothing is allowed: a head
that is a little worse than it was cannot be told from one file. FOUND lists what must be said at least.
"""

from pathlib import Path

import numpy as np

from mtpref.heads.check.findings import Finding
from mtpref.spec.quants import dequantize
from tests.broken_heads import HEAD, TINY, edited, write
from tests.gguf_copy import copy_of

UNCLEAR = {"head-not-judged", "not-finite-run"}
HEAD_UNCLEAR = {"head-unclear", "head-useless", "head-ignores-trunk", "constant-draft"} | UNCLEAR
TRUNK_UNCLEAR = {"trunk-unclear", "trunk-useless", "trunk-odd", "trunk-behind"} | UNCLEAR
ATTENTION = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm")
FFN = ("post_attention_norm", "ffn_gate", "ffn_up", "ffn_down")
# A word of a finding's `what` -> the tensors of a block that it stands for.
PARTS = {
    "the attention (": ATTENTION,
    "what the attention looks at": ("attn_norm", "attn_q", "attn_k", "attn_q_norm", "attn_k_norm"),
    "the feed-forward": FFN,
    "the embedding half": ("nextn.enorm", "nextn.eh_proj"),
    "the hidden half": ("nextn.hnorm", "nextn.eh_proj"),
    "all norms of the head": ("nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm", "attn_norm", "attn_q_norm",
                              "attn_k_norm", "post_attention_norm"),
    "the layer's norms": ("attn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm"),
    "enorm and hnorm": ("nextn.enorm", "nextn.hnorm"),
}  # fmt: skip


def values() -> dict[str, np.ndarray]:
    _, tensors = copy_of(TINY)
    return {
        name: dequantize(kind, np.ascontiguousarray(data).reshape(-1).view(np.uint8), shape)
        for name, kind, shape, data in tensors
    }


def to_nothing(x: np.ndarray) -> np.ndarray:
    """Three values: what is near zero, and the two signs of what is not."""
    step = np.abs(x).max() / 1.5
    return np.round(x / step) * step


def faults_of(name: str, all_values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Label -> the tensor's values altered."""
    x = all_values[name]
    out = {"zeroed": x * 0, "rows reversed": x[::-1], "a tenth": x * 0.1, "tenfold": x * 10}
    if x.ndim == 2:
        random = np.random.Generator(np.random.Philox(1))
        out["columns permuted"] = x[:, random.permutation(x.shape[1])]
        out["to nothing"] = to_nothing(x)
        out["noise"] = random.normal(0, float(x.std()), x.shape)
        if x.shape[0] == x.shape[1]:
            out["transposed"] = x.T
    else:
        out |= {"1 added": x + 1, "1 taken": x - 1, "ones": np.ones_like(x)}
    neighbour = _neighbour(name, all_values)
    if neighbour is not None:
        out["the neighbour's"] = neighbour
    return out


def _neighbour(name: str, all_values: dict[str, np.ndarray]) -> np.ndarray | None:
    if not name.startswith("blk."):
        return None
    _, il, kind = name.split(".", 2)
    others = (f"blk.{i}.{kind}" for i in (int(il) - 1, int(il) + 1))
    return next(
        (all_values[o] for o in others if o in all_values and all_values[o].shape == all_values[name].shape), None
    )


def altered(path: Path, name: str, x: np.ndarray) -> Path:
    return write(path, edited(lambda n: n == name, lambda _: x))


def is_told_rightly(name: str, finding: Finding) -> bool:
    """Whether a warning or failure is allowed to be said of a file in which this tensor is altered."""
    what, short = finding.what, name.removeprefix(HEAD).removesuffix(".weight")
    if name in what:
        return True
    if not name.startswith(HEAD):
        il = name.split(".")[1] if name.startswith("blk.") else ""
        of_norms = finding.id == "trunk-norm-convention" and name.endswith("norm.weight")
        return finding.id in TRUNK_UNCLEAR or of_norms or (bool(il) and what.startswith(f"blk.{il} "))
    if finding.id in HEAD_UNCLEAR or "several at once" in finding.text:
        return True
    if finding.id == "norm-convention" and what.endswith(f" {short.removeprefix('nextn.')}"):
        return True
    return any(word in what and short in tensors for word, tensors in PARTS.items())


# (tensor, fault) -> ids of which one at least must be said: the faults that one file can show, a few of each kind.
FOUND = {
    ("blk.4.nextn.enorm.weight", "1 added"): {"norm-convention"},
    ("blk.4.nextn.hnorm.weight", "1 taken"): {"norm-convention"},
    ("blk.4.nextn.eh_proj.weight", "rows reversed"): {"head-useless"},
    ("blk.4.nextn.eh_proj.weight", "tenfold"): {"head-unclear"},
    ("blk.4.nextn.eh_proj.weight", "to nothing"): {"tensor-few-values"},
    ("blk.4.attn_norm.weight", "tenfold"): {"head-unclear"},
    ("blk.4.attn_q.weight", "columns permuted"): {"part-idle"},
    ("blk.4.attn_q.weight", "noise"): {"random-matrix"},
    ("blk.4.attn_k.weight", "rows reversed"): {"part-idle"},
    ("blk.4.attn_v.weight", "the neighbour's"): {"tensor-doubled"},
    ("blk.4.attn_output.weight", "transposed"): {"part-idle", "part-harmful"},
    ("blk.4.attn_q_norm.weight", "1 added"): {"norm-convention"},
    ("blk.4.post_attention_norm.weight", "tenfold"): {"part-harmful"},
    ("blk.4.ffn_up.weight", "a tenth"): {"head-unclear"},
    ("blk.4.ffn_down.weight", "columns permuted"): {"part-harmful", "part-idle"},
    ("token_embd.weight", "columns permuted"): {"trunk-useless"},
    ("token_embd.weight", "rows reversed"): {"trunk-useless"},
    ("token_embd.weight", "to nothing"): {"tensor-few-values"},
    ("blk.0.attn_qkv.weight", "rows reversed"): {"trunk-part-harmful"},
    ("blk.0.attn_gate.weight", "transposed"): {"trunk-part-harmful"},
    ("blk.0.post_attention_norm.weight", "1 added"): {"trunk-unclear", "trunk-part-harmful"},
    ("blk.2.ffn_down.weight", "zeroed"): {"tensor-zero"},
    ("blk.3.attn_output.weight", "the neighbour's"): {"tensor-doubled"},
    ("blk.3.post_attention_norm.weight", "tenfold"): {"trunk-part-harmful"},
    ("output_norm.weight", "1 taken"): {"trunk-norm-convention"},
}
