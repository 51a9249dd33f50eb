"""Attention through a latent row over the cells that an indexer chose (DeepSeek sparse attention). Its numerics are
mtpref/spec/ops/compose_indexer.py and compose_latent.py (S6, S10, S15, S16, S53 to S57, S60 to S66)."""

from dataclasses import replace
from functools import partial

from mtpref import spec
from mtpref.base.errors import MtprefError
from mtpref.spec.config import IndexedConfig, Values
from mtpref.spec.kinds import latent
from mtpref.spec.kinds.kind import F32, INPUT, Graph, LayerKind, Made, Span
from mtpref.spec.ops import LayerTap, LayerWeights
from mtpref.spec.state import LayerState, StateSpec

KEYS = "cache_indexer_k"


def _configure(
    v: Values,
    *,
    has_indexer: bool,
    eps: float,
    is_interleaved: bool,
    reads_log_multiplier: bool,
) -> IndexedConfig:
    own = latent.configure(v, reads_log_multiplier=reads_log_multiplier, is_mscale_all_dim=False, is_absorbed=True)
    cfg = IndexedConfig(
        **vars(own),
        n_index_head=v["n_index_head"],
        n_index_key=v["n_index_key"],
        n_top=v["n_top"],
        index_eps=eps,
        is_index_interleaved=is_interleaved,
        has_indexer=has_indexer,
    )
    n_key = cfg.n_index_key
    if n_key & (n_key - 1) or n_key < max(spec.LEAST_ROTATION, cfg.n_rot):
        raise MtprefError(
            f"{v.meta.source}: key {v.meta.arch}.attention.indexer.key_length is {n_key}, expected a power of two from "
            f"{spec.LEAST_ROTATION} on, at least {v.meta.arch}.rope.dimension_count = {cfg.n_rot}; "
            "try: mtpref inspect FILE"
        )
    return cfg


def _state(cfg: IndexedConfig, kv_type: str) -> tuple[StateSpec, ...]:
    """cache_k: one row [c | k_pe] a position; of a layer with an indexer its key, too."""
    row = StateSpec("cache_k", (1, cfg.n_row), positional=True, kv_type=kv_type)
    key = StateSpec(KEYS, (1, cfg.n_index_key), positional=True, kv_type=kv_type)
    return (row, key) if cfg.has_indexer else (row,)


def _forward(w: LayerWeights, cfg: IndexedConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    ops, n_cells, kv_type = span.ops, span.first + len(x), state.specs[0].kv_type
    table, cells = span.rope_cos_sin(cfg.rotary), state.arrays["cache_k"][:n_cells]
    if cfg.has_indexer:
        keys = state.arrays[KEYS][:n_cells]
        span.selections.append(ops.index_cells(ops, w, cfg, x, keys, kv_type, span.first, table, tap))
    chosen = span.selections[-1].cells
    return ops.indexed_attn_layer(ops, w, cfg, x, cells, kv_type, span.first, table, chosen, tap)


_QUERY = "the product with blk.{i}.attn_q_a.weight, normed with blk.{i}.attn_q_a_norm.weight"
_INDEXER: Graph = {
    "indexer_q": Made(
        (INPUT,), f"product of blk.{{i}}.indexer.attn_q_b.weight with {_QUERY}; RoPE of the first dimensions, rotation",
        (spec.mul_mat_exact, spec.rms_norm, spec.rope, spec.rope_interleaved, spec.hadamard),
    ),
    "indexer_k": Made(
        (INPUT,), "product with blk.{i}.indexer.attn_k.weight, layer norm with blk.{i}.indexer.k_norm.weight and "
        "blk.{i}.indexer.k_norm.bias; RoPE of the first dimensions, rotation",
        (spec.mul_mat_exact, spec.layer_norm, spec.rope, spec.rope_interleaved, spec.hadamard),
    ),
    "indexer_weights": Made((INPUT,), "product with blk.{i}.indexer.proj.weight, divided by the root of "
                            "head_count * key_length", (spec.mul_mat_exact,)),
    "indexer_score": Made(("indexer_q", "indexer_k", "indexer_weights"), "products with every cell's key, negative "
                          "ones as 0, weighted and added over heads", (spec.mul_mat_exact, spec.index_scores)),
    "top_k": Made(("indexer_score",), "the cells of the greatest scores", (spec.select_cells,)),
    "top_k_gap": Made(("indexer_score", "top_k"), "how near another choice was", (spec.selection_gap,)),
}  # fmt: skip
_ATTEND = replace(
    latent.GRAPH["kqv_out"],
    inputs=("Qcur", "Kcur", "top_k"),
    step="causal attention over the cells of top_k, each head's product with its matrix of blk.{i}.attn_v_b.weight",
)
GRAPH = {**_INDEXER, **latent.GRAPH, "kqv_out": _ATTEND}
# A layer that takes what an indexer before it chose.
_SHARING = latent.GRAPH | {"kqv_out": replace(_ATTEND, inputs=("Qcur", "Kcur"))}


def _kinds(**how: object) -> tuple[LayerKind, LayerKind]:
    own, shared = (partial(_configure, has_indexer=has, **how) for has in (True, False))  # type: ignore[arg-type]
    return (
        LayerKind("indexed_latent_attention", own, _state, _forward, GRAPH),
        LayerKind("sharing_latent_attention", shared, _state, _forward, _SHARING),
    )


# Keys turned by halves and normed with an epsilon of 1e-6; mscale_all_dim where a file tells it.
HALVES_INDEXED, _ = _kinds(eps=1e-6, is_interleaved=False, reads_log_multiplier=True)
# Keys turned by neighbours and normed without an epsilon.
PAIRS_INDEXED, PAIRS_SHARING = _kinds(eps=0.0, is_interleaved=True, reads_log_multiplier=False)
# The same without an indexer: every cell is seen.
HALVES_ALL_CELLS, PAIRS_ALL_CELLS = (
    replace(latent.LATENT_ATTENTION, configure=partial(latent.configure, reads_log_multiplier=reads,
                                                       is_mscale_all_dim=False, is_absorbed=True))
    for reads in (True, False)
)  # fmt: skip
