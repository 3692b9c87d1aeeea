"""A text's sentences: split where one ends, and nowhere else."""

from __future__ import annotations

import pytest
from promises.sentences import TITLE, sentences_of


def one_section(markdown):
    (sentences,) = sentences_of(f"## S\n\n{markdown}\n").values()
    return sentences


@pytest.mark.parametrize(
    ("markdown", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Over\ntwo  lines.\nNext.", ["Over two lines.", "Next."]),
        ("next begins small. like this.", ["next begins small.", "like this."]),
        ("`a.b. c` and `train.py --x` are code. `x` too.", ["`a.b. c` and `train.py --x` are code.", "`x` too."]),
        ("``a `. b`` is code. So.", ["``a `. b`` is code.", "So."]),
        ("A file `final/`. `kv` follows.", ["A file `final/`.", "`kv` follows."]),
        ("2.10.0 takes 0.75 s, e.g. here, i.e. now.", ["2.10.0 takes 0.75 s, e.g. here, i.e. now."]),
        ("As J. Dean et al. wrote. Yes.", ["As J. Dean et al. wrote.", "Yes."]),
        ("0, 1 ... 11 of them. And etc. is short.", ["0, 1 ... 11 of them.", "And etc. is short."]),
        ("See [a. b](x/y.z.md) here. End.", ["See [a. b](x/y.z.md) here.", "End."]),
        ("See https://a.b/c.d?e=f. Then.", ["See https://a.b/c.d?e=f.", "Then."]),
        ("**Lead. In.** It says so. More.", ["**Lead. In.** It says so.", "More."]),
        ('He says "so." (Not he.) _Then it ends._ Yes.', ['He says "so."', "(Not he.)", "_Then it ends._", "Yes."]),
        ("- one. two\n  more\n- three\n1. four", ["one.", "two more", "three", "four"]),
        ("> quoted. and\n> on.\n> - item", ["quoted.", "and on.", "item"]),
        ("before\n```\nno sentence. none\n```\nafter", ["before", "after"]),
        ("~~~~\nnone\n~~~\nnone\n~~~~\nsome", ["some"]),
        ("| head | er |\n|---|---:|\n| a. b | c |\n| d | |", ["| a. b | c |", "| d | |"]),
        ("text\n\n| a row alone | 1 |\n", ["text", "| a row alone | 1 |"]),
        ("one\n<!-- a comment. here -->\ntwo", ["one", "two"]),
        ("one\n\n::: a.b\n    options: x. y\n\ntwo\n    more", ["one", "two more"]),
        ("![a picture. of](x.png)\n\n### heading. here\n\ntext", ["text"]),
    ],
)
def test_sentences(markdown, sentences):
    assert one_section(markdown) == sentences


def test_sections_are_of_the_second_level():
    found = sentences_of(
        "# Title\n\nFirst.\n\n## One\nSecond.\n\n### Below\nThird.\n```\n## no heading\n```\n## Two\nLast."
    )
    assert found == {TITLE: ["First."], "One": ["Second.", "Third."], "Two": ["Last."]}


def test_a_table_of_the_benchmarks_is_no_sentence():
    """Only between marks of one name."""
    marks = "<!-- steps: benchmarks/page.py -->\n2 cores.\n\n| a |\n|---|\n| 1 |\n\n<!-- end of {} -->\n\nAfter.\n"
    assert sentences_of(f"Before.\n\n{marks.format('steps')}") == {TITLE: ["Before.", "After."]}
    assert sentences_of(f"Before.\n\n{marks.format('others')}") == {TITLE: ["Before.", "2 cores.", "| 1 |", "After."]}
