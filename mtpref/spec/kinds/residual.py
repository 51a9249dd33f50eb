"""How a block puts its norms, its mixer and its feed-forward network together.

Owns the order of a block. A block that is put together otherwise (parallel, norms after, several streams) is another
function of the same arguments, named by its architecture's data sheet.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from mtpref.spec.kinds.kind import F32, Graph, Made
from mtpref.spec.ops import LayerTap

Norm = Callable[[str, F32], F32]  # (name of the norm's weight, rows) -> normalised rows
Part = Callable[[F32], F32]  # the mixer or the feed-forward network, on normalised rows
# In the graph of a block: the rows that come into it, and what its parts give.
LAYER_INPUT, MIXER, FFN = "(layer input)", "(mixer)", "(ffn)"


class Residual(Protocol):
    """One block on the rows of the residual stream.

    It may also have `graph`, what it makes of them, and `feeds`, which of that its mixer and its feed-forward network
    are given.
    """

    def __call__(self, x: F32, norm: Norm, mixer: Part, ffn: Part, tap: LayerTap) -> F32: ...


@dataclass(frozen=True)
class Sequential:
    """S30. x += mixer(norm(x)); x += ffn(norm(x))."""

    mixer_norm: str
    ffn_norm: str

    def __call__(self, x: F32, norm: Norm, mixer: Part, ffn: Part, tap: LayerTap) -> F32:
        h = norm(self.mixer_norm, x)
        tap("attn_norm", h)
        x = x + mixer(h)
        tap("attn_residual", x)
        h = norm(self.ffn_norm, x)
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
