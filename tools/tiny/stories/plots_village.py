"""Plots of the village: who ate the pie, why the clock stands still, what threatens the garden."""

from __future__ import annotations

from .scenes import ending, introduce, opening, share_food, small_talk, thanks
from .world import World

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


PLOTS = (
    who_ate_it,
    stopped_clock,
    garden,
)
