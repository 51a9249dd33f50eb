"""Family V: verification, sampling and emission. All but V20, V21 and V7 change the text, or what it is drawn from."""

from collections.abc import Sequence

import numpy as np

from mtpref import spec
from mtpref.faults.fault import Fault, Signature, steps
from mtpref.spec import Distribution
from mtpref.spec.policy import FixedPolicy
from mtpref.spec.steps import StepEntries, Steps

Ids = Sequence[int]


def _all_up_to_eog(draft: Ids, target: Ids, eog_ids: frozenset[int]) -> int:
    return next((i + 1 for i, id in enumerate(draft) if id in eog_ids), len(draft))


LAX_ACCEPT = Fault(
    id="V1-lax-accept",
    title="Drafted tokens are accepted though the target would not give them",
    mechanism="The test is too lax, here as lax as can be: every drafted token is accepted. The text is the head's.",
    bug_type="WRONG_RULE",
    replaces=("steps.accept_greedy",),
    predicted=Signature("", "flat and near 100 %, where a healthy one decays", text=False, distribution=False),
    seen=(("fastllm #728", "https://github.com/ztxz16/fastllm/issues/728"),),
    effect="99.3 / 97.4 / 94.4 % instead of 72 / 53 / 40 %; endless loops at 94k tokens",
    apply_recipe=steps(lambda table: {"accept_greedy": _all_up_to_eog}),
)


def _matched(table: Steps) -> StepEntries:
    def residual(id_draft: int, target: Distribution, draft: Distribution) -> Distribution:
        keep = target.ids != id_draft
        p = target.p[keep]
        return Distribution(target.ids[keep], p / np.cumsum(p)[-1]) if p.any() else target

    return {"accept_residual": lambda p_target, p_draft, u: u < p_target, "residual": residual}


SAMPLED_DRAFT_MATCHED = Fault(
    id="V3-sampled-draft-matched",
    title="A sampled draft must match the target's own draw",
    mechanism="The draft is drawn from the head, and accepted with the target's probability as if it had been the only "
    "choice. Lossless, but sum(p q) is less than sum(min(p, q)).",
    bug_type="WRONG_RULE",
    replaces=("steps.accept_residual", "steps.residual"),
    predicted=Signature("", "lower, at a temperature alone"),
    seen=(("vLLM #40651", "https://github.com/vllm-project/vllm/pull/40651"),),
    needs=("mtp", "residual"),
    apply_recipe=steps(_matched),
)

ARGMAX_VERIFY = Fault(
    id="V4-argmax-verify",
    title="At a temperature the draft is compared with the target's best token",
    mechanism="Rows that have a drafted token give the target's argmax instead of its draw: text turns greedy.",
    bug_type="WRONG_RULE",
    replaces=("steps.match_token",),
    predicted=Signature("", "higher", distribution=False),
    seen=(("mlxcel #902", "https://github.com/lablup/mlxcel/issues/902"),),
    needs=("mtp", "sampling"),
    apply_recipe=steps(lambda table: {"match_token": lambda id_draft, target, u: target.best()}),
)

NO_RESIDUAL = Fault(
    id="V5-no-residual",
    title="A rejected token is drawn again from the target itself",
    mechanism="min(1, p / q) accepts, but the replacement comes from p, not from max(p - q, 0): tokens that the draft "
    "is fond of come too often.",
    bug_type="MISSING_STEP",
    replaces=("steps.residual",),
    predicted=Signature("", "the same", distribution=False),
    seen=(("mlx-lm #1085", "https://github.com/ml-explore/mlx-lm/pull/1085"),),
    needs=("mtp", "residual"),
    apply_recipe=steps(lambda table: {"residual": lambda id_draft, target, draft: target}),
)

BONUS_ARGMAX = Fault(
    id="V6-bonus-argmax",
    title="The bonus token is the target's best, not its draw",
    mechanism="The row after a whole draft bypasses the sampler.",
    bug_type="WRONG_RULE",
    replaces=("steps.bonus_token",),
    predicted=Signature("", "the same", distribution=False),
    seen=(("kronk #788", "https://github.com/ardanlabs/kronk/pull/788"),),
    needs=("mtp", "sampling"),
    apply_recipe=steps(lambda table: {"bonus_token": lambda target, u: target.best()}),
)


def _without_bonus(table: Steps) -> StepEntries:
    return {
        "accept_greedy": lambda draft, target, eog: min(table.accept_greedy(draft, target, eog), max(len(draft) - 1, 0))
    }


BONUS_DROPPED = Fault(
    id="V7-bonus-dropped",
    title="A whole draft gives no bonus token",
    mechanism="After a full acceptance the round ends with the last drafted token, which counts as the target's own: "
    "a round of n drafts never gives n + 1 tokens.",
    bug_type="MISSING_STEP",
    replaces=("steps.accept_greedy",),
    predicted=Signature("", "the last position is never accepted; AL at most n"),
    seen=(("lattice #509", "https://github.com/ohdearquant/lattice/pull/509"),),
    apply_recipe=steps(_without_bonus),
)

ZERO_PROBABILITY_ACCEPTED = Fault(
    id="V9-zero-probability-accepted",
    title="A token of probability 0 can be accepted",
    mechanism="The comparison u q <= p is not strict: at u = 0 it accepts what the target would never give.",
    bug_type="WRONG_RULE",
    replaces=("steps.accept_residual",),
    predicted=Signature("", "the same; one draw in 2**53 differs"),
    seen=(("SGLang #35771", "https://github.com/sgl-project/sglang/issues/35771"),),
    needs=("mtp", "residual"),
    apply_recipe=steps(lambda table: {"accept_residual": lambda p_target, p_draft, u: u * p_draft <= p_target}),
)

FILTER_ORDER = Fault(
    id="V10-filter-order",
    title="Verification applies the filters in another order",
    mechanism="The target's rows are filtered in the reverse order: temperature first, top-k last. Other tokens are "
    "left over than in plain decoding.",
    bug_type="WRONG_RULE",
    replaces=("steps.target_distribution",),
    predicted=Signature("", "nearly the same", distribution=False),
    seen=(("fastllm #738", "https://github.com/ztxz16/fastllm/issues/738"),),
    effect="total variation 0.042 to 0.046, four times the noise",
    needs=("mtp", "sampling"),
    apply_recipe=steps(
        lambda table: {"target_distribution": lambda row, chain: table.target_distribution(row, chain[::-1])}
    ),
)

EOG_PASSED = Fault(
    id="V14-eog-passed",
    title="The text goes on after an end of generation inside a draft",
    mechanism="Only the last token of a round is looked at: an accepted end-of-generation token in the middle of a "
    "draft ends nothing.",
    bug_type="MISSING_STEP",
    replaces=("steps.accept_greedy", "steps.ends_text"),
    predicted=Signature("", "the same"),
    seen=(("transformers #47912", "https://github.com/huggingface/transformers/issues/47912"),),
    needs=("mtp", "eog"),
    apply_recipe=steps(
        lambda table: {
            "accept_greedy": lambda draft, target, eog: table.accept_greedy(draft, target, frozenset()),
            "ends_text": lambda is_eog, is_last: is_eog and is_last,
        }
    ),
)


def _one_lost(draft: Ids, n_accepted: int, target: Ids) -> list[int]:
    is_full = 0 < n_accepted == len(draft)
    return [*draft[: n_accepted - is_full], target[n_accepted]]


TOKEN_LOST = Fault(
    id="V15-token-lost",
    title="The last token of a whole draft is not printed",
    mechanism="It is accepted and it is in the state, but the text's buffer begins one token too late.",
    bug_type="OFF_BY_ONE",
    replaces=("steps.emitted",),
    predicted=Signature("", "the same", text=False, distribution=False),
    seen=(("tt-metal #56048", "https://github.com/tenstorrent/tt-metal/pull/56048"),),
    effect="'24, 256, 27': two numbers lost in each block of 64 tokens",
    apply_recipe=steps(lambda table: {"emitted": _one_lost}),
)

SUBSTITUTE_CONTINUE = Fault(
    id="V19-substitute-continue",
    title="A rejected token is replaced and the draft goes on",
    mechanism="Every row gives the target's own token, and later rows count though they followed the drafted one. The "
    "state holds the draft, the text something else.",
    bug_type="WRONG_RULE",
    replaces=("steps.accept_greedy", "steps.emitted"),
    predicted=Signature("", "100 %", text=False, distribution=False),
    seen=(("fastllm #728", "https://github.com/ztxz16/fastllm/issues/728"),),
    effect="89 / 77 / 66 % instead of 72 / 53 / 40 %",
    apply_recipe=steps(lambda table: {
        "accept_greedy": _all_up_to_eog, "emitted": lambda draft, n, target: list(target[: n + 1]),
    }),
)  # fmt: skip


def _padded(draft: Ids, target: Ids, eog_ids: frozenset[int]) -> int:
    n = spec.accept_greedy(draft, target, eog_ids)
    return next((i for i in range(n) if draft[i] == 0), n)


PADDING_COMPARED = Fault(
    id="V20-padding-compared",
    title="Id 0 in a draft is taken for padding",
    mechanism="Drafts are padded with id 0, so a drafted token that is id 0 ends what is compared.",
    bug_type="WRONG_RULE",
    replaces=("steps.accept_greedy",),
    predicted=Signature("", "the same, but for id 0"),
    seen=(("vLLM #29274", "https://github.com/vllm-project/vllm/pull/29274"),),
    apply_recipe=steps(lambda table: {"accept_greedy": _padded}),
)


def _next_row(table: Steps) -> StepEntries:
    return {"accept_greedy": lambda draft, target, eog: table.accept_greedy(draft, [*target[1:], -1], eog)}


WRONG_VERIFY_ROW = Fault(
    id="V21-wrong-verify-row",
    title="Drafted tokens are compared with the row after theirs",
    mechanism="The verified batch's rows are read one too late: each drafted token is held against the target's choice "
    "after it.",
    bug_type="OFF_BY_ONE",
    replaces=("steps.accept_greedy",),
    predicted=Signature("", "near 0, higher where tokens repeat"),
    seen=(("TensorRT-LLM #12588", "https://github.com/NVIDIA/TensorRT-LLM/pull/12588"),),
    apply_recipe=steps(_next_row),
)


def _after_the_draw(table: Steps) -> StepEntries:
    def takes(cfg: FixedPolicy, p: int, n_drawn: int | None = None) -> bool:
        return n_drawn is not None or table.takes(cfg, p)

    return {"takes": takes, "keeps_drawn": lambda cfg, p: p >= cfg.p_min}


GATE_AFTER_DRAW = Fault(
    id="V22-gate-after-draw",
    title="p_min judges the token that was drawn",
    mechanism="The gate looks at the drawn token's probability instead of the distribution before the draw: unlikely "
    "tokens are drawn and thrown away, so the text has too few of them.",
    bug_type="WRONG_RULE",
    replaces=("steps.takes", "steps.keeps_drawn"),
    predicted=Signature("", "higher", distribution=False),
    seen=(("mlx-node #115", "https://github.com/mlx-node/mlx-node/pull/115"),),
    needs=("mtp", "residual", "p_min"),
    apply_recipe=steps(_after_the_draw),
)
