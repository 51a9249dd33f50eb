"""L3 to L5 of experts: trunk, MTP block, chain, rounds and runs of one small model of each architecture."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from golden import l3_trunk, l5_loop
from golden.moe_models import MODELS, N_VOCAB, path_of
from golden.moe_models import prompt as tokens_of
from mtpref.engine.model import Model, load
from mtpref.engine.recipe import make_recipe
from mtpref.golden.build import SuiteBuilder, close, value
from tests import naive_loop, naive_mla, naive_model, naive_moe
from tests.portable import usual_arithmetic

GOLDEN = l3_trunk.GOLDEN
ARCHS = tuple(MODELS)
SAFE_GAP = 1e-4  # of routers; float32 leaves 1e-6
SAFE_MARGIN = l5_loop.SAFE_MARGIN
# What only some models have; every model's trunk is of experts.
RECURRENT = {"qwen35moe", "qwen3next"}
FEATURES = {"qwen35moe": (), "qwen3next": ("ssm_ba",), "glm4moe": ("plain_attention",), "hy_v3": ("plain_attention",),
            "deepseek2": ("latent_attention",)}  # fmt: skip
ORACLES = {arch: naive_mla if arch == "deepseek2" else naive_moe for arch in ARCHS}
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
KEPT = ("l_out", "ffn_moe_logits", "ffn_moe_probs", "ffn_moe_weights", "ffn_out")


def features(arch: str, *more: str) -> tuple[str, ...]:
    return ("moe", "q8_0", *FEATURES[arch], *more)


@lru_cache(maxsize=len(ARCHS))
def oracle(arch: str) -> tuple[dict[str, Any], dict[str, NDArray]]:
    return ORACLES[arch].load(str(GOLDEN / path_of(arch)))


@lru_cache(maxsize=len(ARCHS))
def model(arch: str) -> Model:
    """The specification on the same file."""
    return load(GOLDEN / path_of(arch), make_recipe("exact", use_kernels=False), kv_type="F32", kv_type_draft="F32")


def ours(op: str, params: Mapping[str, Any], inputs: Mapping[str, NDArray], numerics: str) -> dict[str, Any]:
    """What the specification gives; no router's choice hangs on a near tie.

    Errors  ValueError where one does: choose another prompt
    """
    given = l3_trunk.ours(op, dict(params), dict(inputs), numerics)
    near = [name for name, x in given.items() if "ffn_moe_gap" in name and x.min() < SAFE_GAP]
    if near:
        raise ValueError(f"{op}: {near} hang on near ties: choose another prompt")
    return given


def add(
    suite: SuiteBuilder, arch: str, comment: str, inputs: Mapping[str, NDArray], params: Mapping[str, Any],
    tensors: Mapping[str, NDArray], last: tuple[str, ...], flags: tuple[str, ...], need: tuple[str, ...],
) -> None:  # fmt: skip
    """Exact numerics against the oracle's tensors, `ggml` numerics against the specification's bits (of `last`)."""
    params = {"model": path_of(arch), **params, "kv_type": "F32"}
    given = ours(suite.op, params, inputs, "exact")
    names = [name for name in given if name in tensors and (name in last or name.rpartition("-")[0].endswith(KEPT))]
    out = {name: close("model_f32", tensors[name].reshape(given[name].shape), given[name]) for name in names}
    suite.case(arch, comment, inputs=inputs, out=out, params=params, flags=flags, requires=features(arch, *need))
    bits = ours(suite.op, params, inputs, "ggml")
    flags = tuple(flag for flag in flags if flag not in FAINT)
    out = {name: close("model_ggml", bits[name]) for name in last}
    suite.case(f"{arch}_ggml", f"{comment}; quantised activations", inputs=inputs, out=out, params=params,
               numerics="ggml", requires=features(arch, "ggml", *need), flags=flags)  # fmt: skip


def trunk() -> Iterator[SuiteBuilder]:
    about = "A prompt through the trunk of a model with experts, in batches of 5, 2, 1: a token's row is its own."
    suite = SuiteBuilder("L3", "trunk_experts", "trunk", ("S6", "S30", "S41", "S44", "S45", "S46", "S48", "S57"), about)
    for arch in ARCHS:
        tokens = tokens_of(f"trunk_experts/{arch}", 8)
        hparams, w = oracle(arch)
        found = ORACLES[arch].trunk(w, hparams, tokens)
        tensors = found.tensors | {"result_output": found.logits, "result_norm": found.h_post}
        add(suite, arch, "eight tokens", {"tokens": np.array(tokens, np.int32)}, {"batches": [5, 2, 1]}, tensors,
            ("result_output",), ("basic", *IN_ALL, *OF_TRUNK[arch]), ())  # fmt: skip
    yield suite


def block() -> SuiteBuilder:
    about = "The MTP block of a model with experts over pairs (x_p, h_{p-1}) on an empty cache."
    suite = SuiteBuilder(
        "L4", "mtp_block_experts", "mtp", ("S19", "S20", "S31", "S41", "S44", "S45", "S48", "S57"), about
    )
    for arch in ARCHS:
        tokens = tokens_of(f"mtp_experts/{arch}", 7)
        hparams, w = oracle(arch)
        rows = ORACLES[arch].trunk(w, hparams, tokens).h_post.astype(np.float32)
        paired = np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])
        found = ORACLES[arch].mtp(w, hparams, tokens, paired, list(range(len(tokens))))
        tensors = found.tensors | {"mtp_result_output": found.logits}
        inputs = {"tokens": np.array(tokens, np.int32), "hidden": paired}
        add(suite, arch, "seven pairs", inputs, {"first_pos": 0, "contract": "llama.cpp"}, tensors,
            ("mtp_result_output",), ("basic", "G1-concat-swapped", *IN_ALL, *OF_HEAD[arch]), ("mtp",))  # fmt: skip
    return suite


def naively(arch: str) -> Any:
    """naive_loop on this model's layers."""
    return mock.patch.multiple(naive_loop, trunk=ORACLES[arch].trunk, mtp=ORACLES[arch].mtp)


def chain() -> SuiteBuilder:
    about = "A draft of three tokens after a prompt whose last token is decided but not yet run by the trunk."
    suite = SuiteBuilder("L4", "mtp_chain_experts", "mtp_chain", ("S20", "S22", "S31", "S32", "S48"), about)
    for arch in ARCHS:
        tokens = tokens_of(f"mtp_chain_experts/{arch}/2", 8)
        hparams, w = oracle(arch)
        inputs = {"tokens": np.array(tokens, np.int32)}
        params = {"model": path_of(arch), "contract": "llama.cpp", "n": 3, "batches": [4, 3], "kv_type": "F32"}
        with naively(arch):
            ids, candidates = naive_loop.draft(w, hparams, tokens, 3)
        given = ours("mtp_chain", params, inputs, "exact")
        p = np.array([c.p for c in candidates])
        if (p[:, 0] - p[:, 1]).min() < SAFE_GAP:
            raise ValueError(f"chain {arch} hangs on a near tie: choose another prompt")
        flags = ("basic", "G2-pre-norm-hidden", "C1-chain-pre-norm", *OF_HEAD[arch])
        suite.case(arch, "three tokens", inputs=inputs, params=params, requires=features(arch, "mtp"), flags=flags,
                   out={"ids": value(ids), "p": close("model_f32", p, given["p"])})  # fmt: skip
    return suite


@lru_cache(maxsize=8)
def continuation(arch: str, n_prompt: int, n: int) -> tuple[list[int], list[int]]:
    """A prompt and the oracle's greedy continuation: the first stream whose margins and router gaps are safe.

    Errors  ValueError where none of many is
    """
    hparams, w = oracle(arch)
    for i in range(50):
        prompt = tokens_of(f"loop_experts/{arch}/{i}", n_prompt)
        with usual_arithmetic(), naively(arch):
            ids = naive_loop.greedy(w, hparams, prompt, n)
            logits = ORACLES[arch].trunk(w, hparams, prompt + ids).logits[n_prompt - 1 : -1]
        top = np.sort(logits, axis=1)[:, -2:]
        gaps = [r.gap.min() for r in routings(arch, prompt + ids)]
        if (top[:, 1] - top[:, 0]).min() >= SAFE_MARGIN and min(gaps) >= SAFE_GAP and len(set(ids)) > n // 2:
            return prompt, ids
    raise ValueError(f"{arch}: no prompt without a near tie")


def routings(arch: str, tokens: Sequence[int]) -> Any:
    m = model(arch)
    return m.trunk(m.new_state(len(tokens)), tokens, n_logits=1).routings


def state_after(arch: str, tokens: Sequence[int]) -> dict[str, NDArray]:
    """What the trunk holds after these tokens, run one by one from nothing, with no roll back."""
    m = model(arch)
    state = m.new_state(len(tokens))
    for token in tokens:
        row = m.trunk(state, [token], n_logits=0).hidden.post
    held = {f"{spec.name}_l{il}": layer.arrays[spec.name].copy() for il, layer in enumerate(state.layers)
            for spec in layer.specs if not spec.positional}  # fmt: skip
    return held | {"pending_h": row[-1]}


def rollback() -> SuiteBuilder:
    about = "Rounds with given drafts, some rejected, in models with experts: the state is as if they were never run."
    suite = SuiteBuilder("L5", "rollback_experts", "rounds", ("S23", "S24", "S33", "S38", "S40", "S48"), about)
    for arch in ARCHS:
        prompt, ids = continuation(arch, 6, 8)
        drafts = [[ids[0], (ids[1] + 1) % N_VOCAB, ids[2]], [ids[2], ids[3]]]
        emitted, accepted = l5_loop.expected_rounds(ids, drafts)
        held = [*prompt, *emitted][:-1]
        for strategy in ("snapshot", "replay"):
            params = {"model": path_of(arch), "kv_type": "F32", "rollback": strategy, "n_max": 3, "drafts": drafts,
                      "n_predict": 99}  # fmt: skip
            inputs = {"tokens": np.array(prompt, np.int32)}
            given = ours("rounds", params, inputs, "exact")
            out = {"ids": value(emitted), "n_accepted": value(accepted), "n_past": value(len(held)),
                   "n_mtp": value(len(held))}  # fmt: skip
            out |= {name: close("model_f32", x, given[name]) for name, x in state_after(arch, held).items()}
            flags = ("S2-no-rollback", "S3-conv-window-kept") if arch in RECURRENT else ("basic",)
            suite.case(f"{arch}_{strategy}", f"the second of three is rejected; {strategy}", inputs=inputs, out=out,
                       params=params, flags=flags, requires=features(arch, "mtp", strategy))  # fmt: skip
    return suite


def runs() -> SuiteBuilder:
    about = "Whole runs of models with experts that draft with the head."
    rules = ("S20", "S22", "S23", "S24", "S30", "S31", "S35", "S38", "S40", "S48")
    suite = SuiteBuilder("L5", "runs_experts", "generate", rules, about)
    for arch in ARCHS:
        prompt, ids = continuation(arch, 6, 12)
        params = {"model": path_of(arch), "kv_type": "F32", "n_max": 3, "n_predict": 12}
        inputs = {"tokens": np.array(prompt, np.int32)}
        given = ours("generate", params, inputs, "exact")
        with usual_arithmetic():
            check_drafts(arch, prompt, ids, given)
        out = {name: value(given[name]) for name in ("ids", "drafts", "n_accepted", "reason")}
        suite.case(arch, "drafts of three", inputs=inputs, params=params, out=out, flags=("basic",),
                   requires=features(arch, "mtp"))  # fmt: skip
    return suite


def check_drafts(arch: str, prompt: Sequence[int], ids: Sequence[int], given: dict[str, Any]) -> None:
    """As l5_loop.check_drafts, by this model's oracle."""
    with naively(arch), mock.patch.object(l5_loop, "weights", return_value=oracle(arch)):
        l5_loop.check_drafts(prompt, ids, given, {})


def head_cells() -> SuiteBuilder:
    about = "The cells that a run leaves in a head with one row a token, [latent | turned part]: keys alone, no values."
    suite = SuiteBuilder("L5", "head_cells_latent", "head_cells", ("S15", "S20", "S24", "S33", "S55", "S57"), about)
    arch = "deepseek2"
    hparams, w = oracle(arch)
    prompt, ids = continuation(arch, 6, 12)
    il = naive_model.n_layer(hparams)
    held = [*prompt, *ids[:10]][:-1]
    rows = naive_mla.trunk(w, hparams, held).h_post
    taps = naive_mla.mtp(w, hparams, held, np.concatenate([0 * rows[:1], rows[:-1]]), list(range(len(held)))).tensors
    cells = np.concatenate([taps[f"mtp_kv_cmpr-{il}"], taps[f"mtp_k_pe-{il}"]], axis=1)[:, None]
    params = {"model": path_of(arch), "kv_type": "F32", "n_max": 3, "n_predict": 10}
    inputs = {"tokens": np.array(prompt, np.int32)}
    given = ours("head_cells", params, inputs, "exact")
    out = {"ids": value(list(ids[:10])), "n_mtp": value(len(held)), "k": close("model_f32", cells, given["k"])}
    suite.case(arch, "drafts of three, some rejected", inputs=inputs, params=params, out=out,
               flags=("A2b-rope-halves", "A4-k-pe-normed", "A4b-latent-unnormed", "K7-not-trimmed"),
               requires=features(arch, "mtp"))  # fmt: skip
    return suite


def loops() -> Iterator[SuiteBuilder]:
    yield rollback()
    yield runs()
    yield head_cells()


def heads() -> Iterator[SuiteBuilder]:
    yield block()
    yield chain()
