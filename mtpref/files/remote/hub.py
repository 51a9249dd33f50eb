"""Names of the Hugging Face Hub: hf:ORG/NAME[@REVISION][:FILE] to addresses, all of one commit.

The package huggingface_hub (extra `hub`) says where the hub is, which token is for it, and which names can be; it is
imported when a name asks for it. The list of files is read by http.py, under its limits.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from mtpref.base.errors import MtprefError
from mtpref.base.typed import parse_json
from mtpref.files.gguf import printable
from mtpref.files.remote.address import Address, parse_address
from mtpref.files.remote.http import Client, Token
from mtpref.files.remote.ranges import get_small

PREFIX = "hf:"
HOSTS = ("huggingface.co", "hf.co")
MAX_LIST = 32 << 20  # bytes of a repository's list of files
MAX_MEMORY = 256 << 20
MAX_FILES = 100_000
_NAME = re.compile(r"(?P<repo>[^@:\s]+)(@(?P<revision>[^:\s]+))?(:(?P<file>.+))?")
_PAGE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/?((tree|blob)/(?P<revision>[^/]+)/?(?P<file>.+)?)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """file: a path in the repository, or a part of one file's name (a type, such as Q8_0); None: whatever is there"""

    repo: str
    revision: str
    file: str | None


@dataclass(frozen=True)
class Listing:
    """A repository at one commit. files: path -> address"""

    label: str
    commit: str
    files: dict[str, Address]


def parse_hub_name(text: str) -> HubName:
    """Errors: MtprefError for what is no name of a repository"""
    found = _NAME.fullmatch(text.removeprefix(PREFIX))
    shown = printable(text, 200)
    if found is None:
        raise MtprefError(f"{shown}: expected hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME:FILE")
    hub = _hub(shown)
    try:
        hub.utils.validate_repo_id(found["repo"])
    except ValueError as error:
        raise MtprefError(f"{shown}: no name of a repository ({printable(str(error), 200)})") from None
    if "/" not in found["repo"]:
        raise MtprefError(f"{shown}: expected hf:ORG/NAME, with the organisation or user before the name")
    return HubName(found["repo"], found["revision"] or "main", found["file"])


def name_of_page(address: Address) -> str | None:
    """The hf: name of what a page of the hub shows, a repository or a file; None for other URLs."""
    found = _PAGE.fullmatch(unquote(address.target.partition("?")[0])) if address.host in HOSTS else None
    if found is None:
        return None
    revision = f"@{found['revision']}" if found["revision"] else ""
    return f"{PREFIX}{found['repo']}{revision}" + (f":{found['file']}" if found["file"] else "")


def list_repository(client: Client, name: HubName) -> Listing:
    """The files of a repository; the client gets the hub's token, should there be one.

    Errors   MtprefError: no such repository or revision, a token that is wanted, an answer that is none
    """
    shown = f"hf:{name.repo}@{printable(name.revision, 80)}"
    hub = _hub(shown)
    if hub.constants.HF_HUB_OFFLINE:
        raise MtprefError(f"{shown}: HF_HUB_OFFLINE is set, expected it unset; or give a local file")
    endpoint = hub.constants.ENDPOINT.rstrip("/")
    where = parse_address(f"{endpoint}/api/models/{name.repo}/revision/{quote(name.revision, safe='')}")
    client.token = token_for(where)
    raw = get_small(client, where, shown, MAX_LIST)
    if raw is None:
        raise MtprefError(f"{shown}: no such repository or revision (HTTP 404), expected one of {where.host}")
    said: Any = parse_json(raw, max_memory=MAX_MEMORY)
    commit = said.get("sha") if isinstance(said, dict) else None
    siblings = said.get("siblings") if isinstance(said, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit) or not isinstance(siblings, list):
        raise MtprefError(f"{shown}: {where.host} names no commit and no list of files, expected a model's record")
    names = [one.get("rfilename") for one in siblings[:MAX_FILES] if isinstance(one, dict)]
    files = {
        path: parse_address(hub.hf_hub_url(name.repo, path, revision=commit, endpoint=endpoint))
        for path in names
        if isinstance(path, str) and 0 < len(path) <= 1024 and path.isprintable()
    }
    return Listing(f"hf:{name.repo}@{commit[:12]}", commit, files)


def token_for(address: Address) -> Token | None:
    """The hub's token, for an address of the hub; None elsewhere, and where nobody has logged in."""
    hub = _hub("a token")
    secret = hub.get_token()
    if not secret or parse_address(hub.constants.ENDPOINT).origin != address.origin:
        return None
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise MtprefError("HF_TOKEN: blanks or control characters in it, expected a token such as hf_...")
    return Token(address.origin, secret)


def is_installed() -> bool:
    """Whether the extra `hub` is there."""
    return importlib.util.find_spec("huggingface_hub") is not None


def _hub(what: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.utils
    except ImportError as error:
        raise MtprefError(
            f"{what}: needs the package huggingface_hub ({error}); try: pip install 'mtpref[hub]', or give the "
            "https:// URL of a file"
        ) from None
    return huggingface_hub
