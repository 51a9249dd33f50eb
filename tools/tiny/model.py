"""The model in torch, in the HF convention and under HF names (what a Qwen3.5 checkpoint would hold).

Norm weights are zero-centred (1 + w) except ``linear_attn.norm``; ``A_log`` is kept as such; V heads are
grouped (v-head h reads k-head h // r). ``mtpref.architectures.transforms`` turns a state dict into GGUF's convention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RMS_EPS = 1e-6


@dataclass(frozen=True)
class TinyConfig:
    """Hyper-parameters, GGUF's names. Every matrix row is a multiple of 256 long: K-quants fit."""

    n_vocab: int = 2048
    n_embd: int = 256
    n_layer: int = 4
    n_ff: int = 512
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 64
    n_rot: int = 32
    rope_sections: tuple[int, int, int, int] = (6, 5, 5, 0)
    rope_freq_base: float = 10000.0
    ssm_state_size: int = 64
    ssm_group_count: int = 2
    ssm_time_step_rank: int = 4
    ssm_conv_kernel: int = 4
    full_attention_interval: int = 4
    context_length: int = 2048


class ZeroCentredNorm(nn.Module):
    """RMSNorm with weight 1 + w, eps inside the mean: x * rsqrt(mean(x^2) + eps) * (1 + w)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight + 1.0, RMS_EPS)


class PlainNorm(nn.Module):
    """RMSNorm with weight w: the DeltaNet output norm, the one norm that is not zero-centred."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, RMS_EPS)


class DepthwiseConv(nn.Module):
    """Holder of the causal depthwise kernel, HF shape (channels, 1, kernel); index 0 is the oldest tap."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel).uniform_(-0.5, 0.5))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        n_tokens = x.shape[1]
        padded = F.pad(x, (0, 0, kernel - 1, 0))
        out = padded[:, :n_tokens] * self.weight[:, 0, 0]
        for tap in range(1, kernel):
            out = out + padded[:, tap : tap + n_tokens] * self.weight[:, 0, tap]
        return out


def l2_norm(x: Tensor) -> Tensor:
    """x * rsqrt(sum(x^2) + eps) over the last axis."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + RMS_EPS)


def delta_rule_naive(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """Gated delta rule token by token. q (scaled), k, v: (B, H, T, S); g, beta: (B, H, T)."""
    batch, heads, n_tokens, size = q.shape
    state = q.new_zeros(batch, heads, size, v.shape[-1])
    outputs = []
    for t in range(n_tokens):
        state = state * g[:, :, t, None, None].exp()
        delta = (v[:, :, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, :, t])) * beta[:, :, t, None]
        state = state + k[:, :, t, :, None] * delta[:, :, None, :]
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, :, t]))
    return torch.stack(outputs, 2)


@torch.autocast("cpu", enabled=False)
def delta_rule_chunked(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunk: int = 32) -> Tensor:
    """The same rule with the UT transform: one triangular solve per chunk, then a short loop over chunks.

    With G the running sum of g inside a chunk and A[t, s] = beta_t exp(G_t - G_s) k_t.k_s for s < t:
    (I + A) D = beta (V - exp(G) K M); out = exp(G) Q M + (exp(G_t - G_s) q_t.k_s)_{s <= t} D;
    M' = exp(G_C) M + (exp(G_C - G) K)^T D.
    """
    batch, heads, n_tokens, size = q.shape
    n_chunks = -(-n_tokens // chunk)
    pad = n_chunks * chunk - n_tokens

    def split(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, pad)) if pad else x
        return x.reshape(batch, heads, n_chunks, chunk, x.shape[-1])

    q, k, v = split(q), split(k), split(v)
    beta = split(beta[..., None])
    total = split(g[..., None]).cumsum(3)
    lower = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    decay = (total - total.transpose(3, 4)).masked_fill(~lower, float("-inf")).exp()
    k_beta = k * beta
    system = (k_beta @ k.transpose(3, 4)) * decay
    right = torch.cat([v * beta, k_beta * total.exp()], -1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    u, w = solved.split([v.shape[-1], size], -1)
    inner = (q @ k.transpose(3, 4)) * decay
    q_decay = q * total.exp()
    k_decay = k * (total[:, :, :, -1:] - total).exp()
    chunk_decay = total[:, :, :, -1:].exp()
    state = q.new_zeros(batch, heads, size, v.shape[-1])
    outputs = []
    # Unbound, not indexed: the gradient of an index is a whole tensor of zeros for each chunk.
    parts = (u, w, inner, q_decay, k_decay, chunk_decay)
    for u_i, w_i, inner_i, q_i, k_i, decay_i in zip(*(part.unbind(2) for part in parts), strict=True):
        delta = u_i - w_i @ state
        outputs.append(q_i @ state + inner_i @ delta)
        state = state * decay_i + k_i.transpose(2, 3) @ delta
    return torch.stack(outputs, 2).reshape(batch, heads, n_chunks * chunk, -1)[:, :, :n_tokens]


def in_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same values as float32, whatever the layers around compute in."""
    return tuple(x.float() for x in tensors)


class LinearAttention(nn.Module):
    """Gated DeltaNet layer."""

    def __init__(self, cfg: TinyConfig) -> None:
        super().__init__()
        self.size, self.n_k, self.n_v = cfg.ssm_state_size, cfg.ssm_group_count, cfg.ssm_time_step_rank
        self.key_dim, self.value_dim = self.n_k * self.size, self.n_v * self.size
        self.in_proj_qkv = nn.Linear(cfg.n_embd, 2 * self.key_dim + self.value_dim, bias=False)
        self.in_proj_z = nn.Linear(cfg.n_embd, self.value_dim, bias=False)
        self.in_proj_b = nn.Linear(cfg.n_embd, self.n_v, bias=False)
        self.in_proj_a = nn.Linear(cfg.n_embd, self.n_v, bias=False)
        self.conv1d = DepthwiseConv(2 * self.key_dim + self.value_dim, cfg.ssm_conv_kernel)
        step = torch.exp(torch.empty(self.n_v).uniform_(-6.9, -2.3))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.A_log = nn.Parameter(torch.empty(self.n_v).uniform_(1.0, 16.0).log())
        self.norm = PlainNorm(self.size)
        self.out_proj = nn.Linear(self.value_dim, cfg.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, n_tokens, _ = x.shape
        qkv = F.silu(self.conv1d(self.in_proj_qkv(x)))
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.value_dim], -1)

        def heads(t: Tensor, n: int) -> Tensor:
            return t.reshape(batch, n_tokens, n, self.size).transpose(1, 2)

        ratio = self.n_v // self.n_k
        q = (l2_norm(heads(q, self.n_k)) * self.size**-0.5).repeat_interleave(ratio, 1)
        k = l2_norm(heads(k, self.n_k)).repeat_interleave(ratio, 1)
        beta = torch.sigmoid(self.in_proj_b(x)).transpose(1, 2)
        g = (-self.A_log.exp() * F.softplus(self.in_proj_a(x) + self.dt_bias)).transpose(1, 2)
        out = delta_rule_chunked(*in_float32(q, k, heads(v, self.n_v), g, beta)).transpose(1, 2)
        z = self.in_proj_z(x).reshape(batch, n_tokens, self.n_v, self.size)
        return self.out_proj((self.norm(out) * F.silu(z)).reshape(batch, n_tokens, -1))


KeyValue = tuple[Tensor, Tensor]


class SelfAttention(nn.Module):
    """Gated attention: q rows [q_h | gate_h] per head, q/k norm, partial NEOX RoPE, sigmoid output gate."""

    def __init__(self, cfg: TinyConfig) -> None:
        super().__init__()
        self.n_head, self.n_head_kv, self.dim, self.n_rot = cfg.n_head, cfg.n_head_kv, cfg.head_dim, cfg.n_rot
        self.q_proj = nn.Linear(cfg.n_embd, 2 * cfg.n_head * cfg.head_dim, bias=False)
        self.k_proj = nn.Linear(cfg.n_embd, cfg.n_head_kv * cfg.head_dim, bias=False)
        self.v_proj = nn.Linear(cfg.n_embd, cfg.n_head_kv * cfg.head_dim, bias=False)
        self.o_proj = nn.Linear(cfg.n_head * cfg.head_dim, cfg.n_embd, bias=False)
        self.q_norm = ZeroCentredNorm(cfg.head_dim)
        self.k_norm = ZeroCentredNorm(cfg.head_dim)
        self.freq = cfg.rope_freq_base ** (-torch.arange(0, cfg.n_rot, 2, dtype=torch.float32) / cfg.n_rot)

    def rope(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[2], dtype=torch.float32)[:, None] * self.freq
        cos, sin = angle.cos(), angle.sin()
        a, b, rest = x.split([self.n_rot // 2, self.n_rot // 2, self.dim - self.n_rot], -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)

    def forward(self, x: Tensor, earlier: list[KeyValue]) -> tuple[Tensor, KeyValue]:
        """``earlier``: keys and values of the head's earlier chain passes, first pass first."""
        batch, n_tokens, _ = x.shape
        q, gate = self.q_proj(x).reshape(batch, n_tokens, self.n_head, 2 * self.dim).split(self.dim, -1)
        k = self.k_proj(x).reshape(batch, n_tokens, self.n_head_kv, self.dim)
        v = self.v_proj(x).reshape(batch, n_tokens, self.n_head_kv, self.dim).transpose(1, 2)
        q = self.rope(self.q_norm(q).transpose(1, 2))
        k = self.rope(self.k_norm(k).transpose(1, 2))
        ratio = self.n_head // self.n_head_kv
        k, v = k.repeat_interleave(ratio, 1), v.repeat_interleave(ratio, 1)
        if earlier:
            passes = [(k_pass.float(), v_pass.float()) for k_pass, v_pass in (*earlier, (k, v))]
            out = chained_attention(q.float(), passes)
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = out.transpose(1, 2) * torch.sigmoid(gate)
        return self.o_proj(out.reshape(batch, n_tokens, -1)), (k, v)


@torch.autocast("cpu", enabled=False)
def chained_attention(q: Tensor, passes: list[KeyValue]) -> Tensor:
    """Attention of chain pass s as a draft sees it: cell j from pass s, j-1 from s-1, ..., the rest pass 1.

    q: (B, H, T, D). A draft's step s at position j has behind it the cells its own earlier steps wrote and,
    before those, the cells written from the target's hidden rows (pass 1).
    """
    k_first, v_first = passes[0]
    n_tokens = q.shape[2]
    lower = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()
    scores = (q @ k_first.transpose(2, 3)) * q.shape[-1] ** -0.5
    recent = list(reversed(passes[1:]))
    for offset, (k, _) in enumerate(recent):
        near = (q[:, :, offset:] * k[:, :, : n_tokens - offset]).sum(-1) * q.shape[-1] ** -0.5
        scores = scores.diagonal_scatter(near, -offset, 2, 3)
    probs = scores.masked_fill(~lower, float("-inf")).softmax(-1)
    out = probs @ v_first
    for offset, (_, v) in enumerate(recent):
        weight = probs.diagonal(-offset, 2, 3)[..., None]
        change = weight * (v[:, :, : n_tokens - offset] - v_first[:, :, : n_tokens - offset])
        out = out + F.pad(change, (0, 0, offset, 0))
    return out


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, cfg: TinyConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(cfg.n_embd, cfg.n_ff, bias=False)
        self.up_proj = nn.Linear(cfg.n_embd, cfg.n_ff, bias=False)
        self.down_proj = nn.Linear(cfg.n_ff, cfg.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class RecurrentLayer(nn.Module):
    """DeltaNet block: pre-norm mixer and pre-norm FFN, both residual."""

    def __init__(self, cfg: TinyConfig) -> None:
        super().__init__()
        self.input_layernorm = ZeroCentredNorm(cfg.n_embd)
        self.linear_attn = LinearAttention(cfg)
        self.post_attention_layernorm = ZeroCentredNorm(cfg.n_embd)
        self.mlp = Mlp(cfg)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class AttentionLayer(nn.Module):
    """Gated attention block; the MTP block is one of these."""

    def __init__(self, cfg: TinyConfig) -> None:
        super().__init__()
        self.input_layernorm = ZeroCentredNorm(cfg.n_embd)
        self.self_attn = SelfAttention(cfg)
        self.post_attention_layernorm = ZeroCentredNorm(cfg.n_embd)
        self.mlp = Mlp(cfg)

    def forward(self, x: Tensor, earlier: list[KeyValue]) -> tuple[Tensor, KeyValue]:
        mixed, kv = self.self_attn(self.input_layernorm(x), earlier)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), kv


class Trunk(nn.Module):
    """Embedding, layers and final norm; returns the post-norm hidden rows."""

    def __init__(self, cfg: TinyConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(cfg.n_vocab, cfg.n_embd)
        layers: list[nn.Module] = []
        for i in range(cfg.n_layer):
            recurrent = (i + 1) % cfg.full_attention_interval != 0
            layers.append(RecurrentLayer(cfg) if recurrent else AttentionLayer(cfg))
        self.layers = nn.ModuleList(layers)
        self.norm = ZeroCentredNorm(cfg.n_embd)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x) if isinstance(layer, RecurrentLayer) else layer(x, [])[0]
        return self.norm(x)


class MtpHead(nn.Module):
    """The MTP block: position p takes (embedding of x_p, hidden h_{p-1}) and predicts x_{p+1}."""

    def __init__(self, cfg: TinyConfig) -> None:
        super().__init__()
        self.pre_fc_norm_embedding = ZeroCentredNorm(cfg.n_embd)
        self.pre_fc_norm_hidden = ZeroCentredNorm(cfg.n_embd)
        self.fc = nn.Linear(2 * cfg.n_embd, cfg.n_embd, bias=False)
        self.layers = nn.ModuleList([AttentionLayer(cfg)])
        self.norm = ZeroCentredNorm(cfg.n_embd)

    def forward(self, embedded: Tensor, hidden: Tensor, earlier: list[KeyValue]) -> tuple[Tensor, KeyValue]:
        pair = torch.cat([self.pre_fc_norm_embedding(embedded), self.pre_fc_norm_hidden(hidden)], -1)
        x, kv = self.layers[0](self.fc(pair), earlier)
        return self.norm(x), kv


def shift(hidden: Tensor) -> Tensor:
    """Row p becomes h_{p-1}; row 0 becomes the zero vector (llama.cpp's cell 0)."""
    return F.pad(hidden[:, :-1], (0, 0, 1, 0))


class TinyModel(nn.Module):
    """Trunk, MTP block and the tied output head."""

    def __init__(self, cfg: TinyConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.model = Trunk(cfg)
        self.mtp = MtpHead(cfg)
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)
            elif name.endswith("embed_tokens.weight"):
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("proj.weight") or name.endswith("fc.weight") or "in_proj" in name:
                nn.init.normal_(parameter, std=0.5 * parameter.shape[1] ** -0.5)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.model.embed_tokens.weight).float()

    def draft_hidden(self, ids: Tensor, hidden: Tensor, depth: int, cell_zero: bool = True) -> list[Tensor]:
        """MTP hidden rows for chain depths 1..depth, row p predicting x_{p+1}.

        Depth s at p is fed depth s-1's own output at p-1; its first s-1 rows have no meaning.
        Without ``cell_zero`` position 0 is left out of the head's cache (and of every result: T-1 rows).
        """
        embedded = self.model.embed_tokens(ids)
        fed = shift(hidden)
        if not cell_zero:
            embedded, fed = embedded[:, 1:], fed[:, 1:]
        rows: list[Tensor] = []
        passes: list[KeyValue] = []
        for _ in range(depth):
            out, kv = self.mtp(embedded, fed, passes)
            passes.append(kv)
            rows.append(out)
            fed = shift(out)
        return rows
