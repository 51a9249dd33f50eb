"""Formats that are not read, known by their tensors' names: said to be what they are.

A table: what follows a module's name, and which program's it is. A module is named once, under X.weight.
"""

from __future__ import annotations

from mtpref.heads.hf.formats.raw import Raw

# the part that marks the format -> its name, and the other parts of a module
FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "weight.absmax": ("bitsandbytes 4-bit", ("weight", "weight.quant_map", "weight.nested_absmax",
                      "weight.nested_quant_map", "weight.quant_state.bitsandbytes__nf4",
                      "weight.quant_state.bitsandbytes__fp4")),
    "SCB": ("bitsandbytes LLM.int8", ("weight", "weight_format", "weight.SCB")),
    "q_weight": ("EXL2", ("q_scale", "q_scale_max", "q_groups", "q_invperm", "q_perm", "q_group_map")),
    "trellis": ("EXL3", ("suh", "svh", "su", "sv", "mcg", "mul1")),
    "W_q": ("HQQ", ("meta", "scale", "zero", "nbits", "group_size", "axis", "shape", "packing", "quant_scale",
            "quant_zero", "unpack_view_dtype", "view_as_float", "compute_dtype", "channel_wise", "optimize",
            "round_zero", "offload_meta", "encoded_state_dict", "stores_quant_config")),
    "weight._data": ("optimum-quanto", ("weight._scale", "weight._shift", "input_scale", "output_scale")),
    "codebooks": ("AQLM", ("codes", "scales")),
    "centroids": ("VPTQ", ("indices", "res_centroids", "res_indices", "weight_scale", "weight_bias", "perm",
                  "outlier_centroids", "outlier_indices")),
    "Qidxs": ("QuIP#", ("SU", "SV", "Wscale", "codebook_id")),
}  # fmt: skip
MLX = "MLX"
HINTS = {
    "EXL2": "convert the original checkpoint",
    "EXL3": "convert the original checkpoint",
    MLX: "convert the original checkpoint, or let mlx_lm.convert --dequantize save it",
    "bitsandbytes 4-bit": "convert the original checkpoint, or load it with transformers, dequantize() and save it",
    "bitsandbytes LLM.int8": "convert the original checkpoint, or load it with transformers, dequantize() and save it",
}


def foreign_modules(raw: Raw) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Module -> (format, its parts in the files), of what is not read."""
    found = {}
    for name in raw.names:
        for mark, (kind, parts) in FORMATS.items():
            if name.endswith(f".{mark}"):
                module = name[: -len(mark) - 1]
                there = [f"{module}.{part}" for part in parts if f"{module}.{part}" in raw]
                found[module] = (kind, (name, *there))
        if name.endswith(".weight") and raw.dtype(name) == "U32":
            module = name.removesuffix(".weight")
            if f"{module}.scales" in raw:
                parts = (f"{module}.scales", f"{module}.biases")
                found[module] = (MLX, (name, *(part for part in parts if part in raw)))
    return found


def fault(kind: str, name: str) -> str:
    """The line for a tensor of a foreign format."""
    hint = HINTS.get(kind, "convert the original checkpoint")
    return f"{name} is stored as {kind}, which mtpref does not read; {hint}"
