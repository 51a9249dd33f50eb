"""The small world of a story: people, things, places, season, weather and time, and what follows from them.

Plots ask the world (is the ground wet? can this blow away? does it float? is it dark?) and tell what it answers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from .teller import Teller
from .words import BOYS, GIRLS, JOBS, LISTS, SURNAMES, VILLAGES

SEASONS = {
    "spring": ("March", "April", "May"),
    "summer": ("June", "July", "August"),
    "autumn": ("September", "October", "November"),
    "winter": ("December", "January", "February"),
}
# Which weather a season has.
WEATHERS = {
    "spring": ("windy", "rainy", "sunny", "foggy", "stormy"),
    "summer": ("sunny", "hot", "stormy", "windy", "rainy"),
    "autumn": ("windy", "rainy", "foggy", "stormy", "sunny"),
    "winter": ("snowy", "frosty", "foggy", "windy", "stormy"),
}
TIMES = ("morning", "afternoon", "evening")
TRAITS = (
    "careful", "bold", "shy", "curious", "patient", "cheerful", "stubborn", "dreamy", "clever", "kind", "proud", "hasty",
)  # fmt: skip


@dataclass
class Person:
    """Somebody with a name and a trait; grown-ups have a job."""

    name: str
    she: bool
    trait: str
    job: str = ""
    grown: bool = False

    def __str__(self) -> str:
        return self.name

    he = property(lambda self: "she" if self.she else "he")
    him = property(lambda self: "her" if self.she else "him")
    his = property(lambda self: "her" if self.she else "his")
    He = property(lambda self: "She" if self.she else "He")
    His = property(lambda self: "Her" if self.she else "His")
    himself = property(lambda self: "herself" if self.she else "himself")
    child = property(lambda self: "girl" if self.she else "boy")
    man = property(lambda self: "woman" if self.she else "man")
    brother = property(lambda self: "sister" if self.she else "brother")
    sir = property(lambda self: "madam" if self.she else "sir")


@dataclass
class Thing:
    """A thing: noun with a colour or stuff before it, and what it is like.

    tags: light (wind takes it), floats, fragile, flat, wearable, living.
    """

    noun: str
    adj: str = ""
    tags: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.noun

    full = property(lambda self: f"{self.adj} {self.noun}".strip())

    def is_(self, tag: str) -> bool:
        return tag in self.tags


@dataclass
class World(Teller):
    """Teller that knows where and when it is."""

    rng: random.Random
    season: str = "summer"
    weather: str = "sunny"
    time: str = "morning"
    village: str = ""
    taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        Teller.__init__(self, self.rng)

    # What follows from season, weather and time ----------------------------------------------------------------

    @property
    def wet(self) -> bool:
        return self.weather in ("rainy", "stormy")

    @property
    def icy(self) -> bool:
        return self.weather in ("frosty", "snowy")

    @property
    def dark(self) -> bool:
        return self.time == "night" or (self.time == "evening" and self.season in ("autumn", "winter"))

    @property
    def ground(self) -> str:
        """What keeps a print, or does not."""
        if self.weather == "snowy":
            return "snow"
        if self.wet:
            return "mud"
        return "frost" if self.weather == "frosty" else "dust" if self.weather == "hot" else "grass"

    # Drawing -----------------------------------------------------------------------------------------------------

    def set_scene(self, weathers: tuple[str, ...] = (), times: tuple[str, ...] = TIMES) -> None:
        """Season, weather and time that agree, the weather one of ``weathers`` where given."""
        pairs = [(s, w) for s in SEASONS for w in WEATHERS[s] if not weathers or w in weathers]
        self.season, self.weather = self.pick(pairs)
        self.time = self.pick(times)
        self.village = self.pick(VILLAGES)
        self.cast.update(
            season=self.season,
            time=self.time,
            village=self.village,
            month=self.pick(SEASONS[self.season]),
            day=self.pick(LISTS["day"]),
        )

    def _name(self, names: tuple[str, ...]) -> str:
        for _ in range(20):
            name = self.pick(names)
            if name[:2] not in self.taken:
                break
        self.taken.add(name[:2])
        return name

    def child(self, slot: str) -> Person:
        """A child whose name starts unlike every other's."""
        she = self.chance(0.5)
        person = Person(self._name(GIRLS if she else BOYS), she, self.pick(TRAITS))
        self.cast[slot] = person
        self.people.append(person)
        return person

    def grown_up(self, slot: str, jobs: tuple[str, ...] = JOBS) -> Person:
        """A grown-up of the village, with a job."""
        she = self.chance(0.5)
        title = "Mrs" if she else "Mr"
        person = Person(f"{title} {self._name(SURNAMES)}", she, self.pick(TRAITS), self.pick(jobs), True)
        self.cast[slot] = person
        self.people.append(person)
        return person

    def family(self, slot: str) -> Person:
        """Somebody older of the hero's own family."""
        she = self.chance(0.5)
        title = self.pick(("Grandma", "Aunt", "Grandmother") if she else ("Grandpa", "Uncle", "Grandfather"))
        person = Person(f"{title} {self._name(GIRLS if she else BOYS)}", she, self.pick(TRAITS), "", True)
        self.cast[slot] = person
        self.people.append(person)
        return person

    def thing(self, slot: str, rows: tuple[tuple[str, str, str], ...]) -> Thing:
        """One of ``rows``: nouns, adjectives, tags, each a list divided by commas or spaces."""
        nouns, adjectives, tags = self.pick(rows)
        noun = self.pick([x.strip() for x in nouns.split(",")])
        adj = self.pick([x.strip() for x in adjectives.split(",")])
        made = Thing(noun, adj, frozenset(tags.split()))
        self.cast[slot] = made
        return made
