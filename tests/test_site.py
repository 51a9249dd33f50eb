"""The pages as a site: every link leads to a page and a heading, rules and chapters are links."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import build_site  # noqa: E402


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    build_site.lay(folder)
    return folder


def test_links_of_laid_pages_lead_to_pages(pages):
    n = 0
    for page in pages.rglob("*.md"):
        text = re.sub(r"(?ms)^```.*?^```|`[^`\n]+`", "", page.read_text("utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not target.startswith(("http", "#")):
                n += 1
                assert (page.parent / target.partition("#")[0]).resolve().is_file(), (page, target)
    assert n > 200


def test_rules_and_chapters_are_links_and_code_is_not(pages):
    text = (pages / "docs" / "learn" / "03-the-pairing.md").read_text("utf-8")
    assert "rule S20: shifted by one" in text, "in a block of code"
    text = (pages / "docs" / "learn" / "01-draft-and-verify.md").read_text("utf-8")
    assert "[S24](../spec.md#s24-the-next-pending-row)" in text
    assert "[Chapter 2](../learn/02-inside-the-head.md)" in text
    before = (ROOT / "docs" / "learn" / "01-draft-and-verify.md").read_text("utf-8")
    assert re.findall(r"(?ms)^```.*?^```", text) == re.findall(r"(?ms)^```.*?^```", before)


def test_a_link_that_leads_nowhere_is_an_error():
    with pytest.raises(SystemExit, match="leads nowhere"):
        build_site.relinked("[a](nowhere.md)", Path("docs/plan.md"), set())
    assert build_site.relinked("[a](../tools/fuzz.py)", Path("docs/plan.md"), set()) == "a"


def test_every_page_of_the_menu_is_there(pages):
    menu = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8"))
    assert len(menu) > 15
    assert all((pages / name).is_file() for name in menu)


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="no mkdocs here; pip install '.[docs]'")
def test_the_site_is_built_strictly(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "build_site.py"), str(tmp_path / "site")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "docs" / "spec.html").is_file()
