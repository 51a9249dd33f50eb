"""The pages as a whole: links, the one map's reach, what is named and must exist, the glossary, the picture."""

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
from tests.test_layering import ROOMS

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


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_table_has_a_head_a_rule_and_rows_of_as_many_cells(page):
    lines = prose(page).splitlines()
    for i, line in enumerate(lines):
        if re.search(r"\|\s*:?-{3,}", line):
            assert re.fullmatch(r"\s*\|(\s*:?-+:?\s*\|)+", line), line
            j, n = i + 1, line.count("|")
            for row in (lines[i - 1], *iter_rows(lines[j:])):
                assert re.sub(r"`[^`]*`|\\\|", "", row).count("|") == n, row


def iter_rows(lines):
    """The lines of a table, up to the first that is none."""
    for line in lines:
        if not line.strip().startswith("|"):
            return
        yield line


def anchors(path):
    """Anchors of headings as GitHub makes them, and those written out."""
    text = prose(path)
    heads = [re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", head) for head in re.findall(r"(?m)^#+ (.*)$", text)]
    made = {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}
    return made | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))


def test_the_one_map_reaches_every_page():
    """README's map, and the lists of a folder that it points to."""
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        lists = [p for p in new if p.name == "README.md"]
        found = {(p.parent / link.partition("#")[0]).resolve() for p in lists for link in links(p)}
        new = {p for p in found if p.suffix == ".md" and p.exists() and ROOT in p.parents} - reached
    unreached = {p for p in PAGES if "tests" not in p.parts} - reached - {ROOT / "golden/CHANGELOG.md"}
    assert not unreached, sorted(map(name_of, unreached))
    assert "docs/pictures/round.svg" in (ROOT / "README.md").read_text("utf-8")


def test_the_reading_guide_has_the_rooms_in_their_order():
    guide = (ROOT / "docs/reading-guide.md").read_text("utf-8")
    table = guide[: guide.index("## Five questions")]
    assert re.findall(r"(?m)^\| `(\w+)` \|", table) == list(ROOMS)
    for room, start in re.findall(r"(?m)^\| `(\w+)` \|.*\| ([^|]*) \|$", table):
        for name in re.findall(r"`([\w/.]+)`", start):
            assert any((ROOT / "mtpref" / at / name).exists() for at in (room, f"{room}/decode")), (room, name)


def test_the_guides_search_finds_a_rule_and_its_twin():
    guide = (ROOT / "docs/reading-guide.md").read_text("utf-8")
    [pattern] = re.findall(r"grep -rn '([^']+)' mtpref/", guide)
    found = [name_of(p) for p in (ROOT / "mtpref").rglob("*.py") if re.search(pattern, p.read_text("utf-8"))]
    assert sorted(found) == ["mtpref/kernels/layers/delta.py", "mtpref/spec/layers.py"]
    assert all(name in guide for name in found)


# What a page names and is no file of this tree: a placeholder, outputs.
NO_FILES = {"mtpref/architectures/NAME.py"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_of_the_tree_that_a_page_names_exist(page):
    named = re.findall(r"(?<![\w./-])((?:mtpref|tools|tests|docs)/[\w/.*-]*[\w*])", page.read_text("utf-8"))
    missing = [path for path in named if path not in NO_FILES and not (any(ROOT.glob(path)) or (ROOT / path).exists())]
    assert not missing


CODE = ("mtpref/**/*.py", "tools/**/*.py", "tests/*.py", "golden/runners/**/*.[ch]pp", "golden/runners/**/*.h")


@pytest.mark.parametrize("pattern", CODE)
def test_pages_that_code_and_its_messages_name_exist(pattern):
    """Pages of docs and golden, with the heading after # where one is named."""
    for path in ROOT.glob(pattern):
        for target, anchor in re.findall(r"\b((?:docs|golden)/[\w-]+\.md)(?:#([\w-]+))?", path.read_text("utf-8")):
            assert (ROOT / target).exists(), (name_of(path), target)
            assert not anchor or anchor in anchors(ROOT / target), (name_of(path), target, anchor)


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
