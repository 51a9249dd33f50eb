"""Family C: the hand-over of hidden rows, and which head of several drafts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model
from mtpref.faults.fault import Fault, Signature, contract, steps
from mtpref.spec.contract import MtpContract
from mtpref.spec.state import HeadState
from mtpref.spec.steps import Hidden

F32 = NDArray[np.float32]

CHAIN_PRE_NORM = Fault(
    id="C1-chain-pre-norm",
    title="The chain carries the head's row from before its norm",
    mechanism="Draft steps after the first are fed the block's output instead of what shared_head_norm makes of it.",
    bug_type="MISSING_STEP",
    replaces=("contract.chain",),
    predicted=Signature("", "a1 the same, a2 and later lower"),
    seen=(
        ("ik_llama.cpp #1815", "https://github.com/ikawrakow/ik_llama.cpp/pull/1815"),
        ("vLLM #47448", "https://github.com/vllm-project/vllm/pull/47448"),
        ("ATOM #1742", "https://github.com/ROCm/ATOM/pull/1742"),
    ),
    effect="GLM-5.2: AL 3.04 instead of 3.46; no difference on a dense 27B",
    where=("normed rows", "own rows"),
    apply_recipe=contract(chain="pre"),
)

CHAIN_POST_NORM = Fault(
    id="C1b-chain-post-norm",
    title="The chain carries the head's row from after its norm",
    mechanism="The next draft step is fed what the head norm makes of the row, where heads take rows before it.",
    bug_type="DOUBLE_STEP",
    replaces=("contract.chain",),
    predicted=Signature("", "a1 the same, a2 and later lower"),
    where=("raw rows",),
    apply_recipe=contract(chain="post"),
)

HIDDEN_OVERWRITTEN = Fault(
    id="C2-hidden-overwritten",
    title="The chain's hidden row is overwritten before it is read",
    mechanism="The row is handed on as a pointer into a buffer that the next pass clears first: steps after the first "
    "see zeros. (In a real buffer it can be anything.)",
    bug_type="STALE_STATE",
    replaces=("steps.chain_hidden",),
    predicted=Signature("", "a1 the same, a2 and later far lower"),
    seen=(("ik_llama.cpp #1718", "https://github.com/ikawrakow/ik_llama.cpp/pull/1718"),),
    effect="k = 2: code 61 instead of 85 %, extraction 60 instead of 98 %; k = 1 the same",
    apply_recipe=steps(lambda table: {"chain_hidden": lambda rows, asked: np.zeros_like(rows.of(asked.chain))}),
)

LAST_VERIFY_ROW = Fault(
    id="C3-last-verify-row",
    title="The next draft starts from the last row of the verified batch",
    mechanism="After a rejection the pending hidden row is that of the last drafted token, which was rejected, instead "
    "of the row of the last accepted one. Right while everything is accepted, and where rejected tokens are never run.",
    bug_type="STALE_STATE",
    replaces=("steps.next_pending",),
    predicted=Signature("", "lower", split="after a partial acceptance lower, after a full one the same"),
    seen=(("ROCmFPX #15", "https://github.com/charlie12345/ROCmFPX/pull/15"),),
    effect="438 of 438 on a predictable text; 141 of 2211 (6.4 %) instead of 31 % on another",
    needs=("mtp", "snapshot"),
    apply_recipe=steps(lambda table: {"next_pending": lambda hidden, n_accepted: hidden[-1].copy()}),
)


def _row_before(hidden: F32, n_accepted: int) -> F32:
    return hidden[max(n_accepted - 1, 0)].copy()


ROW_BEFORE_LAST = Fault(
    id="C3b-row-before-last",
    title="The next draft starts from the row before the last accepted one",
    mechanism="The row of the pending hidden is counted from the drafted tokens, not from the batch, which has the "
    "opening token in front of them: one too early, where anything was accepted.",
    bug_type="OFF_BY_ONE",
    replaces=("steps.next_pending",),
    predicted=Signature("", "lower", split="after an acceptance lower, the first round the same"),
    seen=(("ROCmFPX #15", "https://github.com/charlie12345/ROCmFPX/pull/15"),),
    apply_recipe=steps(lambda table: {"next_pending": _row_before}),
)

SAME_TOKEN_PAIRING = Fault(
    id="C4-same-token-pairing",
    title="Kept tokens are paired with their own hidden row",
    mechanism="In the prompt and in the catch-up pass position p gets (x_p, h_p) instead of (x_p, h_{p-1}): every cell "
    "of the head's KV is wrong, drafts themselves are paired right.",
    bug_type="OFF_BY_ONE",
    replaces=("steps.pair_hidden",),
    predicted=Signature("mtp_hnorm", "lower"),
    seen=(
        ("ik_llama.cpp #1979", "https://github.com/ikawrakow/ik_llama.cpp/pull/1979"),
        ("ik_llama.cpp #1987", "https://github.com/ikawrakow/ik_llama.cpp/pull/1987"),
    ),
    effect="64 to 65 % instead of 88 to 89 %",
    where=("own cells",),
    apply_recipe=steps(lambda table: {"pair_hidden": lambda hidden, pending: hidden}),
)

CACHED_DRAFT = Fault(
    id="C5-cached-draft",
    title="The next draft starts from the row of the round's opening token",
    mechanism="A shortcut reuses the state that the last draft began with: its hidden row does not move on with what "
    "was accepted.",
    bug_type="STALE_STATE",
    replaces=("steps.next_pending",),
    predicted=Signature("", "lower", split="after an acceptance lower, after a rejection of all the same"),
    seen=(("ik_llama.cpp #1979", "https://github.com/ikawrakow/ik_llama.cpp/pull/1979"),),
    apply_recipe=steps(lambda table: {"next_pending": lambda hidden, n_accepted: hidden[0].copy()}),
)


def _stale_opening(id_last: int, last_targets: Sequence[int]) -> int:
    return last_targets[-1] if last_targets else id_last


STALE_LOGITS_ROW = Fault(
    id="C6-stale-logits-row",
    title="The draft is read from the row of a rejected token",
    mechanism="The head's logits are taken at the last row of the verified batch: after a rejection they continue a "
    "text that was never written.",
    bug_type="STALE_STATE",
    replaces=("steps.next_pending", "steps.draft_opening"),
    predicted=Signature("", "far lower", split="after a partial acceptance near 0, after a full one the same"),
    seen=(
        ("llama.cpp #20700", "https://github.com/ggml-org/llama.cpp/pull/20700"),
        ("TensorRT-LLM #12588", "https://github.com/NVIDIA/TensorRT-LLM/pull/12588"),
        ("ik_llama.cpp #1862", "https://github.com/ikawrakow/ik_llama.cpp/pull/1862"),
    ),
    effect="13 %, and 95 % with a cooldown after rejections",
    needs=("mtp", "snapshot"),
    apply_recipe=steps(
        lambda table: {"next_pending": lambda hidden, n: hidden[-1].copy(), "draft_opening": _stale_opening}
    ),
)


def _lost_at_boundary(hidden: F32, is_last: bool) -> F32:
    return hidden[-1].copy() if is_last else np.zeros_like(hidden[-1])


BATCH_BOUNDARY_ROW = Fault(
    id="C7-batch-boundary-row",
    title="The hidden row does not cross the prompt's batches",
    mechanism="The first token of each later batch of the prompt is paired with a row that nobody filled, here zeros.",
    bug_type="MISSING_STEP",
    replaces=("steps.prompt_pending",),
    predicted=Signature("", "a little lower", drift="only with prompts longer than a batch"),
    seen=(
        ("ik_llama.cpp #1894", "https://github.com/ikawrakow/ik_llama.cpp/pull/1894"),
        ("llama.cpp #22673", "https://github.com/ggml-org/llama.cpp/pull/22673"),
    ),
    effect="69 to 78 % instead of 87 %",
    needs=("mtp", "batches"),
    where=("own cells",),
    apply_recipe=steps(lambda table: {"prompt_pending": _lost_at_boundary}),
)


def _renormed(model: Model) -> Model:
    if not model.heads:
        raise MtprefError("fault: the model has no MTP head with a norm of its own; use a file with a head")
    weight, eps, ops = model.heads[0].weights.shared_head_norm, model.config.rms_eps, model.recipe.head_ops
    before = model.recipe.steps.chain_hidden

    def chain_hidden(rows: Hidden, asked: MtpContract) -> F32:
        return np.asarray(ops.mtp_norm(ops, before(rows, asked), weight, eps))

    return replace(model, recipe=model.recipe.with_steps(chain_hidden=chain_hidden))


CHAIN_RENORMED = Fault(
    id="C8-chain-renormed",
    title="The chain's row is normed twice",
    mechanism="shared_head_norm is applied to a row that has it, before the next step's hnorm.",
    bug_type="DOUBLE_STEP",
    replaces=("steps.chain_hidden",),
    predicted=Signature("", "a1 the same, a2 and later lower"),
    seen=(("imp #175", "https://github.com/kekzl/imp/pull/175"),),
    effect="k0 22.4 %, k1 1.6 %, with other faults beside it",
    where=("normed rows", "own rows"),
    apply_model=_renormed,
)

# --------------------------------------------------------------------------------------------------- several heads

FIRST_HEAD_ALONE = Fault(
    id="C9-first-head-alone",
    title="The first of several heads drafts every token",
    mechanism="The number of the draft step does not reach the model: head 0 runs in each, over its own cells and "
    "rows, and the heads after it never.",
    bug_type="WRONG_RULE",
    replaces=("contract.heads",),
    predicted=Signature("", "a1 the same, a2 and later lower"),
    seen=(
        ("vLLM #52688", "https://github.com/vllm-project/vllm/issues/52688"),
        ("vLLM #31204", "https://github.com/vllm-project/vllm/issues/31204"),
    ),
    where=("several heads",),
    apply_recipe=contract(heads="first"),
)

FIRST_ROW_HANDED_ON = Fault(
    id="C10-first-row-handed-on",
    title="A head of a chain hands on the row of the draft's first token",
    mechanism="A step runs over the whole draft so far and asks for the output of the last row alone, but the hidden "
    "row is read at index 0. Right in the first step, which has one row.",
    bug_type="WRONG_RULE",
    replaces=("contract.chain_row",),
    predicted=Signature("", "a1 and a2 the same, a3 and later lower"),
    seen=(("llama.cpp #24340", "https://github.com/ggml-org/llama.cpp/pull/24340"),),
    effect="step35 was repaired there; hy_v3 with three heads has it (architectures.md)",
    where=("three heads",),
    apply_recipe=contract(chain_row="first"),
)


def _unshifted(rows: F32, before: F32 | None, *rest: Any) -> F32:
    return rows if before is None else before


CAUGHT_UP_WITH_OWN_ROWS = Fault(
    id="C11-caught-up-with-heads-rows",
    title="Heads after the first catch up with the rows of the head before them",
    mechanism="In the prompt and in the catch-up pass the first head's output becomes the second one's input, at the "
    "same positions; each head should be given the trunk's rows.",
    bug_type="WRONG_RULE",
    replaces=("steps.catch_up_rows",),
    predicted=Signature("mtp_h_nextn", "a1 the same, a2 and later lower"),
    seen=(("sglang-jax #1256", "https://github.com/sgl-project/sglang-jax/pull/1256"),),
    effect="of the tokens whose predecessors were accepted 77 47 36 % instead of 75 73 73 %",
    where=("several heads",),
    apply_recipe=steps(lambda table: {"catch_up_rows": _unshifted}),
)


def _behind_the_last(head: HeadState, first_pos: int) -> None:
    if head.n_cells == 0:
        head.start = first_pos


NEWEST_TOKEN_ALONE = Fault(
    id="C12-newest-token-alone",
    title="A step of a chain runs over the newest token alone",
    mechanism="As with a single head, whose cells of the draft are there already. Another head has none: it sees the "
    "text and its own token, and nothing of the draft between them.",
    bug_type="MISSING_STEP",
    replaces=("steps.chain_input", "steps.place_mtp"),
    predicted=Signature("", "a1 the same, a2 and later lower"),
    where=("several heads",),
    apply_recipe=steps(
        lambda table: {"chain_input": lambda ids, hidden, token, row, chained: ([token], row),
                       "place_mtp": _behind_the_last}
    ),
)  # fmt: skip

BEYOND_THE_LAST_HEAD = Fault(
    id="C13-beyond-the-last-head",
    title="The last head of a chain drafts on",
    mechanism="Drafts may be longer than there are heads: the last one runs again, for positions that it was not made "
    "for.",
    bug_type="WRONG_RULE",
    replaces=("contract.chain_end",),
    predicted=Signature("", "the same up to the number of heads, far lower after it"),
    needs=("mtp", "more drafts than heads"),
    where=("several heads",),
    apply_recipe=contract(chain_end="reuse"),
)
