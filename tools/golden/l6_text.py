"""L6: end to end: text in ids and acceptance, on micro models and on the tiny model that ships with the package."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from golden.l3_trunk import F32_MODEL, GOLDEN, Q8_MODEL, ours, tokens_of
from mtpref.engine.model import load
from mtpref.front.api import tiny_path
from mtpref.golden import loops
from mtpref.golden.build import SuiteBuilder, value
from mtpref.golden.derive import NAMES
from mtpref.golden.format import Case, Tensor, hex_float
from mtpref.golden.gen import n_sure
from mtpref.golden.models import Port

N_TINY = 24  # tokens of a run of the packaged model


def suites() -> Iterator[SuiteBuilder]:
    about = "Greedy runs: ids, drafts and acceptances by round. The ids are those of plain decoding."
    suite = SuiteBuilder(
        "L6",
        "text",
        "generate",
        ("S20", "S22", "S23", "S24", "S30", "S31", "S32", "S33", "S34", "S35", "S38", "S40"),
        about,
    )
    for model, need in ((F32_MODEL, []), (Q8_MODEL, ["ggml", "q8_0"])):
        numerics = "ggml" if need else "exact"
        name = model.split("/")[1].removesuffix(".gguf").replace("-", "_")
        for n_max in (0, 1, 2, 3, 4):
            params: dict[str, Any] = {"model": model, "kv_type": "F32", "n_max": n_max, "n_predict": 40}
            inputs = {"tokens": tokens_of("text", 10)}
            given = ours("generate", params, inputs, numerics)
            out = {key: value(given[key]) for key in ("ids", "drafts", "n_accepted", "reason", "text")}
            comment = f"{name}, " + (f"drafts of up to {n_max}" if n_max else "no drafts")
            suite.case(f"{name}_n{n_max}", comment, inputs=inputs, params=params, out=out, numerics=numerics,
                       flags=["basic"], requires=[*need, *(["mtp"] if n_max else [])])  # fmt: skip
    add_sampled(suite)
    ids = {tuple(case["out"]["ids"]["value"]) for case in suite.cases if case["id"].startswith("text/micro_60_f32")}
    if len(ids) != 1 or not np.unique(list(ids)).size > 4:
        raise ValueError("speculative text differs from plain text, or is a loop of few ids")
    yield suite
    yield tiny()


def tiny() -> SuiteBuilder:
    """The packaged model and quantisations of it; runs end in front of the first near tie."""
    about = (
        "Greedy runs of the tiny model that ships with mtpref, and of quantisations that `mtpref golden derive` makes "
        "of it. Each ends in front of its first near tie. text is the bytes of the pieces, in hex."
    )
    suite = SuiteBuilder(
        "L6",
        "tiny",
        "generate",
        ("S20", "S22", "S23", "S24", "S30", "S31", "S32", "S33", "S34", "S35", "S38", "S40"),
        about,
    )
    tokens = np.array(load_tiny_ids(), np.int32)
    inputs = {"tokens": Tensor.of(tokens)}
    port = Port(GOLDEN)  # kernels where there are any: the same bits
    for model in NAMES:
        for n_max in (0, 1, 3):
            params: dict[str, Any] = {"model": model, "kv_type": "F16", "n_max": n_max, "n_predict": N_TINY}
            case = Case("", "", "ggml", params, {}, ())
            params["n_predict"] = n_sure(port.model(case), params, inputs, N_TINY)
            if params["n_predict"] < N_TINY // 2:
                raise ValueError(f"{model}: a near tie after {params['n_predict']} tokens; choose another prompt")
            given = loops.generate(port.model(case), params, inputs)
            out = {key: value(given[key]) for key in ("ids", "drafts", "n_accepted", "reason", "text")}
            comment = f"{model}, " + (f"drafts of up to {n_max}" if n_max else "no drafts")
            suite.case(f"{model.replace('-', '_')}_n{n_max}", comment, inputs=inputs, params=params, out=out,
                       numerics="ggml", flags=["basic"],
                       requires=["ggml", model, *(["mtp"] if n_max else [])])  # fmt: skip
    return suite


def load_tiny_ids() -> list[int]:
    return load(tiny_path()).vocab.encode("Once upon a time there was")


def add_sampled(suite: SuiteBuilder) -> None:
    """Runs at a temperature, by both rules; `match` gives the ids of plain sampling."""
    settings = {"temp": hex_float(0.9), "top_k": 20, "top_p": hex_float(0.95), "min_p": hex_float(0.0), "seed": 7}
    for id, accept, n_max in (("plain", "match", 0), ("match", "match", 3), ("residual", "residual", 3)):
        params: dict[str, Any] = {"model": F32_MODEL, "kv_type": "F32", "n_max": n_max, "n_predict": 24, **settings}
        inputs = {"tokens": tokens_of("text", 10)}
        given = ours("generate", params | {"accept": accept}, inputs, "exact")
        out = {key: value(given[key]) for key in ("ids", "drafts", "n_accepted", "reason", "text")}
        need = ["sampling", *(["mtp"] if n_max else []), *(["residual"] if accept == "residual" else [])]
        suite.case(f"sampled_{id}", f"temperature 0.9, {id}", inputs=inputs, params=params | {"accept": accept},
                   out=out, flags=["basic"], requires=need)  # fmt: skip
    plain, match = (case["out"]["ids"]["value"] for case in suite.cases[-3:-1])
    if plain != match:
        raise ValueError("match differs from plain sampling")
