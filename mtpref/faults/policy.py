"""Family P: policy. These change acceptance and speed, never the text (P4 may write more of it than was asked)."""

from dataclasses import replace

from mtpref.faults.fault import Fault, Signature, steps
from mtpref.spec.policy import FixedPolicy, PolicyState
from mtpref.spec.steps import StepEntries, Steps


def _never_over(table: Steps) -> StepEntries:
    def after_round(cfg: FixedPolicy, state: PolicyState, n_drafted: int, n_accepted: int) -> PolicyState:
        after = table.after_round(cfg, state, n_drafted, n_accepted)
        return after if n_drafted else replace(after, n_cooldown=state.n_cooldown)

    return {"after_round": after_round}


COOLDOWN_ENDLESS = Fault(
    id="P1-cooldown-endless",
    title="A cooldown never ends",
    mechanism="Silent rounds are not counted: after the first cooldown nothing is drafted any more.",
    bug_type="MISSING_STEP",
    replaces=("steps.after_round",),
    predicted=Signature("", "that of the first rounds; then no drafts", drift="drafts end"),
    needs=("mtp", "cooldown"),
    apply_recipe=steps(_never_over),
)


def _acceptance_ignored(table: Steps) -> StepEntries:
    return {"after_round": lambda cfg, state, n_drafted, n_accepted: table.after_round(cfg, state, n_drafted, 0)}


COOLDOWN_AFTER_ACCEPTANCE = Fault(
    id="P2-cooldown-after-acceptance",
    title="Accepted drafts count as misses",
    mechanism="The count of rounds without an acceptance goes up with every round that drafts, and a cooldown follows "
    "however well the drafts do.",
    bug_type="WRONG_RULE",
    replaces=("steps.after_round",),
    predicted=Signature("", "about the same; far fewer drafts"),
    needs=("mtp", "cooldown"),
    apply_recipe=steps(_acceptance_ignored),
)

N_MIN_IGNORED = Fault(
    id="P3-n-min-ignored",
    title="Drafts shorter than n_min are proposed",
    mechanism="--spec-draft-n-min is read and not applied.",
    bug_type="MISSING_STEP",
    replaces=("steps.proposed",),
    predicted=Signature("", "more drafts, short ones"),
    needs=("mtp", "n_min"),
    apply_recipe=steps(lambda table: {"proposed": lambda cfg, n_drafted, limit: n_drafted}),
)


def _roomless(table: Steps) -> StepEntries:
    return {"draft_limit": lambda cfg, state, n_room: table.draft_limit(cfg, state, cfg.n_max)}


DRAFT_PAST_BUDGET = Fault(
    id="P4-draft-past-budget",
    title="Drafts ignore what is left of the budget",
    mechanism="The last rounds draft, and may write, more tokens than were asked for or than the context holds.",
    bug_type="MISSING_STEP",
    replaces=("steps.draft_limit",),
    predicted=Signature("", "about the same; the text may be longer than asked"),
    apply_recipe=steps(_roomless),
)
