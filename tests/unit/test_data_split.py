"""The split and the survey: equal texts stay together, nothing is lost or repeated, one long text is split."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspore_palm.data.corpus import Document
from mindspore_palm.data.split import Piece, split
from mindspore_palm.data.survey import sample, survey_corpus
from mindspore_palm.errors import UserError


def document(text, name="d"):
    size = len(text.encode())
    return Document(name, text, 0, size, size)


def in_parts(parts):
    size, offset, result = sum(len(p.encode()) for p in parts), 0, []
    for part in parts:
        result.append(Document("d", part, offset, size, len(part.encode())))
        offset += len(part.encode())
    return result


def text_of(pieces, name):
    return "".join(piece.text for piece in pieces if piece.split == name)


def test_equal_texts_stay_together_and_the_share_is_right():
    texts = [f"text {i % 1000}" for i in range(3000)]
    pieces = list(split([document(t) for t in texts], "documents", 0.2))
    held = {p.text for p in pieces if p.split == "validation"}
    assert held.isdisjoint(p.text for p in pieces if p.split == "train")
    assert 150 < len(held) < 250
    assert [p.text for p in pieces] == texts and all(p.ends for p in pieces)


def test_parts_of_a_document_stay_together():
    parts = [f"part {i}\n" for i in range(40)]
    for seed in range(20):
        pieces = list(split(in_parts([f"{seed}\n", *parts]), "documents", 0.5))
        assert len({p.split for p in pieces}) == 1
        assert [p.ends for p in pieces] == [False] * 40 + [True]


@given(
    parts=st.lists(st.text("ab\né😀", min_size=1, max_size=12), min_size=1, max_size=6),
    fraction=st.floats(0.01, 0.99),
)
def test_tails_lose_nothing_and_end_each_share_once(parts, fraction):
    pieces = list(split(in_parts(parts), "tails", fraction))
    assert text_of(pieces, "train") + text_of(pieces, "validation") == "".join(parts)
    for name in ("train", "validation"):
        ends = [p.ends for p in pieces if p.split == name]
        assert ends == [False] * (len(ends) - 1) + [True] * bool(ends)
    assert all(p.size == len(p.text.encode()) > 0 for p in pieces)
    assert any(p.split == "validation" for p in pieces) or len("".join(parts).encode()) * fraction < 4


def test_a_tail_starts_at_a_line():
    pieces = list(split([document("line one\n" * 100)], "tails", 0.1))
    assert text_of(pieces, "validation") == "line one\n" * 10
    pieces = list(split([document("line one\n" * 100)], "tails", 0.095))  # 86 bytes, from the start of the next line
    assert text_of(pieces, "validation") == "line one\n" * 9


def test_the_survey_uses_tails_if_the_hash_leaves_a_split_empty():
    long = document("some text\n" * 500)
    found = survey_corpus(lambda: [long], 0.02, "c")
    assert found.mode == "tails" and found.documents == {"train": 1, "validation": 1}
    assert sum(found.size.values()) == 5000 and found.size["validation"] == 100
    many = [document(f"text {i}\n") for i in range(500)]
    assert survey_corpus(lambda: many, 0.1, "c").mode == "documents"


def test_gzip_covers_all_held_out_text():
    many = [document(f"text {i} and {i * i}\n") for i in range(2000)]
    found = survey_corpus(lambda: many, 0.3, "c")
    held = text_of(split(many, "documents", 0.3), "validation").encode()
    assert found.size["validation"] == len(held)
    assert found.gzip9_bits_per_byte == 8 * len(gzip.compress(held, 9)) / len(held)


def test_too_little_text():
    with pytest.raises(UserError, match="there is no text in it"):
        survey_corpus(lambda: [], 0.02, "c")
    with pytest.raises(UserError, match=r"1 bytes of text leave none for train.*validation_fraction = 0.02"):
        survey_corpus(lambda: [document("a")], 0.02, "c")


@pytest.mark.parametrize("most", [1, 100, 5_000, 60_000, 99_999])
def test_the_sample_is_bounded_and_spread(most):
    text = "".join(f"{i:09d}\n" for i in range(1000))
    pieces = [Piece("train", text, 10_000, True), Piece("validation", "v" * 10_000, 10_000, True)] * 10
    taken = list(sample(pieces, 100_000, most))
    assert "v" not in "".join(taken)
    assert most * 0.8 - 10 <= sum(map(len, taken)) <= most
    if most >= 5_000:
        quarters = [int(line) // 250 for block in taken for line in block.split("\n") if len(line) == 9]
        assert {0, 1, 2, 3} == set(quarters)
    assert taken == list(sample(pieces, 100_000, most))


def test_a_small_corpus_is_sampled_in_full():
    pieces = [Piece("train", "abc", 3, True), Piece("validation", "v", 1, True), Piece("train", "é", 2, True)]
    assert list(sample(pieces, 5, 5)) == ["abc", "é"]


BOOK = "".join(f"chapter line {i} of the book, which goes on and on\n" for i in range(18000))  # 0.9 MB


def held_out_book_seeds():
    """A book that the hash holds out, and a book that it does not."""
    from mindspore_palm.data.split import held_out

    books = [document(f"{seed}\n{BOOK}") for seed in range(200)]
    out = [book for book in books if held_out(book.text, 0.02)]
    return out[0], next(book for book in books if book not in out)


@pytest.mark.parametrize("is_held_out", [True, False])
def test_a_book_among_notes_is_split_and_notes_are_not(is_held_out):
    book = held_out_book_seeds()[0 if is_held_out else 1]
    notes = [document(f"note {i}: {'remember the milk ' * (i % 5)}\n") for i in range(40)]
    documents = [*notes[:20], book, *notes[20:]]
    found = survey_corpus(lambda: documents, 0.02, "c")
    assert found.mode == "long tails" and 0.015 < found.held_out < 0.025
    pieces = list(split(documents, found.mode, 0.02, found.long))
    for note in notes:
        assert [piece.text for piece in pieces if note.text.startswith(piece.text)] == [note.text]
    assert "".join(piece.text for piece in pieces) == "".join(one.text for one in documents)


@given(
    sizes=st.lists(st.sampled_from([1, 10, 300, 5000, 40_000]), min_size=1, max_size=60),
    fraction=st.sampled_from([0.02, 0.1, 0.5, 0.9]),
    seed=st.integers(0, 1000),
)
def test_the_held_out_share_is_close_to_the_fraction_for_any_sizes(sizes, fraction, seed):
    documents = [document(f"{seed} {i} {'x' * 9}\n" * (size // 10) or "x") for i, size in enumerate(sizes)]
    total = sum(one.size for one in documents)
    try:
        found = survey_corpus(lambda: documents, fraction, "c")
    except UserError as error:
        assert "leave none for" in str(error) and total < 100 / min(fraction, 1 - fraction)
        return
    assert found.has_both_splits
    if total > 2000 / min(fraction, 1 - fraction):
        assert fraction / 4 <= found.held_out <= min(3 * fraction, (1 + 2 * fraction) / 3)


def test_equal_long_texts_are_split_at_the_same_point():
    """So no copy is trained on text that is held out in another copy."""
    documents = [document("line one\n" * 1000)] * 3 + [document(f"{i}\n") for i in range(20)]
    found = survey_corpus(lambda: documents, 0.1, "c")
    pieces = [piece for piece in split(documents, found.mode, 0.1, found.long) if len(piece.text) > 10]
    assert len({(piece.split, piece.text) for piece in pieces}) == 2


def test_a_tail_keeps_its_size_where_no_line_starts_near():
    text = "x" * 9_900 + "\n" + "y" * 9  # the only line's start would leave 9 bytes of 1,000
    pieces = list(split([document(text)], "tails", 0.1))
    assert len(text_of(pieces, "validation")) == 991
    assert text_of(pieces, "train") + text_of(pieces, "validation") == text


def test_a_run_of_an_earlier_version_keeps_its_split():
    book, _ = held_out_book_seeds()
    documents = [book, *(document(f"note {i}\n") for i in range(40))]
    found = survey_corpus(lambda: documents, 0.02, "c", any_share=True)
    assert found.mode == "documents" and found.held_out > 0.99
