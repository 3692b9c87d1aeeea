"""Results as tables and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mindspore_palm.evaluate.estimate import Estimate
from mindspore_palm.evaluate.tasks import TaskResult
from mindspore_palm.evaluate.text import TextResult


def text_table(result: TextResult) -> str:
    """Table of the likelihood of a text."""
    several = result.unit == "document"
    lines = [
        f"{result.documents:,} document{'s' if several else ''}, {result.tokens:,} tokens, "
        f"{result.size:,} bytes; windows of {result.window:,} tokens, stride {result.stride:,}"
    ]
    measures = {
        "nats/token": result.nats_per_token,
        "bits/byte": result.bits_per_byte,
        "perplexity": result.perplexity,
    }
    units = f"{result.documents:,} documents" if several else "the windows of the document"
    return "\n".join([*lines, *_table(measures, f"95 % confidence, over {units}")])


def task_table(result: TaskResult) -> str:
    """Table of the scores of a task."""
    head = f"{result.kind}, {result.questions:,} questions, {result.shots} worked examples before each"
    if result.cut:
        head += f"; {result.cut:,} prompts were longer than the window and lost their start"
    return "\n".join([head, *_table(result.measures, f"95 % confidence, over {result.questions:,} questions")])


def as_json(checkpoint: str, text: dict[str, TextResult], tasks: dict[str, TaskResult]) -> dict[str, Any]:
    """All results, by file. The same command gives the same bytes."""
    return {
        "checkpoint": checkpoint,
        "text": {name: asdict(result) for name, result in text.items()},
        "tasks": {name: asdict(result) for name, result in tasks.items()},
    }


def _table(measures: dict[str, Estimate], head: str) -> list[str]:
    width = max(len(name) for name in measures)
    rows = [f"{'':<{width}}  {'':>9}  {head}"]
    for name, estimate in measures.items():
        bounds = (
            ""
            if estimate.low is None or estimate.high is None
            else f"{_number(estimate.low)} to {_number(estimate.high)}"
        )
        rows.append(f"{name:<{width}}  {_number(estimate.value):>9}  {bounds}".rstrip())
    return rows


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"
