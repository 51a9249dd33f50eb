"""L3: the trunk of a whole model, in one pass, token by token and in chunks."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.streams import stream
from mtpref.golden.build import SuiteBuilder, close
from mtpref.golden.format import Case, Suite, Tensor
from mtpref.golden.models import Port
from tests import naive_model

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
F32_MODEL, Q8_MODEL = "models/micro-60-f32.gguf", "models/micro-60-q8_0.gguf"
N_TOKENS = 12
DELTA_LAYER, ATTN_LAYER = 0, 3  # the first of each kind
IN_ALL_LAYERS = ("l_out",)
SKIPPED = ("conv_states", "state_predelta", "new_state", "h_nextn")  # per pass, not per token; or another's double


def tokens_of(name: str, n: int = N_TOKENS) -> NDArray[np.int32]:
    """Token ids of the micro models' planted vocabulary."""
    return (stream(name, n) % np.uint64(256)).astype(np.int32)


@lru_cache(maxsize=1)
def weights() -> tuple[dict[str, Any], dict[str, NDArray]]:
    return naive_model.load_gguf(str(GOLDEN / F32_MODEL))


def ours(op: str, params: dict[str, Any], inputs: dict[str, NDArray], numerics: str) -> dict[str, Any]:
    """What the specification gives for a case of a whole model."""
    case = Case("", "", numerics, params, {}, ())
    given = Port(GOLDEN, use_kernels=False)(
        Suite("", "", op, (), "", ()), case, {name: Tensor.of(x) for name, x in inputs.items()}
    )
    if given is None:
        raise ValueError(f"no operation {op}")
    return given


def wanted_names(given: dict[str, Any], oracle: dict[str, NDArray]) -> list[str]:
    """All tensors of one layer of each kind, the output of every layer, and what stands outside the layers."""
    names = []
    for name in given:
        kind, _, layer = name.rpartition("-")
        is_kept = not layer.isdigit() or kind in IN_ALL_LAYERS or int(layer) in (DELTA_LAYER, ATTN_LAYER)
        if is_kept and (kind if layer.isdigit() else name) not in SKIPPED and name in oracle:
            names.append(name)
    return names


def add_trunk(
    suite: SuiteBuilder, id: str, comment: str, tokens: NDArray, batches: Sequence[int], flags: tuple[str, ...]
) -> None:
    """F32 weights against the oracle, and Q8_0 weights against the specification's `ggml` bits."""
    inputs = {"tokens": tokens}
    params: dict[str, Any] = {"model": F32_MODEL, "batches": list(batches), "kv_type": "F32"}
    given = ours("trunk", params, inputs, "exact")
    hparams, w = weights()
    oracle = naive_model.trunk(w, hparams, [int(i) for i in tokens]).tensors
    names = wanted_names(given, oracle)
    out = {name: close("model_f32", oracle[name].reshape(given[name].shape), given[name]) for name in names}
    suite.case(id, comment, inputs=inputs, out=out, params=params, flags=flags)
    params = params | {"model": Q8_MODEL}
    bits = ours("trunk", params, inputs, "ggml")
    out = {name: close("model_ggml", bits[name]) for name in ("result_norm", "result_output")}
    suite.case(f"{id}_q8_0", f"{comment}; Q8_0 weights", inputs=inputs, out=out, params=params, numerics="ggml",
               requires=["ggml", "q8_0"], flags=flags)  # fmt: skip


def suites() -> Iterator[SuiteBuilder]:
    about = "A prompt through the whole trunk, positions from 0; logits of every token."
    suite = SuiteBuilder("L3", "trunk", "trunk", ("S6", "S8", "S13", "S16", "S30"), about)
    tokens = tokens_of("trunk")
    add_trunk(suite, "prefill", "one pass", tokens, [N_TOKENS], ("basic",))
    add_trunk(suite, "decode", "token by token: states and windows are carried", tokens, [1] * N_TOKENS, ("carry",))
    add_trunk(suite, "chunked_prefill", "three chunks", tokens, [5, 4, 3], ("carry",))
    add_trunk(suite, "verify_widths", "a prompt, then batches of 2, 4 and 1", tokens, [5, 2, 4, 1], ("carry", "basic"))
    yield suite
