"""L3 to L5 of gemma4 and its assistant: unscaled attention, shared cells, inputs of layers, experts beside a dense
network in a whole model; steps, drafts and runs of an assistant that reads the target's cells."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from golden import families
from golden.families import NUMBERS, Family, Member
from golden.moe_models import prompt as tokens_of
from mtpref.golden.build import SuiteBuilder, close
from tests import naive, naive_gemma, naive_loop
from tests.naive_model import HParams, Weights

ARCH, ASSISTANT = "gemma4", "gemma4-assistant"
Drafted = tuple[list[int], list[naive_loop.Candidate]]


def assistant() -> tuple[HParams, Weights]:
    return families.oracle(ASSISTANT, naive_gemma)


def draft(weights: Weights, hparams: HParams, tokens: list[int], n_max: int, *_: Any) -> Drafted:
    """Draft after `tokens`: as naive_loop.draft."""
    steps = naive_gemma.draft(assistant(), (hparams, weights), tokens, n_max)
    found = [naive_loop.Candidate(*naive.top10(step.logits), True) for step in steps]
    return [one.ids[0] for one in found], found


FAMILY = Family(
    name="unscaled",
    members={
        ARCH: Member(
            naive_gemma,
            of_trunk=("A10-window-narrow",),
            of_rounds=("basic", "V7-bonus-dropped", "V21-wrong-verify-row"),
            draft=draft,
            drafts=ASSISTANT,
            has_cells=False,
        )
    },
    features=("moe", "unscaled_attention", "windows", "rope_factors"),
    kept=("l_out", "attn_out", "kqv_out", "ffn_moe_combined", "ffn_moe_topk", "per_layer_embd_out"),
    names={"attn_out": "attn_residual"},
    batches=(5, 2, 1, 2),
)  # fmt: skip


def trunk() -> Iterator[SuiteBuilder]:
    about = "A prompt through a target of assistants, in batches of 5, 2, 1, 2: windows cross them, layers share cells."
    rules = ("S6", "S8", "S10", "S30", "S76", "S94", "S100", "S101", "S102", "S103", "S104", "S105", "S106", "S107")
    yield families.trunk(FAMILY, about, rules)


OF_STEPS = ("G11-row-before-norm", "G20-embedding-unscaled", "G20b-embedding-of-own-width")
OF_CELLS = ("A17-assistants-window-ignored", "G21-scores-scaled")  # more of them than a window holds


def steps() -> SuiteBuilder:
    about = "Steps of an assistant after a prompt, each of a token and a row, at the position after the prompt."
    rules = ("S31", "S100", "S101", "S103", "S107", "S108", "S109")
    suite = SuiteBuilder("L4", "assistant_steps", "assistant", rules, about)
    hparams, w = families.oracle(ARCH, naive_gemma)
    for id, n in (("after_seven", 7), ("after_one", 1)):
        tokens, given = tokens_of(f"assistant/{id}", n), tokens_of(f"assistant/{id}/draft", 2)
        found, cells = naive_gemma.run(w, hparams, tokens)
        row, rows, made = found.h_post[-1], [], []
        for token in given:  # the second step is fed with what the first one gives, rounded once
            rows.append(row.astype(np.float32))
            step = naive_gemma.assistant(assistant(), (hparams, w), token, naive.f64(rows[-1]), cells, n)
            made.append(step.tensors | {"mtp_result_output": step.logits[None], "mtp_h_nextn": step.h_nextn[None]})
            row = step.h_nextn
        oracle = {name: np.concatenate([one[name] for one in made]) for name in made[0]}
        inputs = {"tokens": np.array(tokens, np.int32), "draft": np.array(given, np.int32), "hidden": np.stack(rows)}
        params = {**families.files(ARCH, FAMILY.members[ARCH]), "batches": [n], "contract": "llama.cpp",
                  "kv_type": "F32"}  # fmt: skip
        bits = families.ours("assistant", params, inputs, "exact")
        names = {"Qcur": "Qcur_pos", "attn_residual": "attn_out"}
        kept = ("pre_proj", "Qcur", "kqv_out", "attn_residual", "l_out")
        out = {}
        for name, x in oracle.items():
            kind, dash, il = name.removeprefix("mtp_").rpartition("-")
            own = f"mtp_{names.get(kind, kind)}{dash}{il}" if kind in kept else name
            if kind in kept or not dash:
                out[own] = close("model_f32", x.reshape(bits[own].shape), bits[own])
        need = FAMILY.needs(ARCH, "mtp", "assistant")
        comment = f"two steps after {NUMBERS.get(n, n)} tokens"
        flags = ("basic", "G1-concat-swapped", *OF_STEPS, "G22-output-scale-forgotten", *(OF_CELLS if n > 1 else ()))
        suite.case(id, comment, inputs=inputs, out=out, params=params, requires=need,
                   flags=(*flags, "K16-position-advances"))  # fmt: skip
        bits = families.ours("assistant", params, inputs, "ggml")
        last = ("mtp_h_nextn", "mtp_result_output")
        suite.case(f"{id}_ggml", f"{comment}; quantised activations", inputs=inputs, params=params, numerics="ggml",
                   out={name: close("model_ggml", bits[name]) for name in last}, requires=(*need, "ggml"),
                   flags=flags)  # fmt: skip
    return suite


def heads() -> Iterator[SuiteBuilder]:
    yield steps()
    about = "A draft of three tokens by an assistant, all at the position after the prompt."
    yield families.chain(FAMILY, about, ("S20", "S22", "S31", "S32", "S108", "S109"),
                         ("C2-hidden-overwritten", "G2-pre-norm-hidden", "K16-position-advances", *OF_STEPS,
                          *OF_CELLS))  # fmt: skip


def loops() -> Iterator[SuiteBuilder]:
    about = "Rounds with given drafts, some rejected, beside an assistant: it keeps no cells, and windows lose none."
    yield families.rollback(FAMILY, about, ("S23", "S24", "S33", "S38", "S40", "S76", "S104", "S109"))
    about = "Whole sessions of a target and its assistant: drafts, verification, roll back."
    yield families.runs(FAMILY, about, ("S20", "S22", "S23", "S24", "S31", "S34", "S35", "S38", "S40", "S104", "S109"))
