"""Multiple choice by log-likelihood, and exact match of what is generated (the way PaLM was judged, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindspore_palm.data.prompt import Prompt, encode_pairs, encode_prompt
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.errors import UserError
from mindspore_palm.evaluate.estimate import Estimate, share
from mindspore_palm.evaluate.questions import Question
from mindspore_palm.evaluate.scorer import Row, Scorer, continuation
from mindspore_palm.generate import Generator, Sampling


@dataclass(frozen=True)
class TaskResult:
    """How many questions were answered rightly, by each way of counting."""

    kind: str
    """multiple choice, or exact match."""
    questions: int
    shots: int
    measures: dict[str, Estimate]
    """accuracy (the choice of highest likelihood) and accuracy by byte (likelihood over the bytes that were scored:
    the choice, and the prompt's last white space before it), or exact match."""
    cut: int
    """Prompts that were longer than the window; the end of each was kept."""


def choice_rows(
    tokenizer: Tokenizer, window: int, questions: Sequence[Question], prompts: Sequence[str]
) -> tuple[list[Row], int]:
    """What is scored for a multiple choice.

    Args:
        tokenizer: of the network.
        window: tokens that it sees at once.
        questions: with choices.
        prompts: of the questions.

    Returns:
        A row for each choice of each question, and how many questions have a prompt that does not fit.

    Raises:
        UserError: a choice alone is longer than the window.
    """
    rows, cut = [], 0
    for number, (question, prompt) in enumerate(zip(questions, prompts, strict=True), 1):
        pairs = encode_pairs(tokenizer, ((prompt, choice) for choice in question.choices))
        for context, tokens in pairs:
            whole = np.concatenate([context, tokens])
            rows.append(continuation(whole, len(context), window, f"question {number}"))
        cut += any(len(context) + len(tokens) > window for context, tokens in pairs)
    return rows, cut


def multiple_choice(scorer: Scorer, questions: Sequence[Question], prompts: Sequence[str], shots: int) -> TaskResult:
    """Takes the choice that the network finds most likely after the prompt.

    All choices of a question have the same context, that of ``data.prompt``.

    Raises:
        UserError: a choice alone is longer than the window, or the logits are not finite.
    """
    rows, cut = choice_rows(scorer.tokenizer, scorer.window, questions, prompts)
    scores = scorer(rows)
    right, right_by_byte = [], []
    for question in questions:
        own = [next(scores) for _ in question.choices]
        nats, size = np.array([score.nats for score in own]), np.array([score.size for score in own])
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
        UserError: a window has no room for an answer, or the logits are not finite.
    """
    fitted = [fit_prompt(generator.tokenizer, generator.context, prompt, sampling.max_tokens) for prompt in prompts]
    right = [
        generation.text.strip() in {answer.strip() for answer in question.answers}
        for generation, question in zip(generator([prompt for prompt, _ in fitted], sampling), questions, strict=True)
    ]
    measures = {"exact match": share(right)}
    return TaskResult("exact match", len(questions), shots, measures, sum(cut for _, cut in fitted))


def fit_prompt(tokenizer: Tokenizer, context: int, prompt: str, max_tokens: int) -> tuple[Prompt, bool]:
    """A prompt with [eod] before it, its start left out where it would not fit beside the answer, and whether it was.

    Args:
        tokenizer: of the network.
        context: tokens that it sees at once.
        prompt: as a text.
        max_tokens: of an answer.

    Raises:
        UserError: a window has no room for an answer.
    """
    if context - 1 - max_tokens < 1:
        raise UserError(
            f"answers of {max_tokens} tokens leave no room for a prompt in a window of {context}; "
            f"set --max-tokens to at most {context - 2}"
        )
    whole = encode_prompt(tokenizer, prompt)
    room = context - 1 - max_tokens - len(tokenizer.encode(whole.white_space))
    if room < 0:
        raise UserError(
            f"the {len(whole.white_space):,} characters of white space at the end of a prompt do not fit a window of "
            f"{context} beside an answer of {max_tokens} tokens; shorten the prompt"
        )
    kept = whole.context[len(whole.context) - room :] if len(whole.context) > room else whole.context
    return Prompt((tokenizer.eod, *kept), whole.white_space), len(kept) < len(whole.context)


def prompt_and_continuation(tokenizer: Tokenizer, prompt: str, text: str) -> tuple[np.ndarray, int]:
    """Tokens of ``prompt + text``, and which of them is the first to be scored as ``text``: see ``data.prompt``."""
    ((context, tokens),) = encode_pairs(tokenizer, [(prompt, text)])
    return np.concatenate([context, tokens]), len(context)
