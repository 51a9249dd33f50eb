"""Attention through a latent row in one call against the composition of the specification's functions, bit by bit."""

from dataclasses import replace

import numpy as np
import pytest

from mtpref import kernels, spec
from mtpref.engine.recipe import make_recipe
from mtpref.spec.config import IndexedConfig, LatentConfig
from mtpref.spec.ops import Ops, discard, spec_ops
from tests.test_fused_moe import Weights, packed, stack, threads
from tests.test_kernels import SCALES, assert_same, values
from tests.test_kernels import matrix as quantised

pytestmark = pytest.mark.skipif(not kernels.available(), reason="NUMBA_DISABLE_JIT is set: no kernels to compare")

__all__ = ["threads"]  # a fixture

N_EMBD, N_Q_LATENT = 256, 256
KV_TYPES = ("F16", "F32", "BF16")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261130)


def config(n_head: int = 5, n_nope: int = 64, n_value: int = 32, n_latent: int = 64, n_rot: int = 8) -> LatentConfig:
    return LatentConfig(N_EMBD, n_head, n_nope + n_rot, n_value, n_latent, n_rot, 1e4, 1e-6, True, scale=1.25)


def layer(
    rng: np.random.Generator, cfg: LatentConfig, type_name: str = "Q8_0", scale: str = "unit", *, has_q_a: bool = True
) -> Weights:
    """Weights of one layer; expansions of this type, as are all others."""
    n_nope = cfg.n_key - cfg.n_rot
    w: Weights = {
        "attn_kv_a_mqa.weight": quantised(rng, type_name, cfg.n_latent + cfg.n_rot, N_EMBD),
        "attn_kv_a_norm.weight": values(rng, (cfg.n_latent,), "unit"),
        "attn_k_b.weight": stack(rng, type_name, cfg.n_head, cfg.n_latent, n_nope, scale),
        "attn_v_b.weight": stack(rng, type_name, cfg.n_head, cfg.n_value, cfg.n_latent, scale),
        "attn_output.weight": quantised(rng, "F32", N_EMBD, cfg.n_head * cfg.n_value),
    }
    if not has_q_a:
        return w | {"attn_q.weight": quantised(rng, type_name, cfg.n_head * cfg.n_key, N_EMBD)}
    return w | {
        "attn_q_a.weight": quantised(rng, "F16", N_Q_LATENT, N_EMBD),
        "attn_q_a_norm.weight": values(rng, (N_Q_LATENT,), "unit"),
        "attn_q_b.weight": quantised(rng, type_name, cfg.n_head * cfg.n_key, N_Q_LATENT),
    }


def fused() -> Ops:
    """The kernels' table, whose composition must not run."""
    ops = make_recipe("ggml").ops

    def refuse(*args: object) -> object:
        raise AssertionError("the composition ran")

    return replace(ops, composed={**ops.composed, "latent_attn_layer": refuse, "indexed_attn_layer": refuse})


def check(
    rng: np.random.Generator,
    w: Weights,
    cfg: LatentConfig,
    n_tokens: int,
    first: int,
    kv_type: str = "F16",
    scale: str = "unit",
) -> None:
    """The twin's output and the rows that it writes are the specification's, in place and in panels."""
    x = values(rng, (n_tokens, N_EMBD), scale)
    positions = np.arange(first, first + n_tokens)[:, None] * 0.37 ** np.arange(cfg.n_rot // 2)
    table = np.cos(positions).astype(np.float32), np.sin(positions).astype(np.float32)
    with np.errstate(all="ignore"):
        before = spec.store_kv(values(rng, (first + n_tokens, 1, cfg.n_row), scale), kv_type)
        cells, ops = before.copy(), spec_ops("ggml")
        y = ops.latent_attn_layer(ops, w, cfg, x, cells, kv_type, first, table, discard)
    ops = fused()
    for weights in (w, packed(w)):
        found = before.copy()
        with np.errstate(all="ignore"):
            again = ops.latent_attn_layer(ops, weights, cfg, x, found, kv_type, first, table, discard)
        assert_same(y, again)
        assert_same(spec.load_kv(cells, kv_type), spec.load_kv(found, kv_type))


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("n_tokens", [1, 3, 8, 11])
@pytest.mark.covering(2)
def test_batches_of_every_width(rng: np.random.Generator, threads: int, n_tokens: int, kv_type: str) -> None:
    """From an empty cache on, and after as many cells as fill no tile."""
    cfg = config()
    w = layer(rng, cfg)
    for first in (0, 37):
        check(rng, w, cfg, n_tokens, first, kv_type)


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q4_0", "Q5_1", "Q8_0"])
def test_every_weight_type(rng: np.random.Generator, type_name: str) -> None:
    """With and without a latent of the queries."""
    cfg = config()
    for has_q_a in (True, False):
        w = layer(rng, cfg, type_name, has_q_a=has_q_a)
        check(rng, w, cfg, 3, 5)


@pytest.mark.parametrize("type_name", ["Q2_K", "Q4_K", "Q6_K"])
def test_k_types(rng: np.random.Generator, type_name: str) -> None:
    """Rows of 256, which these types need."""
    cfg = config(n_head=3, n_nope=256, n_latent=256)
    check(rng, layer(rng, cfg, type_name), cfg, 2, 3)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.covering
def test_values_of_every_scale(rng: np.random.Generator, threads: int, scale: str) -> None:
    """Subnormal, near the limit, signed zeros, infinite and NaN, in weights, activations and cells."""
    cfg = config()
    for type_name in ("Q8_0", "F32"):
        w = layer(rng, cfg, type_name, scale)
        check(rng, w, cfg, 3, 9, "F16", scale)
        check(rng, w, cfg, 9, 2, "F32", scale)


@pytest.mark.parametrize("n_head", [1, 2, 17, 130])
def test_numbers_of_heads(rng: np.random.Generator, threads: int, n_head: int) -> None:
    """One, more than a task takes, and such as leave a task that is not full."""
    cfg = config(n_head, n_nope=32, n_value=32, n_latent=32, n_rot=6)
    w = layer(rng, cfg)
    for n_tokens in (1, 9):
        check(rng, w, cfg, n_tokens, 33)


@pytest.mark.parametrize(("n_latent", "n_pairs"), [(40, 4), (64, 2)])
def test_the_composition_runs_for_other_widths(rng: np.random.Generator, n_latent: int, n_pairs: int) -> None:
    """A latent that fills no vector, and a table that turns a part of n_rot: the same bits by the other way."""
    cfg = config(n_latent=n_latent)
    w = layer(rng, cfg, "F32")
    x = values(rng, (3, N_EMBD), "unit")
    table = np.ones((3, n_pairs), np.float32), np.zeros((3, n_pairs), np.float32)
    results = []
    for ops in (spec_ops("ggml"), make_recipe("ggml").ops):
        cells = np.zeros((3, 1, cfg.n_row), np.uint16)
        results.append((ops.latent_attn_layer(ops, w, cfg, x, cells, "F16", 0, table, discard), cells))
    assert_same(results[0][0], results[1][0])
    assert_same(results[0][1], results[1][1])


# --------------------------------------------------------------------------------- cells that are chosen


def check_chosen(
    rng: np.random.Generator, n_head: int, n_top: int, n_tokens: int, first: int, kv_type: str, scale: str = "unit"
) -> None:
    """A table that turns a part of n_rot serves as well."""
    cfg = IndexedConfig(**{**vars(config(n_head)), "n_index_head": 2, "n_index_key": 64, "n_top": n_top})
    w, x = layer(rng, cfg, "Q8_0", scale), values(rng, (n_tokens, N_EMBD), scale)
    n_cells = first + n_tokens
    chosen = spec.select_cells(values(rng, (n_tokens, n_cells), "unit"), first, n_top)
    before = spec.store_kv(values(rng, (n_cells, 1, cfg.n_row), scale), kv_type)
    table = values(rng, (n_tokens, 3), "unit"), values(rng, (n_tokens, 3), "unit")
    results = []
    for ops, given in ((spec_ops("ggml"), w), (fused(), w), (fused(), packed(w))):
        cells = before.copy()
        with np.errstate(all="ignore"):
            args = given, cfg, x, cells, kv_type, first, table, chosen, discard
            results.append((ops.indexed_attn_layer(ops, *args), spec.load_kv(cells, kv_type)))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_chosen_cells(rng: np.random.Generator, threads: int, kv_type: str) -> None:
    """Where all cells are few, where some tokens of a batch see all and others do not, and where none does."""
    for n_tokens, first in ((1, 0), (9, 20), (11, 60), (1, 60)):
        check_chosen(rng, 5, 26, n_tokens, first, kv_type)


@pytest.mark.parametrize("scale", SCALES)
def test_chosen_cells_of_every_scale(rng: np.random.Generator, scale: str) -> None:
    check_chosen(rng, 3, 10, 3, 8, "F16", scale)


def test_chosen_cells_of_many_heads(rng: np.random.Generator, threads: int) -> None:
    """More heads than a task takes."""
    check_chosen(rng, 130, 7, 2, 9, "F16")


def test_a_tap_sees_the_composition_of_chosen_cells(rng: np.random.Generator) -> None:
    cfg = IndexedConfig(**{**vars(config()), "n_index_head": 2, "n_index_key": 64, "n_top": 3})
    w, x, ops = layer(rng, cfg), values(rng, (2, N_EMBD), "unit"), make_recipe("ggml").ops
    chosen, table = np.array([[0, 2, 3], [1, 2, 4]]), (np.ones((2, 4), np.float32), np.zeros((2, 4), np.float32))
    told: list[str] = []
    found = []
    for tap in (discard, lambda name, array: told.append(name)):
        cells = np.zeros((5, 1, cfg.n_row), np.uint16)
        found.append(ops.indexed_attn_layer(ops, w, cfg, x, cells, "F16", 3, table, chosen, tap))
    assert_same(*found)
    assert told[-1] == "attn_output"
