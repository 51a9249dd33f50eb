"""Q4_K and Q6_K blocks by plain rounding, for micro models: the same bytes everywhere, no search for better scales."""

import numpy as np
from micro_gguf import F32, U8

TYPES_K = ("Q4_K", "Q6_K")


def encode_k(values: F32, type_name: str) -> U8:
    """float32 values to bytes, 256 to a block; rows are the last axis. Errors: ValueError for rows of another length"""
    if values.shape[-1] % 256:
        raise ValueError(f"a row of {values.shape[-1]} values, expected a multiple of 256 for {type_name}")
    x = values.reshape(-1, 256)
    return (_q4_k(x) if type_name == "Q4_K" else _q6_k(x)).reshape(-1)


def _steps(sizes: F32, most: int) -> tuple[U8, F32]:
    """Sizes as whole multiples (0 .. most) of a float16 number for each block; -> float16 bytes, multiples."""
    d = (sizes.max(axis=1) / np.float32(most)).astype("<f2")
    unit = np.where(d > 0, d.astype(np.float32), np.float32(1))
    return d.view(np.uint8).reshape(-1, 2), np.clip(np.rint(sizes / unit[:, None]), 0, most).astype(np.float32)


def _number(raw: U8) -> F32:
    return raw.view("<f2").astype(np.float32)


def _q4_k(x: F32) -> U8:
    """x = d * scale * q - dmin * least, eight sub-blocks of 32, q in 0 .. 15."""
    sub = x.reshape(-1, 8, 32)
    least = np.maximum(np.float32(0), -sub.min(axis=2))
    d, scales = _steps((sub.max(axis=2) + least) / np.float32(15), 63)
    dmin, mins = _steps(least, 63)
    step = _number(d) * scales
    shifted = sub + (_number(dmin) * mins)[:, :, None]
    q = np.clip(np.rint(shifted / np.where(step > 0, step, np.float32(1))[:, :, None]), 0, 15).astype(np.uint8)
    s, m = scales.astype(np.uint8), mins.astype(np.uint8)
    low = [s[:, :4] | (s[:, 4:] >> 4) << 6, m[:, :4] | (m[:, 4:] >> 4) << 6, (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4]
    pairs = q.reshape(-1, 4, 2, 32)
    return np.concatenate([d, dmin, *low, (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)], axis=1)


def _q6_k(x: F32) -> U8:
    """x = d * scale * (q - 32), sixteen sub-blocks of 16, q in 0 .. 63."""
    sub = x.reshape(-1, 16, 16)
    d, scales = _steps(np.abs(sub).max(axis=2) / np.float32(31), 127)
    step = _number(d) * scales
    q = np.rint(sub / np.where(step > 0, step, np.float32(1))[:, :, None])
    quarters = (np.clip(q, -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    a, b, c, e = (quarters[:, :, i] for i in range(4))
    low = np.concatenate([(a & 15) | (c & 15) << 4, (b & 15) | (e & 15) << 4], axis=2).reshape(-1, 128)
    high = ((a >> 4) | (b >> 4) << 2 | (c >> 4) << 4 | (e >> 4) << 6).reshape(-1, 64)
    return np.concatenate([low, high, scales.astype(np.int8).view(np.uint8), d], axis=1)
