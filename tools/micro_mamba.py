"""Planted micro models of nemotron_h_moe: blocks of one part each, Mamba-2, attention that does not turn, or experts.

The rule of micro_plant.py. Mamba-2 layers write leaky sums of the input codes to the context, each head with a decay of
its own; the last layer's shared expert writes the rule. Networks have no gate: a pair of units with relu(a + u)^2 -
relu(a - u)^2 = 4 a u is linear where |u| < a, and silent where a is far below 0. All else is hash noise, strong enough
that a wrong decay, group, gate, norm, turn or projection moves the logits.
"""

from dataclasses import dataclass, field
from typing import Any

import micro_layers as layers
import micro_moe as mm
import micro_plant as mp
import numpy as np
from micro_chain import ATTENTION_NOISE, CONTEXT_GAIN
from micro_gguf import F32, shuffled, uniform

from mtpref.architectures import ARCHITECTURES, Architecture, Block, Tensor, numbers
from mtpref.spec.config import Metadata, Values

ARCH = "nemotron_h_moe"
STEP_BIAS = (-0.4, -0.9, -1.4, -2.0)  # of each head's step, before softplus
OPEN = 2.0  # of a pair of units
WRITE = 0.25  # what a Mamba-2 layer's output writes to the context


@dataclass(frozen=True)
class MambaShape:
    """Hyper-parameters under their GGUF meanings.

    pattern   M Mamba-2, * attention, E experts: the trunk's layers
    n_low     width of the rows that experts work on; 0: the model's own
    eps       of RMS norms; None: no key, then that of the head's layer norm holds
    """

    pattern: str = "M*EE"
    n_low: int = 32
    n_expert: int = 20
    n_used: int = 3
    n_ff_exp: int = 32
    n_ssm_head: int = 4
    n_group: int = 2
    d_state: int = 16
    d_conv: int = 4
    n_head: int = 6
    n_head_kv: int = 2
    eps: float | None = 1e-6
    normalise: bool | None = True
    scale: float | None = 1.6
    fused: bool = False
    biases: bool = False  # of attention
    micro: mp.MicroShape = field(default_factory=lambda: mp.MicroShape())

    @property
    def d_inner(self) -> int:
        return 16 * self.n_ssm_head


def sheet() -> Architecture:
    """The data sheet."""
    return ARCHITECTURES[ARCH]


def keys_of(shape: MambaShape) -> dict[str, object]:
    """Metadata under llama.cpp's keys, with its hash tokenizer `test`."""
    m, kinds = shape.micro, [*shape.pattern, "both"]
    values: dict[str, Any] = {
        "n_block": len(kinds),
        "n_ctx": 4096,
        "n_embd": m.n_embd,
        "n_ff": [np.int32(shape.n_ff_exp if one in ("E", "both") else 0) for one in kinds],
        "n_head": shape.n_head,
        "n_head_kv": [np.int32(shape.n_head_kv if one in ("*", "both") else 0) for one in kinds],
        "rms_eps": shape.eps,
        "n_embd_head": m.head_dim,
        "n_embd_head_v": m.head_dim,
        "head_norm_eps": 1e-5,
        "n_expert": shape.n_expert,
        "n_expert_used": shape.n_used,
        "d_conv": shape.d_conv,
        "d_state": shape.d_state,
        "n_group": shape.n_group,
        "d_inner": shape.d_inner,
        "n_ssm_head": shape.n_ssm_head,
        "n_ff_exp": shape.n_ff_exp,
        "n_ff_shexp": m.n_ff,
        "n_expert_shared": 1,
        "expert_weights_norm": shape.normalise,
        "expert_weights_scale": shape.scale,
        "n_low": shape.n_low or None,
    }
    keys: dict[str, object] = {
        "general.architecture": ARCH,
        "general.name": "mtpref micro",
        "general.alignment": 32,
    }
    keys |= {f"{ARCH}.{h.key}": values[h.name] for h in sheet().hypers if values.get(h.name) is not None}
    keys[f"{ARCH}.nextn_predict_layers"] = 1
    keys["tokenizer.ggml.model"] = "test"
    keys["tokenizer.ggml.tokens"] = [f"{i:x}" for i in range(m.n_vocab)]
    return keys


def read_keys(shape: MambaShape) -> Metadata:
    """The same as the sheet reads them."""
    found = {k: [int(x) for x in v] if isinstance(v, list) and k.startswith(ARCH) else v
             for k, v in keys_of(shape).items()}  # fmt: skip
    return Metadata(found, "micro")


def plant_mamba(seed: int, wrong: float, shape: MambaShape, variant: Any) -> dict[str, F32]:
    """All tensors of one model as float32 arrays in NumPy order, in file order."""
    m, n_layer = shape.micro, len(shape.pattern)
    plant = mp.Plant(seed, m, wrong)
    final_norm, _, _ = mp.plant_roots(plant, untied=variant.untied)
    meta = read_keys(shape)
    values = Values(meta, {h.name: h.read for h in sheet().hypers}).having(n_vocab=m.n_vocab)
    made = dict(plant.tensors)
    head = sheet().head
    assert head is not None
    blocks = (*sheet().layers.blocks(meta, n_layer, frozenset()), head.block)
    for il, block in enumerate(blocks):
        wanted = {tensor.name: numbers(tensor.shape, values.at(il)) for tensor in chosen(block, shape)}
        own = _Layer(plant, il, wanted, shape)
        rule = own.wrong if il == n_layer else own.rule if il == n_layer - 1 else None
        found = own.norms()
        found |= own.mamba(found["attn_norm.weight"]) if "ssm_in.weight" in wanted else {}
        found |= own.attention(found["attn_norm.weight"]) if "attn_output.weight" in wanted else {}
        if "ffn_gate_inp.weight" in wanted:
            norm = found.get("post_attention_norm.weight", found["attn_norm.weight"])
            found |= own.experts(norm, rule)
        found |= own.nextn(final_norm) if il == n_layer else {}
        made |= {f"blk.{il}.{name}": x for name, x in mm.checked(found, wanted).items()}
    return made


def chosen(block: Block, shape: MambaShape) -> list[Tensor]:
    """The tensors of a block, with or without projections of the experts' rows and biases of attention."""
    return [
        tensor
        for tensor in mm.chosen(block, shape.fused)
        if (shape.n_low or tensor.group != "latent")
        and (shape.biases or not (tensor.name.startswith("attn_") and tensor.name.endswith(".bias")))
        and not (shape.fused and tensor.name in ("attn_q.bias", "attn_k.bias", "attn_v.bias"))
    ]


@dataclass(frozen=True)
class _Layer:
    """One block's tensors, by parts."""

    plant: mp.Plant
    il: int
    wanted: dict[str, Any]
    shape: MambaShape

    def noise(self, name: str, scale: float, dims: tuple[int, ...] | None = None) -> F32:
        return uniform(self.plant.seed, f"blk.{self.il}.{name}", dims or self.wanted[name]) * np.float32(scale)

    def norms(self) -> dict[str, F32]:
        names = [n for n in ("attn_norm.weight", "post_attention_norm.weight") if n in self.wanted]
        return {name: np.float32(1) + self.noise(name, 0.1) for name in names}

    def writer(self, name: str, scale: float) -> F32:
        return self.noise(name, scale) * np.float32(self.wanted[name][-1] ** -0.5)

    def mamba(self, norm: F32) -> dict[str, F32]:
        """Leaky sums of input codes: constant b and c, steps and decays of each head's own, moved by the token."""
        s, m = self.shape, self.shape.micro
        c, i, _ = m.channels
        rows = self.noise("ssm_in.weight", 0.06)
        z, x = rows[: s.d_inner], rows[s.d_inner : 2 * s.d_inner]
        shared, dt = rows[2 * s.d_inner : -s.n_ssm_head], rows[-s.n_ssm_head :]
        z[:, mp.BIAS] += np.float32(1.5)
        shared[:, mp.BIAS] += np.float32(1.2) * uniform(self.plant.seed, f"{self.il} pattern", (len(shared),))
        # v rows in pairs: +2 and -2 times one code's entry; silu(x) - silu(-x) = x
        sources = [shuffled(self.plant.seed, f"{self.il} source {j // m.n_code}", m.n_code)[j % m.n_code]
                   for j in range(s.d_inner // 2)]  # fmt: skip
        for j, source in enumerate(sources):
            x[2 * j, i.start + source] += np.float32(2)
            x[2 * j + 1, i.start + source] -= np.float32(2)
        dt *= np.float32(4)
        conv = self.noise("ssm_conv1d.weight", 0.15)
        conv[:, -1] += np.float32(1)
        biases = np.array([STEP_BIAS[h % 4] for h in range(s.n_ssm_head)], np.float32)
        out, write = self.writer("ssm_out.weight", 0.1), np.float32(WRITE / s.pattern.count("M"))
        signs = np.sign(uniform(self.plant.seed, f"{self.il} signs", (m.n_context, s.d_inner // 2)))
        for j in range(s.d_inner // 2):
            target = c.start + j % m.n_context
            out[target, 2 * j] += write * signs[j % m.n_context, j]
            out[target, 2 * j + 1] -= write * signs[j % m.n_context, j]
        return {
            "ssm_in.weight": rows / norm,
            "ssm_conv1d.weight": conv,
            "ssm_conv1d.bias": self.noise("ssm_conv1d.bias", 0.2),
            "ssm_dt.bias": biases + self.noise("ssm_dt.bias", 0.1),
            "ssm_a": np.float32(-0.6) + self.noise("ssm_a", 0.3),
            "ssm_d": np.float32(0.3) + self.noise("ssm_d", 0.3),
            "ssm_norm.weight": np.float32(1) + self.noise("ssm_norm.weight", 0.2),
            "ssm_out.weight": out,
        }

    def attention(self, norm: F32) -> dict[str, F32]:
        m, made = self.shape.micro, {}
        for name in self.wanted:
            if name == "attn_output.weight":
                out = self.writer(name, 0.1)
                out[m.channels[0]] += self.noise("context", CONTEXT_GAIN, (m.n_context, out.shape[1]))
                made[name] = out
            elif name.startswith("attn_") and name.endswith(".bias"):
                made[name] = self.noise(name, 0.2)
            elif name.startswith("attn_") and not name.endswith("norm.weight"):
                made[name] = self.noise(name, ATTENTION_NOISE) / norm
        return made

    def experts(self, norm: F32, rule: Any) -> dict[str, F32]:
        """Router and experts of noise; the shared expert's units write the rule where there is one."""
        up, down = self.noise("ffn_up_shexp.weight", 0.3), self.writer("ffn_down_shexp.weight", 0.05)
        if rule is not None:
            rule(up, down)
        made = {
            "ffn_gate_inp.weight": self.noise("ffn_gate_inp.weight", mm.ROUTER) / norm,
            "exp_probs_b.bias": self.noise("exp_probs_b.bias", mm.BIAS_OF_EXPERTS),
            "ffn_up_shexp.weight": up / norm,
            "ffn_down_shexp.weight": down,
        }
        is_low = "ffn_latent_down.weight" in self.wanted
        if is_low:
            made["ffn_latent_down.weight"] = self.noise("ffn_latent_down.weight", 0.4) / norm
            made["ffn_latent_up.weight"] = self.writer("ffn_latent_up.weight", 0.15)
        ups = self.noise("ffn_up_exps.weight", 0.5)
        made["ffn_up_exps.weight"] = ups if is_low else ups / norm
        made["ffn_down_exps.weight"] = self.writer("ffn_down_exps.weight", 0.2 if is_low else 0.03)
        return made

    def pairs(self, up: F32, down: F32, read: F32, target: Any, gain: float, marked: bool) -> None:
        """Pairs of units that add gain times read x to the target entries; marked: where MARK is set alone."""
        n = len(read)
        for sign, rows in ((1.0, slice(0, n)), (-1.0, slice(n, 2 * n))):
            up[rows] *= np.float32(0.1)
            up[rows] += np.float32(sign) * read
            up[rows, mp.BIAS] += np.float32(OPEN - (8.0 if marked else 0.0))
            up[rows, mp.MARK] += np.float32(8.0 if marked else 0.0)
            down[target, np.arange(rows.start, rows.stop)] += np.float32(sign * gain / (4 * OPEN))

    def rule(self, up: F32, down: F32) -> None:
        """O += 1.5 I - O + Wc C."""
        m = self.shape.micro
        c, i, o = m.channels
        read = np.zeros((m.n_code, m.n_embd), np.float32)
        unit = np.arange(m.n_code)
        read[unit, i.start + unit] = 0.6
        read[unit, o.start + unit] = -0.3
        read[:, c] = self.plant.mix * np.float32(0.25)
        self.pairs(up, down, read, o.start + unit, 3.0, False)

    def wrong(self, up: F32, down: F32) -> None:
        """Where MARK is set O turns to another code."""
        m = self.shape.micro
        _, i, o = m.channels
        read = np.zeros((m.n_code, m.n_embd), np.float32)
        unit, other = np.arange(m.n_code), np.array(shuffled(self.plant.seed, "wrong code", m.n_code))
        read[unit, i.start + unit] -= np.float32(0.8)
        read[unit, i.start + other] += np.float32(0.8)
        self.pairs(up, down, read, o.start + unit, 4.0, True)
        # In an order of their own: else the matrix is that of the trunk's rule but for noise.
        order = shuffled(self.plant.seed, f"units of {self.il}", len(up))
        up[:], down[:] = up[order], down[:, order]

    def nextn(self, final_norm: F32) -> dict[str, F32]:
        """eh_proj of micro_layers.py: the context of the hidden row, the input codes, and the rule of both."""
        layers.mtp_block(self.plant, self.il, final_norm, list(range(self.shape.micro.n_code)),
                         list(range(self.shape.micro.n_code)))  # fmt: skip
        found = {name.removeprefix(f"blk.{self.il}."): self.plant.tensors.pop(name)
                 for name in list(self.plant.tensors) if name.startswith(f"blk.{self.il}.")}  # fmt: skip
        own = {name: x for name, x in found.items() if name.startswith("nextn.")}
        own["nextn.shared_head_norm.weight"] = final_norm * (np.float32(1) + self.noise("snorm", 0.1, final_norm.shape))
        return own
