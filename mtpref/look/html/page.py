"""One self-contained HTML page of one or two runs.

Owns the file: markup, style, script and data in one piece, nothing loaded, nothing of a trace interpreted. The
content security policy admits this style and this script alone, by their hashes; the data block is never executed.
"""

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

from mtpref.look.html.rows import Side, divergence

# Whatever could end the data block or a line of a script is written as an escape of JSON.
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render_page(sides: list[Side]) -> bytes:
    """The page of one run, or of two beside each other. The same runs give the same bytes."""
    style, script = (_part(name) for name in ("page.css", "page.js"))
    data: dict[str, Any] = {"sides": [side.to_json() for side in sides], "divergence": None}
    if len(sides) == 2:
        data["divergence"] = divergence(*sides)
    policy = (
        f"default-src 'none'; style-src 'sha256-{_hash(style)}'; script-src 'sha256-{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>mtpref trace</title><style>{style}</style></head>
<body>
<a class="skip" href="#timelines">Skip to the rounds</a>
<header><h1>mtpref trace</h1><p id="summary" role="status"></p></header>
<noscript><p>This page draws its data with a script of its own; scripts are off.</p></noscript>
<main id="main"></main>
<aside id="inspector" aria-live="polite" aria-label="Token under the pointer or in focus" hidden></aside>
<script type="application/json" id="data">{encoded(data)}</script>
<script>{script}</script>
</body></html>
"""
    return page.encode("utf-8", "backslashreplace")


def encoded(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False).translate(_ESCAPES)


def _part(name: str) -> str:
    return (files("mtpref") / "look" / "html" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
