"""transformers' models with experts as a yardstick: a checkpoint folder in, logits and layer outputs out.

Owns what transformers is given: the very folder that `mtpref convert` reads, in float32, eager attention. It has no
class for these heads, so that the trunk alone is compared. Needs torch and transformers (imported when used).
"""

from pathlib import Path
from typing import Any

import numpy as np

from tests import chain_folder, moe_folder
from tests.hf_folder import write_checkpoint
from tests.moe_folder import CONFIGS, N_LAYER, N_VOCAB, state, tokenizer

Array = np.ndarray

__all__ = ("ARCHS", "chosen_rows", "folder", "record", "tokens", "trunk")
ARCHS = (*moe_folder.ARCHS, "deepseek4", "mimo2", "nemotron_h_moe", "bailingmoe3")
# transformers' DeepSeek-V4 has one shared expert, whatever n_shared_experts says. Limits that cut; so many heads of the
# indexer that no two rows have a score of 0.
# It knows Ling 3 by another name, without limits, and its shared expert is as wide as the others.
_CHANGES: dict[str, dict[str, Any]] = {
    "deepseek4": {"n_shared_experts": 1, "swiglu_limit": 0.25, "index_n_heads": 16},
    "bailingmoe3": {
        "model_type": "bailing_hybrid", "moe_shared_expert_intermediate_size": 32, "expert_swiglu_limit_list": None,
        "share_expert_swiglu_limit_list": None, "pad_token_id": 0, "num_local_experts": moe_folder.N_EXPERT,
    },
}  # fmt: skip
# What transformers' MiMo-V2 reads beside the fields that the checkpoint has.
_WINDOWED = ("full_attention", "sliding_attention", "sliding_attention", "full_attention")
_MIMO2: dict[str, Any] = {
    "layer_types": list(_WINDOWED),
    "mlp_layer_types": ["dense", "sparse", "sparse", "dense"],
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        name: {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": 0.375}
        for name, base in (("full_attention", 5e6), ("sliding_attention", 1e4))
    },
}


def tokens(arch: str) -> list[int]:
    """More than one chunk of 64 of the delta rule, or than one block of 128 that is compressed; no pattern in them."""
    return [(7 * i * i + 3 * i + 1) % N_VOCAB for i in range(150 if arch == "deepseek4" else 70)]


def folder(path: Path, arch: str) -> Path:
    """The small model in float32. transformers' hy_v3 has no biases of q, k and v: they are left out."""
    if arch == "mimo2":
        return _mimo2(path)
    config = CONFIGS[arch] | _CHANGES.get(arch, {})
    named = state(arch, config=config)
    if arch == "hy_v3":
        named = {name: x for name, x in named.items() if not name.endswith("_proj.bias")}
    return write_checkpoint(path, named, config, tokenizer(arch), dtype="F32")


def _mimo2(path: Path) -> Path:
    """Queries, keys and values apart in the trunk: transformers knows no others."""
    config, named = chain_folder.CONFIGS["mimo2"], chain_folder.state("mimo2")
    for il, kind in enumerate(_WINDOWED):
        name = f"model.layers.{il}.self_attn.{{}}_proj.weight"
        n_key = 16 * (2 if kind == "sliding_attention" else 1)
        parts = np.split(named.pop(name.format("qkv")), [64, 64 + n_key])
        named |= {name.format(x): part for x, part in zip("qkv", parts, strict=True)}
    return write_checkpoint(path, named, config | _MIMO2, tokenizer("hy_v3"), dtype="F32")


def trunk(path: Path, ids: list[int]) -> dict[str, Array]:
    """l_out-N, h_nextn and result_output at every position, float32.

    Errors  AssertionError where transformers lacks a tensor of its model in the folder
    """
    import torch
    from transformers import AutoModelForCausalLM, logging

    logging.set_verbosity_error()  # it says at length that it leaves the head out
    model, told = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not told["missing_keys"], told
    assert not told["mismatched_keys"], told
    # It builds these norms with 1e-6 whatever the configuration says; a GGUF has one epsilon, and llama.cpp takes it.
    for name, module in model.named_modules():
        if name.endswith(("q_a_layernorm", "kv_a_layernorm")):
            module.variance_epsilon = model.config.rms_norm_eps
    found: dict[str, Array] = {}

    def noting(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            found[name] = (output[0] if isinstance(output, tuple) else output)[0].numpy().copy()

        return hook

    layers = list(model.model.layers)
    assert len(layers) == N_LAYER
    for il, layer in enumerate(layers):
        layer.register_forward_hook(noting(f"l_out-{il}"))
    last_norm = model.model.norm_f if hasattr(model.model, "norm_f") else model.model.norm
    last_norm.register_forward_hook(noting("h_nextn"))
    with torch.no_grad():
        found["result_output"] = model.eval()(torch.tensor([ids]), use_cache=False).logits[0].numpy().copy()
    return {name: x.reshape(len(ids), -1) for name, x in found.items()}


def chosen_rows(arch: str) -> list[int]:
    """The positions whose rows are recorded: the first, around the end of a chunk or block, the last."""
    last = len(tokens(arch)) - 1
    return [0, 1, 40, 126, 127, last] if arch == "deepseek4" else [0, 1, 40, 63, 64, last]


def record(scratch: Path) -> dict[str, Array]:
    """ARCH.NAME -> rows at `chosen_rows`, float32."""
    out: dict[str, Array] = {}
    for arch in ARCHS:
        found = trunk(folder(scratch / arch / "Tiny-5M", arch), tokens(arch))
        out |= {f"{arch}.{name}": x[chosen_rows(arch)] for name, x in sorted(found.items())}
    return out
