"""The one exception that a user is meant to see, and two kinds of it that a caller may tell apart.

Owns the rule for refusals: one line that names what is wrong, the value found, the value expected and
what to try. It names settings in the library's words, `n_ctx` or `PolicyConfig.n_max`, between backquotes where they
stand within a text. The command line puts its own flags there, prints the line and exits with code 2, without a
traceback.
"""

import re
from collections.abc import Mapping

_SETTING = re.compile(r"`([A-Za-z_][A-Za-z0-9_.= ]*)`")
MAX_LINE = 2000  # characters; what is longer loses its middle
_KEPT_AT_END = 600


class MtprefError(Exception):
    """A refusal. `str(error)` is one line: what, found, expected, what to try.

    That it is one printable line holds whatever it names: names of files, tensors and arguments come from outside.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))

    def told(self, flags: Mapping[str, str]) -> str:
        """The line with a flag in place of each setting that has one."""
        return with_flags(str(self), flags)


class UnsupportedError(MtprefError):
    """What this version does not know: a type, a tokenizer, an architecture. It may be right all the same."""


class NotFiniteError(MtprefError):
    """NaN or infinity where a model was run."""


def with_flags(text: str, flags: Mapping[str, str]) -> str:
    """A text with a flag in place of each setting between backquotes that has one."""
    return _SETTING.sub(lambda found: flags.get(found[1], found[0]), text)


def one_line(text: str) -> str:
    """Text in which everything but printable characters is escaped, of at most MAX_LINE characters."""
    text = _shortened(text)
    if text.isprintable():
        return text
    return _shortened("".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text))


def _shortened(text: str) -> str:
    if len(text) <= MAX_LINE:
        return text
    return f"{text[: MAX_LINE - _KEPT_AT_END - 5]} ... {text[-_KEPT_AT_END:]}"
