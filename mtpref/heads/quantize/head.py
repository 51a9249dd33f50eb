"""The MTP head quantised by GPTQ: calibrated on what its matrices see when it runs on the trunk's real hidden rows.

Owns the order. Trunk rows are computed once; then the head runs once for each stage, with all earlier stages quantised
already, so that a matrix is calibrated on the inputs it will have. The trunk is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model, Pairs
from mtpref.heads.quantize.collect import paired, run_head, watched
from mtpref.heads.quantize.gptq import DAMPING, gptq
from mtpref.heads.quantize.grid import Grid
from mtpref.spec import Matrix

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
MAX_TOKENS = 1 << 16
STAGES = (
    ("nextn.eh_proj",), ("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",),
)  # fmt: skip
Progress = Callable[[int, int], None]


def trunk_rows(
    model: Model, texts: Sequence[Sequence[int]], n_ctx: int = 512, progress: Progress | None = None
) -> list[Pairs]:
    """Run the trunk over texts, n_ctx tokens at a time; what is kept is n_embd float32 a token.

    Errors   MtprefError for a model without a head, more than MAX_TOKENS tokens, or none
    """
    if not model.has_mtp:
        raise MtprefError("GPTQ: the model has no MTP head, expected one; try: mtpref check")
    cut = [list(ids[i : i + n_ctx]) for ids in texts for i in range(0, len(ids), n_ctx)]
    n_all = sum(map(len, cut))
    if not 2 <= n_all <= MAX_TOKENS:
        raise MtprefError(f"--calibration: {n_all} tokens, expected 2 to {MAX_TOKENS}; give other texts")
    out, n_done = [], 0
    for ids in cut:
        chunk = paired(model, ids)
        if chunk.ids:
            out.append(chunk)
        n_done += len(ids)
        if progress is not None:
            progress(n_done, n_all)
    return out


def hessians(model: Model, chunks: Sequence[Pairs], names: Sequence[str]) -> dict[str, F64]:
    """2/n sum x x^T of these matrices' inputs, float64."""
    sums: dict[str, tuple[F64, int]] = {}

    def see(name: str, x: F32) -> None:
        if name in names:
            wide = x.astype(np.float64)
            total, n = sums.get(name, (np.zeros((x.shape[1], x.shape[1])), 0))
            sums[name] = (total + wide.T @ wide, n + len(x))

    run_head(watched(model, see), chunks)
    return {name: 2.0 / n * total for name, (total, n) in sums.items()}


def with_matrices(model: Model, made: dict[str, Matrix]) -> Model:
    """The model with matrices of its head replaced, by GGUF name."""
    mtp = model.heads[0].weights

    def new(w: Any) -> Any:
        return made.get(w.name, w) if isinstance(w, Matrix) else w

    return model.with_head(eh_proj=new(mtp.eh_proj), block={key: new(w) for key, w in mtp.block.items()})


def head_matrices(model: Model) -> dict[str, Matrix]:
    """The head's own matrices by GGUF name, in the order of STAGES; embedding and output head are not among them."""
    mtp = model.heads[0].weights
    found = {"nextn.eh_proj": mtp.eh_proj}
    found |= {key.removesuffix(".weight"): w for key, w in mtp.block.items() if isinstance(w, Matrix)}
    return {found[short].name: found[short] for stage in STAGES for short in stage if short in found}


def gptq_head(
    model: Model,
    chunks: Sequence[Pairs],
    grid: Grid,
    *,
    damping: float = DAMPING,
    progress: Progress | None = None,
) -> dict[str, Matrix]:
    """The head's matrices on a grid, stage by stage: GGUF name -> quantised matrix."""
    made: dict[str, Matrix] = {}
    sources = head_matrices(model)
    for i, stage in enumerate(STAGES):
        names = [name for name in sources if name.split(".", 2)[2].removesuffix(".weight") in stage]
        found = hessians(with_matrices(model, made), chunks, names)
        for name in names:
            w = sources[name]
            raw = gptq(w.dequantize(), found[name], grid, damping=damping, name=name)
            made[name] = Matrix(name, grid.kind, w.n_out, w.n_in, raw.reshape(-1))
        if progress is not None:
            progress(i + 1, len(STAGES))
    return made
