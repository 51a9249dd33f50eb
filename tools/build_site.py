"""Build the pages as a site, strictly: a link that leads nowhere, to a page or to a heading, is an error.

    python tools/build_site.py OUT            (needs mkdocs: pip install ".[docs]")
    python tools/build_site.py --lay PAGES    (only lay the pages beside each other, as mkdocs gets them)

README.md becomes index.md; docs/ and golden/ keep their places, so links between pages are those of the tree. Links to
what is no page (code, vectors) become text. Rules and chapters are linked wherever they are named.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "golden")
IMAGES = (".svg", ".png")
CODE = re.compile(r"(?ms)(^```.*?^```|^ {4}[^\n]*$|`[^`\n]+`|\[[^\]]*\]\([^)]*\)|^#[^\n]*$)")
CHAPTER = re.compile(r"\b([Cc]hapter) (\d+)\b")
RULE = re.compile(r"\bS(\d+)\b(?!\.\w)")


def lay(target: Path) -> None:
    """Write the pages into an empty folder."""
    texts = {path.relative_to(ROOT): path for name in PAGES for path in files_of(ROOT / name)}
    names = {renamed(path) for path in texts}
    anchors = rule_anchors((ROOT / "docs" / "spec.md").read_text("utf-8"))
    for name, path in texts.items():
        place = target / renamed(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in IMAGES:
            shutil.copyfile(path, place)
            continue
        # mkdocs reads one word after a fence.
        text = re.sub(r"(?m)^```(\w+) [^\n]*$", r"```\1", relinked(path.read_text("utf-8"), name, names))
        if name.parts[0] == "docs" and name.name != "spec.md":
            text = with_chapters(with_rules(text, name, anchors), name)
        place.write_text(text, encoding="utf-8")


def files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.suffix in (".md", *IMAGES))


def renamed(path: Path) -> Path:
    return Path("index.md") if path == Path("README.md") else path


def relinked(text: str, page: Path, names: set[Path]) -> str:
    """The page with its links to pages as they are laid, and its links to anything else as text."""

    def link(match: re.Match[str]) -> str:
        words, target = match[1], match[2]
        if target.startswith(("http://", "https://", "#")):
            return match[0]
        file, _, anchor = target.partition("#")
        place = renamed(Path(*_normal((page.parent / file).parts)))
        if place not in names and not (ROOT / place).exists():
            raise SystemExit(f"{page}: {target} leads nowhere")
        if place not in names:
            return words
        up = "../" * len(renamed(page).parent.parts)
        return f"[{words}]({up}{place.as_posix()}{'#' + anchor if anchor else ''})"

    return outside_code(text, lambda part: re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", link, part), links_too=True)


def rule_anchors(spec: str) -> dict[int, str]:
    """Number of a rule -> anchor of its heading in spec.md."""
    found = {}
    for title in re.findall(r"(?m)^#+ (S\d+\b.*)$", spec):
        number = int(re.match(r"S(\d+)", title)[1])  # type: ignore[index]
        found[number] = re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip())
    return found


def with_rules(text: str, page: Path, anchors: dict[int, str]) -> str:
    """The first time that a rule is named on a page it is a link to the rule."""
    up, seen = "../" * (len(page.parent.parts) - 1), set()

    def link(match: re.Match[str]) -> str:
        number = int(match[1])
        if number in seen or number not in anchors:
            return match[0]
        seen.add(number)
        return f"[{match[0]}]({up}spec.md#{anchors[number]})"

    return outside_code(text, lambda part: RULE.sub(link, part))


def with_chapters(text: str, page: Path) -> str:
    """Chapters named by their number are links."""
    up = "../" * (len(page.parent.parts) - 1)
    pages = {int(path.name[:2]): path.name for path in (ROOT / "docs" / "learn").glob("[0-9][0-9]-*.md")}

    def link(match: re.Match[str]) -> str:
        name = pages.get(int(match[2]))
        return match[0] if name is None or name == page.name else f"[{match[0]}]({up}learn/{name})"

    return outside_code(text, lambda part: CHAPTER.sub(link, part))


def outside_code(text: str, change: Callable[[str], str], *, links_too: bool = False) -> str:
    """Apply `change` to what is no code block or span, and no heading or link unless links_too."""
    parts = CODE.split(text)
    return "".join(
        part if i % 2 and (part.startswith(("`", "    ")) or not links_too) else change(part)
        for i, part in enumerate(parts)
    )


def _normal(parts: tuple[str, ...]) -> list[str]:
    out: list[str] = []
    for part in parts:
        if part == "..":
            out = out[:-1]
        elif part != ".":
            out.append(part)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--lay", action="store_true")
    args = parser.parse_args()
    if args.lay:
        lay(args.out)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        lay(work / "pages")
        shutil.copy(ROOT / "mkdocs.yml", work)
        command = [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--site-dir",
            str(args.out.resolve()),
        ]
        # Not --quiet: what mkdocs does not print it does not count either.
        done = subprocess.run([*command, "--config-file", str(work / "mkdocs.yml")], capture_output=True, text=True)
        if done.returncode:
            print(done.stdout + done.stderr, file=sys.stderr)
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
