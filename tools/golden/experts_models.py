"""L3 to L5 of experts: trunk, MTP block, chain, rounds and runs of one small model of each architecture."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from golden import families
from golden.families import Family, Member
from mtpref.golden.build import SuiteBuilder
from tests import naive_mla, naive_moe

FEATURES = {"qwen35moe": (), "qwen3next": ("ssm_ba",), "glm4moe": ("plain_attention",), "hy_v3": ("plain_attention",),
            "deepseek2": ("latent_attention",)}  # fmt: skip
OF_TRUNK = {
    "qwen35moe": ("E3-weights-unnormed", "E7-sigmoid-router", "E9b-shared-ungated", "G13-v-heads-grouped"),
    "qwen3next": ("E3-weights-unnormed", "E9c-shared-gated-twice", "G13b-v-heads-tiled", "G16-beta-alpha-swapped",
                  "G16b-beta-alpha-halves"),
    "glm4moe": ("E1-bias-in-weights", "E1b-norm-with-bias", "E2-selection-unbiased", "E5-scale-forgotten",
                "E7b-softmax-router", "E12-dense-as-moe", "G17-qk-biases-forgotten", "G18-qk-norm-after-rope"),
    "hy_v3": ("E1-bias-in-weights", "E4b-renormed-unasked", "E7b-softmax-router", "E12-dense-as-moe",
              "G17-qk-biases-forgotten", "G19-rope-half-width"),
    "deepseek2": ("A1-kv-b-halves", "A1b-k-b-not-transposed", "A2-rope-wrong-end", "A2b-rope-halves",
                  "A2c-rope-inflated", "A3-sharpness-forgotten", "A3b-sharpness-once", "A3c-scale-of-row",
                  "A4-k-pe-normed", "A4b-latent-unnormed", "E1-bias-in-weights", "E2-selection-unbiased",
                  "E5-scale-forgotten", "E8-groups-by-best", "E12-dense-as-moe"),
}  # fmt: skip
IN_ALL = ("E6-weights-by-id", "E9-shared-forgotten", "E10-gate-up-swapped")
OF_HEAD = {
    "qwen35moe": ("E11-experts-of-last-layer",),
    "qwen3next": ("E11-experts-of-last-layer",),
    "glm4moe": ("E11-experts-of-last-layer", "E13-head-as-dense"),
    "hy_v3": ("E11-experts-of-last-layer", "E13-head-as-dense"),
    "deepseek2": ("A1-kv-b-halves", "A2b-rope-halves", "A4b-latent-unnormed", "E11-experts-of-last-layer",
                  "E13-head-as-dense"),
}  # fmt: skip
# What quantised activations hide in so small a trunk: the class of `ggml` cases is wider than these faults' effect.
FAINT = ("A3b-sharpness-once", "E1-bias-in-weights", "E1b-norm-with-bias", "G13-v-heads-grouped", "G13b-v-heads-tiled",
         "G18-qk-norm-after-rope")  # fmt: skip
RECURRENT = ("qwen35moe", "qwen3next")
FAMILY = Family(
    name="experts",
    members={
        arch: Member(
            naive_mla if arch == "deepseek2" else naive_moe, features, OF_TRUNK[arch], OF_HEAD[arch],
            ("S2-no-rollback", "S3-conv-window-kept") if arch in RECURRENT else ("basic",),
        )
        for arch, features in FEATURES.items()
    },
    features=("moe",),
    kept=("l_out", "ffn_moe_logits", "ffn_moe_probs", "ffn_moe_weights", "ffn_out"),
    in_all=IN_ALL,
    faint=FAINT,
)  # fmt: skip


def trunk() -> Iterator[SuiteBuilder]:
    about = "A prompt through the trunk of a model with experts, in batches of 5, 2, 1: a token's row is its own."
    yield families.trunk(FAMILY, about, ("S6", "S30", "S41", "S44", "S45", "S46", "S48", "S57"))


def heads() -> Iterator[SuiteBuilder]:
    about = "The MTP block of a model with experts over pairs (x_p, h_{p-1}) on an empty cache."
    yield families.block(FAMILY, about, ("S19", "S20", "S31", "S41", "S44", "S45", "S48", "S57"))
    about = "A draft of three tokens after a prompt whose last token is decided but not yet run by the trunk."
    flags = "G2-pre-norm-hidden", "C1-chain-pre-norm"
    yield families.chain(FAMILY, about, ("S20", "S22", "S31", "S32", "S48"), flags)


def latent_cells(taps: Mapping[str, NDArray]) -> NDArray:
    """The head's rows [latent | turned part], of its oracle's activations."""
    c, k_pe = (next(x for name, x in taps.items() if name.startswith(f"mtp_{part}-")) for part in ("kv_cmpr", "k_pe"))
    return np.concatenate([c, k_pe], axis=1)[:, None]


def head_cells() -> SuiteBuilder:
    about = "The cells that a run leaves in a head with one row a token, [latent | turned part]: keys alone, no values."
    suite = SuiteBuilder("L5", "head_cells_latent", "head_cells", ("S15", "S20", "S24", "S33", "S55", "S57"), about)
    flags = "A2b-rope-halves", "A4-k-pe-normed", "A4b-latent-unnormed", "K7-not-trimmed"
    families.head_cells(suite, FAMILY, "deepseek2", lambda taps: {"k": latent_cells(taps)}, flags)
    return suite


def loops() -> Iterator[SuiteBuilder]:
    about = "Rounds with given drafts, some rejected, in models with experts: the state is as if they were never run."
    yield families.rollback(FAMILY, about, ("S23", "S24", "S33", "S38", "S40", "S48"))
    about = "Whole runs of models with experts that draft with the head."
    yield families.runs(FAMILY, about, ("S20", "S22", "S23", "S24", "S30", "S31", "S35", "S38", "S40", "S48"))
    yield head_cells()
