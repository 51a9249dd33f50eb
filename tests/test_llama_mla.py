"""deepseek2 against stock llama.cpp beyond test_llama_moe.py: files that it runs without drafts alone, and what the
recordings can tell of attention through a latent row."""

import hashlib

import numpy as np
import pytest

from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.files.gguf import open_gguf
from mtpref.spec.ops import spec_ops
from tests.llama_recordings import logits_error
from tests.micro_moe import TRUNKS, standard
from tests.naive import nmse
from tests.test_llama_moe import NMSE_LIMITS, RECORDINGS, compared, mutated

# SHA-256 of the models that the recordings are of (a log has it in its head; these have logits alone).
MODELS = {
    "micro-deepseek2-old-f32": "7a3dd260ace8d12b178e64bd73c989f0590653c133c1c86ce85f77418dd7bf08",
    "micro-deepseek2-old-q8_0": "f8c49660cac8a05a52c9338b051a2c50034bd79a94a6d1ac4060569e47824d70",
    "micro-deepseek2-lite-f32": "c89435ab1537e3a52f3ff3a758ef925e43b582005774a02b2636e5ba92fd517c",
}
PLAIN, YARN, FUSED = (f"micro-deepseek2-{name}" for name in ("f32", "yarn-f32", "fused-f32"))


@pytest.mark.parametrize("numerics", ["ggml", "exact"])
@pytest.mark.parametrize("name", TRUNKS)
def test_logits_of_older_files_and_of_queries_in_one_product_equal_llama_cpp(name, numerics):
    assert hashlib.sha256(standard(name).read_bytes()).hexdigest() == MODELS[name]
    model = load(standard(name), make_recipe(numerics), kv_type="F32", kv_type_draft="F32")
    with open_gguf(RECORDINGS / f"{name}.results.gguf") as file:
        ids = file.data("tokens").view(np.int32).tolist()
        theirs = file.data("logits").view(np.float32).reshape(len(ids), -1)
        ours = model.trunk(model.new_state(), ids, n_logits=len(ids)).logits
        error = nmse(theirs, ours)
    print(f"{name} {numerics}: NMSE {error:.1e}")
    assert error < (NMSE_LIMITS[name.rpartition("-")[2]] if numerics == "ggml" or name.endswith("f32") else 0.03)


_OPS = spec_ops("ggml")


def _halves(x, cos, sin):
    return _OPS.rope(x, cos, sin)


def _with_input(change):
    """latent_input with its four results changed."""
    return lambda ops, w, cfg, x, table, tap: change(w, cfg, x, *_OPS.latent_input(_OPS, w, cfg, x, table, tap))


def _latent_not_normed(w, cfg, x, q_nope, q_pe, c, k_pe):
    return q_nope, q_pe, _OPS.mul_mat(w["attn_kv_a_mqa.weight"], x)[:, : cfg.n_latent], k_pe


def _k_pe_normed(w, cfg, x, q_nope, q_pe, c, k_pe):
    return q_nope, q_pe, c, _OPS.rms_norm(k_pe, np.ones(cfg.n_rot, np.float32), cfg.rms_eps)


def _rope_first(w, cfg, x, q_nope, q_pe, c, k_pe):
    """The turned part taken for the first dimensions of a head."""
    q = np.concatenate([q_nope, q_pe], axis=-1)
    return q[:, :, cfg.n_rot :], q[:, :, : cfg.n_rot], c, k_pe


MUTANTS = {
    "halves paired": (PLAIN, {"rope_interleaved": _halves}),
    "latent not normed": (PLAIN, {"latent_input": _with_input(_latent_not_normed)}),
    "turned part normed": (PLAIN, {"latent_input": _with_input(_k_pe_normed)}),
    "turned part first": (PLAIN, {"latent_input": _with_input(_rope_first)}),
    "heads' matrices in another order": (PLAIN, {"head_products": lambda ops, w, x: _OPS.head_products(
        _OPS, w, x[:, ::-1])}),
    "scaled by the absorbed width": (PLAIN, {"attention": lambda q, *rest: _OPS.attention(
        q * np.float32((72 / 40) ** 0.5), *rest)}),
    "sharpness forgotten": (YARN, {"attention": lambda q, *rest: _OPS.attention(
        q / np.float32((1 + 0.1 * np.log(4)) ** 2), *rest)}),
    "sharpness once": (YARN, {"attention": lambda q, *rest: _OPS.attention(
        q / np.float32(1 + 0.1 * np.log(4)), *rest)}),
    "magnitude forgotten": (FUSED, {"rope_table": lambda pos, f, has, m: _OPS.rope_table(pos, f, has, 1.0)}),
}  # fmt: skip


FAST = ("halves paired", "turned part normed", "sharpness once", "magnitude forgotten")


@pytest.mark.parametrize("mutant", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MUTANTS])
def test_the_recordings_tell_another_rule(mutant):
    name, entries = MUTANTS[mutant]
    changed = mutated(name, **entries)
    assert logits_error(RECORDINGS, changed, name) > 1e-6
    assert compared(changed, name).mismatches
