"""Family C: the hand-over of hidden rows."""

from mtpref.faults.fault import Fault

LAST_VERIFY_ROW = Fault(
    id="C3-last-verify-row",
    family="C",
    title="The next draft starts from the last row of the verified batch",
    mechanism="After a rejection the pending hidden row is that of the last drafted token, which was rejected, instead "
    "of the row of the last accepted one. Right while everything is accepted, and where rejected tokens are never run.",
    links=("https://github.com/charlie12345/ROCmFPX/pull/15",),
    apply_recipe=lambda recipe: recipe.with_steps(next_pending=lambda hidden, n_accepted: hidden[-1].copy()),
)
