"""Rendering a template: in a process of its own, which is ended when it takes too long or too much.

Owns the limits and the one-line errors. jinja2's sandbox guards attributes, not time or memory; a process can be
limited in both, whatever the template does, and a crash in it is an error line here. Read next: worker.py.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.files.gguf.values import printable

TIME_LIMIT = 1.5  # seconds, from the moment the process is ready; real templates take some milliseconds
MEMORY_LIMIT = 128 << 20  # bytes of data, the interpreter's included (Linux; elsewhere only where the system can)
MAX_TEMPLATE_CHARS = 1 << 20
# A prompt may be this much longer than what it is made of.
MAX_EXTRA_CHARS, MAX_GROWTH = 1 << 20, 16

_WORKER = Path(__file__).with_name("worker.py")
_UNLIKELY = "a chat template has no need of that; choose another with `template`"


@dataclass(frozen=True)
class Rendered:
    """A template's text, and whether it asked for the date. others: the texts of the other variants (None: failed)."""

    text: str
    uses_date: bool
    others: tuple[str | None, ...] = ()


def render(
    template: str,
    variables: Mapping[str, Any],
    now: datetime,
    *,
    name: str = "chat template",
    others: Sequence[Mapping[str, Any]] = (),
) -> Rendered:
    """The text that a chat template makes of its variables, and what it would make with `others` laid over them.

    Rule     jinja2's immutable sandbox with transformers' settings: trim_blocks, lstrip_blocks, loop controls,
             `generation` ignored, tojson without HTML escapes, raise_exception, strftime_now (which tells `now`)
    Limits   TIME_LIMIT, MEMORY_LIMIT, text of at most MAX_EXTRA_CHARS + MAX_GROWTH characters for each given one
    Errors   MtprefError, one line with the template's line number
    """
    if len(template) > MAX_TEMPLATE_CHARS:
        raise MtprefError(f"{name}: {len(template)} characters, expected at most {MAX_TEMPLATE_CHARS}; {_UNLIKELY}")
    request = _request(template, variables, [{}, *others], now, name)
    reply = _reply(_run(request, name), name)
    if "texts" not in reply:
        raise MtprefError(_refusal(reply, name))
    text, *rest = reply["texts"]
    return Rendered(text, bool(reply["uses_date"]), tuple(rest))


def _request(
    template: str, variables: Mapping[str, Any], variants: list[Mapping[str, Any]], now: datetime, name: str
) -> bytes:
    try:
        given, laid_over = json.dumps(variables), json.dumps(variants)
    except (TypeError, ValueError, RecursionError) as error:
        raise MtprefError(
            f"{name}: messages and arguments are no JSON values ({error}), expected text, numbers, "
            "true, false, null, lists and objects"
        ) from None
    n_max = MAX_EXTRA_CHARS + MAX_GROWTH * len(given)
    # The text exists in several copies, of up to 4 bytes a character, before it is sent back.
    limits = {"n_max": n_max, "n_bytes": MEMORY_LIMIT + 2 * MAX_GROWTH * len(given)}
    head = json.dumps({"template": template, "now": now.isoformat(), **limits})
    return f'{head[:-1]}, "variables": {given}, "variants": {laid_over}}}'.encode("ascii")


def _run(request: bytes, name: str) -> tuple[int, bytes]:
    """The exit code of the process and what it wrote."""
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    # -P: the folder of the script is no place to import from.
    with subprocess.Popen(
        [sys.executable, "-P", str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.read(1) != b"+":
                raise MtprefError(f"{name}: {sys.executable} could not start jinja2; try: pip install 'jinja2>=3.1.6'")
            reply, _ = process.communicate(request, TIME_LIMIT)
            return process.returncode, reply
        except subprocess.TimeoutExpired:
            raise MtprefError(f"{name}: it runs for more than {TIME_LIMIT} s; {_UNLIKELY}") from None
        finally:
            process.kill()


def _reply(result: tuple[int, bytes], name: str) -> dict[str, Any]:
    code, raw = result
    try:
        reply = json.loads(raw)
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        raise MtprefError(f"{name}: the process that rendered it ended with code {code} and no text; {_UNLIKELY}")
    return reply


def _refusal(reply: dict[str, Any], name: str) -> str:
    where = f"{name}: " if reply["line"] is None else f"{name}, line {reply['line']}: "
    message = printable(" ".join(str(reply["error"]).split()), 200).rstrip(".")
    match reply["kind"]:
        case "MemoryError":
            return f"{where}it needs more than {MEMORY_LIMIT >> 20} MB of memory; {_UNLIKELY}"
        case "RecursionError":
            return f"{where}it recurses too deeply; {_UNLIKELY}"
        case "SecurityError" | "TooLong" | "OverflowError":
            return f"{where}refused: {message}; {_UNLIKELY}"
        case "TemplateSyntaxError" | "TemplateAssertionError":
            return f"{where}{message}, expected jinja2's syntax; choose another template with `template`"
        case "TemplateError":  # raise_exception
            return f"{where}the template refuses this conversation: {message}"
        case kind:
            return f"{where}{kind}: {message}; try other messages, `template_args` or `template`"
