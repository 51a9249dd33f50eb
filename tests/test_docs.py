"""The pages as a whole: links, the reading guide's reach, the glossary's completeness, the README's picture."""

import argparse
import dataclasses
import re
import sys
from pathlib import Path

import pytest

from mtpref.engine.decode import ACCEPT_RULES, STRATEGIES
from mtpref.front import cli
from mtpref.spec import policy as adaptive
from mtpref.spec.contract import CHOICES, MtpContract

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "golden").rglob("*.md"),
        ROOT / "tests/data/README.md",
    ]
)
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text("utf-8")


def name_of(path):
    return str(path.relative_to(ROOT))


def prose(path):
    """A page without its code blocks."""
    return re.sub(r"(?ms)^```.*?^```", "", path.read_text("utf-8"))


def links(path):
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(path))


def verbs():
    parser = cli.build_parser()
    [choices] = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(choices)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page):
    for link in links(page):
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), link


def anchors(path):
    """Anchors of headings as GitHub makes them, and those written out."""
    text = prose(path)
    heads = [re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", head) for head in re.findall(r"(?m)^#+ (.*)$", text)]
    made = {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}
    return made | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))


def test_the_reading_guide_reaches_every_page():
    guide = ROOT / "docs" / "reading-guide.md"
    reached, new = set(), {guide}
    while new:
        reached |= new
        # From the guide itself, and from the lists that it points to.
        lists = [p for p in new if p == guide or p.name == "README.md"]
        found = {(p.parent / link.partition("#")[0]).resolve() for p in lists for link in links(p)}
        new = {p for p in found if p.suffix == ".md" and p.exists() and ROOT in p.parents} - reached
    unreached = {p for p in PAGES if p.parent != ROOT and "tests" not in p.parts} - reached
    assert not unreached, sorted(map(name_of, unreached))


def test_the_readme_names_every_page_of_docs():
    readme = (ROOT / "README.md").read_text("utf-8")
    named = {link.partition("#")[0] for link in links(ROOT / "README.md")}
    # Pages that belong to another page, which the README names.
    of_others = {"docs/cli.md", "docs/hostile-input.md", "docs/transcript.md"}
    missing = {name_of(p) for p in (ROOT / "docs").glob("*.md")} - named - of_others
    assert not missing
    assert "docs/pictures/round.svg" in readme


def test_the_glossary_has_every_verb():
    for verb in verbs():
        assert re.search(rf"^\|.*`{verb}`", GLOSSARY, re.M), verb


def test_the_glossary_has_every_field_and_value_of_the_contract():
    for field in dataclasses.fields(MtpContract):
        row = re.search(rf"^\| `{field.name}` \| (.*?) \|", GLOSSARY, re.M)
        assert row, field.name
        assert row[1].split(", ") == [str(value) for value in CHOICES[field.name]]


LOOP = ("cooldown", "contract", "near tie", "pending hidden", "bonus token", "correction token", "checkpoint", "margin")


@pytest.mark.parametrize("word", [*STRATEGIES, *ACCEPT_RULES, *adaptive.RULES[1:], *LOOP])
def test_the_glossary_has_the_words_of_the_loop(word):
    rows = "\n".join(line for line in GLOSSARY.splitlines() if line.startswith("|"))
    assert word in rows


def test_the_picture_of_a_round_is_what_the_model_does():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import write_picture
    finally:
        sys.path.pop(0)
    assert write_picture.TARGET.read_text("utf-8") == write_picture.render(), "run: python tools/write_picture.py"
