"""Scenes that every plot can use: how a story opens, who somebody is, what can be seen on the way, how it ends."""

from __future__ import annotations

from .words import JOBS
from .world import Person, World

_WEATHER = {
    "windy": (
        "The wind [blew|came] [hard|in gusts] from the [north|west|hills|sea].",
        "It was so windy that [the trees bent|hats flew|doors banged|smoke went sideways] in {village}.",
        "All [{time}|day] the wind had been [pulling at|shaking] the [shutters|branches|washing|roof tiles].",
        "A [strong|wild|fresh|cold] wind [ran|raced|swept] through the [streets|lanes|fields] of {village}.",
    ),
    "rainy": (
        "It had rained [since dawn|all night|for <number> days], and every [path|lane|step] in {village} was wet.",
        "Rain [drummed|pattered|tapped] on the [roofs|windows|barrels] and ran down the [street|hill|gutters].",
        "The rain had [only just stopped|hardly stopped], and there were puddles [everywhere|in every lane].",
        "Grey clouds [hung|lay] over {village}, and it would not stop raining.",
    ),
    "sunny": (
        "The sun shone on {village}, and [the windows sparkled|the cats lay on the walls|every door stood open].",
        "It was a [bright|clear|mild|golden] {time} in {month}, and there was not a cloud in the sky.",
        "Sunlight [lay|fell] [warm|soft] on the [roofs|fields|hedges], and <sound>.",
        "After <number> grey days the sun had come out [at last|again].",
    ),
    "hot": (
        "It was so hot that [the tar melted|the hens lay in the shade|nobody wanted to move|even the flies were slow].",
        "No rain had fallen for <number> weeks, and the [fields|gardens|lanes] were dry and dusty.",
        "The [sun burned|heat lay] on {village}, and the air [shook|trembled] above the road.",
    ),
    "foggy": (
        "Fog had come up from the [river|sea|meadows], and nobody could see farther than the next [gate|lamp|wall].",
        "A thick [white|grey] fog [lay|hung] over {village}, so the [houses|trees] looked like [ghosts|ships|giants].",
        "The fog was so thick that [{month} seemed to have no sky|the church had lost its tower|the road ended after ten steps].",
    ),
    "stormy": (
        "Black clouds [rolled|came] over the hills, and thunder [growled|rumbled] behind {village}.",
        "A storm was [coming|on its way], and [the swallows flew low|the cows stood close together|the air smelled of rain].",
        "Lightning [flashed|flickered] over the [fields|sea|church], and the first heavy drops fell.",
    ),
    "snowy": (
        "It had snowed [all night|for two days], and {village} was white from the [pump|mill] to the [church|bridge].",
        "Snow lay [deep|thick] on the roofs, and every step went crunch.",
        "Big flakes were [falling|drifting down], and the [lanes|fields] had gone quiet under the snow.",
    ),
    "frosty": (
        "It was so cold that [the pond had frozen|breath hung in the air like smoke|icicles hung from every roof].",
        "Frost had [drawn ferns|painted flowers] on the windows, and the [lanes|steps] of {village} were covered in ice.",
        "The {time} was clear and bitterly cold, and the puddles had turned to glass.",
    ),
}  # fmt: skip

_TRAITS = {
    "careful": (
        "{p} always looked twice before {p.he} did anything.", "{p} was a careful {w} who never ran on stairs.",
        "{p} tied every knot [twice|three times].", "{p} never went out without [a handkerchief|a ball of string|<treasure>].",
    ),
    "bold": (
        "{p} was not afraid of [anything|spiders|the dark|the deep end].", "{p} was bold, and sometimes a little too bold.",
        "{p} had already fallen out of <number> trees.", "{p} jumped first and looked afterwards.",
    ),
    "shy": (
        "{p} was shy and [spoke very little|liked to stand at the back].", "{p} would rather listen than talk.",
        "{p} turned red when anybody said {p.his} name.", "{p} had a quiet voice and [quick|bright|sharp] eyes.",
    ),
    "curious": (
        "{p} asked more questions in an hour than most people ask in a [week|month|year].",
        "{p} was curious about [everything|locks and lids|how things worked|what lay behind the hill].",
        "{p} wanted to know why [the sky is blue|cats purr|bread rises|glass breaks].", "{p} looked into every box and under every stone.",
    ),
    "patient": (
        "{p} could wait longer than a [heron|cat|fisherman].", "{p} was patient and never [pushed|hurried] anybody.",
        "{p} could untangle any knot, if it took all day.", "{p} did one thing after another, and none of them twice.",
    ),
    "cheerful": (
        "{p} [sang|hummed|whistled] from [breakfast|morning] to bedtime.", "{p} was cheerful even on rainy Mondays.",
        "{p} laughed so loudly that [windows shook|birds flew up].", "{p} had a joke for every day of the week.",
    ),
    "stubborn": (
        "Once {p} had made up {p.his} mind, not even a [mule|horse|storm] could change it.", "{p} never gave up.",
        "{p} had a head as hard as a [nut|stone|church door].", "When {p} said no, it was no.",
    ),
    "dreamy": (
        "{p} was often somewhere else in {p.his} thoughts.", "{p} liked to look at clouds and forgot [the time|{p.his} shoes].",
        "{p} once put [salt|ink|sand] into {p.his} tea without noticing.", "{p} could stare at <treasure> for an hour.",
    ),
    "clever": (
        "{p} was good at [puzzles|sums|riddles] and had an idea for everything.", "{p} was known as a clever {w}.",
        "{p} could do sums in {p.his} head and crosswords upside down.", "{p} had read every book in {village}, some of them twice.",
    ),
    "kind": (
        "{p} had a kind word for everybody.", "{p} was a kind {w} who carried [beetles|snails] off the road.",
        "{p} gave half of everything away.", "No <animal> was afraid of {p}.",
    ),
    "proud": (
        "{p} was proud and did not like to [ask for help|be wrong].", "{p} thought a good deal of {p.himself}.",
        "{p} walked as if somebody were playing a trumpet.", "{p} had never said sorry in {p.his} life.",
    ),
    "hasty": (
        "{p} did everything in a hurry and often did it twice.", "{p} ran first and thought later.",
        "{p} could not wait, not even for {p.his} own [birthday|shoelaces].", "{p} talked so fast that the words fell over each other.",
    ),
}  # fmt: skip

_ASIDES = (
    "Somewhere <sound>.",
    "[The air|The lane|The whole street|The yard] smelled of <smell> [and|and of] <smell>.",
    "<sound>, and [a|one] <bird> sang in the <tree>.",
    "A <animal> [watched|looked on] from [behind the fence|the other side of the road|a safe distance].",
    "In the garden <flowers> and <flowers> were nodding.",
    "[On the corner|Across the road|Next door] <look_of_place>.",
    "A <bird> hopped along the [wall|fence|roof] and listened.",
    "For a [moment|while] nobody said anything, and <sound>.",
    "An old <furniture> stood [outside the door|in the yard], waiting to be mended.",
    "Behind the <tree> <sound>.",
)
_ASIDES_INDOORS = (
    "The <room> smelled of <smell>.",
    "On the <furniture> lay a <clothes> and a <tool>.",
    "Somebody had left <snack> on the <furniture>.",
    "Outside <sound>.",
    "The clock ticked, and <sound>.",
)


def weather_line(w: World) -> None:
    w.tell(*_WEATHER[w.weather])


def introduce(w: World, slot: str) -> None:
    """One or two sentences about somebody: trait, work or hobby, what they wear."""
    person: Person = w.cast[slot]
    what = person.man if person.grown else person.child
    w.describe(*_TRAITS[person.trait], p=person, w=what)
    if w.chance(0.4):
        w.describe(
            "{p.He} wore <worn>[| and <worn>].",
            "In {p.his} pocket {p.he} [carried|kept] <treasure>[| and <treasure>].",
            "What {p.he} liked best was <hobby>[| and <hobby>].",
            "{p.He} had <worn> and a [laugh|smile|walk|voice] that everybody knew.",
            p=person,
        )


def opening(w: World, hero: Person) -> None:
    """The first paragraph: who, where, when, in any order."""
    order = w.pick(("weather", "person", "place", "time"))
    if order == "weather":
        weather_line(w)
    elif order == "person":
        w.tell(
            "{h} lived in {village}, [in a <small> house where|at the end of a lane where|next to a mill where] <look_of_place>.",
            "In {village} there lived a [<kind_adj> |]{h.child} called {h}.",
            "There was once a {h.child} named {h}, who lived [above the bakery|near the harbour|behind the school|by the bridge] in {village}.",
            "Everybody in {village} knew {h}[, because {h.he} was always <hobby>|].",
            h=hero,
        )
    elif order == "place":
        w.tell(
            "In {village} <look_of_place>, and <sound>.",
            "{village} is a <small> place[, with one street and <number> chimneys|, and not much happens there|].",
            "If you follow the road past the <tree>, you come to {village}, where {h} lived.",
            h=hero,
        )
    else:
        w.tell(
            "On [a|the first|the last] {day} in {month}, [in the {time}|before breakfast|just after lunch], {h} was <hobby>."
            if w.time != "evening"
            else "On a {day} evening in {month} {h} was [sitting|standing] <outside>.",
            "It was a {day} in {month}[, and {h} had nothing to do|, and {h} was in a good mood|, and {h} had got up early].",
            h=hero,
        )
    if order == "weather" or w.chance(0.5):
        introduce(w, "h")
    if order != "weather":
        weather_line(w)


def aside(w: World, indoors: bool = False) -> None:
    """What can be seen, heard or smelled meanwhile."""
    outdoors = _ASIDES if w.season != "winter" else tuple(x for x in _ASIDES if "flowers" not in x)
    w.tell(*(_ASIDES_INDOORS if indoors else outdoors))


def walk(w: World, person: Person, where: str) -> None:
    """Somebody goes somewhere; ``where`` begins with its preposition."""
    w.tell(
        "{p} <walked> {where}[| past the <tree>| with {p.his} hands in {p.his} pockets].",
        "So {p} <walked> {where}.",
        "Without waiting, {p} <walked> {where}.",
        "{p} put on {p.his} <clothes> and <walked> {where}.",
        "[A few minutes later|Soon|After breakfast] {p} was on {p.his} way {where}."
        if w.time == "morning"
        else "[A few minutes later|Soon|Before long] {p} was on {p.his} way {where}.",
        p=person,
        where=where,
    )
    if w.chance(0.35):
        aside(w)


_TALK = (
    (
        ("Do you think it will [rain|change|last]?", "What will the weather do tomorrow?"),
        ("The swallows are flying [low, so it may rain|high, so it will be fine].", "My knee says [rain|sunshine], and it is never wrong.", "Ask the <bird>. It knows."),
    ),
    (
        ("What did you have for breakfast?", "Are you hungry?", "What is there to eat?"),
        ("Only <snack>.", "There is <snack> in my bag.", "I always think of <snack> at this hour.", "Not since I had <snack>."),
    ),
    (
        ("What would you do with <number> wishes?", "What would you like for your birthday?", "What would you buy with <number> coins?"),
        ("I would ask for <treasure>.", "Nothing but <treasure>.", "First <snack>, and then <snack>.", "<treasure>, or else a <colour> <clothes>."),
    ),
    (
        ("What do you want to be one day?", "What will you do when you are <number> times as old?"),
        ("I would like to spend all day <hobby>.", "A {job}, or else a {other}.", "Somebody who is good at <hobby>.", "I will be a {job} and live [by the sea|on a hill|in a tower]."),
    ),
    (
        ("What have you got in your pocket?", "What is that in your hand?"),
        ("It is <treasure>. I found it <outside>.", "Only <treasure>.", "<treasure>, but do not tell anybody."),
    ),
    (
        ("Have you seen the <animal> today?", "Whose <animal> is that?"),
        ("It was <outside> an hour ago.", "It belongs to the {job}.", "It comes and goes as it likes.", "It is asleep <outside>."),
    ),
    (
        ("Why are the <flowers> late this year?", "Who planted the <flowers>?"),
        ("The {job} did, in {month}.", "They need more [sun|rain|time].", "Nobody knows. They came with the [wind|birds]."),
    ),
    (
        ("Shall we play <game> [later|tomorrow|after supper]?", "Do you know how to play <game>?"),
        ("Only if I may begin.", "You always win at that.", "I would rather try <hobby>.", "Yes, but first things first."),
    ),
    (
        ("Can you smell <smell>?", "What smells like <smell> here?"),
        ("Somebody is cooking <vegetables>.", "That is the {job}.", "I smell only <smell>.", "It is my <clothes>. It got wet."),
    ),
)  # fmt: skip


def small_talk(w: World, a: Person, b: Person) -> None:
    """A question and its answer, about anything."""
    ask, answer = w.pick(_TALK)
    w.say(a, *ask)
    w.say(b, *answer, job=w.pick(JOBS), other=w.pick(JOBS))


def thanks(w: World, giver: Person, helper: Person) -> None:
    """Words of thanks, and the answer."""
    w.say(
        giver,
        "Thank you, {b}. I [shall not forget this|could not have done it alone].",
        "How can I ever thank you, {b}?",
        "You are a true friend, {b}.",
        "That was [very |really |]kind of you.",
        "I am <happy> that you came, {b}.",
        "You have <good> ideas, {b}. Thank you.",
        b=helper,
    )
    w.say(
        helper,
        "It was nothing.",
        "Anybody would have done the same.",
        "I liked doing it.",
        "Next time you can help me.",
        "It was [more fun than <hobby>|the best part of my day].",
        "You would have done it for me.",
        mood="soft",
    )


def share_food(w: World, a: Person, b: Person) -> None:
    """They eat together."""
    w.tell(
        "[Then|Afterwards] they sat <outside> and shared <snack>.",
        "{a} fetched <snack> and <snack>, and they ate until [nothing was left|they were full].",
        "{a} gave {b} <snack>, and {b} said that [nothing had ever tasted better|it tasted of <smell>].",
        "They celebrated with <snack>[| and <snack>].",
        a=a,
        b=b,
    )


def ending(w: World, hero: Person, lesson: str = "") -> None:
    """The last lines; ``lesson`` is what this plot taught."""
    w.paragraph()
    if lesson and w.chance(0.6):
        w.describe(lesson)
    w.describe(
        "That night {h} [slept|fell asleep] with a smile.",
        "And when {h} tells the story today, {h.he} always [begins with the weather|laughs at the same place|leaves out the mud].",
        "On the way home {h} [whistled|sang|hummed] and counted [the <flowers>|the windows|{h.his} steps|the chimneys].",
        "It was, all in all, a good [day|{day}].",
        "People in {village} [still talk about it|talked about it for <many> weeks].",
        "{h} went home [<happy> and <tired>|<tired> but <happy>].",
        "At supper there was <snack>, and {h} told everything twice.",
        "From then on {h} was [a little braver|a little wiser|a friend to everybody].",
        "{h} wrote it all down in a notebook with a <colour> cover.",
        "Outside <sound>, and all was well.",
        "And {h}? {h.He} was already thinking about tomorrow.",
        "The moon rose over {village}, and <sound>.",
        "Then {h} put <treasure> on the shelf, so that {h.he} would [always remember it|not forget that day].",
        h=hero,
    )
