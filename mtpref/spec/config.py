"""Hyper-parameters: read from GGUF metadata, checked once, then frozen.

Owns typed access to keys, the configurations of layer kinds and RoPE scaling. Which keys there are, their defaults and
limits stand in the architecture's data sheet. It must not read tensors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from mtpref.base.errors import MtprefError
from mtpref.spec import rope_scaling
from mtpref.spec.rope_scaling import RopeOverrides, RopeScaling

MAX_DIM = 1 << 24  # no hyper-parameter of a real model comes near; a larger one is a mistake


class Metadata:
    """Typed access to the keys of one architecture: `u32("block_count")` reads `qwen35.block_count`.

    rope  what the caller sets in place of the file's RoPE keys
    """

    def __init__(self, kv: Mapping[str, object], source: str, rope: RopeOverrides | None = None) -> None:
        self.kv = kv
        self.source = source
        self.rope = rope or RopeOverrides()
        arch = kv.get("general.architecture")
        if not isinstance(arch, str):
            raise MtprefError(
                f"{source}: key general.architecture is missing, expected e.g. 'qwen35'; try: mtpref inspect FILE"
            )
        self.arch = arch

    def has(self, key: str) -> bool:
        return f"{self.arch}.{key}" in self.kv

    def u32(self, key: str, default: int | None = None, *, low: int = 1, high: int = MAX_DIM) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.bad(key, value, f"an integer from {low} to {high}")
        return value

    def f32(self, key: str, default: float | None = None, *, low: float, high: float) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.bad(key, value, f"a number from {low} to {high}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.bad(key, value, "true or false")
        return value

    def integers(self, key: str, length: int, default: list[int] | None = None) -> list[int]:
        """An array of `length` integers or booleans. (A longer one is cut: [t, h, w, 0] sections have
        four.)"""
        value = self._get(key, default)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise self.bad(key, value, f"an array of {length} integers")
        if len(value) < length:
            raise self.bad(key, f"{len(value)} items", f"an array of {length} integers")
        items = list(value[:length])
        if not all(isinstance(item, int) for item in items):
            raise self.bad(key, items[:4], f"an array of {length} integers")
        return [int(item) for item in items]

    def is_array(self, key: str) -> bool:
        value = self.kv.get(f"{self.arch}.{key}")
        return isinstance(value, Sequence) and not isinstance(value, str)

    def counts(self, key: str, length: int, *, low: int, high: int) -> list[int]:
        """An array of `length` counts, each within limits."""
        items = self.integers(key, length)
        for i, item in enumerate(items):
            if not low <= item <= high:
                raise self.bad(key, item, f"integers from {low} to {high} (item {i})")
        return items

    def numbers(self, key: str, length: int, *, low: float, high: float) -> list[float]:
        """An array of `length` numbers, each within limits."""
        value: Any = self._get(key, None)
        if len(value) != length:
            raise self.bad(key, f"{len(value)} items", f"an array of {length} numbers")
        items = list(value[:length])
        for i, item in enumerate(items):
            if isinstance(item, bool) or not isinstance(item, int | float) or not low <= item <= high:
                raise self.bad(key, item, f"numbers from {low} to {high} (item {i})")
        return [float(item) for item in items]

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.bad(key, value, "a string")
        return value

    def _get(self, key: str, default: object) -> object:
        value = self.kv.get(f"{self.arch}.{key}", default)
        if value is None:
            raise MtprefError(f"{self.source}: key {self.arch}.{key} is missing; try: mtpref inspect FILE")
        return value

    def bad(self, key: str, value: object, expected: str) -> MtprefError:
        found = repr(value)[:60]
        if isinstance(value, Sequence) and not isinstance(value, str | bytes | list | tuple):
            found = f"an array of {len(value)}"  # a reader's own type says nothing
        return MtprefError(
            f"{self.source}: key {self.arch}.{key} is {found}, expected {expected}; try: mtpref inspect FILE"
        )


class Values(Mapping[str, Any]):
    """The hyper-parameters of one model by the names of its data sheet, each read and checked when it is asked for.

    readers   name -> how it is read: (metadata, these values) -> value; a list has one item for each block
    il        the block that lists are read for (`at`)
    Errors    MtprefError from [name] for a key that is missing or out of range
    """

    def __init__(self, meta: Metadata, readers: Mapping[str, Callable[[Metadata, "Values"], Any]]) -> None:
        self.meta = meta
        self._readers = readers
        self._found: dict[str, Any] = {}
        self._il: int | None = None
        self._beyond: Values | None = None

    def at(self, il: int, beyond: "Values | None" = None) -> "Values":
        """The values that block il has. beyond: those of a file that has more blocks, for lists that end before il"""
        one = Values(self.meta, self._readers)
        one._found, one._il, one._beyond = self._found, il, beyond
        return one

    def having(self, **numbers: int) -> "Values":
        """The same, with counts that no key has."""
        return Values(self.meta, {**self._readers, **{name: partial(_given, n) for name, n in numbers.items()}})

    def whole(self, name: str) -> Any:
        """The value for all blocks: a list where it has one item for each."""
        if name not in self._found:
            self._found[name] = self._readers[name](self.meta, self)
        return self._found[name]

    def __getitem__(self, name: str) -> Any:
        value = self.whole(name)
        if not isinstance(value, list) or self._il is None:
            return value
        if self._il >= len(value) and self._beyond is not None:
            return self._beyond.at(self._il)[name]
        return value[self._il]

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def _given(n: int, meta: Metadata, values: Values) -> int:
    return n


@dataclass(frozen=True)
class DeltaConfig:
    """A gated DeltaNet layer; names and keys stand in the architecture's data sheet."""

    n_embd: int
    d_conv: int
    d_state: int  # S, the size of a key and of a value
    n_k_head: int  # H_k
    n_v_head: int  # H_v
    rms_eps: float
    is_grouped: bool = False  # value head h reads key head h // (H_v / H_k), not h % H_k

    @property
    def d_inner(self) -> int:
        return self.d_state * self.n_v_head

    @property
    def conv_dim(self) -> int:
        return 2 * self.d_state * self.n_k_head + self.d_inner


@dataclass(frozen=True)
class AttnConfig:
    """An attention layer, gated or plain; names and keys stand in the architecture's data sheet."""

    n_embd: int
    n_head: int
    n_head_kv: int
    n_embd_head: int  # D
    n_rot: int
    rope_sections: tuple[int, int, int, int] | None  # None: every pair turns with the position
    freq_base: float
    rms_eps: float
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    has_sections_in_turn: bool = True  # S10's sections; else they lie one after the other (S132)


@dataclass(frozen=True)
class LatentConfig:
    """An attention layer through a latent row; names and keys stand in the architecture's data sheet."""

    n_embd: int
    n_head: int
    n_key: int  # of a head before absorption: n_nope + n_rot
    n_value: int
    n_latent: int
    n_rot: int
    freq_base: float
    rms_eps: float
    is_absorbed: bool  # one cached row for all heads; False: every head's key and value, as older files have it
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)  # its log_multiplier a tenth, as files have it
    scale: float = 1.0  # what queries of latent attention are multiplied with (S54)
    is_mscale_all_dim: bool = True  # whether mscale is taken to be mscale_all_dim; else it is 1
    rope_sections: tuple[int, int, int, int] | None = None  # with sections halves are paired (S132), else neighbours

    @property
    def is_interleaved(self) -> bool:
        """Whether neighbours are paired; else halves."""
        return self.rope_sections is None

    @property
    def n_row(self) -> int:
        """Values of a cached row (of one head's)."""
        return self.n_latent + self.n_rot if self.is_absorbed else max(self.n_key, self.n_value)

    @property
    def mscale_all_dim(self) -> float:
        """The model's own, of which a file has a tenth; 0: it has none."""
        return float(np.float32(self.rope_scaling.log_multiplier) / np.float32(0.1))

    @property
    def rotary(self) -> AttnConfig:
        """The turned part as an attention layer of its own (S10). An mscale that is mscale_all_dim cancels it."""
        all_dim = float(self.mscale_all_dim > 0) if self.is_mscale_all_dim else self.mscale_all_dim
        scaling = replace(self.rope_scaling, log_multiplier=all_dim)
        shape = self.n_embd, self.n_head, 1, self.n_rot, self.n_rot
        sections = self.rope_sections
        return AttnConfig(*shape, sections, self.freq_base, self.rms_eps, scaling, has_sections_in_turn=False)


@dataclass(frozen=True)
class IndexedConfig(LatentConfig):
    """An attention layer through a latent row whose cells an indexer chooses: its own, or that of a layer before it."""

    n_index_head: int = 1
    n_index_key: int = 64
    n_top: int = 1  # cells that a token sees
    index_eps: float = 0.0  # of the keys' layer norm
    is_index_interleaved: bool = False  # neighbours are paired; else halves
    has_indexer: bool = True


@dataclass(frozen=True)
class CompressedConfig:
    """An attention layer over a window and compressed rows; names and keys stand in the architecture's data sheet."""

    n_embd: int
    n_head: int
    n_embd_head: int  # width of a row, which is key and value of all heads
    n_rot: int
    n_window: int
    ratio: int  # tokens that a compressed row stands for; 0: none
    n_group: int  # groups of heads, each with a product of its own
    freq_base: float
    rms_eps: float
    n_index_head: int
    n_index: int  # width of a row of the indexer
    n_best: int  # compressed rows that the indexer lets a token see
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)

    @property
    def has_overlap(self) -> bool:
        """Whether a block's row is made of the block before it too, and an indexer chooses among the rows."""
        return self.ratio == OVERLAP_RATIO

    @property
    def rotary(self) -> AttnConfig:
        """The turned part as an attention layer of its own (S10), of magnitude 1."""
        shape = self.n_embd, self.n_head, 1, self.n_rot, self.n_rot
        scaling = replace(self.rope_scaling, log_multiplier=1.0, attn_factor=1.0, yarn_attn_factor=1.0)
        return AttnConfig(*shape, None, self.freq_base, self.rms_eps, scaling)


OVERLAP_RATIO = 4


@dataclass(frozen=True)
class StreamsConfig:
    """Several residual streams."""

    n_embd: int
    n_streams: int
    n_iterations: int  # of Sinkhorn's rounds
    eps: float
    rms_eps: float


@dataclass(frozen=True)
class WindowedConfig:
    """An attention layer with or without a window; names and keys stand in the architecture's data sheet."""

    n_embd: int
    n_head: int
    n_head_kv: int
    n_key: int
    n_value: int
    n_window: int  # cells that a query sees, its own among them; 0: all
    n_rot: int  # 0: nothing turns
    freq_base: float
    rms_eps: float
    value_scale: float = 0.0  # after the output projection; 0: none
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    is_interleaved: bool = False  # neighbours are paired; else halves

    @property
    def rotary(self) -> AttnConfig:
        """What is turned, as an attention layer of its own (S10)."""
        shape = self.n_embd, self.n_head, self.n_head_kv, self.n_key, self.n_rot
        return AttnConfig(*shape, None, self.freq_base, self.rms_eps, self.rope_scaling)


@dataclass(frozen=True)
class UnscaledConfig:
    """An attention layer whose scores are not scaled; names and keys stand in the architecture's data sheet."""

    n_embd: int
    n_head: int
    n_head_kv: int
    n_key: int
    n_window: int  # cells that a query sees, its own among them; 0: all
    n_rot: int
    freq_base: float
    rms_eps: float
    has_cells: bool = True  # whether it has cells of its own
    source: int | None = None  # else the layer that has them: of the same trunk, or of the target's
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)

    @property
    def rotary(self) -> AttnConfig:
        """What is turned, as an attention layer of its own (S10)."""
        shape = self.n_embd, self.n_head, self.n_head_kv, self.n_key, self.n_rot
        return AttnConfig(*shape, None, self.freq_base, self.rms_eps, self.rope_scaling)


@dataclass(frozen=True)
class InputsConfig:
    """What layers are given of the tokens beside the stream."""

    n_layer: int
    n_own: int  # numbers for each layer; 0: none
    rms_eps: float


@dataclass(frozen=True)
class SsmConfig:
    """A Mamba-2 layer; names and keys stand in the architecture's data sheet."""

    n_embd: int
    d_conv: int
    d_inner: int
    d_state: int  # N
    n_head: int  # H
    n_group: int  # G
    rms_eps: float

    @property
    def conv_dim(self) -> int:
        return self.d_inner + 2 * self.n_group * self.d_state


@dataclass(frozen=True)
class KdaConfig:
    """A Kimi delta attention layer; names and keys stand in the architecture's data sheet."""

    n_embd: int
    d_conv: int
    n_head: int  # H
    size: int  # S, of a key and of a value
    lower_bound: float  # of the log decay, negative
    rms_eps: float

    @property
    def conv_dim(self) -> int:
        return 3 * self.n_head * self.size


@dataclass(frozen=True)
class FfnConfig:
    """A dense feed-forward network."""

    n_embd: int
    n_ff: int
    clamp: float = 0.0  # of the gated activation; 0: none


@dataclass(frozen=True)
class MoeConfig:
    """An experts' network: a router, experts, perhaps a shared expert."""

    n_embd: int
    n_expert: int
    n_used: int  # experts that a token goes to
    gating: str  # softmax or sigmoid
    normalise: bool  # whether the weights of a token's experts are divided by their sum
    scale: float  # what weights are multiplied with; 0: nothing
    n_group: int  # 0 or 1: no groups
    n_group_used: int
    clamp: float = 0.0  # of the experts' products before their activation; 0: none
    clamp_shared: float = 0.0  # of the shared expert's
    sum_scale: float = 0.0  # of the experts' and the shared expert's sum; 0: none


@dataclass(frozen=True)
class ParallelConfig:
    """A dense network and experts side by side."""

    moe: MoeConfig
    rms_eps: float


@dataclass(frozen=True)
class ModelConfig:
    """What belongs to the model as a whole."""

    arch: str  # general.architecture
    name: str  # general.name
    n_embd: int
    n_ctx_train: int  # context_length, or what an override of RoPE scaling makes of it
    rms_eps: float  # of its norms, RMS norms or layer norms
    n_layer: int  # block_count - nextn_predict_layers: the trunk's layers
    n_layer_nextn: int  # nextn_predict_layers
    has_layer_norms: bool = False  # layer norms stand in for RMS norms (S117)
    head_norm_eps: float | None = None  # of a head whose last norm is a layer norm (S127)
    logit_scale: float = 0.0  # what logits are multiplied with (S118); 0: nothing


def read_model_config(v: Values, *, is_assistant: bool = False) -> ModelConfig:
    """is_assistant: every block is the head's

    Errors  MtprefError for counts that contradict each other, or a key that is missing
    """
    n_block = v["n_block"]
    n_nextn = v.meta.u32("nextn_predict_layers", 0, low=0, high=n_block - (not is_assistant))
    has_layer_norms = "norm_eps" in list(v) and not v["rms_eps"]
    return ModelConfig(
        arch=v.meta.arch,
        name=str(v.meta.kv.get("general.name", "")),
        n_embd=v["n_embd"],
        n_ctx_train=_n_ctx_train(v.meta),
        rms_eps=v["norm_eps"] if has_layer_norms else v["rms_eps"],
        n_layer=n_block - n_nextn,
        n_layer_nextn=n_nextn,
        has_layer_norms=has_layer_norms,
        head_norm_eps=v["head_norm_eps"] if "head_norm_eps" in list(v) else None,
        logit_scale=v["logit_scale"] if "logit_scale" in list(v) else 0.0,
    )


# ------------------------------------------------------------------------------------------- RoPE scaling

# llama.cpp reads the yarn_* keys for some architectures only (deepseek2, grok, mistral3, ...): key -> field.
YARN_KEYS = {
    "yarn_ext_factor": "ext_factor",
    "yarn_attn_factor": "yarn_attn_factor",
    "yarn_log_multiplier": "log_multiplier",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


def read_rope_scaling(meta: Metadata, freq_base: float, *, has_yarn_keys: bool = False) -> RopeScaling:
    """The RoPE scaling of a run, from `rope.scaling.*` and the caller's overrides.

    freq_base      the base in use
    has_yarn_keys  whether the architecture reads the yarn_* keys; where it does not, llama.cpp's defaults hold and
                   `rope_notes` says so
    Errors         MtprefError for an unknown type, or a number that no scaling has, used or not
    """
    keys = _rope_keys(meta)
    keys |= {field: value for field, value in _yarn_keys(meta).items() if has_yarn_keys}
    scaling = rope_scaling.resolve(keys, meta.rope)
    n_ctx = _context(meta, scaling)
    if scaling.freq_scale * n_ctx > rope_scaling.MAX_ANGLE and scaling.freq_scale > 1.0:
        raise MtprefError(
            f"{meta.source}: RoPE frequencies times {scaling.freq_scale:g} over {n_ctx} positions, "
            f"expected angles below {rope_scaling.MAX_ANGLE}; use a scale of 1 or less"
        )
    if scaling.ext_factor and freq_base <= 1.0:
        raise MtprefError(
            f"{meta.source}: {meta.arch}.rope.freq_base is 1, expected more than 1: YaRN needs "
            "frequencies that differ; try `RopeOverrides.freq_base` 10000"
        )
    return scaling


def _rope_keys(meta: Metadata) -> dict[str, float | int | str]:
    """The keys that every architecture has, by field of RopeScaling; a missing type is llama.cpp's: linear."""
    scaling_type = meta.text("rope.scaling.type", "linear")
    if scaling_type not in rope_scaling.TYPES and meta.rope.scaling_type is None:
        why = "the factors of longrope are not implemented (llama.cpp's graph does not read them either); " \
            if scaling_type == "longrope" else ""  # fmt: skip
        raise meta.bad("rope.scaling.type", scaling_type, f"one of {', '.join(rope_scaling.TYPES)}; {why}"
                       "`RopeOverrides.scaling_type` overrides the key")  # fmt: skip
    name = "rope.scaling.factor" if meta.has("rope.scaling.factor") else "rope.scale_linear"
    factor = meta.f32(name, 0.0, low=0.0, high=rope_scaling.MAX_FACTOR)
    is_unset = factor == 0.0 and scaling_type != "yarn"  # llama.cpp writes 0 where nothing is scaled
    if meta.has(name) and factor < rope_scaling.MIN_FACTOR and not is_unset:
        raise meta.bad(name, factor, f"a number from {rope_scaling.MIN_FACTOR:g} to {rope_scaling.MAX_FACTOR:g}")
    low, high = rope_scaling.LIMITS["attn_factor"]
    return {
        "type": scaling_type,
        "freq_scale": rope_scaling.freq_scale_of(factor),
        "n_ctx_orig": meta.u32("rope.scaling.original_context_length", meta.u32("context_length")),
        "attn_factor": meta.f32("rope.scaling.attn_factor", 1.0, low=low, high=high),
    }


def _yarn_keys(meta: Metadata) -> dict[str, float]:
    """The yarn_* keys that the file has, by field of RopeScaling. llama.cpp writes an unset ext_factor as -1."""
    found = {}
    for key, name in YARN_KEYS.items():
        if not meta.has(f"rope.scaling.{key}"):
            continue
        low, high = rope_scaling.LIMITS[name.removeprefix("yarn_")]
        value = meta.f32(f"rope.scaling.{key}", low=-1.0 if name == "ext_factor" else low, high=high)
        if value >= 0.0:
            found[name] = value
    return found


def rope_notes(meta: Metadata, scaling: RopeScaling) -> tuple[str, ...]:
    """One line that states the scaling where there is any, and one that names the scaling keys nobody reads."""
    notes = []
    if scaling.freq_scale != 1.0 or scaling.ext_factor or scaling.attn_factor * scaling.yarn_attn_factor != 1.0:
        yarn = f"; YaRN, original context {scaling.n_ctx_orig}" if scaling.ext_factor else ""
        notes.append(f"RoPE scaling {scaling.type}: frequencies times {scaling.freq_scale:g}{yarn}, for trunk and head")
    used = {f"{meta.arch}.rope.scaling.{key}": getattr(scaling, name) for key, name in YARN_KEYS.items()}
    used[f"{meta.arch}.rope.scaling.alpha"] = 0.0  # another architecture's rule
    ignored = [f"{key} = {repr(meta.kv[key])[:20]} ({value:g} is used)" for key, value in used.items()
               if key in meta.kv and meta.kv[key] not in (value, -1.0)]  # fmt: skip
    if ignored:
        notes.append(
            f"{', '.join(ignored)}: not read, as in llama.cpp for {meta.arch}; "
            "`RopeOverrides.ext_factor` and its like set them"
        )
    return tuple(notes)


def _n_ctx_train(meta: Metadata) -> int:
    return _context(meta, rope_scaling.resolve(_rope_keys(meta), meta.rope))


def _context(meta: Metadata, scaling: RopeScaling) -> int:
    """context_length; where an override changes the scale, at least the original context divided by it."""
    in_file = rope_scaling.resolve(_rope_keys(meta), RopeOverrides())
    if scaling.freq_scale == in_file.freq_scale:
        return meta.u32("context_length")
    n_ctx = max(meta.u32("context_length"), int(scaling.n_ctx_orig / scaling.freq_scale))
    if n_ctx > MAX_DIM:
        raise MtprefError(
            f"{meta.source}: an original context of {scaling.n_ctx_orig} at a RoPE scale of "
            f"{scaling.freq_scale:g} is {n_ctx} positions, expected at most {MAX_DIM}; "
            "try `RopeOverrides.n_ctx_orig` or another scale"
        )
    return n_ctx
