"""What a run may be told: how many tokens, who drafts, how drafts are verified and sampled.

Owns the edge between a caller's numbers and the rules: probabilities and costs are floats here, and integers in units
of 2**-32 from here on (spec/policy.py).
"""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from mtpref.base.settings import Bounds, OneOf, SettingError, check_fields
from mtpref.engine.decode.rollback import ALL_STRATEGIES
from mtpref.engine.decode.sampling import SamplingConfig
from mtpref.spec import P_ONE
from mtpref.spec.policy import DRAFT_COST, MAX_COST, ROW_COST, FixedAdaptive, FixedPolicy, Length, Rule, Streak

SPEC_TYPES = ("draft-mtp", "none")
Cost = Annotated[float, Bounds(0, MAX_COST, f"0 .. {MAX_COST} plain decode passes")]


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """How long drafts may be, and when there are none.

    n_max, n_min    longest and shortest draft (llama.cpp: --spec-draft-n-max, --spec-draft-n-min)
    p_min           a draft token below this probability, 0 .. 1, is not proposed and ends the draft
    cooldown        rounds of silence (--spec-cooldown), 0: never
    cooldown_after  after so many rounds in a row without an acceptance (--spec-cooldown-after)
    Errors          SettingError for a value out of range
    """

    n_max: Length = 3
    n_min: Length = 0
    p_min: Annotated[float, Bounds(0, 1)] = 0.0
    cooldown: Length = 0
    cooldown_after: Streak = 1

    def __post_init__(self) -> None:
        check_fields(self)
        self.fixed()

    def fixed(self) -> FixedPolicy:
        """The same in integers; p_min is rounded down to a multiple of 2**-32."""
        return FixedPolicy(**asdict(self) | {"p_min": int(self.p_min * P_ONE)})


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig:
    """The rule that makes drafts shorter than the policy allows (docs/adaptive.md).

    rule        off (every round may draft n_max tokens), heuristic or expected
    draft_cost  `expected`: what one step of the head costs, in passes of the trunk for one token
    row_cost    `expected`: what one more token costs in a verify pass, in the same units
    Errors      SettingError for a value out of range
    """

    rule: Rule = "off"
    draft_cost: Cost = DRAFT_COST / P_ONE
    row_cost: Cost = ROW_COST / P_ONE

    def __post_init__(self) -> None:
        check_fields(self)

    def fixed(self) -> FixedAdaptive:
        """The same in integers; a cost is rounded to the nearest multiple of 2**-32."""
        return FixedAdaptive(self.rule, round(self.draft_cost * P_ONE), round(self.row_cost * P_ONE))


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of one run.

    n_predict      tokens to generate at most; -1: until the end of generation or of the context
    spec_type      draft-mtp or none
    policy         draft length and cooldown
    rollback       snapshot, replay or two-phase; replay-with-correction: as llama.cpp does without recurrent snapshots
    n_draft_vocab  FastMTP: only the first so many rows of the head can be drafted (None: all)
    draft_ids      FastMTP: only these ids can be drafted (None: all)
    n_batch        prompt tokens per trunk pass
    sampling       temperature, filters, seed, the rule that accepts a draft
    stop           strings that end the text and are not part of it
    adaptive       a rule that makes drafts shorter than the policy allows (docs/adaptive.md)
    Errors         SettingError for a value that a field does not have
    """

    n_predict: Annotated[int, Bounds(-1, words="-1 (no limit) or more")] = 128
    spec_type: Annotated[str, OneOf(SPEC_TYPES)] = "draft-mtp"
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    rollback: Annotated[str, OneOf(ALL_STRATEGIES)] = "snapshot"
    n_draft_vocab: Annotated[int, Bounds(1)] | None = None
    n_batch: Annotated[int, Bounds(1)] = 512
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    stop: tuple[str, ...] = ()
    draft_ids: tuple[int, ...] | None = None
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        if "" in self.stop:
            raise SettingError("Options.stop", "the string is empty, expected at least one character")

    def to_json(self) -> dict[str, Any]:
        """As a trace records them: every number that a rule compares as the integer that it compares."""
        return asdict(self) | {"policy": asdict(self.policy.fixed()), "adaptive": asdict(self.adaptive.fixed())}
