"""One boundary between prompt and continuation, in pairs, scores and generation, for any tokenizer and any text."""

from __future__ import annotations

import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspore_palm.config import DataConfig, FinetuneConfig
from mindspore_palm.data import Tokenizer, read_pairs
from mindspore_palm.data.prompt import encode_pairs, encode_prompt, split_prompt
from mindspore_palm.evaluate.questions import Question

CODE = "def f(self, x):\n    return self\n\tx = 0\n  return 0 if x else self.x\n\n\n"
WHITE_SPACE = ["", " ", "  ", "\n", "\n\n", "\t", " \n\t ", "\u3000", "\xa0"]


@pytest.fixture(scope="module", params=["bpe", "unigram", "suffix"])
def any_tokenizer(request, tmp_path_factory):
    """The project's own tokenizer, one that a user brings, and one with white space at the end of tokens."""
    file = tmp_path_factory.mktemp("prompt") / "it.model"
    if request.param == "bpe":
        return Tokenizer.train([CODE] * 5, 300, file)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((CODE * 5).splitlines()),
        model_writer=model,
        vocab_size=290,
        model_type="unigram",
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        byte_fallback=True,
        treat_whitespace_as_suffix=request.param == "suffix",
        eos_piece="[eod]",
        hard_vocab_limit=False,
        minloglevel=3,
    )
    file.write_bytes(model.getvalue())
    return Tokenizer(file)


@settings(max_examples=60, deadline=None)
@given(prompt=st.text(max_size=12), white_space=st.sampled_from(WHITE_SPACE), text=st.text(min_size=1, max_size=8))
def test_white_space_may_be_on_either_side_of_the_boundary(any_tokenizer, prompt, white_space, text):
    """Nothing of the text is lost."""
    first, second = encode_pairs(any_tokenizer, [(prompt + white_space, text), (prompt, white_space + text)])
    if not prompt[-1:].isspace():  # else the prompt's own white space is after the boundary too
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, other)
    tokens = np.concatenate(first)
    assert any_tokenizer.decode_bytes(tokens) == (prompt + white_space + text).encode()
    encoded = encode_prompt(any_tokenizer, prompt + white_space)
    np.testing.assert_array_equal(encoded.context, first[0])  # the context of a generation
    assert any_tokenizer.decode_bytes(encoded.context).decode() + encoded.white_space == prompt + white_space


def test_all_continuations_of_a_prompt_have_one_context(any_tokenizer):
    """Also if the prompt ends inside a word, and the continuation could form one token with its end."""
    for prompt in ("return", "return ", "re", "", " ", "self.x\n", "漢"):
        texts = ["self", "turn", " self", "0", "\n", "漢字", "x = 0"]
        contexts = {tuple(context) for context, _ in encode_pairs(any_tokenizer, [(prompt, text) for text in texts])}
        assert contexts == {encode_prompt(any_tokenizer, prompt).context}


def test_split_prompt():
    assert split_prompt("a b \n") == ("a b", " \n")
    assert split_prompt(" \t") == ("", " \t")
    assert split_prompt("") == ("", "")


def test_words_are_the_tokens_of_running_text(tmp_path):
    """ "return self" is two words with the white space before them, on whichever side the white space is given."""
    tokenizer = Tokenizer.train([CODE] * 5, 300, tmp_path / "it.model")
    expected = tokenizer.encode("return self")
    for prompt, text in (("return ", "self"), ("return", " self")):
        ((context, tokens),) = encode_pairs(tokenizer, [(prompt, text)])
        assert [*context, *tokens] == expected and tokenizer.decode(context) == "return"


def test_pairs_meet_at_the_boundary(any_tokenizer, tmp_path):
    """Training and generation agree: the context of a pair is that of a generation from its prompt."""
    records = [("return ", "self"), ("return", " self"), ("x\n\t", "0"), ("", "x"), (" ", "self")]
    lines = (f'{{"prompt": {p!r}, "target": {t!r}}}'.replace("'", '"') for p, t in records)
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    data = DataConfig(path=str(tmp_path / "pairs.jsonl"), seq_len=32, validation_fraction=1e-9)
    prepared = read_pairs(data, FinetuneConfig(checkpoint="runs/some"), any_tokenizer)
    pairs = [*prepared.train.pairs, *prepared.validation.pairs]
    for (prompt, target), pair in zip(records, pairs, strict=True):
        encoded = encode_prompt(any_tokenizer, prompt)
        assert tuple(pair.prompt) == encoded.context
        assert pair.target[-1] == any_tokenizer.eod
        assert any_tokenizer.decode(pair.target) == encoded.white_space + target
    np.testing.assert_array_equal(pairs[0].target, pairs[1].target)


class CountingScorer:
    """A scorer that only counts tokens and bytes, and records the rows it was given."""

    window = 64

    def __init__(self, tokenizer):
        self.tokenizer, self.rows = tokenizer, []

    def __call__(self, rows):
        from mindspore_palm.evaluate.scorer import Score

        self.rows = list(rows)
        for row in self.rows:
            size = int(self.tokenizer.piece_bytes[row.tokens[row.first :]].sum())
            yield Score(nats=float(len(row.tokens) - row.first), tokens=1, size=size, greedy=False)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("return ", ["self", "0"]), ("return", [" self", " 0"])),
        (("return\n\t", ["self", "0"]), ("return", ["\n\tself", "\n\t0"])),
        (("return  ", ["self", "0"]), ("return ", [" self", " 0"])),
        ((" ", ["self", "0"]), ("", [" self", " 0"])),
    ],
    ids=repr,
)
def test_a_question_is_scored_the_same_wherever_its_white_space_is(any_tokenizer, one, other):
    """The same rows, from the same boundary, over the same bytes."""
    from mindspore_palm.evaluate.tasks import multiple_choice

    scored = []
    for prompt, choices in (one, other):
        scorer = CountingScorer(any_tokenizer)
        result = multiple_choice(scorer, [Question(prompt, tuple(choices), (choices[1],))], [prompt], 0)
        scored.append((result, [(row.first, *row.tokens) for row in scorer.rows]))
        assert len({(row.first, *row.tokens[: row.first]) for row in scorer.rows}) == 1
    assert scored[0] == scored[1]
