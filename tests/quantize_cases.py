"""Files for the quantiser: the tiny model in F32, and files with experts: every tensor of a data sheet, its rows as
long as they should be, and few.

Nothing could run the latter: a quantiser looks at names, row lengths and counts. Ten blocks, so that the rules by
eighths differ. The same bytes everywhere.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mtpref.architectures import ARCHITECTURES, Tensor, numbers
from mtpref.architectures.sheet import ByTensor
from mtpref.files.gguf import WriteOptions, open_gguf
from mtpref.heads.quantize.importance import write_importance
from mtpref.spec.config import Metadata
from tests.broken_heads import in_type, write

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
try:
    import micro_kda as mk
    import micro_mamba as mam
    import micro_moe as mm
    import micro_parallel as mpar
    import micro_plant as mp
    from micro_gguf import tensor_of, uniform, write_gguf
finally:
    sys.path.pop(0)

N_TRUNK, N_VOCAB, N_ROWS = 9, 16, 2
ARCHS = tuple(name for name, sheet in ARCHITECTURES.items() if "n_expert" in {hyper.name for hyper in sheet.hypers})
_WIDE = mp.MicroShape(n_vocab=N_VOCAB, n_embd=256, n_layer=N_TRUNK, n_ff=512, n_head=4, head_dim=64, n_rot=32,
                      state_size=64, n_k_head=2, n_v_head=4)  # fmt: skip
_RAGGED = replace(_WIDE, n_embd=96, n_ff=96, head_dim=16, n_rot=8, state_size=12)


@dataclass(frozen=True)
class Case:
    """shape and type of the matrices; fused: alternatives as one tensor; untied: output.weight; own: the head's own
    embedding and output head"""

    shape: mm.MoeShape
    type_name: str
    fused: bool = False
    untied: bool = False
    own: bool = False


# wide: rows of 256 and 512. ragged: rows of 96 and 48, which no K block divides, and 48 no block at all. eight: as many
# experts as llama.cpp has a rule for.
CASES = {
    "wide": Case(mm.MoeShape(n_expert=3, n_ff_exp=256, n_ff_dense=768, n_dense=1, micro=_WIDE), "F32", own=True),
    "ragged": Case(
        mm.MoeShape(n_expert=20, n_ff_exp=48, n_ff_dense=80, n_dense=2, micro=_RAGGED), "F16", fused=True, untied=True
    ),
    "eight": Case(mm.MoeShape(n_expert=8, n_ff_exp=256, n_ff_dense=512, n_dense=1, micro=_WIDE), "BF16"),
}
IMATRIX = "importance.gguf"
# Of the tiny model: its importance matrix, and the types that are recorded, without one and with it.
TINY_IMATRIX = "made.gguf"
TINY_MIXTURES = (
    *("F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0"),
    *("Q4_K_M imatrix", "Q4_0 imatrix"),
)


def tensors_of(arch: str, case: Case) -> dict[str, np.ndarray]:
    """Name -> float32 values, in the order of a data sheet."""
    sheet, keys = ARCHITECTURES[arch], keys_of(arch, case)
    values: Any = {**mm.micro_values(sheet, case.shape), "n_vocab": N_VOCAB}
    values.setdefault("n_ff", case.shape.n_ff_dense)
    own = sheet.values(Metadata(read(keys), "case")).having(n_vocab=N_VOCAB) if arch in OWN_KEYS else None
    assert sheet.head is not None
    routers = frozenset(f"blk.{il}.ffn_gate_inp.weight" for il in range(case.shape.n_dense, N_TRUNK + 1))
    names = routers if isinstance(sheet.layers, ByTensor) else frozenset()
    blocks = [*sheet.layers.blocks(Metadata(read(keys), "case"), N_TRUNK, names), sheet.head.block]
    wanted: list[tuple[Tensor, int | None]] = [(t, None) for t in sheet.tensors if case.untied or t.role != "output"]
    for il, block in enumerate(blocks):
        wanted += [(t.at(il), il) for t in mm.chosen(block, case.fused)]
    for tensor in sheet.head.tensors:
        if tensor.required or case.own:
            wanted.append((tensor.at(N_TRUNK), N_TRUNK))
    made = {}
    for tensor, at in wanted:
        shape = numbers(tensor.shape, values if own is None else own if at is None else own.at(at))
        if shape is None or 0 in shape or tensor.name == "d2t":
            continue
        if len(shape) > 1 and shape[-2] > 1:
            shape = (*shape[:-2], N_ROWS, shape[-1])
        made[tensor.name] = uniform(7, f"{arch} {tensor.name}", shape)
    return made


def _parallel(case: Case) -> dict[str, object]:
    s = case.shape
    counts: dict[str, Any] = {"n_expert": s.n_expert, "n_used": s.n_used, "n_ff_exp": s.n_ff_exp, "n_dense": s.n_dense}
    micro = replace(s.micro, n_ff=s.n_ff_dense)
    return mpar.keys_of(mpar.ParallelShape(windowed=3, n_shared=2, fused=case.fused, micro=micro, **counts))


def _mamba(case: Case) -> dict[str, object]:
    s = case.shape
    counts: dict[str, Any] = {"n_expert": s.n_expert, "n_used": min(3, s.n_expert), "n_ff_exp": s.n_ff_exp}
    micro = replace(s.micro, n_ff=s.n_ff_dense)
    return mam.keys_of(
        mam.MambaShape(pattern="M*EMEM*EE", n_low=256 * (s.n_ff_exp > 48), micro=micro, fused=case.fused, **counts)
    )


def _kda(case: Case) -> dict[str, object]:
    s = case.shape
    counts: dict[str, Any] = {"n_expert": s.n_expert, "n_used": min(3, s.n_expert), "n_ff_exp": s.n_ff_exp}
    is_ragged = s.n_ff_exp == 48
    latent = mm.LatentShape() if is_ragged else mm.LatentShape(n_query=256, n_row=256, n_rot=32, n_nope=256, n_value=64)
    return mk.keys_of(
        mk.KdaShape(
            (False, False, True) * 3, s.n_dense, n_ff_dense=s.n_ff_dense, latent=latent, micro=s.micro, **counts
        )
    )


# Of architectures whose keys are not those of micro_moe.py.
OWN_KEYS: dict[str, Callable[[Case], dict[str, object]]] = {
    "cohere2moe": _parallel, "nemotron_h_moe": _mamba, "bailingmoe3": _kda,
}  # fmt: skip


def read(keys: dict[str, object]) -> dict[str, object]:
    """Keys as a file's are read: integers of Python."""
    return {k: [int(x) for x in v] if isinstance(v, list) and isinstance(v[0], np.integer) else v
            for k, v in keys.items()}  # fmt: skip


def keys_of(arch: str, case: Case) -> dict[str, object]:
    if arch in OWN_KEYS:
        return OWN_KEYS[arch](case)
    keys = mm.micro_keys(ARCHITECTURES[arch], case.shape)
    interval = f"{arch}.full_attention_interval"
    return {**keys, interval: 4} if interval in keys else keys


def write_case(path: Path, arch: str, name: str) -> Path:
    """The file of a case; beside it IMATRIX, where every third expert of a stack has seen nothing."""
    case = CASES[name]
    made = tensors_of(arch, case)
    typed = []
    for tensor, x in made.items():
        is_vector = x.ndim < 2 or any(part in tensor for part in ("ssm_conv1d", "ffn_gate_inp"))
        typed.append(tensor_of(tensor, x, "F32" if is_vector else case.type_name))
    write_gguf(path, keys_of(arch, case), typed)
    sums = {}
    for tensor, x in made.items():
        if x.ndim < 2 or tensor.startswith(("token_embd", f"blk.{N_TRUNK}.nextn")):
            continue
        n = x.shape[0] if x.ndim == 3 else 1
        counts = np.array([0 if n > 1 and e % 3 == 2 else e + 2 for e in range(n)], np.int64)
        squares = (1.5 + uniform(8, tensor, (n, x.shape[-1])).astype(np.float64)) * counts[:, None]
        sums[tensor] = (squares, counts) if n > 1 else (squares[0], int(counts[0]))
    write_importance(path.parent / IMATRIX, sums, ["made.txt"], 1, 512, WriteOptions(force=True))
    return path


def write_tiny(folder: Path) -> Path:
    """The tiny model in F32: rows of 256 and 512; beside it TINY_IMATRIX, the same on every machine: larger columns
    matter more."""
    path = write(folder / "f32.gguf", in_type("F32"))
    with open_gguf(path) as file:
        sums = {
            info.name: (1.0 + np.arange(info.shape[1], dtype=np.float64) % 7, 2)
            for info in file.tensors.values()
            if len(info.shape) == 2 and not info.name.startswith("token_embd")
        }
    write_importance(folder / TINY_IMATRIX, sums, ["made.txt"], 1, 512)
    return path


def told(types: list[str]) -> str:
    """Types of a file in order, runs counted: "Q6_K F32*2 Q4_K"."""
    runs: list[list] = []
    for kind in types:
        if runs and runs[-1][0] == kind:
            runs[-1][1] += 1
        else:
            runs.append([kind, 1])
    return " ".join(kind if n == 1 else f"{kind}*{n}" for kind, n in runs)
