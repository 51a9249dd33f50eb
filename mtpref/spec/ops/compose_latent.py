"""Coarse operations of attention through a latent row: its inputs, products head by head, and the two forms.

Owns their order, and the cb() names under which a tap sees results; see compose.py.
"""

import numpy as np
from numpy.typing import NDArray

from mtpref.spec import Stack
from mtpref.spec.config import LatentConfig
from mtpref.spec.ops.table import Ops
from mtpref.spec.ops.types import F32, LayerTap, LayerWeights


def latent_input(
    ops: Ops, w: LayerWeights, cfg: LatentConfig, x: F32, rope_cos_sin: tuple[F32, F32], tap: LayerTap
) -> tuple[F32, F32, F32, F32]:
    """S55. Queries, and what a token leaves in the cache: S6, S8, S6, S6, S8, S53, S10.

    Rule     queries come by two products with a norm between them (attn_q_a, attn_q_b), or by one (attn_q); of the
             product with attn_kv_a_mqa the first n_latent values are normed, the last n_rot are turned and not normed.
             Neighbours are paired (S53), and halves (S10) where the model has sections (S132)
    Shapes   x: (T, n_embd), normalised -> q_nope (T, n_head, n_nope), q_pe (T, n_head, n_rot), c (T, n_latent),
             k_pe (T, n_rot)
    """
    # QUERY
    if "attn_q_a.weight" in w:
        low = ops.mul_mat(w["attn_q_a.weight"], x)
        low = ops.rms_norm(low, w["attn_q_a_norm.weight"], cfg.rms_eps)
        q = ops.mul_mat(w["attn_q_b.weight"], low)
    else:
        q = ops.mul_mat(w["attn_q.weight"], x)
    tap("q", q)
    q = q.reshape(len(x), cfg.n_head, cfg.n_key)

    # LATENT
    both = ops.mul_mat(w["attn_kv_a_mqa.weight"], x)
    tap("kv_cmpr_pe", both)
    c = ops.rms_norm(both[:, : cfg.n_latent], w["attn_kv_a_norm.weight"], cfg.rms_eps)
    tap("kv_cmpr", c)
    k_pe, q_pe = both[:, None, cfg.n_latent :], q[:, :, cfg.n_key - cfg.n_rot :]
    if cfg.is_interleaved:
        k_pe, q_pe = ops.rope_interleaved(k_pe, *rope_cos_sin), ops.rope_interleaved(q_pe, *rope_cos_sin)
    else:
        k_pe, q_pe = ops.rope(k_pe, *rope_cos_sin), ops.rope(q_pe, *rope_cos_sin)
    k_pe = k_pe[:, 0]
    tap("k_pe", k_pe)
    tap("q_pe", q_pe)
    return q[:, :, : cfg.n_key - cfg.n_rot], q_pe, c, k_pe


def head_products(ops: Ops, w: Stack, x: F32) -> F32:
    """S56. A matrix for each head, on that head's rows alone. S6.

    Shapes   w: n_head matrices (n_out, n_in), x: (T, n_head, n_in) -> (T, n_head, n_out)
    """
    return np.stack([ops.mul_mat(w[h], np.ascontiguousarray(x[:, h])) for h in range(len(w))], axis=1)


def latent_attn_layer(
    ops: Ops,
    w: LayerWeights,
    cfg: LatentConfig,
    x: F32,
    cells: NDArray,
    kv_type: str,
    first: int,
    rope_cos_sin: tuple[F32, F32],
    tap: LayerTap,
) -> F32:
    """S57. The mixer of a latent attention layer, absorbed: S55, S56, S15, S16, S56, S6, S97, S6.

    Rule     a cell is one row [c | k_pe] for all heads, and a value is its first n_latent values; queries are brought
             to it ([attn_k_b q_nope | q_pe], times S54's scale), and what they gather is brought back (attn_v_b). Each
             head's value has a gate (S97) where its weight is there, which reads the rows that queries are made of
    Shapes   x: (T, n_embd), normalised; cells: (first + T, 1, n_latent + n_rot), rows from `first` on are written here
             -> (T, n_embd)
    """
    q_nope, q_pe, c, k_pe = ops.latent_input(ops, w, cfg, x, rope_cos_sin, tap)
    absorbed = ops.head_products(ops, w["attn_k_b.weight"], q_nope)
    tap("q_nope_absorbed_perm", absorbed)
    q = np.concatenate([absorbed, q_pe], axis=-1)
    k = np.concatenate([c, k_pe], axis=-1)[:, None]
    tap("Qcur", q)
    tap("Kcur", k)

    # ATTEND, OUT
    cells[first:] = ops.store_kv(k, kv_type)
    out = ops.attention(q * np.float32(cfg.scale), cells, cells, kv_type, first)[:, :, : cfg.n_latent]
    values = ops.head_products(ops, w["attn_v_b.weight"], out)
    tap("kqv_out", values)
    if "attn_gate.weight" in w:
        gate = ops.mul_mat(w["attn_gate.weight"], x)
        tap("attn_gate", gate)
        values = ops.head_gate(values, gate)
        tap("attn_gated", values)
    y = ops.mul_mat(w["attn_output.weight"], values.reshape(len(x), -1))
    tap("attn_output", y)
    return y


def expanded_attn_layer(
    ops: Ops,
    w: LayerWeights,
    cfg: LatentConfig,
    x: F32,
    k_cache: NDArray,
    v_cache: NDArray,
    kv_type: str,
    first: int,
    rope_cos_sin: tuple[F32, F32],
    tap: LayerTap,
) -> F32:
    """S58. The mixer of a latent attention layer of an older file, which keeps every head's key and value: S55, S6,
    S15, S15, S16, S6.

    Rule     attn_kv_b c is [k_nope | v] head by head; a key is [k_nope | k_pe], k_pe the same for all heads. Keys (or
             values) of the narrower kind are filled up with zeros, so that both have the same width
    Shapes   x: (T, n_embd), normalised; k_cache, v_cache: (first + T, n_head, D), rows from `first` on are written
             here -> (T, n_embd)
    """
    n_tokens, n_nope, n_row = len(x), cfg.n_key - cfg.n_rot, cfg.n_row
    q_nope, q_pe, c, k_pe = ops.latent_input(ops, w, cfg, x, rope_cos_sin, tap)
    kv = ops.mul_mat(w["attn_kv_b.weight"], c)
    tap("kv", kv)
    kv = kv.reshape(n_tokens, cfg.n_head, n_nope + cfg.n_value)
    shared = np.broadcast_to(k_pe[:, None], (n_tokens, cfg.n_head, cfg.n_rot))
    q = np.concatenate([q_nope, q_pe], axis=-1)
    k, v = np.concatenate([kv[:, :, :n_nope], shared], axis=-1), kv[:, :, n_nope:]
    tap("Qcur", q)
    tap("Kcur", k)
    tap("Vcur", v)

    # ATTEND, OUT
    k_cache[first:] = ops.store_kv(_filled(k, n_row), kv_type)
    v_cache[first:] = ops.store_kv(_filled(v, n_row), kv_type)
    out = ops.attention(_filled(q * np.float32(cfg.scale), n_row), k_cache, v_cache, kv_type, first)
    out = out[:, :, : cfg.n_value]
    tap("kqv_out", out)
    y = ops.mul_mat(w["attn_output.weight"], np.ascontiguousarray(out).reshape(n_tokens, -1))
    tap("attn_output", y)
    return y


def _filled(x: F32, width: int) -> F32:
    """Rows with zeros after them."""
    return np.ascontiguousarray(np.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1]))))
