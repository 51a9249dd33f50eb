"""What a fault is: a name, what goes wrong, who had it, and the one entry that it replaces."""

from collections.abc import Callable
from dataclasses import dataclass

from mtpref.recipe import Recipe
from mtpref.weights import Weights

FAMILIES = ("W", "G", "C", "K", "S")


@dataclass(frozen=True)
class Fault:
    """id         family letter, number and a few words; the name that people and files use
    mechanism     what goes wrong, in one or two sentences
    links         threads in which real engines had it
    apply_recipe, apply_weights   the replacement, as a function of what it replaces; one of them is None
    """

    id: str
    family: str
    title: str
    mechanism: str
    links: tuple[str, ...]
    apply_recipe: Callable[[Recipe], Recipe] | None = None
    apply_weights: Callable[[Weights], Weights] | None = None
