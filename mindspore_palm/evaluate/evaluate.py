"""Evaluation of a trained model on texts and tasks, from its folder to results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspore_palm.checkpoint.model_folder import find_model, load, load_tokenizer
from mindspore_palm.data.corpus import documents
from mindspore_palm.data.files import find_files, printable
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.data.vocabulary import padding_note
from mindspore_palm.errors import UserError
from mindspore_palm.evaluate.questions import Question, prompts, read_questions
from mindspore_palm.evaluate.report import as_json, task_table, text_table
from mindspore_palm.evaluate.scorer import Scorer, window_of
from mindspore_palm.evaluate.tasks import choice_rows, exact_match, fit_prompt, multiple_choice
from mindspore_palm.evaluate.text import check_text, score_text, stride_of
from mindspore_palm.file_names import CONFIG
from mindspore_palm.generate import Generator, Sampling
from mindspore_palm.options import naming_options
from mindspore_palm.parallel.context import open_device
from mindspore_palm.settings import load_settings


@dataclass(frozen=True)
class EvaluateOptions:
    """Texts and tasks to score a model on, and how."""

    text: Sequence[str] = ()
    """Paths as in ``data.path``: .txt, .jsonl or .parquet files, folders or globs of them."""
    text_field: str = "text"
    """Field of .jsonl and .parquet that holds the text."""
    window: int | None = None
    """Tokens per window; None for the training sequence length."""
    stride: int | None = None
    """Tokens between the starts of windows, see ``scorer.windows``; None for the window."""
    tasks: Sequence[Path] = ()
    """Files of questions, see ``questions.read_questions``."""
    examples: Path | None = None
    """Questions from which worked examples are drawn; None for the other questions of the task."""
    shots: int = 0
    """Worked examples before each question."""
    seed: int = 0
    """Decides which examples are drawn."""
    batch: int = 8
    """Rows per batch."""
    stop: Sequence[str] = ("\n",)
    """Texts that end a generated answer."""
    max_tokens: int = 64
    """Maximum tokens of a generated answer."""
    device: str = "auto"
    """A device type, or auto."""


def evaluate(checkpoint: str, options: EvaluateOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Scores the model in a folder.

    Args:
        checkpoint: the folder, as for ``load``.
        options: texts, tasks and how to score them.
        say: prints a table or a note; called as soon as each is ready.

    Returns:
        All results, for JSON.

    Raises:
        UserError: what must be fixed, in the words of the command. All options, texts and questions are read before
            anything is computed. Also if the model's logits are not finite.
    """
    tasks, task_prompts = _read_tasks(options)
    folder = find_model(Path(checkpoint))
    settings, _ = load_settings(folder / CONFIG)
    window = window_of(options.window, settings.data.seq_len)
    stride_of(options.stride, window)
    with naming_options({"leave data.tokenizer empty": "copy the tokenizer that the model was trained with there"}):
        tokenizer = load_tokenizer(folder)
    for path in options.text:
        with _naming_file(path):
            check_text(documents(path, options.text_field))
    for name, questions in tasks.items():
        with _naming_file(name):
            _check_task(options, questions, task_prompts[name], tokenizer, window)
    if note := padding_note(settings.model, tokenizer.vocab_size, tokenizer.model_file):
        say(f"note: {note}")
    for note in without_effect(options, tasks):
        say(f"note: {note}")
    open_device(options.device, "--device")
    palm, model = load(folder), str(folder)
    scorer = Scorer(palm, tokenizer, window, options.batch, model)

    text_results, task_results = {}, {}
    for path in options.text:
        if left_out := find_files(path, "--data").describe_skipped():
            say(f"{printable(path)}: left out {left_out}")
        with _naming_file(path):
            texts = documents(path, options.text_field)
            text_results[path] = score_text(scorer, texts, options.stride)
        say(f"{printable(path)}: {text_table(text_results[path])}")
    for name, questions in tasks.items():
        with _naming_file(name):
            if questions[0].choices:
                result = multiple_choice(scorer, questions, task_prompts[name], options.shots)
            else:
                sampling = Sampling(max_tokens=options.max_tokens, stop=tuple(options.stop))
                generator = Generator(palm, tokenizer, scorer.window, options.batch, model)
                result = exact_match(generator, sampling, questions, task_prompts[name], options.shots)
        task_results[name] = result
        say(f"{printable(name)}: {task_table(task_results[name])}")
    return as_json(checkpoint, text_results, task_results)


def without_effect(options: EvaluateOptions, tasks: dict[str, list[Question]]) -> list[str]:
    """Notes on options that are set but have no effect, each with the reason."""
    generated = any(not questions[0].choices for questions in tasks.values())
    default = EvaluateOptions()
    scopes = {
        "stride": (bool(options.text), "texts (--data)"),
        "text_field": (bool(options.text), "texts (--data)"),
        "shots": (bool(tasks), "questions (--task)"),
        "examples": (bool(tasks and options.shots), "worked examples (--task with --shots)"),
        "seed": (bool(tasks and options.shots), "worked examples (--task with --shots)"),
        "stop": (generated, "questions without choices"),
        "max_tokens": (generated, "questions without choices"),
    }
    return [
        f"--{name.replace('_', '-')} has no effect: it applies to {scope}, and there are none"
        for name, (is_used, scope) in scopes.items()
        if not is_used and _comparable(getattr(options, name)) != _comparable(getattr(default, name))
    ]


def _comparable(value: object) -> object:
    """A list as a tuple; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def _read_tasks(options: EvaluateOptions) -> tuple[dict[str, list[Question]], dict[str, list[str]]]:
    """Questions and prompts of each task, by its name."""
    if not options.text and not options.tasks:
        raise UserError("there is nothing to score; name a text with --data, or a .jsonl of questions with --task")
    for name, value in (("--batch", options.batch), ("--max-tokens", options.max_tokens)):
        if value < 1:
            raise UserError(f"{name} {value} must be 1 or more")
    if options.shots < 0:
        raise UserError(f"--shots {options.shots} must be 0 or more")
    if not all(options.stop):
        raise UserError("--stop '' is empty; name a text that ends an answer, or leave it out")
    with naming_options({"stop": "--stop", "max_tokens": "--max-tokens"}):
        Sampling(max_tokens=options.max_tokens, stop=tuple(options.stop))
    for option, values in (("--data", list(options.text)), ("--task", [str(file) for file in options.tasks])):
        if twice := [value for value in values if values.count(value) > 1]:
            raise UserError(f"{option} {twice[0]} is given twice; give it once")
    examples = read_questions(options.examples) if options.examples else None
    tasks = {str(file): read_questions(file) for file in options.tasks}
    task_prompts = {}
    for name, questions in tasks.items():
        with _naming_file(name):
            task_prompts[name] = prompts(questions, examples, options.shots, options.seed)
    return tasks, task_prompts


def _check_task(
    options: EvaluateOptions,
    questions: Sequence[Question],
    question_prompts: Sequence[str],
    tokenizer: Tokenizer,
    window: int,
) -> None:
    """Checks that all questions fit the window."""
    if questions[0].choices:
        choice_rows(tokenizer, window, questions, question_prompts)
    else:
        for prompt in question_prompts:
            fit_prompt(tokenizer, window, prompt, options.max_tokens)


@contextmanager
def _naming_file(name: str) -> Iterator[None]:
    """Makes messages name the user's file, and options instead of settings."""
    with naming_options({"data.path": "--data", "data.text_field": "--text-field"}):
        try:
            yield
        except UserError as error:
            is_named = name in str(error) or printable(name) in str(error)
            raise UserError(str(error) if is_named else f"{printable(name)}: {error}") from None
