"""Plots between people: a quarrel, a chain of trades."""

from __future__ import annotations

from .scenes import aside, ending, opening, walk
from .world import World

_SHARED = (
    (
        "kite, sledge, swing, drum, telescope, hammock, boat, bicycle, wheelbarrow, trumpet",
        "red, old, wooden, big, new, blue",
        "",
    ),
    (
        "ball, book, paintbox, puzzle, doll, scarf, lantern, whistle",
        "new, only, yellow, striped, splendid, green",
        "small",
    ),
)


def quarrel(w: World) -> None:
    w.set_scene()
    hero, friend, elder = w.child("h"), w.child("f"), w.family("e")
    t = w.thing("t", _SHARED)
    opening(w, hero)
    w.tell(
        "There was only one {t.full}, and {f} wanted it too.",
        "{e} had brought a {t.full} from the market. One {t}, and two children.",
        "{h} and {f} found a {t.full} in the <room>.",
    )
    w.say(hero, "I saw it first!", "It is mine today!", "You had it yesterday!", mood="cross")
    w.say(friend, "But I am older!", "You always say that!", "Give it to me!", "You cannot even use it!", mood="cross")
    w.tell(
        "{h} pulled at one end and {f} at the other.",
        "They tugged, they shouted, and {f} got very red.",
        "{h} held it high, {f} jumped, and both of them fell over.",
    )
    w.tell(
        "Then there was a crack. The {t} was in two parts.",
        "Something tore.",
        "It slipped out of their hands and flew against the wall.",
        "Snap, it said, and they both sat on the ground.",
    )
    w.say(friend, "Now look what you have done!", "That was you!", "I hate you!", mood="cross")
    w.say(hero, "It was your fault!", "I never want to see you again!", "You pulled!", mood="cross")
    w.tell(
        "{f} went [left|home], and {h} [went right|stayed alone].",
        "For the rest of the {time} they did not speak.",
        "{h} slammed one door, {f} another.",
    )
    aside(w)
    w.tell(
        "But playing <game> alone is [dull|no good].",
        "{h} tried <hobby>, but it was no fun.",
        "It was very quiet, and the quiet was <sad>.",
    )
    w.say(
        elder,
        "What is worth more, a {t} or a friend?",
        "Who was right, you or the {t}?",
        "I had a friend once, and we quarrelled about a spoon.",
        "How long do you want to be angry? Until supper, or until you are ninety?",
        mood="soft",
    )
    proud = hero.trait in ("proud", "stubborn", "shy")
    if proud:
        w.tell(
            "{h} said nothing. But a little later {h.he} put <treasure> in front of {f}'s door.",
            "It was hard for {h} to say the word, so {h.he} wrote it on a piece of paper and pushed it under the door.",
        )
        w.say(friend, "I am sorry too.", "I have been sitting behind the door all the time.", mood="soft")
    else:
        w.tell(
            "{h} <walked> to {f}'s house, and halfway there {f} came the other way.",
            "So {h} got up and went to look for {f}.",
        )
        w.say(
            hero,
            "I am sorry that I pulled.",
            "I don't want the {t}. I want you to come and play.",
            "It was half my fault, and I take the other half too.",
            mood="soft",
        )
        w.say(friend, "I am sorry too.", "No, I was the silly one.", "Mine was the bigger half.", mood="soft")
    w.tell(
        "They mended it with [string|glue|wire|a strap], and it was stronger than before.",
        "They fetched a <tool> and mended the {t} together.",
        "{e} showed them how to mend it, and each held one side.",
    )
    w.tell(
        "From now on {h} has it until noon, and {f} has it after."
        if w.time != "evening"
        else "They tossed a coin, and {f} had the first turn.",
        "They took turns: <many> minutes each, by the kitchen clock.",
        "And they found that the {t} was [more fun|much better] for two.",
    )
    ending(w, hero, f"A {t} breaks sooner than a friendship, if you are careful.")


_WISHES = (
    "a pair of skates",
    "a puppy",
    "a fishing rod",
    "a violin",
    "a warm coat for Grandma",
    "a ticket for the circus",
    "a paintbox",
    "a beehive",
    "a telescope",
    "a bicycle bell",
)

# What each trader needs and why, what they give for it.
_TRADES = (
    ("a ball of string", "the tomatoes are falling over", "a basket of tomatoes"),
    ("a basket of tomatoes", "the soup has no colour", "a copper pot"),
    ("a copper pot", "the jam is waiting", "three jars of jam"),
    ("three jars of jam", "twelve guests are coming to tea", "a lace cloth"),
    ("a lace cloth", "the bride has nothing for her table", "a wedding cake"),
    ("a sack of straw", "the donkey is standing on bare stones", "a donkey ride"),
    ("a lantern", "the cellar stairs have no light", "a cask of cider"),
    ("a cask of cider", "the singers are thirsty", "a song book"),
    ("a song book", "the choir knows only one song", "a silver flute"),
    ("a bundle of willow", "the baskets are not finished", "six new baskets"),
    ("six new baskets", "the apples are ripe, and there is nothing to put them in", "a cart of apples"),
    ("a cart of apples", "the pies are promised for noon", "forty pies"),
    ("a ladder", "the cherries hang too high", "a bucket of cherries"),
    ("a bucket of cherries", "the birds have eaten every cherry on the hill", "a fat goose"),
    ("a jar of nails", "half the roof has gone", "a wooden wheel"),
    ("a wooden wheel", "the milk cart lies in the ditch", "a churn of cream"),
    ("a churn of cream", "the butter is late", "a tub of butter"),
    ("a bag of feathers", "the pillows are as flat as pancakes", "a feather bed"),
)


def trades(w: World) -> None:
    w.set_scene(("sunny", "windy", "foggy"), ("morning", "afternoon"))
    hero, elder = w.child("h"), w.grown_up("e")
    wish = w.pick(_WISHES)
    start = w.pick(list(_TRADES))
    chain = [start]
    while len(chain) < 3:
        following = [row for row in _TRADES if row[0] == chain[-1][2]]
        if not following:
            break
        chain.append(following[0])
    opening(w, hero)
    w.tell(
        "More than anything {h} wanted {wish}, but {h.he} had no money.",
        "In the window of a shop lay {wish}, and {h} had not one penny.",
        "{h} dreamed of {wish}.",
        wish=wish,
    )
    w.tell(
        "All {h.he} had was {x}.",
        "In the whole house there was nothing to spare but {x}.",
        '"Take {x} to the market," said {h.his} [aunt|mother|father|uncle]. "One never knows."',
        x=start[0],
    )
    walk(w, hero, "to the market")
    for number, (has, why, gets) in enumerate(chain):
        trader = w.grown_up("abcd"[number])
        w.tell(
            "[At the first stall|By the fountain|At the gate|Next to the pump] stood {p}, the {p.job}, looking <sad>.",
            "A little farther on {p}, the {p.job}, was wringing {p.his} hands.",
            "Then {h} met {p}, a {p.job}, who was <cross>.",
            "Somebody was calling. It was {p}, the {p.job}.",
            p=trader,
        )
        w.say(
            trader,
            "I am in trouble: {why}.",
            "If only I had {has}! You see, {why}.",
            "What am I to do? {why}.",
            has=has,
            why=why,
        )
        w.say(hero, "I have {has}.", "Would {has} help?", "Take this. It is {has}.", has=has)
        w.tell(
            "And {p} gave {h} {gets} for it.",
            '"Heaven sent you," said {p}, and {h} walked on with {gets}.',
            "So {h} got {gets}, which is [not bad|a fair price].",
            "{p} was so <happy> that {p.he} gave {gets} in return.",
            p=trader,
            gets=gets,
        )
    last = chain[-1][2]
    the = "the " + last.removeprefix("a ").removeprefix("an ")
    w.paragraph()
    if hero.trait in ("kind", "cheerful", "dreamy") and w.chance(0.7):
        w.tell(
            "On the way to the shop {h} saw {e}, who had lost everything in a fire.",
            "But at the corner sat {e}, the {e.job}, and {e} had nothing at all.",
        )
        w.tell(
            "{h} looked at {the}, thought of {wish}, and gave {the} to {e.him}."
            if "ride" not in last
            else "{h} thought of {wish}, and gave {e} what {h.he} had.",
            the=the,
            wish=wish,
        )
        w.say(elder, "For me?", "I have nothing to give you.", "Do you know what you are doing?", mood="soft")
        w.say(
            hero,
            "You need it more than I need {wish}.",
            "It is only something that I got for something.",
            wish=wish,
            mood="soft",
        )
        w.tell(
            "Next morning there was a parcel at the door, and in it was {wish}. Nobody ever said where it came from.",
            "{h} went home with empty hands and [whistled|felt rich].",
            wish=wish,
        )
    else:
        w.tell("The shopkeeper looked at {the} and scratched his chin.", "In the shop {h} put down {the}.", the=the)
        w.tell(
            "It was just what he needed, and {h} took {wish} home.",
            '"Done!" said the shopkeeper, and {wish} changed hands.',
            wish=wish,
        )
        w.say(elder, "And you began with {x}?", "From {x} to {wish}! You should have a shop.", x=start[0], wish=wish)
    ending(w, hero)


PLOTS = (
    quarrel,
    trades,
)
