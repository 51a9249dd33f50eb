"""What a layer kind is: the seam through which architectures are put together.

Owns the record of a kind (its hyper-parameters, state, forward and graph) and what a forward is told about its batch.
Kinds stand in files of their own (delta_net.py, gated_attention.py, ffn.py); a data sheet (mtpref/architectures)
combines them and lists their tensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref import spec
from mtpref.spec.config import AttnConfig, CompressedConfig, LatentConfig, UnscaledConfig, Values, WindowedConfig
from mtpref.spec.indexer import Selection
from mtpref.spec.moe import Routing
from mtpref.spec.ops import LayerTap, LayerWeights, Ops
from mtpref.spec.state import LayerState, StateSpec

F32 = NDArray[np.float32]
INPUT = "(input)"  # in a kind's graph: the rows that it is given


@dataclass(frozen=True)
class Made:
    """How an activation comes about, for whoever has to explain one.

    inputs   cb() names of the same layer, or a word in brackets that stands for one (INPUT, and those of residual.py)
    step     the operation and its weights in words, {i} for the number of the block; "": the product, or the norm, with
             the weight of which the data sheet says that it makes this (`Tensor.cb`)
    rules    functions of the specification that make it
    instead  what stands in for it in models that do not make it; None: every model makes it
    """

    inputs: tuple[str, ...]
    step: str = ""
    rules: tuple[Callable[..., Any], ...] = ()
    instead: tuple[str, ...] | None = None


_STILL = np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)  # the table of layers that do not turn
Graph = Mapping[str, Made]  # by cb() name, in the order in which they are made


@dataclass(frozen=True)
class Cells:
    """Keys and values that a layer attends to.

    k, v  (R, n_head_kv, width), of type kv_type, those of the batch last    last: the position of the last cell
    """

    k: NDArray
    v: NDArray
    kv_type: str
    last: int


@dataclass
class Span:
    """One batch of tokens of one sequence, as a layer sees it.

    pos     RoPE positions of the tokens, (T,) int32
    first   cells that the layer's positional state already holds
    keep    how many of the last tokens the recurrent state is kept for (at least 1)
    target  the trunk's layers, for a head that reads their cells; None elsewhere
    roots   tensors outside of blocks that layers read, by GGUF name
    routings  what each experts' network of the pass chose, in the order of layers: added by their kind
    tokens  their ids, (T,), for layers that choose by them
    selections  what each indexer of the pass chose, likewise; a layer that has none of its own takes the last
    cells   what layers attended to, in order, where later ones may read the cells of earlier ones
    inputs  of each layer what it is given of the tokens beside the stream (S105)
    """

    ops: Ops
    pos: NDArray[np.int32]
    first: int
    keep: int
    target: list[LayerState] | None = None
    routings: list[Routing] = field(default_factory=list)
    tokens: NDArray[np.int32] | None = None
    selections: list[Selection] = field(default_factory=list)
    roots: Mapping[str, Any] = field(default_factory=dict)
    cells: list[Cells] = field(default_factory=list)
    inputs: F32 | None = None
    _rope: dict[Any, tuple[F32, F32]] = field(default_factory=dict)

    def rope_cos_sin(self, cfg: AttnConfig, factors: F32 | None = None) -> tuple[F32, F32]:
        """The RoPE table of the batch, made once for all layers of the same shape.

        factors   what frequencies are divided by (S94), the same for all layers that have them
        """
        if not cfg.n_rot:
            return _STILL
        key = cfg, factors is None
        if key not in self._rope:
            frequencies, has_position, magnitude = rope_constants(cfg)
            if factors is not None:
                frequencies = spec.divided_frequencies(frequencies, factors)
            self._rope[key] = self.ops.rope_table(self.pos, frequencies, has_position, magnitude)
        return self._rope[key]


def rotary_of(cfg: AttnConfig | LatentConfig | CompressedConfig | WindowedConfig | UnscaledConfig) -> AttnConfig:
    """What of a layer is turned by position, as an attention layer."""
    return cfg if isinstance(cfg, AttnConfig) else cfg.rotary


@lru_cache(maxsize=16)
def rope_constants(cfg: AttnConfig) -> tuple[NDArray[np.float64], NDArray[np.bool_], float]:
    """What S10's table needs beside positions: frequencies, which pairs turn, and the magnitude. YaRN's rule holds
    where ext_factor is not 0; yarn_attn_factor counts only where it does not."""
    frequencies = spec.rope_frequencies(cfg.n_rot, cfg.freq_base)
    scaling = cfg.rope_scaling
    share, magnitude = np.zeros_like(frequencies), scaling.yarn_attn_factor
    if scaling.ext_factor:
        betas = scaling.beta_fast, scaling.beta_slow
        share = scaling.ext_factor * spec.yarn_share(cfg.n_rot, cfg.freq_base, scaling.n_ctx_orig, *betas)
        magnitude = spec.yarn_magnitude(scaling.freq_scale, scaling.log_multiplier)
    has_position = np.ones(cfg.n_rot // 2, np.bool_)
    if cfg.rope_sections is not None:
        rule = spec.imrope_has_position if cfg.has_sections_in_turn else spec.mrope_has_position
        has_position = rule(cfg.n_rot, cfg.rope_sections)
    return (
        spec.scaled_frequencies(frequencies, scaling.freq_scale, share),
        has_position,
        magnitude * scaling.attn_factor,
    )


Forward = Callable[[LayerWeights, Any, F32, LayerState, Span, LayerTap], F32]


@dataclass(frozen=True)
class LayerKind:
    """A mixer or a feed-forward network: everything that the model needs to know of it but its tensors' shapes.

    configure(values) -> the kind's frozen hyper-parameters, those of one block
    state(config, kv_type) -> the state that a sequence keeps for it
    forward(weights, config, x, state, span, tap) -> y, both (T, n_embd); x is normalised, y is added to the
        residual stream by the block; the state is advanced by T tokens
    graph   what it makes, its output last; names that other engines tap may stand in it too
    entries coarse entries of the table that it calls; empty: not said
    """

    name: str
    configure: Callable[[Values], Any]
    state: Callable[[Any, str], tuple[StateSpec, ...]]
    forward: Forward
    graph: Graph = field(default_factory=dict, compare=False)
    entries: frozenset[str] = frozenset()


def no_state(cfg: Any, kv_type: str) -> tuple[StateSpec, ...]:
    """The state of a kind that keeps none."""
    return ()


def _nothing(w: LayerWeights, cfg: Any, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    raise ValueError("a part that a block does not have was run")


# The part that a block of one part lacks: nothing runs it.
NOTHING = LayerKind("nothing", lambda values: None, no_state, _nothing)
