"""Stop strings on bytes: what is shown, what is held back, where the text ends."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpref.base.errors import MtprefError
from mtpref.engine.decode.stops import StopStrings

texts = st.text(alphabet="ab\u00e9", max_size=12).map(str.encode)
strings = st.lists(st.text(alphabet="ab\u00e9", min_size=1, max_size=4), max_size=3)


def naive(text: bytes, stops: list[str]) -> tuple[bytes, bool]:
    """One byte after the other: the text ends where one of the strings is there for the first time."""
    for end in range(1, len(text) + 1):
        there = [stop.encode() for stop in stops if text[:end].endswith(stop.encode())]
        if there:
            return text[: end - max(len(stop) for stop in there)], True
    return text, False


@settings(derandomize=True, max_examples=400, deadline=None)
@given(texts, strings, st.lists(st.integers(1, 4), max_size=12))
def test_the_text_does_not_depend_on_how_it_is_cut_into_tokens(text, stops, sizes):
    holder, shown, at = StopStrings(stops), b"", 0
    for size in [*sizes, len(text)]:
        shown += holder.push(text[at : at + size])
        at += size
        # Nothing that was shown is taken back, and nothing is held without need.
        assert naive(text, stops)[0].startswith(shown)
        if not holder.is_complete:
            assert shown + holder.held == text[:at]
            assert not holder.held or any(stop.encode().startswith(holder.held) for stop in stops)
    assert holder.is_complete == naive(text, stops)[1]
    assert shown + holder.flush() == naive(text, stops)[0]
    assert holder.push(b"more") == (b"" if holder.is_complete else b"more"[: 4 - len(holder.held)])


@settings(derandomize=True, max_examples=200, deadline=None)
@given(texts, strings, st.lists(texts, max_size=5))
def test_the_pieces_that_belong_to_the_text_end_with_the_one_that_completes_a_string(before, stops, pieces):
    holder = StopStrings(stops)
    holder.push(before)
    if holder.is_complete:
        return
    held = holder.held
    n_useful = holder.n_useful(pieces)
    assert (holder.held, holder.is_complete) == (held, False)
    complete = [naive(before + b"".join(pieces[: n + 1]), stops)[1] for n in range(len(pieces))]
    assert n_useful == (complete.index(True) + 1 if any(complete) else len(pieces))


def test_a_string_of_half_a_character_is_found():
    holder = StopStrings([b"\xa9".decode("utf-8", "surrogateescape")])
    assert (holder.push("caf\u00e9".encode()), holder.is_complete) == (b"caf\xc3", True)


def test_no_string_holds_nothing_back():
    holder = StopStrings([])
    assert (holder.push(b"abc"), holder.held, holder.flush()) == (b"abc", b"", b"")


def test_an_empty_string_is_refused():
    with pytest.raises(MtprefError, match=r"^Options\.stop: the string is empty"):
        StopStrings(["x", ""])
