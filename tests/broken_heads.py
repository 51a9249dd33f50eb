"""The tiny model broken in each way of the catalogue's W group, as real files, and healthy in every type."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mtpref.files.gguf import write_gguf
from mtpref.spec.quants import dequantize, quantize
from tests.gguf_copy import Pairs, Tensors, copy_of

ROOT = Path(__file__).parent.parent
TINY = ROOT / "mtpref" / "data" / "tiny.gguf"
HEAD = "blk.4."
HEAD_NORMS = (
    "nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm",
    "attn_norm", "post_attention_norm", "attn_q_norm", "attn_k_norm",
)  # fmt: skip
Change = Callable[[Pairs, Tensors], tuple[Pairs, Tensors]]


def write(path: Path, change: Change, source: Path = TINY) -> Path:
    kv, tensors = change(*copy_of(source))
    write_gguf(path, kv, tensors)
    return path


def edited(
    names: Callable[[str], bool], edit: Callable[[np.ndarray], np.ndarray], type_name: str | None = None
) -> Change:
    """The values of some tensors changed, in their own type or another."""

    def change(kv: Pairs, tensors: Tensors) -> tuple[Pairs, Tensors]:
        out = []
        for name, kind, shape, data in tensors:
            if names(name):
                raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
                x = np.asarray(edit(dequantize(kind, raw, shape)), np.float32)
                kind, shape = type_name or kind, x.shape
                data = np.ascontiguousarray(quantize(kind, x)).reshape(-1)
            out.append((name, kind, shape, data))
        return kv, out

    return change


def norms(*short: str, step: float) -> Change:
    return edited(lambda name: name in {f"{HEAD}{n}.weight" for n in short}, lambda x: x + np.float32(step))


def trunk_norms(step: float) -> Change:
    def is_trunk(name: str) -> bool:
        return name.endswith("norm.weight") and not name.startswith(HEAD) and "ssm_norm" not in name

    return edited(is_trunk, lambda x: x + np.float32(step))


def noise(x: np.ndarray) -> np.ndarray:
    random = np.random.Generator(np.random.Philox(x.size))
    return random.normal(0, 0.02, x.shape)


def random_parts(*short: str) -> Change:
    return edited(lambda name: name in {f"{HEAD}{n}.weight" for n in short}, noise)


def dropped(names: Callable[[str], bool], keys: Callable[[str], bool] = lambda key: False) -> Change:
    return lambda kv, tensors: ([p for p in kv if not keys(p[0])], [t for t in tensors if not names(t[0])])


def with_key(key: str, value: object, kind: str) -> Change:
    return lambda kv, tensors: ([p for p in kv if p[0] != key] + [(key, value, kind)], tensors)


def swap_halves(x: np.ndarray) -> np.ndarray:
    return np.roll(x, x.shape[1] // 2, axis=1)


def zero_half(which: int) -> Callable[[np.ndarray], np.ndarray]:
    def zero(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        n = x.shape[1] // 2
        x[:, which * n : (which + 1) * n] = 0
        return x

    return zero


def random_half(which: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        n = x.shape[1] // 2
        x[:, which * n : (which + 1) * n] = noise(x[:, :n]) * 5
        return x

    return change


def one_nan(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.reshape(-1)[7] = np.nan
    return x


def neighbours_scales(x: np.ndarray) -> np.ndarray:
    blocks = x.reshape(len(x), -1, 32)
    scale = np.abs(blocks).max(-1, keepdims=True)
    unit = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale != 0)
    return (unit * np.roll(scale, 1, axis=1)).reshape(x.shape)


def is_head(name: str) -> bool:
    return name.startswith(HEAD)


def is_eh_proj(name: str) -> bool:
    return name.endswith("eh_proj.weight")


ALL = HEAD_NORMS
LAYER = ("attn_norm", "post_attention_norm", "attn_q_norm", "attn_k_norm")
MATRICES = ("nextn.eh_proj", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def never_loaded(kv: Pairs, tensors: Tensors) -> tuple[Pairs, Tensors]:
    kv, tensors = random_parts(*MATRICES)(kv, tensors)
    return edited(lambda name: name in {f"{HEAD}{n}.weight" for n in ALL}, np.ones_like)(kv, tensors)


# label -> (how, ids of which one at least must be found)
BROKEN: dict[str, tuple[Change, tuple[str, ...]]] = {
    "W1 +1 missing in the head": (norms(*ALL, step=-1), ("norm-convention",)),
    "W2 +1 twice in the head": (norms(*ALL, step=1), ("norm-convention",)),
    "W2b +1 twice in the trunk": (trunk_norms(1), ("trunk-norm-convention",)),
    "W2b +1 missing in the trunk": (trunk_norms(-1), ("trunk-norm-convention",)),
    "W2c layer norms raw": (norms(*LAYER, step=-1), ("norm-convention",)),
    "W3 enorm and hnorm twice": (norms("nextn.enorm", "nextn.hnorm", step=1), ("norm-convention",)),
    "W4 partly loaded": (
        random_parts("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"),
        ("random-matrix", "part-harmful"),
    ),
    "W5 norm that does nothing": (edited(lambda n: n == f"{HEAD}nextn.hnorm.weight", np.zeros_like), ("tensor-zero",)),
    "W6 never loaded": (never_loaded, ("norms-never-loaded", "head-useless")),
    "W6 random matrices": (random_parts(*MATRICES), ("head-useless", "part-harmful", "head-ignores-trunk")),
    "W8b block scales of the neighbour": (
        edited(lambda n: is_head(n) and n.endswith(tuple(f"{m}.weight" for m in MATRICES)), neighbours_scales),
        ("part-harmful", "head-useless", "head-ignores-trunk", "norm-convention"),
    ),
    "W11 head dropped, key kept": (dropped(is_head), ("head-dropped",)),
    "W11 head kept, key dropped": (
        dropped(lambda n: False, lambda k: k.endswith("nextn_predict_layers")),
        ("head-undeclared",),
    ),
    "head dropped with its key": (
        lambda kv, t: dropped(is_head, lambda k: k.endswith("nextn_predict_layers"))(
            *with_key("qwen35.block_count", 4, "u32")(kv, t)
        ),
        ("head-absent",),
    ),
    "eh_proj lost": (dropped(is_eh_proj), ("head-incomplete",)),
    "G1 halves swapped": (edited(is_eh_proj, swap_halves), ("halves-swapped",)),
    "W13 hidden half zero": (edited(is_eh_proj, zero_half(1)), ("eh-proj-half-zero",)),
    "embedding half zero": (edited(is_eh_proj, zero_half(0)), ("eh-proj-half-zero",)),
    "hidden half random": (edited(is_eh_proj, random_half(1)), ("part-harmful", "head-useless", "head-ignores-trunk")),
    "embedding half random": (edited(is_eh_proj, random_half(0)), ("part-harmful", "head-useless")),
    "NaN in a norm": (edited(lambda n: n == f"{HEAD}attn_norm.weight", one_nan), ("not-finite",)),
    "a matrix of zeros": (edited(lambda n: n == f"{HEAD}ffn_down.weight", np.zeros_like), ("tensor-zero",)),
    "head of another shape": (edited(is_eh_proj, lambda x: x[:, :256]), ("inventory",)),
}
# Types that matrices of the head, or all matrices, are put into; rows are multiples of 256.
HEALTHY_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")


def in_type(kind: str, *, head_only: bool = False) -> Change:
    def is_matrix(name: str) -> bool:
        return (
            name.endswith(".weight")
            and "norm" not in name
            and "conv1d" not in name
            and (is_head(name) or not head_only)
        )

    return edited(is_matrix, lambda x: x, kind)
