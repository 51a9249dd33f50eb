"""Hyper-parameters: read from GGUF metadata, checked once, then frozen.

Owns the field names (llama.cpp's short ones; the GGUF key stands beside each) and their sanity limits. It
must not read tensors. An architecture's layer kinds (mtpref/model) say which of these they need.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mtpref.errors import MtprefError

MAX_DIM = 1 << 24  # no hyper-parameter of a real model comes near; a larger one is a damaged file


class Metadata:
    """Typed access to the keys of one architecture: `u32("block_count")` reads `qwen35.block_count`."""

    def __init__(self, kv: Mapping[str, object], source: str) -> None:
        self.kv = kv
        self.source = source
        arch = kv.get("general.architecture")
        if not isinstance(arch, str):
            raise MtprefError(f"{source}: key general.architecture is missing, expected e.g. 'qwen35'; "
                              "try: mtpref inspect FILE")  # fmt: skip
        self.arch = arch

    def has(self, key: str) -> bool:
        return f"{self.arch}.{key}" in self.kv

    def u32(self, key: str, default: int | None = None, *, low: int = 1, high: int = MAX_DIM) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._bad(key, value, f"an integer from {low} to {high}")
        return value

    def f32(self, key: str, default: float | None = None, *, low: float, high: float) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self._bad(key, value, f"a number from {low} to {high}")
        return float(value)

    def integers(self, key: str, length: int, default: list[int] | None = None) -> list[int]:
        """An array of `length` integers or booleans. (A longer one is cut: [t, h, w, 0] sections have
        four.)"""
        value = self._get(key, default)
        try:
            items = [int(item) for item in value]  # type: ignore[attr-defined]
        except (TypeError, ValueError):
            raise self._bad(key, value, f"an array of {length} integers") from None
        if len(items) < length:
            raise self._bad(key, f"{len(items)} items", f"an array of {length} integers")
        return items[:length]

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._bad(key, value, "a string")
        return value

    def _get(self, key: str, default: object) -> object:
        value = self.kv.get(f"{self.arch}.{key}", default)
        if value is None:
            raise MtprefError(f"{self.source}: key {self.arch}.{key} is missing; try: mtpref inspect FILE")
        return value

    def _bad(self, key: str, value: object, expected: str) -> MtprefError:
        found = repr(value)[:60]
        return MtprefError(f"{self.source}: key {self.arch}.{key} is {found}, expected {expected}; "
                           "try: mtpref inspect FILE")  # fmt: skip


@dataclass(frozen=True)
class DeltaConfig:
    """A gated DeltaNet layer."""

    n_embd: int  # embedding_length
    d_conv: int  # ssm.conv_kernel
    d_state: int  # ssm.state_size: S, the size of a key and of a value
    n_k_heads: int  # ssm.group_count: H_k
    n_v_heads: int  # ssm.time_step_rank: H_v
    rms_eps: float  # attention.layer_norm_rms_epsilon

    @property
    def d_inner(self) -> int:
        return self.d_state * self.n_v_heads

    @property
    def conv_dim(self) -> int:
        return 2 * self.d_state * self.n_k_heads + self.d_inner


@dataclass(frozen=True)
class AttnConfig:
    """A gated attention layer."""

    n_embd: int  # embedding_length
    n_head: int  # attention.head_count
    n_head_kv: int  # attention.head_count_kv
    n_embd_head: int  # attention.key_length: D
    n_rot: int  # rope.dimension_count
    rope_sections: tuple[int, int, int, int]  # rope.dimension_sections
    freq_base: float  # rope.freq_base
    rms_eps: float  # attention.layer_norm_rms_epsilon


@dataclass(frozen=True)
class FfnConfig:
    """A dense feed-forward network."""

    n_embd: int  # embedding_length
    n_ff: int  # feed_forward_length


@dataclass(frozen=True)
class ModelConfig:
    """What belongs to the model as a whole."""

    arch: str  # general.architecture
    name: str  # general.name
    n_embd: int  # embedding_length
    n_ctx_train: int  # context_length
    rms_eps: float  # attention.layer_norm_rms_epsilon
    n_layer: int  # block_count - nextn_predict_layers: the trunk's layers
    n_layer_nextn: int  # nextn_predict_layers


def read_model_config(meta: Metadata) -> ModelConfig:
    n_block = meta.u32("block_count", high=4096)
    n_nextn = meta.u32("nextn_predict_layers", 0, low=0, high=n_block - 1)
    return ModelConfig(
        arch=meta.arch,
        name=str(meta.kv.get("general.name", "")),
        n_embd=meta.u32("embedding_length"),
        n_ctx_train=meta.u32("context_length"),
        rms_eps=read_rms_eps(meta),
        n_layer=n_block - n_nextn,
        n_layer_nextn=n_nextn,
    )


def read_rms_eps(meta: Metadata) -> float:
    return meta.f32("attention.layer_norm_rms_epsilon", low=0.0, high=1.0)


def read_delta_config(meta: Metadata) -> DeltaConfig:
    cfg = DeltaConfig(
        n_embd=meta.u32("embedding_length"),
        d_conv=meta.u32("ssm.conv_kernel", low=2, high=32),
        d_state=meta.u32("ssm.state_size", high=4096),
        n_k_heads=meta.u32("ssm.group_count", high=4096),
        n_v_heads=meta.u32("ssm.time_step_rank", high=4096),
        rms_eps=read_rms_eps(meta),
    )
    if cfg.n_v_heads % cfg.n_k_heads:
        raise MtprefError(f"{meta.source}: {meta.arch}.ssm.time_step_rank {cfg.n_v_heads} is no multiple of "
                          f"{meta.arch}.ssm.group_count {cfg.n_k_heads}; is the file damaged?")  # fmt: skip
    d_inner = meta.u32("ssm.inner_size")
    if d_inner != cfg.d_inner:
        raise MtprefError(f"{meta.source}: {meta.arch}.ssm.inner_size is {d_inner}, expected {cfg.d_inner} = "
                          "state_size * time_step_rank; is the file damaged?")  # fmt: skip
    return cfg


def read_attn_config(meta: Metadata) -> AttnConfig:
    n_embd, n_head = meta.u32("embedding_length"), meta.u32("attention.head_count", high=4096)
    n_head_kv = meta.u32("attention.head_count_kv", n_head, high=4096)
    d_head = meta.u32("attention.key_length", n_embd // n_head, high=4096)
    d_value = meta.u32("attention.value_length", d_head, high=4096)
    n_rot = meta.u32("rope.dimension_count", d_head, high=4096)
    if n_head % n_head_kv or d_value != d_head or n_rot > d_head or n_rot % 2:
        raise MtprefError(f"{meta.source}: attention shape head_count {n_head}, head_count_kv {n_head_kv}, "
                          f"key_length {d_head}, value_length {d_value}, rope.dimension_count {n_rot}, expected "
                          "a multiple of head_count_kv, equal lengths and an even dimension_count "
                          "no larger than key_length")  # fmt: skip
    scaling = str(meta.kv.get(f"{meta.arch}.rope.scaling.type", "none"))
    if scaling != "none":
        raise MtprefError(f"{meta.source}: {meta.arch}.rope.scaling.type is {scaling!r}, expected 'none': "
                          "RoPE scaling is not implemented; use a file without it")  # fmt: skip
    t, h, w, e = meta.integers("rope.dimension_sections", 4)
    return AttnConfig(
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_embd_head=d_head,
        n_rot=n_rot,
        rope_sections=(t, h, w, e),
        freq_base=meta.f32("rope.freq_base", 10000.0, low=1.0, high=1e12),
        rms_eps=read_rms_eps(meta),
    )


def read_ffn_config(meta: Metadata) -> FfnConfig:
    return FfnConfig(n_embd=meta.u32("embedding_length"), n_ff=meta.u32("feed_forward_length"))
