"""The page of `trace html` in a real browser: it draws, stays small, obeys keys, and runs nothing of a trace's.

Optional: skips where no Chromium is found. MTPREF_SCREENSHOTS=DIR keeps pictures of it.
"""

import json
import os
from pathlib import Path

import pytest

from mtpref.files.gguf import open_gguf
from mtpref.files.vocab import load_vocab
from mtpref.front.api import tiny_path
from mtpref.front.cli import main
from mtpref.look.html import Side, read_side, render_page
from tests.chromium import Browser, chromium
from tests.report_traces import HOSTILE, long_side, trace_of

# Elements that stick out of the page, though nothing scrolls.
WIDE = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.text, .rounds, svg') &&
  e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.tagName)"""
PROGRAM = chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here; put it on the PATH or set MTPREF_CHROMIUM")


@pytest.fixture(scope="module")
def browser():
    with Browser(PROGRAM) as running:
        yield running


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    healthy = trace_of(folder / "healthy.jsonl")
    faulty = trace_of(folder / "faulty.jsonl", "--fault", "S2")
    return folder, healthy, faulty


def pieces():
    vocab = load_vocab(open_gguf(tiny_path()).kv)
    return lambda id: vocab.piece(id, special=True)


def page(folder, name, *sides):
    path = folder / f"{name}.html"
    path.write_bytes(render_page(list(sides)))
    return path


def picture(browser, name):
    folder = os.environ.get("MTPREF_SCREENSHOTS")
    if folder:
        browser.frames(5)
        browser.screenshot(Path(folder) / f"{name}.png")


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light"), (360, "dark")])
def test_a_page_draws_without_a_complaint_a_request_or_a_sideways_scroll(browser, traces, width, scheme):
    folder, healthy, _ = traces
    path = page(folder, "one", read_side(str(healthy)))
    browser.open(path, width, scheme=scheme)
    picture(browser, f"one-{width}-{scheme}")
    assert browser.complaints() == []
    assert browser.requests() == [path.resolve().as_uri()]
    assert browser.js("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.js("document.querySelectorAll('.tok.draft').length") > 10
    assert browser.js("document.querySelectorAll('.round').length") > 5
    background = browser.js("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 20, 24)")


def test_the_text_on_the_page_is_the_runs_text(browser, traces):
    folder, healthy, _ = traces
    side = read_side(str(healthy))
    browser.open(page(folder, "one", side))
    assert browser.js("[...document.querySelectorAll('.tok')].map(t => t.textContent).join('')") == "".join(
        text for _, text, _, _ in side.tokens
    )
    drafts = "[...document.querySelectorAll('.round')].map(r => r.querySelectorAll('.mark').length)"
    shown = browser.js(drafts)  # the blocks near the view
    assert len(shown) >= 25
    assert shown == [len(r["d"]) for r in side.rounds[: len(shown)]]


def test_keys_move_open_and_close(browser, traces):
    folder, healthy, _ = traces
    side = read_side(str(healthy))
    browser.open(page(folder, "one", side))
    browser.js("document.querySelector('.round[tabindex=\"0\"]').focus()")
    at = "Number(document.activeElement.dataset.round)"
    for key, expected in (("ArrowDown", 1), ("PageDown", 11), ("ArrowUp", 10), ("End", len(side.rounds) - 1),
                          ("ArrowDown", len(side.rounds) - 1), ("Home", 0)):  # fmt: skip
        browser.key(key)
        assert browser.js(at) == min(expected, len(side.rounds) - 1), key
    drafted = next(i for i, r in enumerate(side.rounds) if r["d"])
    for _ in range(drafted):
        browser.key("ArrowDown")
    browser.key("Enter")
    assert browser.js("document.activeElement.querySelectorAll('.all table').length") >= len(side.rounds[drafted]["d"])
    browser.key("Enter")
    assert browser.js("document.querySelectorAll('.all').length") == 0
    assert browser.js("document.querySelectorAll('.round[tabindex=\"0\"]').length") == 1


def test_candidates_come_up_on_a_tap_and_on_a_hover(browser, traces):
    folder, healthy, _ = traces
    browser.open(page(folder, "one", read_side(str(healthy))), 390, 844)
    browser.js("document.querySelector('.round .chip.draft').click()")
    assert not browser.js("document.getElementById('inspector').hidden")
    assert browser.js("document.querySelectorAll('#inspector tbody tr').length") == 10
    picture(browser, "tapped-390")
    browser.key("Escape")
    assert browser.js("document.getElementById('inspector').hidden")
    browser.open(page(folder, "one", read_side(str(healthy))))
    box = browser.js(
        "(b => [b.x + b.width / 2, b.y + b.height / 2])(document.querySelector('.tok.draft').getClientRects()[0])"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    assert not browser.js("document.getElementById('inspector').hidden")


def test_two_runs_stand_beside_each_other_and_the_place_where_they_part_is_marked(browser, traces):
    folder, healthy, faulty = traces
    sides = [read_side(str(path)) for path in (healthy, faulty)]
    browser.open(page(folder, "two", *sides))
    assert browser.complaints() == []
    browser.js("document.getElementById('jump').click()")
    browser.frames()
    assert browser.js("document.querySelectorAll('.round.parted').length") == 2
    assert browser.js("document.querySelectorAll('.tok.parts').length") == 2
    at = next(i for i, (a, b) in enumerate(zip(sides[0].ids, sides[1].ids, strict=False)) if a != b)
    assert f"part at token {at}." in browser.js("document.getElementById('summary').textContent")
    is_seen = """[...document.querySelectorAll('.parts')].every(p => {
      const place = p.getBoundingClientRect(), box = p.closest('.text').getBoundingClientRect();
      return place.top >= box.top && place.bottom <= box.bottom; })"""
    assert browser.js(is_seen)
    picture(browser, "two-1200")
    for width, scheme in ((390, "light"), (1280, "light"), (1280, "dark")):
        browser.open(page(folder, "two", *sides), width, 844, scheme=scheme)
        assert browser.js("document.documentElement.scrollWidth <= window.innerWidth"), width
        assert browser.js(WIDE) == [], width
        picture(browser, f"two-{width}-{scheme}")
        browser.js("window.scrollTo(0, document.body.scrollHeight)")
        picture(browser, f"two-{width}-{scheme}-end")


def test_the_prompt_is_on_the_page_and_candidates_have_names(browser, traces):
    folder, healthy, _ = traces
    page_of = folder / "named.html"
    assert main(["trace", "html", str(healthy), "-o", str(page_of)]) == 0
    browser.open(page_of)
    prompt = browser.js("document.querySelector('.text .prompt').textContent")
    assert prompt == read_side(str(healthy), piece_of=pieces()).prompt != ""
    browser.js("document.querySelector('.round .chip.draft').click()")
    names = browser.js("[...document.querySelectorAll('#inspector td.name')].map(t => t.textContent)")
    assert len(names) == 10
    assert not any(name.startswith("#") for name in names)
    browser.open(page(folder, "unnamed", read_side(str(healthy))))
    browser.js("document.querySelector('.round .chip.draft').click()")
    assert "the trace has no text of it" in browser.js("document.getElementById('inspector').textContent")


def test_charts_have_scales_and_names_of_their_axes(browser, traces):
    folder, healthy, _ = traces
    browser.open(page(folder, "one", read_side(str(healthy))))
    charts = browser.js(
        "[...document.querySelectorAll('svg')].map(s => [...s.querySelectorAll('text')].map(t => t.textContent))"
    )
    for texts, axis in zip(charts, ("round", "draft position"), strict=True):
        assert {"0 %", "50 %", "100 %", axis} <= set(texts)


def test_hostile_text_is_text(browser, tmp_path):
    side = Side(HOSTILE, [("model", HOSTILE)], [1], [2], [[2, HOSTILE, HOSTILE, 0]])
    candidates = [[5, HOSTILE, 0.5]]
    side.rounds = [{"n": 0, "p": 1, "a": 0, "c": 0, "t": 1, "o": HOSTILE, "b": HOSTILE, "u": [[HOSTILE, candidates]],
                    "d": [[5, HOSTILE, HOSTILE, candidates, []]], "g": [2, HOSTILE, HOSTILE, 0.1, True]}]  # fmt: skip
    side.near_ties, side.notes = [[0, 2, HOSTILE]], [HOSTILE]
    path = page(tmp_path, "hostile", side, side)
    browser.open(path)
    browser.js("document.querySelectorAll('.chip, .tok, .round').forEach(e => e.click())")
    browser.key("Enter")
    browser.frames()
    assert browser.js("window.pwned === undefined && document.querySelectorAll('img, iframe, b').length === 0")
    assert browser.js("document.scripts.length") == 2
    assert browser.js("document.querySelector('.tok').textContent") == HOSTILE
    assert browser.complaints() == []
    assert browser.requests() == [path.resolve().as_uri()]


def test_the_policy_stops_a_script_that_got_into_the_page_all_the_same(browser, tmp_path, traces):
    whole = page(tmp_path, "one", read_side(str(traces[1]))).read_bytes()
    path = tmp_path / "forced.html"
    path.write_bytes(whole.replace(b"<main", b"<script>window.pwned = 1</script><img src=x onerror='pwned = 1'><main"))
    browser.open(path)
    assert browser.js("window.pwned === undefined")
    assert any("Content Security Policy" in text for text in browser.complaints())


def test_ten_thousand_rounds_keep_few_elements_and_short_frames(browser, tmp_path):
    side = long_side(10_000)
    path = page(tmp_path, "long", side)
    browser.open(path)
    assert browser.complaints() == []
    count = "document.querySelectorAll('*').length"
    seen = [browser.js(count)]
    # Scroll both boxes from end to end in 120 frames and take the time of each.
    times = browser.js("""(async () => {
      const boxes = [document.querySelector('.rounds'), document.querySelector('.text')], times = [];
      let last = performance.now();
      for (let i = 1; i <= 120; i++) {
        for (const box of boxes) box.scrollTop = box.scrollHeight * i / 120;
        await new Promise(requestAnimationFrame);
        const now = performance.now();
        times.push(now - last);
        last = now;
      }
      return times; })()""")
    browser.frames(5)
    seen.append(browser.js(count))
    browser.js("document.querySelector('.round').focus()")
    for key, expected in (("End", 9_999), ("Home", 0), ("PageDown", 10)):
        browser.key(key)
        assert browser.js("Number(document.activeElement.dataset.round)") == expected
        browser.frames(5)
        seen.append(browser.js(count))
    picture(browser, "long")
    times.sort()
    told = {
        "bytes": path.stat().st_size,
        "elements": max(seen),
        "frame_ms": [round(times[i], 1) for i in (60, 113, -1)],
    }
    print(json.dumps(told))
    assert max(seen) < 6_000  # all of it would be about 150,000
