"""A DeepSeek-V3 checkpoint whose head predicts: the planted model, turned back into what Hugging Face would hold."""

from pathlib import Path
from typing import Any

import numpy as np

from mtpref.architectures import ARCHITECTURES, gguf_to_hf_name
from mtpref.files.gguf import open_gguf
from mtpref.spec.quants import dequantize
from tests.hf_folder import write_checkpoint
from tests.micro_moe import standard
from tests.moe_folder import CONFIGS, kv_b_proj, tokenizer

MODEL = "micro-deepseek2-f32"
N_LAYER = 4


def planted(path: Path, dtype: str = "F32") -> Path:
    """The folder. Its words are those of the other small checkpoints; the rows that the planted model lacks for them
    are a token's, and of the output nobody's."""
    words = tokenizer("deepseek2")
    n_vocab = len(words["model"]["vocab"]) + len(words["added_tokens"])
    with open_gguf(standard(MODEL)) as file:
        kv = {key: file.kv[key] for key in file.kv}
        state: dict[str, np.ndarray] = {}
        n_own = file.tensors["token_embd.weight"].shape[0]
        for name, info in file.tensors.items():
            x = dequantize(info.type_name, file.data(info), info.shape)
            hf = gguf_to_hf_name(ARCHITECTURES["deepseek2"], name, N_LAYER)
            if len(x) == n_own:
                more = np.repeat(x[:1], n_vocab - len(x), axis=0)
                x = np.concatenate([x, more * (0.0 if "head" in hf else 1.0)]).astype(np.float32)
            if "{e}" in hf:
                state |= {hf.replace("{e}", str(e)): matrix for e, matrix in enumerate(x)}
            else:
                state[hf] = x
    return write_checkpoint(path, kv_b_proj(state), _config(kv, n_vocab), words, dtype=dtype)


def _config(kv: dict[str, Any], n_vocab: int) -> dict[str, Any]:
    def key(name: str) -> Any:
        return kv[f"deepseek2.{name}"]

    n_rot = key("rope.dimension_count")
    own = {
        "hidden_size": key("embedding_length"), "intermediate_size": key("feed_forward_length"),
        "num_hidden_layers": N_LAYER, "num_nextn_predict_layers": 1, "max_position_embeddings": key("context_length"),
        "num_attention_heads": key("attention.head_count"), "num_key_value_heads": key("attention.head_count"),
        "q_lora_rank": key("attention.q_lora_rank"), "kv_lora_rank": key("attention.kv_lora_rank"),
        "qk_rope_head_dim": n_rot, "qk_nope_head_dim": key("attention.key_length_mla") - n_rot,
        "v_head_dim": key("attention.value_length_mla"), "rms_norm_eps": 1e-6, "rope_theta": key("rope.freq_base"),
        "n_routed_experts": key("expert_count"), "num_experts_per_tok": key("expert_used_count"),
        "moe_intermediate_size": key("expert_feed_forward_length"), "n_shared_experts": key("expert_shared_count"),
        "routed_scaling_factor": 1.8, "n_group": 1, "topk_group": 1, "rope_scaling": None,
        "vocab_size": n_vocab,
    }  # fmt: skip
    return CONFIGS["deepseek2"] | own
