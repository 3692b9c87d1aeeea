"""Scores of texts and questions: against the JAX reference, the evaluation in training, and by hand."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from parity.twins import shape_of, weights_of
from reference import compiled
from reference import palm as reference

from mindspore_palm.data.corpus import Document
from mindspore_palm.data.prompt import encode_pairs
from mindspore_palm.errors import UserError
from mindspore_palm.evaluate.estimate import proportion, ratio
from mindspore_palm.evaluate.questions import Question, prompts, read_questions

SIZES = {"layers": 1, "d_model": 16, "heads": 2, "head_dim": 4, "d_ff": 24, "vocab_size": 320, "vocab_multiple": 7}
WINDOW = 12


@pytest.fixture(scope="module")
def palm(device):
    from mindspore_palm import PaLM, PaLMConfig

    return PaLM(PaLMConfig(**SIZES), seed=5)


@pytest.fixture(scope="module")
def scorer(palm, tokenizer):
    from mindspore_palm.evaluate.scorer import Scorer

    return Scorer(palm, tokenizer, WINDOW, batch=3)


@pytest.fixture(scope="module")
def expected_nats(palm, tokenizer):
    """Nats of tokens[first:] after [eod] and tokens[:first], by the JAX reference, one sequence at a time."""
    weights, shape = weights_of(palm), shape_of(palm.config)
    logits = compiled(lambda ids: reference.logits(weights, ids, shape)[..., : palm.config.vocab_size])

    def nats(tokens, first):
        assert 0 < len(tokens) <= WINDOW
        padded = np.full((1, WINDOW), tokenizer.eod, np.int32)  # causal: padding at the end changes nothing
        padded[0, 1 : len(tokens)] = tokens[:-1]
        log_p = np.asarray(jax.nn.log_softmax(logits(padded)[0]), np.float64)
        return -sum(log_p[i, tokens[i]] for i in range(first, len(tokens)))

    return nats


def written(texts):
    return [Document(f"{i}", text, 0, len(text.encode()), len(text.encode())) for i, text in enumerate(texts)]


@pytest.mark.parametrize(("count", "stride"), [(1, 4), (12, 12), (13, 12), (30, 12), (30, 4), (30, 1), (25, 5)])
def test_windows_score_every_token_once_with_enough_context(count, stride):
    from mindspore_palm.evaluate.scorer import windows

    tokens = np.arange(count, dtype=np.int32)
    rows = list(windows(tokens, WINDOW, stride))
    assert [t for row in rows for t in row.tokens[row.first :]] == list(tokens)
    for row in rows:
        assert 1 <= len(row.tokens) <= WINDOW
        assert row.first < len(row.tokens)
        assert row.first >= (0 if row is rows[0] else WINDOW - stride)


@pytest.mark.parametrize("stride", [WINDOW, 5])
def test_text_against_the_reference(scorer, tokenizer, expected_nats, stride):
    from mindspore_palm.evaluate.text import score_text

    texts = ["def permute(index, size): pass\n", "é", "row = 12345\n\n", "x" * 40]
    result = score_text(scorer, written(texts), stride)
    nats, tokens, size = [], [], []
    for text in texts:
        ids = [*tokenizer.encode(text), tokenizer.eod]
        total, done = 0.0, 0
        for start in range(0, len(ids), stride):
            end = min(start + WINDOW, len(ids))
            total += expected_nats(ids[start:end], done - start)
            done = end
            if done == len(ids):
                break
        nats.append(total)
        tokens.append(len(ids))
        size.append(len(text.encode()))
    assert (result.documents, result.tokens, result.size) == (4, sum(tokens), sum(size))
    assert result.unit == "document"
    np.testing.assert_allclose(result.nats_per_token.value, sum(nats) / sum(tokens), rtol=2e-6)
    np.testing.assert_allclose(result.bits_per_byte.value, sum(nats) / math.log(2) / sum(size), rtol=2e-6)
    np.testing.assert_allclose(result.perplexity.value, math.exp(sum(nats) / sum(tokens)), rtol=1e-5)
    residuals = [n - sum(nats) / sum(tokens) * t for n, t in zip(nats, tokens, strict=True)]
    half = 1.96 * math.sqrt(4 / 3 * sum(r * r for r in residuals)) / sum(tokens)
    for side, bound in ((-1, result.nats_per_token.low), (1, result.nats_per_token.high)):
        np.testing.assert_allclose(bound, sum(nats) / sum(tokens) + side * half, rtol=1e-4)
    np.testing.assert_allclose(result.perplexity.high, math.exp(result.nats_per_token.high), rtol=1e-12)


def test_text_agrees_with_the_evaluation_in_training(scorer, palm, tokenizer):
    """Adjacent windows of one document are the sequences of the held-out loss in training."""
    from mindspore_palm.data.tokens import shift
    from mindspore_palm.evaluate.text import score_text
    from mindspore_palm.train.evaluate import Evaluator

    text = "def column(row):\n    return row * 3\n" * 9
    while (len(tokenizer.encode(text)) + 1) % WINDOW:  # training drops an incomplete sequence
        text += "x"
    ids = np.array([*tokenizer.encode(text), tokenizer.eod], np.int32).reshape(-1, WINDOW)
    theirs = Evaluator(palm, tokenizer.piece_bytes)([shift(ids, tokenizer.eod)])
    ours = score_text(scorer, written([text]))
    assert ours.unit == "window"
    assert ours.tokens == theirs.tokens
    np.testing.assert_allclose(ours.nats_per_token.value, theirs.nats_per_token, rtol=2e-6)
    np.testing.assert_allclose(ours.bits_per_byte.value, theirs.bits_per_byte, rtol=2e-6)


def test_parts_of_a_document_are_joined(scorer):
    from mindspore_palm.evaluate.text import score_text

    text = "def a(b):\n    return b\n"
    parts = [Document("t", text[:10], 0, len(text), 10), Document("t", text[10:], 10, len(text), len(text) - 10)]
    assert score_text(scorer, parts) == score_text(scorer, written([text]))


def test_intervals():
    assert ratio([3.0], [2.0]).low is None
    exact = ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])  # all units have the same share
    assert (exact.value, exact.low, exact.high) == (2.0, 2.0, 2.0)
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):  # coverage of the 95 % interval
        below = rng.integers(1, 20, 60)
        estimate = ratio(below * 0.7 + rng.normal(0, 1, 60) * below, below)
        inside += estimate.low < 0.7 < estimate.high
    assert 0.925 < inside / 2000 < 0.97
    half = proportion([True] * 50 + [False] * 50)
    np.testing.assert_allclose((half.value, half.low, half.high), (0.5, 0.40383, 0.59617), atol=1e-5)  # Wilson's
    all_right = proportion([True] * 10)
    np.testing.assert_allclose((all_right.low, all_right.high), (0.72247, 1.0), atol=1e-5)


def test_multiple_choice_against_the_reference(scorer, tokenizer, expected_nats):
    from mindspore_palm.evaluate.tasks import multiple_choice

    texts = [
        ("12", [" row", " index(size):"]),
        ("3", [" in x", " in y:", "+"]),
        ("", ["a", "size"]),
        ("1", ["2", "34"]),
    ]
    questions, right, right_by_byte = [], 0, 0
    for prompt, choices in texts:
        nats = []
        for choice in choices:
            ids, alone = tokenizer.encode(prompt + choice), tokenizer.encode(prompt)
            assert ids[: len(alone)] == alone  # in these texts, no token spans the boundary
            nats.append(expected_nats(ids, len(alone)))
        best = int(np.argmin(nats))
        by_byte = int(np.argmin([n / len(c.encode()) for n, c in zip(nats, choices, strict=True)]))
        answer = best if len(questions) % 2 else by_byte  # right by one measure, perhaps not by the other
        right += answer == best
        right_by_byte += answer == by_byte
        questions.append(Question(prompt, tuple(choices), (choices[answer],)))
    assert right != right_by_byte or right < len(questions)
    result = multiple_choice(scorer, questions, [q.prompt for q in questions], shots=0)
    assert result.measures["accuracy"].value == right / len(questions)
    assert result.measures["accuracy by byte"].value == right_by_byte / len(questions)
    assert (result.questions, result.cut) == (4, 0)


def encoded(tokenizer, prompt, text):
    """Tokens of ``prompt + text``, and the index of the first that is scored as ``text``."""
    ((context, scored),) = encode_pairs(tokenizer, [(prompt, text)])
    return np.concatenate([context, scored]), len(context)


def test_a_long_prompt_loses_its_start(scorer, tokenizer, expected_nats):
    from mindspore_palm.evaluate.scorer import continuation
    from mindspore_palm.evaluate.tasks import multiple_choice

    prompt = "0123456789" * 3
    ids, first = encoded(tokenizer, prompt, " row")
    (score,) = scorer([continuation(ids, first, WINDOW, "it")])
    np.testing.assert_allclose(score.nats, expected_nats(ids[-WINDOW:], WINDOW - (len(ids) - first)), rtol=2e-6)
    question = Question(prompt, (" row", "7"), ("7",))
    assert multiple_choice(scorer, [question], [prompt], 0).cut == 1
    with pytest.raises(UserError, match=r"question 1: 30 tokens are to be scored at once, and the window has 12"):
        multiple_choice(scorer, [Question("a", (prompt, "7"), ("7",))], ["a"], 0)


def test_no_token_crosses_the_boundary(tokenizer):
    """Scores have the context from which generation continues: the tokens of the prompt by itself."""
    merged = next(t for t in range(tokenizer.vocab_size) if tokenizer.decode([t])[1:].isalpha())
    text = tokenizer.decode([merged])
    ids, first = encoded(tokenizer, "\n" + text[:-1], text[-1])
    assert tokenizer.decode(ids) == "\n" + text
    assert list(ids[:first]) == tokenizer.encode("\n" + text[:-1])
    ids, first = encoded(tokenizer, "a \n", "b")
    assert list(ids[:first]) == tokenizer.encode("a") and list(ids[first:]) == tokenizer.encode(" \nb")


def test_greedy_tokens(scorer, palm, tokenizer):
    from mindspore import Tensor

    from mindspore_palm.evaluate.scorer import ScoringRow

    tokens = [tokenizer.eod]
    for _ in range(4):
        tokens.append(int(palm(Tensor([tokens], Tensor([1]).dtype)).asnumpy()[0, -1].argmax()))
    best = np.array(tokens[1:], np.int32)
    other = best.copy()
    other[-1] = (other[-1] + 1) % 320
    rows = [ScoringRow(best, 0), ScoringRow(best, 2), ScoringRow(other, 0)]
    assert [score.greedy for score in scorer(rows)] == [True, True, False]


def test_rows_that_pad_the_table_are_never_most_likely(device, tokenizer):
    from mindspore import Tensor

    from mindspore_palm import PaLM, PaLMConfig
    from mindspore_palm.evaluate.scorer import Scorer, ScoringRow

    palm = PaLM(PaLMConfig(**SIZES), seed=5)
    best = int(palm(Tensor(np.array([[tokenizer.eod]], np.int32))).asnumpy()[0, 0].argmax())
    embedding = palm.embedding.asnumpy().copy()
    embedding[320:] = 5 * embedding[best]
    palm.embedding.set_data(Tensor(embedding))
    scorer = Scorer(palm, tokenizer, WINDOW, batch=1)
    assert next(iter(scorer([ScoringRow(np.array([best], np.int32), 0)]))).greedy


def test_exact_match(palm, tokenizer):
    """The greedy text is right, whatever white space is around it; anything else is wrong."""
    from mindspore_palm.evaluate.tasks import exact_match
    from mindspore_palm.generate import Generator, Sampling

    generator, sampling = Generator(palm, tokenizer, context=64, batch=2), Sampling(max_tokens=5)
    prompts = ["def ", "", "row = 1", "x" * 500]
    cut = [tokenizer.eod, *tokenizer.encode(prompts[-1])[-58:]]  # 64 tokens minus [eod] and the answer's
    ids = [[tokenizer.eod, *tokenizer.encode(prompt)] for prompt in prompts[:-1]]
    written = [generation.text for generation in generator([*ids, cut], sampling)]
    questions = [Question("", (), (f" {text.strip()}\n", "other")) for text in written]
    questions[1] = Question("", (), (written[1].strip() + "x",))
    result = exact_match(generator, sampling, questions, prompts, shots=1)
    assert (result.measures["exact match"].value, result.questions, result.shots, result.cut) == (0.75, 4, 1, 1)
    with pytest.raises(UserError, match="--max-tokens to at most 62"):
        exact_match(generator, Sampling(max_tokens=63), questions, prompts, 0)


def test_worked_examples():
    questions = [Question(f"{i}? ", (), (f"{i}!",)) for i in range(20)]
    drawn = prompts(questions, None, 3, seed=0)
    for number, prompt in enumerate(drawn):
        *worked, last = prompt.split("\n\n")
        assert last == f"{number}? "
        assert len(set(worked)) == 3
        assert all(example in {q.worked for q in questions} - {questions[number].worked} for example in worked)
    assert drawn == prompts(questions, None, 3, seed=0)
    assert drawn != prompts(questions, None, 3, seed=1)
    assert len({prompt.rpartition("\n\n")[0] for prompt in drawn}) > 10
    assert prompts(questions, questions[:1], 1, 0)[7] == "0? 0!\n\n7? "
    assert prompts(questions, None, 0, 0) == [q.prompt for q in questions]
    with pytest.raises(UserError, match="lower --shots"):
        prompts(questions, None, 20, 0)
    with pytest.raises(UserError, match="lower --shots"):
        prompts(questions, questions[:2], 3, 0)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", "no question"),
        ("[1]", "line 1: expected an object"),
        ("{", "line 1, column 2: this is not JSON"),
        ('{"prompt": "a"}', "no field 'answer'"),
        ('{"answer": "a"}', "no field 'prompt'"),
        ('{"prompt": 3, "answer": "a"}', "'prompt' must be a string"),
        ('{"prompt": "a", "answer": 3}', "'answer' must be a list of strings"),
        ('{"prompt": "a", "answer": ""}', "none of them empty"),
        ('{"prompt": "a", "answer": []}', "'answer' must be a list of strings"),
        ('{"prompt": "a", "choices": ["b"], "answer": 0}', "two or more"),
        ('{"prompt": "a", "choices": ["b", ""], "answer": 0}', "none of them empty"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": 2}', "0 to 1"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": "b"}', "0 to 1"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": true}', "0 to 1"),
        ('{"prompt": "a", "answer": "b", "target": "c"}', "no use for the field 'target'"),
        ('{"prompt": "a", "answer": "b"}\n{"prompt": "a", "choices": ["b", "c"], "answer": 1}', "a file of its own"),
        (b'{"prompt": "\xff"}', "not UTF-8 text at byte 12"),
    ],
)
def test_broken_questions(tmp_path, line, problem):
    file = tmp_path / "questions.jsonl"
    file.write_bytes(line if isinstance(line, bytes) else line.encode())
    with pytest.raises(UserError) as caught:
        read_questions(file)
    assert problem in str(caught.value)
    assert str(file) in str(caught.value)


def test_missing_questions(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_questions(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_reported_by_every_scorer(device, tokenizer, value):
    """Only the logit of a token that is neither context nor scored is bad; the network has run before."""
    from mindspore import Tensor

    from mindspore_palm import PaLM, PaLMConfig
    from mindspore_palm.data.tokens import shift
    from mindspore_palm.evaluate.scorer import Scorer, ScoringRow
    from mindspore_palm.evaluate.tasks import multiple_choice
    from mindspore_palm.evaluate.text import score_text
    from mindspore_palm.train.evaluate import Evaluator

    palm = PaLM(PaLMConfig(**SIZES), seed=5)
    scorer, evaluator = Scorer(palm, tokenizer, WINDOW, 2, "runs/x"), Evaluator(palm, tokenizer.piece_bytes)
    ids = np.full((1, WINDOW), 9, np.int32)
    assert evaluator([shift(ids, tokenizer.eod)]).checked("runs/x").tokens == WINDOW
    embedding = palm.embedding.asnumpy().copy()
    embedding[300] = value
    palm.embedding.set_data(Tensor(embedding))
    row = ScoringRow(np.array([9, 9], np.int32), 1, "text.txt, line 3")
    question = Question("a", ("b", "c"), ("b",))
    for score, text in (
        (lambda: list(scorer([row])), "text.txt, line 3"),
        (lambda: multiple_choice(scorer, [question], ["a"], 0), "question 1"),
        (lambda: score_text(scorer, written(["def"])), "0"),
        (lambda: evaluator([shift(ids, tokenizer.eod)]).checked("runs/x"), "the held-out text"),
    ):
        with pytest.raises(UserError, match=f"^runs/x: the logits for {text} are not finite"):
            score()


def test_a_tokenizer_of_another_model(device, tokenizer):
    from mindspore_palm import PaLM, PaLMConfig
    from mindspore_palm.evaluate.scorer import Scorer

    small = PaLM(PaLMConfig(**{**SIZES, "vocab_size": 300}))
    with pytest.raises(UserError, match=r"320 tokens and the model only 300"):
        Scorer(small, tokenizer, WINDOW)
