"""The types of the table's entries: what each takes and gives, by the names of its reference function.

Owns nothing that runs. An entry of another shape is refused by a type checker. Arguments are passed by position, so a
replacement may name them as it likes.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from mtpref.spec import Matrix, Stack
from mtpref.spec.config import AttnConfig, DeltaConfig, LatentConfig, MoeConfig, WindowedConfig
from mtpref.spec.moe import IDS, Routing

if TYPE_CHECKING:
    from mtpref.spec.ops.table import Ops

F32 = NDArray[np.float32]
LayerTap = Callable[[str, NDArray], None]
LayerWeights = Mapping[str, Any]  # GGUF name without "blk.N." -> Matrix, Stack or float32 vector


class Planes(Protocol):
    """State after each of the last tokens of a batch: an array, or what makes a plane when it is asked for one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    def __getitem__(self, i: int, /) -> Any: ...


class InputWeights(Protocol):
    """What the two ends of a head have of their own."""

    @property
    def enorm(self) -> F32: ...
    @property
    def hnorm(self) -> F32: ...
    @property
    def eh_proj(self) -> Matrix: ...


class MulMat(Protocol):
    def __call__(self, w: Matrix, x: F32, /) -> F32: ...


class GetRows(Protocol):
    def __call__(self, w: Matrix, ids: NDArray[np.int32], /) -> F32: ...


class RmsNorm(Protocol):
    def __call__(self, x: F32, weight: F32, eps: float, /) -> F32: ...


class L2Norm(Protocol):
    def __call__(self, x: F32, eps: float, /) -> F32: ...


class RopeTable(Protocol):
    def __call__(
        self,
        pos: NDArray[np.int32],
        frequencies: NDArray[np.float64],
        has_position: NDArray[np.bool_],
        magnitude: float = 1.0,
        /,
    ) -> tuple[F32, F32]: ...


class Rope(Protocol):
    def __call__(self, x: F32, cos: F32, sin: F32, /) -> F32: ...


class ConvSilu(Protocol):
    def __call__(self, window: F32, weight: F32, /) -> F32: ...


class DeltaGates(Protocol):
    def __call__(self, alpha: F32, beta: F32, dt_bias: F32, ssm_a: F32, /) -> tuple[F32, F32]: ...


class DeltaRule(Protocol):
    def __call__(self, q: F32, k: F32, v: F32, g: F32, beta: F32, state: F32, keep: int, /) -> tuple[F32, F32]: ...


class GatedNorm(Protocol):
    def __call__(self, o: F32, z: F32, weight: F32, eps: float, /) -> F32: ...


class SplitQGate(Protocol):
    def __call__(self, q_full: F32, n_head: int, /) -> tuple[F32, F32]: ...


class StoreKv(Protocol):
    def __call__(self, x: F32, kv_type: str, /) -> NDArray: ...


class Attention(Protocol):
    def __call__(self, q: F32, k_cache: NDArray, v_cache: NDArray, kv_type: str, first: int, /) -> F32: ...


class AttnGate(Protocol):
    def __call__(self, o: F32, gate: F32, /) -> F32: ...


class SwiGlu(Protocol):
    def __call__(self, gate: F32, up: F32, /) -> F32: ...


class ExpertProbs(Protocol):
    def __call__(self, logits: F32, gating: str, /) -> F32: ...


class ExpertScores(Protocol):
    def __call__(self, probs: F32, bias: F32 | None, /) -> F32: ...


class GroupScores(Protocol):
    def __call__(self, scores: F32, n_group: int, /) -> F32: ...


class LimitGroups(Protocol):
    def __call__(self, scores: F32, groups: IDS, n_group: int, /) -> F32: ...


class SelectExperts(Protocol):
    def __call__(self, scores: F32, n_used: int, /) -> IDS: ...


class RouterGap(Protocol):
    def __call__(self, scores: F32, ids: IDS, /) -> F32: ...


class ExpertWeights(Protocol):
    def __call__(self, probs: F32, ids: IDS, normalise: bool, scale: float, /) -> F32: ...


class WeighExperts(Protocol):
    def __call__(self, y: F32, weights: F32, /) -> F32: ...


class SumExperts(Protocol):
    def __call__(self, weighted: F32, /) -> F32: ...


class SharedGate(Protocol):
    def __call__(self, y: F32, logit: F32, /) -> F32: ...


class AddBias(Protocol):
    def __call__(self, y: F32, bias: F32, /) -> F32: ...


class RepeatHeads(Protocol):
    def __call__(self, x: F32, n_head: int, /) -> F32: ...


class SplitBetaAlpha(Protocol):
    def __call__(self, ba: F32, n_k_head: int, /) -> tuple[F32, F32]: ...


class SplitQkvz(Protocol):
    def __call__(self, qkvz: F32, n_k_head: int, size: int, /) -> tuple[F32, F32]: ...


class MtpConcat(Protocol):
    def __call__(self, enorm: F32, hnorm: F32, /) -> F32: ...


class Argmax(Protocol):
    def __call__(self, logits: F32, /) -> NDArray[np.int64]: ...


class TopCandidates(Protocol):
    def __call__(self, logits: F32, /) -> tuple[NDArray[np.int64], NDArray[np.float64]]: ...


class DeltaLayer(Protocol):
    def __call__(
        self, ops: "Ops", w: LayerWeights, cfg: DeltaConfig, x: F32, conv: F32, ssm: F32, keep: int, tap: LayerTap, /
    ) -> tuple[F32, Planes, Planes]: ...


class AttnLayer(Protocol):
    def __call__(
        self,
        ops: "Ops",
        w: LayerWeights,
        cfg: AttnConfig,
        x: F32,
        k_cache: NDArray,
        v_cache: NDArray,
        kv_type: str,
        first: int,
        rope_cos_sin: tuple[F32, F32],
        tap: LayerTap,
        /,
    ) -> F32: ...


class LatentInput(Protocol):
    def __call__(
        self,
        ops: "Ops",
        w: LayerWeights,
        cfg: LatentConfig,
        x: F32,
        rope_cos_sin: tuple[F32, F32],
        tap: LayerTap,
        /,
    ) -> tuple[F32, F32, F32, F32]: ...


class HeadProducts(Protocol):
    def __call__(self, ops: "Ops", w: Stack, x: F32, /) -> F32: ...


class LatentAttnLayer(Protocol):
    def __call__(
        self,
        ops: "Ops",
        w: LayerWeights,
        cfg: LatentConfig,
        x: F32,
        cells: NDArray,
        kv_type: str,
        first: int,
        rope_cos_sin: tuple[F32, F32],
        tap: LayerTap,
        /,
    ) -> F32: ...


class ExpandedAttnLayer(Protocol):
    def __call__(
        self,
        ops: "Ops",
        w: LayerWeights,
        cfg: LatentConfig,
        x: F32,
        k_cache: NDArray,
        v_cache: NDArray,
        kv_type: str,
        first: int,
        rope_cos_sin: tuple[F32, F32],
        tap: LayerTap,
        /,
    ) -> F32: ...


class WindowStart(Protocol):
    def __call__(self, pos: int, n_window: int, /) -> int: ...


class CellAttention(Protocol):
    def __call__(self, q: F32, k: NDArray, v: NDArray, sinks: F32 | None, kv_type: str, /) -> F32: ...


class LimitedSwiGlu(Protocol):
    def __call__(self, gate: F32, up: F32, limit: float, /) -> F32: ...


class HeadGate(Protocol):
    def __call__(self, o: F32, logit: F32, /) -> F32: ...


class ScaledOutput(Protocol):
    def __call__(self, y: F32, scale: float, /) -> F32: ...


class SeenAttention(Protocol):
    def __call__(
        self,
        ops: "Ops",
        cfg: WindowedConfig,
        q: F32,
        k: NDArray,
        v: NDArray,
        sinks: F32 | None,
        kv_type: str,
        first: int,
        /,
    ) -> F32: ...


class WindowedAttnLayer(Protocol):
    def __call__(
        self,
        ops: "Ops",
        w: LayerWeights,
        cfg: WindowedConfig,
        x: F32,
        k_cells: NDArray,
        v_cells: NDArray,
        kv_type: str,
        first: int,
        rope_cos_sin: tuple[F32, F32],
        tap: LayerTap,
        /,
    ) -> F32: ...


class Ffn(Protocol):
    def __call__(self, ops: "Ops", w: LayerWeights, x: F32, tap: LayerTap, /) -> F32: ...


class Route(Protocol):
    def __call__(
        self, ops: "Ops", w: LayerWeights, cfg: MoeConfig, x: F32, tap: LayerTap, /
    ) -> tuple[F32, Routing]: ...


class Experts(Protocol):
    def __call__(
        self, ops: "Ops", w: LayerWeights, x: F32, routing: Routing, weights: F32, tap: LayerTap, /
    ) -> F32: ...


class SharedExpert(Protocol):
    def __call__(self, ops: "Ops", w: LayerWeights, x: F32, tap: LayerTap, /) -> F32: ...


class MoeFfn(Protocol):
    def __call__(
        self, ops: "Ops", w: LayerWeights, cfg: MoeConfig, x: F32, tap: LayerTap, /
    ) -> tuple[F32, Routing]: ...


class Head(Protocol):
    def __call__(self, ops: "Ops", output: Matrix, h: F32, n_rows: int | None, /) -> F32: ...


class MtpInput(Protocol):
    def __call__(
        self, ops: "Ops", w: InputWeights, embd: F32, hidden: F32, eps: float, order: str, tap: LayerTap, /
    ) -> F32: ...


class MtpNorm(Protocol):
    def __call__(self, ops: "Ops", x: F32, weight: F32, eps: float, /) -> F32: ...


class CoarseEntries(TypedDict, total=False):
    """Entries that compose others."""

    delta_layer: DeltaLayer
    attn_layer: AttnLayer
    ffn: Ffn
    head: Head
    mtp_input: MtpInput
    mtp_norm: MtpNorm
    plain_attn_layer: AttnLayer
    latent_input: LatentInput
    head_products: HeadProducts
    latent_attn_layer: LatentAttnLayer
    expanded_attn_layer: ExpandedAttnLayer
    route: Route
    experts: Experts
    shared_expert: SharedExpert
    moe_ffn: MoeFfn
    seen_attention: SeenAttention
    windowed_attn_layer: WindowedAttnLayer


class OpEntries(CoarseEntries, total=False):
    """Some entries of the table, as keywords or as a record: what stands in for the table's own."""

    mul_mat: MulMat
    get_rows: GetRows
    rms_norm: RmsNorm
    l2_norm: L2Norm
    rope_table: RopeTable
    rope: Rope
    conv_silu: ConvSilu
    delta_gates: DeltaGates
    delta_rule: DeltaRule
    gated_norm: GatedNorm
    split_q_gate: SplitQGate
    store_kv: StoreKv
    attention: Attention
    attn_gate: AttnGate
    swiglu: SwiGlu
    mtp_concat: MtpConcat
    argmax: Argmax
    top_candidates: TopCandidates
    expert_probs: ExpertProbs
    expert_scores: ExpertScores
    group_scores: GroupScores
    limit_groups: LimitGroups
    select_experts: SelectExperts
    router_gap: RouterGap
    expert_weights: ExpertWeights
    weigh_experts: WeighExperts
    sum_experts: SumExperts
    shared_gate: SharedGate
    add_bias: AddBias
    repeat_heads: RepeatHeads
    split_beta_alpha: SplitBetaAlpha
    split_qkvz: SplitQkvz
    rope_interleaved: Rope
    window_start: WindowStart
    cell_attention: CellAttention
    limited_swiglu: LimitedSwiGlu
    head_gate: HeadGate
    scaled_output: ScaledOutput
