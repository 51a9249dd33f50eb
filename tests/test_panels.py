"""Weights laid out anew: the bits of the raw bytes in place and of the specification, for every type."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtpref import kernels, spec
from mtpref.engine.recipe import make_recipe
from mtpref.front import api
from mtpref.kernels.products.packed import PackedMatrix
from tests.blocks import random_bytes
from tests.test_kernels import SCALES, assert_same, matrix, unit_values, values

pytestmark = pytest.mark.skipif(not kernels.available(), reason="NUMBA_DISABLE_JIT is set: no kernels to compare")

TYPES = ("Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K")
N_IN = {"Q8_0": 96, "Q4_0": 96, "Q4_K": 256, "Q5_K": 512, "Q6_K": 512}
MICRO = Path(__file__).parent / "data" / "micro" / "micro-60-q8_0.gguf"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261128)


def packed(w: spec.Matrix) -> PackedMatrix:
    made = kernels.pack([w])[0]
    assert isinstance(made, PackedMatrix)
    assert made.panels is not None
    return made


def check(w: spec.Matrix, x: np.ndarray) -> None:
    """In panels, in place, and as the specification says: one result."""
    with np.errstate(all="ignore"):
        expected = spec.mul_mat_ggml(w, x)
    assert_same(expected, kernels.mul_mat_ggml(w, x))
    assert_same(expected, kernels.mul_mat_ggml(packed(w), x))


@pytest.mark.parametrize("n_out", [1, 5, 15, 16, 17, 33, 48])
@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.covering
def test_panels_give_the_specifications_product(rng: np.random.Generator, type_name: str, n_out: int) -> None:
    for i, n_tokens in enumerate(range(1, 10)):
        scale = SCALES[i % len(SCALES)]
        n_in = N_IN[type_name] if n_tokens % 2 else 768
        check(matrix(rng, type_name, n_out, n_in, scale), values(rng, (n_tokens, n_in), scale))


@pytest.mark.parametrize("type_name", TYPES)
def test_random_bytes_and_every_scale_of_activation(rng: np.random.Generator, type_name: str) -> None:
    """Weights of any bits: scales that are infinite or NaN, the least and the greatest code everywhere."""
    for scale in SCALES:
        raw = random_bytes(rng, type_name, 20, 768)
        check(spec.Matrix("w", type_name, 20, 768, raw.reshape(-1)), values(rng, (5, 768), scale))


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("byte", [0x7F, 0x80, 0xFF])
def test_the_greatest_integers_do_not_overflow(type_name: str, byte: int) -> None:
    """Codes at both ends against activations at both ends; a subnormal block gives codes of -128 too."""
    block = np.full(random_bytes(np.random.default_rng(0), type_name, 1, 768).shape[-1] // 3, byte, np.uint8)
    raw = np.resize(block, 3 * block.size * 17)
    w = spec.Matrix("w", type_name, 17, 768, raw)
    x = np.ones((4, 768), np.float32)
    x[1], x[2, ::2] = -1, -1
    x[3] = np.resize(np.array([-1.4e-45, 1.2e-43, -1.79e-43], np.float32), 768)
    check(w, x)


@pytest.mark.parametrize("type_name", TYPES)
def test_more_tokens_than_a_thread_takes_at_once(rng: np.random.Generator, type_name: str) -> None:
    w, x = matrix(rng, type_name, 21, 4096), unit_values(rng, 71, 4096)
    assert_same(kernels.mul_mat_ggml(w, x), kernels.mul_mat_ggml(packed(w), x))


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("type_name", TYPES)
def test_threads_change_no_bit_of_panels_or_products(
    rng: np.random.Generator, type_name: str, n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtpref.kernels.compiling import compile
    from mtpref.kernels.products import mul_mats, panels

    if n_threads > compile.settings.NUMBA_NUM_THREADS:
        pytest.skip("Numba has one thread here: nothing to split")
    monkeypatch.setattr(mul_mats, "PARALLEL_FROM", 0)
    monkeypatch.setattr(panels, "PARALLEL_FROM", 0)
    before = kernels.n_threads()
    kernels.set_threads(n_threads)
    try:
        for n_out in (1, 16, 77):
            for n_tokens in (1, 3):
                check(matrix(rng, type_name, n_out, 768), unit_values(rng, n_tokens, 768))
    finally:
        kernels.set_threads(before)


@pytest.mark.parametrize("type_name", TYPES)
def test_views_of_rows_and_strided_activations(rng: np.random.Generator, type_name: str) -> None:
    w, x = matrix(rng, type_name, 50, 768), unit_values(rng, 6, 768)
    made, whole = packed(w), spec.mul_mat_ggml(w, x)
    for first, last in ((0, 50), (0, 20), (16, 50), (32, 33), (3, 40), (48, 50)):
        part = made.rows(first, last)
        assert (getattr(part, "panels", None) is not None) == (first % 16 == 0)
        assert_same(whole[::2, first:last], kernels.mul_mat_ggml(part, x[::2]))
    assert_same(whole[:, 20:30], kernels.mul_mat_ggml(made.rows(16, 50).rows(4, 14), x))
    assert_same(whole[:, 32:34], kernels.mul_mat_ggml(made.rows(16, 50).rows(16, 18), x))


def test_everything_else_reads_the_raw_bytes(rng: np.random.Generator) -> None:
    w = matrix(rng, "Q8_0", 20, 96)
    made, x, ids = packed(w), unit_values(rng, 2, 96), np.array([19, 0, 3], np.int32)
    assert_same(w.dequantize(), made.dequantize())
    assert_same(kernels.get_rows(w, ids), kernels.get_rows(made, ids))
    assert_same(kernels.mul_mat_exact(w, x), kernels.mul_mat_exact(made, x))
    assert made == PackedMatrix(w.name, w.type_name, w.n_out, w.n_in, made.raw)


def test_a_copy_with_other_bytes_has_no_panels(rng: np.random.Generator) -> None:
    w, other, x = (matrix(rng, "Q8_0", 20, 96) for _ in range(2)), None, unit_values(rng, 1, 96)
    first, second = w
    other = replace(packed(first), raw=second.raw)
    assert_same(kernels.mul_mat_ggml(second, x), kernels.mul_mat_ggml(other, x))


def test_types_without_a_layout_stay_as_they_are(rng: np.random.Generator) -> None:
    ws = [matrix(rng, "IQ4_NL", 20, 96), matrix(rng, "Q8_0", 20, 96), matrix(rng, "F32", 20, 77)]
    made = kernels.pack(ws)
    assert [m is w for m, w in zip(made, ws, strict=True)] == [True, False, True]
    assert kernels.pack([]) == []


# -------------------------------------------------------------------------------------------- models


def logits_of(model: api.LanguageModel) -> list[np.ndarray]:
    state = model.core.new_state(64)
    out = [model.core.trunk(state, [5, 9, 3, 7, 1], n_logits=5).logits, model.core.trunk(state, [4], n_logits=1).logits]
    hidden = unit_values(np.random.default_rng(1), 6, model.core.config.n_embd)
    return [*out, model.core.mtp(state, [5, 9, 3, 7, 1, 4], hidden, 0, n_logits=2, n_draft_vocab=20).logits]


def test_a_model_gives_the_same_logits_with_and_without_panels() -> None:
    models = [api.load(MICRO, repack=repack) for repack in (True, False)]
    assert isinstance(models[0].core.weights.output, PackedMatrix)
    assert not isinstance(models[1].core.weights.output, PackedMatrix)
    for a, b in zip(*map(logits_of, models), strict=True):
        assert_same(a, b)


def test_what_serves_twice_is_laid_out_once_and_embeddings_are_not() -> None:
    core = api.load().core  # its output is its embedding
    weights, head = core.weights, core.heads[0].weights
    assert weights.output is head.shared_head_head
    assert isinstance(weights.output, PackedMatrix)
    assert not isinstance(weights.token_embd, PackedMatrix)
    assert not isinstance(head.embed_tokens, PackedMatrix)
    assert np.shares_memory(weights.output.raw, weights.token_embd.raw)


def test_a_trimmed_head_is_laid_out_anew() -> None:
    models = [api.load(MICRO, repack=repack).core for repack in (True, False)]
    heads = [model.with_draft_ids([3, 4, 9, 30, 31]).heads[0].weights.shared_head_head for model in models]
    assert isinstance(heads[0], PackedMatrix)
    x = unit_values(np.random.default_rng(2), 3, heads[0].n_in)
    assert_same(kernels.mul_mat_ggml(heads[1], x), kernels.mul_mat_ggml(heads[0], x))


def test_only_the_kernels_of_ggml_numerics_have_layouts() -> None:
    assert make_recipe().pack is not None
    for recipe in (make_recipe("exact"), make_recipe(use_kernels=False), make_recipe(repack=False)):
        assert recipe.pack is None


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="resident pages are read from /proc")
def test_the_raw_pages_are_given_back() -> None:
    model = api.load()
    path, resident, size = str(api.tiny_path()), 0, 0
    lines = Path("/proc/self/smaps").read_text().splitlines()
    for i, line in enumerate(lines):
        if line.endswith(path):
            numbers = {part.split(":")[0]: int(part.split()[1]) for part in lines[i + 1 : i + 7]}
            resident, size = resident + numbers["Rss"], size + numbers["Size"]
    assert size > 1000
    assert resident < size / 2
    assert model.core.weights.output.raw.any()  # and are there again when they are read


# ------------------------------------------------------------------------------------- sixteen-bit floats


@pytest.mark.parametrize("n_in", [31, 1056, 2100])
@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_float_rows_in_pieces_are_the_specifications(rng: np.random.Generator, type_name: str, n_in: int) -> None:
    """Rows longer than a piece, more rows than wait at once, a tail of columns, every number of tokens."""
    for i, n_tokens in enumerate(range(1, 10)):
        w, x = matrix(rng, type_name, 19, n_in, SCALES[i % len(SCALES)]), values(rng, (n_tokens, n_in), "unit")
        with np.errstate(all="ignore"):
            assert_same(spec.mul_mat_ggml(w, x), kernels.mul_mat_ggml(w, x))


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_threads_share_rows_and_tokens_of_floats(
    rng: np.random.Generator, type_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a thread's tokens begin within a tile, and its rows within those that wait together."""
    from mtpref.kernels.compiling import compile
    from mtpref.kernels.products import mul_mats

    if compile.settings.NUMBA_NUM_THREADS < 2:
        pytest.skip("Numba has one thread here: nothing to split")
    monkeypatch.setattr(mul_mats, "PARALLEL_FROM", 0)
    before = kernels.n_threads()
    kernels.set_threads(2)
    try:
        for n_out, n_tokens in ((1, 8), (40, 11), (77, 21)):
            w, x = matrix(rng, type_name, n_out, 600), unit_values(rng, n_tokens, 600)
            assert_same(spec.mul_mat_ggml(w, x), kernels.mul_mat_ggml(w, x))
    finally:
        kernels.set_threads(before)
