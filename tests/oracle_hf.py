"""transformers' Qwen3.5 as a yardstick: weights in GGUF convention in, logits and layer outputs out.

Owns the way back from GGUF to transformers (norms minus 1, log(-ssm_a), V heads from tiled to grouped order),
written here on its own so that it checks the package's transforms, and a float64 mode: transformers casts to
float32 inside norms, softmax, rotary angles and the delta rule, and `precision` makes these casts float64.
Needs torch and transformers; importing this module without them raises ImportError.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import modeling_rope_utils
from transformers.models.qwen3_5 import modeling_qwen3_5 as hf
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig

Array = np.ndarray

# GGUF name inside a layer -> transformers name inside a layer
LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_qkv.weight": "linear_attn.in_proj_qkv.weight",
    "attn_gate.weight": "linear_attn.in_proj_z.weight",
    "ssm_beta.weight": "linear_attn.in_proj_b.weight",
    "ssm_alpha.weight": "linear_attn.in_proj_a.weight",
    "ssm_conv1d.weight": "linear_attn.conv1d.weight",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A_log",
    "ssm_norm.weight": "linear_attn.norm.weight",
    "ssm_out.weight": "linear_attn.out_proj.weight",
}


class Float64Torch:
    """The torch module with float32 spelled float64; everything else is torch's own."""

    float32 = torch.float64
    float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def precision(dtype: torch.dtype, delta_rule: str = "chunk") -> Iterator[None]:
    """Run transformers' Qwen3.5 code with its float32 casts as `dtype`, and the named form of the delta rule.

    delta_rule: "chunk" (transformers' form for more than one token) or "recurrent" (token by token).
    """
    with contextlib.ExitStack() as stack:
        if dtype == torch.float64:
            stack.enter_context(mock.patch.object(hf, "torch", Float64Torch()))
            stack.enter_context(mock.patch.object(modeling_rope_utils, "torch", Float64Torch()))
            stack.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
        if delta_rule == "recurrent":
            recurrent = hf.torch_recurrent_gated_delta_rule
            stack.enter_context(mock.patch.object(hf, "torch_chunk_gated_delta_rule", recurrent))
        stack.enter_context(torch.no_grad())
        yield


def v_heads_grouped(x: Array, n_k_head: int, n_v_head: int, axis: int) -> Array:
    """Undo the tiled order along an axis of n_v_head parts: grouped head g * r + t is tiled t * H_k + g."""
    r = n_v_head // n_k_head
    parts = np.split(x, n_v_head, axis=axis)
    order = [t * n_k_head + g for g in range(n_k_head) for t in range(r)]
    return np.concatenate([parts[i] for i in order], axis=axis)


def undo_layer_tensor(name: str, x: Array, hparams: dict[str, Any], recurrent: bool) -> Array:
    """One tensor of a layer from GGUF to transformers' convention; `name` without the blk.N. prefix."""
    if name.endswith("norm.weight") and name != "ssm_norm.weight":
        return x - 1.0
    if not recurrent:
        return x
    n_k, n_v = hparams["ssm.group_count"], hparams["ssm.time_step_rank"]
    n_qk = 2 * n_k * hparams["ssm.state_size"]
    if name in ("attn_qkv.weight", "ssm_conv1d.weight"):
        x = np.concatenate([x[:n_qk], v_heads_grouped(x[n_qk:], n_k, n_v, 0)])
        return x[:, None, :] if name == "ssm_conv1d.weight" else x
    if name == "ssm_a":
        return np.log(-v_heads_grouped(x, n_k, n_v, 0))
    if name in ("attn_gate.weight", "ssm_beta.weight", "ssm_alpha.weight", "ssm_dt.bias"):
        return v_heads_grouped(x, n_k, n_v, 0)
    if name == "ssm_out.weight":
        return v_heads_grouped(x, n_k, n_v, 1)
    return x


def rope_scaling(hparams: dict[str, Any]) -> dict[str, Any]:
    """transformers' names of the scaling keys."""
    if "rope.scaling.type" not in hparams:
        return {"rope_type": "default"}
    found = {"rope_type": hparams["rope.scaling.type"], "factor": float(hparams["rope.scaling.factor"])}
    if "rope.scaling.original_context_length" in hparams:
        found["original_max_position_embeddings"] = int(hparams["rope.scaling.original_context_length"])
    return found


def inverse_frequencies(config: Qwen3_5TextConfig) -> tuple[torch.Tensor, float]:
    """inv_freq and the attention factor, by transformers' own function of the type; in float64 under `precision`."""
    parameters: Any = config.rope_parameters
    kind: Any = parameters["rope_type"]
    if kind == "default":
        return hf.Qwen3_5TextRotaryEmbedding.compute_default_rope_parameters(config)
    return modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](config)


def text_config(hparams: dict[str, Any], flags: list[bool], n_vocab: int, tied: bool) -> Qwen3_5TextConfig:
    """The configuration of all blocks; an MTP block is one more full-attention layer. flags: recurrent?"""
    eps = float(hparams["attention.layer_norm_rms_epsilon"])
    if abs(eps - 1e-6) > 1e-12:
        raise ValueError(f"rms epsilon {eps}: transformers fixes the l2 norm's epsilon at 1e-6, so only that compares")
    head_dim = int(hparams["attention.key_length"])
    config = Qwen3_5TextConfig(
        vocab_size=n_vocab,
        hidden_size=int(hparams["embedding_length"]),
        intermediate_size=int(hparams["feed_forward_length"]),
        num_hidden_layers=len(flags),
        num_attention_heads=int(hparams["attention.head_count"]),
        num_key_value_heads=int(hparams["attention.head_count_kv"]),
        head_dim=head_dim,
        rms_norm_eps=eps,
        tie_word_embeddings=tied,
        linear_conv_kernel_dim=int(hparams["ssm.conv_kernel"]),
        linear_key_head_dim=int(hparams["ssm.state_size"]),
        linear_value_head_dim=int(hparams["ssm.state_size"]),
        linear_num_key_heads=int(hparams["ssm.group_count"]),
        linear_num_value_heads=int(hparams["ssm.time_step_rank"]),
        layer_types=["linear_attention" if f else "full_attention" for f in flags],
        rope_parameters={
            **rope_scaling(hparams),
            "rope_theta": float(hparams.get("rope.freq_base", 10000.0)),
            "partial_rotary_factor": int(hparams["rope.dimension_count"]) / head_dim,
            "mrope_section": [int(s) for s in hparams["rope.dimension_sections"][:3]],
            "mrope_interleaved": True,
        },
    )
    config._attn_implementation = "eager"
    return config


class Oracle:
    """The trunk as Qwen3_5ForCausalLM and the MTP block as its Qwen3_5DecoderLayer, in one float type."""

    def __init__(
        self,
        weights: dict[str, Array],
        hparams: dict[str, Any],
        flags: list[bool],
        dtype: str = "float64",
        delta_rule: str = "chunk",
    ) -> None:
        self.dtype = getattr(torch, dtype)
        self.delta_rule = delta_rule
        self.hparams, self.flags = hparams, flags
        self.n_layer = len(flags) - int(hparams.get("nextn_predict_layers", 0))
        n_vocab = weights["token_embd.weight"].shape[0]
        tied = "output.weight" not in weights
        with precision(self.dtype):
            self.model = hf.Qwen3_5ForCausalLM(text_config(hparams, flags[: self.n_layer], n_vocab, tied))
            self.model = self.model.to(self.dtype).eval()
            rotary = self.model.model.rotary_emb
            rotary.inv_freq, rotary.attention_scaling = inverse_frequencies(self.model.config)
        self._load(self.model, self._trunk_state(weights, tied))
        self.mtp_config = text_config(hparams, flags, n_vocab, tied)
        if len(flags) > self.n_layer:
            self._build_mtp(weights)

    def _tensor(self, x: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)).to(self.dtype)

    def _load(self, module: torch.nn.Module, state: dict[str, Array]) -> None:
        module.load_state_dict({k: self._tensor(v) for k, v in state.items()}, strict=True)

    def _layer_state(self, weights: dict[str, Array], il: int) -> dict[str, Array]:
        prefix = f"blk.{il}."
        names = [n[len(prefix) :] for n in weights if n.startswith(prefix) and ".nextn." not in n]
        return {LAYER_NAMES[n]: undo_layer_tensor(n, weights[prefix + n], self.hparams, self.flags[il]) for n in names}

    def _trunk_state(self, weights: dict[str, Array], tied: bool) -> dict[str, Array]:
        embd = weights["token_embd.weight"]
        state = {"model.embed_tokens.weight": embd, "model.norm.weight": weights["output_norm.weight"] - 1.0}
        state["lm_head.weight"] = embd if tied else weights["output.weight"]
        for il in range(self.n_layer):
            layer = self._layer_state(weights, il)
            state.update({f"model.layers.{il}.{name}": x for name, x in layer.items()})
        return state

    def _build_mtp(self, weights: dict[str, Array]) -> None:
        il = self.n_layer
        p = f"blk.{il}.nextn."
        self.mtp_layer = hf.Qwen3_5DecoderLayer(self.mtp_config, il).to(self.dtype).eval()
        self._load(self.mtp_layer, self._layer_state(weights, il))
        self.mtp_norms = {}
        for name in ("enorm", "hnorm", "shared_head_norm"):
            own = p + name + ".weight"
            shared = name == "shared_head_norm" and own not in weights
            w = weights["output_norm.weight" if shared else own]
            norm = hf.Qwen3_5RMSNorm(len(w), eps=self.mtp_config.rms_norm_eps).to(self.dtype)
            self._load(norm, {"weight": w - 1.0})
            self.mtp_norms[name] = norm
        self.eh_proj = self._tensor(weights[p + "eh_proj.weight"])
        embd = weights["token_embd.weight"]
        self.mtp_embd = self._tensor(weights.get(p + "embed_tokens.weight", embd))
        head = weights.get(p + "shared_head_head.weight", weights.get("output.weight", embd))
        self.mtp_head = self._tensor(head)

    def trunk(self, tokens: list[int], cached: bool = False) -> tuple[Array, Array, dict[str, Array]]:
        """logits, post-norm hidden, and module outputs under llama.cpp's names, for one sequence.

        cached: one token at a time through transformers' cache (its conv and recurrent states, its KV).
        """
        record: dict[str, list[Array]] = {}
        hooks = [m.register_forward_hook(_recorder(record, n)) for n, m in self._recorded_modules()]
        try:
            with precision(self.dtype, self.delta_rule):
                if cached:
                    past = None
                    for token in tokens:
                        out = self.model(torch.tensor([[token]]), past_key_values=past, use_cache=True)
                        past = out.past_key_values
                else:
                    self.model(torch.tensor([tokens]), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        tensors = {name: np.concatenate(rows) for name, rows in record.items()}
        return tensors["result_output"], tensors["h_nextn"], tensors

    def _recorded_modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        for il, layer in enumerate(self.model.model.layers):
            yield f"attn_norm-{il}", layer.input_layernorm
            if self.flags[il]:
                yield f"linear_attn_out-{il}", layer.linear_attn
            else:
                yield f"attn_output-{il}", layer.self_attn
            yield f"attn_post_norm-{il}", layer.post_attention_layernorm
            yield f"ffn_out-{il}", layer.mlp
            yield f"l_out-{il}", layer
        yield "h_nextn", self.model.model.norm
        yield "result_output", self.model.lm_head

    def mtp(self, tokens: list[int], hiddens: Array, positions: list[int]) -> tuple[Array, Array, dict[str, Array]]:
        """logits, h_nextn, named tensors of the MTP block; row i: (tokens[i], hiddens[i]) at positions[i]."""
        il, n = self.n_layer, len(tokens)
        mask = torch.full((n, n), float("-inf"), dtype=self.dtype).triu(1)[None, None]
        pos = torch.tensor([positions]).view(1, 1, n).expand(3, 1, n)
        with precision(self.dtype, self.delta_rule):
            e = self.mtp_norms["enorm"](self.mtp_embd[torch.tensor([tokens])])
            h = self.mtp_norms["hnorm"](self._tensor(hiddens)[None])
            x = torch.nn.functional.linear(torch.cat([e, h], dim=-1), self.eh_proj)
            angles = self.model.model.rotary_emb(x, pos)
            y = self.mtp_layer(x, position_embeddings=angles, attention_mask=mask, position_ids=pos[0])
            h_nextn = self.mtp_norms["shared_head_norm"](y)
            logits = torch.nn.functional.linear(h_nextn, self.mtp_head)
        named = {f"mtp_enorm-{il}": e, f"mtp_hnorm-{il}": h, f"mtp_eh_proj-{il}": x, f"mtp_post_ffn-{il}": y}
        tensors = {name: _numpy(t) for name, t in named.items()}
        return _numpy(logits), _numpy(h_nextn), tensors


def _numpy(x: torch.Tensor) -> Array:
    """The one sequence of a batch, as float64."""
    return x[0].detach().to(torch.float64).numpy().copy()


def _recorder(record: dict[str, list[Array]], name: str) -> Any:
    def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        record.setdefault(name, []).append(_numpy(output[0] if isinstance(output, tuple) else output))

    return hook
