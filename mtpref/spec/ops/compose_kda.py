"""The coarse operation of a Kimi delta attention layer.

Owns its order, and the cb() names under which a tap sees results; see compose.py.
"""

import numpy as np

from mtpref.spec.config import KdaConfig
from mtpref.spec.ops.table import Ops
from mtpref.spec.ops.types import F32, LayerTap, LayerWeights


def kda_layer(
    ops: Ops, w: LayerWeights, cfg: KdaConfig, x: F32, conv: F32, ssm: F32, keep: int, tap: LayerTap
) -> tuple[F32, F32, F32]:
    """S131. The mixer of a Kimi delta attention layer: S6, S11, S6, S128, S9, S129, S6, S130, S6.

    Rule     q, k and v have a convolution each, over rows of their own; conv holds their rows side by side, q's first
    Shapes   x: (T, n_embd), normalised; conv: (d_conv - 1, 3 * H * S) raw rows before the batch; ssm: (H, S, S)
             -> y: (T, n_embd), and after each of the last `keep` tokens: conv (keep, d_conv - 1, 3 * H * S), ssm
             (keep, H, S, S)
    """
    n_tokens, shape = len(x), (len(x), cfg.n_head, cfg.size)

    # PROJECT, CONV
    tap("conv_states", conv)
    raw = [ops.mul_mat(w[f"attn_{part}.weight"], x) for part in "qkv"]
    window = np.concatenate([conv, np.concatenate(raw, axis=1)], axis=0)
    q, k, v = (
        ops.conv_silu(np.ascontiguousarray(rows), w[f"ssm_conv1d_{part}.weight"].reshape(rows.shape[1], -1)).reshape(
            shape
        )
        for part, rows in zip("qkv", np.split(window, 3, axis=1), strict=True)
    )

    # GATES, NORM
    f, beta = ops.mul_mat(w["ssm_f_a.weight"], x), ops.mul_mat(w["ssm_beta.weight"], x)
    g, beta = ops.channel_gates(f, beta, w["ssm_dt.bias"], w["ssm_a"].reshape(-1), cfg.lower_bound)
    tap("kda_gate", g)
    tap("beta_sigmoid", beta)
    q, k = ops.l2_norm(q, cfg.rms_eps), ops.l2_norm(k, cfg.rms_eps)
    tap("q_conv_predelta", q)
    tap("k_conv_predelta", k)
    tap("v_conv_predelta", v)

    # RECUR
    tap("state_predelta", ssm)
    out, states = ops.channel_delta_rule(q, k, v, g, beta, ssm, keep)
    tap("kda_scan_out", out)
    tap("new_state", states[-1])

    # GATE, OUT
    z = ops.mul_mat(w["ssm_g_a.weight"], x)
    tap("kda_g2", z)
    normed = ops.sigmoid_gated_norm(out, z.reshape(shape), w["ssm_norm.weight"], cfg.rms_eps)
    tap("kda_normed", normed)
    y = ops.mul_mat(w["attn_output.weight"], normed.reshape(n_tokens, -1))
    tap("kda_out", y)
    ends = range(len(window) - keep + 1, len(window) + 1)
    return y, np.stack([window[end - len(conv) : end] for end in ends]), states
