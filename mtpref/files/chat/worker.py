"""The process that renders one chat template, which came with a file and is not trusted.

Owns the sandbox: what a template can reach, and how much memory it may take. render.py starts it by path, gives it
one JSON request on stdin and ends it when it takes too long. It imports nothing of mtpref, so that it starts quickly
and holds nothing that is worth reaching.
"""

import contextlib
import json
import random
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

Json = dict[str, Any]


class TooLong(Exception):
    """The text of the template has grown past its limit."""


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training; its body is rendered as if the tag were not there."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own interface)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(lineno)


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's sandbox, which hides what is internal; this one refuses a template that asks for it."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        if attribute.startswith("_") or jinja2.sandbox.is_internal_attribute(obj, attribute):
            raise jinja2.exceptions.SecurityError(
                f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe"
            )
        return super().unsafe_undefined(obj, attribute)


class Namespace(jinja2.utils.Namespace):
    """jinja2's namespace() without names that start with an underscore. Its first argument may well be named self."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"attribute {name!r} of a namespace is unsafe")


def make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """dict(), as a function: the type itself has attributes that a template has no business with."""
    return dict(*args, **kwargs)


def tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """json.dumps: jinja2's own filter writes <, >, & and ' as escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    """What a template calls to refuse a conversation."""
    raise jinja2.TemplateError(message)


def make_environment(strftime_now: Callable[[str], str]) -> Sandbox:
    """The settings, filters and functions that transformers gives to chat templates."""
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals.update(
        raise_exception=raise_exception, strftime_now=strftime_now, namespace=Namespace, dict=make_dict
    )
    return environment


def render(request: Json) -> Json:
    """{"texts", "uses_date"}, or {"error", "kind", "line"} (line None where jinja2 names none).

    A text for each of the request's `variants`, which are laid over its variables; None where only a later one fails.
    """
    uses_date = False

    def strftime_now(pattern: str) -> str:
        nonlocal uses_date
        uses_date = True
        return datetime.fromisoformat(request["now"]).strftime(pattern)

    random.seed(0)  # the filter `random` and lipsum()
    texts: list[str | None] = []
    try:
        template = make_environment(strftime_now).from_string(request["template"])
        for variant in request["variants"]:
            try:
                texts.append(text_of(template, request["variables"] | variant, int(request["n_max"])))
            except Exception:
                if not texts:
                    raise
                texts.append(None)
    except Exception as error:
        return describe(error)
    return {"texts": texts, "uses_date": uses_date}


def text_of(template: jinja2.Template, variables: Json, n_max: int) -> str:
    """What the template writes, piece by piece, so that it is stopped as soon as it is too long."""
    pieces, n_left = [], n_max
    for piece in template.generate(variables):
        n_left -= len(piece)
        if n_left < 0:
            raise TooLong(f"the text is longer than {n_max} characters")
        pieces.append(piece)
    return "".join(pieces)


def describe(error: Exception) -> Json:
    """The error and the line of the template that raised it."""
    line = error.lineno if isinstance(error, jinja2.TemplateSyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if "__jinja_exception__" in trace.tb_frame.f_globals:  # jinja2's stand-in for a line of the template
            line = trace.tb_lineno
        trace = trace.tb_next
    message = getattr(error, "message", None) or str(error)
    return {"kind": type(error).__name__, "error": str(message)[:300], "line": line}


def limit_resources(n_bytes: int) -> None:
    """No more memory than that, no files, no core dump, as far as the system knows such limits."""
    try:
        import resource
    except ImportError:  # Windows
        return
    memory = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    for kind, limit in ((memory, n_bytes), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (limit, limit))


def main() -> None:
    out = sys.stdout.buffer
    out.write(b"+")  # started: the time that is allowed counts from here
    out.flush()
    request = json.loads(sys.stdin.buffer.read())
    limit_resources(int(request["n_bytes"]))
    try:
        reply = json.dumps(render(request)).encode("ascii")
    except MemoryError:
        reply = b'{"kind": "MemoryError", "error": "", "line": null}'
    out.write(reply)


if __name__ == "__main__":
    main()
