"""Conversion between the HF and the GGUF convention: known orders, inverses for every tensor."""

import numpy as np
import pytest

from mtpref.architectures import (
    ARCHITECTURES,
    gguf_to_hf_name,
    hf_to_gguf_name,
    state_from_gguf,
    state_to_gguf,
    tensor_of,
)
from mtpref.architectures import transforms as tf
from mtpref.base.errors import MtprefError

QWEN35 = ARCHITECTURES["qwen35"]
N_LAYER, H_K, H_V, S = 4, 2, 6, 3
VALUES = {"n_layer": N_LAYER, "n_k_head": H_K, "n_v_head": H_V, "d_state": S}
N_EMBD, N_HEAD, N_HEAD_KV, HEAD_DIM, N_FF, N_VOCAB = 5, 4, 2, 3, 7, 11

NEXTN_NORMS = ("pre_fc_norm_embedding.weight", "pre_fc_norm_hidden.weight", "norm.weight")


def to_gguf(name, x, values=VALUES):
    return tensor_of(QWEN35, name, N_LAYER).change.to_gguf(x, values)


def hf_shapes() -> dict[str, tuple[int, ...]]:
    value = H_V * S
    channels = 2 * H_K * S + value
    n_v = H_V
    every = {
        "input_layernorm.weight": (N_EMBD,),
        "post_attention_layernorm.weight": (N_EMBD,),
        "mlp.gate_proj.weight": (N_FF, N_EMBD),
        "mlp.up_proj.weight": (N_FF, N_EMBD),
        "mlp.down_proj.weight": (N_EMBD, N_FF),
    }
    linear = {
        "linear_attn.in_proj_qkv.weight": (channels, N_EMBD),
        "linear_attn.in_proj_z.weight": (value, N_EMBD),
        "linear_attn.in_proj_b.weight": (n_v, N_EMBD),
        "linear_attn.in_proj_a.weight": (n_v, N_EMBD),
        "linear_attn.conv1d.weight": (channels, 1, 4),
        "linear_attn.dt_bias": (n_v,),
        "linear_attn.A_log": (n_v,),
        "linear_attn.norm.weight": (S,),
        "linear_attn.out_proj.weight": (N_EMBD, value),
    }
    attention = {
        "self_attn.q_proj.weight": (2 * N_HEAD * HEAD_DIM, N_EMBD),
        "self_attn.k_proj.weight": (N_HEAD_KV * HEAD_DIM, N_EMBD),
        "self_attn.v_proj.weight": (N_HEAD_KV * HEAD_DIM, N_EMBD),
        "self_attn.o_proj.weight": (N_EMBD, N_HEAD * HEAD_DIM),
        "self_attn.q_norm.weight": (HEAD_DIM,),
        "self_attn.k_norm.weight": (HEAD_DIM,),
    }
    shapes = {"model.embed_tokens.weight": (N_VOCAB, N_EMBD), "model.norm.weight": (N_EMBD,)}
    for i in range(N_LAYER):
        block = every | (attention if i == N_LAYER - 1 else linear)
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in block.items()}
    shapes |= {f"mtp.layers.0.{name}": shape for name, shape in (every | attention).items()}
    shapes |= {f"mtp.{name}": (N_EMBD,) for name in NEXTN_NORMS}
    return shapes | {"mtp.fc.weight": (N_EMBD, 2 * N_EMBD)}


def hf_state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {name: rng.uniform(-0.9, 0.9, shape).astype(np.float32) for name, shape in hf_shapes().items()}


def test_v_head_source_is_the_transpose_of_the_grouping():
    assert tf.v_head_source(2, 4).tolist() == [0, 2, 1, 3]
    assert tf.v_head_source(2, 6).tolist() == [0, 3, 1, 4, 2, 5]
    assert tf.v_head_source(4, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("n_k", "n_v"), [(1, 3), (2, 6), (4, 4), (16, 48)])
def test_gguf_v_head_h_reads_the_key_head_its_hf_head_read(n_k, n_v):
    ratio = n_v // n_k
    for gguf_head, hf_head in enumerate(tf.v_head_source(n_k, n_v)):
        assert gguf_head % n_k == hf_head // ratio


def test_state_has_gguf_names_of_a_qwen35_file():
    names = set(state_to_gguf(QWEN35, hf_state(), VALUES))
    assert {"token_embd.weight", "output_norm.weight", "blk.0.ssm_a", "blk.0.ssm_dt.bias"} <= names
    assert {"blk.3.attn_q.weight", "blk.4.attn_q.weight", "blk.4.nextn.eh_proj.weight"} <= names
    assert "blk.4.nextn.shared_head_norm.weight" in names
    assert len(names) == len(hf_shapes())


def test_round_trip_restores_every_tensor():
    state = hf_state()
    back = state_from_gguf(QWEN35, state_to_gguf(QWEN35, state, VALUES), VALUES)
    assert back.keys() == state.keys()
    for name, x in state.items():
        assert back[name].shape == x.shape
        if "norm" in name and "linear_attn" not in name:
            np.testing.assert_allclose(back[name], x, rtol=0, atol=2.0**-23)
        elif name.endswith("A_log"):
            np.testing.assert_allclose(back[name], x, rtol=0, atol=2.0**-22)
        else:
            np.testing.assert_array_equal(back[name], x)


def test_every_norm_but_the_deltanet_output_norm_gains_one():
    state = hf_state()
    for hf, x in state.items():
        if "norm" not in hf:
            continue
        name = hf_to_gguf_name(QWEN35, hf, N_LAYER)
        expected = x if name.endswith("ssm_norm.weight") else x + np.float32(1)
        np.testing.assert_array_equal(to_gguf(name, x), expected)


def test_only_v_rows_of_qkv_and_conv_move():
    n_keep = 2 * H_K * S
    state = hf_state()
    for hf in ("model.layers.0.linear_attn.in_proj_qkv.weight", "model.layers.0.linear_attn.conv1d.weight"):
        x = state[hf].reshape(state[hf].shape[0], -1)
        y = to_gguf(hf_to_gguf_name(QWEN35, hf, N_LAYER), state[hf])
        np.testing.assert_array_equal(y[:n_keep], x[:n_keep])
        size = S
        # GGUF V head 1 is HF V head 3 when H_k = 2 and H_v = 6.
        np.testing.assert_array_equal(y[n_keep + size : n_keep + 2 * size], x[n_keep + 3 * size : n_keep + 4 * size])


def test_out_proj_moves_columns_as_z_moves_rows():
    state = hf_state()
    z = state["model.layers.0.linear_attn.in_proj_z.weight"]
    out = state["model.layers.0.linear_attn.out_proj.weight"]
    z_gguf = to_gguf("blk.0.attn_gate.weight", z)
    out_gguf = to_gguf("blk.0.ssm_out.weight", out)
    np.testing.assert_allclose(out_gguf @ z_gguf, out @ z, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(out_gguf, out)


def test_equal_head_counts_leave_deltanet_tensors_alone():
    values = VALUES | {"n_k_head": 6}
    z = np.arange(18 * 2, dtype=np.float32).reshape(18, 2)
    np.testing.assert_array_equal(to_gguf("blk.0.attn_gate.weight", z, values), z)


def test_ssm_a_is_minus_exp_of_a_log():
    assert tf.a_log_to_ssm_a(np.array([0.0, np.log(2.0)], np.float32)).tolist() == [-1.0, -2.0]


def test_ssm_a_with_a_positive_value_is_refused():
    with pytest.raises(MtprefError, match="is this already A_log"):
        tf.ssm_a_to_a_log(np.array([-1.0, 0.5], np.float32))


def test_head_counts_that_do_not_divide_are_refused():
    with pytest.raises(MtprefError, match="not a multiple of H_k = 4"):
        to_gguf("blk.0.attn_gate.weight", np.zeros((18, 2), np.float32), VALUES | {"n_k_head": 4})


@pytest.mark.parametrize("name", ["model.layers.4.mlp.up_proj.weight", "mtp.embed.weight", "visual.patch.weight"])
def test_unknown_hf_name_is_refused(name):
    with pytest.raises(MtprefError, match="no GGUF name"):
        hf_to_gguf_name(QWEN35, name, 4)


def test_unknown_gguf_name_is_refused():
    with pytest.raises(MtprefError, match="no checkpoint name"):
        gguf_to_hf_name(QWEN35, "blk.0.attn_sinks.weight", 4)


def test_conv1d_of_the_wrong_rank_is_refused():
    with pytest.raises(MtprefError, match=r"expected \(channels, 1, kernel\)"):
        tf.conv1d_to_gguf(np.zeros((4, 2, 4), np.float32))
    with pytest.raises(MtprefError, match=r"expected \(channels, kernel\)"):
        tf.conv1d_from_gguf(np.zeros((4, 1, 4), np.float32))
