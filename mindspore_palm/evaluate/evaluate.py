"""Everything that a trained model is to be scored on, from its folder to results."""

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
    """What to score, and how."""

    text: Sequence[str] = ()
    """As ``data.path``: .txt, .jsonl or .parquet files, folders or globs of them."""
    text_field: str = "text"
    """Of .jsonl and .parquet."""
    window: int | None = None
    """Tokens that the network sees at once; None is the length it was trained on."""
    stride: int | None = None
    """See ``scorer.windows``; None is the window."""
    tasks: Sequence[Path] = ()
    """Questions, see ``questions.read_questions``."""
    examples: Path | None = None
    """Where worked examples come from; None takes the other questions of the task."""
    shots: int = 0
    """Worked examples before each question."""
    seed: int = 0
    """Decides which examples."""
    batch: int = 8
    """Rows scored at a time."""
    stop: Sequence[str] = ("\n",)
    """What ends a generated answer."""
    max_tokens: int = 64
    """Tokens of a generated answer at most."""


def evaluate(checkpoint: str, wanted: EvaluateOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Scores the model in a folder.

    Args:
        checkpoint: the folder, as for ``load``.
        wanted: on what.
        say: told every table as soon as it is there.

    Returns:
        All results, for JSON.

    Raises:
        UserError: what must be fixed, in the words of the command. All options, texts and questions are read before
            anything is computed. Or the model's logits are not finite.
    """
    tasks, asked = _read_tasks(wanted)
    folder = find_model(Path(checkpoint))
    settings, _ = load_settings(folder / CONFIG)
    window = window_of(wanted.window, settings.data.seq_len)
    stride_of(wanted.stride, window)
    with naming_options({"leave data.tokenizer empty": "copy the tokenizer that the model was trained with there"}):
        tokenizer = load_tokenizer(folder)
    for path in wanted.text:
        with _in_words_of(path):
            check_text(documents(path, wanted.text_field))
    for name, questions in tasks.items():
        with _in_words_of(name):
            _check_task(wanted, questions, asked[name], tokenizer, window)
    if note := padding_note(settings.model, tokenizer.vocab_size, tokenizer.model_file):
        say(f"note: {note}")
    for note in without_effect(wanted, tasks):
        say(f"note: {note}")
    open_device()
    palm, model = load(folder), str(folder)
    scorer = Scorer(palm, tokenizer, window, wanted.batch, model)

    text_results, task_results = {}, {}
    for path in wanted.text:
        if left_out := find_files(path, "--data").describe_skipped():
            say(f"{printable(path)}: left out {left_out}")
        with _in_words_of(path):
            texts = documents(path, wanted.text_field)
            text_results[path] = score_text(scorer, texts, wanted.stride)
        say(f"{printable(path)}: {text_table(text_results[path])}")
    for name, questions in tasks.items():
        with _in_words_of(name):
            if questions[0].choices:
                result = multiple_choice(scorer, questions, asked[name], wanted.shots)
            else:
                sampling = Sampling(max_tokens=wanted.max_tokens, stop=tuple(wanted.stop))
                generator = Generator(palm, tokenizer, scorer.window, wanted.batch, model)
                result = exact_match(generator, sampling, questions, asked[name], wanted.shots)
        task_results[name] = result
        say(f"{printable(name)}: {task_table(task_results[name])}")
    return as_json(checkpoint, text_results, task_results)


def without_effect(wanted: EvaluateOptions, tasks: dict[str, list[Question]]) -> list[str]:
    """Options that change nothing of what is scored, each with the reason."""
    generated = any(not questions[0].choices for questions in tasks.values())
    default = EvaluateOptions()
    asks = {
        "stride": (bool(wanted.text), "is of --data"),
        "text_field": (bool(wanted.text), "is of --data"),
        "shots": (bool(tasks), "is of --task"),
        "examples": (bool(tasks and wanted.shots), "is of --shots"),
        "seed": (bool(tasks and wanted.shots), "decides which --shots are taken"),
        "stop": (generated, "is of questions without choices"),
        "max_tokens": (generated, "is of questions without choices"),
    }
    return [
        f"--{name.replace('_', '-')} has no effect: it {of}, and there are none"
        for name, (is_used, of) in asks.items()
        if not is_used and _plain(getattr(wanted, name)) != _plain(getattr(default, name))
    ]


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _read_tasks(wanted: EvaluateOptions) -> tuple[dict[str, list[Question]], dict[str, list[str]]]:
    """The questions of each task, and their prompts."""
    if not wanted.text and not wanted.tasks:
        raise UserError("there is nothing to score; name a text by --data, or a .jsonl of questions by --task")
    for name, value in (("--batch", wanted.batch), ("--max-tokens", wanted.max_tokens)):
        if value < 1:
            raise UserError(f"{name} {value} must be 1 or more")
    if wanted.shots < 0:
        raise UserError(f"--shots {wanted.shots} must be 0 or more")
    if not all(wanted.stop):
        raise UserError("--stop '' is empty; name a text that ends an answer, or leave it out")
    with naming_options({"stop": "--stop", "max_tokens": "--max-tokens"}):
        Sampling(max_tokens=wanted.max_tokens, stop=tuple(wanted.stop))
    for option, values in (("--data", list(wanted.text)), ("--task", [str(file) for file in wanted.tasks])):
        if twice := [value for value in values if values.count(value) > 1]:
            raise UserError(f"{option} {twice[0]} is given twice; give it once")
    examples = read_questions(wanted.examples) if wanted.examples else None
    tasks = {str(file): read_questions(file) for file in wanted.tasks}
    asked = {}
    for name, questions in tasks.items():
        with _in_words_of(name):
            asked[name] = prompts(questions, examples, wanted.shots, wanted.seed)
    return tasks, asked


def _check_task(
    wanted: EvaluateOptions, questions: Sequence[Question], asked: Sequence[str], tokenizer: Tokenizer, window: int
) -> None:
    """Sees that all questions fit the window."""
    if questions[0].choices:
        choice_rows(tokenizer, window, questions, asked)
    else:
        for prompt in asked:
            fit_prompt(tokenizer, window, prompt, wanted.max_tokens)


@contextmanager
def _in_words_of(name: str) -> Iterator[None]:
    """Has messages name a file that the user gave, and options instead of settings."""
    with naming_options({"data.path": "--data", "data.text_field": "--text-field"}):
        try:
            yield
        except UserError as error:
            named = name in str(error) or printable(name) in str(error)
            raise UserError(str(error) if named else f"{printable(name)}: {error}") from None
