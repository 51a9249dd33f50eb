"""Family K: the head's KV cache. Where a cell is missing or one too many, later cells slide up; their keys keep the
positions that they were rotated to."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.model import Model
from mtpref.engine.recipe import Recipe
from mtpref.faults.fault import Fault, Signature, contract, steps
from mtpref.spec.contract import MtpContract
from mtpref.spec.state import HeadState, ModelState
from mtpref.spec.step_types import Batch, HeadIds

Ids = Sequence[int]


def slide(head: HeadState, first_pos: int) -> None:
    """Cells go on after the last one, whatever position that holds."""
    head.start = first_pos - head.n_cells


def _keeping(rows: Callable[[int, int], int]) -> Callable[[Recipe], Recipe]:
    """The catch-up pass of a round with the first rows(n_kept, n_drafted) of the kept tokens alone."""

    def kept(batch: Batch, ids: Ids) -> Ids:
        return ids if batch.n_drafted is None else batch.ids[: rows(len(batch.ids), batch.n_drafted)]

    return steps(lambda table: {"head_ids": _then(table.head_ids, kept), "place_mtp": slide})


def _then(head_ids: HeadIds, change: Callable[[Batch, Ids], Ids]) -> HeadIds:
    """The tokens that go through the head, changed."""
    return lambda batch, asked: change(batch, head_ids(batch, asked))


PROMPT_NOT_PRIMED = Fault(
    id="K0-prompt-not-primed",
    title="The head's KV does not hold the prompt",
    mechanism="Only tokens of verified batches go through the head; its attention never sees the prompt.",
    bug_type="MISSING_STEP",
    replaces=("contract.prime",),
    predicted=Signature("", "5 to 14 points lower", drift="most where the text takes up what the prompt named"),
    seen=(
        ("omlx #2402", "https://github.com/jundot/omlx/pull/2402"),
        ("lattice #1364", "https://github.com/ohdearquant/lattice/pull/1364"),
    ),
    effect="code 70 instead of 84 %, maths over 16k tokens 75 instead of 80 %",
    where=("own cells",),
    apply_recipe=contract(prime="none"),
)


def _one_short(batch: Batch, ids: Ids) -> Ids:
    return ids[:-1] if batch.n_drafted is None else ids


PROMPT_ONE_SHORT = Fault(
    id="K1-prompt-one-short",
    title="The last pair of a prompt batch does not go through the head",
    mechanism="L tokens of a batch give L - 1 pairs, and nobody brings the last one later.",
    bug_type="OFF_BY_ONE",
    replaces=("steps.head_ids", "steps.place_mtp"),
    predicted=Signature("", "a little lower", split="the first round most"),
    seen=(("lattice #1364", "https://github.com/ohdearquant/lattice/pull/1364"),),
    where=("own cells",),
    apply_recipe=steps(lambda table: {"head_ids": _then(table.head_ids, _one_short), "place_mtp": slide}),
)


def _tail_sampled(model: Model) -> Model:
    ops = model.recipe.ops

    def guessed(batch: Batch, ids: Ids) -> Ids:
        if batch.n_drafted is not None or batch.pos0 == 0 or not ids:
            return ids
        return [int(ops.argmax(model.trunk_logits(batch.pending[None]))[0]), *ids[1:]]

    head_ids = _then(model.recipe.steps.head_ids, guessed)
    return replace(model, recipe=model.recipe.with_steps(head_ids=head_ids))


CHUNK_TAIL_SAMPLED = Fault(
    id="K3-chunk-tail-sampled",
    title="At a batch boundary of the prompt the head is given the trunk's guess",
    mechanism="The pair that crosses two batches takes the token that the trunk would choose there, not the prompt's "
    "next one: one wrong cell for each boundary.",
    bug_type="WRONG_RULE",
    replaces=("steps.head_ids",),
    predicted=Signature("", "a little lower", drift="only with prompts longer than a batch"),
    seen=(
        ("SGLang #26800", "https://github.com/sgl-project/sglang/pull/26800"),
        ("TensorRT-LLM #18295", "https://github.com/NVIDIA/TensorRT-LLM/pull/18295"),
        ("LightLLM #1079", "https://github.com/ModelTC/LightLLM/pull/1079"),
        ("rtp-llm #1174", "https://github.com/alibaba/rtp-llm/pull/1174"),
    ),
    needs=("mtp", "batches"),
    where=("own cells",),
    apply_model=_tail_sampled,
)

GENERATED_DISCARDED = Fault(
    id="K4-generated-discarded",
    title="Generated tokens never reach the head's KV",
    mechanism="What was run while drafting is discarded, and what was accepted is not run again: the head's attention "
    "sees the prompt alone.",
    bug_type="MISSING_STEP",
    replaces=("steps.head_ids", "steps.place_mtp"),
    predicted=Signature("", "lower", split="the first round the same", drift="falls with the text's length"),
    seen=(("ik_llama.cpp #1757", "https://github.com/ikawrakow/ik_llama.cpp/pull/1757"),),
    effect="hardly any change",
    where=("own cells",),
    apply_recipe=_keeping(lambda n_kept, n_drafted: 0),
)


def _one_too_early(trim: Callable[[ModelState, int], None]) -> Callable[[ModelState, int], None]:
    return lambda state, pos: trim(state, pos - 1)


BOUNDARY_OVERWRITTEN = Fault(
    id="K5-boundary-overwritten",
    title="The catch-up pass overwrites the cell before it",
    mechanism="Accepted tokens are written from the boundary's cell on instead of after it: each round loses one.",
    bug_type="OFF_BY_ONE",
    replaces=("steps.trim_mtp", "steps.place_mtp"),
    predicted=Signature("", "a little lower", drift="falls with the text's length"),
    seen=(("ik_llama.cpp #1799", "https://github.com/ikawrakow/ik_llama.cpp/pull/1799"),),
    where=("own cells",),
    apply_recipe=steps(lambda table: {"trim_mtp": _one_too_early(table.trim_mtp), "place_mtp": slide}),
)

TRIMMED_TWO_MORE = Fault(
    id="K6-trimmed-two-more",
    title="After a rejection the head's cache is cut two cells too far",
    mechanism="The number of cells to cut counts the opening token and one more: the cache falls short by up to two "
    "cells with each rejection.",
    bug_type="OFF_BY_ONE",
    replaces=("steps.head_ids", "steps.place_mtp"),
    predicted=Signature("", "lower", split="after a partial acceptance most", drift="falls with the text's length"),
    seen=(("mlxcel #1002", "https://github.com/lablup/mlxcel/pull/1002"),),
    where=("own cells",),
    apply_recipe=_keeping(lambda n_kept, n_drafted: n_kept if n_kept > n_drafted else max(n_kept - 2, 0)),
)

NOT_TRIMMED = Fault(
    id="K7-not-trimmed",
    title="Draft-time cells stay in the head's cache",
    mechanism="Nobody cuts the cells that drafting wrote: rejected tokens stay among those that the head looks at, and "
    "accepted ones are there twice.",
    bug_type="MISSING_STEP",
    replaces=("steps.trim_mtp", "steps.place_mtp"),
    predicted=Signature("", "lower", split="the first round the same", drift="falls with the text's length"),
    seen=(
        ("mlx-swift-lm #308", "https://github.com/ml-explore/mlx-swift-lm/pull/308"),
        ("llama.cpp-tq3 #79", "https://github.com/turbo-tan/llama.cpp-tq3/pull/79"),
    ),
    where=("own cells",),
    apply_recipe=steps(lambda table: {"trim_mtp": lambda state, pos: None, "place_mtp": slide}),
)

ACCEPTED_ROW_MISSING = Fault(
    id="K8-accepted-row-missing",
    title="After a full acceptance one cell is missing",
    mechanism="The row of the last accepted draft token is never appended: the cache is one short for each round in "
    "which everything was accepted.",
    bug_type="OFF_BY_ONE",
    replaces=("steps.head_ids", "steps.place_mtp"),
    predicted=Signature("", "a little lower", split="after a full acceptance lower", drift="falls with the text"),
    seen=(("lattice #293", "https://github.com/ohdearquant/lattice/issues/293"),),
    where=("own cells",),
    apply_recipe=_keeping(lambda n_kept, n_drafted: n_kept - 1 if n_kept > n_drafted > 0 else n_kept),
)


def _ahead(first_pos: int, n_tokens: int, asked: MtpContract) -> NDArray[np.int32]:
    pos = np.arange(first_pos, first_pos + n_tokens, dtype=np.int32) + np.int32(asked.pos_offset)
    return pos + np.int32(n_tokens == 1)


POSITION_SHIFTED = Fault(
    id="K10-position-shifted",
    title="Single tokens are a position ahead",
    mechanism="Drafts and single kept tokens are rotated for position p + 1, batches for p: the same offset everywhere "
    "would be harmless, two offsets are not.",
    bug_type="OFF_BY_ONE",
    replaces=("steps.mtp_positions",),
    predicted=Signature("", "a little lower"),
    seen=(
        ("turboquant #306", "https://github.com/TheTom/llama-cpp-turboquant/pull/306"),
        ("rtp-llm #1174", "https://github.com/alibaba/rtp-llm/pull/1174"),
    ),
    apply_recipe=steps(lambda table: {"mtp_positions": _ahead}),
)

KV_TYPE_IGNORED = Fault(
    id="K13-kv-type-ignored",
    title="The head's cache ignores the type that was asked for",
    mechanism="-ctkd and -ctvd do not reach the head's context: its cache is F16, as by default.",
    bug_type="WRONG_RULE",
    replaces=("kv_type_draft",),
    predicted=Signature("mtp_attn_pregate", "the same, or a hair lower"),
    seen=(("llama.cpp #23636", "https://github.com/ggml-org/llama.cpp/issues/23636"),),
    needs=("mtp", "wide kv"),
    where=("own cells",),
    apply_model=lambda model: replace(model, kv_type_draft="F16"),
)

COOLDOWN_COLD = Fault(
    id="K14-cooldown-cold",
    title="Rounds without a draft leave no cells in the head's cache",
    mechanism="The catch-up pass is part of drafting: while the drafter is silent, the head does not see the text.",
    bug_type="MISSING_STEP",
    replaces=("steps.head_ids", "steps.place_mtp"),
    predicted=Signature("", "lower", drift="falls with the number of silent rounds"),
    needs=("mtp", "cooldown"),
    where=("own cells",),
    apply_recipe=_keeping(lambda n_kept, n_drafted: n_kept if n_drafted else 0),
)
