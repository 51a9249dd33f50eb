"""`mtpref docs`: the pages of docs/, as the package has them."""

import argparse
import sys
from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "docs",
        usage="mtpref docs [PAGE]",
        help="print a page of the documentation, or list them",
        description="List the pages of the documentation, or print one. Messages that name a page of docs/ mean these.",
    )
    parser.add_argument("page", nargs="?", metavar="PAGE", help="spec, docs/spec.md, ... (default: list them)")
    parser.add_argument("--no-pager", action="store_true", help="print at once on a terminal too (default: off)")
    parser.set_defaults(run=run_docs)


def folder() -> Path:
    """Where the pages are: in the installed package, or in the tree that it is run from.

    Errors  MtprefError where they are in neither
    """
    package = Path(__file__).parents[2]
    for found in (package / "pages", package.parent / "docs"):
        if (found / "spec.md").is_file():
            return found
    raise MtprefError(
        "docs: the pages are not in this installation, expected them; try: pip install --force-reinstall mtpref"
    )


def run_docs(args: argparse.Namespace) -> int:
    from mtpref.front.cli.pager import paged
    from mtpref.front.cli.parser import _near
    from mtpref.front.cli.terminal import columns, width_of

    root = folder()
    pages = {str(path.relative_to(root))[:-3]: path for path in sorted(root.rglob("*.md"))}
    if args.page is None:
        rows = [(name, title(path)) for name, path in pages.items()]
        print("\n".join(columns(rows, width_of(sys.stdout))))
        print("\nmtpref docs PAGE prints one")
        return 0
    name = args.page.removeprefix("docs/").removesuffix("/").removesuffix(".md")
    if f"{name}/README" in pages:
        name += "/README"
    if name not in pages:
        near = _near(name, pages)
        raise MtprefError(
            f"there is no page {name[:60]!r}{f', did you mean {near}?' if near else ''}; all of them: mtpref docs"
        )
    with paged(sys.stdout, is_wanted=not args.no_pager) as out:
        out.write(pages[name].read_text("utf-8"))
    return 0


def title(path: Path) -> str:
    """The first heading of a page."""
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("# "):
            return line[2:]
    return ""
