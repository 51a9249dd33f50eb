"""Write docs/pictures/round.svg: one round of drafting and verifying, as the embedded model really does it.

python tools/write_picture.py            (write the picture)
python tools/write_picture.py --check    (exit code 1 where it is not what the model does)
"""

import argparse
import sys
from pathlib import Path
from xml.sax.saxutils import escape

import mtpref
from mtpref.base.events import Drafted, Token, Verified

TARGET = Path(__file__).parent.parent / "docs" / "pictures" / "round.svg"
PROMPT = "The hat flew over the roof"
WIDTH, HEIGHT = 900, 346
LEFT, STEP, BOX = 210, 128, 116  # of the columns, in pixels
INK, GREEN, RED, ORANGE, BLUE, GREY = "#222", "#3b8a4e", "#b3382c", "#c25b1c", "#2f6fb7", "#8a8a84"


def first_round() -> tuple[str, Drafted, Verified, list[Token], mtpref.LanguageModel]:
    """The piece that opens the round, and what happens in it."""
    model = mtpref.load()
    drafted = verified = None
    tokens: list[Token] = []
    opening = model.core.vocab.piece(model.encode(PROMPT)[-1]).decode()
    for event in model.generate(PROMPT, mtpref.Options(n_predict=12)):
        if isinstance(event, Drafted) and drafted is not None:
            break
        if isinstance(event, Drafted):
            drafted = event
        elif isinstance(event, Verified):
            verified = event
        elif isinstance(event, Token):
            tokens.append(event)
    assert drafted is not None
    assert verified is not None
    assert 0 < verified.n_accepted < len(verified.draft_ids), "the picture wants a round with both"
    return opening, drafted, verified, tokens, model


def shown(piece: bytes) -> str:
    """A token as people read it: spaces and line ends visible."""
    return piece.decode("utf-8", "replace").replace(" ", "\u00b7").replace("\n", "\u21b5")


def render() -> str:
    opening, drafted, verified, tokens, model = first_round()
    piece = model.core.vocab.piece
    n = len(drafted.ids)
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#fbfbf8"/>',
        _note(26, 40, "1  draft", "the head, a small step each"),
        _note(26, 132, "2  verify", "one pass of the model"),
        _note(26, 224, "3  accept", "up to the first difference"),
        _box(0, 26, shown(opening.encode()), GREY),
    ]
    for k in range(n):
        p = drafted.steps[k].p[0]
        parts += [_box(k + 1, 26, shown(piece(drafted.ids[k])), BLUE), _small(k + 1, 82, f"p = {p:.2f}")]
        parts.append(_arrow(_x(k) + BOX, 46, _x(k + 1), 46, BLUE))
    for k in range(n + 1):
        is_kept, is_first_wrong = k < verified.n_accepted, k == verified.n_accepted
        colour = GREEN if is_kept else ORANGE if is_first_wrong else GREY
        target = verified.target_ids[k] if k < len(verified.target_ids) else None
        parts.append(_arrow(_x(k) + BOX / 2, 88, _x(k) + BOX / 2, 118, GREY))
        parts.append(_box(k, 118, "" if target is None else shown(piece(target)), colour, is_open=target is None))
        if k < n:
            said = "the draft's" if is_kept else "not the draft's" if is_first_wrong else "not looked at"
            parts.append(_small(k, 174, said, GREEN if is_kept else RED if is_first_wrong else GREY))
    for k, token in enumerate(tokens):
        parts.append(_box(k, 210, shown(token.text), GREEN if token.source == "draft" else ORANGE))
        parts.append(_small(k, 266, "accepted" if token.source == "draft" else "correction"))
    dropped = n - verified.n_accepted
    text = f"{len(tokens)} tokens from one pass"
    parts.append(_small(len(tokens), 236, text, INK, "start"))
    parts.append(_note(26, 296, "4  roll back", ""))
    rolled = (
        f"the model forgets {dropped} rejected draft token{'s' * (dropped > 1)}: attention cells are cut, "
        "recurrent state is brought back"
    )
    parts.append(f'<text x="{LEFT}" y="{300}" fill="{INK}">{escape(rolled)}</text>')
    parts.append(f'<text x="{LEFT}" y="{324}" font-size="12" fill="#555">\u00b7 is a space</text>')
    title = "One round: the head drafts, the model verifies, the longest right prefix is kept"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="14" fill="{INK}">\n<title>{title}</title>\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#666"/></marker></defs>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _x(column: int) -> float:
    return LEFT + STEP * column


def _box(column: int, y: float, text: str, colour: str, *, is_open: bool = False) -> str:
    style = f'fill="none" stroke="{colour}" stroke-dasharray="4 3"' if is_open else f'fill="{colour}"'
    return (
        f'<rect x="{_x(column)}" y="{y}" width="{BOX}" height="40" rx="5" {style}/>'
        f'<text x="{_x(column) + BOX / 2}" y="{y + 26}" text-anchor="middle" font-family="monospace" font-size="16" '
        f'fill="#fff">{escape(text)}</text>'
    )


def _small(column: int, y: float, text: str, colour: str = INK, anchor: str = "middle") -> str:
    x = _x(column) + (BOX / 2 if anchor == "middle" else 0)
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="13" fill="{colour}">{escape(text)}</text>'


def _note(x: float, y: float, head: str, text: str) -> str:
    below = f'<text x="{x}" y="{y + 20}" font-size="12" fill="#555">{escape(text)}</text>' if text else ""
    return f'<text x="{x}" y="{y}" font-weight="bold">{escape(head)}</text>{below}'


def _arrow(x0: float, y0: float, x1: float, y1: float, colour: str) -> str:
    return f'<path d="M{x0} {y0}L{x1} {y1}" stroke="{colour}" stroke-width="1.5" marker-end="url(#tip)"/>'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = render()
    if args.check:
        return int(TARGET.read_text("utf-8") != text)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
