"""Multiple choice by log-likelihood, and exact match of what is generated (the way PaLM was judged, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.errors import UserError
from mindspore_palm.evaluate.estimate import Estimate, share
from mindspore_palm.evaluate.questions import Question
from mindspore_palm.evaluate.scorer import Scorer, continuation
from mindspore_palm.generate import Generator, Sampling


@dataclass(frozen=True)
class TaskResult:
    """How many questions were answered rightly, by each way of counting."""

    kind: str
    """multiple choice, or exact match."""
    questions: int
    shots: int
    measures: dict[str, Estimate]
    """accuracy (the choice of highest likelihood) and accuracy by byte (likelihood over the choice's bytes), or
    exact match."""
    cut: int
    """Prompts that were longer than the window; the end of each was kept."""


def multiple_choice(scorer: Scorer, questions: Sequence[Question], prompts: Sequence[str], shots: int) -> TaskResult:
    """Takes the choice that the network finds most likely behind the prompt.

    Raises:
        UserError: a choice alone is longer than the window.
    """
    rows, cut = [], 0
    for number, (question, prompt) in enumerate(zip(questions, prompts, strict=True), 1):
        longest = 0
        for choice in question.choices:
            tokens, first = prompt_and_continuation(scorer.tokenizer, prompt, choice)
            rows.append(continuation(tokens, first, scorer.window, f"question {number}"))
            longest = max(longest, len(tokens))
        cut += longest > scorer.window
    scores = scorer(rows)
    right, right_by_byte = [], []
    for question in questions:
        nats = np.array([next(scores).nats for _ in question.choices])
        size = np.array([len(choice.encode()) for choice in question.choices])
        right.append(question.choices[int(nats.argmin())] in question.answers)
        right_by_byte.append(question.choices[int((nats / size).argmin())] in question.answers)
    measures = {"accuracy": share(right), "accuracy by byte": share(right_by_byte)}
    return TaskResult("multiple choice", len(questions), shots, measures, cut)


def exact_match(
    generator: Generator, sampling: Sampling, questions: Sequence[Question], prompts: Sequence[str], shots: int
) -> TaskResult:
    """Compares what is generated with the answers, white space around either left out.

    Args:
        generator: of the network.
        sampling: how answers are generated, and where they end.
        questions: with free answers.
        prompts: of the questions.
        shots: worked examples in each.

    Raises:
        UserError: a window has no room for an answer.
    """
    tokens = [fit_prompt(generator, prompt, sampling.max_tokens) for prompt in prompts]
    right = [
        generation.text.strip() in {answer.strip() for answer in question.answers}
        for generation, question in zip(generator([ids for ids, _ in tokens], sampling), questions, strict=True)
    ]
    measures = {"exact match": share(right)}
    return TaskResult("exact match", len(questions), shots, measures, sum(cut for _, cut in tokens))


def fit_prompt(generator: Generator, prompt: str, max_tokens: int) -> tuple[list[int], bool]:
    """The tokens of a prompt, its start left out where it would not fit beside the answer, and whether it was.

    Raises:
        UserError: a window has no room for an answer.
    """
    room = generator.context - 1 - max_tokens
    if room < 1:
        raise UserError(
            f"answers of {max_tokens} tokens leave no room for a prompt in a window of {generator.context}; "
            f"set --max-tokens to at most {generator.context - 2}"
        )
    tokens = generator.tokenizer.encode(prompt)
    return [generator.tokenizer.eod, *tokens[-room:]], len(tokens) > room


def prompt_and_continuation(tokenizer: Tokenizer, prompt: str, text: str) -> tuple[np.ndarray, int]:
    """Tokens of ``prompt + text``, and which of them is the first to be scored as ``text``.

    Both are made into tokens together, as a running text would be. Where a token runs over the border, it counts to
    what is scored.
    """
    whole, alone = tokenizer.encode(prompt + text), tokenizer.encode(prompt)
    first = 0
    while first < min(len(alone), len(whole) - 1) and alone[first] == whole[first]:
        first += 1
    return np.array(whole, np.int32), first
