"""The proof that a head belongs to its trunk: teacher-forced acceptance against controls, on a text of its own.

A head reads the trunk's hidden rows. Trained with another trunk, it gains nothing from the right row over the row of
another position; that, and not the rate itself, is what is asked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model, load
from mtpref.measure.probe import Settings, Text, probe
from mtpref.measure.probe.controls import Control
from mtpref.measure.probe.count import Estimate

SMALL = 64 << 20  # bytes of a model that is probed without being asked
BLOCK = 16  # tokens of a block of the intervals: the texts are short
DECIDES = "other-hidden"
TEXTS = {
    "code": '''def read_lines(path):
    """Return the lines of a file, without their ends."""
    lines = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            line = line.rstrip("\\n")
            if not line:
                continue
            lines.append(line)
    return lines


class Counter:
    def __init__(self, values=()):
        self.counts = {}
        for value in values:
            self.add(value)

    def add(self, value):
        self.counts[value] = self.counts.get(value, 0) + 1

    def most_common(self, n=None):
        items = sorted(self.counts.items(), key=lambda item: item[1], reverse=True)
        if n is None:
            return items
        return items[:n]
''',
    # what a model of any size can follow; none of the embedded model's training
    "story": (
        "If you follow the lane past the elder, you come to Cherry Row, where Frank lived. Frank never gave "
        "up. He had a brown waistcoat and a voice that everybody knew. The fog was so thick that November "
        "seemed to have no sky.\n\n"
        "Grandmother Tilda was reading aloud, and Frank sat next to her. A faint cry came from the moor, and "
        "then another.\n\n"
        'Grandmother Tilda nodded. "That is a person, not a partridge."\n\n'
        'Frank tied his apron again. "Ah, we must show them where we are."\n\n'
        "They called together, but the answer came from the wrong side, and then from nowhere.\n\n"
        '"Listen, it needs something stronger," Frank said.\n\n'
        "They rushed to the little school and hauled the bell rope. At first nothing happened. Then the voice"
        " came nearer. It was Mrs Elm, the violin maker, wet and weary.\n\n"
        'Mrs Elm tilted her head. "Look, I heard you, and I walked towards it."\n\n'
        'Grandmother Tilda said slowly, "Come in and get dry."\n\n'
        "Mrs Elm had nothing to give but a story, and it was a long one.\n\n"
        "To this day they ring a bell in Cherry Row when there is fog. Frank trudged home happy and "
        "exhausted.\n"
    ),
}


@dataclass(frozen=True)
class Proof:
    """rate: a_1 of the head; controls: the same positions with the head fed wrongly on purpose"""

    n_positions: int
    rate: Estimate
    controls: list[Control]

    @property
    def belongs(self) -> bool | None:
        """Whether the head gains from this trunk's rows; None: too little text to say."""
        return next((c.is_beaten for c in self.controls if c.name == DECIDES), None)

    def lines(self) -> list[str]:
        named = ", ".join(f"{c.name} {c.rate.shown()}" for c in self.controls)
        says = {
            True: "the head uses this trunk's hidden rows",
            False: "NOT proven: the head gains nothing from this trunk's hidden rows over those of another position",
            None: "too little text for intervals; the rates beside are all there is to go by",
        }
        return [
            f"probe: a_1 {self.rate.shown()} at {self.n_positions} positions of a built-in text; controls: {named}",
            f"verdict: {says[self.belongs]}",
        ]


def built_in_texts(model: Model) -> list[Text]:
    """TEXTS as the model's tokens."""
    return [Text(label, tuple(model.vocab.encode(text))) for label, text in TEXTS.items()]


def window_of(model: Model) -> int:
    """Tokens of a context that the texts are read in: each in one, where the model allows it."""
    return min(model.config.n_ctx_train, 2048)


def prove(path: str | Path, n_positions: int = 384, progress: Callable[[int, int], None] | None = None) -> Proof:
    """Probe the head of a model's file on built-in text (code and a story).

    n_positions   at most so many of each text
    Errors        MtprefError for a file that is no model with a head
    """
    model = load(path)
    if not model.has_mtp:
        raise MtprefError(f"{path}: no MTP head to probe, expected one")
    settings = Settings(n_draft=1, n_positions=n_positions, n_ctx=window_of(model), block=BLOCK)
    report = probe(model, built_in_texts(model), settings, progress)
    return Proof(report.reached[0], report.trunk.unconditional[0], report.controls)
