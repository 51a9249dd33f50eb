"""Family S: recurrent state and roll back. These change the text."""

from collections.abc import Callable
from typing import Any

from mtpref.faults.fault import Fault
from mtpref.recipe import Recipe
from mtpref.state import ModelState

CONV = "cache_r"


def _keeping_window(step: Callable[..., None]) -> Callable[..., None]:
    """The step, with the conv windows left as they were before it."""

    def rolled_back(state: ModelState, *args: Any) -> None:
        windows = [layer.arrays.get(CONV) for layer in state.layers]
        step(state, *args)
        for layer, window in zip(state.layers, windows, strict=True):
            if window is not None:
                layer.arrays[CONV] = window

    return rolled_back


def _apply(recipe: Recipe) -> Recipe:
    steps = recipe.steps
    return recipe.with_steps(choose_plane=_keeping_window(steps.choose_plane), restore=_keeping_window(steps.restore))


CONV_WINDOW_KEPT = Fault(
    id="S3-conv-window-kept",
    family="S",
    title="The conv window is not rolled back",
    mechanism="After a rejection the recurrent matrices go back, but the convolution still sees the rows of the "
    "rejected tokens.",
    links=("https://github.com/ggml-org/llama.cpp/pull/28123",),
    apply_recipe=_apply,
)
