"""Plots at home and in the garden: baking, a night of storm, who ate the pie, the stopped clock, seeds, a noise."""

from __future__ import annotations

from .scenes import ending, introduce, opening, share_food, small_talk, thanks, walk
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


# The mark that was left behind, what it shows of who did it.
_CLUES = (
    ("a white feather", "goose", "The goose had got in through the open window."),
    ("muddy prints, small and round", "cat", "The cat was washing its whiskers, and they smelled of {food}."),
    ("a hole in the bottom of the door", "mouse", "Behind the stove lived a mouse, and it was as round as a ball."),
    ("a piece of chewed string", "puppy", "The puppy lay under the table and could not move."),
    ("black hair on the window sill", "goat", "The goat stood in the yard with cream on its beard."),
    ("shiny things laid in a row", "magpie", "In the gutter sat a magpie, too fat to fly."),
    ("a trail of crumbs", "person", ""), ("a blue thread on a nail", "person", ""), ("a button", "person", ""),
    ("purple fingerprints", "person", ""), ("a wet footprint", "person", ""), ("a dropped handkerchief", "person", ""),
)  # fmt: skip


def who_ate_it(w: World) -> None:
    w.set_scene()
    hero, friend, elder = w.child("h"), w.child("f"), w.family("e")
    suspect, culprit = w.child("s"), w.child("c")
    food = w.pick(
        (
            "the plum pie",
            "the birthday cake",
            "the sausage",
            "the jar of honey",
            "the last tart",
            "the gingerbread",
            "the cheese",
            "the bowl of cream",
        )
    )
    opening(w, hero)
    w.tell(
        "{e} had put {food} on the window sill to cool.",
        "{food_cap} was for Sunday, and nobody was allowed to touch it.",
        "At noon {food} still stood in the pantry. An hour later there was an empty plate.",
        food=food,
        food_cap=food.capitalize(),
    )
    w.say(
        elder,
        "Who has eaten {food}?",
        "It is gone! Every crumb of it!",
        "I turned round for one minute!",
        mood="cross",
        food=food,
    )
    w.say(friend, "It was not me.", "I was at the well all the time.", "Perhaps it was {s}.")
    w.say(hero, "We shall find out.", "Whoever it was has left a trace.", "Let us look before we blame anybody.")
    clue, who, found = w.pick(_CLUES)
    w.tell(
        "{h} knelt down and looked. On the floor {h.he} found {clue}.",
        "Beside the plate {h} discovered {clue}.",
        "It took {h} a long time. Then {h.he} found {clue}, and whistled.",
        clue=clue,
    )
    w.say(suspect, "Why do you look at me?", "I have been <hobby> since lunch.", "I do not even like it!")
    w.tell(
        "That was true, for {f} had seen {s.him} <outside>.",
        "{s} showed {s.his} hands, and they were clean.",
        "And {e} nodded, because {s} had been with {e.him} <inside>.",
    )
    w.paragraph()
    if who != "person":
        w.say(
            hero,
            "No person leaves {clue}.",
            "Look at this. It is {clue}.",
            "We have been asking the wrong people.",
            clue=clue,
        )
        w.tell(
            "They followed the trail [through the yard|round the house|across the kitchen].",
            "{h} put two and two together and went out into the yard.",
        )
        w.tell(found, food=w.pick(("sugar", "honey", "the feast", "nothing else")))
        w.say(
            elder,
            "You rascal!",
            "So it was the {who}! And I was cross with everybody.",
            "Next time I shall shut the window.",
            who=who,
        )
        w.say(suspect, "Will you say sorry to us?", "And I had no lunch because of it.")
        w.tell("{e} said sorry to everybody and [fried|made] <snack>.", "As a comfort {e} gave each of them <snack>.")
        ending(w, hero, f"Now the {who} gets its own plate.")
        return
    w.tell(
        "It led [to the barn|round the corner|to the wood pile]. There sat {c}.",
        "{h} looked at everybody's [sleeves|shoes|collars], and last at {c}.",
        '"Somebody was in a hurry," said {h} and looked at {c}.',
    )
    w.tell(
        "{c} went red to the ears.",
        "{c} hid both hands behind {c.his} back.",
        "{c} looked at the sky, as if it were interesting.",
    )
    w.say(
        culprit,
        "I only wanted to taste it.",
        "It smelled so good, and then it was gone.",
        "I was hungry, and I was afraid to ask.",
        mood="sad",
    )
    w.say(
        elder,
        "If you had asked, I would have cut you a piece.",
        "A whole one? Does your stomach hurt?",
        "Thank you for saying it.",
        mood="soft",
    )
    w.tell(
        "{c} washed the dishes for <number> days, and {h} dried them.",
        "The next one was baked by {c}, with {h} to help, and it was [a little flat|even better].",
    )
    small_talk(w, w.cast["s"], culprit)
    ending(w, hero, "In that house nobody is hungry for long now, for everybody asks.")


_STOPS = (
    ("a mouse had built its nest in the works", "moved the nest to the barn, with all <number> babies in it"),
    ("nobody had wound it up", "turned the key, <number> times, until it ticked"),
    ("a <bird>'s feather was stuck between two wheels", "drew it out with a hairpin"),
    ("the oil had gone stiff in the cold", "warmed the wheels with a lamp and put in one drop of oil"),
    ("a spider had spun the hands together", "blew, and the spider climbed away"),
    ("a marble had rolled under the pendulum", "took out the marble, a <colour> one"),
    ("the weight had come off its chain", "hung the weight back"),
)


def stopped_clock(w: World) -> None:
    w.set_scene()
    hero, friend, elder = (
        w.child("h"),
        w.child("f"),
        w.grown_up("e", ("clockmaker", "teacher", "bell ringer", "station master", "baker", "postmaster")),
    )
    opening(w, hero)
    hour = w.pick(("three", "four", "six", "seven", "nine", "ten", "half past two", "a quarter to five"))
    w.tell(
        "The church clock of {village} said {hour}, and it went on saying it.",
        "Something was wrong: the big clock had said {hour} for a very long time.",
        hour=hour,
    )
    w.tell(
        "The baker waited for the hour, so there was no bread.",
        "The school bell did not ring, and nobody went home.",
        "The train left, and <number> people stood on the platform and looked at the clock.",
        "The cows had not been milked, for it was never time.",
    )
    w.tell(
        "The barber went on cutting until there was no hair left.",
        "The [doctor|tailor|miller|butcher] ate lunch three times.",
        "A wedding had to wait, and the cake grew a skin.",
    )
    w.say(friend, "Is it not {hour} yet?", "It has been {hour} since breakfast.", "How long can an hour be?", hour=hour)
    w.say(hero, "Listen. It does not tick.", "The clock has stopped!", "Time goes on. Only the clock stands still.")
    w.tell(
        "They told {e}, the {e.job}, who looked at {e.his} own watch and turned pale.",
        "{e}, the {e.job}, did not believe it, and came to see.",
    )
    introduce(w, "e")
    w.tell(
        "Up the tower they went, <number> ladders and one more.",
        "The stairs of the tower went round and round, and {f} grew dizzy.",
        "In the tower it smelled of <smell>, and <sound>.",
    )
    why, deed = w.pick(_STOPS)
    w.say(
        elder, "The wheels are big. Keep your fingers away.", "I am too stout to get in there.", "Who has small hands?"
    )
    w.tell(
        "{h} crept between the wheels and saw it at once: {why}.",
        "{h} held up the lamp. {why}, that was all.",
        "Between the wheels {h} found the reason: {why}.",
        why=w.expand(why),
    )
    w.tell("{h.He} {deed}.", deed=w.expand(deed))
    w.tell(
        "Tick, said the clock. Tock.",
        "There was a jerk, a creak, and the great wheel turned.",
        "For a moment nothing moved. Then the whole tower shook, and it struck.",
    )
    w.say(friend, "It goes!", "Now it is <number> already!", "Hurrah, now we may go home!", mood="loud")
    w.tell(
        "Below, everybody began to run.",
        "Down in the street <number> doors opened at the same time.",
        "In {village} they ate breakfast, lunch, and supper in one go.",
    )
    thanks(w, elder, hero)
    ending(w, hero, "Every <day> {h} climbs up now and looks after the clock.")


_TROUBLES = {
    "dry": ("No drop had fallen for <number> weeks, and the leaves hung down.", "They carried water from the well, <number> buckets every evening.", "They dug a ditch from the stream, and the water came by itself."),
    "snails": ("In the wet weather the snails came and ate the leaves.", "They borrowed <number> ducks, and the ducks ate the snails.", "They laid a ring of ash and eggshells, and no snail would cross it."),
    "birds": ("Then the birds came and picked at the seeds.", "They built a scarecrow with a <clothes> and a pan for a head.", "They hung up tin lids, which flashed and rattled."),
    "rabbits": ("One morning half of the leaves were gone, and there were round droppings on the ground.", "They wove a fence of willow, too high for any rabbit.", "They planted onions all around, for rabbits cannot bear them."),
    "frost": ("In the night it froze, and the tips turned black.", "They covered everything with straw and old sheets.", "They put a jar over every plant, like a glass hat."),
    "weeds": ("The weeds grew faster than anything else.", "They pulled them out, row by row, until their backs hurt.", "They let in a goat on a rope, and it knew its work."),
}  # fmt: skip


def garden(w: World) -> None:
    trouble = w.pick(list(_TROUBLES))
    weather = {"dry": ("hot",), "snails": ("rainy",), "frost": ("frosty", "foggy")}.get(trouble, ("sunny", "windy"))
    w.set_scene(weather, ("morning", "afternoon"))
    hero, friend, elder = (
        w.child("h"),
        w.child("f"),
        w.grown_up("e", ("gardener", "farmer", "teacher", "beekeeper", "miller", "cook")),
    )
    crop = w.pick(
        (
            "pumpkins",
            "beans",
            "peas",
            "carrots",
            "sunflowers",
            "strawberries",
            "potatoes",
            "tomatoes",
            "radishes",
            "marrows",
        )
    )
    opening(w, hero)
    w.tell(
        "{e}, the {e.job}, had given {h} a bag of seeds, and {h} and {f} had sown them in a row.",
        "Behind the house {h} and {f} had a bed of {crop}.",
        "{h} had a garden no bigger than a <furniture>, and in it grew {crop}.",
        crop=crop,
    )
    w.tell(
        "Every day they looked whether anything had come up.",
        "When the first green tip came up, {f} danced.",
        "At first all went well.",
    )
    problem, *cures = _TROUBLES[trouble]
    w.tell(problem)
    w.say(friend, "They are dying!", "All that work for nothing!", "What shall we do?", mood="alarm")
    w.say(hero, "We must do something.", "Let us ask {e}.", "I have read about this. But I forgot how it ends.")
    if w.chance(0.6):
        wrong = {
            "dry": "sang to them",
            "snails": "told the snails to go away",
            "birds": "made faces at the birds",
            "rabbits": "put up a sign for the rabbits",
            "frost": "breathed on every leaf",
            "weeds": "put a stone on each weed",
        }[trouble]
        w.tell("{f} {wrong}, but that did not help[ at all|].", "First {f} {wrong}. It was no use.", wrong=wrong)
    w.say(
        elder,
        "Plants cannot walk, so you must do it for them.",
        "Everything has a cure. You must only know who eats whom."
        if trouble in ("snails", "birds", "rabbits")
        else "Everything has a cure. You must only begin in time.",
        "It happened to me too, <number> years ago.",
    )
    w.tell(w.pick(cures))
    w.tell(
        "It was hard work, and {h} had [earth|blisters] on [both hands|{h.his} hands].",
        "{f} fell asleep over {f.his} supper.",
    )
    w.paragraph()
    w.tell(
        "After <number> days there was a new leaf.",
        "Slowly the bed turned green again.",
        "And see, on <day> the first flower opened.",
    )
    w.tell(
        "In the end there were so many {crop} that they needed a cart.",
        "The biggest was as heavy as {f}.",
        "They had enough {crop} for {village} and for the <animal> too.",
        crop=crop,
    )
    w.say(
        friend,
        "And I thought they were dead.",
        "This one looks like {e}.",
        "I shall never pull a face at {crop} again.",
        crop=crop,
    )
    w.tell("They gave the first basket to {e}.", "Half of them went to {e}, who had given them the [seeds|advice].")
    share_food(w, hero, friend)
    ending(w, hero, "Gardens teach one thing, says {h}: look every day.")


PLOTS = (baking, night_noise, who_ate_it, stopped_clock, garden)
