"""Streamed text: only complete characters, nothing of a stop text, and nothing lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mindspore_palm.generate.text import GrowingText


def pieces(parts, stop=()):
    """The text shown for each part, and the full text."""
    text, shown = GrowingText(stop), []
    for number, part in enumerate(parts):
        text.add(part)
        shown.append(text.piece(last=number == len(parts) - 1 or text.stopped))
        if text.stopped:
            break
    return shown, text


def test_a_character_waits_for_its_last_byte():
    shown, text = pieces([bytes([byte]) for byte in "a漢😀".encode()])
    assert shown == ["a", "", "", "漢", "", "", "", "😀"]
    assert text.whole == "a漢😀"


def test_an_incomplete_character_at_the_end_is_dropped():
    assert pieces([b"a", "漢".encode()[:2]])[1].whole == "a"


def test_bytes_that_are_not_utf8_are_replaced():
    assert pieces([b"a\xff", b"b"])[0] == ["a\ufffd", "b"]
    assert pieces(["漢".encode()[:2], b"b"])[1].whole == "\ufffdb"


def test_stop_text_over_several_parts_is_never_shown():
    shown, text = pieces([b"one\n", b"\nde", b"f two"], stop=["\n\ndef"])
    assert shown == ["one", "", ""] and text.stopped and text.whole == "one"


def test_text_that_only_starts_like_a_stop_text_is_shown_later():
    shown, text = pieces([b"a-", b"-b", b"-"], stop=["---"])
    assert shown == ["a", "--b", "-"] and not text.stopped


def test_the_first_of_several_stop_texts_counts():
    assert pieces([b"abcdef"], stop=["ef", "cd"])[1].whole == "ab"


@given(st.text(max_size=30), st.lists(st.text("ab\n漢", min_size=1, max_size=3), max_size=3), st.randoms())
def test_pieces_are_the_text_up_to_the_first_stop_text(full, stop, random):
    data, parts = full.encode(), []
    while data:
        cut = random.randint(1, 4)
        parts, data = [*parts, data[:cut]], data[cut:]
    shown, text = pieces(parts, stop)
    assert "".join(shown) == text.whole
    stops = [index for index in map(full.find, stop) if index >= 0]
    if not stops:
        assert text.whole == full
    else:
        assert text.stopped and full.startswith(text.whole) and len(text.whole) >= min(stops)
        assert not any(s in text.whole for s in stop)
