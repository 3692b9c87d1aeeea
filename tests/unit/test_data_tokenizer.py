"""The tokenizer loses nothing, counts bytes exactly, and says what is wrong with a model or a text."""

import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspore_palm.data import tokenizer as module
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.errors import UserError

CODE = """
def permute(index, size):
    for row in range(index):
        if row % 2 == 0:
            yield row * size, 1234

\tclass Tabs:
\t\tpass\r
"""
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
TROUBLE = [
    "\u2581",
    "\u2585",
    "\u2047",
    "\0",
    "\r",
    "\n",
    "\t",
    " ",
    "  ",
    "[eod]",
    "</s>",
    "<s>",
    "<unk>",
    "<pad>",
    "<0x41>",
]
TROUBLE += [
    "\ufffd",
    "\ufffe",
    "\uffff",
    "\U0010ffff",
    "\ufeff",
    "e\u0301",
    "ﬁ",
    "\u3000",
    "👩‍👩‍👧",
    "def f(x):\n    ",
    "1234",
]
TROUBLED_TEXT = st.lists(st.sampled_from(TROUBLE) | ANY_TEXT, max_size=20).map("".join)


@given(text=ANY_TEXT | TROUBLED_TEXT)
@settings(max_examples=400, deadline=None)
def test_any_text_comes_back_and_its_bytes_are_counted(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.piece_bytes[np.array(tokens, int)].sum() == len(text.encode())
    assert all(tokenizer.piece_bytes[token] > 0 for token in tokens)  # no control token, so no [eod], out of a text


@pytest.mark.parametrize("text", TROUBLE)
def test_each_awkward_text_comes_back_alone_doubled_and_inside(tokenizer, text):
    for case in (text, text * 2, f"a{text}b", f" {text} "):
        assert tokenizer.decode(tokenizer.encode(case)) == case


def test_every_code_point_comes_back(tokenizer):
    text = "".join(chr(c) for c in [*range(0xD800), *range(0xE000, 0x11000), *range(0x1F300, 0x1F700)])
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(texts=st.lists(TROUBLED_TEXT, max_size=8))
@settings(max_examples=50, deadline=None)
def test_a_batch_is_its_texts_one_by_one(tokenizer, texts):
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_long_text_is_cut_and_comes_back(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_CHARACTERS", 10)
    for text in (CODE * 3, "x" * 95, "a\n" * 40 + "\u2581" * 3):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(tokens=st.lists(st.integers(0, 319)))
@settings(max_examples=200, deadline=None)
def test_any_tokens_decode(tokenizer, tokens):
    assert isinstance(tokenizer.decode(tokens), str)
    assert len(tokenizer.decode_bytes(tokens)) == tokenizer.piece_bytes[np.array(tokens, int)].sum()


def test_half_a_character_decodes_to_the_replacement(tokenizer):
    assert tokenizer.decode(tokenizer.encode("😀")[:2]) == "\ufffd"
    assert tokenizer.decode([tokenizer.eod]) == ""


@pytest.mark.parametrize("token", [-1, 320, 10**9])
def test_a_token_outside_the_vocabulary_is_an_error(tokenizer, token):
    with pytest.raises(ValueError, match=str(token)):
        tokenizer.decode([token])


def test_every_digit_is_a_token(tmp_path):
    """Also where a number comes so often that it would be worth a token."""
    tokenizer = Tokenizer.train(["year 2022 abc\n"] * 1000, 276, tmp_path / "m")
    assert len(tokenizer.encode("2022")) == 4
    assert not any(sum(48 <= byte < 58 for byte in piece) > 1 for piece in tokenizer._bytes)


def test_indentation_becomes_few_tokens(tokenizer):
    assert len(tokenizer.encode("\n        ")) <= 2


def test_no_token_runs_over_the_end_of_a_word(tmp_path):
    """A phrase that comes a thousand times would else be the first token to be learnt."""
    tokenizer = Tokenizer.train(["in the\n"] * 1000, 268, tmp_path / "m")
    assert not any(b"n t" in piece for piece in tokenizer._bytes)


def test_training_is_deterministic(tmp_path, tokenizer, code):
    again = Tokenizer.train(iter([code] * 3), 320, tmp_path / "again.model")
    assert again.serialized == tokenizer.serialized == (tmp_path / "again.model").read_bytes()
    assert again.vocab_size == len(again.piece_bytes) == 320


def test_training_is_silent(tmp_path, capfd):
    Tokenizer.train([CODE, "漢字" * 3000], 320, tmp_path / "m")
    with pytest.raises(UserError):
        Tokenizer.train([CODE], 100_000, tmp_path / "n")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        ([CODE], 100_000, r"largest possible is \d\d\d;"),
        ([CODE], 100, r"set it to \d\d\d or more"),
        ([], 300, "no text"),
        (["", "\u2581", "\0"], 300, "no text"),
    ],
)
def test_impossible_vocabularies_say_what_is_possible(tmp_path, texts, size, message):
    with pytest.raises(UserError, match=message):
        Tokenizer.train(texts, size, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_the_largest_possible_size_that_the_message_names_works(tmp_path):
    with pytest.raises(UserError) as error:
        Tokenizer.train([CODE], 100_000, tmp_path / "m")
    size = int(str(error.value).split("largest possible is ")[1].split(";")[0])
    assert Tokenizer.train([CODE], size, tmp_path / "m").vocab_size == size


def test_surrogates_are_refused(tokenizer):
    with pytest.raises(UserError, match=r"surrogate.*character 2"):
        tokenizer.encode("ab\ud800")


@pytest.mark.parametrize("content", [b"", b"not a model" * 50, b"\0" * 100, b"\xff" * 9])
def test_what_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(UserError, match="not a SentencePiece model"):
        Tokenizer(tmp_path / "m")


def test_a_cut_model_is_refused(tmp_path, tokenizer):
    (tmp_path / "m").write_bytes(tokenizer.serialized[: len(tokenizer.serialized) // 2])
    with pytest.raises(UserError):
        Tokenizer(tmp_path / "m")


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no tokenizer"):
        Tokenizer(tmp_path / "none.model")
    with pytest.raises(UserError, match="directory"):
        Tokenizer(tmp_path)


LOSSLESS = {
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"byte_fallback": False}, "no byte fallback"),
        ({"add_dummy_prefix": True}, "loses text"),
        ({"remove_extra_whitespaces": True}, "loses text"),
        ({"normalization_rule_name": "nfkc"}, "loses text"),
        ({"eos_id": -1}, "ends a document"),
        ({}, None),
        ({"user_defined_symbols": ["<mask>", "  "]}, None),
    ],
)
def test_models_of_others_must_be_lossless(tmp_path, change, message):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([CODE] * 3), model_writer=model, vocab_size=330, hard_vocab_limit=False, minloglevel=3,
        **{**LOSSLESS, **change},
    )  # fmt: skip
    (tmp_path / "m").write_bytes(model.getvalue())
    if message:
        with pytest.raises(UserError, match=message):
            Tokenizer(tmp_path / "m")
    else:
        tokenizer = Tokenizer(tmp_path / "m")
        text = "a <mask>  \u2581[eod]</s>"
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.piece_bytes[tokenizer.encode(text)].sum() == len(text.encode())
        assert tokenizer.piece_bytes[tokenizer.eod] == 0
