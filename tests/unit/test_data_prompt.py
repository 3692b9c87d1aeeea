"""One border between a prompt and what follows it: in pairs, in scores, in generation; for any tokenizer, any text."""

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
    """The project's own; one that a user brings; and one whose tokens end with white space, instead of beginning."""
    file = tmp_path_factory.mktemp("border") / "it.model"
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
def test_white_space_may_be_on_either_side_of_the_border(any_tokenizer, prompt, white_space, text):
    """And nothing of the text is lost."""
    first, second = encode_pairs(any_tokenizer, [(prompt + white_space, text), (prompt, white_space + text)])
    if not prompt[-1:].isspace():  # or the rest of it belongs to the border, too
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, other)
    whole = np.concatenate(first)
    assert any_tokenizer.decode_bytes(whole) == (prompt + white_space + text).encode()
    found = encode_prompt(any_tokenizer, prompt + white_space)
    np.testing.assert_array_equal(found.context, first[0])  # what a generation sees
    assert any_tokenizer.decode_bytes(found.context).decode() + found.white_space == prompt + white_space


def test_all_that_follows_a_prompt_has_one_context(any_tokenizer):
    """Also where the prompt ends within a word, and what follows would make one token with its end."""
    for prompt in ("return", "return ", "re", "", " ", "self.x\n", "漢"):
        texts = ["self", "turn", " self", "0", "\n", "漢字", "x = 0"]
        contexts = {tuple(context) for context, _ in encode_pairs(any_tokenizer, [(prompt, text) for text in texts])}
        assert contexts == {encode_prompt(any_tokenizer, prompt).context}


def test_split_prompt():
    assert split_prompt("a b \n") == ("a b", " \n")
    assert split_prompt(" \t") == ("", " \t")
    assert split_prompt("") == ("", "")


def test_words_are_the_tokens_of_running_text(tmp_path):
    """ "return self" is two words with the white space before them, wherever the border is asked for."""
    tokenizer = Tokenizer.train([CODE] * 5, 300, tmp_path / "it.model")
    expected = tokenizer.encode("return self")
    for prompt, text in (("return ", "self"), ("return", " self")):
        ((context, tokens),) = encode_pairs(tokenizer, [(prompt, text)])
        assert [*context, *tokens] == expected and tokenizer.decode(context) == "return"


def test_pairs_meet_at_the_border(any_tokenizer, tmp_path):
    """A pair is learned as it is asked for: the context is what a generation for its prompt sees."""
    records = [("return ", "self"), ("return", " self"), ("x\n\t", "0"), ("", "x"), (" ", "self")]
    lines = (f'{{"prompt": {p!r}, "target": {t!r}}}'.replace("'", '"') for p, t in records)
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    data = DataConfig(path=str(tmp_path / "pairs.jsonl"), seq_len=32, validation_fraction=1e-9)
    prepared = read_pairs(data, FinetuneConfig(checkpoint="runs/some"), any_tokenizer)
    pairs = [*prepared.train.pairs, *prepared.validation.pairs]
    for (prompt, target), pair in zip(records, pairs, strict=True):
        found = encode_prompt(any_tokenizer, prompt)
        assert tuple(pair.prompt) == found.context
        assert pair.target[-1] == any_tokenizer.eod
        assert any_tokenizer.decode(pair.target) == found.white_space + target
    np.testing.assert_array_equal(pairs[0].target, pairs[1].target)


class Counted:
    """Scores by the number of a row alone: what is scored is what counts here."""

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
def test_a_question_is_scored_alike_wherever_its_white_space_is(any_tokenizer, one, other):
    """The same rows, from the same border, over the same bytes."""
    from mindspore_palm.evaluate.tasks import multiple_choice

    scored = []
    for prompt, choices in (one, other):
        scorer = Counted(any_tokenizer)
        result = multiple_choice(scorer, [Question(prompt, tuple(choices), (choices[1],))], [prompt], 0)
        scored.append((result, [(row.first, *row.tokens) for row in scorer.rows]))
        assert len({(row.first, *row.tokens[: row.first]) for row in scorer.rows}) == 1
    assert scored[0] == scored[1]
