"""Small pictures for chapters: bars, curves and matrices, as text for a terminal and as SVG for a page.

Owns the drawing. The same numbers give the same bytes everywhere. Outside a chapter that is being rendered, a picture
prints itself as text.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from xml.sax.saxutils import escape

MARK = "\x00picture "
WIDTH, ROW, PAD = 640, 24, 12
BAR_CELLS = 32
COLOURS = ("#2f6fb7", "#c25b1c", "#3b8a4e", "#8a4fa3", "#8f7a1e", "#5a6b7b")
SHADES = " .:-=+*#%@"

_sink: "list[Picture] | None" = None


@dataclass(frozen=True)
class Picture:
    """name: of its file, without folder and ending; text, svg: the two forms; alt: what it shows, in a line."""

    name: str
    text: str
    svg: str
    alt: str


@contextmanager
def collected() -> Iterator[list[Picture]]:
    """Pictures drawn inside are kept in the list, and leave a mark in what is printed."""
    global _sink
    outer, _sink = _sink, []
    try:
        yield _sink
    finally:
        _sink = outer


def _emit(picture: Picture) -> None:
    if _sink is None:
        if not _shown_by_jupyter(picture):
            print(picture.text)
        return
    _sink.append(picture)
    print(f"{MARK}{len(_sink) - 1}")


def _shown_by_jupyter(picture: Picture) -> bool:
    """In a notebook's kernel the drawing itself is shown."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return False
    import_module("IPython.display").display({"image/svg+xml": picture.svg, "text/plain": picture.text}, raw=True)
    return True


def bars(name: str, title: str, rows: Sequence[tuple[str, float]], digits: int = 2, top: float | None = None) -> None:
    """A bar for each (label, value), 0 .. top (default: the largest)."""
    high = top or max(value for _, value in rows) or 1.0
    label_width = max(len(label) for label, _ in rows)
    text, parts = [title], []
    left, length = 16 + 8 * label_width, WIDTH - 8 * label_width - 110
    for i, (label, value) in enumerate(rows):
        n = round(BAR_CELLS * min(1.0, value / high))
        text.append(f"  {label:{label_width}s}  {'#' * n}{'.' * (BAR_CELLS - n)}  {value:.{digits}f}")
        y = 44 + ROW * i
        parts += [
            _text(left - 8, y + 13, label, "end"),
            f'<rect x="{left}" y="{y}" width="{length * min(1.0, value / high):.1f}" height="16" fill="{COLOURS[0]}"/>',
            _text(left + length * min(1.0, value / high) + 6, y + 13, f"{value:.{digits}f}"),
        ]
    _emit(Picture(name, "\n".join(text), _svg(title, 52 + ROW * len(rows), parts), title))


def curves(
    name: str, title: str, lines: Mapping[str, Sequence[float]], x: str, first: int = 1, top: float | None = None
) -> None:
    """A curve for each label over first, first + 1, ..."""
    high = top or max(max(values) for values in lines.values()) or 1.0
    n = max(len(values) for values in lines.values())
    label_width = max(len(label) for label in lines)
    heads = "".join(f"{first + i:>7d}" for i in range(n))
    text = [title, f"  {x:{label_width}s}{heads}"]
    left, right, below, above = 60, WIDTH - 30, 250, 44
    parts = [f'<path d="M{left} {above}V{below}H{right}" fill="none" stroke="#888"/>']
    for share in (0.0, 0.5, 1.0):
        y = below - (below - above) * share
        parts.append(_text(left - 8, y + 4, f"{high * share:.2g}", "end"))
    for i in range(n):
        parts.append(_text(left + (right - left) * (i + 0.5) / n, below + 18, str(first + i), "middle"))
    parts.append(_text((left + right) / 2, below + 38, x, "middle"))
    for k, (label, values) in enumerate(lines.items()):
        text.append(f"  {label:{label_width}s}" + "".join(f"{value:7.2f}" for value in values))
        points = [
            (left + (right - left) * (i + 0.5) / n, below - (below - above) * min(1.0, value / high))
            for i, value in enumerate(values)
        ]
        colour, path = COLOURS[k % len(COLOURS)], " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}"/>' for px, py in points]
        y = below + 62 + 20 * k
        parts += [f'<rect x="{left}" y="{y - 10}" width="12" height="12" fill="{colour}"/>', _text(left + 20, y, label)]
    _emit(Picture(name, "\n".join(text), _svg(title, below + 62 + 20 * len(lines), parts), title))


def matrices(name: str, title: str, pictures: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Small matrices side by side, dark for large absolute values, the sign by colour; one scale for all."""
    high = max(abs(value) for rows in pictures.values() for row in rows for value in row) or 1.0
    blocks, parts, x = [], [], float(PAD)
    n_rows = max(len(rows) for rows in pictures.values())
    cell = min(26.0, (WIDTH - PAD) / sum(len(rows[0]) + 1 for rows in pictures.values()))
    for label, rows in pictures.items():
        lines = ["".join(_shade(value / high) for value in row) for row in rows]
        width = max(len(label), 2 * len(rows[0]))
        blocks.append([label.ljust(width), *(line.ljust(width) for line in lines)])
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                colour = COLOURS[0] if value >= 0 else COLOURS[1]
                parts.append(
                    f'<rect x="{x + cell * j:.1f}" y="{64 + cell * i:.1f}" width="{cell - 1:.1f}" '
                    f'height="{cell - 1:.1f}" fill="{colour}" fill-opacity="{0.05 + 0.95 * abs(value) / high:.2f}"/>'
                )
        parts.append(_text(x, 56, label))
        x += cell * (len(rows[0]) + 1)
    text = [title]
    for i in range(n_rows + 1):
        text.append("  " + "   ".join(block[i] if i < len(block) else " " * len(block[0]) for block in blocks).rstrip())
    _emit(Picture(name, "\n".join(text), _svg(title, int(76 + cell * n_rows), parts), title))


def _shade(share: float) -> str:
    mark = SHADES[min(len(SHADES) - 1, round(abs(share) * (len(SHADES) - 1)))]
    return ("-" if share < 0 and mark != " " else " ") + mark


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    """Its own light background, so that it can be read on a dark page."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="13" fill="#222"><title>{escape(title)}</title>'
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#fbfbf8"/>'
    )
    heading = f'<text x="{PAD}" y="26" font-weight="bold">{escape(title)}</text>'
    return "\n".join([head, heading, *parts, "</svg>"]) + "\n"
