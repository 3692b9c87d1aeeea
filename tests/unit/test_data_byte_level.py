"""A tokenizer.json: only what keeps every byte of every text is accepted, and it is known by its content."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspore_palm.data import byte_level
from mindspore_palm.data.byte_level import losses
from mindspore_palm.data.tokenizer import CHUNK_CHARACTERS, Tokenizer
from mindspore_palm.data.vocabulary import count_tokens
from mindspore_palm.errors import UserError

# GPT-2's 256 characters, as its paper's code lists them: printable bytes are themselves, the others start at U+0100.
LATIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = [chr(b) for b in LATIN] + [chr(256 + n) for n in range(256 - len(LATIN))]
END = {"id": 258, "content": "<|endoftext|>", "special": True, "lstrip": False, "rstrip": False}
END |= {"single_word": False, "normalized": False}
JSON = {
    "version": "1.0",
    "added_tokens": [END],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "vocab": {**{c: n for n, c in enumerate(BYTES)}, "th": 256, "Ġth": 257},
        "merges": [["t", "h"], ["Ġ", "th"]],
    },
}


def changed(**values):
    """``JSON`` with other values; ``model__dropout`` is one of the section model."""
    content = copy.deepcopy(JSON)
    for name, value in values.items():
        *sections, last = name.split("__")
        target = content
        for section in sections:
            target = target[section]
        target[last] = value
    return content


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    pytest.importorskip("tokenizers", reason="the library tokenizers, an extra, reads a tokenizer.json")
    file = tmp_path_factory.mktemp("byte level") / "tokenizer.json"
    file.write_text(json.dumps(JSON), encoding="utf-8")
    return Tokenizer(file)


def test_the_bytes_are_those_of_gpt2():
    assert list(byte_level.BYTE_OF) == BYTES and byte_level.BYTE_OF["Ġ"] == 32 and byte_level.BYTE_OF["Ċ"] == 10
    assert losses(JSON) == []


SPLIT = {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False}
BYTE_LEVEL = JSON["pre_tokenizer"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"normalizer": {"type": "NFC"}}, "its normalizer NFC changes characters"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}]}},
            "NFD and Lowercase",
        ),
        ({"pre_tokenizer": None}, "it does not work on bytes"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "it does not work on bytes"),
        ({"pre_tokenizer__add_prefix_space": True}, "it puts a space before the text"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{**SPLIT, "behavior": "Removed"}, BYTE_LEVEL]}},
            "it drops what it splits at",
        ),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, BYTE_LEVEL]}},
            "Whitespace is not known to keep all text",
        ),
        ({"model__type": "WordPiece"}, "its model is WordPiece"),
        ({"model__dropout": 0.1}, "it drops merges at random"),
        ({"model__end_of_word_suffix": "</w>"}, "it marks parts of words"),
        ({"model__vocab": {c: n for n, c in enumerate(BYTES[:200])}}, "it has 200 of the 256 bytes"),
        ({"model__vocab": {**JSON["model"]["vocab"], "▁the": 259}}, "it has tokens that are not written as bytes"),
        ({"added_tokens": [{**END, "special": False, "lstrip": True}]}, "take the white space around them"),
    ],
    ids=str,
)
def test_what_may_lose_text_is_refused(tmp_path, values, problem):
    """Also where the library is not installed: the file alone says it."""
    file = tmp_path / "lossy.json"
    file.write_text(json.dumps(changed(**values)), encoding="utf-8")
    with pytest.raises(UserError, match=r"lossy\.json: the tokenizer loses text: ") as caught:
        Tokenizer(file)
    assert problem in str(caught.value) and count_tokens(file) is None


@pytest.mark.parametrize("step", [SPLIT, {"type": "Digits", "individual_digits": True}], ids=["Split", "Digits"])
def test_ways_to_split_that_keep_text_are_accepted(step):
    assert losses(changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [step, BYTE_LEVEL]})) == []


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"model": 3}', "{" * 5000, '{"model": {"type": "BPE"}}'])
def test_what_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.json: (this is not a|the tokenizer loses)"):
        Tokenizer(tmp_path / "x.json")


def test_the_library_is_named_if_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    (tmp_path / "x.json").write_text(json.dumps(JSON))
    with pytest.raises(UserError, match=r"x\.json: reading a tokenizer\.json needs .* pip install 'tokenizers>=0\.21'"):
        Tokenizer(tmp_path / "x.json")


def test_no_token_ends_a_document(tmp_path):
    pytest.importorskip("tokenizers", reason="the library tokenizers, an extra, reads a tokenizer.json")
    (tmp_path / "x.json").write_text(json.dumps(changed(added_tokens=[{**END, "content": "<pad>"}])))
    with pytest.raises(UserError, match=r"x\.json: the tokenizer has no special token .* that ends a document"):
        Tokenizer(tmp_path / "x.json")


def test_tokens_by_hand(tokenizer):
    """``th`` is 256, `` th`` is 257; every other byte is its own token, in GPT-2's order of characters."""
    number = {c: n for n, c in enumerate(BYTES)}
    assert tokenizer.vocab_size == 259 == count_tokens(tokenizer.model_file) and tokenizer.eod == 258
    assert tokenizer.encode("the that") == [256, number["e"], 257, number["a"], number["t"]]
    assert tokenizer.encode("é") == [number["Ã"], number["©"]]
    assert tokenizer.decode([258]) == "" and tokenizer.piece_bytes[[256, 257, 258]].tolist() == [2, 3, 0]
    assert tokenizer.decode_bytes([number["Ã"]]) == b"\xc3"
    assert tokenizer.encode("") == []


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.text(), st.sampled_from(["▁", "\r\n", " <|endoftext|> ", "\0", "  th", "\ufeff"]))))
def test_any_text_round_trips_and_its_bytes_are_counted(tokenizer, parts):
    text = "".join(parts)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.piece_bytes[tokens].sum() == len(text.encode())
    assert tokenizer.eod not in tokens
    assert [encoded.tolist() for encoded in tokenizer.encode_batch([text, "th"])] == [tokens, [256]]


def test_a_long_text_round_trips(tokenizer):
    text = "the thing\n" * (CHUNK_CHARACTERS // 5) + "x" * (2 * CHUNK_CHARACTERS)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_added_tokens_are_text(tmp_path):
    """As GPT-NeoX's runs of spaces: not special, so that texts hold them."""
    pytest.importorskip("tokenizers", reason="the library tokenizers, an extra, reads a tokenizer.json")
    spaces = {**END, "id": 259, "content": "    ", "special": False}
    (tmp_path / "x.json").write_text(json.dumps(changed(added_tokens=[END, spaces])))
    tokenizer = Tokenizer(tmp_path / "x.json")
    tokens = tokenizer.encode("a    b")
    assert 259 in tokens and tokenizer.decode(tokens) == "a    b" and tokenizer.piece_bytes[259] == 4
