"""What an index and a wheel get: links that lead somewhere, pages and vectors of the tree, no build folder."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

from mtpref.front.cli import docs, golden, main

ROOT = Path(__file__).parent.parent


@pytest.fixture
def script(monkeypatch):
    """setup.py's names; nothing is built."""

    def run(url=""):
        monkeypatch.setenv("MTPREF_URL", url)
        monkeypatch.setattr(setuptools, "setup", lambda **settings: None)
        return runpy.run_path(str(ROOT / "setup.py"))

    return run


def test_what_an_index_shows_has_no_link_into_the_tree(script):
    text = script()["long_description"]()
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert all(link.startswith(("https://", "#")) for link in links)
    assert "`mtpref docs porting`" in text
    url = "https://example.org/someone/mtpref/blob/main"
    text = script(url)["long_description"]()
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 20
    for link in links:
        path = link.removeprefix(url + "/").removeprefix(url.replace("blob", "raw") + "/").partition("#")[0]
        assert (ROOT / path).exists(), link
    assert set(script(url)["project_urls"]()) == {"Homepage", "Documentation", "Changelog", "Issues"}


def test_every_page_and_vector_is_carried(script):
    carried = {source: endings for source, _, endings in script()["CARRIED"]}
    tracked = subprocess.run(["git", "ls-files", "docs", "golden"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("no git here")
    for name in tracked.stdout.splitlines():
        if name.endswith((".csv", "dump_cb_eval.cpp")):  # logs and sources that no page needs to show
            continue
        assert name.endswith(carried[name.split("/")[0]]), name


def test_pages_are_listed_and_printed(capsys):
    assert main(["docs"]) == 0
    out = capsys.readouterr().out
    pages = [str(p.relative_to(ROOT / "docs"))[:-3] for p in (ROOT / "docs").rglob("*.md")]
    assert all(re.search(rf"(?m)^{re.escape(name)} ", out) for name in pages)
    for name in ("plan", "docs/plan.md", "learn/03-the-pairing", "learn", "docs/learn/"):
        assert main(["docs", name]) == 0
        shown = capsys.readouterr().out
        page = name.removeprefix("docs/").removesuffix(".md")
        path = ROOT / "docs" / (page.strip("/") + "/README.md" if page.strip("/") == "learn" else f"{page}.md")
        assert shown == path.read_text("utf-8")
    assert main(["docs", "porti"]) == 2
    assert "did you mean porting?" in capsys.readouterr().err


def test_vectors_are_found_without_the_tree(tmp_path, monkeypatch, capsys):
    """A copy of the package laid out as a wheel lays it."""
    package = tmp_path / "site" / "mtpref"
    shutil.copytree(ROOT / "mtpref", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "golden", package / "golden_vectors")
    shutil.copytree(ROOT / "docs", package / "pages")
    code = f"import sys; sys.path.insert(0, {str(package.parent)!r}); from mtpref.front.cli import main; "
    for words in (["golden", "list"], ["golden", "check", "--suite", "rms_norm"], ["docs", "spec"]):
        command = [sys.executable, "-P", "-c", f"{code}sys.exit(main({words!r}))"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if words[1] == "list":
            assert f"vectors: {package / 'golden_vectors'}" in done.stdout


def test_here_the_trees_own_are_taken(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert golden.default_folder() == "golden"
    assert docs.folder() == ROOT / "docs"


@pytest.mark.slow
def test_a_wheel_has_the_pages_and_leaves_no_build_folder(tmp_path):
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "tree" / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path / "out"), "."]
    done = subprocess.run(command, cwd=tmp_path / "tree", capture_output=True, text=True)
    if done.returncode and "setuptools" in done.stderr:
        pytest.skip("no package index here")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "tree" / "build").exists()
    [wheel] = (tmp_path / "out").glob("*.whl")
    listing = subprocess.run([sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True).stdout
    for name in ("mtpref/pages/spec.md", "mtpref/golden_vectors/manifest.json", "mtpref/data/tiny.gguf"):
        assert name in listing
