"""Whole models of Q4_K and Q6_K weights: random blocks in the shapes of a K-quant micro model.

No encoder of K-quants is needed: what a real file holds is just other codes.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref import PolicyConfig, kernels, quants
from mtpref.decode import Options
from mtpref.gguf import open_gguf, write_gguf

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "a prompt of several chunks of five bytes each, and some more"
SCALE_BITS = {"Q4_K": ((0, 2), np.float16(2e-4)), "Q6_K": ((208,), np.float16(1e-4))}


@pytest.fixture(scope="module")
def k_model(tmp_path_factory):
    """A micro model of rows of 256 whose matrices are random Q4_K blocks, every third one Q6_K."""
    folder = tmp_path_factory.mktemp("k")
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import make_micro
        import micro_plant
    finally:
        sys.path.pop(0)
    make_micro.make_micro(folder / "f32.gguf", 1, 60, "F32", shape=micro_plant.K_QUANT_SHAPE)
    rng = np.random.default_rng(5)
    with open_gguf(folder / "f32.gguf") as file:
        kv = [(key, file.kv[key], file.kv.kind(key)) for key in file.kv]
        tensors = []
        for i, info in enumerate(file.tensors.values()):
            type_name, data = info.type_name, file.data(info)
            if len(info.shape) == 2 and info.shape[1] % 256 == 0:
                type_name = "Q6_K" if i % 3 == 0 else "Q4_K"
                data = random_blocks(rng, type_name, info.shape)
            tensors.append((info.name, type_name, info.shape, data))
        write_gguf(folder / "k.gguf", kv, tensors)
    return folder / "k.gguf"


def random_blocks(rng, type_name, shape):
    raw = rng.integers(0, 256, (shape[0], quants.row_bytes(type_name, shape[1])), dtype=np.uint8)
    blocks = raw.reshape(-1, quants.TYPES[quants.TYPE_IDS[type_name]].block_bytes)
    offsets, scale = SCALE_BITS[type_name]
    for offset in offsets:
        blocks[:, offset : offset + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    return raw.reshape(-1)


def test_both_types_are_in_the_model(k_model):
    with open_gguf(k_model) as file:
        assert {"Q4_K", "Q6_K", "F32"} <= {info.type_name for info in file.tensors.values()}


@pytest.mark.parametrize("numerics", ["ggml", "exact"])
def test_bits_do_not_depend_on_chunking_threads_drafts_or_kernels(k_model, numerics):
    model = mtpref.load(k_model, numerics=numerics)
    ids = model.encode(PROMPT)
    whole, state = logits_of(model, [ids])
    for n in (1, 2, 3, 7):
        chunks = [ids[i : i + n] for i in range(0, len(ids), n)]
        again, other = logits_of(model, chunks)
        assert np.array_equal(whole.view(np.uint32), again.view(np.uint32)), n
        assert other.digest() == state.digest()
    slow, other = logits_of(mtpref.load(k_model, numerics=numerics, use_kernels=False), [ids])
    assert np.array_equal(whole.view(np.uint32), slow.view(np.uint32))
    assert other.digest() == state.digest()
    if kernels.available():
        n_threads = kernels.n_threads()
        kernels.set_threads(1)
        again, _ = logits_of(model, [ids])
        kernels.set_threads(n_threads)
        assert np.array_equal(whole.view(np.uint32), again.view(np.uint32))


@pytest.mark.parametrize("rollback", ["snapshot", "replay", "two-phase"])
def test_drafting_changes_no_token(k_model, rollback):
    model = mtpref.load(k_model)
    plain = model.generate(PROMPT, Options(n_predict=20, spec_type="none")).finish()
    options = Options(n_predict=20, rollback=rollback, policy=PolicyConfig(n_max=4))
    drafted = model.generate(PROMPT, options).finish()
    assert drafted.ids == plain.ids
    assert drafted.statistics.n_drafted > 0


def logits_of(model, chunks):
    state = model.core.new_state(poison=True)
    rows = [model.core.trunk(state, chunk, n_logits=len(chunk)).logits for chunk in chunks]
    logits = np.concatenate(rows)
    assert np.isfinite(logits).all()
    return logits, state
