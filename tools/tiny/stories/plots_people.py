"""Plots between people: a quarrel, a chain of trades, a shop with sums that come out, a new child, a contest."""

from __future__ import annotations

from .scenes import aside, ending, introduce, opening, small_talk, walk
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


PLOTS = (quarrel, trades, shop, new_child, contest)
