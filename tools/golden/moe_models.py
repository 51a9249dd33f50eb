"""The models of the cases of other architectures than qwen35: one of each, as small as the planted rule allows.

    python tools/golden/moe_models.py [-o DIR]

Writes golden/models/nano-ARCH-q8_0.gguf; the same bytes again.
"""

import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import numpy as np
from make_micro import (
    MicroVariant,
    make_micro_chain,
    make_micro_gemma,
    make_micro_moe,
    make_micro_single,
    make_micro_streams,
)
from micro_chain import MIMO, ChainShape
from micro_gemma import GemmaShape
from micro_mamba import MambaShape
from micro_moe import LatentShape, MoeShape
from micro_parallel import ParallelShape
from micro_plant import MicroShape
from micro_streams import StreamsShape

from golden.streams import stream

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
N_VOCAB = 64
_MICRO = MicroShape(
    n_vocab=N_VOCAB, n_embd=32, n_layer=2, n_ff=32, n_head=4, n_head_kv=2, head_dim=16, n_rot=8, state_size=8,
    n_k_head=2, n_v_head=4,
)  # fmt: skip
_QWEN = MoeShape(n_expert=5, n_used=2, n_ff_exp=32, micro=_MICRO)
_GROUPS = MoeShape(n_expert=6, n_used=3, n_group=3, n_group_used=2, scale=2.5, n_ff_exp=32, n_ff_dense=64, micro=_MICRO)
# As files without keys of the router: a sigmoid, and weights as they are.
_PLAIN = MoeShape(n_expert=5, n_used=2, normalise=False, fused=True, n_ff_exp=32, n_ff_dense=64, micro=_MICRO)
# A cached row is wider than a key, as in DeepSeek-V3; YaRN makes scores sharper.
_LATENT = replace(_GROUPS, latent=LatentShape(n_query=32, n_row=64, n_rot=8, n_nope=32, n_value=16, yarn=1.0))

# Architecture -> seed, percent of acceptance that is planted, shape, variant.
MODELS: dict[str, tuple[int, float, MoeShape, MicroVariant]] = {
    "qwen35moe": (5, 70, _QWEN, MicroVariant()),
    "qwen3next": (5, 70, _QWEN, MicroVariant()),
    "glm4moe": (5, 70, _GROUPS, MicroVariant(own_embed=True, own_head=True)),
    "hy_v3": (2, 70, _PLAIN, MicroVariant()),
    "deepseek2": (5, 70, _LATENT, MicroVariant()),
}
# An indexer that leaves cells out of short prompts; in glm-dsa the second layer sees what the first one chose.
_INDEXED = LatentShape(n_query=32, n_row=32, n_rot=8, n_nope=32, n_value=16, n_index_head=4, n_top=4, yarn=1.0)
_CHOICE = replace(_PLAIN, fused=False, latent=_INDEXED)
_SHARING = replace(_GROUPS, latent=replace(_INDEXED, types=(True, False, True), yarn=None, gating=None),
                   n_group=1, n_group_used=0, micro=replace(_MICRO, n_layer=3))  # fmt: skip
INDEXED: dict[str, tuple[int, float, MoeShape, MicroVariant]] = {
    "deepseek32": (5, 70, _CHOICE, MicroVariant()),
    "glm-dsa": (5, 70, _SHARING, MicroVariant()),
}
# deepseek4: each ratio once, windows and choices that short prompts fill, limits of every kind.
STREAMS = (
    5, 70,
    StreamsShape(
        ratios=(4, 128, 0), n_hashed=1, n_head=4, n_head_width=32, n_query=32, n_window=4, n_group=2, n_group_width=16,
        n_index_head=4, n_index=64, n_best=2, n_expert=5, n_used=2, n_ff_exp=32, clamp=(0.6, 0.8, 0.0, 0.7),
        clamp_shared=(3.0, 1.5, 0.0, 2.0), micro=replace(_MICRO, n_layer=3),
    ),
)  # fmt: skip
# Two heads in a chain; windows that short prompts fill, limits and sinks.
_STEP = ChainShape(
    windowed=(0, 1, 0, 1), moe=(1, 0, 1, 0), n_head=(2, 4), n_head_kv=(1, 2), n_rot=8, n_window=4, n_expert=5, n_used=2,
    clamp=(0.2, 0.0, 0.15, 0.0), clamp_shared=(0.3, 0.0, 8.0, 9.0), factors=True, micro=_MICRO,
)  # fmt: skip
_MIMO = replace(
    MIMO, windowed=(0, 1, 1, 1), moe=(1, 0, 0, 0), n_head=(4, 4), n_head_kv=(1, 2), n_window=4, n_expert=5, n_used=2,
    micro=_MICRO,
)  # fmt: skip
CHAINS: dict[str, tuple[int, float, ChainShape]] = {"step35": (5, 70, _STEP), "mimo2": (5, 70, _MIMO)}
# For what two heads, one choice and one file cannot show: (architecture, seed, percent, shape), by the file's name.
_THREE = replace(_MIMO, windowed=(0, 1, 1, 1, 1), moe=(0, 0, 0, 0, 0))
_LATER = replace(_SHARING, latent=replace(_INDEXED, types=(True, True, False), yarn=None, gating=None), n_expert=2,
                 n_used=1, n_dense=3, n_ff_dense=32)  # fmt: skip
MORE_CHAINS: dict[str, tuple[str, int, float, ChainShape]] = {"mimo2-three-heads": ("mimo2", 5, 70, _THREE)}
MORE_INDEXED: dict[str, tuple[str, int, float, MoeShape]] = {"glm-dsa-later-choice": ("glm-dsa", 5, 70, _LATER)}
# Parts side by side, windows and a layer that does not turn, layer norms; and blocks of one part with Mamba-2.
_PARALLEL = ParallelShape(windowed=(0, 1, 0), n_dense=1, n_expert=5, n_used=2, n_shared=1, n_window=4,
                          micro=replace(_MICRO, n_layer=3))  # fmt: skip
_MAMBA = MambaShape(pattern="M*E", n_low=32, n_expert=5, n_used=2, n_ssm_head=4, d_state=8, n_head=4,
                    micro=_MICRO)  # fmt: skip
SINGLE: dict[str, tuple[int, float, ParallelShape | MambaShape]] = {
    "cohere2moe": (5, 70, _PARALLEL),
    "nemotron_h_moe": (5, 70, _MAMBA),
}
# Windows, layers that share cells, inputs of layers, experts, and an assistant of two layers.
GEMMA = (5, 70, GemmaShape(windowed=(1, 0, 1, 0), assistant=(1, 0), n_key=(16, 8), n_window=4, turned=4, n_shared=2,
                           n_own=32, n_expert=4, n_used=2, router=0.5, n_embd_assistant=64, micro=_MICRO))  # fmt: skip


def path_of(arch: str) -> str:
    """The file below the folder of the vectors."""
    return f"models/nano-{arch}-q8_0.gguf"


def prompt(name: str, n: int) -> list[int]:
    """Token ids of the models' vocabulary."""
    return [int(i) for i in stream(name, n) % np.uint64(N_VOCAB)]


def make(root: Path) -> None:
    """Write the models below `root`."""
    (root / "models").mkdir(parents=True, exist_ok=True)
    for arch, (seed, accept, shape, variant) in (MODELS | INDEXED).items():
        make_micro_moe(root / path_of(arch), arch, seed, accept, "Q8_0", shape, variant)
    for arch, (seed, accept, chain) in CHAINS.items():
        make_micro_chain(root / path_of(arch), arch, seed, accept, "Q8_0", chain)
    seed, accept, streams = STREAMS
    make_micro_streams(root / path_of("deepseek4"), seed, accept, "Q8_0", streams)
    make_micro_streams(root / path_of("deepseek4-head"), seed, accept, "Q8_0", streams, part="head")
    for name, (arch, seed, accept, shape) in MORE_INDEXED.items():
        make_micro_moe(root / path_of(name), arch, seed, accept, "Q8_0", shape, MicroVariant())
    for name, (arch, seed, accept, chain) in MORE_CHAINS.items():
        make_micro_chain(root / path_of(name), arch, seed, accept, "Q8_0", chain)
    for arch, (seed, accept, single) in SINGLE.items():
        make_micro_single(root / path_of(arch), arch, seed, accept, "Q8_0", single, MicroVariant())
    seed, accept, gemma = GEMMA
    for part in ("", "-assistant"):
        make_micro_gemma(root / path_of(f"gemma4{part}"), seed, accept, "Q8_0", gemma, part)


if __name__ == "__main__":
    make(Path(sys.argv[2]) if sys.argv[1:2] == ["-o"] else GOLDEN)
