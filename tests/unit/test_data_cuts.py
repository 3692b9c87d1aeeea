"""A text is encoded in short parts, and its tokens are those of the text in one part."""

import io

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindspore_palm.data import cuts
from mindspore_palm.data.cuts import Cuts
from mindspore_palm.data.model_proto import BPE, UNIGRAM, read_properties
from mindspore_palm.data.tokenizer import Tokenizer

WORDS = st.sampled_from(
    [" ", "  ", "\n", "\n\n    ", "\t", "\r\n", "\u3000", "\u2028", "def", "in", "the", "a", "漢", "é", "9"]
)
TEXT = st.lists(WORDS | st.text("abn \n\t漢", max_size=4), max_size=40).map("".join)
PHRASES = "in the end\n\tof  the\u3000day \r\n in\n\nthe night of 9 days\n"
MODELS = {
    "phrases": {"split_by_whitespace": False},
    "words": {},
    "whitespace after a word": {"treat_whitespace_as_suffix": True},
    "symbols": {"user_defined_symbols": ["a\nb", "n t", "the ", "\n\n\n"]},
    "whitespace pieces": {"allow_whitespace_only_pieces": True, "split_by_whitespace": False},
}


def foreign(model_type="bpe", **changes):
    """A lossless model that SentencePiece trained with other options than this package."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([PHRASES, PHRASES.replace("\n", " ")] * 20), model_writer=model, vocab_size=330,
        hard_vocab_limit=False, model_type=model_type, normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, byte_fallback=True, minloglevel=3, **changes,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return foreign(**MODELS[request.param])


@pytest.fixture(params=[1, 3])
def short(request, monkeypatch):
    """Parts of a character or three, so that every cut that is possible is made."""
    monkeypatch.setattr(cuts, "CUT_CHARACTERS", request.param)


def in_one_part(serialized, text):
    return sentencepiece.SentencePieceProcessor(model_proto=serialized).encode(text)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT)
def test_a_foreign_model_gives_the_same_tokens(model, short, text):
    assert Tokenizer("m", model).encode(text) == in_one_part(model, text)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT)
def test_the_packages_own_tokenizer_gives_the_same_tokens(tokenizer, short, text):
    assert tokenizer.encode(text) == in_one_part(tokenizer.serialized, text)


def test_a_long_text_gives_the_same_tokens(tokenizer, code):
    text = code * 200
    assert len(list(tokenizer._cuts.cut(text))) > 10
    assert tokenizer.encode(text) == in_one_part(tokenizer.serialized, text)


def test_parts_make_up_the_text_and_none_is_short(code):
    text = code * 100 + "x" * 5000
    parts = list(Cuts(["a", "b"]).cut(text))
    assert "".join(parts) == text and len(parts) > 10
    assert all(len(part) >= cuts.CUT_CHARACTERS for part in parts[:-1])
    assert all(part[0].isspace() for part in parts[1:])


def test_no_cut_is_inside_a_piece(monkeypatch):
    monkeypatch.setattr(cuts, "CUT_CHARACTERS", 1)
    assert list(Cuts(["n\u2581t", "\u2581a"]).cut("in the end a")) == ["in the", " end", " a"]
    assert list(Cuts(["\n\n"]).cut("a\n\n\nb c")) == ["a", "\n\n\nb", " c"]


def test_only_the_merges_of_bpe_are_local():
    """The best path of a unigram model is a sum over the text, whose rounding depends on all of it."""
    assert [read_properties(foreign(kind)).model_type for kind in ("bpe", "unigram")] == [BPE, UNIGRAM]
    assert Tokenizer("m", foreign("unigram"))._cuts is None
