"""The words of a data sheet: what an architecture says of itself, and everything else derives from.

Owns the records. `qwen35.py` is the sheet to read beside it. A sheet names layer kinds and tensors; it runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtpref.architectures.dims import Dim, Named, Shape
from mtpref.architectures.transforms import AS_IS, Change
from mtpref.spec.config import MAX_DIM, Metadata, Values
from mtpref.spec.kinds import LayerKind, Residual

Rows = NDArray[np.intp]
N_EMBD = Named("n_embd")
OPTIONAL = object()  # a field of config.json that may be absent, and then no key is written


@dataclass(frozen=True)
class Hyper(Named):
    """A hyper-parameter, and a count that shapes are written with.

    name      llama.cpp's short one       key    the GGUF key below the architecture's prefix
    type      u32, f32, bool, str, arr:i32, arr:bool (which the rule of layers reads); u32/layer, f32/layer: one number,
              or one for each block; i32/layer: always an array; i32/trunk: an array that need not speak of heads
    default   where the key is absent: a value, or a function of the values before it; None: the key is required
    low, high what is legal
    hf        config.json's field, or a function of what config.json says (see hf/config.py); "": made elsewhere
    hf_fields fields of config.json that such a function cannot do without
    length    items of an array that are read
    hf_default  where config.json lacks it; OPTIONAL: no key; None: the field is required
    """

    key: str = ""
    type: str = "u32"
    default: Any = None
    low: float = 1
    high: float = MAX_DIM
    hf: str | Callable[[Mapping[str, Any]], Any] = ""
    hf_fields: tuple[str, ...] = ()
    hf_default: Any = None
    length: int = 4

    __str__ = Named.__str__

    def of_checkpoint(self, found: Mapping[str, Any]) -> Any:
        """The value that a conversion writes; None: no key.

        found   config.json's fields, those of rope_parameters among them, and n_embd_head
        """
        if callable(self.hf):
            return self.hf(found)
        value = found.get(self.hf)
        return value if value is not None or self.hf_default is OPTIONAL else self.hf_default

    def read(self, meta: Metadata, values: Values) -> Any:
        """The value of a file. Errors: MtprefError for a key that is missing or out of range"""
        default = self.default
        if callable(default) and not meta.has(self.key):
            default = default(values)
        if self.type == "f32":
            return meta.f32(self.key, default, low=self.low, high=self.high)
        if self.type == "f32/layer":
            return self._of_layers(meta, values, default)
        if self.type == "i32/layer":
            return meta.counts(self.key, values["n_block"], low=int(self.low), high=int(self.high))
        if self.type == "str":
            return meta.text(self.key, default)
        if self.type == "bool":
            return meta.flag(self.key, default)
        if self.type == "arr:i32":
            return tuple(meta.integers(self.key, self.length, default))
        if self.type == "u32/layer" and meta.is_array(self.key):
            return meta.counts(self.key, values["n_block"], low=int(self.low), high=int(self.high))
        return meta.u32(self.key, default, low=int(self.low), high=int(self.high))

    def _of_layers(self, meta: Metadata, values: Values, default: Any) -> Any:
        if meta.is_array(self.key):
            return meta.numbers(self.key, values["n_block"], low=self.low, high=self.high)
        if isinstance(default, list) and not meta.has(self.key):
            return default
        return meta.f32(self.key, default, low=self.low, high=self.high)


@dataclass(frozen=True)
class Tensor:
    """One tensor, said once.

    name      GGUF's; in a block without "blk.N."
    shape     NumPy order, in the names of hyper-parameters; three dimensions are a stack of matrices (experts)
    hf        the name in a checkpoint, below the prefix of its layer or head
    change    what a conversion does to its values and rows
    fallback  names that stand in for it, the first present wins
    optional  whether it may be absent with nothing in its place
    group     of optional tensors: the name of those that are there together or not at all
    cb        llama.cpp's name of what the graph makes with it, as its kind has it (`Architecture.cb` renames)
    role      the quantiser's category: "attn_v", "attn_k", "attn_output", "ffn_down", "output", "token_embd", or "" for
              the rest
    keep_f32  held and stored as float32 whatever its dimensions
    stays_f32 a matrix that is stored as float32, whatever type a file is quantised to
    converts_f32  one that a conversion stores as float32, and a quantiser in a type
    converts_typed  one that stays as it is in a quantiser, and a conversion stores in a type
    parts     names that it is held under in its place, each with the rows that it has of it (of each matrix of a stack)
    by_rank   checkpoints in FP8 may have it cut for tensor parallelism, each rank's share of all `parts` together
    below     of a table of int32: every value is at least 0 and below this count

    The name in a checkpoint of a stack has {e} for the expert's number.
    """

    name: str
    shape: Shape
    hf: str = ""
    change: Change = AS_IS
    fallback: tuple[str, ...] = ()
    optional: bool = False
    group: str = ""
    cb: str = ""
    role: str = ""
    keep_f32: bool = False
    stays_f32: bool = False
    converts_f32: bool = False
    converts_typed: bool = False
    parts: tuple[tuple[str, Dim], ...] = ()
    by_rank: bool = False
    below: Dim | None = None

    @property
    def required(self) -> bool:
        return not self.fallback and not self.optional

    @property
    def is_matrix(self) -> bool:
        """Whether it is held as it lies in the file, not as float32."""
        return len(self.shape) > 1 and not self.keep_f32 and self.below is None

    @property
    def is_quantised(self) -> bool:
        """Whether a quantiser changes its type."""
        return self.is_matrix and not self.stays_f32

    @property
    def is_typed(self) -> bool:
        """Whether a conversion writes it in another type than float32."""
        return (self.is_quantised or self.converts_typed) and not self.converts_f32

    def at(self, il: int) -> Tensor:
        """The tensor of block il, by its whole name."""
        return replace(self, name=f"blk.{il}.{self.name}")


@dataclass(frozen=True)
class Either:
    """Alternatives: the first whose tensors are all there is taken (gate_up, or gate and up)."""

    choices: tuple[tuple[Tensor, ...], ...]

    def chosen(self, il: int, names: Container[str]) -> tuple[Tensor, ...]:
        """The first alternative that block il of a file with these tensors has.

        Where it has none: the first that checkpoints have, which is what converters write, else the last.
        """
        there = (choice for choice in self.choices if all(t.at(il).name in names for t in choice))
        written = next((choice for choice in self.choices if all(t.hf for t in choice)), self.choices[-1])
        return next(there, written)


@dataclass(frozen=True)
class Block:
    """A block of the network: x goes through `residual`, which calls mixer and feed-forward network.

    name      what inspect calls it       tensors   norms, mixer's, feed-forward network's
    marks     beginnings of tensor names that only such a block has among this architecture's
    looks_like  the block whose marks it has, where keys alone tell the two apart
    """

    name: str
    mixer: LayerKind
    ffn: LayerKind
    tensors: tuple[Tensor | Either, ...]
    residual: Residual
    marks: tuple[str, ...] = ()
    looks_like: str = ""

    def all_tensors(self) -> Iterator[Tensor]:
        """Every tensor of every alternative."""
        return tensors_of(self.tensors)


@dataclass(frozen=True)
class HeadSheet:
    """An MTP head.

    block     its own block
    tensors   what stands around the block (nextn.*)
    hidden    the trunk's row that it takes, chain: its own row that the next draft step takes: `post` or `pre` the norm
    n_hidden  how wide those rows are
    reads_target  whether it has no cells of its own and attends to the trunk's; every draft step then takes the same
              position
    enter     makes the block's rows of embedding and hidden row; arguments as ops.mtp_input's, which is the default
    leave     makes the row that the next step takes of the normed one: (ops, the head's weights, rows)
    without   (tensor, block): the head's own block where a file lacks that tensor
    norm_instead  a tensor of the head's block that stands in for its nextn.shared_head_norm, before the trunk's does
    may_lack  whether a file may count a head that it does not hold (its eh_proj is not there): it runs as a trunk
    is_probed whether such a file runs with every block counted as the trunk's, whatever nextn_predict_layers says
    """

    block: Block
    tensors: tuple[Tensor, ...]
    hidden: str = "post"
    chain: str = "post"
    n_hidden: Dim = N_EMBD
    reads_target: bool = False
    enter: Callable[..., NDArray[np.float32]] | None = None
    leave: Callable[..., NDArray[np.float32]] | None = None
    without: tuple[str, Block] | None = None
    may_lack: bool = False
    is_probed: bool = False
    norm_instead: str = ""

    def block_at(self, il: int, names: Container[str]) -> Block:
        """The block of the head that is block il of a file with these tensors."""
        return self.without[1] if self.without and f"blk.{il}.{self.without[0]}" not in names else self.block

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every block that the head can have."""
        return (self.block, *([self.without[1]] if self.without else []))

    def all_tensors(self) -> tuple[Tensor, ...]:
        return (*self.tensors, *self.block.all_tensors())


class Keys(Protocol):
    """A file's keys below the architecture's prefix, read without trust."""

    def integer(self, key: str) -> int | None:
        """The value; None for what is absent or no integer."""
        ...

    def integers(self, key: str, n: int) -> list[int] | str | None:
        """The first n integers of an array; None: absent; a text: what is there in their place."""
        ...

    def flags(self, key: str, n: int) -> list[bool] | str | None:
        """n flags; None: absent; a text: what is there in their place ("has 3 elements")."""
        ...

    def has_tensor(self, name: str) -> bool:
        """Whether the file has a tensor of this name."""
        ...


class LayerRule(Protocol):
    """Which block each trunk layer is."""

    def blocks(self, meta: Metadata, n_layer: int, names: frozenset[str]) -> tuple[Block, ...]:
        """From keys and, where an architecture does so, from the tensors that are there. Refuses bad keys."""
        ...

    def declared(self, keys: Keys, n_blocks: int, n_trunk: int, problems: list[str]) -> tuple[tuple[Block, ...], str]:
        """The trunk's blocks as keys that may be wrong declare them, and by which key; adds to `problems`."""
        ...

    def keys_of(self, found: Mapping[str, Any], n_layer: int, n_heads: int) -> list[tuple[str, Any, str]]:
        """The keys that say so in a GGUF, of what config.json says: (key, value, kind)."""
        ...

    def of_checkpoint(self, found: Mapping[str, Any], n_layer: int) -> tuple[Block, ...] | None:
        """What config.json says, where the keys that it becomes do not; None: nothing, or the keys do."""
        ...

    def all_blocks(self) -> tuple[Block, ...]:
        """Every block that a layer can be."""
        ...


@dataclass(frozen=True)
class Alternating:
    """An array of flags where the file has it, else every so many layers one is `other`.

    flags      key of the array, true for `marked`          interval, default   key and value of the distance
    hf_flags   config.json's list of kinds, by hf_kinds     hf_interval         config.json's field
    """

    marked: Block
    other: Block
    flags: str
    interval: str
    default: int
    hf_flags: str
    hf_kinds: Mapping[str, bool]
    hf_interval: str

    def blocks(self, meta: Metadata, n_layer: int, names: frozenset[str]) -> tuple[Block, ...]:
        if meta.has(self.flags):
            return self.by_flags(meta.integers(self.flags, n_layer))
        return self.by_interval(meta.u32(self.interval, self.default, high=4096), n_layer)

    def declared(self, keys: Keys, n_blocks: int, n_trunk: int, problems: list[str]) -> tuple[tuple[Block, ...], str]:
        flags = keys.flags(self.flags, n_blocks)
        if isinstance(flags, list):
            if any(flags[n_trunk:]):
                problems.append(f"key {self.flags} marks an MTP block recurrent, expected 0 there")
            return self.by_flags(flags[:n_trunk]), self.flags
        if flags is not None:
            problems.append(f"key {self.flags} {flags}, expected one bool for each of {n_blocks} blocks")
        interval = keys.integer(self.interval)
        if interval is not None and interval < 1:
            problems.append(f"key {self.interval} is {interval}, expected at least 1")
            interval = None
        by = self.interval if interval is not None else f"{self.interval} = {self.default}, the default"
        return self.by_interval(interval or self.default, n_trunk), by

    def keys_of(self, found: Mapping[str, Any], n_layer: int, n_heads: int) -> list[tuple[str, Any, str]]:
        keys: list[tuple[str, Any, str]] = []
        kinds = found.get(self.hf_flags)
        if kinds is not None:
            flags = [self.hf_kinds[kind] for kind in kinds]
            keys.append((self.flags, [*flags, *[False] * n_heads], "arr:bool"))
        return [*keys, (self.interval, found.get(self.hf_interval) or self.default, "u32")]

    def of_checkpoint(self, found: Mapping[str, Any], n_layer: int) -> tuple[Block, ...] | None:
        return None

    def by_flags(self, flags: Sequence[int]) -> tuple[Block, ...]:
        return tuple(self.marked if flag else self.other for flag in flags)

    def by_interval(self, interval: int, n_layer: int) -> tuple[Block, ...]:
        return self.by_flags([int((il + 1) % interval != 0) for il in range(n_layer)])

    def all_blocks(self) -> tuple[Block, ...]:
        return self.marked, self.other


@dataclass(frozen=True)
class LeadingDense:
    """The first so many layers, by a key, are `dense`, the others `rest`.

    key       the count's, 0 where it is absent        hf   config.json's field, or a function of its fields
    """

    dense: Block
    rest: Block
    key: str
    hf: str | Callable[[Mapping[str, Any]], int | None]

    def blocks(self, meta: Metadata, n_layer: int, names: frozenset[str]) -> tuple[Block, ...]:
        return self.by_count(meta.u32(self.key, 0, low=0), n_layer)

    def declared(self, keys: Keys, n_blocks: int, n_trunk: int, problems: list[str]) -> tuple[tuple[Block, ...], str]:
        count = keys.integer(self.key)
        if count is not None and count < 0:
            problems.append(f"key {self.key} is {count}, expected 0 or more")
        by = self.key if count is not None else f"{self.key} = 0, the default"
        return self.by_count(max(0, count or 0), n_trunk), by

    def keys_of(self, found: Mapping[str, Any], n_layer: int, n_heads: int) -> list[tuple[str, Any, str]]:
        count = self.count_of(found)
        return [] if count is None else [(self.key, count, "u32")]

    def count_of(self, found: Mapping[str, Any]) -> int | None:
        """As config.json has it."""
        return self.hf(found) if callable(self.hf) else found.get(self.hf)

    def of_checkpoint(self, found: Mapping[str, Any], n_layer: int) -> tuple[Block, ...] | None:
        return None

    def by_count(self, count: int, n_layer: int) -> tuple[Block, ...]:
        return tuple(self.dense if il < count else self.rest for il in range(n_layer))

    def all_blocks(self) -> tuple[Block, ...]:
        return self.dense, self.rest


@dataclass(frozen=True)
class ByTensor:
    """A layer that has this tensor is `having`, another is `lacking`.

    hf_kinds  config.json's field that lists "sparse" for each layer with it, "dense" for another
    hf_count  the field that says how many layers come first without it, where there is no list
    hf_having (config.json's fields, layers) -> whether each layer has it, where neither field says it
    hf_keys   config.json's fields -> keys of a GGUF that say so, which no graph reads
    """

    having: Block
    lacking: Block
    tensor: str
    hf_kinds: str
    hf_count: str
    hf_having: Callable[[Mapping[str, Any], int], list[bool] | None] | None = None
    hf_keys: Callable[[Mapping[str, Any]], list[tuple[str, Any, str]]] | None = None

    def blocks(self, meta: Metadata, n_layer: int, names: frozenset[str]) -> tuple[Block, ...]:
        return tuple(self._of(f"blk.{il}.{self.tensor}" in names) for il in range(n_layer))

    def declared(self, keys: Keys, n_blocks: int, n_trunk: int, problems: list[str]) -> tuple[tuple[Block, ...], str]:
        found = [keys.has_tensor(f"blk.{il}.{self.tensor}") for il in range(n_trunk)]
        return tuple(map(self._of, found)), f"the presence of {self.tensor}"

    def keys_of(self, found: Mapping[str, Any], n_layer: int, n_heads: int) -> list[tuple[str, Any, str]]:
        return self.hf_keys(found) if self.hf_keys else []

    def of_checkpoint(self, found: Mapping[str, Any], n_layer: int) -> tuple[Block, ...] | None:
        having = self.hf_having(found, n_layer) if self.hf_having else None
        if having is not None:
            return tuple(map(self._of, having))
        if self.hf_kinds in found:
            return tuple(self._of(kind == "sparse") for kind in found[self.hf_kinds])
        n_lacking = found.get(self.hf_count)
        return None if n_lacking is None else tuple(self._of(il >= n_lacking) for il in range(n_layer))

    def _of(self, has_it: bool) -> Block:
        return self.having if has_it else self.lacking

    def all_blocks(self) -> tuple[Block, ...]:
        return self.having, self.lacking


@dataclass(frozen=True)
class Fused:
    """A tensor of a checkpoint that is several of the sheet's: their names below the layer, and the rows of each.

    rows(values) -> for each part its rows in the fused tensor; None: equal shares in order
    """

    hf: str
    parts: tuple[str, ...]
    rows: Callable[[Mapping[str, int]], list[Rows]] | None = None


def by_group(n_groups: int, widths: Sequence[int]) -> list[Rows]:
    """Rows laid out group by group, each with parts of these widths -> the rows of each part."""
    grid = np.arange(n_groups * sum(widths)).reshape(n_groups, sum(widths))
    edges = np.cumsum([0, *widths]).tolist()
    return [grid[:, a:b].reshape(-1) for a, b in pairwise(edges)]


def one_after_the_other(sizes: Sequence[int]) -> list[Rows]:
    """The rows of parts of these sizes."""
    return by_group(1, sizes)


@dataclass(frozen=True)
class Joined:
    """A tensor of the sheet that is several of a checkpoint, side by side in its columns: names below the head."""

    hf: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class FusedStack:
    """A tensor of a checkpoint that holds a matrix for every expert, (n_expert, rows, n_in): one or several stacks.

    parts     checkpoint names of the sheet's stacks ({e} in them), each an equal share of the rows, in order
    """

    hf: str
    parts: tuple[str, ...]


SILU: Mapping[str, tuple[Any, ...]] = {"hidden_act": ("silu", "swish")}


@dataclass(frozen=True)
class HuggingFace:
    """How checkpoints of the architecture are told and named.

    classes, model_types   config.json's `architectures` and `model_type`
    layer      prefix of a trunk layer's tensors: {il} is the layer
    head, head_block   prefixes of a head's nextn tensors, and of its block's: {i} counts heads, {il} goes on counting
               layers
    n_heads    config.json's field that counts heads
    fused      names that stand for several tensors
    stacks     names that stand for the experts of one or several stacks at once
    joined     tensors of the head that are several in a checkpoint
    idle       tensors of a layer that are left out where its block has no place for them
    unread     beginnings of names of tensors that are left out, since no graph reads them
    plain_bpe  the name of a tokenizer over characters, not bytes (tokenizer.ggml.model); "": one over bytes
    says_heads whether published checkpoints have the field n_heads; else their tensors alone say it
    special    special tokens by role, where a converter takes them by text and not from the tokenizer's files
    special_classes  the classes for which it does so; (): all
    without_head_dim  classes whose configuration in transformers has no head_dim of its own: without the field
               a converter writes the widths of a head late
    sorts_stacks  whether a converter writes a layer's stacks of experts by name; else in the sheet's order
    late       keys that a converter writes later than those of other architectures, in the sheet's order
    n_layer    how many layers config.json has, where another field than num_hidden_layers says it; 0: that one
    gating_field  config.json's field of how a router chooses: with it the key stands early, without it late
    has_windows  whether config.json has the fields of attention with windows (hf/config.py)
    factors    of RoPE frequencies: config.json's fields -> the values of rope_freqs.weight; None: no such tensor
    fixed      fields of config.json that a GGUF has no key for, with the values that its engines go by
    doubt      of config.json's fields: what engines read in them otherwise, to be told with a conversion; None: nothing
    layers_after, heads_after   the key after which a converter writes those of the layers and of the heads
    """

    classes: tuple[str, ...]
    model_types: tuple[str, ...]
    layer: str
    head: str
    head_block: str
    n_heads: str
    fused: tuple[Fused, ...] = ()
    stacks: tuple[FusedStack, ...] = ()
    joined: tuple[Joined, ...] = ()
    idle: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    plain_bpe: str = ""
    says_heads: bool = True
    special: tuple[tuple[str, str], ...] = ()
    special_classes: tuple[str, ...] = ()
    without_head_dim: tuple[str, ...] = ()
    layers_after: str = ""
    heads_after: str = "general.file_type"
    sorts_stacks: bool = True
    late: tuple[str, ...] = ()
    gating_field: str = "scoring_func"
    n_layer: Callable[[Mapping[str, Any]], int] | None = None
    has_windows: bool = False
    factors: Callable[[Mapping[str, Any]], list[float] | None] | None = None
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: SILU)
    doubt: Callable[[Mapping[str, Any]], str | None] | None = None

    def special_of(self, config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """The special tokens by role that a checkpoint with this config.json takes by text."""
        named = config.get("architectures")
        name = named[0] if isinstance(named, list) and named else None
        return self.special if not self.special_classes or name in self.special_classes else ()


@dataclass(frozen=True)
class Streams:
    """A residual stream that is wider than a row (hyper-connections): rows of their own width between the blocks.

    enter(embedding rows, config) -> rows of the stream; leave(ops, weights outside of blocks, rows, config, tap) ->
    (T, n_embd), before the final norm. config: what a block's residual makes of the file's keys
    tensors   names of what `leave` reads: a head's own are those of the file that holds its block
    """

    enter: Callable[[NDArray[np.float32], Any], NDArray[np.float32]]
    leave: Callable[..., NDArray[np.float32]]
    tensors: tuple[str, ...]


class Ends(Protocol):
    """What a trunk does with rows before its first block, and with logits after its output.

    configure(values) -> hyper-parameters of its own
    enter(what the layers are told of the batch, rows of the embedding, those, tap) -> rows of the stream
    logits(ops, what the output gives, those) -> the model's logits
    needed(those) -> names of tensors outside of blocks that it cannot do without
    """

    def configure(self, v: Values) -> Any: ...
    def enter(self, span: Any, x: NDArray[np.float32], cfg: Any, tap: Any) -> NDArray[np.float32]: ...
    def logits(self, ops: Any, logits: NDArray[np.float32], cfg: Any) -> NDArray[np.float32]: ...
    def needed(self, cfg: Any) -> tuple[str, ...]: ...


@dataclass(frozen=True, eq=False)
class Architecture:
    """The data sheet.

    name       general.architecture         hypers    in the order in which a converter writes their keys
    tensors    those outside of blocks      layers    which block each trunk layer is
    head       None: no MTP head            n_heads   most heads that it can have: more than one are a chain
    streams    where the residual stream is wider than a row
    pre        tokenizer.ggml.pre of its published models; "" where no one name is theirs
    ends       where rows or logits are changed at the two ends of the trunk
    target     of an assistant: the architecture of the models that it drafts for. Such a file is one head: its blocks
               are the layers of it, all of them counted by nextn_predict_layers
    layer_read  of an assistant: (a layer's configuration, those of the target's layers) -> the target's layer whose
               cells it reads
    mxfp4_of_experts  whether of stacks of matrices a quantiser makes those of experts alone MXFP4, not those of heads
    cb, cb_head  names of results that llama.cpp's graph of this architecture calls otherwise -> its names, for trunk
               and head (without its mtp_)
    """

    name: str
    hypers: tuple[Hyper, ...]
    tensors: tuple[Tensor, ...]
    layers: LayerRule
    head: HeadSheet | None
    n_heads: int = 1
    hf: HuggingFace | None = None
    streams: Streams | None = None
    ends: Ends | None = None
    target: str = ""
    layer_read: Callable[[Any, Sequence[Any]], int] | None = None
    pre: str = ""
    mxfp4_of_experts: bool = False
    cb: Mapping[str, str] = field(default_factory=dict)
    cb_head: Mapping[str, str] = field(default_factory=dict)

    @property
    def symbols(self) -> dict[str, str]:
        """Counts that shapes are written with -> their keys."""
        return {hyper.name: hyper.key for hyper in self.hypers if hyper.type.startswith("u32")}

    @property
    def per_block(self) -> frozenset[str]:
        """Keys that may be arrays of one entry for each block: flags of layers, and what else is one number."""
        flags = {self.layers.flags} if isinstance(self.layers, Alternating) else set()
        return frozenset(flags | {hyper.key for hyper in self.hypers if not hyper.type.startswith("arr:")})

    @property
    def of_trunk(self) -> frozenset[str]:
        """Those of them whose array need not have an entry for a head."""
        return frozenset(hyper.key for hyper in self.hypers if hyper.type.endswith("/trunk"))

    def values(self, meta: Metadata) -> Values:
        """The hyper-parameters of a file, read as they are asked for."""
        return Values(meta, {hyper.name: hyper.read for hyper in self.hypers})

    def head_tensors(self, il: int, names: Container[str]) -> list[Tensor]:
        """The tensors of the head that is block il of a file with these names: of alternatives those that are there."""
        if self.head is None:
            return []
        block = self.head.block_at(il, names)
        return list(present_tensors((*self.head.tensors, *block.tensors), il, names))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every block that the architecture has, the head's last."""
        return (*self.layers.all_blocks(), *([self.head.block] if self.head else []))


def tensors_of(items: Sequence[Tensor | Either]) -> Iterator[Tensor]:
    """Every tensor of every alternative."""
    for item in items:
        if isinstance(item, Either):
            for choice in item.choices:
                yield from choice
        else:
            yield item


def present_tensors(items: Sequence[Tensor | Either], il: int, names: Container[str]) -> Iterator[Tensor]:
    """The tensors that block il of a file with these names has, or lacks: of alternatives one (`Either.chosen`).

    A tensor of a group of which another one is there is not optional.
    """
    groups = {t.group for t in items if isinstance(t, Tensor) and t.group and t.at(il).name in names}
    for item in items:
        if isinstance(item, Either):
            yield from item.chosen(il, names)
        else:
            yield replace(item, optional=False) if item.group in groups else item
