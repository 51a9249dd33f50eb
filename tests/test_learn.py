"""The chapters: each runs and its claims hold, the pages are what they print, the exercise checks answers."""

import ast
import base64
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import lru_cache
from pathlib import Path

import pytest

import mtpref
from mtpref.base.errors import MtprefError
from mtpref.faults import FAULTS, inject, is_possible
from mtpref.front import cli
from mtpref.front.api import LanguageModel
from mtpref.front.learn import CHAPTERS, EXERCISE, N_MYSTERIES, Chapter, is_answer, mystery, run_chapter, show
from mtpref.front.learn import mystery as exercise
from mtpref.front.learn.chapter import Cell, find_chapter
from mtpref.front.learn.mystery import ANSWERS, digest
from mtpref.front.learn.render import contents, notebook, page, terminal
from mtpref.front.learn.show import Picture

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "learn"
by_title = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.slug)


@lru_cache
def cells_of(chapter):
    return tuple(run_chapter(chapter))


def pictures_of(chapter):
    return [part for cell in cells_of(chapter) for part in cell.output if isinstance(part, Picture)]


# -------------------------------------------------------------------------------------------- chapters


def test_they_are_in_order():
    assert [c.number for c in CHAPTERS] == list(range(1, 13))
    assert len({c.name for c in CHAPTERS}) == 12
    assert [c.name for c in CHAPTERS[:3]] == ["draft_and_verify", "inside_the_head", "the_pairing"]


@by_title
def test_a_chapter_runs_and_claims_something(chapter):
    cells = cells_of(chapter)
    claims = [line for cell in cells if cell.kind == "code" for line in cell.text.splitlines() if "assert " in line]
    assert len(claims) >= 3
    assert any(cell.output for cell in cells)
    assert chapter.summary.endswith(".")


@by_title
def test_its_page_is_what_it_prints_today(chapter):
    text = (PAGES / f"{chapter.slug}.md").read_text("utf-8")
    assert text == page(chapter, cells_of(chapter)), "run: python tools/write_chapters.py"
    for picture in pictures_of(chapter):
        file = PAGES / "pictures" / f"{chapter.slug}-{picture.name}.svg"
        assert file.read_text("utf-8") == picture.svg, "run: python tools/write_chapters.py"


def test_the_list_of_chapters_is_written_and_nothing_else_lies_beside():
    assert (PAGES / "README.md").read_text("utf-8") == contents()
    pages = {"README.md", *(f"{c.slug}.md" for c in CHAPTERS)}
    pictures = {f"pictures/{c.slug}-{p.name}.svg" for c in CHAPTERS for p in pictures_of(c)}
    assert {str(p.relative_to(PAGES)) for p in PAGES.rglob("*") if p.is_file()} == pages | pictures


@by_title
def test_links_and_pictures_of_a_page_are_there(chapter):
    for target in re.findall(r"\]\(([^)#:]+)\)", (PAGES / f"{chapter.slug}.md").read_text("utf-8")):
        assert (PAGES / target).exists(), target


@by_title
def test_files_that_a_chapter_names_are_there(chapter):
    prose = " ".join(cell.text for cell in chapter.cells if cell.kind == "prose")
    for name in re.findall(r"\b(?:docs|tests|mtpref|tools)/[\w/.-]+\.(?:md|py)\b", prose):
        assert (ROOT / name).exists(), name


@by_title
def test_a_chapter_in_a_terminal_is_narrow_and_plain(chapter):
    text = "\n".join(terminal(cell) for cell in cells_of(chapter))
    assert show.MARK not in text
    assert max(len(line) for line in text.splitlines()) <= 140
    assert text.isascii()


@by_title
def test_the_notebook_is_one(chapter):
    found = json.loads(notebook(chapter, cells_of(chapter)))
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in found["cells"]}) == len(found["cells"]) == len(chapter.cells)
    for cell, own in zip(found["cells"], chapter.cells, strict=True):
        assert cell["cell_type"] == ("markdown" if own.kind == "prose" else "code")
        assert "".join(cell["source"]) == own.text


def test_a_chapter_runs_as_a_plain_program():
    path = next(c.path for c in CHAPTERS if c.name == "why_no_way_back")
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "before: they differ by up to 4.0" in done.stdout


def test_a_claim_that_fails_is_an_error_with_the_line_of_the_file(tmp_path):
    path = tmp_path / "c01_wrong.py"
    path.write_text("# %% [markdown]\n# # Wrong\n#\n# It is.\n\n# %%\nx = 1\n\n\nassert x == 2\n")
    chapter = Chapter(1, "wrong", path)
    with pytest.raises(AssertionError) as failed:
        list(run_chapter(chapter))
    assert failed.traceback[-1].lineno + 1 == 10
    assert (chapter.title, chapter.summary) == ("Wrong", "It is.")


# -------------------------------------------------------------------------------------------- pictures


@by_title
def test_pictures_are_small_and_well_formed(chapter):
    names = [picture.name for picture in pictures_of(chapter)]
    assert len(set(names)) == len(names)
    for picture in pictures_of(chapter):
        root = ElementTree.fromstring(picture.svg)
        assert root.tag.endswith("svg")
        assert len(picture.svg) < 20_000


def test_bars_have_the_length_of_their_values(capsys):
    show.bars("b", "title", [("one", 1.0), ("half", 0.5), ("none", 0.0)], top=1.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.count("#") for line in lines[1:]] == [32, 16, 0]


def test_curves_keep_points_in_order_and_inside():
    with show.collected() as pictures:
        show.curves("c", "a <title>", {"x": [0.0, 0.5, 1.0]}, "step", top=1.0)
    root = ElementTree.fromstring(pictures[0].svg)
    [line] = [e for e in root.iter() if e.tag.endswith("polyline")]
    points = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == [250.0, 147.0, 44.0]


def test_matrices_show_size_and_sign():
    with show.collected() as pictures:
        show.matrices("m", "title", {"a": [[1.0, -1.0], [0.0, 0.25]]})
    assert pictures[0].text.splitlines()[2].strip() == "@-@"
    root = ElementTree.fromstring(pictures[0].svg)
    cells = [e for e in root.iter() if e.get("fill-opacity")]
    assert [e.get("fill-opacity") for e in cells] == ["1.00", "1.00", "0.05", "0.29"]
    assert cells[0].get("fill") != cells[1].get("fill")


def test_output_keeps_its_order_around_a_picture(tmp_path):
    path = tmp_path / "c01_x.py"
    path.write_text(
        "# %%\nfrom mtpref.front.learn.show import bars\nprint('a')\nbars('b', 't', [('x', 1.0)])\nprint('c')\n"
    )
    [cell] = run_chapter(Chapter(1, "x", path))
    assert isinstance(cell, Cell)
    assert (cell.output[0], cell.output[1].name, cell.output[2].strip()) == ("a\n", "b", "c")


# -------------------------------------------------------------------------------------------- exercise


def test_every_mystery_has_one_answer_that_the_file_does_not_tell():
    source = Path(exercise.__code__.co_filename).read_text("utf-8")
    for number in range(1, N_MYSTERIES + 1):
        fits = [fault for fault in FAULTS.values() if digest(number, fault) == ANSWERS[number - 1]]
        assert len(fits) == 1
        assert fits[0].id not in source
        assert fits[0].id not in find_chapter(EXERCISE).path.read_text("utf-8")
        assert is_answer(number, fits[0].id)
        assert is_answer(number, fits[0].id.split("-")[0])
        others = [fault for fault in FAULTS.values() if fault is not fits[0]]
        assert not any(is_answer(number, fault.id) for fault in others)


def test_a_mystery_that_there_is_not():
    with pytest.raises(MtprefError, match="mystery 9 does not exist"):
        mystery(9)


# ---------------------------------------------------------------------------------------- command line


def test_the_list(capsys):
    assert cli.main(["learn"]) == 0
    out = capsys.readouterr().out
    assert all(c.title in out for c in CHAPTERS)


def test_one_chapter(capsys):
    assert cli.main(["learn", "5"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Why it cannot be rolled back\n====")
    assert "  | key = np.float32([0.5, 0.5, 0.5, 0.5])" in out
    assert "    before: they differ by up to 4.0" in out


def test_answers(capsys):
    [right] = [fault for fault in FAULTS.values() if digest(2, fault) == ANSWERS[1]]
    assert cli.main(["learn", "11", "--answer", f"2={right.id}"]) == 0
    assert capsys.readouterr().out.startswith("right: mystery 2 is")
    assert cli.main(["learn", "11", "--answer", "2=W6"]) == 1
    assert capsys.readouterr().out.startswith("no: mystery 2 is not W6")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["13"], "chapter 13 does not exist, expected 1 .. 12"),
        (["0"], "chapter 0 does not exist"),
        (["--answer", "W6"], "'W6' is not K=FAULT"),
        (["3", "--answer", "1=W6"], "chapter 3 has no exercise"),
        (["11", "--answer", "9=W6"], "mystery 9 does not exist"),
        (["11", "--answer", "1=W66"], "fault 'W66' is unknown"),
    ],
)
def test_bad_arguments_are_one_line(arguments, words, capsys):
    assert cli.main(["learn", *arguments]) == 2
    assert words in capsys.readouterr().err


# --------------------------------------------------------------------------------- what the exercise shows


@pytest.fixture(scope="module")
def exercise_names():
    """The functions of the exercise, and what they need; that its cells run is tested above."""
    tree = ast.parse(find_chapter(EXERCISE).path.read_text("utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}

    def is_needed(node):
        called = {n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        is_value = isinstance(node, ast.Assign) and not called & functions
        return is_value or isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef)

    tree.body = [node for node in tree.body if is_needed(node)]
    names = {}
    exec(compile(tree, str(find_chapter(EXERCISE).path), "exec"), names)
    return names


def test_no_other_fault_that_changes_text_leaves_the_state_that_the_third_mystery_leaves(exercise_names, capsys):
    left = exercise_names["left_behind"]
    core = mtpref.load().core
    [right] = [fault for fault in FAULTS.values() if digest(3, fault) == ANSWERS[2]]
    wanted = left(mystery(3))
    assert len(wanted) >= 2
    others = [
        fault
        for fault in FAULTS.values()
        if not fault.predicted.text and fault is not right and is_possible(fault, core)
    ]
    assert len(others) > 10
    for fault in others:
        assert left(LanguageModel(inject(core, fault))) != wanted, fault.id
    assert left(LanguageModel(core)) != wanted


def test_a_wrong_answer_gets_a_hint_of_the_family(capsys):
    assert cli.main(["learn", "11", "--answer", "3=S2"]) == 1
    assert "hint: the family S (recurrent state and roll back) is right" in capsys.readouterr().out
    assert cli.main(["learn", "11", "--answer", "3=W6"]) == 1
    assert "hint: it is of another family than W" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ a terminal


@pytest.mark.parametrize("width", [80, 96])
@by_title
def test_a_chapter_fits_the_terminal(chapter, width):
    for cell in cells_of(chapter):
        for line in terminal(cell, width).splitlines():
            is_picture = "#" in line or "." * 8 in line
            assert len(line) <= width or is_picture or not re.search(r"\S\s+\S", line.strip(" |:")), line


def test_what_is_bent_is_whole(exercise_names):
    for chapter in CHAPTERS:
        for cell in chapter.cells:
            if cell.kind == "code":
                shown = re.sub(r"(?m)^  [|:] ?", "", terminal(cell, 60))
                assert "".join(shown.split()) == "".join(cell.text.split())


def test_titles_and_code_are_coloured_and_nothing_else_changes():
    for cell in cells_of(CHAPTERS[0]):
        plain, colored = terminal(cell, 80), terminal(cell, 80, is_colored=True)
        assert "\x1b" not in plain
        stripped = re.sub(r"\x1b\[\d*m", "", colored)
        assert stripped == plain or cell.text.startswith("#")


def test_on_a_terminal_a_chapter_goes_through_the_pager(tmp_path, monkeypatch, capfd):
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\necho paged\ncat\n")
    pager.chmod(0o755)
    monkeypatch.setenv("PAGER", str(pager))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["learn", "5"]) == 0
    assert capfd.readouterr().out.startswith("paged\n")
    assert cli.main(["learn", "5", "--no-pager"]) == 0
    assert not capfd.readouterr().out.startswith("paged\n")
    monkeypatch.setenv("PAGER", "true")  # leaves at once
    assert cli.main(["learn", "5"]) == 0


def test_a_notebook_has_its_pictures_as_images():
    [chapter] = [c for c in CHAPTERS if c.name == "inside_the_head"]
    outputs = [o for cell in json.loads(notebook(chapter, cells_of(chapter)))["cells"] for o in cell.get("outputs", [])]
    [data] = [o["data"] for o in outputs if o["output_type"] == "display_data"]
    [source] = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', "".join(data["text/html"]))
    assert base64.b64decode(source).decode() == "".join(data["image/svg+xml"])
