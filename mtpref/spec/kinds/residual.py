"""How a block puts its norms, its mixer and its feed-forward network together.

Owns the order of a block. A block that is put together otherwise (parallel, norms after, several streams) is another
function of the same arguments, named by its architecture's data sheet.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from mtpref.spec import geglu, layer_norm, read_streams, rms_norm, write_streams
from mtpref.spec.config import StreamsConfig, Values
from mtpref.spec.kinds.kind import F32, Graph, Made
from mtpref.spec.ops import LayerTap, LayerWeights, Ops

Part = Callable[[F32], F32]  # the mixer or the feed-forward network, on normalised rows
# In the graph of a block: the rows that come into it, and what its parts give.
LAYER_INPUT, MIXER, FFN = "(layer input)", "(mixer)", "(ffn)"


@dataclass(frozen=True)
class Around:
    """What a block computes with beside its two parts. cfg: what the residual's `configure` made"""

    ops: Ops
    weights: LayerWeights
    eps: float
    cfg: Any = None
    inputs: F32 | None = None  # S105: of the block's own layer

    def norm(self, name: str, rows: F32) -> F32:
        """Rows, normalised by the norm's weight of that name."""
        return self.ops.rms_norm(rows, self.weights[name], self.eps)


class Residual(Protocol):
    """One block on the rows of the residual stream.

    It may also have `graph`, what it makes of them, `feeds`, which of that its mixer and its feed-forward network
    are given, and `configure`, values -> hyper-parameters of its own.
    """

    def __call__(self, x: F32, around: Around, mixer: Part, ffn: Part, tap: LayerTap) -> F32: ...


@dataclass(frozen=True)
class Sequential:
    """S30. x += mixer(norm(x)); x += ffn(norm(x))."""

    mixer_norm: str
    ffn_norm: str

    def __call__(self, x: F32, around: Around, mixer: Part, ffn: Part, tap: LayerTap) -> F32:
        h = around.norm(self.mixer_norm, x)
        tap("attn_norm", h)
        x = x + mixer(h)
        tap("attn_residual", x)
        h = around.norm(self.ffn_norm, x)
        tap("attn_post_norm", h)
        x = x + ffn(h)
        tap("post_ffn", x)
        tap("l_out", x)
        return x

    # What the block makes around its two parts, and which of it they are given.
    graph: ClassVar[Graph] = {
        "attn_norm": Made((LAYER_INPUT,)),
        "attn_residual": Made((MIXER, LAYER_INPUT), "sum"),
        "attn_post_norm": Made(("attn_residual",)),
        "post_ffn": Made((FFN, "attn_residual"), "sum"),
        "l_out": Made((FFN, "attn_residual"), "sum"),
    }
    feeds: ClassVar[tuple[str, str]] = ("attn_norm", "attn_post_norm")


@dataclass(frozen=True)
class Parallel:
    """S119. x = (ffn(h) + x) + mixer(h), h = norm(x): both parts read the same normed rows.

    Rule     the network's result is added first, then the mixer's: the order of llama.cpp's graph
    """

    block_norm: str

    def __call__(self, x: F32, around: Around, mixer: Part, ffn: Part, tap: LayerTap) -> F32:
        h = around.norm(self.block_norm, x)
        tap("attn_norm", h)
        mixed = mixer(h)
        x = (ffn(h) + x) + mixed
        tap("post_ffn", x)
        tap("l_out", x)
        return x

    graph: ClassVar[Graph] = {
        "attn_norm": Made(
            (LAYER_INPUT,),
            "layer_norm, or rms_norm as the model has it, with blk.{i}.attn_norm.weight",
            (layer_norm, rms_norm),
        ),
        "post_ffn": Made((MIXER, FFN, LAYER_INPUT), "sum"),
        "l_out": Made((MIXER, FFN, LAYER_INPUT), "sum"),
    }
    feeds: ClassVar[tuple[str, str]] = ("attn_norm", "attn_norm")


@dataclass(frozen=True)
class Single:
    """S126. x += part(norm(x)): a block of one part, the mixer or the network."""

    part_norm: str
    is_mixer: bool

    def __call__(self, x: F32, around: Around, mixer: Part, ffn: Part, tap: LayerTap) -> F32:
        h = around.norm(self.part_norm, x)
        tap("attn_norm", h)
        x = x + (mixer if self.is_mixer else ffn)(h)
        tap("l_out", x)
        return x

    @property
    def graph(self) -> Graph:
        """What the block makes around its part."""
        part = MIXER if self.is_mixer else FFN
        return {"attn_norm": Made((LAYER_INPUT,)), "l_out": Made((part, LAYER_INPUT), "sum")}

    feeds: ClassVar[tuple[str, str]] = ("attn_norm", "attn_norm")


@dataclass(frozen=True)
class HyperConnected:
    """S93. Several streams: each part is given what S82 reads of them, normalised, and S73 writes what it gives to all.

    Rule     nothing else is added: what stays of a stream is what S73 mixes into it
    """

    mixer_norm: str
    ffn_norm: str

    def configure(self, v: Values) -> StreamsConfig:
        """Of the file's keys."""
        return StreamsConfig(v["n_embd"], v["n_streams"], v["n_sinkhorn"], v["streams_eps"], v["rms_eps"])

    def __call__(self, x: F32, around: Around, mixer: Part, ffn: Part, tap: LayerTap) -> F32:
        x = self._around("attn", self.mixer_norm, x, around, mixer, tap)
        tap("attn_residual", x)
        x = self._around("ffn", self.ffn_norm, x, around, ffn, tap)
        tap("l_out", x)
        return x

    def _around(self, name: str, norm: str, x: F32, around: Around, part: Part, tap: LayerTap) -> F32:
        ops, cfg = around.ops, around.cfg
        h, post, comb = ops.connect(ops, around.weights, f"hc_{name}", cfg, x)
        tap(f"hc_{name}_pre", h)
        h = around.norm(norm, h)
        tap("attn_norm" if name == "attn" else "attn_post_norm", h)
        streams = x.reshape(len(x), cfg.n_streams, -1)
        return ops.write_streams(streams, part(h), post, comb).reshape(len(x), -1)

    graph: ClassVar[Graph] = {
        "hc_attn_pre": Made(
            (LAYER_INPUT,),
            "sum of the streams, weighed by blk.{i}.hc_attn_fn, hc_attn_base and hc_attn_scale",
            (read_streams,),
        ),
        "attn_norm": Made(("hc_attn_pre",)),
        "attn_residual": Made(
            (MIXER, LAYER_INPUT),
            "the streams mixed and written to by blk.{i}.hc_attn_fn, hc_attn_base and hc_attn_scale",
            (write_streams,),
        ),
        "hc_ffn_pre": Made(
            ("attn_residual",),
            "sum of the streams, weighed by blk.{i}.hc_ffn_fn, hc_ffn_base and hc_ffn_scale",
            (read_streams,),
        ),
        "attn_post_norm": Made(("hc_ffn_pre",)),
        "l_out": Made(
            (FFN, "attn_residual"),
            "the streams mixed and written to by blk.{i}.hc_ffn_fn, hc_ffn_base and hc_ffn_scale",
            (write_streams,),
        ),
    }
    feeds: ClassVar[tuple[str, str]] = ("attn_norm", "attn_post_norm")


@dataclass(frozen=True)
class NormedAfter:
    """S107. x += norm(mixer(norm(x))); x += norm(ffn(norm(x))); x += what the own input gives (S105); x *= scale.

    Rule     the own input where the model has such inputs, the scale where the block has one
    ffn_norm "" where the network norms its rows itself: it is given the stream
    """

    ffn_norm: str

    def __call__(self, x: F32, around: Around, mixer: Part, ffn: Part, tap: LayerTap) -> F32:
        h = around.norm("attn_norm.weight", x)
        tap("attn_norm", h)
        y = around.norm("post_attention_norm.weight", mixer(h))
        tap("attn_post_norm", y)
        x = x + y
        tap("attn_residual", x)
        h = x
        if self.ffn_norm:
            h = around.norm(self.ffn_norm, x)
            tap("ffn_norm", h)
        y = around.norm("post_ffw_norm.weight", ffn(h))
        tap("ffn_post_norm", y)
        x = x + y
        if around.inputs is not None:
            tap("pe_in", x)
            x = x + around.ops.own_input(around.ops, around.weights, around.eps, x, around.inputs, tap)
        if "layer_output_scale.weight" in around.weights:
            x = x * around.weights["layer_output_scale.weight"]
            tap("out_scaled", x)
        tap("l_out", x)
        return x

    @property
    def graph(self) -> Graph:
        """What the block makes around its two parts."""
        normed = {"ffn_norm": Made(("attn_residual",), "rms_norm with blk.{i}.ffn_norm.weight", (rms_norm,))}
        return {
            "attn_norm": Made((LAYER_INPUT,)),
            "attn_post_norm": Made((MIXER,), "rms_norm with blk.{i}.post_attention_norm.weight", (rms_norm,)),
            "attn_residual": Made(("attn_post_norm", LAYER_INPUT), "sum"),
            **(normed if self.ffn_norm else {}),
            "ffn_post_norm": Made((FFN,), "rms_norm with blk.{i}.post_ffw_norm.weight", (rms_norm,)),
            "pe_in": Made(("ffn_post_norm", "attn_residual"), "sum", instead=("ffn_post_norm", "attn_residual")),
            "per_layer_embd_out": Made(
                ("pe_in",),
                "gelu(product with blk.{i}.inp_gate.weight) times the layer's own input, product with "
                "blk.{i}.proj.weight, rms_norm with blk.{i}.post_norm.weight",
                (geglu, rms_norm),
                instead=(),
            ),
            "out_scaled": Made(
                ("pe_in", "per_layer_embd_out"), "times blk.{i}.layer_output_scale.weight",
                instead=("pe_in", "per_layer_embd_out"),
            ),
            "l_out": Made(("out_scaled",)),
        }  # fmt: skip

    @property
    def feeds(self) -> tuple[str, str]:
        """Which of that its mixer and its network are given."""
        return "attn_norm", "ffn_norm" if self.ffn_norm else "attn_residual"
