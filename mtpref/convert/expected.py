"""The tensors and shapes that a configuration promises, by the architecture's data sheet."""

from mtpref.architectures import Block, numbers
from mtpref.hf import TextConfig

Shapes = dict[str, tuple[tuple[int, ...] | None, bool]]


def expected_shapes(config: TextConfig, n_mtp: int, *, has_trunk: bool) -> Shapes:
    """GGUF name -> (shape or None where nothing says it, whether a file without it is refused)."""
    sheet, n_layer = config.sheet, config.num_hidden_layers
    tensors = list(sheet.tensors)
    if has_trunk:
        tensors += [tensor.at(i) for i, block in enumerate(_blocks(config)) for tensor in block.all_tensors()]
    for i in range(n_layer, n_layer + n_mtp if sheet.head else n_layer):
        tensors += [tensor.at(i) for tensor in sheet.head.all_tensors()] if sheet.head else []
    return {tensor.name: (numbers(tensor.shape, config.values), tensor.required) for tensor in tensors}


def _blocks(config: TextConfig) -> tuple[Block, ...]:
    """The block of each trunk layer."""
    rule = config.sheet.layers
    if config.recurrent is not None:
        return rule.by_flags(config.recurrent)
    return rule.by_interval(config.full_attention_interval, config.num_hidden_layers)
