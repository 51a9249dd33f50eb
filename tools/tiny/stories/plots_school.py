"""Plots of shop, school and fair: sums that come out, a new child, a contest."""

from __future__ import annotations

from .scenes import ending, introduce, opening, small_talk, walk
from .world import World

_WARES = (
    "lamp",
    "kite",
    "notebook",
    "ball",
    "pocket knife",
    "mouth organ",
    "straw hat",
    "cake",
    "bunch of roses",
    "tin whistle",
    "teapot",
    "cushion",
    "compass",
    "wooden boat",
    "paint brush",
    "scarf",
    "jar of honey",
    "map",
    "torch",
    "pair of braces",
)

_NUMBERS = (
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
)


def coins(n: int) -> str:
    return f"{_NUMBERS[n]} coin" + ("" if n == 1 else "s")


def shop(w: World) -> None:
    w.set_scene(times=("morning", "afternoon"))
    hero, elder, keeper = (
        w.child("h"),
        w.family("e"),
        w.grown_up("k", ("shopkeeper", "baker", "hatter", "toy maker", "potter", "bookbinder")),
    )
    ware = w.pick(_WARES)
    price = 4 + int(w.rng.random() * 9)
    purse = max(2, price - 4 + int(w.rng.random() * 7))
    opening(w, hero)
    w.tell(
        "Tomorrow was {e}'s birthday, and {h} wanted to buy a {ware}.",
        "{h} had been saving for a {ware} since {month}.",
        "{e} had sent {h} to buy a {ware}.",
        ware=ware,
    )
    w.tell(
        "In {h.his} purse {h.he} had {c}, and {h.he} counted them twice.",
        "{h} had {c}[, warm from {h.his} hand|].",
        c=coins(purse),
    )
    walk(w, hero, "to the shop")
    w.tell(
        "The shop of {k} was [full to the ceiling|dark and deep], and it smelled of <smell>.",
        "When the door opened, a little bell rang, and {k} looked over the counter.",
        "Behind the counter stood {k}, on a ladder, with <treasure> in one hand.",
    )
    w.say(keeper, "Good {time}. What can I do for you?", "Well, {h}, what shall it be?", "Come in and shut the door.")
    w.say(
        hero,
        "I would like a {ware}, please.",
        "How much is the {ware} in the window?",
        "Have you got a {ware}?",
        ware=ware,
    )
    w.say(
        keeper,
        "That {ware} costs {c}.",
        "{c_cap}, and it is the last one.",
        "For you, {c}.",
        ware=ware,
        c=coins(price),
        c_cap=coins(price).capitalize(),
    )
    if purse >= price:
        w.tell("{h} counted {c} onto the counter.", "One after the other {h} put down {c}.", c=coins(price))
        if purse == price:
            w.say(keeper, "Exactly right.", "Not one too many and not one too few.")
            w.tell("Now the purse was empty, and {h} was <happy>.")
        else:
            w.say(keeper, "And {c} left for sweets.", "Then you still have {c}.", c=coins(purse - price))
            w.tell(
                "For the rest {h} bought <snack>.",
                "The other {c} stayed in the purse, for next time."
                if purse - price > 1
                else "The last coin stayed in the purse.",
                c=coins(purse - price),
            )
    else:
        short = price - purse
        w.say(
            hero,
            "Then I am {c} short.",
            "I have only {have}. That is {c} too few.",
            "Oh. I need {c} more.",
            c=coins(short),
            have=coins(purse),
            mood="sad",
        )
        w.say(
            keeper,
            "Hm. Can you sweep?",
            "Those boxes over there want carrying to the cellar.",
            "My windows have not been washed since {month}.",
            "Someone must write the labels, and my hand is tired.",
        )
        w.say(hero, "Yes, I can!", "I can begin at once.", "Show me where.")
        w.tell(
            "So {h} worked until <number> o'clock, and the dust flew.",
            "It took {h} the whole {time}, and in the end everything shone.",
            "{h} found <treasure> under a shelf and put it on the counter.",
        )
        w.say(
            keeper,
            "That was worth {c}. Here is your {ware}.",
            "Honest work. Now we are quits.",
            "Take the {ware}. You have earned it.",
            c=coins(short),
            ware=ware,
        )
    small_talk(w, keeper, hero)
    w.tell(
        "{k} wrapped the {ware} in <colour> paper.",
        "With the {ware} under one arm {h} went home.",
        "At home {h} put the {ware} on the table.",
        ware=ware,
    )
    w.say(elder, "A {ware}! How did you know?", "It is just the right one.", "And what did it cost you?", ware=ware)
    ending(w, hero, "Since then {h} thinks that a thing is worth what you did for it.")


_GAMES = (
    ("the team was one short", "{o} ran like a hare", "won by one goal"),
    ("nobody could reach the ball in the gutter", "{o} climbed up the pipe", "played until dark"),
    ("the rope for the swing was too short", "{o} knew a knot that holds", "swung as high as the roof"),
    ("the choir had no low voice", "{o} opened {o.his} mouth, and the windows hummed", "sang at the fair"),
    ("nobody knew the answer to the riddle", "{o} said it quietly", "had a new riddle every day"),
    ("the play had no dragon", "{o} roared so well that the <animal> ran away", "bowed <number> times"),
    ("the dam would not hold", "{o} put the flat stones on edge", "had a lake by <day>"),
    ("the kite would not fly", "{o} gave it a longer tail", "saw it go up over the church"),
    ("the fire would not burn", "{o} blew from below", "roasted potatoes in it"),
    ("the puppy would not come out from under the shed", "{o} lay down and hummed", "had a dog in the middle"),
)


def new_child(w: World) -> None:
    w.set_scene(times=("morning", "afternoon"))
    hero, new, other = w.child("h"), w.child("o"), w.child("f")
    teacher = w.grown_up("e", ("teacher",))
    opening(w, hero)
    w.tell(
        "There was a new {o.child} at school, and {o.his} name was {o}.",
        "On <day> {e}, the teacher, came in with a {o.child} nobody knew.",
        "A cart had come to {village} with chairs and beds, and on top sat {o}.",
    )
    w.say(
        teacher,
        "This is {o}. Be kind to {o.him}.",
        "{o} comes from far away. Who has a free seat?",
        "Make room for {o}, please.",
    )
    w.tell(
        "{o} had <worn> and looked at the floor.",
        "{o} said one word, so quietly that nobody heard it.",
        "All eyes turned to {o}, and {o} wished to be a <animal>.",
    )
    w.tell(
        "At noon {o} sat alone <outside> and ate <snack>.",
        "In the break everybody played <game>, and {o} stood by the wall.",
        "Nobody was unkind. But nobody asked {o.him} anything, either.",
    )
    w.say(other, "Why does {o.he} not talk?", "I think {o.he} is proud.", "Perhaps {o.he} does not like us.")
    w.say(hero, "Perhaps {o.he} is waiting for us.", "When I was new, I did not talk either.", "I shall ask {o.him}.")
    w.tell(
        "{h} <went> over and held out <treasure>.",
        "{h} sat down beside {o.him} and said nothing for a while.",
        "{h} broke a biscuit in two and gave {o} the bigger half.",
    )
    small_talk(w, hero, new)
    trouble, deed, result = w.pick(_GAMES)
    w.tell(
        "Just then there was a shout: {t}.",
        "Meanwhile the others were in trouble, for {t}.",
        "That {time} {t}.",
        t=trouble,
    )
    w.say(other, "What now?", "We shall have to stop.", "It is no use.")
    w.say(hero, "{o} can help.", "Let {o} try.", "Have you asked {o}?")
    w.tell(
        "{d}.",
        "Everybody turned round. {o} got up, {o.his} ears red, and then {d}.",
        "They all looked, and {d}.",
        d=w.expand(deed),
    )
    w.say(
        other,
        "Where did you learn that?",
        "Why did you never tell us?",
        "You are [wonderful|amazing|a wonder|the best of all]!",
        mood="loud",
    )
    w.say(
        new,
        "Nobody asked me.",
        "At home we did that every day.",
        "My {g} showed me.",
        g=w.pick(("grandfather", "mother", "aunt", "brother", "sister", "uncle")),
        mood="soft",
    )
    w.tell("That day they {r}.", "And so they {r}, all of them together.", r=w.expand(result))
    w.tell(
        "When the bell rang, {o} was not the new {o.child} any more.",
        "On the way home there were three of them: {h}, {f} and {o}.",
        "After that there was always a seat beside {h}.",
    )
    introduce(w, "o")
    ending(w, hero, "{h} still sits down next to new people first.")


_CONTESTS = (
    ("the kite race", "kite", "the string broke", "tied the two ends together with a knot"), ("the boat race", "boat", "the mast came down", "lent {r.him} a broomstick"),
    ("the cart race", "cart", "a wheel came off", "held the axle while {r} put the wheel on"), ("the baking contest", "cake", "the salt had got into the sugar", "shared the sugar"),
    ("the pumpkin show", "pumpkin", "the barrow tipped over", "helped to load it again"), ("the running race", "run", "{r} twisted an ankle", "took {r.him} by the arm"),
    ("the singing contest", "song", "{r} lost {r.his} voice", "sang the song with {r.him}"), ("the swimming race", "swim", "{r} got a cramp", "turned back and pulled {r.him} to the bank"),
    ("the sledge race", "sledge", "the rope tore", "cut {h.his} own rope in two"), ("the snail race", "snail", "the snail fell asleep", "tickled it with a lettuce leaf"),
)  # fmt: skip


def contest(w: World) -> None:
    name, what, mishap, deed = w.pick(_CONTESTS)
    weather = {"the sledge race": ("snowy",), "the kite race": ("windy",), "the swimming race": ("hot", "sunny")}.get(
        name, ("sunny", "windy")
    )
    w.set_scene(weather, ("morning", "afternoon"))
    hero, rival, elder = w.child("h"), w.child("r"), w.grown_up("e")
    opening(w, hero)
    prize = w.expand(
        w.pick(
            (
                "a silver cup",
                "a basket of <berries>",
                "a ham",
                "a medal on a <colour> ribbon",
                "a book of tales",
                "a goose",
                "a round cheese",
            )
        )
    )
    w.tell(
        "On <day> was {n} of {village}, and the prize was {prize}.",
        "Every year in {month} there is {n}, and the winner gets {prize}.",
        '"This year I shall win {n}," said {h}, "and take home {prize}."',
        n=name,
        prize=prize,
    )
    w.tell(
        "For <number> weeks {h} had practised every {time}.",
        "{h} had thought of nothing else since spring."
        if w.season != "spring"
        else "{h} had thought of nothing else all winter.",
        "Nobody believed in {h} but {h.himself}.",
    )
    w.say(
        rival,
        "You will never beat me.",
        "Last year I won. This year I win again.",
        "Is that your {what}? It looks tired." if what not in ("run", "swim", "song") else "You? You are too small.",
        what=what,
    )
    w.say(hero, "We shall see.", "May the better one win.", "Laugh now, because later I shall.")
    w.tell(
        "{e}, the {e.job}, raised a <colour> flag. One, two, three!",
        "A whistle blew, and it began.",
        "Everybody in {village} stood along the road and cheered.",
    )
    w.tell(
        "{r} was ahead, then {h}, then {r} again.",
        "{h} was [only|just] a nose behind.",
        "It was so close that {e} forgot to breathe.",
    )
    w.tell(
        "Then it happened: {m}.",
        "All at once there was a cry. {m}.",
        "And then, right before the end, {m}.",
        m=w.expand(mishap),
    )
    w.tell("{h} could have won now, easily.", "The way was free for {h}.", '"Go on!" people shouted to {h}.')
    kind = hero.trait != "proud" or w.chance(0.4)
    if kind:
        w.tell(
            "But {h} stopped, went back, and {d}.",
            "{h} looked at the prize, and looked at {r}. Then {h.he} {d}.",
            "Instead {h.he} {d}.",
            d=w.expand(deed),
        )
        w.say(rival, "Why are you doing this?", "You could have won!", "After what I said to you?", mood="soft")
        w.say(hero, "It is no fun to win like that.", "I want to beat you, not your bad luck.", "Ask me later. Hurry!")
        w.tell(
            "Somebody else came first, a <kind_adj> child with <worn>.",
            "They came last, both together, and the people clapped the loudest for them.",
            "In the end {r} won by a hair and did not look glad.",
        )
        w.say(
            elder,
            "I have seen many a race, but never this.",
            "There should be a prize for that as well.",
            "The first place is on paper. The best place is yours.",
        )
        w.tell(
            "{r} broke the prize in half, as well as one can break {prize}."
            if "medal" not in prize and "cup" not in prize and "goose" not in prize and "book" not in prize
            else "That evening {r} came to {h}'s door and brought {prize}.",
            "The next day {r} came to {h}'s door with <snack>.",
            prize=prize,
        )
        ending(w, hero, "{h} and {r} practise together now, every <day>.")
    else:
        w.tell("And {h} went on, and won.", "{h} did not look round. So {h.he} came in first.")
        w.tell("They gave {h} {prize}, and the music played.", "There was clapping, but not much.", prize=prize)
        w.tell(
            "At night {h} could not sleep. {prize_cap} stood beside the bed.",
            "But the prize was not as fine as {h} had thought.",
            prize_cap=prize.capitalize(),
        )
        w.say(
            hero,
            "It was not fair. Let us do it again, only you and I.",
            "I saw it, and I went on. I am sorry.",
            "This belongs to both of us.",
            mood="sad",
        )
        w.say(
            rival,
            "I would have done the same, and I would be sorry too.",
            "Now I think that you are really good.",
            "Tomorrow, then, at <number>.",
            mood="soft",
        )
        w.tell(
            "They did it again, with nobody to watch but a <animal>. Who won? They never told.",
            "They shared it, and {r} laughed for the first time.",
        )
        ending(w, hero)


PLOTS = (
    shop,
    new_child,
    contest,
)
