"""Questions of a task, read from a .jsonl, and their few-shot prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mindspore_palm.data.corpus import check_encodable, check_unique_field, json_lines, list_names
from mindspore_palm.data.files import compression_of, printable
from mindspore_palm.errors import UserError
from mindspore_palm.random import key64, permute

FIELDS = ("prompt", "choices", "answer")
SEPARATOR = "\n\n"  # between worked examples


@dataclass(frozen=True)
class Question:
    """A prompt and its right answers. Texts are used verbatim: nothing is inserted between or around them."""

    prompt: str
    choices: tuple[str, ...]
    """Choices of a multiple-choice question; empty if the answer is free text."""
    answers: tuple[str, ...]
    """Right answers: one of the choices, or any of several texts."""

    @property
    def worked(self) -> str:
        """The question with its answer, as a worked example for another question."""
        return self.prompt + self.answers[0]


def read_questions(file: Path) -> list[Question]:
    """Reads the questions of a .jsonl, one per line, all multiple choice or all exact match.

    Multiple choice: ``{"prompt": "2 + 2 =", "choices": [" 3", " 4"], "answer": 1}``, where choices count from 0. Exact
    match: ``{"prompt": "2 + 2 =", "answer": " 4"}``; with a list of answers, any of them is right.

    Raises:
        UserError: names the line and what is wrong in it.
    """
    questions = [_question(record, where) for record, where in _records(file)]
    if not questions:
        raise UserError(f"{printable(file)}: there is no question in it")
    if any(bool(question.choices) != bool(questions[0].choices) for question in questions):
        raise UserError(
            f"{printable(file)}: some questions have 'choices' and some have not; put each kind in a file of its own"
        )
    return questions


def prompts(questions: Sequence[Question], examples: Sequence[Question] | None, shots: int, seed: int) -> list[str]:
    """The prompt of each question, after ``shots`` worked examples drawn by (seed, number of the question).

    Args:
        questions: the questions of a task.
        examples: questions from which the examples are drawn; None for the other questions.
        shots: examples before each question.
        seed: decides which examples are drawn.

    Raises:
        UserError: there are fewer examples than shots.
    """
    pool = questions if examples is None else examples
    available = len(pool) - (examples is None)
    if shots > available:
        raise UserError(f"each question needs {shots} worked examples, and there are {available}; lower --shots")
    result = []
    for number, question in enumerate(questions):
        key = key64(f"{seed} {number}")
        drawn = (permute(i, len(pool), key) for i in range(len(pool)))
        others = (index for index in drawn if examples is not None or index != number)
        worked = [pool[index].worked for index in islice(others, shots)]
        result.append(SEPARATOR.join([*worked, question.prompt]))
    return result


def _records(file: Path) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        for record, where in json_lines(file, compression_of(file)):
            if not isinstance(record, dict):
                raise UserError(f'{where}: expected an object such as {{"prompt": "2 + 2 =", "answer": " 4"}}')
            yield record, where
    except OSError as error:
        raise UserError(f"{printable(file)}: {error.strerror or error}") from None


def _question(record: dict[str, Any], where: str) -> Question:
    for name in ("prompt", "answer"):
        if name not in record:
            raise UserError(f"{where}: there is no field {name!r}; there are {list_names(record)}")
    if unknown := sorted(record.keys() - set(FIELDS)):
        raise UserError(f"{where}: there is no use for the field {unknown[0]!r}; the fields are {', '.join(FIELDS)}")
    for name in FIELDS:
        check_unique_field(record, name, where)
    prompt, answer = record["prompt"], record["answer"]
    if not isinstance(prompt, str):
        raise UserError(f"{where}: 'prompt' must be a string")
    check_encodable(prompt, f"{where}: 'prompt'")
    if "choices" not in record:
        return Question(prompt, (), _texts([answer] if isinstance(answer, str) else answer, "answer", where))
    choices = _texts(record["choices"], "choices", where)
    if len(choices) < 2:
        raise UserError(f"{where}: 'choices' must be two or more")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise UserError(f"{where}: 'answer' must be the number of a choice, 0 to {len(choices) - 1}")
    return Question(prompt, choices, (choices[answer],))


def _texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
        raise UserError(f"{where}: {name!r} must be a list of strings, none of them empty")
    for text in value:
        check_encodable(text, f"{where}: {name!r}")
    return tuple(value)
