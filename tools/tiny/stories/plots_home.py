"""Plots at home: something is baked, something makes a noise in the night."""

from __future__ import annotations

from .scenes import ending, introduce, opening, walk
from .world import World

# What is baked: its name, what goes into it.
_BAKED = {
    "plum cake": ("plums", "butter", "eggs", "sugar", "flour"), "apple pie": ("apples", "butter", "cinnamon", "flour"),
    "honey bread": ("honey", "milk", "yeast", "flour"), "ginger biscuits": ("ginger", "butter", "treacle", "flour"),
    "carrot cake": ("carrots", "eggs", "nuts", "sugar"), "cherry tart": ("cherries", "cream", "eggs", "flour"),
    "pancakes": ("milk", "eggs", "flour", "lemons"), "cheese pie": ("cheese", "onions", "eggs", "flour"),
    "nut rolls": ("nuts", "yeast", "milk", "raisins"), "rice pudding": ("rice", "milk", "vanilla", "sugar"),
}  # fmt: skip

_WHY_NONE = {
    "eggs": "the hens have stopped laying", "milk": "the cat got into the milk", "sugar": "the ants have found the sugar",
    "butter": "the butter has melted in the sun", "flour": "a mouse has bitten a hole in the flour bag", "honey": "the bees have eaten it themselves",
}  # fmt: skip

# What a neighbour needs before there is anything to lend, and how it is done.
_FAVOURS = (
    ("The pump is stuck, and I have no water.", "{h} hung on the handle with all {h.his} weight until it gave way."),
    (
        "My cat has gone up the chimney and will not come down.",
        "{h} held a saucer of fish under the chimney, and down came the cat, black as coal.",
    ),
    ("I have lost my glasses and cannot read the label.", "{h} looked everywhere. They were on {o.his} forehead."),
    ("The hens are out, all of them.", "{h} ran round the yard <number> times and caught the last one under a bucket."),
    ("I cannot thread this needle.", "{h} had good eyes and threaded it at the first try."),
    ("There is a spider in the bath.", "{h} carried it out in a glass and wished it good luck."),
    ("The wood is too wet to burn.", "{h} fetched dry sticks from the loft, and soon the stove hummed."),
    ("Somebody must hold the ladder.", "{h} held the ladder while {o} picked the last <fruit>."),
    ("My bell has stopped ringing.", "{h} found a spider's web in it and took it out with a feather."),
    (
        "This lid has been stuck since {month}.",
        "{h} held the jar in hot water, and the lid turned as if it had never been shut.",
    ),
    ("I must post this letter before the van leaves.", "{h} ran and reached the post office with one minute to spare."),
)


def baking(w: World) -> None:
    w.set_scene()
    hero, elder, owner = w.child("h"), w.family("e"), w.grown_up("o")
    cake = w.pick(list(_BAKED))
    missing = w.pick(_BAKED[cake])
    opening(w, hero)
    w.tell(
        "It was {e}'s birthday, and {h} wanted to make {c}.",
        "{h} and {e} were going to bake {c} for the [fair|feast|school].",
        '"Today we make {c}," said {e} and tied on an apron.',
        c=cake,
    )
    parts = [x for x in _BAKED[cake] if x != missing]
    w.tell(
        "On the table stood {a} and {b}, but there was no {m}.",
        "{e} put out {a} and {b}. Then {e.he} opened the cupboard and stopped.",
        "They had {a}. They had {b}. They had no {m}.",
        a=parts[0],
        b=parts[1],
        m=missing,
    )
    reason = _WHY_NONE.get(missing, "nobody has been to the shop")
    w.say(
        elder,
        "No {m}! {r}.",
        "Well, that is the end of the {c}: {r}.",
        "We have no {m}, because {r}.",
        m=missing,
        c=cake,
        r=reason,
    )
    w.say(hero, "I can ask {o} next door.", "{o} is sure to have some.", "Wait here. I shall borrow some.")
    walk(w, hero, w.pick(("across the yard", "next door", "down the lane", "over to the other side of the street")))
    favour, done = w.pick(_FAVOURS)
    w.say(
        hero, "Could you lend us some {m}?", "Good {time}! Have you any {m}?", "May we borrow {m}, please?", m=missing
    )
    w.say(
        owner,
        "Gladly, but first help me. " + favour,
        "{m_cap}? Of course. But look here. " + favour,
        favour + " Help me, and you shall have it.",
        m_cap=missing.capitalize(),
    )
    w.tell(done)
    w.tell(
        "In return {h} got a whole bag of {m}.",
        "{o} [laughed|was delighted] and filled {h.his} basket with {m}.",
        m=missing,
    )
    w.paragraph()
    w.tell(
        "At home they stirred and kneaded, and {h} licked the spoon.",
        "{e} mixed, {h} stirred, and flour flew everywhere."
        if missing != "rice" and "flour" in _BAKED[cake]
        else "{e} mixed, {h} stirred, and the stove grew hot.",
    )
    burnt = hero.trait in ("dreamy", "hasty", "proud") and w.chance(0.8)
    if burnt:
        w.tell(
            "While it was in the oven, {h} [thought of <hobby>|looked out of the window], and the time went by.",
            "{h} was to watch the clock, but <sound>, and {h.he} ran to see.",
        )
        w.tell(
            "Then there was a smell, and the smell was black.",
            "When {h} came back, smoke was coming from the oven door.",
        )
        w.say(hero, "I forgot it!", "It is burnt, and it is my fault.", "It is as hard as a roof tile.", mood="sad")
        w.say(
            elder,
            "Cut off the black, and below it is gold.",
            "We have {m} for another. Begin again.",
            "The ducks will not complain, and we make a second one.",
            m=missing,
        )
        w.tell(
            "The second one was [perfect|brown and light], because {h} did not move from the oven."
            if w.chance(0.5)
            else "They scraped and laughed, and what was left tasted [good|wonderful] with cream."
        )
    else:
        w.tell("{h} sat in front of the oven and counted the minutes.", "Nobody left the kitchen before it was done.")
        w.tell(
            "It came out [golden|brown] and smelled of <smell> and happiness.",
            "When the door was opened, even the <animal> next door lifted its nose.",
        )
    w.tell("The first piece went to {o}.", "{h} carried the biggest piece over to {o}, still warm.")
    w.say(
        owner,
        "For this I would lend you the whole cupboard.",
        "Now I see what the {m} was for.",
        "It melts in the mouth.",
        m=missing,
    )
    ending(
        w,
        hero,
        "{h} never forgets: who asks kindly gets an answer."
        if not burnt
        else "A clock is a good thing to look at, {h} says now.",
    )


# What makes a noise in the night, what is heard, what it turns out to be.
_NOISES = (
    (
        "tapping",
        "Tap, tap, tap, it went at the window.",
        "a branch of the <tree>, which the wind knocked against the glass",
        "cut it off in the morning",
    ),
    (
        "scratching",
        "Something scratched at the door.",
        "a wet [grey|black|ginger|white|striped] cat that wanted to come in",
        "dried it with a towel",
    ),
    (
        "rolling",
        "Something rolled across the attic, stopped, and rolled again.",
        "an apple, and behind the apple a mouse",
        "left it a piece of cheese",
    ),
    (
        "groaning",
        "A long groan came up from the cellar.",
        "an old barrel, for the cider in it was working",
        "loosened the bung",
    ),
    (
        "clanking",
        "Clank, went something in the yard. Clank, clank.",
        "a bucket that swung on the well",
        "hung it on its hook",
    ),
    ("hooting", "Over the roof somebody called in a hollow voice.", "an owl on the chimney", "wished it good hunting"),
    (
        "flapping",
        "There was a flapping like great wings behind the house.",
        "a sheet that had been left on the line",
        "took it in, wet as a fish",
    ),
    (
        "sneezing",
        "From the cupboard came a sneeze.",
        "the neighbour's dog, with its nose in the pepper",
        "gave it a bowl of water",
    ),
    (
        "banging",
        "Bang! went something upstairs. Then it was quiet, and then bang again.",
        "a shutter with a broken hook",
        "tied it with a shoelace",
    ),
    (
        "humming",
        "A deep hum filled the chimney.",
        "the wind, which blew over it as over a bottle",
        "put a brick on top next day",
    ),
)


def night_noise(w: World) -> None:
    w.set_scene(("stormy", "windy", "rainy"), ("night",))
    hero, friend, elder = w.child("h"), w.child("f"), w.family("e")
    opening_line = w.pick(
        (
            "{h} and {f} were spending the night at {e}'s house in {village}.",
            "{h} could not sleep. In the other bed lay {f}, and below them {e} was snoring.",
            "The house of {e} in {village} was [old|tall|full of corners], and at night it talked.",
        )
    )
    w.tell(opening_line)
    introduce(w, "h")
    w.tell(
        "Outside the rain was coming down in sheets." if w.wet else "Outside the wind was pulling at the roof.",
        "The lamp had gone out[, for the storm had brought down the wires|].",
        "It was past midnight, and the candle was <number> minutes from its end.",
    )
    kind, heard, truth, deed = w.pick(_NOISES)
    w.tell(heard)
    w.say(friend, "Did you hear that?", "What was that?", "There is somebody there!", mood="soft")
    brave = hero.trait in ("bold", "curious", "stubborn", "clever", "proud")
    if brave:
        w.say(
            hero, "I shall go and look.", "Every noise has a reason. Come.", "Ghosts do not make a {k} noise.", k=kind
        )
    else:
        w.say(
            hero,
            "I am not going out there.",
            "Perhaps it will stop by itself.",
            "Pull the blanket over your head.",
            mood="soft",
        )
    w.say(
        friend,
        "It may be a [ghost|robber|wolf|witch].",
        "Take the poker with you.",
        "I am coming too. I do not want to stay here alone.",
    )
    w.tell(
        "They crept [down the stairs|along the passage], {h} in front, with [a candle|a broom|a lantern].",
        "Hand in hand they went, and every board creaked.",
        "On bare feet they went to see, and the floor was as cold as a frog.",
    )
    w.tell(
        "There it was again.", "The {k} came again, and nearer.", "Then it was quite still, which was worse.", k=kind
    )
    if w.chance(0.5):
        w.tell(
            "A shadow rose on the wall, with horns. It was only {f}'s hair.",
            "{f} trod on something soft. It was a <clothes>.",
        )
    w.tell("{h} pulled the door open.", "{h} counted to three and lifted the light.", "With one jump {h} was there.")
    w.tell("It was {t}.", "There was no ghost. There was {t}.", "And what did they see? {t}.", t=w.expand(truth))
    w.tell("They laughed until {e} woke up.", "{f} laughed so loudly that {e} came with the poker.")
    w.say(elder, "What are you doing out of bed?", "Is the house falling down?", "I thought there were robbers.")
    w.say(
        hero,
        "We have caught the ghost.",
        "We only wanted to know what it was.",
        "It was {t}.",
        t=w.expand(truth.split(",")[0]),
    )
    w.tell("{h} {d}, and {e} made cocoa.", "Then they {d}, and all three had <snack> <inside>.", d=deed)
    w.say(
        elder,
        "What has a name is only half as frightening.",
        "In the dark every mouse is a bear.",
        "Now you know this house a little better.",
        mood="soft",
    )
    ending(w, hero, "Since that night {h} goes to look when something makes a noise in the dark.")


PLOTS = (
    baking,
    night_noise,
)
