"""Attention through a latent row, S53 to S58, and deepseek2's models: against the naive oracle, in every form."""

import hashlib
from functools import lru_cache

import numpy as np
import pytest

from mtpref import spec
from mtpref.base.errors import MtprefError
from mtpref.engine.memory import head_memory
from mtpref.engine.model import load, pair
from mtpref.engine.recipe import make_recipe
from mtpref.files.gguf import write_gguf
from mtpref.front.cli import main
from mtpref.spec.kinds import rope_constants
from tests import naive, naive_mla
from tests.gguf_copy import copy_of
from tests.micro_moe import standard
from tests.models import decode_plainly, run_decoder
from tests.test_moe_model import edited

F32 = np.float32
PLAIN, YARN, FUSED, OLD, LITE = (f"micro-deepseek2-{n}f32" for n in ("", "yarn-", "fused-", "old-", "lite-"))
PROMPT = [17, 40, 3, 255, 12, 12, 9, 200, 30, 1, 77]


@lru_cache
def model_of(name, numerics="ggml", kv_type="F32"):
    return load(standard(name), make_recipe(numerics), kv_type=kv_type, kv_type_draft=kv_type)


@lru_cache
def oracle(name):
    return naive_mla.load(standard(name))


# RULES


def test_interleaved_rope_turns_neighbours_and_leaves_the_rest():
    x = np.random.default_rng(5).standard_normal((3, 2, 10)).astype(F32)
    angles = [0.7, 0.2, 0.05]
    theta = np.outer([4, 5, 9], angles)
    ours = spec.rope_interleaved(x, np.cos(theta).astype(F32), np.sin(theta).astype(F32))
    theirs = naive_mla.turned(x[:, :, :6].astype(np.float64), [4, 5, 9], angles, 1.0)
    assert np.max(np.abs(ours[:, :, :6] - theirs)) < 1e-6
    assert np.array_equal(ours[:, :, 6:], x[:, :, 6:])
    one = spec.rope_interleaved(np.array([[[1, 0, 0, 1]]], F32), np.zeros((1, 2), F32), np.ones((1, 2), F32))
    assert one[0, 0].tolist() == [0, 1, -1, 0]


YARN_KEYS = {"rope.scaling.type": ("yarn", "str"), "rope.scaling.factor": (40.0, "f32"),
             "rope.scaling.original_context_length": (4096, "u32")}  # fmt: skip
GROWTH = 1 + 0.1 * np.log(40.0)
SCALES = {
    "none": ({}, 1.0, 1.0),
    "yarn": (YARN_KEYS, GROWTH, GROWTH),
    "yarn, 1": (YARN_KEYS | {"rope.scaling.yarn_log_multiplier": (0.1, "f32")}, 1.0, GROWTH),
    "yarn, 0.707": (YARN_KEYS | {"rope.scaling.yarn_log_multiplier": (0.0707, "f32")}, 1.0,
                    1 + 0.0707 * np.log(40.0)),
    "linear": ({"rope.scaling.type": ("linear", "str"), "rope.scaling.factor": (40.0, "f32")}, 1.0, GROWTH),
}  # fmt: skip


@pytest.mark.parametrize("case", SCALES)
def test_the_scale_has_the_width_before_absorption_and_yarns_sharpness_squared(case, tmp_path):
    keys, magnitude, sharpness = SCALES[case]
    model = load(edited(standard(PLAIN), tmp_path / "m.gguf", keys))
    cfg = model.layers[0].cfg
    assert rope_constants(cfg.rotary)[2] == pytest.approx(magnitude, rel=1e-7)
    # S16 divides by the root of the row's width, 40; the key's is 72.
    assert cfg.scale / np.sqrt(40) == pytest.approx(sharpness**2 / np.sqrt(72), rel=1e-6)
    hparams = oracle(PLAIN)[0] | {key: value for key, (value, _) in keys.items()}
    assert naive_mla.scaling(hparams)[1:] == pytest.approx((magnitude, sharpness**2 / np.sqrt(72)), rel=1e-6)
    assert not [note for note in model.notes if "not read" in note]


def test_a_matrix_of_each_head_reads_that_heads_row():
    ops = make_recipe("exact", use_kernels=False).ops
    values = np.random.default_rng(6).standard_normal((3, 4, 5)).astype(F32)
    w = spec.Stack("w", "F32", 4, 5, values.view(np.uint8).reshape(3, -1))
    x = np.random.default_rng(7).standard_normal((2, 3, 5)).astype(F32)
    assert naive.nmse(np.einsum("hoi,thi->tho", values.astype(np.float64), x), ops.head_products(ops, w, x)) < 1e-13


# MODELS


@pytest.mark.parametrize("name", [PLAIN, YARN, FUSED, OLD])
def test_absorbed_and_plain_attention_are_equal_in_float64(name):
    hparams, weights = oracle(name)
    a, b = (naive_mla.trunk(weights, hparams, PROMPT, absorbed=form) for form in (True, False))
    assert naive.nmse(a.logits, b.logits) < 1e-25
    shifted = np.concatenate([np.zeros((1, a.h_post.shape[1])), a.h_post[:-1]])
    heads = [naive_mla.mtp(weights, hparams, PROMPT, shifted, list(range(11)), form) for form in (True, False)]
    assert naive.nmse(heads[0].logits, heads[1].logits) < 1e-25


@pytest.mark.parametrize("numerics", ["exact", "ggml"])
@pytest.mark.parametrize("name", [PLAIN, YARN, FUSED, OLD])
def test_every_activation_of_attention_equals_the_oracle(name, numerics):
    hparams, weights = oracle(name)
    theirs = naive_mla.trunk(weights, hparams, PROMPT)
    taken, model = {}, model_of(name, numerics)
    state = model.new_state()
    out = model.trunk(state, PROMPT, n_logits=len(PROMPT), tap=lambda n, x: taken.setdefault(n, np.array(x)))
    pairs = pair(model, PROMPT, out.hidden.post, 0, state.pending_h)
    head = model.mtp(state, pairs.ids, pairs.rows, 0, n_logits=len(PROMPT))
    shifted = np.concatenate([np.zeros((1, theirs.h_post.shape[1])), theirs.h_post[:-1]])
    assert naive.nmse(naive_mla.mtp(weights, hparams, PROMPT, shifted, list(range(11))).logits, head.logits) < 1e-9
    assert naive.nmse(theirs.logits, out.logits) < 1e-9
    for il in range(4):
        for tensor in ("q", "kv_cmpr_pe", "kv_cmpr", "k_pe", "q_pe"):
            one = theirs.tensors[f"{tensor}-{il}"]
            assert naive.nmse(one, taken[f"{tensor}-{il}"].reshape(one.shape)) < 1e-9, tensor


def test_one_row_a_token_is_kept_and_memory_says_so():
    model = model_of(PLAIN, kv_type="F16")
    state = model.new_state()
    model.trunk(state, PROMPT, n_logits=0)
    layer = state.layers[0]
    assert {name: array.shape[1:] for name, array in layer.arrays.items()} == {"cache_k": (1, 40)}
    assert head_memory(model).kv_cell == 2 * 40
    assert head_memory(model_of(OLD, kv_type="F16")).kv_cell == 2 * 2 * 6 * 72


def split(tmp_path, name):
    """An older file's keys and values in two tensors, under the keys of the absorbed form."""
    kv, tensors = copy_of(standard(name))
    made = []
    for n, kind, shape, data in tensors:
        if n.endswith("attn_kv_b.weight"):
            x = data.view(np.float32).reshape(6, 80, 32)
            k, v = np.ascontiguousarray(x[:, :64].transpose(0, 2, 1)), np.ascontiguousarray(x[:, 64:])
            made += [(n.replace("kv_b", "k_b"), kind, k.shape, k), (n.replace("kv_b", "v_b"), kind, v.shape, v)]
        else:
            made.append((n, kind, shape, data))
    sizes = {"head_count_kv": 1, "key_length": 40, "value_length": 32, "key_length_mla": 72, "value_length_mla": 16}
    named = {f"deepseek2.attention.{key}": value for key, value in sizes.items()}
    kv = [(k, named.pop(k, v), kind) for k, v, kind in kv]
    write_gguf(tmp_path / "split.gguf", [*kv, *((k, v, "u32") for k, v in named.items())], made)
    return tmp_path / "split.gguf"


def test_an_older_file_gives_the_text_of_the_same_weights_in_two_tensors(tmp_path):
    old = model_of(OLD)
    new = load(split(tmp_path, OLD), make_recipe("ggml"), kv_type="F32", kv_type_draft="F32")
    a, b = (m.trunk(m.new_state(), PROMPT, n_logits=len(PROMPT)).logits for m in (old, new))
    assert new.notes == old.notes
    assert naive.nmse(a, b) < 1e-10
    assert run_decoder(old, PROMPT, 12, n_max=3).ids == run_decoder(new, PROMPT, 12, n_max=3).ids


@pytest.mark.parametrize("name", [OLD, LITE])
def test_other_forms_are_rolled_back_by_their_length(name):
    model = model_of(name)
    plain = decode_plainly(model, PROMPT, 9, warm_head=True)
    run = run_decoder(model, PROMPT, 8, n_max=2)
    assert run.ids == plain.ids[len(PROMPT) : len(PROMPT) + 8]
    assert run.decoder.state.digest() == plain.digests[len(PROMPT) + 7]


GATINGS = [({}, "softmax"), ({"expert_gating_func": (2, "u32")}, "sigmoid"), ({"expert_gating_func": (1, "u32")},
                                                                              "softmax")]  # fmt: skip


@pytest.mark.parametrize(("keys", "gating"), GATINGS)
def test_a_router_is_a_softmax_where_no_key_says_so(keys, gating, tmp_path):
    model = load(edited(standard(FUSED), tmp_path / "m.gguf", keys))
    assert {layer.ffn_cfg.gating for layer in model.layers[1:]} == {gating}


def test_glm_flash_is_told_by_its_size():
    """47 layers and 154,880 tokens, without a key: a sigmoid."""
    from mtpref.architectures import ARCHITECTURES
    from mtpref.spec.config import Metadata

    keys = {"general.architecture": "deepseek2", "deepseek2.block_count": 48, "deepseek2.nextn_predict_layers": 1}
    for n_vocab, gating in ((154880, 2), (154879, 1)):
        meta = Metadata(keys | {"deepseek2.vocab_size": n_vocab}, "x")
        assert ARCHITECTURES["deepseek2"].values(meta)["expert_gating_func"] == gating
    meta = Metadata(keys | {"tokenizer.ggml.tokens": range(154880)}, "x")
    assert ARCHITECTURES["deepseek2"].values(meta)["expert_gating_func"] == 2


BAD = {
    "an odd turned part": ({"rope.dimension_count": (7, "u32")}, "expected an even count below 72"),
    "a head without a still part": ({"rope.dimension_count": (72, "u32")}, "expected an even count below 72"),
    "another row": ({"attention.key_length": (48, "u32")}, "expected 40 = kv_lora_rank"),
    "heads of keys": ({"attention.head_count_kv": (6, "u32")}, "head_count_kv is 6, expected 1: one row serves"),
    "no count of heads of keys": ({"attention.head_count_kv": None}, "head_count_kv is 6, expected 1: one row serves"),
    "a text for a count": ({"attention.head_count_kv": ("abc", "str")}, "head_count_kv is 'abc', expected an integer"),
    "no latent": ({"attention.kv_lora_rank": None}, r"attention\.kv_lora_rank is missing"),
    "temperature": ({"attention.temperature_scale": (0.5, "f32")}, "scaled by position are not supported"),
    "a latent of queries": ({"attention.q_lora_rank": (32, "u32")}, r"attn_q_a\.weight has shape"),
    "no latent of queries": ({"attention.q_lora_rank": None}, r"attn_q_a\.weight has shape"),
    "a gating of its own": ({"expert_gating_func": (4, "u32")}, r"gating_func is 4, expected 1 \(softmax"),
    "a sharpness that is none": ({"rope.scaling.yarn_log_multiplier": (-1.0, "f32")}, "expected a number from 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_keys_are_refused_in_one_line(case, tmp_path):
    keys, message = BAD[case]
    with pytest.raises(MtprefError, match=message) as refused:
        load(edited(standard(PLAIN), tmp_path / "bad.gguf", keys))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", [PLAIN, "micro-deepseek32-f32", "micro-glm-dsa-f32"])
def test_check_names_a_count_of_keys_heads_that_llama_cpp_aborts_at(name, tmp_path, capsys):
    """ggml.c: GGML_ASSERT(a->ne[0] == b->ne[0]), where the row is written to the cache."""
    path = edited(standard(name), tmp_path / "bad.gguf", {"attention.head_count_kv": (6, "u32")})
    assert main(["check", "--fast", str(path)]) == 1
    assert "attention.head_count_kv is 6, expected 1" in " ".join(capsys.readouterr().out.split())


def test_an_older_file_has_as_many_heads_of_keys_as_of_queries(tmp_path):
    load(edited(standard(OLD), tmp_path / "default.gguf", {"attention.head_count_kv": None}))
    with pytest.raises(MtprefError, match=r"head_count_kv is 1, expected 6: without attention\.key_length_mla every"):
        load(edited(standard(OLD), tmp_path / "bad.gguf", {"attention.head_count_kv": (1, "u32")}))


def test_tensors_of_the_absorbed_form_without_its_keys_are_refused(tmp_path):
    keys = {"attention.key_length_mla": None, "attention.value_length_mla": None}
    with pytest.raises(MtprefError, match=r"expected 6: without attention\.key_length_mla every head"):
        load(edited(standard(PLAIN), tmp_path / "bad.gguf", keys))


def without_a_head_that_is_counted(tmp_path):
    """The head is gone and block_count is the trunk's, and the key still counts one."""
    path = tmp_path / "lost.gguf"
    edited(standard(PLAIN), path, {"block_count": (4, "u32")}, drop=("blk.4.",))
    return path


def test_a_key_that_makes_a_head_of_the_last_layer_is_refused_and_said(tmp_path, capsys):
    path = without_a_head_that_is_counted(tmp_path)
    with pytest.raises(MtprefError, match=r"blk\.3 has no nextn tensor: .* takes that trunk layer for the head"):
        load(path)
    assert main(["inspect", str(path)]) == 0
    assert "takes that trunk layer for the head and leaves it out" in " ".join(capsys.readouterr().out.split())
    assert main(["check", str(path), "--fast"]) == 1
    assert "takes that trunk layer for the head" in " ".join(capsys.readouterr().out.split())
    assert main(["strip", str(path), "-o", str(tmp_path / "whole.gguf")]) == 0
    stripped, whole = load(tmp_path / "whole.gguf"), model_of(PLAIN, kv_type="F16")
    a, b = (m.trunk(m.new_state(), PROMPT, n_logits=2).logits for m in (stripped, whole))
    assert np.array_equal(a, b)


def test_the_planted_models_are_the_same_bytes_everywhere():
    assert hashlib.sha256(standard(PLAIN).read_bytes()).hexdigest().startswith("fc44f8c6e2e12955")
