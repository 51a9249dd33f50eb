"""L3 to L5 of deepseek4: streams, windows and compressed rows in a whole model, and a head on raw streams."""

from collections.abc import Iterator, Mapping

from numpy.typing import NDArray

from golden import families
from golden.compressed import CHOSEN, TURNED
from golden.connections import MIXED
from golden.families import Family, Member
from mtpref.golden.build import SuiteBuilder
from tests import naive_dsv4

RULES = ("S70", "S72", "S73", "S74", "S76", "S78", "S79", "S82", "S85", "S89", "S92", "S93")
FAMILY = Family(
    name="streams",
    members={
        "deepseek4": Member(
            naive_dsv4,
            hidden="h_pre",
            draft=naive_dsv4.draft,
            of_trunk=(*CHOSEN, "A6-indexer-no-relu", "A11-block-late", *MIXED),
            of_head=(
                "E11-experts-of-last-layer",
                "H1b-streams-interleaved",
                "H2-concat-across-streams",
                "W1-norm-shift-missing",
                "W6-random-head",
                "W7b-head-norm-skipped",
            ),
            of_rounds=(
                "basic",
                "C3b-row-before-last",
                "H3-hidden-after-head",
                "H3c-hidden-normed",
                "K8-accepted-row-missing",
                "V7-bonus-dropped",
            ),
        )
    },
    in_all=(
        "A9-sink-forgotten",
        "A10-window-narrow",
        "A10b-window-wide",
        "A12-not-turned-back",
        *TURNED,
        "E3-weights-unnormed",
        "E5-scale-forgotten",
        "E14-clamp-after-silu",
        "H5c-post-not-doubled",
    ),
    faint=(
        "A9-sink-forgotten",
        "A10-window-narrow",
        "A10b-window-wide",
        *TURNED,
        "E5-scale-forgotten",
        "E14-clamp-after-silu",
        *CHOSEN,
        "A6-indexer-no-relu",
        "A11-block-late",
        *MIXED,
    ),
    features=("moe", "clamped_experts", "compressed_rows", "hyper_connections", "attention_sinks", "windows"),
    kept=("l_last", "l_out", "hc_attn_pre", "attn_out", "ffn_moe_topk", "ffn_out"),
    names={"l_last": "l_out"},
    batches=(5, 2, 1, 6),
)


def trunk() -> Iterator[SuiteBuilder]:
    about = "A prompt through a trunk of four streams, in batches of 5, 2, 1, 6: windows and blocks cross them."
    rules = ("S6", "S8", "S71", "S75", "S77", "S80", "S81", "S83", "S86", "S87", "S88", "S90", "S91")
    yield families.trunk(FAMILY, about, (*rules, *RULES))


def heads() -> Iterator[SuiteBuilder]:
    about = "The MTP block of a model with streams over pairs (x_p, streams after x_{p-1}) on an empty cache."
    rules = ("S19", "S20", "S31", "S83", "S84", "S88", "S90")
    yield families.block(FAMILY, about, (*rules, *RULES))
    about = "A draft of three tokens whose chain hands on the head's own streams."
    yield families.chain(FAMILY, about, ("S20", "S22", "S31", "S32", "S84", "S93"),
                         ("C2-hidden-overwritten", "H3c-hidden-normed"))  # fmt: skip


def head_cells() -> SuiteBuilder:
    about = "The rows that a run leaves in a head with a window: keys and values at once, none is dropped."
    suite = SuiteBuilder("L5", "head_cells_streams", "head_cells", ("S15", "S20", "S24", "S33", "S85", "S90"), about)

    def cells(taps: Mapping[str, NDArray]) -> dict[str, NDArray]:
        return {"k": next(x for name, x in taps.items() if name.startswith("mtp_kv-"))}

    families.head_cells(suite, FAMILY, "deepseek4", cells, ("K7-not-trimmed", "C4-same-token-pairing"))
    return suite


def loops() -> Iterator[SuiteBuilder]:
    about = "Rounds with given drafts, some rejected: windows lose no row, blocks begun and ended by them are undone."
    # Of a block of 128 tokens that does not end, nothing is read.
    unread = ("comp_kv_l1", "comp_score_l1")
    yield families.rollback(FAMILY, about, ("S23", "S24", "S33", "S38", "S40", "S75", "S76", "S86", "S90"), unread)
    about = "Whole runs of a model with streams that draft with the head."
    yield families.runs(FAMILY, about, ("S20", "S22", "S23", "S24", "S30", "S31", "S35", "S38", "S40", "S90", "S93"))
    yield head_cells()
