"""A GGUF model on a server: its header judged as `check --fast` judges a file's, its head extracted as from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtpref.architectures import ARCHITECTURES
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import WriteOptions, check_targets, printable
from mtpref.files.remote import Place, RemoteFile, Spool, open_remote_gguf
from mtpref.files.remote.gguf import RemoteGguf
from mtpref.heads.check import Finding, Report
from mtpref.heads.check.report import check_header
from mtpref.heads.contents import write_contents
from mtpref.heads.fetch.found import Found, Taken, unversioned
from mtpref.heads.inspect.render import summary
from mtpref.heads.inspect.report import describe_file
from mtpref.heads.split import extract


def look_gguf(place: Place) -> Found:
    """Open a model and judge its headers. Errors: MtprefError as `look`"""
    assert place.gguf is not None
    file, alone = open_remote_gguf(place.gguf.name, place.open)
    try:
        return FoundGguf(place, file, alone)
    except BaseException:
        file.close()
        raise


class FoundGguf(Found):
    """A GGUF model. alone: why the first file of several stands alone"""

    def __init__(self, place: Place, file: RemoteGguf, alone: str | None) -> None:
        self.place, self.file, self.alone, self.size = place, file, alone, file.n_bytes
        self.seen, problems = describe_file(file, alone)
        self.seen["file"]["path"] = file.label
        if self.seen["what"] is not None:
            raise MtprefError(f"{file.label}: this is {self.seen['what']}")
        if self.seen["architecture"] not in ARCHITECTURES:
            raise MtprefError(
                f"{file.label}: architecture {printable(str(self.seen['architecture']))!r}, expected one of "
                f"{', '.join(ARCHITECTURES)}; mtpref knows no head of another"
            )
        self.report = Report(file.label, None, False, check_header(file, self.seen, problems))
        self.report.findings += unversioned(self.remotes())
        self.report.findings.append(Finding("not-run", "the head", "headers alone were read"))

    def lines(self, width: int) -> list[str]:
        return summary(self.seen, width)

    def contents(self) -> dict[str, Any]:
        return self.seen

    def take(self, target: str | Path, options: WriteOptions, spool: Spool | None = None) -> Taken:
        if self.alone is not None:
            raise MtprefError(self.alone)
        contents = extract(self.file)
        n_bytes = contents.n_bytes
        if spool is not None:
            for remote in self.remotes():
                remote.keep(spool)
            n_bytes += spool.n_bytes_to_come(contents.n_bytes)
        check_targets([target], options, n_bytes)
        self.file.expect({item.name for item in contents.items})
        (path,) = write_contents(target, contents, options)
        return Taken(path, len(contents.items), contents.n_bytes)

    def remotes(self) -> list[RemoteFile]:
        return [part.remote for part in (self.file, *self.file.others) if isinstance(part, RemoteGguf)]

    def close(self) -> None:
        self.file.close()
