"""The tensors and shapes that a configuration promises: what the data sheet makes of the keys that will be written."""

from collections import ChainMap
from typing import Any

from mtpref.architectures import numbers
from mtpref.heads.convert.keys import hyper_parameters
from mtpref.heads.hf import TextConfig
from mtpref.spec.config import Metadata

Shapes = dict[str, tuple[tuple[int, ...] | None, bool]]


def expected_shapes(config: TextConfig, n_mtp: int, *, has_trunk: bool) -> Shapes:
    """GGUF name -> (shape or None where nothing says it, whether a file without it is refused)."""
    sheet, n_layer = config.sheet, config.n_layer
    kv: dict[str, Any] = {key: value for key, value, _ in hyper_parameters(config, n_mtp, 0)}
    meta = Metadata(kv | {"general.architecture": sheet.name}, "config.json")
    known = {} if config.vocab_size is None else {"n_vocab": config.vocab_size}
    values = ChainMap(known, sheet.values(meta))  # type: ignore[arg-type]
    tensors = list(sheet.tensors)
    if has_trunk:
        blocks = sheet.layers.blocks(meta, n_layer, frozenset())
        tensors += [tensor.at(i) for i, block in enumerate(blocks) for tensor in block.all_tensors()]
    head = sheet.head.all_tensors() if sheet.head else ()
    tensors += [tensor.at(i) for i in range(n_layer, n_layer + n_mtp) for tensor in head]
    return {tensor.name: (numbers(tensor.shape, values), tensor.required) for tensor in tensors}
