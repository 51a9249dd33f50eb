"""S53 to S58 on arrays: what goes into attention through a latent row, against the float64 oracle.

Whole layers and models: test_mla_model.py.
"""

import numpy as np
import pytest

from mtpref import spec
from mtpref.spec.config import LatentConfig
from mtpref.spec.latent import latent_scale, rope_interleaved
from mtpref.spec.ops import spec_ops
from tests import naive, naive_mla

N_EMBD, N_HEAD, N_LATENT, N_ROT, N_NOPE, N_VALUE = 48, 3, 20, 8, 12, 10
EPS = 1e-6
HPARAMS = {
    "arch": "deepseek2", "attention.head_count": N_HEAD, "attention.kv_lora_rank": N_LATENT, "context_length": 512,
    "rope.dimension_count": N_ROT, "attention.key_length": N_LATENT + N_ROT, "attention.value_length": N_LATENT,
    "attention.key_length_mla": N_NOPE + N_ROT, "attention.value_length_mla": N_VALUE,
    "attention.layer_norm_rms_epsilon": EPS, "rope.freq_base": 1e4,
}  # fmt: skip
CFG = LatentConfig(N_EMBD, N_HEAD, N_NOPE + N_ROT, N_VALUE, N_LATENT, N_ROT, 1e4, EPS, is_absorbed=True)


def layer(rng, *, has_low_rank):
    """Name -> float32 values of one layer, with queries by two products or by one."""
    shapes = {"attn_kv_a_mqa": (N_LATENT + N_ROT, N_EMBD), "attn_output": (N_EMBD, N_HEAD * N_VALUE),
              "attn_k_b": (N_HEAD, N_LATENT, N_NOPE), "attn_v_b": (N_HEAD, N_VALUE, N_LATENT)}  # fmt: skip
    n_query = N_HEAD * (N_NOPE + N_ROT)
    shapes |= {"attn_q_a": (16, N_EMBD), "attn_q_b": (n_query, 16)} if has_low_rank else {"attn_q": (n_query, N_EMBD)}
    made = {f"blk.0.{name}.weight": rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, n in (("attn_q_a_norm", 16), ("attn_kv_a_norm", N_LATENT)):
        made[f"blk.0.{name}.weight"] = (1 + 0.2 * rng.standard_normal(n)).astype(np.float32)
    return made


def bound(weights):
    """A layer's weights as the operations take them."""
    made = {}
    for name, w in weights.items():
        raw = w.view(np.uint8).reshape(-1)
        made[name.removeprefix("blk.0.")] = spec.Matrix(name, "F32", *w.shape, raw) if w.ndim == 2 else w
    return made


@pytest.mark.parametrize("has_low_rank", [True, False])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_queries_latent_and_turned_part_are_the_oracles(has_low_rank, scale):
    rng = np.random.default_rng(11)
    weights, positions = layer(rng, has_low_rank=has_low_rank), [0, 1, 5, 100003]
    x = (scale * rng.standard_normal((4, N_EMBD))).astype(np.float32)
    _, truth = naive_mla.latent_attention(weights, HPARAMS, 0, naive.f64(x), positions, True)
    frequencies = spec.rope_frequencies(N_ROT, 1e4)
    table = spec.rope_table(np.array(positions, np.int32), frequencies, np.ones(N_ROT // 2, np.bool_))
    ops, seen = spec_ops("exact"), {}
    q_nope, q_pe, c, k_pe = ops.latent_input(ops, bound(weights), CFG, x, table, seen.__setitem__)
    q = truth["q"].reshape(4, N_HEAD, -1)
    seen |= {"q_pe": q_pe, "kv_cmpr": c, "k_pe": k_pe}
    for found, expected in ((q_nope, q[:, :, :N_NOPE]), *((seen[name], truth[name]) for name in truth)):
        assert np.max(np.abs(found - expected)) <= 3e-6 * np.max(np.abs(expected))


def test_neighbours_are_paired_and_the_rest_passes():
    x = np.array([[[1, 2, 3, 4, 5, 6]]], np.float32)
    cos, sin = np.array([[0, 1]], np.float32), np.array([[1, 0]], np.float32)
    assert rope_interleaved(x, cos, sin).tolist() == [[[-2, 1, 3, 4, 5, 6]]]


@pytest.mark.parametrize("factor", [1.0, 4.0, 40.0])
@pytest.mark.parametrize("log_multiplier", [0.0, 0.707, 1.0])
def test_the_scale_is_the_keys_width_before_absorption_with_the_sharpness_squared(factor, log_multiplier):
    found = latent_scale(20, 28, 1 / factor, 1.0, log_multiplier)
    sharp = 1 + 0.1 * log_multiplier * np.log(factor)
    # Scores are divided by sqrt(28), the cached row's width, afterwards.
    assert found / np.sqrt(28) == pytest.approx(sharp**2 / np.sqrt(20), rel=1e-6)
