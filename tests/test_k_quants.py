"""Whole models of every quantised type: random blocks in the shapes of a K-quant micro model.

No encoder is needed: what a real file holds is just other codes.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref import PolicyConfig, kernels, spec
from mtpref.engine.decode import Options
from mtpref.files.gguf import open_gguf, write_gguf
from mtpref.heads.inspect import inspect_file, render
from mtpref.spec import quants
from tests.blocks import BLOCK, HALVES, sane_blocks

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "a prompt of several chunks of five bytes each, and some more"
MIXES = {"k": quants.K_TYPES, "legacy": quants.LEGACY_TYPES, "tiles": spec.TILE_TYPES}


@pytest.fixture(scope="module")
def f32_model(tmp_path_factory):
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import make_micro
        import micro_plant
    finally:
        sys.path.pop(0)
    path = tmp_path_factory.mktemp("k") / "f32.gguf"
    make_micro.make_micro(path, 1, 60, "F32", shape=micro_plant.K_QUANT_SHAPE)
    return path


@pytest.fixture(scope="module", params=MIXES)
def k_model(f32_model, request):
    """A micro model of rows of 256 whose matrices, the embedding among them, take the types of a mix in turn."""
    return write_mix(f32_model, f32_model.with_name(f"{request.param}.gguf"), MIXES[request.param])


def write_mix(f32_model, path, types):
    rng, n = np.random.default_rng(5), 0
    with open_gguf(f32_model) as file:
        kv = [(key, file.kv[key], file.kv.kind(key)) for key in file.kv]
        tensors = []
        for info in file.tensors.values():
            type_name, data = info.type_name, file.data(info)
            if len(info.shape) == 2 and info.shape[1] % 256 == 0:
                type_name, n = types[n % len(types)], n + 1
                raw = sane_blocks(rng, type_name, *info.shape)
                data = toned_down(type_name, raw, 0.05).reshape(-1)
            tensors.append((info.name, type_name, info.shape, data))
        write_gguf(path, kv, tensors)
    return path


def toned_down(type_name, raw, size):
    """Random blocks with their scales changed so that weights have about the root mean square `size`."""
    blocks = raw.reshape(-1, quants.TYPES[quants.TYPE_IDS[type_name]].block_bytes)
    sample = blocks[:64]
    rms = np.sqrt(np.mean(np.square(quants.dequantize(type_name, sample, (len(sample), BLOCK[type_name])))))
    for at in HALVES[type_name]:
        scale = np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16) * np.float16(size / rms)
        blocks[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
    if type_name == "MXFP4":
        blocks[:, 0] -= np.uint8(max(0, round(np.log2(rms / size))))
    return raw


def test_all_types_of_the_mix_are_in_the_model_and_inspect_names_them(k_model):
    types = MIXES[k_model.stem]
    with open_gguf(k_model) as file:
        assert {*types, "F32"} <= {info.type_name for info in file.tensors.values()}
    report = render(inspect_file(k_model))
    assert all(name in report for name in types)


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


def test_each_type_alone_loads_and_runs(f32_model, tmp_path):
    """Every matrix of one type, so that the embedding, the head and every layer meet it."""
    for type_name in spec.GGML_PRODUCTS:
        if type_name in HALVES:
            path = write_mix(f32_model, tmp_path / "one.gguf", (type_name,))
            model = mtpref.load(path)
            assert len(model.generate("text", Options(n_predict=2)).finish().ids) == 2, type_name


@pytest.mark.parametrize("rollback", ["snapshot", "replay", "two-phase"])
def test_drafting_changes_no_token(k_model, rollback):
    model, n = mtpref.load(k_model), 8 if k_model.stem == "tiles" else 20
    plain = model.generate(PROMPT, Options(n_predict=n, spec_type="none")).finish()
    options = Options(n_predict=n, rollback=rollback, policy=PolicyConfig(n_max=4))
    drafted = model.generate(PROMPT, options).finish()
    assert drafted.ids == plain.ids
    assert drafted.statistics.n_drafted > 0


def logits_of(model, chunks):
    state = model.core.new_state(poison=True)
    rows = [model.core.trunk(state, chunk, n_logits=len(chunk)).logits for chunk in chunks]
    logits = np.concatenate(rows)
    assert np.isfinite(logits).all()
    return logits, state
