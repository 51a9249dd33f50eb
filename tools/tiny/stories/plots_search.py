"""Plots of looking for something: a buried tin, a lost animal, and why some boats float."""

from __future__ import annotations

from .scenes import aside, ending, opening, share_food, small_talk
from .world import World

_MARKS = (
    ("the old {tree}", "Something was cut into the bark: an arrow."), ("the stone bridge", "Under the arch there was a red cross."), ("the broken mill", "Over the door hung a rusty horseshoe, and it pointed left."),
    ("the well", "In the wall one brick was white."), ("the crooked gate", "On the post was a number, almost gone."), ("the three birches", "One of them leaned towards the hill."),
    ("the chapel", "Its shadow fell across the meadow like a finger."), ("the big flat stone", "There was a hole in it, and through the hole one saw a single {tree}."), ("the empty barn", "On its door somebody had chalked a fish."),
)  # fmt: skip


def buried_tin(w: World) -> None:
    w.set_scene(("sunny", "windy", "hot", "foggy"), ("morning", "afternoon"))
    hero, friend, elder = w.child("h"), w.child("f"), w.family("e")
    opening(w, hero)
    w.tell(
        "In the attic {h} opened an old <furniture> and found a map.",
        "A map fell out of a book about [ships|birds|kings|islands].",
        "Behind a loose board in the <room> there was a rolled map.",
    )
    w.tell(
        "It was yellow, and it smelled of <smell>.",
        "Somebody had drawn it with a child's hand.",
        "In one corner stood two letters, {x}.",
        x=f"{str(elder).split()[-1][0]} and {w.pick('BCDFGHKLMPRSTW')}",
    )
    w.say(friend, "Is that a treasure map?", "Pirates!", "What does the cross mean?")
    w.say(
        hero,
        "Get a spade.",
        "Only one way to find out.",
        "It says [twenty|thirty|forty|fifty] steps.",
        "Here is our house, and here is {village}.",
    )
    marks = w.shuffled(_MARKS)[:3]
    tree = w.expand("<tree>")
    for i, (mark, sign) in enumerate(marks):
        where = w.expand(mark, tree=tree)
        w.tell(
            *(
                ("The first mark was {m}.", "They began at {m}.")
                if i == 0
                else (
                    "From there it was <number> steps to {m}.",
                    "Next came {m}.",
                    "The line on the map led to {m}.",
                    "They had to climb a fence before they reached {m}.",
                )
            ),
            m=where,
        )
        w.tell(sign, tree=tree)
        if i == 1:
            small_talk(w, friend, hero)
    w.tell(
        "At the cross there was nothing but [nettles|grass|clover].",
        "They stood still. Here it must be.",
        '"Dig," said {h}.',
    )
    w.tell(
        "They dug until the hole was as deep as {f}.",
        "First came earth, then stones, then a very old boot.",
        "{f} was already giving up when the spade rang.",
    )
    w.tell("Clunk! It was a tin box[, brown with rust|].", "There it was, a tin, no bigger than a loaf.")
    w.tell(
        "In it lay <treasure>, <treasure> and a letter.",
        "Inside, wrapped in <cloth>, were <treasure> and a letter.",
        "There was no gold in it. There was <treasure>, and a piece of paper.",
    )
    w.say(friend, "Read it!", "What does it say?")
    w.tell(
        '"Whoever finds this," said the letter, "is my friend. I am ten years old, and today I am moving away."',
        '"I hide my best things here," it said, "so that they are safe from my brother."',
        '"Dear finder," it said, "plant an apple tree on this place, for I like apples."',
    )
    w.tell(
        "They ran home and showed it to {e}.",
        f"At the bottom was a name, and the name was {str(elder).split()[-1]}.",
        "{e} was sitting <inside> when they put the tin into {e.his} lap.",
    )
    w.tell(
        "{e} put on {e.his} glasses, read, and was quiet.",
        "{e} turned it over and over.",
        "All at once {e} looked like a child.",
    )
    w.say(
        elder,
        "I wrote that. I had forgotten it.",
        "So you have found me after all these years.",
        "That was the saddest day, and look what came of it.",
        mood="soft",
    )
    w.say(hero, "Was it you?", "You were ten?", "Why did you never go back for it?")
    w.tell(
        "They put everything back, and added <treasure>.",
        "Next day they buried it again, with a letter of their own.",
        "It stands on the shelf now, and on Sundays they look into it.",
    )
    ending(w, hero)


_PETS = {
    "dog": ("barking", "in the baker's doorway, because of the warm stones", "Patch, Rover, Biscuit, Moss, Scout, Bramble"),
    "cat": ("mewing", "in the top drawer, where the woollen things are", "Soot, Whisker, Tiger, Velvet, Pepper, Mitten"),
    "goat": ("bleating", "in the school garden, with a sunflower in its mouth", "Nanny, Clover, Horns, Daisychain, Thistle"),
    "pony": ("neighing", "under the apple trees, where the windfalls lie", "Chestnut, Star, Blaze, Hazelnut, Comet"),
    "lamb": ("bleating", "in the lap of a sleeping tramp", "Cotton, Wisp, Cloud, Curly, Milkweed"),
    "duck": ("quacking", "in the fountain, as if it were paid for", "Puddle, Waddle, Paddle, Feathers"),
    "rabbit": ("scratching", "behind the cabbages, and there were no cabbages left", "Thumper, Clover, Nibble, Radish, Flop"),
    "donkey": ("braying", "at the crossroads, where the road to its mother's stable begins", "Grey, Barnaby, Clop, Longears"),
    "piglet": ("squealing", "in the mud behind the pump, the deepest in {village}", "Truffle, Pickle, Rosy, Snout, Acorn"),
    "tortoise": ("nothing", "under the rhubarb, two steps from where it had been", "Speedy, Pebble, Methuselah, Rocket"),
}  # fmt: skip


def lost_animal(w: World) -> None:
    kind = w.pick(list(_PETS))
    if kind == "tortoise":
        w.set_scene(("sunny", "hot"), ("morning", "afternoon"))
    else:
        w.set_scene()
    hero, friend, elder = w.child("h"), w.child("f"), w.grown_up("e")
    noise, where, names = _PETS[kind]
    name = w.pick(names.split(", "))
    opening(w, hero)
    w.tell(
        "{h} had a {k} called {n}.",
        "{n} was {h}'s {k}, and they went everywhere together.",
        '{f} came running. "{n} is gone!" {n} was {h}\'s {k}.',
        n=name,
        k=kind,
    )
    if w.weather == "stormy":
        w.tell(
            "At the first clap of thunder {n} had torn the rope and run.",
            "Thunder frightened {n} more than anything.",
            n=name,
        )
    else:
        w.tell(
            "Somebody had left the gate open.",
            "There was a hole in the fence, just the size of a {k}.",
            "{h} had only turned round for a moment, to look at a <bird>.",
            k=kind,
        )
    w.say(hero, "{n}! Where are you?", "Who has seen {n}?", "What if {n} is hurt?", n=name, mood="alarm")
    w.say(friend, "We shall find {n}.", "Let us think like a {k}.", "Where does a {k} like to go?", n=name, k=kind)
    clue = {
        "snow": "In the snow there were tracks, and they led away from the house.",
        "mud": "The mud was soft, and there were prints in it.",
        "frost": "On the white grass there was a dark line, where feet had gone.",
        "dust": "In the dust of the road they saw marks.",
        "grass": "The grass was trodden down, but only as far as the road.",
    }[w.ground]
    w.tell(clue)
    w.tell(
        "They followed them to a stone path, and there they ended."
        if w.ground != "grass"
        else "On the road there was nothing to be seen.",
        "At the brook all traces stopped.",
    )
    first, second = w.shuffled(
        (
            "the barn",
            "the mill",
            "the churchyard",
            "the station",
            "the quarry",
            "the market",
            "the orchard",
            "the boathouse",
        )
    )[:2]
    w.tell(
        "They looked in {a}. There was only a <animal>, which stared at them.",
        "In {a} they found <treasure>, but no {k}.",
        "They went through {a}, calling and whistling.",
        a=first,
        k=kind,
    )
    aside(w)
    w.tell("At {b} they met {e}, the {e.job}.", "{e}, the {e.job}, was standing at {b}.", b=second)
    w.say(hero, "Have you seen a {k}?", "We are looking for {n}, my {k}.", "Did a {k} come this way?", k=kind, n=name)
    if kind == "tortoise":
        w.say(elder, "A tortoise? How far can it have gone?", "Did you look at home first?")
    else:
        w.say(
            elder,
            "I have seen nothing, but I have heard {noise}.",
            "There was some {noise} down there.",
            "Something ran between my legs. It was in a hurry.",
            "Listen! Is that not {noise}?",
            noise=noise,
        )
    w.tell(
        "They held their breath and listened.",
        "{h} <went> ahead, round one corner and the next.",
        "{f} was the first to see.",
    )
    w.tell(
        "And there was {n}, {where}.",
        "{n} was sitting {where}." if kind not in ("pony", "donkey", "goat") else "{n} was standing {where}.",
        "There, {where}, was {n}.",
        n=name,
        where=w.expand(where),
    )
    w.say(
        hero,
        "You silly {k}!",
        "There you are!",
        "I was so afraid for you!",
        "Do not ever do that again!",
        k=kind,
        mood="loud",
    )
    w.tell(
        "{n} looked up as if nothing had happened.",
        "{n} pushed a wet nose into {h.his} hand." if kind not in ("duck", "tortoise") else "{n} pulled in its head.",
        "{n} had no idea why they were making such a fuss.",
        n=name,
    )
    w.tell(
        "{h} mended the [gate|fence] before supper.",
        "That {time} {h} put a bell on {n}.",
        "{f} carried the {k} home, and it got heavier with each step."
        if kind in ("cat", "lamb", "duck", "rabbit", "piglet", "tortoise")
        else "They walked home, all three in a row.",
        n=name,
        k=kind,
    )
    ending(w, hero, "And the gate has two bolts now.")


_BOATS = {
    "a walnut shell": ("floats", "it was light and hollow"), "a piece of bark": ("floats", "bark is full of air"), "a cork": ("floats", "cork is lighter than water"),
    "a wooden shoe": ("floats", "wood floats, and the water stayed outside"), "an empty bottle": ("floats", "there was air in it and a stopper in the neck"), "a tin plate": ("floats", "it pushed the water aside, as big ships do"),
    "a brick": ("sinks", "stone is heavier than water"), "a lump of clay": ("sinks", "clay is heavier than water"), "a sheet of newspaper": ("soaks", "paper drinks water until it is heavy"),
    "an iron pan with a hole": ("sinks", "the water came in through the hole"), "a loaf of bread": ("soaks", "bread drinks like a sponge"), "a felt hat": ("soaks", "felt lets the water through"),
}  # fmt: skip


def boats(w: World) -> None:
    w.set_scene(("sunny", "windy", "hot"), ("morning", "afternoon"))
    hero, friend, elder = (
        w.child("h"),
        w.child("f"),
        w.grown_up("e", ("boat builder", "ferry keeper", "teacher", "fisher", "miller")),
    )
    opening(w, hero)
    w.tell(
        "{h} and {f} were sitting by the [brook|mill pond|canal], and they had no boat.",
        '"Let us build ships," said {f}, "and see whose goes farthest."',
        "A {time} by the water needs a boat, {h} thought.",
    )
    kinds = w.shuffled(list(_BOATS))
    mine, yours = kinds[0], next(k for k in kinds if (_BOATS[k][0] == "floats") != (_BOATS[kinds[0]][0] == "floats"))
    w.tell(
        "{h} took {a} and stuck a [feather|leaf|rag] on it for a sail.",
        "{h}'s ship was {a}, with a pin for a mast.",
        "Out of {a} {h} made a ship and called it the [Swan|Arrow|Dolphin|Hero|Queen|Tempest].",
        a=mine,
    )
    w.tell(
        "{f} chose {b}.",
        "{f} looked for a long time and came back with {b}.",
        '"Mine is better," said {f}, and it was {b}.',
        b=yours,
    )
    w.say(friend, "Mine will reach the sea.", "What do you bet?", "The captain is a beetle.")
    w.say(hero, "We shall see.", "I bet <treasure>.", "Mine has a crew of two ants.")
    w.tell("{e}, the {e.job}, put down {e.his} work to watch.", "{e}, the {e.job}, leaned over the rail.")
    w.tell(
        "They put them on the water and let go.",
        "One, two, three, and off.",
        "Both ships were launched with a drop of lemonade.",
    )
    for who, what in w.shuffled([(hero, mine), (friend, yours)]):
        fate, _ = _BOATS[what]
        w.tell(
            *{
                "floats": (
                    "{x} danced over the waves, and a wagtail flew after it.",
                    "{x} turned once, then the current took it and carried it off.",
                    "{x} sailed as if it had never done anything else.",
                ),
                "sinks": (
                    "{x} went down at once, with a plop.",
                    "{x} made <number> bubbles and was never seen again.",
                    "{x} sank like a stone.",
                ),
                "soaks": (
                    "{x} swam bravely, grew darker, and softer, and slowly went under.",
                    "For a little while {x} kept up. Then it came apart.",
                    "{x} drank and drank until it was full, and that was the end.",
                ),
            }[fate],
            x=f"{who}'s ship",
        )
    loser, what = (hero, mine) if _BOATS[mine][0] != "floats" else (friend, yours)
    winner, won = (friend, yours) if loser is hero else (hero, mine)
    w.say(
        loser, "Why did mine go down?", "That is not fair. Mine was bigger!", "But it was such a fine ship.", mood="sad"
    )
    w.say(elder, "Because {r}.", "You see, {r}.", "It had to, for {r}.", r=_BOATS[what][1])
    w.say(winner, "And why does mine swim?", "And mine?", "Why not mine?")
    w.say(elder, "Because {r}.", "That is easy: {r}.", "Yours swims, since {r}.", r=_BOATS[won][1])
    w.say(
        loser,
        "Then I shall take {b} next time.",
        "Could one make a ship of {b}?",
        "So big does not mean light.",
        b=w.pick([k for k in _BOATS if k not in (mine, won, what)]),
    )
    w.say(elder, "Try it, and tell me.", "Water always tells the truth.", "Try it. That is what brooks are for.")
    w.tell(
        "They ran along the bank after the ship until [a fence stopped them|the brook became a river|it was a dot].",
        "Until dark they tried everything: spoons, apples, a boot, and <treasure>.",
        "All the {time} long they tried one thing after another and made a list.",
    )
    share_food(w, hero, friend)
    ending(w, hero)


PLOTS = (
    buried_tin,
    lost_animal,
    boats,
)
