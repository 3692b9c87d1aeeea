"""The tokenizer is lossless, counts bytes exactly, and names the problem with a model or a text."""

import io
import unicodedata

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
def test_any_text_round_trips_and_its_bytes_are_counted(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.piece_bytes[np.array(tokens, int)].sum() == len(text.encode())
    assert all(tokenizer.piece_bytes[token] > 0 for token in tokens)  # no control token, and so no [eod]


@pytest.mark.parametrize("text", TROUBLE)
def test_each_awkward_text_round_trips_alone_doubled_and_inside_text(tokenizer, text):
    for case in (text, text * 2, f"a{text}b", f" {text} "):
        assert tokenizer.decode(tokenizer.encode(case)) == case


def test_every_code_point_round_trips(tokenizer):
    text = "".join(chr(c) for c in [*range(0xD800), *range(0xE000, 0x11000), *range(0x1F300, 0x1F700)])
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(texts=st.lists(TROUBLED_TEXT, max_size=8))
@settings(max_examples=50, deadline=None)
def test_a_batch_is_its_texts_one_by_one(tokenizer, texts):
    assert [tokens.tolist() for tokens in tokenizer.encode_batch(texts)] == [tokenizer.encode(text) for text in texts]


def test_long_text_is_chunked_and_round_trips(tokenizer, monkeypatch):
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
    """Also if a number is frequent enough to be worth a token."""
    tokenizer = Tokenizer.train(["year 2022 abc\n"] * 1000, 276, tmp_path / "m")
    assert len(tokenizer.encode("2022")) == 4
    assert not any(sum(48 <= byte < 58 for byte in piece) > 1 for piece in tokenizer._bytes)


ALL_DIGITS = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Nd"]


def test_every_digit_of_any_script_is_a_token(tmp_path):
    """Also if Arabic and Indian numbers are frequent enough to be worth a token."""
    years = "year ١٩٤٧ and १९४७, 2022 ２０２２ ๑๒๓๔ 𝟏𝟗𝟒𝟕 abc\n"
    tokenizer = Tokenizer.train([years] * 1000, 300, tmp_path / "m")
    for number in ("١٩٤٧", "१९४७", "2022", "２０２２", "๑๒๓๔", "𝟏𝟗𝟒𝟕"):
        assert len(tokenizer.encode(number)) == 4, number
        assert tokenizer.encode(f"year {number}")[-4:] == tokenizer.encode(number)
    pieces = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    assert not [piece for piece in pieces if len(piece) > 1 and any(c.isdecimal() for c in piece)]


def test_all_digits_of_the_text_are_tokens_however_rare(tmp_path):
    text = "the cat sat on the mat and " * 4000 + " ".join(ALL_DIGITS)
    words = "".join(f" w{chr(97 + i % 26)}{chr(97 + i // 26)}x" for i in range(676))  # something to merge
    tokenizer = Tokenizer.train([text + words], 259 + len(ALL_DIGITS) + 100, tmp_path / "m")
    assert len(ALL_DIGITS) >= 650
    assert [digit for digit in ALL_DIGITS if len(tokenizer.encode(digit)) != 1] == []


NO_SPACES = {
    "names": "emma\nolivia\nava\nnoah\n",
    "chinese": "床前明月光疑是地上霜举头望明月低头思故乡。\n",
    "japanese": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n",
    "thai": "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอน\n",
    "dna": "ACGTTGCAAGCTTACGGATCCATG",
    "csv": "1,2.5,a\n3,4.75,b\n",
    "one word": "x" * 40,
}


@pytest.mark.parametrize("name", NO_SPACES)
def test_text_without_a_space_gives_a_lossless_tokenizer(tmp_path, name):
    text = NO_SPACES[name]
    with pytest.raises(UserError, match="largest possible is") as error:
        Tokenizer.train([text] * 500, 4096, tmp_path / "m")
    size = int(str(error.value).split("largest possible is ")[1].split(";")[0])
    tokenizer = Tokenizer.train([text] * 500, size, tmp_path / "m")
    for sample in (text, " a", "a b  c", "\u2581 \u2581", "漢字 😀", *TROUBLE):
        assert tokenizer.decode(tokenizer.encode(sample)) == sample
        assert tokenizer.piece_bytes[tokenizer.encode(sample)].sum() == len(sample.encode())


def test_names_alone_fit_a_vocabulary_of_270(tmp_path):
    tokenizer = Tokenizer.train(["emma\nolivia\nava\nnoah\n" * 500], 270, tmp_path / "m")
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"


def test_more_characters_than_the_vocabulary_has_room_for_become_bytes(tmp_path):
    text = "".join(chr(0x4E00 + i % 600) + "的" for i in range(6000))
    tokenizer = Tokenizer.train([text], 400, tmp_path / "m")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("的")) == 1 and len(tokenizer.encode(chr(0x4E00 + 599))) == 3


@pytest.mark.parametrize("name", ["<unk>", "<pad>", "[eod]", "<s>", "</s>"])
def test_the_name_of_a_control_token_costs_as_much_as_a_similar_word(tmp_path, name):
    other = name.translate(str.maketrans("unkpadeods", "vmlqbcfpct"))
    lengths = []
    for number, word in enumerate((name, other)):
        text = f"the cat {word} sat on {word} mat, and the dog {word} ran\n" * 300
        tokenizer = Tokenizer.train([text], 310, tmp_path / str(number))
        assert tokenizer.decode(tokenizer.encode(text)) == text
        lengths.append(len(tokenizer.encode(text)))
    assert lengths[0] <= 1.02 * lengths[1], lengths


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "char", "word"])
def test_a_foreign_model_without_a_piece_for_the_space_is_lossless(tmp_path, model_type):
    """Such a model was trained on text without spaces, or has only full words: it treats a space as U+2581."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["emma", "olivia", "ava", "noah"] * 50),
        model_writer=model, vocab_size=300, hard_vocab_limit=False, model_type=model_type, minloglevel=3, **LOSSLESS,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    assert theirs.decode(theirs.encode(" a")) == "a" or theirs.piece_to_id("\u2581") == theirs.unk_id()
    (tmp_path / "m").write_bytes(model.getvalue())
    tokenizer = Tokenizer(tmp_path / "m")
    for text in (" a", "emma  noah ", "an unknown word  ", "\u2581 \u2581\u2581", "  ", "\n \t x", "▂ ■ ▁"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.piece_bytes[tokenizer.encode(text)].sum() == len(text.encode())


def test_a_lossy_tokenizer_is_not_written(tmp_path, monkeypatch):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([CODE] * 3), model_writer=model, vocab_size=330, hard_vocab_limit=False, minloglevel=3,
        **{**LOSSLESS, "add_dummy_prefix": True},
    )  # fmt: skip
    monkeypatch.setattr(module, "train_model", lambda *_: model.getvalue())
    with pytest.raises(UserError, match="loses text"):
        Tokenizer.train([CODE], 330, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_indentation_becomes_few_tokens(tokenizer):
    assert len(tokenizer.encode("\n        ")) <= 2


def test_no_token_crosses_the_end_of_a_word(tmp_path):
    """Otherwise a phrase that occurs a thousand times would be the first token learned."""
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
def test_impossible_vocabularies_name_a_possible_size(tmp_path, texts, size, message):
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
def test_anything_but_a_model_is_refused(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(UserError, match="not a SentencePiece model"):
        Tokenizer(tmp_path / "m")


def test_a_truncated_model_is_refused(tmp_path, tokenizer):
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
        ({"byte_fallback": False}, "loses text: it has no byte fallback"),
        ({"add_dummy_prefix": True}, "loses text: it puts a space before the text"),
        ({"remove_extra_whitespaces": True}, "loses text: it drops spaces"),
        ({"normalization_rule_name": "nfkc"}, "loses text: its normalizer nfkc changes characters"),
        ({"normalization_rule_name": "nmt_nfkc_cf"}, "loses text: its normalizer nmt_nfkc_cf changes characters"),
        ({"normalization_rule_tsv": "RULE"}, "loses text: its normalizer .* changes characters"),
        ({"eos_id": -1}, "ends a document"),
        ({}, None),
        ({"user_defined_symbols": ["<mask>", "  "]}, None),
    ],
)
def test_foreign_models_must_be_lossless(tmp_path, change, message):
    model = io.BytesIO()
    if "normalization_rule_tsv" in change:  # changes one letter that no sample text would contain
        (tmp_path / "rule").write_text("1D4\t41\n")
        change = {"normalization_rule_tsv": str(tmp_path / "rule")}
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
