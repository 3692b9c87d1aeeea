"""Times of several contenders, measured in turns: a machine that slows down slows all of them."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mindspore import Tensor, mutable

from mindspore_palm.config import Settings
from mindspore_palm.data import Prepared
from mindspore_palm.generate.decoder import Decoder
from mindspore_palm.model.palm import PaLM
from mindspore_palm.optim import make_optimizer
from mindspore_palm.study.runs import Task
from mindspore_palm.study.trainer import Trainer
from mindspore_palm.train.step import Update

WARM_UP = 3  # calls of each contender before its first turn


def measure(task: Task, prepared: Prepared) -> dict[str, list[float]]:
    """Seconds of a step, an update or a token: by variant, the median of each turn."""
    *case, rounds, steps = task.extras
    contenders = [_contender(task.role, settings, prepared, tuple(case)) for settings in task.settings]
    return dict(zip(task.variants, in_turns(contenders, rounds, steps), strict=True))


def in_turns(contenders: Sequence[Callable[[], Any]], rounds: int, steps: int) -> list[list[float]]:
    """Median seconds of each contender's calls in each round; who begins changes with the round.

    Args:
        contenders: called without arguments; they return when they are done.
        rounds: turns of each.
        steps: calls of a turn.
    """
    for contender in contenders:
        for _ in range(WARM_UP):
            contender()
    medians: list[list[float]] = [[] for _ in contenders]
    for turn in range(rounds):
        for i in range(len(contenders)):
            number, seconds = (i + turn) % len(contenders), []
            for _ in range(steps):
                start = time.perf_counter()
                contenders[number]()
                seconds.append(time.perf_counter() - start)
            medians[number].append(statistics.median(seconds))
    return medians


def ledger(task: Task) -> dict[str, dict[str, int]]:
    """All-reduces of activations that a layer has over model, in the forward and in the backward pass, by variant.

    Each network is compiled in a process of its own, for the mesh of the file that the task names: layers of another
    kind, not of another size.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return {
            variant: pool.apply(_all_reduces, (task.extras[0], settings.model.departures()))
            for variant, settings in zip(task.variants, task.settings, strict=True)
        }


def _all_reduces(config: str, switches: dict[str, Any]) -> dict[str, int]:
    from mindspore_palm.dry_run.compile import layer_ledger
    from mindspore_palm.settings import load_settings

    settings = load_settings(config, [f"model.{name}={value}" for name, value in switches.items()])[0]
    counts = {"forward": 0, "backward": 0}
    for one, count in layer_ledger(settings).counts.items():
        if one.op == "all-reduce" and one.axes == "model" and not one.weight:
            counts[one.part] += count
    return counts


def _contender(measure: str, settings: Settings, prepared: Prepared, case: tuple[int, ...]) -> Callable[[], Any]:
    if measure == "step_time":
        return Trainer(settings, prepared).steps(1)
    return _update(settings) if measure == "update_time" else _decoding(settings, *case)


def _update(settings: Settings) -> Callable[[], Any]:
    """An update of all weights from given gradients: clipped, finite, without the passes that compute them."""
    palm = PaLM(settings.model, settings.train.seed)
    update = Update(make_optimizer(palm.trainable_params(), settings.optimizer, settings.train.steps), 1.0)
    rng = np.random.default_rng(0)
    gradients = mutable(
        tuple(Tensor(rng.standard_normal(p.shape).astype(np.float32)) for p in update.optimizer.parameters)
    )
    loss = Tensor(np.float32(1.0))
    return lambda: update(loss, gradients)[2].asnumpy()


def _decoding(settings: Settings, batch: int, context: int) -> Callable[[], Any]:
    """A token of every sequence of a batch, at the last position of a full cache."""
    decoder = Decoder(PaLM(settings.model, settings.train.seed), batch, context)
    decoder.read([[1] * (context - 1)] * batch)
    tokens, last = np.ones(batch, np.int64), np.full(batch, context - 1)
    return lambda: decoder.write(tokens, last)
