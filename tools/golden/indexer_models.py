"""L3 to L5 of deepseek32 and glm-dsa: an indexer in a whole model, its choice shared by layers, a head without one."""

from collections.abc import Iterator, Mapping

from numpy.typing import NDArray

from golden import families
from golden.experts_models import latent_cells
from golden.families import Family, Member
from golden.indexer import OF_CHOICE
from mtpref.golden.build import SuiteBuilder
from tests import naive_dsa

OF_LATENT = ("A1-kv-b-halves", "A1b-k-b-not-transposed", "A2-rope-wrong-end", "A2b-rope-halves", "A4b-latent-unnormed")
OF_HEAD = ("E11-experts-of-last-layer", "E13-head-as-dense", "W7b-head-norm-skipped")
OF_ROUNDS = ("basic", "A5-indexer-ignored", "C3b-row-before-last", "C5-cached-draft", "K8-accepted-row-missing")
FAMILY = Family(
    name="indexer",
    members={
        "deepseek32": Member(
            naive_dsa,
            of_trunk=(*OF_CHOICE, "A2c-rope-inflated", "A3-sharpness-forgotten", "A3b-sharpness-once"),
            of_head=OF_HEAD,
            of_rounds=OF_ROUNDS,
        ),
        "glm-dsa": Member(
            naive_dsa, of_trunk=(*OF_CHOICE, "A8-choice-not-shared"), of_head=OF_HEAD, of_rounds=OF_ROUNDS
        ),
    },
    in_all=OF_LATENT,
    features=("moe", "latent_attention", "indexer"),
    kept=("l_out", "indexer_weights", "kv_cmpr", "ffn_out"),
    batches=(5, 2, 1, 2),
)


def trunk() -> Iterator[SuiteBuilder]:
    about = "A prompt through a trunk with an indexer, in batches of 5, 2, 1, 2; later tokens see four cells each."
    rules = ("S6", "S30", "S55", "S57", "S60", "S61", "S62", "S63", "S64", "S65", "S66")
    yield families.trunk(FAMILY, about, rules)


def heads() -> Iterator[SuiteBuilder]:
    about = "The MTP block of a model with an indexer, which has none: it sees every cell."
    yield families.block(FAMILY, about, ("S19", "S20", "S31", "S48", "S57"))
    about = "A draft of three tokens in a model with an indexer."
    yield families.chain(FAMILY, about, ("S20", "S22", "S31", "S32", "S57"),
                         ("C1-chain-pre-norm", "C2-hidden-overwritten", "C8-chain-renormed"))  # fmt: skip


def head_cells() -> SuiteBuilder:
    about = "The cells that a run leaves in the head of a model with an indexer: one row a token, no indexer's key."
    suite = SuiteBuilder("L5", "head_cells_indexer", "head_cells", ("S15", "S20", "S24", "S33", "S55", "S57"), about)

    def cells(taps: Mapping[str, NDArray]) -> dict[str, NDArray]:
        return {"k": latent_cells(taps)}

    families.head_cells(suite, FAMILY, "glm-dsa", cells, ("K7-not-trimmed", "C4-same-token-pairing"))
    return suite


def loops() -> Iterator[SuiteBuilder]:
    about = "Rounds with given drafts, some rejected, in models with an indexer: its keys are cut with the cells."
    yield families.rollback(FAMILY, about, ("S23", "S24", "S33", "S38", "S40", "S65"))
    about = "Whole runs of models with an indexer that draft with the head."
    yield families.runs(FAMILY, about, ("S20", "S22", "S23", "S24", "S30", "S31", "S35", "S38", "S40", "S66"))
    yield head_cells()
