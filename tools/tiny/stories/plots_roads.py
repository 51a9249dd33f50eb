"""Plots on the road: a letter gone astray, a cart that is stuck."""

from __future__ import annotations

from .scenes import ending, introduce, opening, share_food, small_talk, thanks, walk
from .world import World


def letter(w: World) -> None:
    w.set_scene()
    hero, friend = w.child("h"), w.child("f")
    right, first, second = w.grown_up("e"), w.grown_up("a"), w.grown_up("b")
    opening(w, hero)
    w.tell(
        "A letter had come, but it was not for {h}.",
        "Under the door lay a letter in a <colour> envelope.",
        "{h} found a letter <outside>.",
    )
    why = w.pick(("rain", "corner", "old", "upside"))
    w.tell(
        {
            "rain": "Rain had run over the name, and only a few letters could be read.",
            "corner": "A snail had eaten the corner with the name.",
            "old": "The stamp was very old, and so was the ink.",
            "upside": "The number was a six, or else it was a nine upside down.",
        }[why]
    )
    w.say(friend, "Open it!", "Who is it for?", "Throw it away. Nobody will know.")
    w.say(hero, "It belongs to somebody.", "One does not open other people's letters.", "Somebody is waiting for it.")
    w.tell(
        "Through the paper one could feel something [flat|hard|round].",
        "It smelled of <smell>.",
        "On the back was drawn a <bird>.",
    )
    w.tell("First they asked {a}, the {a.job}, who was <hobby>.", "They went to {a}, the {a.job}, and held it out.")
    w.say(
        first,
        "Not mine. Mine come on <day>.",
        "Nobody has written to me since {month}.",
        "I cannot read it without my glasses. Ask {b}.",
    )
    w.tell(
        "Then they knocked at the door of {b}, the {b.job}.",
        "{b}, the {b.job}, turned it over and held it against the light.",
    )
    w.say(
        second,
        "I know that hand. This is for {e}.",
        "That is an E, or I am a <bird>. No, wait. It is for {e}.",
        "{e} used to get letters like this, with a <bird> on the back.",
    )
    walk(
        w, hero, w.pick(("to the last house", "up the hill", f"to the other end of {w.village}", "down to the harbour"))
    )
    w.tell(
        "There <look_of_place>.",
        "{e} opened the door only a little way.",
        "It took a long time until there were steps.",
    )
    w.say(right, "What do you want?", "A letter? For me? That must be a mistake.", "I buy nothing.")
    w.say(hero, "I think this is yours.", "It came to the wrong house.", "Is that your <bird>?")
    w.tell(
        "{e} looked at it, and sat down on the step.", "{e}'s hands shook.", "With a kitchen knife {e} slit it open."
    )
    w.tell(
        "It was from {e.his} brother, who had gone to sea <number> years ago. He was coming home.",
        "Out fell a photograph and a key.",
        '"My daughter has a baby," said {e}, "and it is called {h} too."',
        "It was an invitation to a feast, and the feast was today.",
        "An old friend asked to be forgiven, for something that {e} had forgotten long ago.",
    )
    w.tell(
        "{e} laughed and cried at the same time.",
        "{e} read it aloud, and then once more.",
        "For the first time in years {e} put the good cups on the table.",
    )
    introduce(w, "e")
    thanks(w, right, hero)
    share_food(w, hero, friend)
    ending(w, hero, "And the postmaster got new glasses.")


_STUCK = (
    ("a cart of hay", "the wheel was in the mud up to the hub"),
    ("the milk van", "the back wheels only threw up dirt"),
    ("a wagon with a piano on it", "the axle lay on the ground"),
    ("the circus wagon", "the ditch was deeper than it looked"),
    ("a coach with a bride in it", "the horses stood and steamed"),
    ("a cart full of <vegetables>", "one wheel hung in the air"),
)


def stuck_cart(w: World) -> None:
    w.set_scene(("rainy", "stormy", "snowy"), ("morning", "afternoon"))
    hero, friend, driver = (
        w.child("h"),
        w.child("f"),
        w.grown_up("e", ("farmer", "miller", "carpenter", "innkeeper", "tinker", "postmaster", "saddler")),
    )
    strong = w.grown_up("s", ("blacksmith",))
    opening(w, hero)
    cart, how = w.pick(_STUCK)
    cart = w.expand(cart)
    w.tell(
        "At the bend of the road stood {c}, and it did not move.",
        "{h} heard shouting. In the middle of the road stood {c}.",
        "On the way to school {h} and {f} came upon {c}.",
        c=cart,
        how=how,
    )
    w.tell(
        "After all that {x} {how}.", "Because of the {x} {how}.", x="snow" if w.weather == "snowy" else "rain", how=how
    )
    w.tell(
        "{e}, the {e.job}, was sitting beside it and said [nothing|words that children do not hear].",
        "Beside it stood {e}, the {e.job}, and pulled at {e.his} cap.",
    )
    w.say(
        driver,
        "It will not move, forward or back.",
        "And at noon I must be in town!",
        "I have been here since <number> o'clock.",
    )
    w.say(hero, "May we help?", "What have you tried?", "We can push.")
    w.tell(
        "They pushed with all their might, and it rocked once and slid back.",
        "They took hold of the spokes, and {f} lost a shoe.",
        "{f} pulled the horse, {h} pushed, and the mud said smack.",
    )
    w.say(friend, "It is too heavy.", "We need an elephant.", "Fetch {s}, the blacksmith.")
    w.tell(
        "{s}, the blacksmith, came, rolled up {s.his} sleeves, and lifted. The cart rose a finger's width and sank again."
        if "cart" in cart
        else "{s}, the blacksmith, came, rolled up {s.his} sleeves, and lifted. It rose a finger's width and sank again.",
        "Even {s}, the blacksmith, could not do it.",
    )
    w.say(strong, "Strength alone will not do.", "For once I am too weak.", "One would have to think.")
    idea = w.pick(("boards", "unload", "lever", "straw"))
    w.say(
        hero,
        {
            "boards": "The wheels need something hard to roll on.",
            "unload": "And if it were lighter?",
            "lever": "A long pole makes weak arms strong.",
            "straw": "It slips because nothing holds it.",
        }[idea],
        "I have an idea.",
        "Wait. I know what my grandmother does.",
    )
    w.tell(
        {
            "boards": "They laid fence boards under the wheels, one after another.",
            "unload": "They carried everything to the side of the road, piece by piece, and {f} counted.",
            "lever": "They put a tree trunk over a stone, and everybody sat on the long end.",
            "straw": "They strewed straw and ashes in the ruts, as thick as a mattress.",
        }[idea]
    )
    w.say(driver, "Now, all together!", "Once more, with a heave!", "Pull, old girl!", mood="loud")
    w.tell(
        "There was a sucking sound, a jerk, and it rolled.",
        "First a hand's width, then a step, and then it stood on firm ground.",
        "It came out like a cork from a bottle, and {f} sat in the mud.",
    )
    thanks(w, driver, hero)
    w.tell(
        "{e} gave them a ride to {village}, high up on the load.",
        "{e} let {h} hold the reins, as far as the bridge.",
        "{h} came late to school, muddy to the ears, but with a good excuse.",
    )
    small_talk(w, w.cast["f"], hero)
    ending(w, hero, "There is gravel on that bend now.")


PLOTS = (
    letter,
    stuck_cart,
)
