"""Marks that tools leave in a file or a checkpoint, and what each is known to do to MTP heads.

Data from public reports, each with its link; a mark says who wrote a file, not that it is broken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mtpref.files.gguf import printable
from mtpref.heads.check.findings import Finding


@dataclass(frozen=True)
class Mark:
    """needle: text to look for (lower case) in the values of `keys`"""

    tool: str
    keys: tuple[str, ...]
    needle: str
    does: str
    link: str


GGUF_MARKS = (
    Mark("unsloth", ("general.quantized_by", "general.repo_url"), "unsloth",
         "its merges through save_pretrained lost mtp.* (the config went on declaring it)",
         "https://github.com/unslothai/unsloth-zoo/pull/847"),
    Mark("mradermacher", ("general.quantized_by",), "mradermacher",
         "its files are made with the llama.cpp of their day; before PR 22673 its converter dropped mtp.*",
         "https://github.com/ggml-org/llama.cpp/pull/22673"),
)  # fmt: skip
CONFIG_MARKS = (
    Mark("transformers", ("transformers_version",), "",
         "save_pretrained drops mtp.*, which it ignores when loading, and config.json goes on declaring it",
         "https://github.com/huggingface/transformers/issues/46129"),
    Mark("GPTQModel", ("quantization_config.quantizer", "quantization_config.meta"), "gptqmodel",
         "modules that are not loaded are not saved: no mtp.* tensors", "https://github.com/ModelCloud/GPTQModel"),
    Mark("llm-compressor", ("quantization_config.quant_method",), "compressed-tensors",
         "mtp layers were left out until its examples saved them by hand",
         "https://github.com/vllm-project/llm-compressor/pull/2486"),
    Mark("Model-Optimizer", ("quantization_config.producer",), "modelopt",
         "matches \"mtp\" in names and misses other spellings", "https://github.com/NVIDIA/Model-Optimizer/issues/733"),
    Mark("auto-round", ("quantization_config.quant_method", "quantization_config.provider"), "auto-round",
         "save_pretrained left mtp.* out before missing tensors were copied from the source",
         "https://github.com/intel/auto-round/pull/1526"),
)  # fmt: skip
MLX = Mark("mlx-lm or mlx-vlm", ("format",), "mlx",
           "sanitize drops mtp.* at conversion while the config declares it; norms are saved with their 1 added",
           "https://github.com/ml-explore/mlx-lm/pull/1543")  # fmt: skip


def of_gguf(general: dict[str, Any]) -> list[Finding]:
    """Marks in the general.* keys of an inspect report."""
    return _found(GGUF_MARKS, general)


def of_checkpoint(config: dict[str, Any], metadata: dict[str, str], head_is_there: bool) -> list[Finding]:
    """Marks in config.json and in the safetensors' own metadata. transformers' is everywhere: only where no head is."""
    flat = dict(config)
    inner = config.get("quantization_config")
    if isinstance(inner, dict):
        flat |= {f"quantization_config.{key}": value for key, value in inner.items()}
    marks = CONFIG_MARKS[1:] if head_is_there else CONFIG_MARKS
    return _found((MLX,), metadata) + _found(marks, flat)


def _found(marks: tuple[Mark, ...], values: dict[str, Any]) -> list[Finding]:
    out = []
    for mark in marks:
        for key in mark.keys:
            value = values.get(key)
            if isinstance(value, str | dict | list) and mark.needle in str(value).lower():
                text = f"{key} is {printable(str(value), 60)}: {mark.does}; {mark.link}"
                out.append(Finding("dropper", mark.tool, text))
                break
    return out
