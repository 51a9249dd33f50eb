"""Coarse operations of Mamba-2 layers, and the table of a head whose last norm alone is a layer norm.

Owns their order, and the cb() names under which a tap sees results; see compose.py.
"""

import numpy as np

from mtpref.spec.config import SsmConfig
from mtpref.spec.ops.table import Ops
from mtpref.spec.ops.types import F32, LayerTap, LayerWeights


def ssm_layer(
    ops: Ops, w: LayerWeights, cfg: SsmConfig, x: F32, conv: F32, ssm: F32, keep: int, tap: LayerTap
) -> tuple[F32, F32, F32]:
    """S125. The mixer of a Mamba-2 layer: S6, S122, S49, S123, S124, S6.

    Rule     one product gives gate, rows of the convolution (x, b, c) and step, in this order
    Shapes   x: (T, n_embd), normalised; conv: (d_conv - 1, C) raw rows before the batch; ssm: (H, P, N)
             -> y: (T, n_embd), and after each of the last `keep` tokens: conv (keep, d_conv - 1, C), ssm
             (keep, H, P, N)
    """
    n_tokens, n_inner, n_shared = len(x), cfg.d_inner, cfg.n_group * cfg.d_state

    # PROJECT, CONV
    rows = ops.mul_mat(w["ssm_in.weight"], x)
    z, mixed, dt = np.split(rows, [n_inner, n_inner + cfg.conv_dim], axis=1)
    window = np.concatenate([conv, mixed], axis=0)
    mixed = ops.conv_bias_silu(window, w["ssm_conv1d.weight"], w["ssm_conv1d.bias"])
    tap("conv_output_silu", mixed)

    # RECUR
    heads = mixed[:, :n_inner].reshape(n_tokens, cfg.n_head, -1)
    b, c = (
        part.reshape(n_tokens, cfg.n_group, cfg.d_state) for part in np.split(mixed[:, n_inner:], [n_shared], axis=1)
    )
    step = ops.add_bias(dt, w["ssm_dt.bias"])
    tap("state_prescan", ssm)
    y, states = ops.ssm_scan(heads, b, c, step, w["ssm_a"].reshape(-1), ssm, keep)
    tap("scan_output", y)
    tap("new_state", states[-1])

    # GATE, OUT
    normed = ops.gated_group_norm(y, heads, w["ssm_d"].reshape(-1), z, w["ssm_norm.weight"], cfg.rms_eps)
    tap("final_output", normed)
    out = ops.mul_mat(w["ssm_out.weight"], normed)
    tap("mamba_out", out)
    ends = range(len(window) - keep + 1, len(window) + 1)
    return out, np.stack([window[end - len(conv) : end] for end in ends]), states


def head_normed_ops(ops: Ops, eps: float) -> Ops:
    """S127. The table of a head whose last norm alone is a layer norm, with an epsilon of its own: S60.

    Rule     it stands in for the norm after the MTP block (S31); every other norm of the head is S8
    """

    def mtp_norm(own_ops: Ops, x: F32, weight: F32, _: float) -> F32:
        return own_ops.layer_norm(x, weight, None, eps)

    return ops.replaced(mtp_norm=mtp_norm)
