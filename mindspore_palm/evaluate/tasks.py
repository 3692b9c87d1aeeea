"""Multiple choice by log-likelihood, and exact match of generated answers (as PaLM was evaluated, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindspore_palm.data.prompt import Prompt, encode_pairs, encode_prompt
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.errors import UserError
from mindspore_palm.evaluate.estimate import Estimate, proportion
from mindspore_palm.evaluate.questions import Question
from mindspore_palm.evaluate.scorer import Scorer, ScoringRow, continuation
from mindspore_palm.generate import Generator, Sampling


@dataclass(frozen=True)
class TaskResult:
    """Scores of a task."""

    kind: str
    """multiple choice, or exact match."""
    questions: int
    shots: int
    measures: dict[str, Estimate]
    """accuracy (the choice of highest likelihood) and accuracy by byte (of highest likelihood per scored byte: the
    choice, and the white space at the end of the prompt), or exact match."""
    cut: int
    """Number of prompts that were longer than the window and lost their start."""


def choice_rows(
    tokenizer: Tokenizer, window: int, questions: Sequence[Question], prompts: Sequence[str]
) -> tuple[list[ScoringRow], int]:
    """Rows to score for multiple choice.

    Args:
        tokenizer: of the network.
        window: maximum tokens per row.
        questions: with choices.
        prompts: of the questions.

    Returns:
        A row for each choice of each question, and the number of questions whose prompt does not fit.

    Raises:
        UserError: a choice alone is longer than the window.
    """
    rows, truncated = [], 0
    for number, (question, prompt) in enumerate(zip(questions, prompts, strict=True), 1):
        pairs = encode_pairs(tokenizer, ((prompt, choice) for choice in question.choices))
        for context, tokens in pairs:
            sequence = np.concatenate([context, tokens])
            rows.append(continuation(sequence, len(context), window, f"question {number}"))
        truncated += any(len(context) + len(tokens) > window for context, tokens in pairs)
    return rows, truncated


def multiple_choice(scorer: Scorer, questions: Sequence[Question], prompts: Sequence[str], shots: int) -> TaskResult:
    """Answers each question with the choice that is most likely after the prompt.

    All choices of a question have the same context, that of ``data.prompt``.

    Raises:
        UserError: a choice alone is longer than the window, or the logits are not finite.
    """
    rows, truncated = choice_rows(scorer.tokenizer, scorer.window, questions, prompts)
    scores = scorer(rows)
    right, right_by_byte = [], []
    for question in questions:
        by_choice = [next(scores) for _ in question.choices]
        nats, size = np.array([score.nats for score in by_choice]), np.array([score.size for score in by_choice])
        right.append(question.choices[int(nats.argmin())] in question.answers)
        right_by_byte.append(question.choices[int((nats / size).argmin())] in question.answers)
    measures = {"accuracy": proportion(right), "accuracy by byte": proportion(right_by_byte)}
    return TaskResult("multiple choice", len(questions), shots, measures, truncated)


def exact_match(
    generator: Generator, sampling: Sampling, questions: Sequence[Question], prompts: Sequence[str], shots: int
) -> TaskResult:
    """Compares generated answers with the right ones, ignoring white space around both.

    Args:
        generator: of the network.
        sampling: how answers are generated, and where they end.
        questions: with free-text answers.
        prompts: of the questions.
        shots: worked examples in each.

    Raises:
        UserError: an answer does not fit the window, or the logits are not finite.
    """
    fitted = [fit_prompt(generator.tokenizer, generator.context, prompt, sampling.max_tokens) for prompt in prompts]
    right = [
        generation.text.strip() in {answer.strip() for answer in question.answers}
        for generation, question in zip(generator([prompt for prompt, _ in fitted], sampling), questions, strict=True)
    ]
    measures = {"exact match": proportion(right)}
    return TaskResult("exact match", len(questions), shots, measures, sum(truncated for _, truncated in fitted))


def fit_prompt(tokenizer: Tokenizer, context: int, prompt: str, max_tokens: int) -> tuple[Prompt, bool]:
    """A prompt after [eod], without its start if it would leave no room for the answer, and whether that was so.

    Args:
        tokenizer: of the network.
        context: tokens per window.
        prompt: as a text.
        max_tokens: of an answer.

    Raises:
        UserError: an answer does not fit the window.
    """
    if context - 1 - max_tokens < 1:
        raise UserError(
            f"answers of {max_tokens} tokens leave no room for a prompt in a window of {context}; "
            f"set --max-tokens to at most {context - 2}"
        )
    full = encode_prompt(tokenizer, prompt)
    room = context - 1 - max_tokens - len(tokenizer.encode(full.white_space))
    if room < 0:
        raise UserError(
            f"the {len(full.white_space):,} characters of white space at the end of a prompt do not fit a window of "
            f"{context} beside an answer of {max_tokens} tokens; shorten the prompt"
        )
    kept = full.context[len(full.context) - room :] if len(full.context) > room else full.context
    return Prompt((tokenizer.eod, *kept), full.white_space), len(kept) < len(full.context)
