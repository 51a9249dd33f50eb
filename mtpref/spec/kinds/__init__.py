"""Layer kinds: mixers and feed-forward networks with their state, and how a block puts them together.

Start with kind.py. A data sheet (mtpref/architectures) combines kinds; nothing here knows an architecture.
"""

from mtpref.spec.kinds.attention import ATTENTION, STILL_ATTENTION, TEXT_ATTENTION, WHOLE_ROTARY_ATTENTION
from mtpref.spec.kinds.clamped_moe import CLAMPED_MOE_FFN, HASHED_MOE_FFN
from mtpref.spec.kinds.compressed import COMPRESSED_ATTENTION, WINDOW_ATTENTION
from mtpref.spec.kinds.delta_net import GATED_DELTA_NET, GROUPED_DELTA_NET
from mtpref.spec.kinds.ffn import SWIGLU_FFN
from mtpref.spec.kinds.gated_attention import GATED_ATTENTION
from mtpref.spec.kinds.gated_latent import GATED_LATENT_ATTENTION
from mtpref.spec.kinds.indexed import (
    HALVES_ALL_CELLS,
    HALVES_INDEXED,
    PAIRS_ALL_CELLS,
    PAIRS_INDEXED,
    PAIRS_SHARING,
)
from mtpref.spec.kinds.kda import KDA
from mtpref.spec.kinds.kind import (
    F32,
    INPUT,
    NOTHING,
    Cells,
    Graph,
    LayerKind,
    Made,
    Span,
    no_state,
    rope_constants,
    rotary_of,
)
from mtpref.spec.kinds.latent import LATENT_ATTENTION
from mtpref.spec.kinds.limited import LIMITED_FFN, LIMITED_MOE_FFN
from mtpref.spec.kinds.moe_ffn import AVERAGED_MOE_FFN, MOE_FFN, PLAIN_MOE_FFN, SIGMOID_MOE_FFN, SOFTMAX_MOE_FFN
from mtpref.spec.kinds.residual import (
    FFN,
    LAYER_INPUT,
    MIXER,
    Around,
    HyperConnected,
    NormedAfter,
    Parallel,
    Part,
    Residual,
    Sequential,
    Single,
)
from mtpref.spec.kinds.ssm import SSM
from mtpref.spec.kinds.unscaled import (
    DENSE_BESIDE_EXPERTS,
    GEGLU_FFN,
    SHARING_ATTENTION,
    SHARING_WINDOW,
    TARGET_ATTENTION,
    TARGET_WINDOW,
    UNSCALED_ATTENTION,
    UNSCALED_WINDOW,
)
from mtpref.spec.kinds.unturned import TURNED_ATTENTION, TURNED_HEAD_ATTENTION, UNTURNED_ATTENTION
from mtpref.spec.kinds.windowed import (
    HALF_ROTARY_ATTENTION,
    HALF_ROTARY_HEAD_ATTENTION,
    WINDOWED_ATTENTION,
    WINDOWED_HEAD_ATTENTION,
)

__all__ = [
    "ATTENTION",
    "AVERAGED_MOE_FFN",
    "CLAMPED_MOE_FFN",
    "COMPRESSED_ATTENTION",
    "DENSE_BESIDE_EXPERTS",
    "F32",
    "FFN",
    "GATED_ATTENTION",
    "GATED_DELTA_NET",
    "GATED_LATENT_ATTENTION",
    "GEGLU_FFN",
    "GROUPED_DELTA_NET",
    "HALF_ROTARY_ATTENTION",
    "HALF_ROTARY_HEAD_ATTENTION",
    "HALVES_ALL_CELLS",
    "HALVES_INDEXED",
    "HASHED_MOE_FFN",
    "INPUT",
    "KDA",
    "LATENT_ATTENTION",
    "LAYER_INPUT",
    "LIMITED_FFN",
    "LIMITED_MOE_FFN",
    "MIXER",
    "MOE_FFN",
    "NOTHING",
    "PAIRS_ALL_CELLS",
    "PAIRS_INDEXED",
    "PAIRS_SHARING",
    "PLAIN_MOE_FFN",
    "SHARING_ATTENTION",
    "SHARING_WINDOW",
    "SIGMOID_MOE_FFN",
    "SOFTMAX_MOE_FFN",
    "SSM",
    "STILL_ATTENTION",
    "SWIGLU_FFN",
    "TARGET_ATTENTION",
    "TARGET_WINDOW",
    "TEXT_ATTENTION",
    "TURNED_ATTENTION",
    "TURNED_HEAD_ATTENTION",
    "UNSCALED_ATTENTION",
    "UNSCALED_WINDOW",
    "UNTURNED_ATTENTION",
    "WHOLE_ROTARY_ATTENTION",
    "WINDOWED_ATTENTION",
    "WINDOWED_HEAD_ATTENTION",
    "WINDOW_ATTENTION",
    "Around",
    "Cells",
    "Graph",
    "HyperConnected",
    "LayerKind",
    "Made",
    "NormedAfter",
    "Parallel",
    "Part",
    "Residual",
    "Sequential",
    "Single",
    "Span",
    "no_state",
    "rope_constants",
    "rotary_of",
]
