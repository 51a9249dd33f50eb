"""Family K: the head's KV cache."""

from dataclasses import replace

from mtpref.faults.fault import Fault
from mtpref.recipe import Recipe


def _unprimed(recipe: Recipe) -> Recipe:
    return replace(recipe, contract=replace(recipe.contract, prime="none"))


PROMPT_NOT_PRIMED = Fault(
    id="K0-prompt-not-primed",
    family="K",
    title="The head's KV does not hold the prompt",
    mechanism="Only tokens of verified batches go through the head; its attention never sees the prompt.",
    links=("https://github.com/jundot/omlx/pull/2402", "https://github.com/ohdearquant/lattice/pull/1364"),
    apply_recipe=_unprimed,
)
