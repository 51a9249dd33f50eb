"""The weights of a planted micro model: a small qwen35 trunk and MTP block that follow one rule.

The residual stream has five channels: BIAS (a constant), MARK (1 where the MTP block shall go wrong), C (context),
I (the token's input code, entries +-1) and O (output codes). The rule, with U and Wc random matrices:

    C_p = leaky sum over the past of U I(x_p)      DeltaNet layers, one decay for each value head
    O_p = 1.5 I(x_p) + Wc C_p                      FFN of the last trunk layer, in its linear range
    logits_j = <O-code of j, O_p>,  O-code of j = I(predecessor of j)

so the next token is the successor of x_p unless the context outvotes it. The MTP block computes the same from
(x_p, h_{p-1}): C_p from the C channel of h_{p-1} and from x_p. Where MARK is set its FFN turns O to another code.
Every other weight is hash noise, small against the rule, so that each part of the model moves the logits.
Here: strengths, shape, codes and the noise; the layers are in micro_layers.py, files and types in make_micro.py.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from micro_gguf import F32, hash_u64, shuffled, uniform

# Per value head (repeated when there are more): decay of the leaky sum, and the head's beta logit, dt bias, ssm_a.
# decay = exp(softplus(dt) * ssm_a) * (1 - beta).
HEADS = (
    (0.50, -0.619, -0.375, -0.5),
    (0.65, -1.125, -1.053, -0.5),
    (0.75, -1.550, -1.560, -0.5),
    (0.85, -2.143, -2.225, -0.5),
)
BIAS, MARK = 0, 1
SILU_4 = 3.928
# Strengths, settled by measurement (docs/models.md#micro-models).
KEY_NOISE = 0.05
GATE_NOISE = 0.03
WRITE_NOISE = 0.01
CODE_GAIN = 2.0
CONTEXT_GAIN = 0.4
CONTEXT_WEIGHT = 1.8
TRUNK_ATTENTION = 0.06
SWITCH_GAIN = 12.0
SWITCH_AT = 0.7
SWITCH_WIDTH = 0.4
MTP_ATTENTION = 0.05
# The MTP block's FFN reads through a larger RMS than the trunk's: O is there already.
MTP_BOOST = 1.7
WRONG_GAIN = 0.9
# The MTP block's estimate of C_p, for each head of HEADS: weight of C in the normed h_{p-1}, weight of U I(x_p).
MTP_HIDDEN = (0.28, 0.36, 0.41, 0.42)
MTP_INPUT = (0.64, 0.46, 0.31, 0.20)
OUTPUT_SCALE = 0.3


def rope_sections(n_pairs: int) -> list[int]:
    """A share of the pairs for each of time, height and width."""
    return [n_pairs - 2 * (n_pairs // 3), n_pairs // 3, n_pairs // 3, 0]


@dataclass(frozen=True)
class MicroShape:
    """Hyper-parameters under their GGUF meanings; `n_layer` counts the trunk only."""

    n_vocab: int = 256
    n_embd: int = 64
    n_layer: int = 4
    n_ff: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 16
    n_rot: int = 8
    state_size: int = 16
    n_k_head: int = 2
    n_v_head: int = 4
    d_conv: int = 4

    @property
    def n_context(self) -> int:
        """Width of the C channel."""
        return 3 * self.n_embd // 16

    @property
    def n_code(self) -> int:
        """Width of the I and of the O channel."""
        return (self.n_embd - 2 - self.n_context) // 2

    @property
    def channels(self) -> tuple[slice, slice, slice]:
        """Residual indices of C, I and O."""
        i0 = 2 + self.n_context
        return slice(2, i0), slice(i0, i0 + self.n_code), slice(i0 + self.n_code, self.n_embd)


# A shape whose rows are multiples of 256, as K-quants need.
K_QUANT_SHAPE = MicroShape(n_embd=256, n_ff=256, head_dim=64, n_rot=32, state_size=64)


@dataclass
class Plant:
    """Builds the tensors of one model; `tensors` maps GGUF names to float32 arrays in NumPy order."""

    seed: int
    shape: MicroShape
    wrong: float
    tensors: dict[str, F32] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.codes = token_codes(self.seed, self.shape.n_vocab, self.shape.n_code)
        self.order = shuffled(self.seed, "successor cycle", self.shape.n_vocab)
        n_context = self.shape.n_context
        self.mix = signs(self.seed, "context to output", (self.shape.n_code, n_context), n_context**-0.5)
        self.switch = signs(self.seed, "context switch", (n_context,), n_context**-0.5)

    def noise(self, name: str, shape: tuple[int, ...], scale: float) -> F32:
        """Uniform in [-scale, scale); for wider models less, so that sums over a row keep their size."""
        if shape[-1] > self.shape.d_conv:
            scale *= math.sqrt(64 / self.shape.n_embd)
        return uniform(self.seed, name, shape) * np.float32(scale)

    def writer(self, name: str, n_in: int, scale: float) -> F32:
        """Noise for a matrix that writes to the residual; fainter on BIAS, MARK and C."""
        weight = self.noise(name, (self.shape.n_embd, n_in), scale)
        weight[self.shape.channels[0]] *= np.float32(0.25)
        weight[: MARK + 1] *= np.float32(0.1)
        return weight

    def gamma(self, name: str, n: int, low: float = 0.6, high: float = 1.4) -> F32:
        """A norm weight, uniform in [low, high), stored under `name`."""
        middle, half = np.float32((low + high) / 2), np.float32((high - low) / 2)
        self.tensors[name] = middle + half * uniform(self.seed, name, (n,))
        return self.tensors[name]

    def embedding(self, name: str, codes_in: F32, codes_out: F32, mark: F32) -> None:
        """Rows [1, mark, C = 0, I = codes_in, O = codes_out] plus noise."""
        _, i, o = self.shape.channels
        table = self.noise(name, (self.shape.n_vocab, self.shape.n_embd), 0.04)
        table[:, BIAS] += np.float32(1)
        table[:, MARK] += mark
        table[:, i] += codes_in
        table[:, o] += codes_out
        self.tensors[name] = table

    def output_codes(self) -> F32:
        """The O-code of each token: the I-code of its predecessor in the cycle."""
        out = np.empty_like(self.codes)
        for before, after in zip(self.order, self.order[1:] + self.order[:1], strict=True):
            out[after] = self.codes[before]
        return out


def token_codes(seed: int, n_vocab: int, n_code: int) -> F32:
    """n_vocab words of n_code entries +-1: all rotations of a few words, one word after the other.

    Rotating a code by one gives the code of the next token (except at the end of a word's rotations and of the
    vocabulary). Inner products of two codes stay below the least limit for which 3,000 candidate words suffice.
    """
    words = hash_u64(seed, "token codes", 3000 * n_code).reshape(3000, n_code)
    candidates = 1 - 2 * (words >> np.uint64(63)).astype(np.int64)
    turn = (np.arange(n_code)[None, :] - np.arange(n_code)[:, None]) % n_code
    for limit in range(3 - n_code % 2, n_code, 2):
        chosen = np.zeros((0, n_code), dtype=np.int64)
        for word in candidates:
            if np.all(word[turn[1:]] @ word <= limit) and np.all(chosen @ word <= limit):
                chosen = np.concatenate([chosen, word[turn]])
                if len(chosen) >= n_vocab:
                    return chosen[:n_vocab].astype(np.float32)
    raise ValueError(f"n_vocab {n_vocab}: no {n_vocab} codes of {n_code} signs; take a larger n_embd")


def signs(seed: int, name: str, shape: tuple[int, ...], scale: float) -> F32:
    """Random signs times `scale` rounded to 1/1024."""
    words = hash_u64(seed, name, int(np.prod(shape)))
    pattern = (1 - 2 * (words >> np.uint64(63)).astype(np.int64)).astype(np.float32)
    return pattern.reshape(shape) * np.float32(round(1024 * scale) / 1024)


def wrong_tokens(seed: int, order: list[int], fraction: float) -> F32:
    """1.0 for the tokens on which the MTP block is planted wrong, spread evenly along the successor cycle.

    Of every ten neighbours in the cycle the same number is taken (up to rounding), at hashed places.
    """
    mark = np.zeros(len(order), dtype=np.float32)
    for start in range(0, len(order), 10):
        block = order[start : start + 10]
        quota = int((start + len(block)) * fraction + 0.5) - int(start * fraction + 0.5)
        for place in shuffled(seed, f"wrong {start}", len(block))[:quota]:
            mark[block[place]] = np.float32(1)
    return mark


def context_inputs(shape: MicroShape, seed: int) -> list[list[tuple[int, int, int, int]]]:
    """For each C entry: (layer, value head, pair of value rows, sign) of the leaky sums it adds up.

    Value rows (2j, 2j+1) of a head hold +2 and -2 times I[j']: silu(x) - silu(-x) = x, so their difference is linear.
    """
    pairs = shape.state_size // 2
    out = []
    for c in range(shape.n_context):
        layer, head = c % (shape.n_layer - 1), (c // (shape.n_layer - 1)) % shape.n_v_head
        signs = hash_u64(seed, f"context signs {c}", pairs).tolist()
        out.append([(layer, head, j, 1 - 2 * (signs[j] >> 63)) for j in range(pairs)])
    return out


def own_output(plant: Plant, name: str, out_codes: F32, order: list[int]) -> None:
    """A head of its own: O-code entry k at place order[k] of the O channel, noise elsewhere."""
    table = plant.noise(name, (plant.shape.n_vocab, plant.shape.n_embd), 0.04)
    table[:, plant.shape.channels[2].start + np.array(order)] += out_codes
    plant.tensors[name] = table


def plant_roots(plant: Plant, *, untied: bool) -> tuple[F32, F32, F32]:
    """Embedding, final norm and, where the output is untied, the output: (final norm, output codes, wrong tokens)."""
    shape = plant.shape
    mark = wrong_tokens(plant.seed, plant.order, plant.wrong)
    out_codes = plant.output_codes()
    plant.embedding("token_embd.weight", plant.codes, out_codes, mark)
    final_norm = plant.gamma("output_norm.weight", shape.n_embd, 0.8, 1.2)
    final_norm[shape.channels[2]] *= np.float32(OUTPUT_SCALE)
    # The tied head would otherwise find the current token itself through MARK and I.
    final_norm[MARK] *= np.float32(0.05)
    final_norm[shape.channels[1]] *= np.float32(0.05)
    if untied:
        own_output(plant, "output.weight", out_codes, list(range(shape.n_code)))
    return final_norm, out_codes, mark
