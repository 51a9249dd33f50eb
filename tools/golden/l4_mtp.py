"""L4: the MTP head: its block, the cell of position 0 in each contract, draft chains, the trimmed head."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.l3_trunk import F32_MODEL, Q8_MODEL, ours, tokens_of, weights
from mtpref.golden.build import SuiteBuilder, close, value
from tests import naive_loop, naive_model

# cb() names of the block that the oracle knows under the graph's own (shared) names
ORACLE_NAMES = {"mtp_shared_head_norm": "h_nextn", "mtp_result_output": "result_output"}
BLOCK_FLAGS = (
    "basic", "G1-concat-swapped", "G4-gate-silu", "G5-no-qk-norm", "G5b-no-rope", "G3-no-attention",
    "W1-norm-shift-missing", "W2-norm-shift-doubled", "W3-pre-fc-norms-doubled",
)  # fmt: skip
SAFE_GAP = 0.02  # between the probabilities of the best two candidates
CHAIN_FLAGS = (
    "basic", "G2-pre-norm-hidden", "C1-chain-pre-norm", "C4-same-token-pairing", "K0-prompt-not-primed",
    "K10-position-shifted",
)  # fmt: skip


def trunk_rows(tokens: NDArray) -> NDArray[np.float32]:
    """The oracle's post-norm rows of a prompt, as an input."""
    hparams, w = weights()
    return naive_model.trunk(w, hparams, [int(i) for i in tokens]).h_post.astype(np.float32)


def add_block(
    suite: SuiteBuilder, id: str, comment: str, tokens: NDArray, hidden: NDArray, first_pos: int, contract: str,
    flags: tuple[str, ...],
) -> None:  # fmt: skip
    """F32 weights against the oracle, Q8_0 weights against the specification's `ggml` bits."""
    hparams, w = weights()
    inputs: dict[str, NDArray] = {"tokens": tokens, "hidden": hidden}
    params: dict[str, Any] = {"model": F32_MODEL, "first_pos": first_pos, "contract": contract, "kv_type": "F32"}
    offset = -1 if contract == "training" else 0
    positions = [first_pos + offset + i for i in range(len(tokens))]
    oracle = naive_model.mtp(w, hparams, [int(i) for i in tokens], hidden, positions).tensors
    given = ours("mtp", params, inputs, "exact")
    names = [name for name in given if ORACLE_NAMES.get(name, name) in oracle and name != "mtp_h_nextn"]
    out = {
        name: close("model_f32", oracle[ORACLE_NAMES.get(name, name)].reshape(given[name].shape), given[name])
        for name in names
    }
    suite.case(id, comment, inputs=inputs, out=out, params=params, flags=flags, requires=["mtp"])
    params = params | {"model": Q8_MODEL}
    bits = ours("mtp", params, inputs, "ggml")
    out = {name: close("model_ggml", bits[name]) for name in ("mtp_shared_head_norm", "mtp_result_output")}
    suite.case(f"{id}_q8_0", f"{comment}; Q8_0 weights", inputs=inputs, out=out, params=params, numerics="ggml",
               requires=["ggml", "mtp", "q8_0"], flags=flags)  # fmt: skip


def block() -> SuiteBuilder:
    about = "The MTP block over pairs (x_p, h_{p-1}) on an empty cache, positions from first_pos."
    suite = SuiteBuilder("L4", "mtp_block", "mtp", ("S19", "S20", "S22", "S31"), about)
    tokens = tokens_of("mtp_block", 9)
    rows = trunk_rows(tokens)
    paired = np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])
    add_block(suite, "llama_cpp", "position 0 holds (x_0, zero row)", tokens, paired, 0, "llama.cpp", BLOCK_FLAGS)
    add_block(suite, "training", "no cell for x_0; (x_1, h_0) at RoPE position 0", tokens[1:],
              rows[:-1], 1, "training", BLOCK_FLAGS)  # fmt: skip
    add_block(suite, "one_pair", "a single pair at position 40", tokens[:1], rows[3:4], 40, "llama.cpp", ("basic",))
    return suite


def chain() -> SuiteBuilder:
    about = (
        "A draft of n tokens. The prompt's last token is decided but not yet run by the trunk; the head holds the "
        "prompt; step 0 takes (last token, row of the token before it), step i the head's own token and row."
    )
    suite = SuiteBuilder("L4", "mtp_chain", "mtp_chain", ("S20", "S22", "S24", "S31", "S32", "S33", "S34"), about)
    hparams, w = weights()
    for id, comment, contract, n_draft_vocab, flags in (
        ("llama_cpp", "contract llama.cpp, three tokens", "llama.cpp", None, CHAIN_FLAGS),
        ("training", "contract training, three tokens", "training", None, CHAIN_FLAGS),
        (
            "trimmed",
            "only the first 100 ids can be drafted (FastMTP)",
            "llama.cpp",
            100,
            ("basic", "L10-trimmed-vocabulary"),
        ),
    ):
        tokens = tokens_of(f"mtp_chain/{id}/6", 10)
        inputs: dict[str, NDArray] = {"tokens": tokens}
        params: dict[str, Any] = {"model": F32_MODEL, "contract": contract, "n": 3, "batches": [9], "kv_type": "F32"}
        if n_draft_vocab is not None:
            params["n_draft_vocab"] = n_draft_vocab
        ids, candidates = naive_loop.draft(
            w, hparams, [int(i) for i in tokens], 3, contract=contract, n_vocab=n_draft_vocab
        )
        given = ours("mtp_chain", params, inputs, "exact")
        p = np.array([c.p for c in candidates])
        out = {"ids": value(ids), "p": close("model_f32", p, given["p"])}
        need = ["mtp", "fastmtp"] if n_draft_vocab else ["mtp"]
        suite.case(id, comment, inputs=inputs, out=out, params=params, flags=flags, requires=need)
        params = params | {"model": Q8_MODEL}
        bits = ours("mtp_chain", params, inputs, "ggml")
        if min(np.min(given["p"][:, 0] - given["p"][:, 1]), np.min(bits["p"][:, 0] - bits["p"][:, 1])) < SAFE_GAP:
            raise ValueError(f"chain {id} hangs on a near tie: choose another prompt")
        out = {
            "ids": value(bits["ids"]),
            "p": close("model_ggml", bits["p"]),
            "chain": close("model_ggml", bits["chain"]),
        }
        suite.case(f"{id}_q8_0", f"{comment}; Q8_0 weights", inputs=inputs, out=out, params=params, numerics="ggml",
                   requires=["ggml", "q8_0", *need],
                   flags=[f for f in flags if f != "K10-position-shifted"])  # fmt: skip
    return suite


def suites() -> Iterator[SuiteBuilder]:
    yield block()
    yield chain()
