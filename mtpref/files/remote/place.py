"""What a user names from afar: a GGUF model in one file or several, or a checkpoint's folder.

Owns the choice among a repository's files. `Place.open` opens any file of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import listed, printable
from mtpref.files.remote.address import Address, parse_address
from mtpref.files.remote.http import Client
from mtpref.files.remote.hub import (
    HOSTS,
    PREFIX,
    Listing,
    is_installed,
    list_repository,
    name_of_page,
    parse_hub_name,
    token_for,
)
from mtpref.files.remote.ranges import NotThereError, RemoteFile, get_small

CONFIG, INDEX, WHOLE = "config.json", "model.safetensors.index.json", "model.safetensors"
NO_MODELS = ("mmproj", "mtp-", "imatrix")  # beginnings of names of files that stand beside a model
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class Place:
    """label    what it is called    gguf: the first file of a GGUF model; None: a checkpoint's folder
    folder    the address of a file of the folder; files: name -> address where a list is known, else None
    """

    client: Client
    label: str
    gguf: Address | None
    folder: Address
    files: dict[str, Address] | None = field(default=None)

    def address(self, name: str) -> Address | None:
        """Where a file of the folder is; None where it is known that there is none."""
        return self.folder.beside(name) if self.files is None else self.files.get(name)

    def open(self, name: str) -> RemoteFile:
        """Errors: MtprefError as `RemoteFile`; a file that the list does not have"""
        address = self.address(name)
        if address is None:
            raise NotThereError(f"{self.label}: no file {printable(name)} there, expected it; is the upload complete?")
        return RemoteFile(self.client, address, self.named(name))

    def small(self, name: str, max_bytes: int) -> bytes | None:
        """A whole small file; None where there is none. Errors: as `get_small`"""
        address = self.address(name)
        return None if address is None else get_small(self.client, address, self.named(name), max_bytes)

    def named(self, name: str) -> str:
        return f"{self.label}:{name}" if self.files is not None else self.folder.beside(name).shown


def find(client: Client, text: str) -> Place:
    """What a URL or hf: name stands for.

    Errors   MtprefError: no such URL, name or repository; several models where one is wanted
    """
    address = None if text.startswith(PREFIX) else parse_address(text)
    text = text if address is None else name_of_page(address) or text
    if address is None or text.startswith(PREFIX):
        name = parse_hub_name(text)
        return _in_repository(client, list_repository(client, name), name.file)
    if address.host in HOSTS and is_installed():
        client.token = token_for(address)
    if address.name.endswith(".gguf"):
        return Place(client, address.shown, address, address)
    if address.name in ("", CONFIG) or address.name.endswith((".safetensors", ".safetensors.index.json")):
        folder = address.beside(CONFIG)
        return Place(client, folder.shown.removesuffix(CONFIG), None, folder)
    raise MtprefError(
        f"{address.shown}: expected a URL that ends in .gguf, or of a checkpoint's folder (ending in /, or its "
        "config.json), or hf:ORG/NAME"
    )


def _in_repository(client: Client, listing: Listing, wanted: str | None) -> Place:
    """The model of a repository that a name means."""
    models = _models(listing)
    has_checkpoint = CONFIG in listing.files and (INDEX in listing.files or WHOLE in listing.files)
    if wanted is None and has_checkpoint:
        files = {name: address for name, address in listing.files.items() if "/" not in name}
        return Place(client, listing.label, None, listing.files[CONFIG], files)
    whole = [path for path in models if not path.rpartition("/")[2].lower().startswith(NO_MODELS)]
    found = _chosen(models, wanted) if wanted is not None else (whole or models)
    if len(found) == 1:
        folder = found[0].rpartition("/")[0]
        files = {p.rpartition("/")[2]: a for p, a in listing.files.items() if p.rpartition("/")[0] == folder}
        return Place(client, listing.label, listing.files[found[0]], listing.files[found[0]], files)
    if not models:
        raise MtprefError(
            f"{listing.label}: neither a GGUF file nor {CONFIG} with safetensors among its {len(listing.files)} files, "
            "expected a model"
        )
    named = "" if wanted is None else f" that {printable(wanted)!r} names"
    example = (found or models)[0]
    raise MtprefError(
        f"{listing.label}: {len(found)} GGUF models{named} ({listed(found or models, 6)}), expected one; say which: "
        f"{PREFIX}{listing.label.removeprefix(PREFIX).partition('@')[0]}:{printable(example)}"
    )


def _models(listing: Listing) -> list[str]:
    """The paths of GGUF models, of those in several files the first."""
    paths = sorted(path for path in listing.files if path.endswith(".gguf"))
    return [path for path in paths if (shard := _SHARD.search(path)) is None or int(shard[1]) == 1]


def _chosen(models: list[str], wanted: str) -> list[str]:
    """The models that a path or a type (Q4_K_M) names."""
    if wanted in models:
        return [wanted]
    type_name = re.compile(rf"(^|[-./]){re.escape(wanted)}([-.]|$)", re.IGNORECASE)
    found = [path for path in models if type_name.search(path.rpartition("/")[2])]
    whole = [path for path in found if not path.rpartition("/")[2].lower().startswith(NO_MODELS)]
    return whole or found
