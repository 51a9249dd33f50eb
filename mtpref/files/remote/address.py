"""URLs: which are read, how they are shown, and where a redirect may lead.

Owns the rules: https everywhere, http on this machine alone, no user names in a URL, no redirect to anything else.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import NoReturn
from urllib.parse import quote, unquote, urlsplit

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import printable

MAX_URL = 16_384  # characters; signed ones have 3,000
PORTS = {"https": 443, "http": 80}
_SAFE = "/%:@!$&'()*+,;=~-._"


@dataclass(frozen=True)
class Address:
    """A URL that may be read. target: path and query, as they go over the wire"""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """Whom a token would be sent to."""
        return self.scheme, self.host, self.port

    @property
    def shown(self) -> str:
        """What is printed: without the query, which may be signed."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == PORTS[self.scheme] else f":{self.port}"
        return printable(f"{self.scheme}://{host}{port}{self.target.partition('?')[0]}", 400)

    @property
    def name(self) -> str:
        """The file's name."""
        return unquote(self.target.partition("?")[0].rpartition("/")[2])

    def beside(self, name: str) -> Address:
        """Another file of the same folder, asked for with the same query."""
        path, mark, query = self.target.partition("?")
        return replace(self, target=f"{path.rpartition('/')[0]}/{quote(name)}{mark}{query}")


def parse_address(url: str) -> Address:
    """A URL that a user gave. Errors: MtprefError for one that is not read"""
    shown = printable(_without_user(url), 200)
    return _parse(url, shown, "give an https:// URL, or hf:ORG/NAME")


def redirected(address: Address, location: str) -> Address:
    """Where a redirect leads.

    Errors   MtprefError for a location that is no http URL, or that leaves https
    """
    what = f"{address.shown}: redirects to {printable(_without_user(location), 200)}"
    hint = "nothing else is followed"
    if location.startswith("//"):
        location = f"{address.scheme}:{location}"
    elif location.startswith("/"):
        location = f"{_base(address)}{location}"
    elif ":" not in location.partition("/")[0]:
        location = f"{_base(address)}{address.target.partition('?')[0].rpartition('/')[0]}/{location}"
    to = _parse(location, what, hint)
    if address.scheme == "https" and to.scheme != "https":
        raise MtprefError(f"{what}, expected https again; {hint}")
    return to


def _without_user(url: str) -> str:
    """What of a URL may be shown, be it one or not: no user and password, no query."""
    return re.sub(r"//[^/]*@", "//", url.partition("?")[0])


def _base(address: Address) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{address.scheme}://{host}:{address.port}"


def _parse(url: str, shown: str, hint: str) -> Address:
    def fail(why: str) -> NoReturn:
        raise MtprefError(f"{shown}: {why}; {hint}")

    if len(url) > MAX_URL:
        fail(f"a URL of {len(url)} characters, expected at most {MAX_URL}")
    if any(c <= " " or c in "\\\x7f" for c in url):  # urlsplit would drop some of them without a word
        fail("blanks, control characters or backslashes in a URL, expected %20 and the like")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode("ascii"), parts.port
    except (ValueError, UnicodeError) as error:
        fail(f"no URL ({error}), expected one such as https://host/model.gguf")
    if parts.scheme not in PORTS or not host:
        scheme = f"the scheme {printable(parts.scheme, 20)!r}" if parts.scheme else "no scheme"
        fail(f"{scheme}{'' if host else ' and no host'}, expected https://HOST/...")
    if parts.username is not None or parts.password is not None:
        fail("a user name in a URL, which would be shown and logged, expected none")
    if parts.scheme == "http" and not is_loopback(host):
        fail("http, expected https (http is read from this machine alone: localhost, 127.0.0.1, ::1)")
    target = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE + '?')}" if parts.query else "")
    return Address(parts.scheme, host, port if port is not None else PORTS[parts.scheme], target)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
