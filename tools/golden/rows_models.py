"""L3 and L4 of what the families' cases leave open: rows handed on along a chain of three heads and of raw streams, the
choice of a later indexer, a head in a file of its own."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden import families
from golden.families import Family, Member
from golden.indexer_models import FAMILY as INDEXER
from golden.moe_models import path_of
from golden.moe_models import prompt as tokens_of
from golden.streams_models import FAMILY as STREAMS
from mtpref.golden.build import SuiteBuilder, close, value
from tests import naive, naive_chain, naive_dsa, naive_dsv4
from tests.naive_model import HParams, MtpResult, Weights

LATER = Family(
    name="later_choice",
    members={"glm-dsa-later-choice": Member(naive_dsa, of_trunk=("A8b-first-choice-shared",))},
    features=INDEXER.features,
    kept=INDEXER.kept,
    batches=INDEXER.batches,
)
Step = Callable[[Weights, HParams, list[int], NDArray, list[int], int], MtpResult]


def trunk() -> Iterator[SuiteBuilder]:
    about = "A prompt through a trunk with two indexers: a layer without one sees what the last of them chose."
    yield families.trunk(LATER, about, ("S6", "S63", "S64", "S65", "S66"))


def _of_streams(w: Weights, hparams: HParams, tokens: list[int], rows: NDArray, at: list[int], _: int) -> MtpResult:
    return naive_dsv4.mtp(w, hparams, tokens, rows, at)


def chain_rows() -> SuiteBuilder:
    about = "What each step of a draft hands on: the row of the newest token, raw where heads take raw rows."
    suite = SuiteBuilder("L4", "mtp_chain_rows", "mtp_chain", ("S20", "S32", "S93", "S99"), about)
    needs = STREAMS.needs("deepseek4", "mtp")
    several = ("moe", "windows", "chained_heads", "attention_sinks", "q8_0", "mtp")
    cases: tuple[tuple[str, Any, Step, tuple[str, ...], tuple[str, ...]], ...] = (
        ("mimo2-three-heads", naive_chain, naive_chain.mtp, several,
         ("C9-first-head-alone", "C10-first-row-handed-on", "C12-newest-token-alone")),
        ("deepseek4", naive_dsv4, _of_streams, needs, ("H3b-chain-after-head", "C2-hidden-overwritten")),
    )  # fmt: skip
    for name, oracle, step, need, flags in cases:
        tokens, (hparams, w) = tokens_of(f"mtp_chain_rows/{name}", 8), families.oracle(name, oracle)
        rows, p, handed = list(oracle.trunk(w, hparams, tokens[:-1]).h_pre), [], []
        rows, ids = [np.zeros_like(rows[0]), *rows], list[int]()
        for i in range(3):
            text = tokens + ids
            found = step(w, hparams, text, np.stack(rows), list(range(len(text))), i)
            best, share = naive.top10(found.logits[-1])
            rows.append(found.h_pre[-1])
            ids.append(best[0])
            p.append(share)
            handed.append(found.h_pre[-1])
        if min(x[0] - x[1] for x in p) < families.SAFE_GAP:
            raise ValueError(f"chain {name} hangs on a near tie: choose another prompt")
        params = {"model": path_of(name), "contract": "llama.cpp", "n": 3, "batches": [4, 3], "kv_type": "F32"}
        inputs = {"tokens": np.array(tokens, np.int32)}
        given = families.ours("mtp_chain", params, inputs, "exact")
        out = {"ids": value(ids), "p": close("model_f32", np.array(p), given["p"]),
               "chain": close("model_f32", np.stack(handed), given["chain"])}  # fmt: skip
        suite.case(families.slug(name), "three tokens and the rows between them", inputs=inputs, params=params, out=out,
                   requires=need, flags=("basic", *flags))  # fmt: skip
    return suite


def own_streams() -> SuiteBuilder:
    about = "An MTP block in a file of its own beside the trunk's: it puts its streams together with its own weights."
    suite = SuiteBuilder("L4", "mtp_block_own_file", "mtp", ("S31", "S83", "S84", "S93"), about)
    tokens, (hparams, w) = tokens_of("mtp_block_own_file", 5), families.oracle("deepseek4", naive_dsv4)
    rows = naive_dsv4.trunk(w, hparams, tokens).h_pre.astype(np.float32)
    paired = np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])
    own, w_own = families.oracle("deepseek4-head", naive_dsv4)
    found = naive_dsv4.mtp(w_own, own, tokens, paired, list(range(len(tokens))))
    params = {"first_pos": 0, "contract": "llama.cpp", "model_draft": path_of("deepseek4-head")}
    family = replace(STREAMS, faint=(*STREAMS.faint, "H4-hc-head-of-trunk"))
    families.add(suite, family, "deepseek4", "five pairs", {"tokens": np.array(tokens, np.int32), "hidden": paired},
                 params, found.tensors | {"mtp_result_output": found.logits}, ("mtp_result_output",),
                 ("basic", "H4-hc-head-of-trunk"), ("mtp", "own_file"))  # fmt: skip
    return suite


def heads() -> Iterator[SuiteBuilder]:
    yield chain_rows()
    yield own_streams()
