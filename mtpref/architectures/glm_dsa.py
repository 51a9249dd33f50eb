"""glm-dsa: GLM-5, 5.1, 5.2. deepseek32 with layers that take an earlier layer's choice of cells; one MTP block.

The data sheet. Source: llama.cpp src/models/glm-dsa.cpp, conversion/glm.py; transformers' GlmMoeDsaConfig.
"""

from dataclasses import replace

from mtpref.architectures.common import GLM_SPECIAL
from mtpref.architectures.deepseek2 import DEEPSEEK2, SIGMOID
from mtpref.architectures.indexer import (
    Sharing,
    block,
    indexer_tensors,
    indexer_types,
    n_index_head,
    n_index_key,
    n_top,
    of_split_form,
)
from mtpref.architectures.sheet import LeadingDense
from mtpref.spec.kinds import PAIRS_ALL_CELLS, PAIRS_INDEXED, PAIRS_SHARING

assert DEEPSEEK2.head is not None
assert DEEPSEEK2.hf is not None

DENSE, MOE = (block(name, PAIRS_INDEXED, indexer_tensors()) for name in ("dense", "moe"))
# What a file has of an indexer that no graph reads stays in it.
_unread = indexer_tensors(optional=True, is_used=False)
DENSE_SHARING, MOE_SHARING = (
    replace(block(f"{name}_sharing", PAIRS_SHARING, _unread), looks_like=name) for name in ("dense", "moe")
)
MTP = block("mtp", PAIRS_ALL_CELLS, _unread)

GLM_DSA = replace(
    DEEPSEEK2,
    name="glm-dsa",
    pre="glm4",
    hypers=(
        *(
            replace(h, default=SIGMOID) if h.key == "expert_gating_func" else h
            for h in of_split_form(DEEPSEEK2.hypers)
        ),
        n_index_head,
        n_index_key,
        n_top,
        indexer_types,
    ),
    layers=Sharing(
        LeadingDense(DENSE, MOE, key="leading_dense_block_count", hf="first_k_dense_replace"),
        (DENSE_SHARING, MOE_SHARING),
    ),
    head=replace(DEEPSEEK2.head, block=MTP),
    hf=replace(
        DEEPSEEK2.hf,
        classes=("GlmMoeDsaForCausalLM",),
        model_types=("glm_moe_dsa",),
        special=GLM_SPECIAL,
        special_classes=(),
        without_head_dim=(),
    ),
)  # fmt: skip
