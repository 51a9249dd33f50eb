"""The registry, proved: a second architecture with mixers of its own, defined in this file and nowhere else."""

from dataclasses import dataclass

import numpy as np
import pytest
from mtpref.model.ffn import SWIGLU_FFN

from mtpref.decode import STRATEGIES, ScriptedDrafter
from mtpref.errors import MtprefError
from mtpref.events import RolledBack
from mtpref.gguf import write_gguf
from mtpref.model import ARCHITECTURES, Architecture, LayerKind, TensorSlot, load
from mtpref.recipe import make_recipe
from mtpref.state import StateSpec
from tests.models import decode_plainly, has_nan, run_decoder

N_VOCAB, N_EMBD, N_FF, N_LAYER = 48, 32, 64, 3
PROMPT = [7, 3, 3, 40, 12]


@dataclass(frozen=True)
class EmaConfig:
    n_embd: int
    decay: float  # toy.ema_decay


def read_ema(meta):
    return EmaConfig(meta.u32("embedding_length"), meta.f32("ema_decay", low=0.0, high=1.0))


def matrices(cfg):
    return tuple(TensorSlot(f"mix_{side}.weight", (cfg.n_embd, cfg.n_embd), True) for side in ("in", "out"))


def ema_state(cfg, kv_type):
    return (StateSpec("cache_ema", (cfg.n_embd,), positional=False),)


def ema_forward(w, cfg, x, state, span, tap):
    """s_t = decay s_{t-1} + (1 - decay) W_in x_t; y_t = W_out s_t. The state after each of the last tokens is kept."""
    inputs = span.ops.mul_mat(w["mix_in.weight"], x)
    decay, s, after = np.float32(cfg.decay), state.arrays["cache_ema"], []
    for row in inputs:
        s = decay * s + (np.float32(1) - decay) * row
        after.append(s)
    state.arrays["cache_ema"] = s
    state.planes = {"cache_ema": np.stack(after[-span.keep :])}
    tap("ema", np.stack(after))
    return span.ops.mul_mat(w["mix_out.weight"], np.stack(after))


def mean_state(cfg, kv_type):
    return (StateSpec("cache_rows", (cfg.n_embd,), positional=True),)


def mean_forward(w, cfg, x, state, span, tap):
    """y_t = W_out (mean of W_in x_i over i <= t, later ones counting more)."""
    cells = state.arrays["cache_rows"]
    cells[span.first : span.first + len(x)] = span.ops.mul_mat(w["mix_in.weight"], x)
    means = []
    for n_cells in range(span.first + 1, span.first + len(x) + 1):
        total = np.zeros(cfg.n_embd, np.float32)
        for i in range(n_cells):
            total += cells[i] * np.float32(i + 1)
        means.append(total / np.float32(n_cells * (n_cells + 1) // 2))
    return span.ops.mul_mat(w["mix_out.weight"], np.stack(means))


EMA = LayerKind("ema", read_ema, matrices, ema_state, ema_forward)
MEAN = LayerKind("mean", read_ema, matrices, mean_state, mean_forward)


def toy_mixers(meta, cfg):
    return tuple(EMA if il % 2 == 0 else MEAN for il in range(cfg.n_layer))


TOY = Architecture("toy", toy_mixers, SWIGLU_FFN, MEAN, mixer_norm="mix_norm.weight")


def toy_tensors():
    rng = np.random.default_rng(3)

    def tensor(name, *shape):
        scale = 1.0 if len(shape) == 1 else 2.0 / np.sqrt(shape[-1])
        values = rng.standard_normal(shape) * scale if len(shape) > 1 else 1 + 0.1 * rng.standard_normal(shape)
        return name, "F32", shape, values.astype(np.float32)

    yield tensor("token_embd.weight", N_VOCAB, N_EMBD)
    yield tensor("output_norm.weight", N_EMBD)
    for il in range(N_LAYER + 1):
        for norm in ("mix_norm", "post_attention_norm"):
            yield tensor(f"blk.{il}.{norm}.weight", N_EMBD)
        for side in ("in", "out"):
            yield tensor(f"blk.{il}.mix_{side}.weight", N_EMBD, N_EMBD)
        for name, shape in (("gate", (N_FF, N_EMBD)), ("up", (N_FF, N_EMBD)), ("down", (N_EMBD, N_FF))):
            yield tensor(f"blk.{il}.ffn_{name}.weight", *shape)
    for norm in ("enorm", "hnorm"):
        yield tensor(f"blk.{N_LAYER}.nextn.{norm}.weight", N_EMBD)
    yield tensor(f"blk.{N_LAYER}.nextn.eh_proj.weight", N_EMBD, 2 * N_EMBD)


@pytest.fixture
def toy_file(tmp_path):
    kv = [
        ("general.architecture", "toy", "str"),
        ("toy.block_count", N_LAYER + 1, "u32"),
        ("toy.nextn_predict_layers", 1, "u32"),
        ("toy.context_length", 256, "u32"),
        ("toy.embedding_length", N_EMBD, "u32"),
        ("toy.feed_forward_length", N_FF, "u32"),
        ("toy.attention.layer_norm_rms_epsilon", 1e-5, "f32"),
        ("toy.ema_decay", 0.75, "f32"),
        ("tokenizer.ggml.model", "test", "str"),
        ("tokenizer.ggml.tokens", [f"{i:x}" for i in range(N_VOCAB)], "arr:str"),
    ]
    path = tmp_path / "toy.gguf"
    write_gguf(path, kv, toy_tensors())
    return path


@pytest.fixture(params=["ggml", "exact"])
def toy(request, toy_file, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "toy", TOY)
    return load(toy_file, make_recipe(request.param))


def test_an_architecture_that_is_not_registered_is_refused_with_those_that_are(toy_file):
    with pytest.raises(MtprefError, match="architecture 'toy' is not supported, expected one of: qwen35"):
        load(toy_file)


def test_a_registered_architecture_loads_with_every_tensor_read(toy):
    assert [layer.kind.name for layer in toy.layers] == ["ema", "mean", "ema"]
    assert toy.has_mtp
    assert toy.notes == ()
    names = {name for name, _ in toy.new_state().live_arrays()}
    assert names == {"cache_ema_l0", "cache_rows_l1", "cache_ema_l2", "cache_rows_l3", "pending_h"}


def test_its_own_layers_can_be_tapped(toy):
    seen = []
    toy.trunk(toy.new_state(), PROMPT, n_logits=1, tap=lambda name, array: seen.append(name))
    assert [name for name in seen if name.startswith("ema")] == ["ema-0", "ema-2"]


@pytest.mark.parametrize("rollback", sorted(STRATEGIES))
def test_all_roll_backs_give_the_tokens_and_the_state_of_plain_decoding(toy, rollback):
    plain = decode_plainly(toy, PROMPT, 21, warm_head=True)
    run = run_decoder(toy, PROMPT, 20, rollback=rollback, n_max=3)
    assert run.ids == plain.ids[len(PROMPT) : len(PROMPT) + 20]
    assert run.decoder.state.digest() == plain.digests[len(PROMPT) + 19]
    assert run.statistics["n_drafted"] > 0
    assert not has_nan(run.decoder.state)


@pytest.mark.parametrize("rollback", sorted(STRATEGIES))
def test_partial_acceptance_is_rolled_back_in_recurrent_and_positional_state(toy, rollback):
    plain = decode_plainly(toy, PROMPT, 21, warm_head=False)
    pattern = [[True, False, True], [False], [True, True, True], [True, True, False]]
    drafter = ScriptedDrafter(plain.ids[len(PROMPT) :], pattern, len(PROMPT), N_VOCAB)
    run = run_decoder(toy, PROMPT, 20, rollback=rollback, n_max=3, drafter=drafter)
    assert run.ids == plain.ids[len(PROMPT) : len(PROMPT) + 20]
    assert run.decoder.state.digest() == plain.digests[len(PROMPT) + 19]
    assert run.statistics["n_accept"] >= 6
    assert bool([e for e in run.events if isinstance(e, RolledBack)]) == (rollback != "two-phase")


def test_a_key_of_its_own_is_checked(toy_file, monkeypatch, tmp_path):
    monkeypatch.setitem(ARCHITECTURES, "toy", TOY)
    data = toy_file.read_bytes()
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(data.replace(np.float32(0.75).tobytes(), np.float32(1.5).tobytes(), 1))
    with pytest.raises(MtprefError, match=r"toy\.ema_decay is 1\.5, expected a number from 0\.0 to 1\.0"):
        load(bad)
