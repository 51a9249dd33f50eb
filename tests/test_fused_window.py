"""Attention over a window and compressed rows in one call against the composition of the specification's functions, bit
by bit."""

from dataclasses import replace

import numpy as np
import pytest

from mtpref import kernels, spec
from mtpref.engine.recipe import make_recipe
from mtpref.spec.config import CompressedConfig
from mtpref.spec.ops import Ops, discard, spec_ops
from tests.test_fused_moe import Weights, threads
from tests.test_kernels import SCALES, assert_same, matrix, values

pytestmark = pytest.mark.skipif(not kernels.available(), reason="NUMBA_DISABLE_JIT is set: no kernels to compare")

__all__ = ["threads"]  # a fixture

N_EMBD, WIDTH, N_WINDOW = 64, 64, 7
RATIOS = (0, 4, 128)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261201)


def config(ratio: int, n_head: int = 6) -> CompressedConfig:
    return CompressedConfig(N_EMBD, n_head, WIDTH, 8, N_WINDOW, ratio, 2, 1e4, 1e-6, n_index_head=3, n_index=64,
                            n_best=9)  # fmt: skip


def fused() -> Ops:
    """The kernels' table, whose compositions must not run."""
    ops = make_recipe("ggml").ops

    def refuse(*args: object) -> object:
        raise AssertionError("the composition ran")

    return replace(ops, composed={**ops.composed, "window_attention": refuse, "chosen_rows": refuse})


def check_attention(
    rng: np.random.Generator, cfg: CompressedConfig, n_tokens: int, first: int, kv_type: str, scale: str = "unit"
) -> None:
    """Rows of n_window - 1 tokens before the batch, and every row, as a head has them."""
    q = values(rng, (n_tokens, cfg.n_head, WIDTH), scale)
    w: Weights = {"attn_sinks.weight": values(rng, (cfg.n_head,), scale)}
    n_rows = (first + n_tokens) // cfg.ratio if cfg.ratio else 0
    compressed = spec.store_kv(values(rng, (n_rows + 2, WIDTH), scale), kv_type)
    seen = None
    if cfg.has_overlap:
        counts = [(first + t + 1) // cfg.ratio for t in range(n_tokens)]
        seen = [np.sort(rng.permutation(n)[: cfg.n_best]) for n in counts]
    for n_before in (N_WINDOW - 1, first):
        raw = spec.store_kv(values(rng, (n_before + n_tokens, WIDTH), scale), kv_type)
        args = w, cfg, q, raw, compressed, seen, kv_type, first
        with np.errstate(all="ignore"):
            expected = spec_ops("ggml").window_attention(spec_ops("ggml"), *args)
        assert_same(expected, fused().window_attention(fused(), *args))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("kv_type", ["F16", "F32", "BF16"])
def test_attention(rng: np.random.Generator, threads: int, ratio: int, kv_type: str) -> None:
    """From an empty cache on, and after windows and blocks."""
    for n_tokens, first in ((1, 0), (3, 2), (2, 61), (9, 254)):
        check_attention(rng, config(ratio), n_tokens, first, kv_type)


@pytest.mark.parametrize("scale", SCALES)
def test_attention_of_every_scale(rng: np.random.Generator, scale: str) -> None:
    for ratio in RATIOS:
        check_attention(rng, config(ratio), 3, 126, "F16", scale)
        check_attention(rng, config(ratio), 2, 5, "F32", scale)


def test_the_composition_runs_for_other_widths_and_numerics(rng: np.random.Generator) -> None:
    """Rows that fill no vector, and `exact` numerics: the same bits by the other way."""
    for numerics, width in (("ggml", 40), ("exact", 64)):
        q, raw = values(rng, (2, 6, width), "unit"), values(rng, (5, width), "unit")
        w: Weights = {"attn_sinks.weight": values(rng, (6,), "unit")}
        tables = spec_ops(numerics), make_recipe(numerics).ops
        found = [ops.window_attention(ops, w, config(0), q, raw, raw[:0], None, "F32", 3) for ops in tables]
        assert_same(*found)


@pytest.mark.parametrize("kv_type", ["F16", "F32"])
@pytest.mark.parametrize("scale", ["unit", "nan"])
def test_chosen_rows(rng: np.random.Generator, threads: int, kv_type: str, scale: str) -> None:
    """Where all rows are few, where some are left out; a tap is told what the composition tells it."""
    cfg, latent_width = config(4), 96
    w: Weights = {
        "indexer.attn_q_b.weight": matrix(rng, "Q8_0", cfg.n_index_head * cfg.n_index, latent_width),
        "indexer.proj.weight": matrix(rng, "F32", cfg.n_index_head, N_EMBD),
    }
    for n_tokens, first in ((1, 0), (1, 80), (7, 35)):
        x, latent = values(rng, (n_tokens, N_EMBD), scale), values(rng, (n_tokens, latent_width), "unit")
        cells = spec.store_kv(values(rng, ((first + n_tokens) // 4, cfg.n_index), scale), kv_type)
        table = values(rng, (n_tokens, 4), "unit"), values(rng, (n_tokens, 4), "unit")
        taps: list[dict[str, np.ndarray]] = [{}, {}]
        found = []
        for ops, told in zip((spec_ops("ggml"), fused()), taps, strict=True):
            with np.errstate(all="ignore"):
                args = w, cfg, x, latent, cells, kv_type, first, table
                found.append(ops.chosen_rows(ops, *args, lambda name, a, to=told: to.update({name: a.copy()})))
                assert len(found[0]) == len(ops.chosen_rows(ops, *args, discard))
        for one, other in zip(*found, strict=True):
            assert_same(one, other)
        assert list(taps[0]) == list(taps[1])
        for name, array in taps[0].items():
            assert_same(array, taps[1][name])
