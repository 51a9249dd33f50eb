"""L3 to L5 of cohere2moe and nemotron_h_moe: parts side by side and alone, layer norms, Mamba-2, in a whole model."""

from collections.abc import Iterator, Mapping

from numpy.typing import NDArray

from golden import families
from golden.families import Family, Member
from mtpref.golden.build import SuiteBuilder
from tests import naive, naive_mamba, naive_mla, naive_parallel

IN_ALL = ("E9-shared-forgotten",)
ROUNDS = ("basic", "C3b-row-before-last", "K8-accepted-row-missing", "V7-bonus-dropped")
FAMILY = Family(
    name="single",
    members={
        "cohere2moe": Member(
            naive_parallel,
            ("windows", "parallel_block", "layer_norms", "averaged_experts", "logit_scale"),
            of_trunk=(
                "A10-window-narrow",
                "G30-layer-norm-as-rms",
                "G31b-unturned-layers-turned",
                "G32-parallel-as-sequential",
                "G36-rope-halves",
                "E21-shared-expert-summed",
            ),
            of_head=(
                "G5b-no-rope",
                "G30-layer-norm-as-rms",
                "G32-parallel-as-sequential",
                "G33-head-logits-unscaled",
                "G36-rope-halves",
                "E21-shared-expert-summed",
            ),
            of_rounds=(*ROUNDS, "G32-parallel-as-sequential"),
        ),
        "nemotron_h_moe": Member(
            naive_mamba,
            ("mamba2", "plain_experts", "layer_norms", "plain_attention"),
            of_trunk=(
                "E20-relu-unsquared",
                "G31b-unturned-layers-turned",
                "G34-scan-heads-tiled",
                "G34b-step-bias-forgotten",
                "G35-scan-gate-after-norm",
                "G35b-scan-norm-ungrouped",
            ),
            of_head=(
                "E20-relu-unsquared",
                "G30b-head-norm-as-rms",
                "G30c-head-norms-centred",
                "G31-head-turned",
            ),
            of_rounds=(*ROUNDS, "S2-no-rollback", "S3-conv-window-kept", "S3b-recurrent-state-kept"),
        ),
    },
    in_all=IN_ALL,
    faint=("G5b-no-rope", "G31b-unturned-layers-turned", "G36-rope-halves"),
    features=("moe",),
    kept=("l_out", "nemotron_h_block_out", "attn_out", "scan_output", "ffn_out", "ffn_moe_topk"),
    batches=(5, 2, 1, 2),
)


def trunk() -> Iterator[SuiteBuilder]:
    about = (
        "A prompt through a trunk whose blocks have their parts side by side, or one alone, in batches of 5, 2, 1, 2."
    )
    rules = ("S6", "S30", "S48", "S53", "S98", "S117", "S118", "S119", "S120", "S121", "S125", "S126")
    yield families.trunk(FAMILY, about, rules)


def heads() -> Iterator[SuiteBuilder]:
    about = "The MTP block of such a model: it always turns and scales its logits, or has a layer norm last."
    rules = ("S19", "S20", "S31", "S48", "S117", "S118", "S119", "S120", "S121", "S127")
    yield families.block(FAMILY, about, rules)
    about = "A draft of three tokens: the row that is handed on stands after the head's last norm."
    yield families.chain(FAMILY, about, ("S20", "S22", "S31", "S32", "S117", "S118", "S127"),
                         ("C1-chain-pre-norm", "C2-hidden-overwritten", "G2-pre-norm-hidden"))  # fmt: skip


def head_cells() -> SuiteBuilder:
    about = "The cells that a run leaves in a head that turns neighbours: keys after RoPE, and values."
    suite = SuiteBuilder("L5", "head_cells_single", "head_cells", ("S15", "S20", "S24", "S33", "S98", "S120"), about)

    def cells(taps: Mapping[str, NDArray]) -> dict[str, NDArray]:
        hparams, w = families.oracle("cohere2moe", naive_parallel)
        name, h = next((name, x) for name, x in taps.items() if name.startswith("mtp_attn_norm-"))
        n_kv, size = int(hparams["attention.head_count_kv"]), int(hparams["attention.key_length"])
        k, v = (naive.matmul(w[f"blk.{name.rpartition('-')[2]}.attn_{part}.weight"], h).reshape(len(h), n_kv, size)
                for part in "kv")  # fmt: skip
        angles, magnitude = naive.rope_scaled(size, float(hparams["rope.freq_base"]), 1.0, 4096, False)
        return {"k": naive_mla.turned(k, list(range(len(h))), angles, magnitude), "v": v}

    families.head_cells(suite, FAMILY, "cohere2moe", cells, ("K7-not-trimmed", "G5b-no-rope", "G36-rope-halves"))
    return suite


def loops() -> Iterator[SuiteBuilder]:
    about = "Rounds with given drafts, some rejected: windows lose no cell to them, scans and convolutions forget them."
    yield families.rollback(FAMILY, about, ("S23", "S24", "S33", "S38", "S40", "S76", "S98", "S122", "S123", "S125"))
    about = "Whole runs of such models that draft with the head."
    yield families.runs(FAMILY, about, ("S20", "S22", "S23", "S24", "S30", "S31", "S35", "S38", "S40", "S119", "S125"))
    yield head_cells()
