"""deepseek32: DeepSeek-V3.2. deepseek2 with an indexer that chooses which cells a token sees; one MTP block, without.

The data sheet. Source: llama.cpp src/models/deepseek32.cpp, conversion/deepseek.py; transformers' DeepseekV32Config.
"""

from dataclasses import replace

from mtpref.architectures.deepseek2 import DEEPSEEK2
from mtpref.architectures.indexer import block, indexer_tensors, n_index_head, n_index_key, n_top, of_split_form
from mtpref.architectures.sheet import LeadingDense
from mtpref.spec.kinds import HALVES_ALL_CELLS, HALVES_INDEXED

assert DEEPSEEK2.head is not None
assert DEEPSEEK2.hf is not None

DENSE, MOE = (block(name, HALVES_INDEXED, indexer_tensors()) for name in ("dense", "moe"))
# Its indexer is in every file, and no graph reads it.
MTP = block("mtp", HALVES_ALL_CELLS, indexer_tensors(is_used=False))

DEEPSEEK32 = replace(
    DEEPSEEK2,
    name="deepseek32",
    hypers=(
        *(
            replace(h, default=None) if h.key == "expert_gating_func" else h
            for h in of_split_form(DEEPSEEK2.hypers)
        ),
        n_index_head,
        n_index_key,
        n_top,
    ),
    layers=LeadingDense(DENSE, MOE, key="leading_dense_block_count", hf="first_k_dense_replace"),
    head=replace(DEEPSEEK2.head, block=MTP),
    hf=replace(
        DEEPSEEK2.hf,
        classes=("DeepseekV32ForCausalLM",),
        model_types=("deepseek_v32",),
        special=(),
        special_classes=(),
        without_head_dim=(),
    ),
)  # fmt: skip
