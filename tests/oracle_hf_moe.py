"""transformers' models with experts as a yardstick: a checkpoint folder in, logits and layer outputs out.

Owns what transformers is given: the very folder that `mtpref convert` reads, in float32, eager attention. It has no
class for these heads, so that the trunk alone is compared. Needs torch and transformers (imported when used).
"""

from pathlib import Path
from typing import Any

import numpy as np

from tests.hf_folder import write_checkpoint
from tests.moe_folder import ARCHS, CONFIGS, N_LAYER, N_VOCAB, state, tokenizer

Array = np.ndarray

__all__ = ("ARCHS", "TOKENS", "chosen_rows", "folder", "record", "trunk")
# More than one chunk of 64 of the delta rule, no pattern in them.
TOKENS = [(7 * i * i + 3 * i + 1) % N_VOCAB for i in range(70)]


def folder(path: Path, arch: str) -> Path:
    """The small model in float32. transformers' hy_v3 has no biases of q, k and v: they are left out."""
    named = state(arch)
    if arch == "hy_v3":
        named = {name: x for name, x in named.items() if not name.endswith("_proj.bias")}
    return write_checkpoint(path, named, CONFIGS[arch], tokenizer(arch), dtype="F32")


def trunk(path: Path, tokens: list[int]) -> dict[str, Array]:
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
    model.model.norm.register_forward_hook(noting("h_nextn"))
    model.lm_head.register_forward_hook(noting("result_output"))
    with torch.no_grad():
        model.eval()(torch.tensor([tokens]), use_cache=False)
    return {name: x.reshape(len(tokens), -1) for name, x in found.items()}


def chosen_rows() -> list[int]:
    """The positions whose rows are recorded: the first, around the end of a chunk, the last."""
    return [0, 1, 40, 63, 64, len(TOKENS) - 1]


def record(scratch: Path) -> dict[str, Array]:
    """ARCH.NAME -> rows at `chosen_rows`, float32."""
    out: dict[str, Array] = {}
    for arch in ARCHS:
        found = trunk(folder(scratch / arch / "Tiny-5M", arch), TOKENS)
        out |= {f"{arch}.{name}": x[chosen_rows()] for name, x in sorted(found.items())}
    return out
