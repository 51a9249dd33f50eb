"""RoPE scaling: whole models against the float64 oracle and transformers; keys, overrides and refusals.

The rule itself: test_spec_rope.py. Against llama.cpp: test_llama_decisions.py, the micro-60-rope-* recordings.
"""

from dataclasses import replace

import numpy as np
import pytest

import mtpref
from mtpref import kernels
from mtpref.architectures import ARCHITECTURES
from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.files.gguf import write_gguf
from mtpref.front.cli import main
from mtpref.spec.config import Metadata, read_model_config, rope_notes
from mtpref.spec.config import read_rope_scaling as read_with_base
from mtpref.spec.kinds import GATED_ATTENTION
from mtpref.spec.rope_scaling import RopeOverrides, RopeScaling
from tests import naive, naive_model
from tests.gguf_from_weights import metadata, write_model
from tests.hf_cases import SCALED, shape
from tests.models import decode_plainly, has_nan, run_decoder
from tests.random_weights import random_tokens, random_weights, recurrent_layers

N_TOKENS = 24


def meta(overrides=None, **keys):
    """The metadata of a small qwen35 with `rope.scaling.KEY` for each key."""
    kv = {key: value for key, value, _ in metadata(shape())}
    kv |= {f"qwen35.rope.scaling.{key}": value for key, value in keys.items()}
    return Metadata(kv, "m.gguf", overrides)


def values(keys):
    return ARCHITECTURES["qwen35"].values(keys)


def read_attn_config(keys):
    return GATED_ATTENTION.configure(values(keys))


def read_rope_scaling(keys, **how):
    return read_with_base(keys, keys.rope.freq_base or values(keys)["freq_base"], **how)


def scaled(*args, **kwargs):
    return read_rope_scaling(meta(*args, **kwargs))


# WHOLE MODELS


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaled")
    found = {}
    for name, hparams in SCALED.items():
        weights = random_weights(11, hparams, factors={"attn_q.weight": 3.0, "attn_k.weight": 3.0})
        found[name] = weights, hparams, write_model(folder / f"{name}.gguf", weights, hparams)
    return found


def tokens_of(hparams):
    return random_tokens(11, N_TOKENS, hparams["n_vocab"])


@pytest.mark.parametrize("numerics", ["exact", "ggml"])
@pytest.mark.parametrize("name", SCALED)
def test_trunk_and_head_equal_the_oracle(files, name, numerics):
    weights, hparams, path = files[name]
    tokens = tokens_of(hparams)
    model = load(path, make_recipe(numerics, use_kernels=False), kv_type="F32", kv_type_draft="F32")
    state = model.new_state()
    out = model.trunk(state, tokens, n_logits=N_TOKENS)
    truth = naive_model.trunk(weights, hparams, tokens)
    assert naive.nmse(truth.logits, out.logits) < 1e-10
    rows = np.concatenate([np.zeros((1, hparams["embedding_length"])), truth.h_post[:-1]])
    head = model.mtp(state, tokens, rows.astype(np.float32), 0, n_logits=N_TOKENS)
    head_truth = naive_model.mtp(weights, hparams, tokens, rows, list(range(N_TOKENS)))
    assert naive.nmse(head_truth.logits, head.logits) < 1e-10
    # the comparison can tell: without scaling, trunk and head are elsewhere
    plain = {key: value for key, value in hparams.items() if ".scaling." not in key}
    assert naive.nmse(truth.logits, naive_model.trunk(weights, plain, tokens).logits) > 1e-7
    unscaled = naive_model.mtp(weights, plain, tokens, rows, list(range(N_TOKENS)))
    assert naive.nmse(head_truth.logits, unscaled.logits) > 1e-7


@pytest.mark.skipif(not kernels.available(), reason="NUMBA_DISABLE_JIT is set: no kernels to compare")
@pytest.mark.parametrize("name", SCALED)
def test_kernels_and_batches_give_the_bits_of_plain_decoding(files, name):
    _, hparams, path = files[name]
    prompt = tokens_of(hparams)
    model = load(path, make_recipe("ggml"))
    plain = decode_plainly(model, prompt, 12, warm_head=True, n_ctx=256)
    readable = load(path, make_recipe("ggml", use_kernels=False))
    assert plain.digests == decode_plainly(readable, prompt, 12, warm_head=True, n_ctx=256).digests
    for n_batch in (1, 5, 64):
        for rollback in ("snapshot", "replay", "two-phase"):
            run = run_decoder(model, prompt, 12, n_ctx=256, rollback=rollback, n_batch=n_batch, n_max=3)
            assert prompt + run.ids == plain.ids
            assert not has_nan(run.decoder.state)
            n_past = run.decoder.state.n_past
            assert run.decoder.state.digest() == plain.digests[n_past]


def test_the_head_follows_the_scaling_too(files):
    model = load(files["yarn"][2])
    attention = [layer.cfg.rope_scaling for layer in model.layers if hasattr(layer.cfg, "rope_scaling")]
    assert model.heads[0].layer.cfg.rope_scaling == attention[0]
    assert attention[0].ext_factor == 1.0


# TRANSFORMERS, LIVE


@pytest.fixture(scope="module")
def oracle_hf():
    pytest.importorskip("torch", reason="torch is not installed (extra: oracle)")
    reason = "transformers with Qwen3.5 is not installed (extra: oracle)"
    pytest.importorskip("transformers.models.qwen3_5", reason=reason)
    from tests import oracle_hf

    return oracle_hf


@pytest.mark.oracle
@pytest.mark.parametrize("name", SCALED)
def test_the_oracle_equals_transformers_as_a_whole(oracle_hf, files, name):
    weights, hparams, _ = files[name]
    tokens = tokens_of(hparams)
    oracle = oracle_hf.Oracle(weights, hparams, recurrent_layers(hparams))
    _, h, theirs = oracle.trunk(tokens)
    ours = naive_model.trunk(weights, hparams, tokens)
    positions = list(range(N_TOKENS - 1))
    head, _, _ = oracle.mtp(tokens[1:], h[:-1], positions)
    our_head = naive_model.mtp(weights, hparams, tokens[1:], ours.h_post[:-1], positions)
    worst = max(naive.nmse(x, ours.tensors[key]) for key, x in theirs.items())
    print(f"{name}: worst NMSE {worst:.1e}, head {naive.nmse(head, our_head.logits):.1e}")
    assert worst < 1e-20
    assert naive.nmse(head, our_head.logits) < 1e-20


# KEYS


def test_without_keys_nothing_is_scaled():
    assert scaled() == RopeScaling(type="linear", n_ctx_orig=256)
    assert rope_notes(meta(), scaled()) == ()
    assert scaled(type="none", factor=4.0).freq_scale == 1.0


def test_a_factor_without_a_type_is_linear_as_in_llama_cpp():
    assert scaled(factor=4.0) == RopeScaling(type="linear", freq_scale=0.25, n_ctx_orig=256)
    old = meta()
    old.kv = {**old.kv, "qwen35.rope.scale_linear": 2.0}
    assert read_rope_scaling(old).freq_scale == 0.5


def test_a_linear_factor_of_0_is_not_set_as_llama_cpp_writes_it():
    assert scaled(type="linear", factor=0.0, yarn_ext_factor=-1.0).freq_scale == 1.0


def test_yarn_reads_its_keys():
    found = scaled(type="yarn", factor=4.0, original_context_length=64, attn_factor=1.25)
    assert found == RopeScaling("yarn", 0.25, 64, 1.0, 1.25)
    assert scaled(type="yarn", factor=3.0).freq_scale == float(np.float32(1) / np.float32(3))
    assert scaled(type="yarn", factor=3.0).n_ctx_orig == 256


def test_keys_that_llama_cpp_does_not_read_for_the_architecture_are_named():
    keys = {"type": "yarn", "factor": 4.0, "yarn_beta_fast": 8.0, "yarn_log_multiplier": 0.5, "yarn_ext_factor": -1.0}
    found = scaled(**keys)
    assert found == RopeScaling("yarn", 0.25, 256, 1.0)
    state, ignored = rope_notes(meta(**keys), found)
    assert state == "RoPE scaling yarn: frequencies times 0.25; YaRN, original context 256, for trunk and head"
    assert "qwen35.rope.scaling.yarn_log_multiplier = 0.5 (0 is used), " in ignored
    assert "yarn_beta_fast = 8.0 (32 is used): not read, as in llama.cpp for qwen35" in ignored
    assert "ext_factor =" not in ignored
    (long,) = rope_notes(meta(alpha="x" * 1000), scaled())
    assert long.startswith("qwen35.rope.scaling.alpha = 'xxxxxxxxxxxxxxxxxxx (0 is used): not read")


def test_an_architecture_that_has_the_yarn_keys_gets_them():
    keys = {"yarn_beta_fast": 8.0, "yarn_beta_slow": 2.0, "yarn_log_multiplier": 0.5, "yarn_ext_factor": 0.5,
            "yarn_attn_factor": 2.0}  # fmt: skip
    found = read_rope_scaling(meta(type="yarn", factor=4.0, **keys), has_yarn_keys=True)
    assert found == RopeScaling("yarn", 0.25, 256, 0.5, 1.0, 2.0, 0.5, 8.0, 2.0)
    unset = read_rope_scaling(meta(type="yarn", factor=4.0, yarn_ext_factor=-1.0), has_yarn_keys=True)
    assert unset.ext_factor == 1.0


NAN, INF = float("nan"), float("inf")
HOSTILE = [
    ({"type": "longrope"}, "is 'longrope', expected one of none, linear, yarn; the factors of longrope"),
    ({"type": "dynamic"}, "rope.scaling.type is 'dynamic', expected one of none, linear, yarn"),
    ({"type": 2}, "rope.scaling.type is 2, expected a string"),
    ({"type": ["yarn"]}, "rope.scaling.type is ['yarn'], expected a string"),
    ({"type": "yarn", "factor": 0.0}, "rope.scaling.factor is 0.0, expected a number from 0.0009"),
    *(({"type": kind, "factor": x}, f"rope.scaling.factor is {x}, expected a number from")
      for kind in ("linear", "yarn", "none") for x in (-4.0, NAN, INF, 1e30, 1e-30, "4", [4.0], True)),
    *(({"type": "yarn", "factor": 4.0, "original_context_length": x}, "original_context_length is")
      for x in (0, -1, 1 << 40, 4096.0, "4096", True)),
    *(({key: x}, f"rope.scaling.{key} is") for key in ("attn_factor", "yarn_attn_factor", "yarn_beta_fast",
      "yarn_beta_slow", "yarn_log_multiplier", "yarn_ext_factor") for x in (NAN, INF, -INF, -2.0, 1e9, "1")),
    *(({key: 0.0}, f"rope.scaling.{key} is") for key in ("attn_factor", "yarn_beta_fast", "yarn_beta_slow")),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "message"), HOSTILE, ids=str)
def test_a_value_that_no_scaling_has_is_one_clear_line(keys, message):
    damaged = meta(**keys)
    for has_yarn_keys in (False, True):
        with pytest.raises(mtpref.MtprefError) as error:
            read_rope_scaling(damaged, has_yarn_keys=has_yarn_keys)
        assert "\n" not in str(error.value)
        if isinstance(keys.get("factor"), str):
            message = "rope.scaling.factor is '4', expected a number from"
        assert message in str(error.value)
    with pytest.raises(mtpref.MtprefError):
        read_attn_config(damaged)


def test_yarn_without_a_base_is_refused():
    flat = meta(RopeOverrides(freq_base=1.0), type="yarn", factor=4.0)
    with pytest.raises(mtpref.MtprefError, match="freq_base is 1, expected more than 1"):
        read_attn_config(flat)


def test_a_file_with_hostile_keys_ends_in_one_line(tmp_path, capfd):
    kv = [*metadata(shape()), ("qwen35.rope.scaling.type", "yarn", "str"), ("qwen35.rope.scaling.factor", NAN, "f32")]
    write_gguf(tmp_path / "m.gguf", kv, [("token_embd.weight", "F32", (2, 1), np.zeros(2, np.float32))])
    assert main(["generate", "-m", str(tmp_path / "m.gguf"), "-p", "x"]) == 2
    out, err = capfd.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert "rope.scaling.factor is nan" in err


def test_a_rope_freqs_tensor_is_named_as_not_read(tmp_path):
    weights = random_weights(1, shape())
    path = write_model(tmp_path / "m.gguf", {**weights, "rope_freqs.weight": np.ones(4)}, shape())
    assert load(path).notes == ("1 tensors of the file are not read: rope_freqs.weight",)


# OVERRIDES


def test_overrides_stand_in_place_of_keys():
    keys = {"type": "yarn", "factor": 4.0, "original_context_length": 64, "attn_factor": 1.25}
    assert scaled(RopeOverrides(), **keys) == scaled(**keys)
    assert scaled(RopeOverrides(scaling_type="none"), **keys) == RopeScaling("none", 1.0, 64, 0.0, 1.25)
    assert scaled(RopeOverrides(scaling_type="linear", attn_factor=1.5), **keys) == RopeScaling(
        "linear", 0.25, 64, 0.0, 1.25, 1.5
    )
    full = RopeOverrides(
        scaling_type="yarn",
        freq_scale=0.5,
        freq_base=5e3,
        n_ctx_orig=32,
        ext_factor=0.75,
        attn_factor=1.5,
        beta_fast=8.0,
        beta_slow=0.5,
    )
    assert scaled(full, **keys) == RopeScaling("yarn", 0.5, 32, 0.75, 1.25, 1.5, 0.0, 8.0, 0.5)
    assert read_attn_config(meta(full, **keys)).freq_base == 5e3
    assert rope_notes(meta(RopeOverrides(beta_fast=8.0), **keys, yarn_beta_fast=8.0),
                      scaled(RopeOverrides(beta_fast=8.0), **keys))[1:] == ()  # fmt: skip


def test_an_override_of_the_type_opens_a_file_whose_type_is_not_implemented():
    assert scaled(RopeOverrides(scaling_type="yarn"), type="longrope", factor=4.0) == scaled(type="yarn", factor=4.0)


def test_yarn_by_extrapolation_alone_needs_no_type():
    assert scaled(RopeOverrides(ext_factor=1.0, freq_scale=0.25)).ext_factor == 1.0
    assert scaled(RopeOverrides(ext_factor=0.0), type="yarn", factor=4.0).ext_factor == 0.0


def test_the_context_grows_with_an_override_and_with_nothing_else():
    def n_ctx(overrides=None, **keys):
        return read_model_config(values(meta(overrides, **keys))).n_ctx_train

    assert n_ctx() == n_ctx(type="yarn", factor=4.0, original_context_length=64) == 256
    assert n_ctx(RopeOverrides(scaling_type="yarn", freq_scale=0.25)) == n_ctx(RopeOverrides(freq_scale=0.25)) == 1024
    assert n_ctx(RopeOverrides(scaling_type="yarn", freq_scale=0.25, n_ctx_orig=64)) == 256
    assert n_ctx(RopeOverrides(scaling_type="none"), type="yarn", factor=4.0, original_context_length=64) == 256
    with pytest.raises(mtpref.MtprefError, match="256000000 positions, expected at most 16777216"):
        n_ctx(RopeOverrides(freq_scale=1e-6))


def test_angles_beyond_the_range_of_the_sine_are_refused():
    far = meta(RopeOverrides(freq_scale=1000.0, n_ctx_orig=1 << 24))
    with pytest.raises(mtpref.MtprefError, match="expected angles below 1048576"):
        read_rope_scaling(far)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--rope-scale", "0"], "--rope-scale: 0 is out of range"),
        (["--rope-scale", "nan"], "--rope-scale: nan is out of range"),
        (["--rope-scale", "4", "--rope-freq-scale", "0.25"], "both are given, expected one of them"),
        (["--rope-freq-scale", "inf"], "--rope-freq-scale: inf is out of range, expected 1e-06 .. 1024"),
        (["--rope-freq-base", "-1"], "--rope-freq-base: -1 is out of range"),
        (["--yarn-orig-ctx", "0"], "--yarn-orig-ctx: 0 is out of range, expected 1 .. "),
        (["--yarn-ext-factor", "-1"], "--yarn-ext-factor: -1 is out of range, expected 0 .. 100"),
        (["--yarn-attn-factor", "nan"], "--yarn-attn-factor: nan is out of range"),
        (["--yarn-beta-fast", "0"], "--yarn-beta-fast: 0 is out of range"),
        (["--yarn-beta-slow", "1e9"], "--yarn-beta-slow: 1e+09 is out of range"),
    ],
)
def test_a_flag_out_of_range_is_one_line(flags, expected, capfd):
    assert main(["generate", "-p", "x", "-n", "1", *flags]) == 2
    out, err = capfd.readouterr()
    assert not out
    assert expected in err
    assert len([line for line in err.splitlines() if "compiling" not in line]) == 1


def test_an_unknown_type_of_override_is_refused():
    with pytest.raises(mtpref.MtprefError, match="'longrope' is unknown, expected one of none, linear, yarn"):
        RopeOverrides(scaling_type="longrope")


def test_flags_change_the_text_run_and_its_context(capfd):
    flags = ["--rope-scaling", "yarn", "--rope-scale", "2"]
    assert main(["generate", "-p", "def f(x):", "-n", "4", "-c", "4096", *flags]) == 0
    assert "note: RoPE scaling yarn: frequencies times 0.5; YaRN, original context 2048" in capfd.readouterr().err
    assert main(["generate", "-p", "def f(x):", "-n", "4", "-c", "4097", *flags]) == 2
    assert "expected 0 .. 4096" in capfd.readouterr().err


def test_the_library_takes_the_same_overrides():
    plain, turned = mtpref.load(), mtpref.load(rope=mtpref.RopeOverrides(scaling_type="linear", freq_scale=0.25))
    ids = turned.encode("The hat flew over the roof of the bakery. Nina ran after it, but the wind was quicker.")

    def logits(model):
        return model.core.trunk(model.core.new_state(256), ids, n_logits=1).logits

    assert naive.nmse(logits(plain), logits(turned)) > 1e-4
    assert turned.core.config.n_ctx_train == 4 * plain.core.config.n_ctx_train
    assert replace(turned.core.heads[0].layer.cfg, rope_scaling=plain.core.heads[0].layer.cfg.rope_scaling) == (
        plain.core.heads[0].layer.cfg
    )
