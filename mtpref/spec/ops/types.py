"""The types of the table's entries: what each takes and gives, by the names of its reference function.

Owns nothing that runs. An entry of another shape is refused by a type checker. Arguments are passed by position, so a
replacement may name them as it likes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from mtpref.spec import Matrix, Stack
from mtpref.spec.config import (
    AttnConfig,
    CompressedConfig,
    DeltaConfig,
    IndexedConfig,
    InputsConfig,
    KdaConfig,
    LatentConfig,
    MoeConfig,
    ParallelConfig,
    SsmConfig,
    StreamsConfig,
    UnscaledConfig,
    WindowedConfig,
)
from mtpref.spec.indexer import Selection
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


# Positions -> the RoPE table of a layer (S10).
Table = Callable[[NDArray[np.int32]], tuple[F32, F32]]


@dataclass(frozen=True)
class Blocks:
    """The rows that a compressor has left: what the last tokens of unfinished blocks are, and the rows of whole ones.

    values, scores  of the tokens before the batch that a later block is made of, oldest first (n_kept, width)
    cells           (n_compressed, D) for all tokens of the batch included; those that the batch ends are written here
    """

    values: F32
    scores: F32
    cells: NDArray


class InputWeights(Protocol):
    """What the two ends of a head have of their own."""

    @property
    def enorm(self) -> F32: ...
    @property
    def hnorm(self) -> F32: ...
    @property
    def eh_proj(self) -> Matrix: ...


class OutputWeights(Protocol):
    """What makes the row of an assistant's next step."""

    @property
    def post_projection(self) -> Matrix | None: ...


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


class LayerNorm(Protocol):
    def __call__(self, x: F32, weight: F32, bias: F32 | None, eps: float, /) -> F32: ...


class IndexScores(Protocol):
    def __call__(self, products: F32, weights: F32, first: int, /) -> F32: ...


class SelectCells(Protocol):
    def __call__(self, scores: F32, first: int, n_top: int, /) -> IDS: ...


class SelectionGap(Protocol):
    def __call__(self, scores: F32, cells: IDS, first: int, /) -> F32: ...


class IndexCells(Protocol):
    def __call__(
        self,
        ops: "Ops",
        w: LayerWeights,
        cfg: IndexedConfig,
        x: F32,
        keys: NDArray,
        kv_type: str,
        first: int,
        rope_cos_sin: tuple[F32, F32],
        tap: LayerTap,
        /,
    ) -> Selection: ...


class SelectedAttention(Protocol):
    def __call__(self, ops: "Ops", q: F32, cells: NDArray, kv_type: str, first: int, chosen: IDS, /) -> F32: ...


class IndexedAttnLayer(Protocol):
    def __call__(
        self,
        ops: "Ops",
        w: LayerWeights,
        cfg: IndexedConfig,
        x: F32,
        cells: NDArray,
        kv_type: str,
        first: int,
        rope_cos_sin: tuple[F32, F32],
        chosen: IDS,
        tap: LayerTap,
        /,
    ) -> F32: ...


class StreamWeights(Protocol):
    def __call__(
        self, mixes: F32, scale: F32, base: F32, n_streams: int, eps: float, n_iterations: int, /
    ) -> tuple[F32, F32, F32]: ...


class HeadWeights(Protocol):
    def __call__(self, mixes: F32, scale: F32, base: F32, eps: float, /) -> F32: ...


class ReadStreams(Protocol):
    def __call__(self, streams: F32, pre: F32, /) -> F32: ...


class WriteStreams(Protocol):
    def __call__(self, streams: F32, y: F32, post: F32, comb: F32, /) -> F32: ...


class RopeLast(Protocol):
    def __call__(self, x: F32, cos: F32, sin: F32, is_back: bool = False, /) -> F32: ...


class CompressRows(Protocol):
    def __call__(self, values: F32, scores: F32, /) -> F32: ...


class WindowStart(Protocol):
    def __call__(self, pos: int, n_window: int, /) -> int: ...


class NCompressed(Protocol):
    def __call__(self, n_tokens: int, ratio: int, /) -> int: ...


class RowScores(Protocol):
    def __call__(self, q: F32, rows: F32, weights: F32, /) -> F32: ...


class BestRows(Protocol):
    def __call__(self, scores: F32, n_best: int, /) -> IDS: ...


class SinkAttention(Protocol):
    def __call__(self, q: F32, cells: NDArray, sinks: F32, kv_type: str, /) -> F32: ...


class ClampedSwiGlu(Protocol):
    def __call__(self, gate: F32, up: F32, limit: float, /) -> F32: ...


class HashedExperts(Protocol):
    def __call__(self, table: NDArray[np.int32], tokens: NDArray[np.int32], /) -> IDS: ...


class Connect(Protocol):
    def __call__(
        self, ops: "Ops", w: LayerWeights, name: str, cfg: StreamsConfig, x: F32, /
    ) -> tuple[F32, F32, F32]: ...


class LeaveStreams(Protocol):
    def __call__(self, ops: "Ops", w: LayerWeights, x: F32, cfg: StreamsConfig, tap: LayerTap, /) -> F32: ...


class WindowInput(Protocol):
    def __call__(
        self,
        ops: "Ops",
        w: LayerWeights,
        cfg: CompressedConfig,
        x: F32,
        rope_cos_sin: tuple[F32, F32],
        tap: LayerTap,
        /,
    ) -> tuple[F32, F32, F32]: ...


class Compressor(Protocol):
    def __call__(
        self,
        ops: "Ops",
        w: LayerWeights,
        name: str,
        cfg: CompressedConfig,
        x: F32,
        blocks: Blocks,
        kv_type: str,
        first: int,
        table: Table,
        tap: LayerTap,
        /,
    ) -> tuple[F32, F32]: ...


class ChosenRows(Protocol):
    def __call__(
        self,
        ops: "Ops",
        w: LayerWeights,
        cfg: CompressedConfig,
        x: F32,
        latent: F32,
        cells: NDArray,
        kv_type: str,
        first: int,
        rope_cos_sin: tuple[F32, F32],
        tap: LayerTap,
        /,
    ) -> list[IDS]: ...


class WindowAttention(Protocol):
    def __call__(
        self,
        ops: "Ops",
        w: LayerWeights,
        cfg: CompressedConfig,
        q: F32,
        raw: NDArray,
        compressed: NDArray,
        seen: list[IDS] | None,
        kv_type: str,
        first: int,
        /,
    ) -> F32: ...


class GroupedOutput(Protocol):
    def __call__(
        self,
        ops: "Ops",
        w: LayerWeights,
        cfg: CompressedConfig,
        out: F32,
        rope_cos_sin: tuple[F32, F32],
        tap: LayerTap,
        /,
    ) -> F32: ...


class CompressedAttnLayer(Protocol):
    def __call__(
        self,
        ops: "Ops",
        w: LayerWeights,
        cfg: CompressedConfig,
        x: F32,
        raw: NDArray,
        blocks: Mapping[str, Blocks],
        kv_type: str,
        first: int,
        rope_cos_sin: tuple[F32, F32],
        table: Table,
        tap: LayerTap,
        /,
    ) -> tuple[F32, NDArray, dict[str, tuple[F32, F32]]]: ...


class RouteByToken(Protocol):
    def __call__(
        self, ops: "Ops", w: LayerWeights, cfg: MoeConfig, x: F32, tokens: NDArray[np.int32], tap: LayerTap, /
    ) -> tuple[F32, Routing]: ...


class ClampedExperts(Protocol):
    def __call__(
        self, ops: "Ops", w: LayerWeights, cfg: MoeConfig, x: F32, routing: Routing, weights: F32, tap: LayerTap, /
    ) -> F32: ...


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


class UnscaledAttention(Protocol):
    def __call__(self, q: F32, k: NDArray, v: NDArray, kv_type: str, /) -> F32: ...


class SoftCap(Protocol):
    def __call__(self, logits: F32, cap: float, /) -> F32: ...


class ScaledEmbedding(Protocol):
    def __call__(self, x: F32, /) -> F32: ...


class UnscaledSeen(Protocol):
    def __call__(
        self,
        ops: "Ops",
        cfg: UnscaledConfig,
        q: F32,
        k: NDArray,
        v: NDArray,
        kv_type: str,
        pos: NDArray[np.int32],
        last: int,
        /,
    ) -> F32: ...


class CellsOf(Protocol):
    def __call__(
        self, ops: "Ops", w: LayerWeights, cfg: UnscaledConfig, x: F32, rope_cos_sin: tuple[F32, F32], tap: LayerTap, /
    ) -> tuple[F32, F32]: ...


class UnscaledAttnLayer(Protocol):
    def __call__(
        self,
        ops: "Ops",
        w: LayerWeights,
        cfg: UnscaledConfig,
        x: F32,
        k_cells: NDArray,
        v_cells: NDArray,
        kv_type: str,
        pos: NDArray[np.int32],
        last: int,
        rope_cos_sin: tuple[F32, F32],
        tap: LayerTap,
        /,
    ) -> F32: ...


class LayerInputs(Protocol):
    def __call__(
        self,
        ops: "Ops",
        roots: Mapping[str, Any],
        cfg: InputsConfig,
        tokens: NDArray[np.int32],
        x: F32,
        tap: LayerTap,
        /,
    ) -> F32: ...


class OwnInput(Protocol):
    def __call__(self, ops: "Ops", w: LayerWeights, eps: float, x: F32, inputs: F32, tap: LayerTap, /) -> F32: ...


class DenseBesideExperts(Protocol):
    def __call__(
        self, ops: "Ops", w: LayerWeights, cfg: ParallelConfig, x: F32, tap: LayerTap, /
    ) -> tuple[F32, Routing]: ...


class AssistantRow(Protocol):
    def __call__(self, ops: "Ops", w: OutputWeights, post: F32, /) -> F32: ...


class ReluSquared(Protocol):
    def __call__(self, x: F32, /) -> F32: ...


class ConvBiasSilu(Protocol):
    def __call__(self, window: F32, weight: F32, bias: F32, /) -> F32: ...


class SsmScan(Protocol):
    def __call__(self, x: F32, b: F32, c: F32, dt: F32, a: F32, state: F32, keep: int, /) -> tuple[F32, F32]: ...


class GatedGroupNorm(Protocol):
    def __call__(self, y: F32, x: F32, d: F32, z: F32, weight: F32, eps: float, /) -> F32: ...


class SsmLayer(Protocol):
    def __call__(
        self, ops: "Ops", w: LayerWeights, cfg: SsmConfig, x: F32, conv: F32, ssm: F32, keep: int, tap: LayerTap, /
    ) -> tuple[F32, Planes, Planes]: ...


class ChannelGates(Protocol):
    def __call__(self, f: F32, beta: F32, dt_bias: F32, a: F32, lower_bound: float, /) -> tuple[F32, F32]: ...


class KdaLayer(Protocol):
    def __call__(
        self, ops: "Ops", w: LayerWeights, cfg: KdaConfig, x: F32, conv: F32, ssm: F32, keep: int, tap: LayerTap, /
    ) -> tuple[F32, Planes, Planes]: ...


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
    index_cells: IndexCells
    selected_attention: SelectedAttention
    indexed_attn_layer: IndexedAttnLayer
    route: Route
    experts: Experts
    shared_expert: SharedExpert
    moe_ffn: MoeFfn
    ssm_layer: SsmLayer
    kda_layer: KdaLayer
    connect: Connect
    leave_streams: LeaveStreams
    streams_input: MtpInput
    window_input: WindowInput
    compressor: Compressor
    chosen_rows: ChosenRows
    window_attention: WindowAttention
    grouped_output: GroupedOutput
    compressed_attn_layer: CompressedAttnLayer
    route_by_token: RouteByToken
    clamped_experts: ClampedExperts
    seen_attention: SeenAttention
    windowed_attn_layer: WindowedAttnLayer
    unscaled_seen: UnscaledSeen
    cells_of: CellsOf
    unscaled_attn_layer: UnscaledAttnLayer
    layer_inputs: LayerInputs
    own_input: OwnInput
    dense_beside_experts: DenseBesideExperts
    assistant_input: MtpInput
    assistant_row: AssistantRow


class OpEntries(CoarseEntries, total=False):
    """Some entries of the table, as keywords or as a record: what stands in for the table's own."""

    mul_mat: MulMat
    get_rows: GetRows
    rms_norm: RmsNorm
    l2_norm: L2Norm
    rope_table: RopeTable
    rope: Rope
    conv_silu: ConvSilu
    conv_bias_silu: ConvBiasSilu
    ssm_scan: SsmScan
    gated_group_norm: GatedGroupNorm
    channel_gates: ChannelGates
    channel_delta_rule: DeltaRule
    sigmoid_gated_norm: GatedNorm
    relu_squared: ReluSquared
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
    layer_norm: LayerNorm
    index_scores: IndexScores
    select_cells: SelectCells
    selection_gap: SelectionGap
    stream_weights: StreamWeights
    head_weights: HeadWeights
    read_streams: ReadStreams
    write_streams: WriteStreams
    rope_last: RopeLast
    compress_rows: CompressRows
    window_start: WindowStart
    n_compressed: NCompressed
    row_scores: RowScores
    best_rows: BestRows
    sink_attention: SinkAttention
    clamped_swiglu: ClampedSwiGlu
    hashed_experts: HashedExperts
    cell_attention: CellAttention
    limited_swiglu: LimitedSwiGlu
    head_gate: HeadGate
    scaled_output: ScaledOutput
    unscaled_attention: UnscaledAttention
    geglu: SwiGlu
    soft_cap: SoftCap
    scaled_embedding: ScaledEmbedding
