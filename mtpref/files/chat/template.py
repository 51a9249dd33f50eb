"""Which chat template: the file's own, one of its named variants, a given text, or the built-in ChatML.

Owns the GGUF keys of templates. Rendering is in render.py.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.files.chat.render import MAX_TEMPLATE_CHARS
from mtpref.files.doors import read_text
from mtpref.files.gguf.values import printable

KEY = "tokenizer.chat_template"
CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
BUILT_IN = {"chatml": CHATML}


@dataclass(frozen=True)
class ChatTemplate:
    """A template's text, and where it is from: default, the name of a variant or built-in one, or a file."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def label(self) -> str:
        """For messages: the name and enough of the hash to tell templates apart."""
        return f"chat template {printable(self.name, 40)} ({self.sha256[:12]})"


def variant_names(kv: Mapping[str, Any]) -> list[str]:
    """Names of the file's templates; the unnamed one is "default"."""
    names = ["default"] if KEY in kv else []
    return names + [key.removeprefix(KEY + ".") for key in kv if key.startswith(KEY + ".")]


def find_template(kv: Mapping[str, Any], wanted: str | None = None) -> ChatTemplate:
    """The template to use.

    Rule     None: the file's own, else its variant "default"; a text with "{" is a template itself; else the name
             of a variant in the file (tool_use, ...), of a built-in template (chatml), or of a file to read
    Errors   MtprefError where there is none; it lists what there is
    """
    names = variant_names(kv)
    if wanted is None:
        if "default" not in names:
            raise MtprefError(
                f"{KEY}: missing, so `chat_prompt` has no format for messages"
                f"{_has(names)}; try: `template` chatml, or a template's own text or file"
            )
        wanted = "default"
    if "{" in wanted:
        return ChatTemplate("given", _checked(wanted, "`template`"))
    if wanted in names:
        key = KEY if wanted == "default" and KEY in kv else f"{KEY}.{wanted}"
        return ChatTemplate(wanted, _text(kv, key))
    if wanted in BUILT_IN:
        return ChatTemplate(wanted, BUILT_IN[wanted])
    return ChatTemplate(wanted, _read(wanted, names))


def _has(names: Sequence[str]) -> str:
    return f" (the file has {_list(names[:8])})" if names else ""


def _list(names: Sequence[str]) -> str:
    return ", ".join(printable(name, 40) for name in names)


def _text(kv: Mapping[str, Any], key: str) -> str:
    size = getattr(kv, "size", None)  # of a GGUF's keys: without decoding the text
    if size is not None and size(key) > 4 * MAX_TEMPLATE_CHARS:
        raise MtprefError(f"{printable(key)}: {size(key)} bytes, expected at most {4 * MAX_TEMPLATE_CHARS}")
    value = kv[key]
    if not isinstance(value, str):
        raise MtprefError(
            f"{printable(key)}: a value of type {type(value).__name__}, expected a string; try: `template`"
        )
    return _checked(value, printable(key))


def _checked(text: str, source: str) -> str:
    if len(text) > MAX_TEMPLATE_CHARS:
        raise MtprefError(f"{source}: {len(text)} characters, expected at most {MAX_TEMPLATE_CHARS}")
    return text


def _read(path: str, names: Sequence[str]) -> str:
    known, shown = _list([*names[:8], *BUILT_IN]), printable(path)
    expected = f"expected a template's text, one of {known}, or a file"
    label = f"`template` {shown}: no template and no readable file"
    raw = read_text(path, label, expected, 4 * MAX_TEMPLATE_CHARS)
    try:
        return _checked(raw.decode("utf-8"), f"`template` {shown}")
    except UnicodeDecodeError:
        raise MtprefError(f"`template` {shown}: the file is no UTF-8 text, {expected}") from None
