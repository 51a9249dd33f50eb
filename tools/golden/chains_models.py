"""L3 to L5 of step35 and mimo2: windows in a whole model, several heads, a draft by their chain."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from golden import families
from golden.families import Family, Member
from golden.moe_models import prompt as tokens_of
from mtpref.golden.build import SuiteBuilder
from tests import naive_chain

N_HEADS = 2
WINDOWS, SINKS = ("A10-window-narrow", "A10b-window-wide"), ("A9-sink-forgotten", "A13-sink-with-a-value")
ROUNDS = ("basic", "G2c-post-norm-hidden", "C3b-row-before-last", "K8-accepted-row-missing", "V7-bonus-dropped")
FAMILY = Family(
    name="chains",
    members={
        arch: Member(naive_chain, features, of_trunk, of_head, ROUNDS, "h_pre", naive_chain.draft_candidates)
        for arch, features, of_trunk, of_head in (
            (
                "step35",
                ("head_gates", "limits", "rope_factors"),
                (*WINDOWS, "A14-gate-of-raw-rows", "A14b-head-gate-skipped", "A15-full-layers-turn-all"),
                ("A14b-head-gate-skipped",),
            ),
            ("mimo2", ("attention_sinks",), (*WINDOWS, *SINKS, "A16-values-unscaled"), ()),
        )
    },
    features=("moe", "windows", "chained_heads"),
    kept=("l_out", "attn_scaled", "ffn_moe_topk", "ffn_out"),
    batches=(5, 2, 1, 2),
)


def trunk() -> Iterator[SuiteBuilder]:
    about = "A prompt through a trunk with windows, in batches of 5, 2, 1, 2: windows cross them."
    rules = ("S6", "S10", "S16", "S30", "S76", "S94", "S95", "S96", "S97", "S98")
    yield families.trunk(FAMILY, about, rules)


def block() -> SuiteBuilder:
    about = "Each MTP block of a chain, over pairs (x_p, raw row of x_{p-1}) on an empty cache."
    suite = SuiteBuilder("L4", "mtp_block_chains", "mtp", ("S19", "S20", "S31", "S98", "S99"), about)
    for arch, member in FAMILY.members.items():
        for head in range(N_HEADS):
            tokens = tokens_of(f"mtp_chains/{arch}", 7)
            hparams, w = families.oracle(arch, naive_chain)
            rows = naive_chain.trunk(w, hparams, tokens).h_pre.astype(np.float32)
            paired = np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])
            found = naive_chain.mtp(w, hparams, tokens, paired, list(range(7)), head)
            inputs = {"tokens": np.array(tokens, np.int32), "hidden": paired}
            params = {"first_pos": 0, "contract": "llama.cpp", "head": head}
            families.add(suite, FAMILY, arch, f"seven pairs through head {head}", inputs, params,
                         found.tensors | {"mtp_result_output": found.logits}, ("mtp_result_output",),
                         ("basic", "G1-concat-swapped", *member.of_head), ("mtp",), f"{arch}_head_{head}")  # fmt: skip
    return suite


def heads() -> Iterator[SuiteBuilder]:
    yield block()
    about = "A draft by a chain of two heads: a token each, then it ends; every head runs over the draft so far."
    flags = ("C1b-chain-post-norm", "C2-hidden-overwritten", "C4-same-token-pairing", "C9-first-head-alone",
             "C11-caught-up-with-heads-rows", "C12-newest-token-alone", "C13-beyond-the-last-head", "G1-concat-swapped",
             "W14-heads-loaded-from-one")  # fmt: skip
    yield families.chain(FAMILY, about, ("S20", "S22", "S31", "S32", "S98", "S99"), flags)


def head_cells() -> SuiteBuilder:
    about = "The cells that a run leaves in the first head of a chain: of the text alone, none is dropped by a window."
    suite = SuiteBuilder("L5", "head_cells_chains", "head_cells", ("S15", "S20", "S24", "S33", "S98", "S99"), about)

    def cells(taps: Mapping[str, NDArray]) -> dict[str, NDArray]:
        return {part.lower(): next(x for name, x in taps.items() if name.startswith(f"mtp_{part}cur-"))
                for part in "KV"}  # fmt: skip

    families.head_cells(suite, FAMILY, "mimo2", cells, ("K7-not-trimmed", "W14-heads-loaded-from-one", *SINKS))
    return suite


def loops() -> Iterator[SuiteBuilder]:
    about = "Rounds with given drafts, some rejected, in models with windows: a window loses no cell to them."
    yield families.rollback(FAMILY, about, ("S23", "S24", "S33", "S38", "S40", "S76", "S98", "S99"))
    about = "Whole runs of models that draft with a chain of heads."
    yield families.runs(FAMILY, about, ("S20", "S22", "S23", "S24", "S30", "S31", "S35", "S38", "S40", "S98", "S99"))
    yield head_cells()
