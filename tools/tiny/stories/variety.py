"""Other words for the same: synonyms wherever a template has one of them, and what a thing of the place is like.

A synonym fits wherever its word stands in a template. What a thing is like is settled once a story, when the thing is
first named: the gate that was rusty stays rusty.
"""

from __future__ import annotations

import re

_SETS = """
all at once|suddenly|out of nowhere
at once|right away|straight away|immediately
for a moment|for a second|for an instant
in the end|at last|finally
looked at|gazed at|stared at|peered at|studied
looked around|glanced around|peered around
began to|started to
came back|returned
went home|walked home|headed home|trudged home
ran|raced|rushed|hurried|dashed
walked|strolled|wandered|tramped
climbed|clambered|scrambled
jumped|leaped|sprang|hopped
pulled|tugged|hauled|heaved
pushed|shoved
fell|tumbled
crept|tiptoed|stole
shouted|yelled|bellowed
laughed|chuckled|giggled
smiled|grinned|beamed
found|discovered
fetched|brought|got
big|large|great
small|little|tiny
everybody|everyone
nobody|no one
somebody|someone
anybody|anyone
perhaps|maybe
until|till
beside|next to
under|beneath
shall|will
house|cottage
road|lane|track
path|track|footpath
brook|stream
hill|slope
meadow|field|pasture
rope|cord
bag|sack
basket|hamper
noise|sound
yard|courtyard
stairs|steps
lovely|beautiful
clever|bright|smart
glad|pleased|happy
afraid|scared|frightened
angry|cross|annoyed
tired|weary|sleepy
wet|soaked|damp
loudly|noisily
quietly|softly
a long time|a long while|quite some time
a little later|a little while later|soon afterwards
just then|at that moment
farther|further
every|each
whole|entire
people|folk
story|tale
supper|dinner|tea
piece by piece|bit by bit|one after another
piece to piece|bit to bit
piece|bit
twice|two times
sat down|took a seat
"""
SYNONYMS: dict[str, tuple[str, ...]] = {}
for _line in _SETS.split("\n"):
    _words = tuple(_line.split("|"))
    if _words != ("",):
        SYNONYMS[_words[0]] = _words
_WORD = re.compile(r"\b(" + "|".join(sorted(map(re.escape, SYNONYMS), key=len, reverse=True)) + r")\b", re.IGNORECASE)

_LOOKS = """
door: heavy, narrow, green, squeaking, low, wooden, oak, painted
gate: iron, crooked, white, rusty, wide, wooden, blue
house: tall, crooked, white, narrow, brick, thatched, grey, yellow
cottage: thatched, white, pink, lonely, low, old
river: wide, brown, winding, swift, deep, noisy
road: long, winding, narrow, straight, bumpy, stony
lane: narrow, crooked, steep, winding, stony, sunken
path: narrow, crooked, steep, winding, stony, overgrown
bridge: wooden, arched, narrow, low, hump-backed
mill: noisy, tall, grey, tumbledown, wooden
church: grey, little, white, ancient, square
school: red, little, brick, draughty, new
shop: tiny, crowded, busy, narrow, gloomy
market: busy, noisy, crowded, weekly, little
table: round, long, oak, scrubbed, wobbly
window: open, dusty, round, small, high, tall
wall: low, mossy, crumbling, white, brick, high
fence: white, wooden, low, wicker, picket
garden: walled, wild, neat, long, sloping
pond: round, deep, muddy, dark, reedy
hill: steep, bare, round, high, stony
barn: red, draughty, empty, wooden, huge
tower: tall, leaning, square, slender, mossy
kitchen: warm, bright, smoky, cosy, untidy
stove: iron, tiled, black, hot, pot-bellied
cupboard: tall, painted, creaking, deep, old
box: wooden, flat, square, dented, oblong
basket: wicker, round, deep, covered, heavy
rope: long, thick, frayed, strong, tarred
ladder: long, wobbly, wooden, shaky
lantern: brass, dim, swinging, bright, smoky
candle: thick, short, flickering, crooked, tall
bell: brass, silver, little, shrill, cracked
cart: creaking, two-wheeled, painted, rickety
bench: stone, long, wooden, mossy, low
well: deep, old, covered, stone
attic: dusty, dark, cold, cluttered
cellar: damp, dark, cool, musty
hedge: thick, tall, clipped, wild, prickly
field: wide, flat, far, stony, sloping
counter: long, polished, high, marble
shelf: top, bottom, narrow, crooked, highest
roof: steep, red, tiled, mossy, flat
letter: thick, thin, crumpled, long, scented
street: quiet, cobbled, narrow, main, busy
stone: flat, round, smooth, grey
stick: long, forked, crooked, sturdy
spade: rusty, heavy, small, borrowed
bucket: tin, leaky, wooden, battered
boat: little, leaky, flat, painted
chair: wicker, broken, high, cane
clock: tall, ticking, brass, old
map: yellow, torn, crumpled, faded
coat: long, patched, borrowed, warm
wind: cold, wild, howling, sharp
storm: great, sudden, roaring, terrible
fog: cold, thick, creeping, pale
sun: warm, bright, low, golden
oven: hot, black, wide
chimney: tall, smoking, crooked
flag: little, fluttering, frayed
crowd: cheering, merry, noisy
prize: splendid, shining, handsome
stall: striped, crowded, corner
fountain: splashing, round, mossy
"""
LOOKS: dict[str, tuple[str, ...]] = {}
for _line in filter(None, _LOOKS.split("\n")):
    _noun, _adjectives = _line.split(": ")
    LOOKS[_noun] = tuple(_adjectives.split(", "))
NAMED = re.compile(
    r"\b([Tt]he|[Aa]) ("
    + "|".join(LOOKS)
    + r")\b(?! (?:of the church|ringer|keeper|maker|builder|boards?|posts?|race|bridge))"
)
LOOK_SHARE = 0.55


def split_synonyms(text: str) -> list[tuple[str, ...] | str]:
    """Literal text as pieces: a string, or the words that may stand in a place, in its capitals."""
    pieces: list[tuple[str, ...] | str] = []
    at = 0
    for match in _WORD.finditer(text):
        words = SYNONYMS[match[1].lower()]
        if match[1][0].isupper():
            words = tuple(word[0].upper() + word[1:] for word in words)
        pieces += [text[at : match.start()], words]
        at = match.end()
    return [piece for piece in [*pieces, text[at:]] if piece]


# What may stand before a speech, and the words that a speech may then begin with, in small letters.
INTERJECTIONS = (
    "Well,", "Oh,", "Look,", "You know,", "Listen,", "Ah,", "Now,", "I say,", "Goodness,", "Wait,", "Hm,", "You see,", "Indeed,",
    "Dear me,", "Believe me,", "Honestly,",
)  # fmt: skip
SOFT_STARTS = frozenset(
    [
        "The",
        "A",
        "It",
        "We",
        "They",
        "You",
        "He",
        "She",
        "There",
        "This",
        "That",
        "Let",
        "My",
        "Your",
        "In",
        "On",
        "If",
        "Nobody",
        "Somebody",
        "Everybody",
        "Someone",
        "No",
        "Something",
        "Nothing",
        "Perhaps",
        "Maybe",
        "Those",
        "These",
        "Only",
        "All",
        "Even",
        "Half",
        "Some",
        "For",
        "Without",
        "At",
    ]
) - {"No"}

# What is seen, smelled or thought between two steps of a plot.
INTERLUDE_SHARE = 0.2
TAIL_SHARE = 0.14
INTERLUDES = (
    "{p} thought of <snack>.", "{p} thought of <treasure>, which was lying at home.", "{p} would rather have been <hobby>.",
    "In {p.his} pocket {p} felt <treasure>.", "Somewhere <sound>.", "It smelled of <smell>[| and a little of <smell>].",
    "Far away <sound>.", "A <bird> [called|flew up|cried|looked on].", "A <animal> [ran|crept|came|went] past.",
    "{p} pulled {p.his} <clothes> tighter.", "\"<snack>,\" thought {p}, \"that would be the thing now.\"",
    "It was like <hobby>: one had to begin.", "{p} remembered what {p.his} grandmother said about <flowers>.",
    "There was a smell of <smell> [everywhere|in the air|about].",
    "A <colour> <clothes> hung on a nail.", "{p} counted to <number>.", "[Once|Twice] <sound>.",
    "{p} nearly stepped on a <tool>.", "Something <colour> moved, but it was only a <animal>.",
    "{p} whistled like a <bird>.", "A <tool> and a <clothes> had been left [there|lying about].",
    "\"I wish I had <treasure>,\" {p} said to {p.himself}.", "It was as quiet as in a <room>.",
)  # fmt: skip

# What may stand before a sentence that says what somebody did.
OPENERS = (
    "Then", "Now", "So", "After that", "And so", "With that,", "Before long", "A moment later", "In a little while",
    "At this,", "A minute later", "Without a word", "At that,",
)  # fmt: skip
_DEEDS = frozenset(
    [
        "took",
        "went",
        "came",
        "put",
        "held",
        "gave",
        "sat",
        "knelt",
        "got",
        "set",
        "let",
        "threw",
        "shot",
        "drew",
        "led",
        "wrote",
        "read",
        "blew",
        "hid",
        "tied",
        "cut",
        "shook",
        "sang",
    ]
)


def is_deed(text: str) -> bool:
    """Whether a sentence "X did ..." tells a deed, so that a word of time may stand before it."""
    words = text.split(" ", 2)
    if len(words) < 3 or "," in words[0]:
        return False
    if words[0] in ("Mr", "Mrs", "Aunt", "Uncle", "Grandma", "Grandpa", "Grandmother", "Grandfather"):
        words = text.split(" ", 3)[1:]
        if len(words) < 3:
            return False
    stative = ("liked", "wanted", "wished", "owned", "needed", "lived", "remembered", "tugged,", "looked", "practised")
    return words[1] in _DEEDS or (words[1].endswith("ed") and words[1] not in stative)
