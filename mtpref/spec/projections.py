"""S49 to S51: what some architectures do to the results of their projections.

Owns biases, heads in groups and fused projections that are laid out head by head. Read next: ops/compose.py.
"""

import numpy as np

from mtpref.spec.arith import F32


def add_bias(y: F32, bias: F32) -> F32:
    """S49. A projection's bias, added to its result before anything else happens to it.

    Shapes   y: (T, n), bias: (n,) -> (T, n)
    """
    return y + bias


def repeat_heads(x: F32, n_head: int) -> F32:
    """S50. Key heads in groups: head h of the result is head h // (n_head / H_k) of x (the delta rule, S13, has tiles).

    Rule     after it there is a key head for each value head, so that the delta rule's h % H_k (S13) is h
    Shapes   x: (T, H_k, S) -> (T, n_head, S)
    Source   Qwen3-Next, whose files keep the checkpoint's order of value heads
    """
    return np.repeat(x, n_head // x.shape[1], axis=1)


def split_beta_alpha(ba: F32, n_k_head: int) -> tuple[F32, F32]:
    """S51. beta and alpha out of one projection: for each key head its r betas, then its r alphas, r = H_v / H_k.

    Shapes   ba: (T, 2 * H_v) -> beta, alpha: (T, H_v), value head g * r + t from place t of key head g
    """
    groups = ba.reshape(len(ba), n_k_head, 2, -1)
    return groups[:, :, 0].reshape(len(ba), -1), groups[:, :, 1].reshape(len(ba), -1)


def split_qkvz(qkvz: F32, n_k_head: int, size: int) -> tuple[F32, F32]:
    """S51. q, k, v and z out of one projection: for each key head [q S | k S | v r * S | z r * S].

    Shapes   qkvz: (T, 2 * H_k * S + 2 * H_v * S) -> [all q | all k | all v] (T, (2 * H_k + H_v) * S), z: (T, H_v * S)
    """
    groups = qkvz.reshape(len(qkvz), n_k_head, -1)
    wide = (groups.shape[2] - 2 * size) // 2
    q, k, v, z = np.split(groups, [size, 2 * size, 2 * size + wide], axis=2)
    flat = [part.reshape(len(qkvz), -1) for part in (q, k, v, z)]
    return np.concatenate(flat[:3], axis=1), flat[3]
