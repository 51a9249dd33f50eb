"""Coarse operations of several residual streams: what stands around a sub-layer, before the head, and an MTP block's
input.

Owns their order, and the cb() names under which a tap sees results; see compose.py. A row of the residual is the
streams one after the other.
"""

import numpy as np

from mtpref.spec.config import StreamsConfig
from mtpref.spec.ops.table import Ops
from mtpref.spec.ops.types import F32, InputWeights, LayerTap, LayerWeights


def enter_streams(embd: F32, cfg: StreamsConfig) -> F32:
    """S81. The streams before the first layer: the embedding in each of them.

    Shapes   embd: (T, n_embd) -> (T, n * n_embd)
    """
    return np.tile(embd, (1, cfg.n_streams))


def connect(ops: Ops, w: LayerWeights, name: str, cfg: StreamsConfig, x: F32) -> tuple[F32, F32, F32]:
    """S82. What a sub-layer reads of the streams, and how it writes to them: S8, S6, S70, S72.

    Rule     the norm is over all streams at once, and has no weight
    Shapes   x: (T, n * n_embd); name: "hc_attn" or "hc_ffn" -> rows (T, n_embd), post (T, n), comb (T, n, n)
    """
    flat = ops.rms_norm(x, np.ones(x.shape[1], np.float32), cfg.rms_eps)
    mixes = ops.mul_mat(w[f"{name}_fn.weight"], flat)
    scale, base = w[f"{name}_scale.weight"], w[f"{name}_base.weight"]
    pre, post, comb = ops.stream_weights(mixes, scale, base, cfg.n_streams, cfg.eps, cfg.n_iterations)
    return ops.read_streams(x.reshape(len(x), cfg.n_streams, -1), pre), post, comb


def leave_streams(ops: Ops, w: LayerWeights, x: F32, cfg: StreamsConfig, tap: LayerTap) -> F32:
    """S83. The streams as the final norm is given them: S8, S6, S70, S72.

    Formula  read by sigmoid(m s + base) + eps, m the product of output_hc_fn and the normed streams
    Shapes   x: (T, n * n_embd); w: output_hc_fn, output_hc_scale (1,), output_hc_base (n,) -> (T, n_embd)
    """
    flat = ops.rms_norm(x, np.ones(x.shape[1], np.float32), cfg.rms_eps)
    mixes = ops.mul_mat(w["output_hc_fn.weight"], flat)
    pre = ops.head_weights(mixes, w["output_hc_scale.weight"], w["output_hc_base.weight"], cfg.eps)
    rows = ops.read_streams(x.reshape(len(x), cfg.n_streams, -1), pre)
    tap("hc_head", rows)
    return rows


def streams_input(ops: Ops, w: InputWeights, embd: F32, hidden: F32, eps: float, order: str, tap: LayerTap) -> F32:
    """S84. The input of an MTP block of several streams, stream by stream, each with the same embedding: S8, S19, S6.

    Shapes   embd: (T, n_embd), hidden: (T, n * n_embd) -> (T, n * n_embd)
    """
    n_tokens, n_embd = embd.shape
    hnorm = ops.rms_norm(hidden.reshape(n_tokens, -1, n_embd), w.hnorm, eps)
    enorm = np.repeat(ops.rms_norm(embd, w.enorm, eps)[:, None], hnorm.shape[1], axis=1)
    tap("hnorm", hnorm)
    tap("enorm", enorm)
    joined = ops.mtp_concat(*((enorm, hnorm) if order == "eh" else (hnorm, enorm)))
    tap("concat", joined)
    x = ops.mul_mat(w.eh_proj, joined.reshape(-1, 2 * n_embd)).reshape(n_tokens, -1)
    tap("eh_proj", x)
    return x
