"""Everything that a trained model is to be scored on, from its folder to results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspore_palm.data.corpus import documents
from mindspore_palm.data.files import find_files
from mindspore_palm.data.vocabulary import padding_note
from mindspore_palm.errors import UserError
from mindspore_palm.evaluate.questions import prompts, read_questions
from mindspore_palm.evaluate.report import as_json, task_table, text_table
from mindspore_palm.evaluate.scorer import Scorer, window_of
from mindspore_palm.evaluate.tasks import exact_match, multiple_choice
from mindspore_palm.evaluate.text import score_text
from mindspore_palm.generate import Generator, Sampling
from mindspore_palm.parallel.context import open_device
from mindspore_palm.settings import load_settings
from mindspore_palm.train.saved import CONFIG, find_model, load, load_tokenizer


@dataclass(frozen=True)
class Wanted:
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


def evaluate(checkpoint: str, wanted: Wanted, say: Callable[[str], None]) -> dict[str, Any]:
    """Scores the model in a folder.

    Args:
        checkpoint: the folder, as for ``load``.
        wanted: on what.
        say: told every table as soon as it is there.

    Returns:
        All results, for JSON.

    Raises:
        UserError: what must be mended; files of questions are read before anything is computed.
    """
    if not wanted.text and not wanted.tasks:
        raise UserError("there is nothing to score; name a text by --data, or a .jsonl of questions by --task")
    for name, value in (("--batch", wanted.batch), ("--window", wanted.window), ("--max-tokens", wanted.max_tokens)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value} must be 1 or more")
    if wanted.shots < 0:
        raise UserError(f"--shots {wanted.shots} must be 0 or more")
    examples = read_questions(wanted.examples) if wanted.examples else None
    tasks = {str(file): read_questions(file) for file in wanted.tasks}
    asked = {name: prompts(questions, examples, wanted.shots, wanted.seed) for name, questions in tasks.items()}

    folder = find_model(Path(checkpoint))
    settings, _ = load_settings(folder / CONFIG)
    window = window_of(wanted.window, settings.data.seq_len)
    tokenizer = load_tokenizer(folder)
    if note := padding_note(settings.model, tokenizer.vocab_size, tokenizer.model_file):
        say(f"note: {note}")
    open_device()
    palm = load(folder)
    scorer = Scorer(palm, tokenizer, window, wanted.batch)

    text_results, task_results = {}, {}
    for path in wanted.text:
        if left_out := find_files(path, "--data").passed_over():
            say(f"{path}: left out {left_out}")
        texts = documents(path, wanted.text_field, "--data", "--text-field")
        text_results[path] = score_text(scorer, texts, wanted.stride)
        say(f"{path}: {text_table(text_results[path])}")
    for name, questions in tasks.items():
        if questions[0].choices:
            result = multiple_choice(scorer, questions, asked[name], wanted.shots)
        else:
            sampling = Sampling(max_tokens=wanted.max_tokens, stop=tuple(wanted.stop))
            generator = Generator(palm, tokenizer, scorer.window, wanted.batch)
            result = exact_match(generator, sampling, questions, asked[name], wanted.shots)
        task_results[name] = result
        say(f"{name}: {task_table(task_results[name])}")
    return as_json(checkpoint, text_results, task_results)
