"""Turns templates into text: choices, slots, word lists, dialogue, paragraphs.

A template holds

    [a|b|]       one of the alternatives (they nest, one may be empty)
    {x}, {x.y}   the value or attribute of a slot, given in the call or cast before
    <list>       a word of that list, none twice in a story

Articles ("a" before a vowel), spaces and capitals at the start of a sentence are put right afterwards.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from .variety import (
    INTERJECTIONS,
    INTERLUDE_SHARE,
    INTERLUDES,
    LOOK_SHARE,
    LOOKS,
    NAMED,
    OPENERS,
    SOFT_STARTS,
    TAIL_SHARE,
    is_deed,
    split_synonyms,
)
from .words import LISTS

T = TypeVar("T")
Node = tuple[
    str, Any
]  # ("text", str), ("word", synonyms), ("choice", alternatives), ("slot", (name, attribute)), ("list", name)
_PIECE = re.compile(r"[\[\]|]|\{([a-z_]+)(?:\.([A-Za-z_]+))?\}|<([a-z_]+)>|[^\[\]|{<]+")
_ARTICLE = re.compile(r"\b([Aa]) (?=(?:[aeio]|u(?!n[ai]|se|ku)|[AEIO]|hour|honest)(?!ne\b|nce\b))")
_SENTENCE = re.compile(r"(^\"?|[.!?] \"?|\.\" )([a-z])")


@functools.cache
def parse(template: str) -> tuple[Node, ...]:
    """A template as nodes; alternatives are tuples of nodes."""
    # Open choices from the outside in: the alternatives that are done, then the one being read.
    open_: list[list[list[Node]]] = [[[]]]
    for match in _PIECE.finditer(template):
        piece, here = match[0], open_[-1]
        if piece == "[":
            open_.append([[]])
        elif piece == "|":
            here.append([])
        elif piece == "]":
            open_.pop()
            open_[-1][-1].append(("choice", tuple(tuple(nodes) for nodes in here)))
        elif match[1]:
            here[-1].append(("slot", (match[1], match[2])))
        elif match[3]:
            here[-1].append(("list", match[3]))
        else:
            for part in split_synonyms(piece):
                here[-1].append(("text", part) if isinstance(part, str) else ("word", part))
    if len(open_) != 1 or len(open_[0]) != 1:
        raise ValueError(f"template {template!r}: brackets do not match")
    return tuple(open_[0][0])


class Teller:
    """Text of one story in the making. ``rng.random()`` is the only source of chance (its values never change)."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.cast: dict[str, Any] = {}
        self.paragraphs: list[list[str]] = [[]]
        self.people: list[Any] = []
        self._used: set[str] = set()
        self._look: dict[str, str] = {}
        self._last_speakers: list[str] = []

    # Chance ------------------------------------------------------------------------------------------------------

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.rng.random() * len(items))]

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """A new order, by Fisher and Yates."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = int(self.rng.random() * (i + 1))
            out[i], out[j] = out[j], out[i]
        return out

    def fresh(self, items: Sequence[str]) -> str:
        """An entry that this story has not used yet, where one is left."""
        for _ in range(12):
            entry = self.pick(items)
            if entry not in self._used:
                break
        self._used.add(entry)
        return entry

    # Templates ---------------------------------------------------------------------------------------------------

    def expand(self, template: str, /, **slots: Any) -> str:
        return "".join(self._parts(parse(template), slots))

    def _parts(self, nodes: Sequence[Node], slots: dict[str, Any]) -> Iterator[str]:
        for kind, value in nodes:
            if kind == "text":
                yield value
            elif kind == "word":
                yield self.pick(value)
            elif kind == "choice":
                yield from self._parts(self.pick(value), slots)
            elif kind == "slot":
                held = slots[value[0]] if value[0] in slots else self.cast[value[0]]
                yield str(getattr(held, value[1]) if value[1] else held)
            else:
                yield from self._parts(parse(self.fresh(LISTS[value])), slots)

    def tell(self, /, *templates: str, **slots: Any) -> None:
        """Add a sentence or several: one of the templates, none of them twice in a story."""
        template = self.fresh(templates) if len(templates) > 1 else templates[0]
        text = self._opened(self._with_pronoun(self.expand(template, **slots)))
        self._add(self._with_tail(text))
        self._last_speakers.clear()
        if self.people and self.chance(INTERLUDE_SHARE):
            self._add(self.expand(self.fresh(INTERLUDES), p=self.people[0]))

    def _with_tail(self, text: str) -> str:
        """A short sentence may end with what was heard meanwhile."""
        if len(text.split()) <= 11 and text.endswith(".") and text[0] != '"' and self.chance(TAIL_SHARE):
            return self.expand("{text}, [while|and] <sound>.", text=text[:-1])
        return text

    def describe(self, /, *templates: str, **slots: Any) -> None:
        """As ``tell``, for what is so and does not happen now: no word of time stands before it."""
        self._add(self._with_pronoun(self.expand(self.fresh(templates), **slots)))
        self._last_speakers.clear()

    def _with_pronoun(self, text: str) -> str:
        """He or she for a name that also began the sentence before, where that names nobody else it could be."""
        before = self.paragraphs[-1][-1] if self.paragraphs[-1] else ""
        for person in self.people:
            if not text.startswith(f"{person} ") or self.chance(0.25):
                continue
            others = [p for p in self.people if p is not person and p.she == person.she]
            if before.startswith((f"{person} ", f"{person.He} ")) and not any(str(p) in before for p in others):
                return person.He + text[len(str(person)) :]
        return text

    def _opened(self, text: str) -> str:
        """Now and then a word of time before what somebody did."""
        person = text.startswith((*(f"{person} " for person in self.people), "He ", "She ", "They "))
        if not person or not self.paragraphs[-1] or not is_deed(text) or not self.chance(0.3):
            return text
        if text.startswith(("He ", "She ", "They ")):
            text = text[0].lower() + text[1:]
        return f"{self.fresh(OPENERS)} {text}"

    def _looks(self, match: re.Match[str]) -> str:
        """A noun with what it is like, if that was settled so."""
        noun = match[2]
        if noun not in self._look:
            self._look[noun] = f"{self.pick(LOOKS[noun])} " if self.chance(LOOK_SHARE) else ""
        return f"{match[1]} {self._look[noun]}{noun}"

    def paragraph(self) -> None:
        if self.paragraphs[-1]:
            self.paragraphs.append([])

    def _add(self, text: str) -> None:
        if len(self.paragraphs[-1]) > 3 and self.chance(0.3):
            self.paragraph()
        if text.strip():
            self.paragraphs[-1].append(NAMED.sub(self._looks, text.strip()))

    # Dialogue ----------------------------------------------------------------------------------------------------

    def say(self, who: Any, /, *lines: str, mood: str = "", **slots: Any) -> None:
        """A speech in a paragraph of its own. mood: "", "loud" (glad), "soft", "sad", "cross", "alarm"; questions and answers by the text."""
        line = self.expand(self.fresh(lines) if len(lines) > 1 else lines[0], **slots).strip()
        line = self._spoken(who, line)
        answer = bool(self._last_speakers) and self._last_speakers[-1] != str(who)
        self.paragraph()
        self._add(self._speech(who, line, mood, answer))
        self.paragraph()
        self._last_speakers.append(str(who))

    def _spoken(self, who: Any, line: str) -> str:
        """Now and then a word before a speech ("Well, ..."), or the name of who is spoken to after it."""
        first = line.split(" ", 1)[0].rstrip(",.!?")
        if (first in SOFT_STARTS or first == "I") and self.chance(0.25):
            line = f"{self.fresh(INTERJECTIONS)} {line if first == 'I' else line[0].lower() + line[1:]}"
        others = [name for name in self._last_speakers[-2:] if name != str(who)]
        if others and others[-1] not in line and len(line.split()) <= 9 and self.chance(0.2):
            line = f"{line[:-1]}, {others[-1]}{line[-1]}"
        return line

    def _speech(self, who: Any, line: str, mood: str, answer: bool) -> str:
        end = line[-1]
        turns = len(set(self._last_speakers[-2:]) | {str(who)}) == 2 and len(self._last_speakers) >= 2
        roll = self.rng.random()
        if answer and turns and roll < 0.25:
            return f'"{line}"'
        if roll < 0.45:
            return f'{self.expand(self._beat(mood), who=who)} "{line}"'
        verb = self._verb(end, mood, answer)
        adverbs = "loudly" if end == "!" and mood in ("", "soft") else _ADVERBS[mood]
        how = self.expand(f" <{adverbs}>", who=who) if self.chance(0.4) else ""
        if roll < 0.6:
            return f'{who} {verb}{how}, "{line}"'
        inner = line[:-1] + "," if end == "." else line
        first, mark, rest = inner.partition(", ")
        if (
            roll < 0.75
            and mark
            and 2 <= len(first.split()) <= 6
            and len(rest.split()) > 2
            and not re.search("[.!?]", first)
        ):
            return f'"{first}," {self._tag(who, verb, how)}, "{rest[:-1] + end if end == "." else rest}"'
        return f'"{inner}" {self._tag(who, verb, how)}.'

    def _tag(self, who: Any, verb: str, how: str) -> str:
        return f"{verb} {who}" if self.chance(0.7) and not how and " " not in verb else f"{who} {verb}{how}"

    def _verb(self, end: str, mood: str, answer: bool) -> str:
        if end == "?":
            return self.pick(("asked", "asked", "wondered", "wanted to know", "said"))
        if end == "!":
            return self.pick(("cried", "called", "shouted", "exclaimed")) if mood != "soft" else "said"
        if mood == "sad":
            return self.pick(("sighed", "said", "murmured", "sobbed"))
        if mood == "soft":
            return self.pick(("said", "whispered", "murmured", "said"))
        return self.pick(("answered", "replied", "said")) if answer and self.chance(0.6) else "said"

    def _beat(self, mood: str) -> str:
        return self.fresh(_BEATS[mood])

    # The whole ---------------------------------------------------------------------------------------------------

    def text(self) -> str:
        return "\n\n".join(tidy(" ".join(part)) for part in self.paragraphs if part) + "\n"

    def n_words(self) -> int:
        return sum(len(sentence.split()) for part in self.paragraphs for sentence in part)


def tidy(paragraph: str) -> str:
    """Spaces, articles and capitals."""
    text = re.sub(r" +", " ", paragraph.strip())
    text = re.sub(r" ([,.;:!?])", r"\1", text)
    text = _SENTENCE.sub(lambda match: match[1] + match[2].upper(), text)
    return _ARTICLE.sub(r"\1n ", text)


_ADVERBS = {
    "": "softly", "loud": "loudly", "soft": "softly", "sad": "sadly", "cross": "crossly", "alarm": "alarmed",
}  # fmt: skip
_BEATS = {
    "": (
        "{who} [nodded|gave a nod|nodded slowly|nodded twice].",
        "{who} thought [for a moment|for a second|for a while|for as long as one needs to count to ten].",
        "{who} scratched {who.his} [head|ear|nose|elbow|neck|chin].",
        "{who} [smiled|smiled a little|smiled broadly|smiled with half {who.his} mouth].",
        "{who} shook {who.his} head[| slowly| hard].",
        "{who} looked [up|up from {who.his} work|round|back|away|at the ceiling|at the sky].",
        "{who} pointed[| with {who.his} chin| with a <tool>| with {who.his} thumb].",
        "{who} rubbed {who.his} [chin|hands|eyes|knee|nose].",
        "{who} folded {who.his} arms[| and waited].",
        "{who} put {who.his} [hands|thumbs|fists] in {who.his} pockets.",
        "{who} [leaned|came|bent|stepped] [closer|nearer|forward].",
        "{who} raised [{who.his} eyebrows|one eyebrow|a finger|both hands].",
        "{who} shrugged[| once| {who.his} shoulders].",
        "{who} took [a deep breath|a bite of something|half a step back|off {who.his} <clothes>].",
        "{who} counted on {who.his} fingers[| up to <number>].",
        "{who} looked over {who.his} [shoulder|glasses|left shoulder].",
        "{who} tilted {who.his} head[| to one side| like a <bird>].",
        "{who} [frowned|frowned a little|made a face|pulled a face].",
        "{who} [coughed|sneezed|yawned|hummed|whistled through {who.his} teeth].",
        "{who} wiped {who.his} [hands|nose|brow|fingers|mouth].",
        "{who} tapped {who.his} [foot|nose|forehead|fingers].",
        "{who} turned <treasure> over in {who.his} [hand|fingers].",
        "{who} tugged at {who.his} <clothes>.",
        "{who} was chewing <snack>.",
        "{who} put down a <tool>.",
        "{who} tied {who.his} [shoelace|scarf|apron] again.",
        "{who} winked[| with one eye| at the <animal>].",
        "{who} blew on {who.his} [fingers|hands|nails].",
    ),
    "loud": (
        "{who} jumped up and down[| like a <animal>].",
        "{who} clapped {who.his} hands[| twice| above {who.his} head].",
        "{who} waved [both arms|a <clothes>|a <tool>|both hands].",
        "{who} [laughed|laughed out loud|whooped|cheered].",
        "{who} threw {who.his} [cap|arms|hands] [in|into] the air.",
        "{who} ran [forward|in a circle|round everyone|three steps].",
        "{who} spun [around|round once|like a top].",
        "{who} beamed[| from ear to ear| all over {who.his} face].",
        "{who} opened {who.his} [eyes|mouth|arms] wide.",
        "{who} stamped {who.his} [foot|feet].",
        "{who} slapped {who.his} [knee|forehead].",
        "{who} danced [on one leg|a few steps|like a <animal>].",
    ),
    "soft": (
        "{who} put a finger to {who.his} [lips|nose].",
        "{who} smiled [a little|to {who.himself}|like the <flowers> in {month}].",
        "{who} [knelt|crouched|sat] down.",
        "{who} bent [forward|down|low].",
        "{who} looked at [{who.his} feet|the floor|{who.his} hands|{who.his} toes].",
        "{who} [blushed|went pink|turned pink].",
        "{who} held out [a hand|both hands|<treasure>].",
        "{who} lowered {who.his} [voice|eyes|head].",
        "{who} [touched|pulled at|smoothed|rolled up] {who.his} [sleeve|collar|apron|cuff].",
        "{who} stroked the <animal>.",
    ),
    "cross": (
        "{who} stamped {who.his} [foot|feet|heel].",
        "{who} [turned|went] red[| as a beetroot| to the ears].",
        "{who} clenched {who.his} [fists|teeth].",
        "{who} [scowled|glared|glowered].",
        "{who} put {who.his} hands on {who.his} hips.",
        "{who} pushed out {who.his} [lip|chin].",
        "{who} kicked [a stone|a <tool>|the air].",
        "{who} banged on the <furniture>.",
    ),
    "alarm": (
        "{who} clapped a hand to {who.his} [mouth|forehead].",
        "{who} [went|turned] [pale|white].",
        "{who} ran [forward|three steps|after it].",
        "{who} stretched out both [arms|hands].",
        "{who} stood [stock-still|as if nailed to the ground].",
        "{who} dropped [a <tool>|<treasure>].",
        "{who} [gasped|held {who.his} breath|gulped].",
    ),
    "sad": (
        "{who} [hung|lowered|bowed] {who.his} head.",
        "{who} wiped away [a tear|<number> tears|something].",
        "{who} [sniffed|sniffled|gulped|sobbed once].",
        "{who} swallowed [hard|twice|{who.his} tears].",
        "{who} looked at [the ground|{who.his} boots|nobody|the wall].",
        "{who} bit {who.his} [lip|thumb|nails].",
        "{who} [sighed|sighed deeply|let out a long breath].",
        "{who} [turned|went] [red|white|pale|quite red].",
        "{who} pulled {who.his} <clothes> over {who.his} [nose|ears].",
    ),
}
