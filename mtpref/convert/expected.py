"""The tensors and shapes that a configuration promises, by the tables of tensor_names.py."""

from mtpref.hf import TextConfig
from mtpref.tensor_names import ATTENTION_LAYER, DELTA_LAYER, GLOBAL, MTP_BLOCK, dims

Shapes = dict[str, tuple[tuple[int, ...] | None, bool]]


def expected_shapes(config: TextConfig, n_mtp: int, *, has_trunk: bool) -> Shapes:
    """GGUF name -> (shape or None where nothing says it, whether a file without it is refused)."""
    values = {
        "n_embd": config.hidden_size,
        "n_ff": config.intermediate_size,
        "n_head": config.num_attention_heads,
        "n_head_kv": config.num_key_value_heads,
        "n_embd_head": config.rope_dim,
        "d_conv": config.linear_conv_kernel_dim,
        "d_state": config.linear_key_head_dim,
        "n_k_head": config.linear_num_key_heads,
        "n_v_head": config.linear_num_value_heads,
    }
    if config.vocab_size is not None:
        values["n_vocab"] = config.vocab_size
    blocks = [(i, _layer(config, i)) for i in range(config.num_hidden_layers)] if has_trunk else []
    blocks += [(config.num_hidden_layers + i, MTP_BLOCK) for i in range(n_mtp)]
    found: Shapes = {spec.name: (dims(spec.shape, values), spec.required) for spec in GLOBAL}
    for i, specs in blocks:
        for spec in specs:
            found[spec.name.format(i=i)] = (dims(spec.shape, values), spec.required)
    return found


def _layer(config: TextConfig, i: int) -> tuple:
    is_recurrent = (i + 1) % config.full_attention_interval != 0 if config.recurrent is None else config.recurrent[i]
    return DELTA_LAYER if is_recurrent else ATTENTION_LAYER
