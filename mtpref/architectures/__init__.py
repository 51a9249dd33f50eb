"""One data sheet for each architecture. Start with qwen35.py; sheet.py has the words that it is written in.

Owns the registry. No other module tests an architecture's name.
"""

from mtpref.architectures.bailingmoe3 import BAILINGMOE3
from mtpref.architectures.cohere2moe import COHERE2MOE
from mtpref.architectures.common import D2T, OUTPUT, OUTPUT_NORM, SHARED, TOKEN_EMBD, trimmed
from mtpref.architectures.deepseek2 import DEEPSEEK2
from mtpref.architectures.deepseek4 import DEEPSEEK4
from mtpref.architectures.deepseek32 import DEEPSEEK32
from mtpref.architectures.dims import Shape, numbers
from mtpref.architectures.gemma4 import GEMMA4
from mtpref.architectures.gemma4_assistant import GEMMA4_ASSISTANT
from mtpref.architectures.glm4moe import GLM4MOE
from mtpref.architectures.glm_dsa import GLM_DSA
from mtpref.architectures.hy_v3 import HY_V3
from mtpref.architectures.mimo2 import MIMO2
from mtpref.architectures.names import (
    Place,
    fused_of,
    gguf_to_hf_name,
    hf_to_gguf_name,
    is_idle,
    joined_of,
    place_of,
    stacks_beside,
    stacks_of,
    state_from_gguf,
    state_to_gguf,
    tensor_of,
)
from mtpref.architectures.nemotron_h_moe import NEMOTRON_H_MOE
from mtpref.architectures.qwen3next import QWEN3NEXT
from mtpref.architectures.qwen35 import QWEN35
from mtpref.architectures.qwen35moe import QWEN35MOE
from mtpref.architectures.sheet import (
    Alternating,
    Architecture,
    Block,
    Either,
    HeadSheet,
    Hyper,
    Tensor,
    present_tensors,
    tensors_of,
)
from mtpref.architectures.step35 import STEP35
from mtpref.base.errors import UnsupportedError
from mtpref.spec.config import Metadata

ARCHITECTURES: dict[str, Architecture] = {
    sheet.name: sheet
    for sheet in (
        QWEN35,
        QWEN35MOE,
        QWEN3NEXT,
        GLM4MOE,
        HY_V3,
        DEEPSEEK2,
        DEEPSEEK32,
        GLM_DSA,
        DEEPSEEK4,
        STEP35,
        MIMO2,
        COHERE2MOE,
        GEMMA4,
        GEMMA4_ASSISTANT,
        NEMOTRON_H_MOE,
        BAILINGMOE3,
    )
}

__all__ = [
    "ARCHITECTURES",
    "D2T",
    "OUTPUT",
    "OUTPUT_NORM",
    "SHARED",
    "TOKEN_EMBD",
    "Alternating",
    "Architecture",
    "Block",
    "Either",
    "HeadSheet",
    "Hyper",
    "Place",
    "Shape",
    "Tensor",
    "assistant_of",
    "describe_assistant",
    "find_architecture",
    "fused_of",
    "gguf_to_hf_name",
    "hf_to_gguf_name",
    "is_idle",
    "joined_of",
    "numbers",
    "place_of",
    "present_tensors",
    "stacks_beside",
    "stacks_of",
    "state_from_gguf",
    "state_to_gguf",
    "tensor_of",
    "tensors_of",
    "trimmed",
]


def assistant_of(arch: str | None) -> Architecture | None:
    """The data sheet of the assistants that draft for models of this architecture; None: it has none."""
    return next((sheet for sheet in ARCHITECTURES.values() if arch and sheet.target == arch), None)


def describe_assistant(arch: str | None) -> str | None:
    """What a file of this architecture is, where it is an assistant, and what to give; None: it is none."""
    target = ARCHITECTURES[arch].target if arch in ARCHITECTURES else ""
    if not target:
        return None
    return (
        f"an assistant of {target} models, which runs on its target's cells alone; give its target with -m and this "
        "file with -md"
    )


def find_architecture(meta: Metadata) -> Architecture:
    """The data sheet of a file's architecture. Errors: MtprefError for one that has none"""
    if meta.arch not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedError(
            f"{meta.source}: architecture {meta.arch[:40]!r} is not supported, expected one of: {known}; "
            "try: mtpref inspect FILE"
        )
    return ARCHITECTURES[meta.arch]
