"""Family G: the graph of the MTP block."""

from mtpref.faults.fault import Fault
from mtpref.recipe import Recipe


def _swapped(recipe: Recipe) -> Recipe:
    concat = recipe.ops.mtp_concat
    return recipe.with_ops(mtp_concat=lambda first, second: concat(second, first))


CONCAT_SWAPPED = Fault(
    id="G1-concat-swapped",
    family="G",
    title="The two halves of eh_proj's input are swapped",
    mechanism="eh_proj is given [hidden ; embedding]; its columns were trained for [embedding ; hidden].",
    links=("https://github.com/ml-explore/mlx-lm/pull/1469",),
    apply_recipe=_swapped,
)
