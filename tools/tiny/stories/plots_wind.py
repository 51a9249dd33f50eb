"""Plots of wind, rain and flood: what was blown away, what broke on the wet steps, the river without a bridge."""

from __future__ import annotations

from .scenes import aside, ending, introduce, opening, share_food, thanks
from .world import World

_LIGHT = (
    (
        "kite, balloon, ribbon, paper boat, paper crown, flag",
        "red, blue, yellow, green, striped, purple",
        "light floats",
    ),
    (
        "hat, cap, scarf, shawl, bonnet, handkerchief",
        "new, old, woollen, green, brown, spotted, favourite",
        "light wearable",
    ),
    ("letter, drawing, map, newspaper, song sheet, recipe, ticket", "folded, precious, only, important", "light flat"),
    ("umbrella, towel, tablecloth, shirt, pillowcase, apron", "white, black, blue, clean, checked", "light"),
)

# Where the wind leaves things: place, kind.
_SPOTS = (
    ("in the top of the {tree}", "high"), ("on the roof of the {roof}", "high"), ("on the weathercock of the church", "high"),
    ("on a branch over the lane", "low"), ("on top of the garden wall", "low"), ("on the sign of the {roof}", "low"),
    ("in the middle of the pond", "water"), ("in the river", "water"), ("in the old harbour basin", "water"),
    ("in the thick bramble hedge", "thorns"), ("in a bed of nettles", "thorns"),
)  # fmt: skip

_WAYS = {
    "jump": (
        ("{a} jumped as high as {a.he} could[, once, twice, three times|].", "{a} took a run and jumped."),
        ("But {a.his} fingers [only touched the air|were a hand too short].", "It hung far above {a.him}."),
        ("At the third jump {a.he} caught [a corner|the edge] of it and pulled.", "And {a.he} had it!"),
    ),
    "stick": (
        ("{a} found a long stick and [poked|reached out] with it.", "With a broom tied to a rake {a} reached up."),
        ("The stick was too short.", "The stick broke with a snap, and {a} sat down [on the ground|in a puddle]."),
        ("The stick just reached it, and {a} [fished it down|pushed it free].", "One good push and it came loose."),
    ),
    "stone": (
        ("{a} threw a pine cone at it.", "{a} took off a boot and threw it."),
        ("It missed and [landed in a flower bed|hit a bucket|startled a <bird>].", "The boot stayed up there too."),
        ("It hit, and the {t} came [sailing|tumbling] down.", "A good throw, and down it came."),
    ),
    "climb": (
        ("{a} began to climb.", "{a} spat on {a.his} hands and climbed up."),
        ("Halfway up a [branch|gutter] cracked, and {a.he} had to come down again.", "It was too slippery, and {a} slid back."),
        ("Hand over hand {a.he} went up, and at the top {a.he} took it.", "{a.He} climbed like a squirrel and soon held it."),
    ),
    "ladder": (
        ("{e} [brought|came with|leaned] a ladder [from the shed|against the wall].", "They carried the long ladder over from {e}."),
        ("But the ladder was <number> rungs too short.", "The ladder sank into the soft ground and tilted."),
        ("{a} climbed up and brought it down between {a.his} teeth.", "From the top rung it was easy to reach."),
    ),
    "net": (
        ("{e} owned a fishing net with a long pole.", "They borrowed a fishing rod from {e}."),
        ("The line was too short, and the hook caught {a.his} own sleeve.", "At the first try they caught only weed."),
        ("{a} drew it in like a fat trout.", "At the second try they pulled it out, dripping."),
    ),
    "wade": (
        ("{a} took off {a.his} shoes and waded in.", "{a} rolled up {a.his} stockings and stepped in."),
        ("The water was too deep and as cold as ice.", "The mud held {a.his} feet, and {a.he} had to turn back."),
        ("It was not deep, and {a.he} came back with it held high.", "Wet to the knees, {a} carried it out."),
    ),
    "gloves": (
        ("{e} lent them thick leather gloves and a pair of shears.", "{a} wrapped {a.his} hands in a sack."),
        ("But the thorns went right through.", "Even so it stung, and {a} jumped back."),
        ("Twig by twig they cut a way and pulled it free.", "Now the thorns could do nothing, and {a} reached in."),
    ),
    "wait": (
        ("\"[The wind took it, so the wind may bring it back|Let us wait for the wind],\" said {a}.",),
        ("They waited, but the wind only pushed it farther away.", "They waited until {a.his} nose was blue, and nothing happened."),
        ("They waited, the wind turned, and it floated down at their feet.", "One more gust, and it flew straight into {a.his} arms."),
    ),
}  # fmt: skip

_FITS = {
    "high": ("jump stone stick climb wait", "ladder climb stone wait"),
    "low": ("jump stone wait", "stick ladder climb jump"),
    "water": ("stick wait wade", "net wade stick"),
    "thorns": ("stick jump wait", "gloves stick"),
}


def blown_away(w: World) -> None:
    w.set_scene(("windy", "stormy"))
    hero, friend, elder = w.child("h"), w.child("f"), w.grown_up("e")
    t = w.thing("t", _LIGHT)
    opening(w, hero)
    w.tell(
        "{h} was carrying a {t.full} [down the hill|over the bridge|across the green] with {f}.",
        "{h} and {f} had a {t.full} with them[, and {h} held it in one hand|].",
        "A {t.full}, a present from {e}, was {h.his} dearest possession."
        if t.is_("wearable")
        else "{h} had brought a {t.full} to show it to {f}.",
    )
    w.tell(
        "A gust came round the corner and tore it from {h.his} [hand|fingers].",
        "Then the wind gave a great puff, and the {t} was gone.",
        "{h} let go for one second, and that was enough for the wind.",
    )
    place, kind = w.pick(_SPOTS)
    where = w.expand(
        place, tree=w.expand("<tree>"), roof=w.pick(("bakery", "school", "mill", "barn", "post office", "inn"))
    )
    w.tell(
        "It flew over [the roofs|a hedge|<number> gardens], turned [over twice|in the air], and landed {where}.",
        "Up it went like a <bird>, and it came down {where}.",
        "They ran after it, but when they caught up it was {where}.",
        where=where,
    )
    w.say(hero, "My {t}!", "Oh no, my {t}!", "Stop, come back!", mood="alarm")
    w.say(
        friend,
        "We shall get it down." if kind in ("high", "low") else "We shall get it out.",
        "Don't cry, we only need an idea.",
        "I can see it. It is {where}.",
        where=where,
    )
    first = w.pick(list(_FITS[kind][0].split()))
    last = w.pick([x for x in _FITS[kind][1].split() if x != first])
    eager = hero if hero.trait in ("bold", "hasty", "proud") else friend
    w.tell(w.pick(_WAYS[first][0]), a=eager)
    w.tell(w.pick(_WAYS[first][1]), a=eager)
    if last in ("ladder", "net", "gloves"):
        w.tell("Just then {e}, the {e.job}, came by and [laughed|stopped|put down a basket].")
        w.say(
            elder,
            "What are you two looking at?",
            "That wants [something better|other means].",
            "Has the wind been stealing again?",
        )
    else:
        aside(w)
    other = friend if eager is hero else hero
    w.tell(w.pick(_WAYS[last][0]), a=other)
    w.tell(w.pick(_WAYS[last][2]), a=other)
    if kind == "water":
        w.tell(
            "The {t} was soaked, so they hung it [over the stove|on the line] to dry.", "It dripped all the way home."
        )
    elif kind == "thorns":
        w.tell(
            "It had <number> small holes now, but {h} did not mind.",
            "One corner was torn, and {e} mended it with <colour> thread.",
        )
    else:
        w.tell(
            "There was a [leaf|feather|little soot] on it, nothing worse.",
            "Apart from some dust it was as good as new.",
        )
    thanks(w, hero, other if other is not hero else friend)
    ending(w, hero, "After that {h} tied [a string|a knot] to everything on windy days.")


_FRAGILE = (
    ("jug, pot, vase, bowl, dish, teapot, plate", "blue, painted, white, brown, glazed, old, best", "fragile"),
    ("jar, bottle, mirror, lamp, lantern", "glass, green, tall, thin, old", "fragile"),
    ("picture, clock, music box, snow globe", "little, precious, old, pretty", "fragile"),
)


def broken_pot(w: World) -> None:
    w.set_scene(("rainy", "frosty", "snowy", "stormy"))
    hero, elder = w.child("h"), w.family("e")
    owner = w.grown_up("o")
    w.thing("t", _FRAGILE)
    opening(w, hero)
    w.tell(
        "{e} had [asked|sent] {h} to carry a {t.full} to {o}, the {o.job}.",
        "{h} was to bring {o} a {t.full}, a present from {e}.",
        '"Carry this {t.full} to {o}, and [hold it with both hands|do not run]," {e} had said.',
    )
    slippery = "ice" if w.icy else "mud"
    w.tell(
        "The steps by the church were covered with {s}." if w.icy else "The rain had turned the path to {s}.",
        "Where the lane goes downhill there was {s} under the leaves.",
        s=slippery,
    )
    if hero.trait in ("careful", "patient"):
        w.tell(
            "{h} went slowly and held the {t} tight, but a <animal> ran between {h.his} feet.",
            "{h} looked at every step, but just then <sound>, and {h} turned round.",
        )
    else:
        w.tell(
            "{h} ran all the same[, for {h.he} was late|].", "But {h} was thinking of <hobby> and not of {h.his} feet."
        )
    w.tell(
        "{h.His} foot slipped, {h.he} sat down hard, and the {t} flew out of {h.his} hands.",
        "Down went {h}, and down went the {t}.",
        "{h} slid, grabbed at a fence, missed it, and fell.",
    )
    w.tell("There was a crash, and the {t} lay in <many> pieces.", "With a [sad |loud |]crack the {t} broke.")
    hides = hero.trait in ("shy", "proud", "hasty") and w.chance(0.7)
    w.paragraph()
    if hides:
        w.tell(
            "{h} looked around, pushed the pieces under a hedge, and went home without a word.",
            "Nobody had seen it. {h} hid the pieces behind a barrel and crept home.",
        )
        w.say(elder, "Did {o} like the {t}?", "Well, what did {o} say?")
        w.say(hero, "Yes, very much.", "I think so.", mood="soft")
        w.tell(
            "But there was {s} on {h.his} [sleeve|stocking|back], and {e} saw it."
            if not w.icy
            else "But {h.his} knee was bleeding, and a splinter stuck in {h.his} glove.",
            s=slippery,
        )
        w.say(
            elder,
            "You have fallen, {h}. Now tell me [the rest|the truth].",
            "That is a strange [story|yes]. What really happened?",
            mood="soft",
        )
    else:
        w.tell(
            "{h} gathered every piece into {h.his} <clothes> and went [straight |]home.",
            "For a moment {h} wanted to hide the pieces. Then {h.he} picked them up, one by one.",
        )
    w.say(
        hero,
        "I slipped on the {s}, and the {t} is broken.",
        "It is my fault. I fell, and it broke.",
        "I am sorry. I broke the {t}.",
        mood="sad",
        s=slippery,
    )
    w.say(
        elder,
        "A {t} can be mended. Are you hurt?",
        "Thank you for telling me. Pots break, and [people|promises] should not.",
        "I am glad that only the {t} is broken.",
        "When I was your age I broke <number> of them.",
        mood="soft",
    )
    if w.chance(0.5):
        w.tell(
            "All evening they sat <inside> with a pot of glue and put piece to piece.",
            "{e} mixed glue, {h} held the pieces, and slowly the {t} came back.",
        )
        w.tell("One piece was never found, so they filled the gap with a <colour> star.")
        w.say(owner, "I like the [star|cracks] best.", "A {t} with a story is worth two without.")
    else:
        w.tell(
            "To pay for a new one, {h} swept the floor for {o} on <number> afternoons.",
            "{h} chopped wood for {o} until the debt was paid.",
        )
        w.say(owner, "You owe me nothing more, {h}.", "You sweep well. Come again, and I will pay you.")
    ending(w, hero, f"When the lanes are {'icy' if w.icy else 'wet'}, {{h}} walks like a cat now.")


_NEEDED = (
    "the medicine",
    "a basket of bread",
    "the key of the school",
    "an urgent letter",
    "the violin",
    "a can of oil",
    "a bag of seed",
    "the mended clock",
    "dry matches",
)


def flooded_bridge(w: World) -> None:
    w.set_scene(("rainy", "stormy"))
    hero, friend, elder = w.child("h"), w.child("f"), w.grown_up("e")
    need = w.pick(_NEEDED)
    opening(w, hero)
    w.tell(
        "{h} and {f} had to bring {need} to {e}, the {e.job}, who lived across the river.",
        "On the other side of the river {e}, the {e.job}, was waiting for {need}.",
        need=need,
    )
    w.tell(
        "But so much rain had come down that the river was over its banks.",
        "The river had risen in the night, because of all that rain, and [the bridge was gone|the bridge stood under water].",
        "Where the stepping stones had been there was only brown water.",
    )
    w.say(friend, "Now nobody can cross.", "We shall have to go back.", "I have never seen it so high!")
    w.say(hero, "{e} needs {need} today.", "There must be a way.", "Let me think.", need=need)
    eager = hero if hero.trait in ("bold", "hasty", "stubborn") else friend
    w.tell(
        "{a} put one foot in, and the current nearly took the boot.",
        "{a} pushed a branch into the water, and it was whirled away[ at once|].",
        "{a} wanted to swim, but a whole <tree> came floating past, roots and all.",
        a=eager,
    )
    way = w.pick(("rope", "mill", "boat", "goat", "basket"))
    if way == "rope":
        w.tell(
            "{h} tied a string to an arrow and shot it across.",
            "{f} threw a stone with a thin cord over the water, and at the third throw it held.",
        )
        w.tell("{e} pulled a thick rope after it and made it fast to a <tree>.")
        w.tell("Along the rope they sent {need} in a bag, hand over hand.", need=need)
    elif way == "mill":
        w.tell(
            "{f} remembered the old mill, an hour upstream, where the river is narrow.",
            "They walked up the valley until they came to the weir, where the water is shallow.",
        )
        w.tell(
            "There they crossed on a beam, [one behind the other|holding hands].",
            "A plank lay from wall to wall, and they crept over it.",
        )
    elif way == "boat":
        w.tell(
            "In a shed lay a flat boat with a hole in it.", "Behind the willows they found an old boat, full of rain."
        )
        w.tell(
            "{h} stopped the hole with <cloth> and wax, and {f} bailed.",
            "They bailed it out with {h.his} boots and took a fence board for an oar.",
        )
        w.tell("The current carried them far down, but it carried them across.")
    elif way == "goat":
        w.tell(
            "A <colour> goat stood there and looked at the water.", "The ferry keeper's donkey was not afraid of water."
        )
        w.tell(
            "It knew where the ford was, and they followed it, wet to the waist.",
            "They held its rope and waded where it waded.",
        )
    else:
        w.tell(
            "Two washing lines hung from bank to bank, on wheels.",
            "An old wire crossed the river, from the time of the quarry.",
        )
        w.tell("On it they hung a basket, put {need} inside, and pulled.", need=need)
    w.tell(
        "{e} was standing on the other side with a lantern."
        if w.dark
        else "{e} was standing on the other side and waved.",
        "When they knocked, {e} opened at once.",
    )
    w.say(
        elder,
        "I had given up hope.",
        "In this weather? You are [brave|wet] as otters!",
        "And not even wet! {h}, {f}, come in.",
        "You have come just in time.",
    )
    introduce(w, "e")
    share_food(w, hero, friend)
    ending(w, hero, "In {month} the {e.job} built a higher bridge, and two names were cut into its rail.")


PLOTS = (
    blown_away,
    broken_pot,
    flooded_bridge,
)
