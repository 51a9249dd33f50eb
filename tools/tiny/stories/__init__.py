"""A story grammar: short scenes and dialogues told by plots over a small simulated world.

``story(seed)`` is a text of 150 to 350 words. The number gives the text, on any machine and version of Python
(``random.Random.random`` never changes). What a story is about, its combination, is its plot, the two names that come
first, and the weather; one combination in ``HELD_OUT_SHARE`` is held out, and so are the seeds from
``HELD_OUT_SEED`` on: held-out text has neither seed nor combination in common with training.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from . import (
    plots_home,
    plots_people,
    plots_roads,
    plots_school,
    plots_search,
    plots_season,
    plots_village,
    plots_wind,
)
from .world import World

_ROOMS = (
    plots_wind,
    plots_season,
    plots_home,
    plots_village,
    plots_people,
    plots_school,
    plots_roads,
    plots_search,
)
PLOTS = tuple(plot for room in _ROOMS for plot in room.PLOTS)
HELD_OUT_SHARE = 25
HELD_OUT_SEED = 1 << 40
MIN_WORDS, MAX_WORDS = 150, 350


@dataclass(frozen=True)
class Story:
    """A text and what it is about: (plot, hero, second person, weather)."""

    text: str
    combination: tuple[str, str, str, str]

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256("\0".join(self.combination).encode()).digest()
        return int.from_bytes(digest[:4], "big") % HELD_OUT_SHARE == 0


def story(seed: int) -> Story:
    """The story of a number."""
    rng = random.Random(f"story {seed}")
    plot = PLOTS[int(rng.random() * len(PLOTS))]
    for _ in range(20):
        world = World(rng)
        plot(world)
        if MIN_WORDS <= world.n_words() <= MAX_WORDS:
            break
    first, second = (str(person) for person in world.people[:2])
    return Story(world.text(), (plot.__name__, first, second, world.weather))


def stories(first_seed: int, held_out: bool) -> Iterator[Story]:
    """Stories of the seeds from ``first_seed`` on whose combination is (not) held out."""
    seed = first_seed
    while True:
        made = story(seed)
        seed += 1
        if made.held_out == held_out:
            yield made
