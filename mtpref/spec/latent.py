"""S53 and S54: attention through a latent row (multi-head latent attention): its RoPE and its scale.

Owns what is arithmetic on arrays; the order is mtpref/spec/ops/compose_latent.py's. Read next: ops/compose_latent.py.
"""

import numpy as np

from mtpref.spec.arith import F32, log64, rsqrt64


def rope_interleaved(x: F32, cos: F32, sin: F32) -> F32:
    """S53. Rotary position embedding of the first n_rot dimensions, neighbours paired; the rest passes.

    Formula  pairs (2 i, 2 i + 1): (a cos - b sin, a sin + b cos), with the table of S10
    Shapes   x: (T, H, D), cos, sin: (T, n_rot/2) -> (T, H, D)
    Dtypes   float32; each product and the sum rounded on its own
    Source   Su et al., arXiv 2104.09864; DeepSeek's checkpoints keep the pairs so, and so do GGUF files
    """
    n_rot = 2 * cos.shape[-1]
    c, s = cos[:, None, :], sin[:, None, :]
    a, b = x[..., 0:n_rot:2], x[..., 1:n_rot:2]
    out = x.copy()
    out[..., 0:n_rot:2], out[..., 1:n_rot:2] = a * c - b * s, a * s + b * c
    return out


def latent_scale(n_key: int, n_row: int, freq_scale: float, magnitude: float, log_multiplier: float) -> float:
    """S54. What queries are multiplied with before attention (S16), which divides scores by the root of a row's width.

    Formula  (magnitude * (1 + 0.1 c log(1 / freq_scale)))^2 * sqrt(n_row / n_key), c = log_multiplier: scores are
             divided by the root of the key's width before absorption, whatever a cached row is wide, and YaRN's
             sharpness counts twice
    Dtypes   float64, rounded once to float32
    Units    n_key = n_nope + n_rot of a head, n_row: values of a cached row; magnitude: the one of S10, where YaRN's
             rule is off times (1 + 0.1 log(1 / freq_scale))
    Source   DeepSeek-V2, arXiv 2405.04434; its code's mscale_all_dim; llama.cpp src/models/deepseek2.cpp
    """
    growth = -0.1 * log64(np.asarray(np.float64(np.float32(freq_scale))))
    sharp = magnitude * (1.0 + log_multiplier * growth)
    root = np.float64(n_row) * rsqrt64(np.asarray(np.float64(n_row) * np.float64(n_key)))
    return float(np.float32(sharp * sharp * root))
