"""The same bits on every instruction set: all kernels and whole micro models, for a plain x86-64, for AVX2 with FMA
and for this host. By default the products are those of some types.

Each target runs in its own process, which runs this file as a script and prints one line of JSON. Its kernels stay in
the cache folder (named after the target), so only the first run compiles.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtpref import kernels, spec
from tests.blocks import sane_matrix

ROOT = Path(__file__).resolve().parent.parent

TARGETS = {
    "baseline": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
    "avx2": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma"},
    "host": {},
}


def digest(*arrays: np.ndarray) -> str:
    """A hash of the bits; every NaN counts as the same NaN."""
    total = hashlib.sha256()
    for array in arrays:
        array = np.where(np.isnan(array), np.nan, array) if array.dtype.kind == "f" else array
        total.update(np.ascontiguousarray(array).astype(array.dtype).tobytes())
    return total.hexdigest()[:16]


# Every kernel of rows and the products of what is vector code of its own, at minutes less for the compiler: floats,
# blocks, super-blocks, a grid with signs; and of models the two dense ones. The slow tests take all types and models.
SOME_TYPES = ("F32", "Q8_0", "Q4_K", "IQ3_S")
N_SOME_MODELS = 2


def hash_kernels(types: Iterable[str]) -> dict[str, str]:
    """The digest of every kernel's output for fixed inputs of many magnitudes, in both numerics."""
    rng = np.random.default_rng(7)

    def some(*shape: int) -> np.ndarray:
        with np.errstate(all="ignore"):
            return (rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 3, shape)).astype(np.float32)

    x, weight = some(3, 256), some(256)
    hashes = {}
    for type_name in types:
        w = sane_matrix(rng, type_name, 9, 256)
        hashes[f"mul_mat_ggml {type_name}"] = digest(kernels.mul_mat_ggml(w, x))
        hashes[f"panels {type_name}"] = digest(kernels.mul_mat_ggml(kernels.pack([w])[0], x))
        hashes[f"mul_mat_exact {type_name}"] = digest(kernels.mul_mat_exact(w, x))
    for name in ("quantize_q8_0", "quantize_q8_1", "quantize_q8_k"):
        hashes[name] = digest(*getattr(kernels, name)(x))
    hashes["rms_norm"], hashes["l2_norm"] = digest(kernels.rms_norm(x, weight, 1e-6)), digest(kernels.l2_norm(x, 1e-6))
    hashes["gated_norm"] = digest(kernels.gated_norm(x, -x, weight, 1e-6))
    hashes["swiglu"], hashes["attn_gate"] = digest(kernels.swiglu(x, -x)), digest(kernels.attn_gate(-x, x))
    hashes["delta_gates"] = digest(*kernels.delta_gates(x, -x, weight, weight))
    frequencies, positions = spec.rope_frequencies(32, 1e7), np.array([0, 7, 100003], np.int32)
    table = kernels.rope_table(positions, frequencies, np.ones(16, np.bool_), 1.1386294361119891)
    hashes["rope_table scaled"] = digest(*table)
    table = kernels.rope_table(positions, frequencies, np.ones(16, np.bool_))
    hashes["rope_table"], hashes["rope"] = digest(*table), digest(kernels.rope(some(3, 2, 40), *table))
    q, k, v, g = some(3, 2, 40), some(3, 2, 40), some(3, 4, 40), some(3, 4)
    window, taps, state, cells = some(6, 50), some(50, 4), some(4, 40, 40), some(70, 2, 40)
    for name, wide in (("ggml", False), ("exact", True)):
        hashes[f"conv_silu {name}"] = digest(kernels.conv_silu(window, taps, wide))
        hashes[f"delta_rule {name}"] = digest(*kernels.delta_rule(q, k, v, -np.abs(g), g, state, 2, wide))
        for kv_type in ("F32", "F16", "BF16"):
            cache = spec.store_kv(cells, kv_type)
            hashes[f"attention {name} {kv_type}"] = digest(kernels.attention(v, cache, cache, kv_type, 67, wide))
    hashes |= hash_delta_rows(some) | hash_sparse(some)
    hashes["argmax"], hashes["top_candidates"] = digest(kernels.argmax(x)), digest(*kernels.top_candidates(x[0]))
    return hashes


def hash_delta_rows(some: Callable[..., np.ndarray]) -> dict[str, str]:
    """Heads of a multiple of 32, and the kernel of a whole DeltaNet layer, whose states are made late."""
    from mtpref.engine.recipe import make_recipe
    from mtpref.spec.config import DeltaConfig
    from mtpref.spec.ops import discard

    q, v, g, state = some(3, 2, 32), some(3, 4, 32), some(3, 4), some(4, 32, 32)
    cfg = DeltaConfig(n_embd=64, d_conv=4, d_state=32, n_k_head=2, n_v_head=4, rms_eps=1e-6)
    rows = {"attn_qkv": 256, "attn_gate": 128, "ssm_beta": 4, "ssm_alpha": 4}
    w: dict[str, Any] = {f"{name}.weight": matrix(some(n, 64)) for name, n in rows.items()}
    w |= {"ssm_out.weight": matrix(some(64, 128)), "ssm_conv1d.weight": some(256, 4), "ssm_dt.bias": some(4)}
    w |= {"ssm_a": -np.abs(some(4)), "ssm_norm.weight": some(32)}
    x, conv, hashes = some(5, 64), some(3, 256), {}
    for name, wide in (("ggml", False), ("exact", True)):
        hashes[f"delta_rule 32 {name}"] = digest(*kernels.delta_rule(q, q, v, -np.abs(g), g, state, 2, wide))
        ops = make_recipe(name).ops
        y, windows, states = ops.delta_layer(ops, w, cfg, x, conv, state, 5, discard)
        hashes[f"delta_layer {name}"] = digest(y, *windows, *states)
    return hashes


def hash_sparse(some: Callable[..., np.ndarray]) -> dict[str, str]:
    """Streams, compressed rows, what indexers score and choose, and cells beside each other with sinks."""
    from mtpref.kernels.layers import attend_cells, choose

    hashes = {"stream_weights": digest(*kernels.stream_weights(some(3, 24), some(3), some(24), 4, 1e-6, 20))}
    hashes["read_streams"] = digest(kernels.read_streams(some(3, 4, 40), some(3, 4)))
    hashes["write_streams"] = digest(kernels.write_streams(some(3, 4, 40), some(3, 40), some(3, 4), some(3, 4, 4)))
    hashes["rope_last"] = digest(kernels.rope_last(some(3, 2, 40), some(3, 4), some(3, 4), True))
    hashes["clamped_swiglu"] = digest(kernels.clamped_swiglu(some(3, 40), some(3, 40), 1.5))
    hashes["compress_rows"] = digest(kernels.compress_rows(some(3, 8, 40), some(3, 8, 40)))
    scores = kernels.index_scores(some(3, 5, 90), some(3, 5), 87)
    cells = kernels.select_cells(scores, 87, 20)
    hashes["index_scores"], hashes["select_cells"] = digest(scores), digest(cells)
    hashes["selection_gap"] = digest(kernels.selection_gap(scores, cells, 87))
    chosen, n_chosen, out = np.zeros((2, 9), np.int64), np.array([7, 30]), np.empty((1, 3, 64), np.float32)
    choose.choose_rows(some(2, 3, 40), some(30, 40), some(2, 3), chosen, n_chosen, 0, 1)
    hashes["choose_rows"] = digest(chosen, n_chosen)
    raw = spec.store_kv(some(50, 64), "F16").reshape(-1).view(np.uint8)
    attend_cells.attend_cells(attend_cells.reading("F16", 64), raw, some(1, 3, 64), some(3), 49, out)
    hashes["attend_cells with sinks"] = digest(out)
    return hashes


def matrix(weights: np.ndarray) -> spec.Matrix:
    return spec.Matrix("w", "F32", *weights.shape, weights.view(np.uint8).reshape(-1))


def hash_models(n_models: int | None) -> dict[str, str]:
    """The digest of whole micro models: a drafting run's tokens, its last logits and every bit of its final state.

    Three of them have experts: chosen by a softmax with a gated shared expert, and in groups by sigmoids with a bias;
    the last one has attention through a latent row.
    """
    from mtpref import Options, PolicyConfig, load

    micro, golden = ROOT / "tests" / "data" / "micro", ROOT / "golden" / "models"
    paths = [micro / "micro-30-q8_0.gguf", micro / "micro-90-q8_0.gguf"]
    paths += [golden / "nano-qwen35moe-q8_0.gguf", golden / "nano-glm4moe-q8_0.gguf"]
    paths += [golden / "nano-deepseek2-q8_0.gguf"]
    hashes = {}
    for numerics in ("ggml", "exact"):
        for path in paths[:n_models]:
            model = load(path, numerics=numerics)
            state = model.core.new_state()
            options = Options(n_predict=24, n_batch=5, policy=PolicyConfig(n_max=4))
            run = model.generate("a prompt of a few chunks of bytes", options, state=state).finish()
            logits = model.core.trunk(state, run.ids[-3:], n_logits=3).logits
            hashes[f"{path.stem} {numerics}"] = digest(np.array(run.ids), logits) + state.digest()
    return hashes


def assembly_of_a_dot_product() -> str:
    """The code of dot32, compiled here and now: a kernel from the cache no longer knows its assembly."""
    import numba

    from mtpref.kernels.arithmetic import lanes

    @numba.njit
    def product(a, b):
        return lanes.dot32(a, 0, b, 0, len(a))

    product(np.ones(64, np.float32), np.ones(64, np.float32))
    return "\n".join(product.inspect_asm().values())


def fma_at_ties() -> dict[str, str]:
    """Products half-way between two float32, moved off the tie by an addend that float64 cannot hold beside them, by
    the compiled fma32 and by the rule: where there is no instruction, the direction of a lost rest decides."""
    import numba

    from mtpref.kernels.arithmetic import scalars

    @numba.njit
    def apply(a, b, c, out):
        for i in range(len(a)):
            out[i] = scalars.fma32(a[i], b[i], c[i])

    rests = np.array([0, 2.0**-60, 2.0**-100, 1e-30, 1e-45], np.float32)
    rests = np.concatenate([rests, -rests])
    a = np.full(2 * len(rests), 1 + 2.0**-12, np.float32)
    b, c = np.concatenate([a[: len(rests)], -a[: len(rests)]]), np.concatenate([rests, rests])
    found = np.empty_like(a)
    apply(a, b, c, found)
    return {"compiled": digest(found), "the rule": digest(spec.fma32(a, b, c))}


def report(types: Sequence[str]) -> dict[str, object]:
    n_models = N_SOME_MODELS if tuple(types) == SOME_TYPES else None
    text = assembly_of_a_dot_product()
    return {
        "target": list(kernels.effective_target()),
        "has_fma": "vfmadd" in text,
        "has_ymm": "%ymm" in text or "%zmm" in text,
        "calls_fmaf": "fmaf" in text,
        "fma": fma_at_ties(),
        "hashes": hash_kernels(types) | hash_models(n_models),
    }


def require_x86() -> None:
    if not kernels.available():
        pytest.skip("NUMBA_DISABLE_JIT is set: no kernels to compile")
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip(f"instruction sets are varied on x86-64 only, this is {platform.machine()}")


def printed_for(name: str, types: Iterable[str] = SOME_TYPES) -> dict[str, Any]:
    unset = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")}
    env = {**unset, "PYTHONPATH": str(ROOT), **TARGETS[name]}
    done = subprocess.run([sys.executable, __file__, *types], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{name}: {done.stderr}"
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


@pytest.fixture(scope="module")
def reports() -> dict[str, dict]:
    """What the two targets furthest apart printed: the least that x86-64 has, and all that this host has."""
    require_x86()
    return {name: printed_for(name) for name in ("baseline", "host")}


def test_the_baseline_has_neither_wide_registers_nor_fma(reports: dict[str, dict]) -> None:
    baseline = reports["baseline"]
    assert baseline["target"][1:] == ["generic", ""]
    assert not baseline["has_fma"]
    assert not baseline["has_ymm"]


@pytest.mark.slow
def test_every_type_has_the_same_bits_on_every_target() -> None:
    """Slow: compiles the products of the types that the others are a sample of."""
    require_x86()
    baseline, host = (printed_for(name, spec.GGML_PRODUCTS)["hashes"] for name in ("baseline", "host"))
    assert len(baseline) > 3 * len(spec.GGML_PRODUCTS)
    assert baseline == host


@pytest.mark.slow
def test_the_avx2_target_has_both_and_gives_the_same_bits() -> None:
    """Slow: compiles the kernels once more. Where the host has no more than AVX2 and FMA, its own target is this one;
    test_panel_instructions.py reads this target's code."""
    from llvmlite.binding import get_host_cpu_features

    require_x86()
    features = get_host_cpu_features()
    if not features.get("avx2") or not features.get("fma"):
        pytest.skip("this processor has no AVX2 with FMA")
    found = printed_for("avx2", spec.GGML_PRODUCTS)
    assert found["has_fma"]
    assert found["has_ymm"]
    assert not found["calls_fmaf"]
    assert found["hashes"] == printed_for("baseline", spec.GGML_PRODUCTS)["hashes"]


def test_no_target_calls_a_library_for_fma(reports: dict[str, dict]) -> None:
    assert not any(found["calls_fmaf"] for found in reports.values())


def test_a_fused_product_is_rounded_once_on_every_target(reports: dict[str, dict]) -> None:
    for name, found in reports.items():
        assert found["fma"]["compiled"] == found["fma"]["the rule"], name


def test_every_kernel_and_model_gives_the_same_bits_on_every_target(reports: dict[str, dict]) -> None:
    for name, found in reports.items():
        assert found["hashes"] == reports["baseline"]["hashes"], name


if __name__ == "__main__":
    print(json.dumps(report(sys.argv[1:])))
