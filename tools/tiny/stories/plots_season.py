"""Plots of snow, fog and feathers: a figure of snow, a voice in the fog, a bird that could not fly."""

from __future__ import annotations

from .scenes import aside, ending, opening
from .world import Thing, World


def snow_figure(w: World) -> None:
    w.set_scene(("snowy",), ("morning", "afternoon"))
    hero, friend, elder = w.child("h"), w.child("f"), w.family("e")
    opening(w, hero)
    shape = w.pick(("snowman", "snow bear", "snow queen", "snow horse", "snow dragon", "snow giant", "snow cat"))
    w.tell(
        "{h} and {f} rolled [two|three] balls of snow and set one on the other. It was to be a {s}.",
        '"Let us build a {s}," said {f}, and they did, until their fingers hurt.',
        "By noon a {s} stood in the yard, taller than {f}."
        if w.time == "morning"
        else "Before dark a {s} stood in the yard, taller than {f}.",
        s=shape,
    )
    w.tell(
        "For a nose it got a carrot, for eyes two [coals|buttons|chestnuts], and somebody gave it a <clothes>.",
        "They gave it a <clothes>, a broom, and a mouth of [beans|pebbles|raisins].",
    )
    w.say(hero, "What shall we call it?", "It needs a name.")
    name = w.pick(
        (
            "Mister Flake",
            "Captain Cold",
            "Old Whitebeard",
            "Lady Frost",
            "Drift",
            "Button",
            "Snowball",
            "Grandfather Ice",
            "Crystal",
        )
    )
    w.say(friend, "I think {n}.", "{n}, because it looks like that.", "It looks like a {n} to me.", n=name)
    w.tell(
        "For <number> days {n} stood there and [greeted|watched] everybody who came by.",
        "Every {time} they said good {time} to {n}.",
        n=name,
    )
    aside(w)
    w.tell(
        "Then the wind turned south, the sun came out, and the roofs began to drip.",
        "But on <day> it grew warm, and water ran from the gutters.",
        "In the night it began to rain, and rain eats snow.",
    )
    w.tell(
        "{n} became thin, then small, and one morning there was only a puddle with a carrot in it.",
        "First the nose fell off, then the hat sank, and in the end there was a wet patch on the grass.",
        n=name,
    )
    w.say(
        hero, "{n} is gone.", "It is all my fault. I should have built a roof.", "Where did {n} go?", mood="sad", n=name
    )
    w.say(
        elder,
        "Snow is only water on a visit. Now it has gone down to the river.",
        "Gone? It went into the ground, and in spring you will see it again.",
        "Look at the puddle. Do you see a face? That is you, and you can build again.",
        mood="soft",
    )
    w.tell("The <animal> came and ate the carrot.", "{f} put the buttons into a tin, for next winter.")
    w.tell(
        "And in April, on that very spot, grew [a ring of|<number>] snowdrops.",
        "When the first flowers came up, they grew thickest where {n} had stood.",
        n=name,
    )
    w.say(friend, "So that is where {n} went!", "Good {time}, {n}.", n=name)
    ending(w, hero, "Since then {h} is not sad when things melt.")


def lost_in_fog(w: World) -> None:
    w.set_scene(("foggy",), ("evening", "afternoon", "morning"))
    hero, elder, stranger = (
        w.child("h"),
        w.family("e"),
        w.grown_up(
            "o", ("fisher", "shepherd", "tinker", "doctor", "postmaster", "violin maker", "ferry keeper", "painter")
        ),
    )
    opening(w, hero)
    w.tell(
        "{h} was sitting <inside> with {e}.",
        "{e} was [mending a <clothes>|peeling <vegetables>|reading aloud], and {h} sat beside {e.him}.",
    )
    w.tell(
        "Then they heard it: far away somebody was calling.",
        '"Hush," said {h}. Out in the fog there was a voice.',
        "A faint cry came from the [marsh|water|moor], and then another.",
    )
    w.say(elder, "Somebody has lost the way.", "That is a person, not a <bird>.", "In such fog one walks in circles.")
    w.say(
        hero,
        "We must [help|show them where we are].",
        "If they cannot see us, they must hear us.",
        "How can we reach them?",
    )
    first = w.pick(("lamp", "shout"))
    if first == "lamp":
        w.tell(
            "{h} hung a lantern [on the gate|in the window], but the fog swallowed the light.",
            "They lit <number> candles, yet three steps away nothing could be seen of them.",
        )
    else:
        w.tell(
            "{h} shouted until {h.he} was hoarse, but the fog threw the voice [back|about].",
            "They called together, but the answer came from the wrong side, and then from nowhere.",
        )
    w.say(hero, "It is not [loud|bright] enough.", "It needs something stronger.", "What goes through fog?")
    sound = w.pick(("bell", "drum", "horn", "pans", "song"))
    made = {
        "bell": "They ran to the {place} and pulled the bell rope[ together|].",
        "drum": "{h} fetched the big drum from the {place} and beat it slowly, like a heart.",
        "horn": "{e} took the old hunting horn from the wall of the {place} and blew.",
        "pans": "They beat with spoons on <number> pans in front of the {place}.",
        "song": "In front of the {place} they sang every song they knew, the loudest first.",
    }[sound]
    w.tell(made, place=w.pick(("church", "school", "boathouse", "mill", "town hall")))
    w.tell(
        "At first nothing happened. Then the voice came nearer.",
        "Step by step somebody came after the sound.",
        "After a long time there was a shadow, and the shadow had [a hat|a stick and a dog|a bag].",
    )
    w.tell(
        "It was {o}, the {o.job}, wet and <tired>.",
        "Out of the fog came {o}, the {o.job}, with [mud|weed] up to the knees.",
    )
    w.say(
        stranger,
        "I heard you, and I walked towards it.",
        "I had been round the same <tree> <number> times.",
        "Without that noise I would have walked into the water!",
        "I saw nothing at all, but I could hear.",
    )
    w.say(elder, "Come in and get dry.", "Sit down. There is <snack>.", "It was {h} who thought of it.")
    if w.chance(0.7):
        w.tell(
            "{o} put <treasure> into {h.his} hand.",
            "Before {o} left, {o.he} gave {h} <treasure>.",
            "{o} had nothing to give but a story, and it was a long one.",
        )
    ending(w, hero, "To this day they ring a bell in {village} when there is fog.")


_HURT = {
    "a cat had caught it": "sparrow", "it had flown against a window": "thrush", "the storm had thrown it down": "swallow",
    "a fishing line was round its leg": "gull", "it had fallen out of the nest": "owl", "hail had hit it": "lark",
}  # fmt: skip

_FEED = {
    "sparrow": "seeds and crumbs", "thrush": "worms and berries", "swallow": "flies, which are hard to catch",
    "gull": "small fish", "owl": "strips of meat", "lark": "oats and beetles",
}  # fmt: skip


def hurt_bird(w: World) -> None:
    w.set_scene(("windy", "stormy", "sunny"), ("morning", "afternoon"))
    hero, friend, elder = (
        w.child("h"),
        w.child("f"),
        w.grown_up("e", ("doctor", "farmer", "teacher", "gardener", "beekeeper", "librarian", "shepherd")),
    )
    cause = w.pick(list(_HURT))
    bird = Thing(_HURT[cause])
    opening(w, hero)
    w.tell(
        "Under the <tree> {h} found a {bird} that could not fly: {cause}.",
        "{h} heard a rustle in the leaves. There sat a {bird}, and one wing hung down. Perhaps {cause}.",
        bird=bird,
        cause=cause,
    )
    w.tell("Its heart beat [fast|like a tiny clock].", "It looked at {h} with one round eye.")
    w.say(hero, "Don't be afraid. I will not hurt you.", "You poor thing.", "I shall take you home.", mood="soft")
    w.tell(
        "{h} laid it in {h.his} cap and carried it to {e}, the {e.job}.",
        "Wrapped in a <clothes>, it came to the house of {e}, the {e.job}.",
    )
    w.say(
        elder,
        "The wing is [bruised|sprained], not broken. It needs rest.",
        "It will fly again, if you are patient.",
        "Put it in a dark box with straw, and keep the cat out.",
    )
    w.say(hero, "What does it eat?", "How shall I feed it?")
    w.say(elder, "A {bird} eats {food}.", "Give it {food}, a little and often.", bird=bird, food=_FEED[bird.noun])
    w.tell(
        "So {h} and {f} went looking for {food}.",
        "{f} helped, and every day they brought {food}.",
        food=_FEED[bird.noun],
    )
    w.tell(
        "After two days it [hopped|pecked at {h.his} finger], and after a week it [beat its wings|sat on the edge of the box].",
        "At first it only slept. Then it began to [call|hop about|quarrel with the broom].",
    )
    w.say(friend, "Can we keep it?", "It likes us. Must it go?", mood="soft")
    w.say(
        hero,
        "Its friends are out there.",
        "It is not ours. It belongs to the sky.",
        "I want to, but it looks out of the window all day.",
    )
    w.tell(
        "On <day> they carried the box [up the hill|to the open window|into the meadow] and took off the lid.",
        "When {month} was over, they opened the box in the garden.",
    )
    w.tell(
        "The {bird} sat still, shook itself, and was gone.",
        "It flew up, circled once over {h}, and became a dot.",
        "For a moment it stayed on {h.his} hand. Then there was only a feather.",
        bird=bird,
    )
    w.tell("{h} was <sad> and <happy> at the same time.", "{f} waved until {f.his} arm was tired.")
    w.tell(
        "And every spring a {bird} sits on the [roof|gate] and looks in.",
        "Sometimes there is a tap on the window, and {h} puts out {food}.",
        "They never saw it again, or perhaps they did, for who knows one {bird} from another?",
        bird=bird,
        food="crumbs" if bird.noun != "gull" else "a fish",
    )
    ending(w, hero)


PLOTS = (
    snow_figure,
    lost_in_fog,
    hurt_bird,
)
