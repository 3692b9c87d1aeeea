"""The schedule of a study: runs and measurements in a fixed order, each with a key of all that decides its result."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mindspore_palm.config import Settings
from mindspore_palm.study.file import LOSSES, TIMES, Study

RUN_FORMAT = 1  # of a result; raise it when its meaning changes
SECTIONS = ("model", "optimizer", "data", "train")
NOT_OF_A_RUN = {"data": {"prepared"}, "train": {"output", "checkpoint_every", "eval_every"}}


@dataclass(frozen=True)
class Task:
    """One thing to do; finished once its result is on disk."""

    kind: Literal["train", "turns", "ledger"]
    role: str
    """Tuning, comparison or the measure of times."""
    size: str
    variants: tuple[str, ...]
    """The network that is trained, or the contenders of a measurement, the base first."""
    settings: tuple[Settings, ...]
    """Of each variant."""
    extras: tuple[Any, ...] = ()
    """All else that decides the result: multiples of the length, rounds and steps, batch and context."""

    @property
    def variant(self) -> str:
        """The network that is trained."""
        return self.variants[0]

    @property
    def network(self) -> str:
        """Name of the network: its runs differ in seed and learning rate alone, and share a compilation."""
        return f"{self.variant} {self.size}"

    @property
    def seed(self) -> int:
        """Of a run."""
        return self.settings[0].train.seed

    @property
    def rate(self) -> float:
        """Peak learning rate of a run."""
        return self.settings[0].optimizer.learning_rate

    @property
    def key(self) -> str:
        """Hash of everything that decides the result, and nothing else: names are no part of it."""
        settings = [
            {name: getattr(one, name).model_dump(mode="json", exclude=NOT_OF_A_RUN.get(name)) for name in SECTIONS}
            for one in self.settings
        ]
        what = [RUN_FORMAT, self.kind, "" if self.kind == "train" else self.role, settings, list(self.extras)]
        return hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=10).hexdigest()

    @property
    def name(self) -> str:
        """Of its file, without the key."""
        if self.kind == "train":
            return re.sub(r"[^\w.-]+", "_", f"{self.variant}-{self.size}-seed{self.seed}-lr{self.rate:g}")
        text = "-".join([self.role, self.size or "mesh", *map(str, self.extras[:2])])
        return re.sub(r"[^\w.-]+", "_", text)  # an extra may be a path

    def describe(self) -> str:
        """A line of progress."""
        if self.kind == "train":
            return f"{self.role}: {self.variant}, {self.size}, seed {self.seed}, rate {self.rate:g}"
        return f"{self.role} of {', '.join(self.variants)}{f', {self.size}' if self.size else ''}"


def tuning(study: Study) -> Iterator[Task]:
    """Runs that choose a learning rate: every variant, alike, at each size of ``rates.sizes`` that it needs.

    Rates and seeds of one network follow each other: they share its compilation. A grid of one rate leaves nothing to
    choose, so there are no such runs.
    """
    if len(study.rates.grid) == 1:
        return
    for size in study.sizes:
        for variant in _trained(study):
            if size not in {tuning_size(study, variant, one) for one in trained_sizes(study, variant)}:
                continue
            for seed in study.rates.seeds:
                for rate in study.rates.grid:
                    yield _train(study, "tuning", variant, size, rate, seed)


def comparing(study: Study, chosen: Mapping[tuple[str, str], float]) -> Iterator[Task]:
    """Runs that are compared: the variants in turns, the first of each turn changing with the seed.

    Args:
        study: the study.
        chosen: the learning rate of (variant, tuning size); where there is none, that of a grid of one.
    """
    for size in study.sizes:
        here = [variant for variant in _trained(study) if size in trained_sizes(study, variant)]
        for turn, seed in enumerate(study.seeds):
            for i in range(len(here)):
                variant = here[(i + turn) % len(here)]
                rate = chosen.get((variant, tuning_size(study, variant, size)), study.rates.grid[0])
                yield _train(study, "comparison", variant, size, rate, seed)


def measuring(study: Study) -> Iterator[Task]:
    """Measurements: of times, with all contenders of a size in turns, and of collectives."""
    for measure in TIMES:
        for size in study.sizes:
            ours = [c for c in study.comparisons if c.measure == measure and size in c.sizes]
            cases: list[tuple[int, ...]] = [*sorted({pair for c in ours for pair in c.decode})] or [()]
            for case in cases if ours else ():
                variants = tuple(dict.fromkeys([study.base, *(c.variant for c in ours)]))
                settings = tuple(study.settings_of(variant, size) for variant in variants)
                yield Task("turns", measure, size, variants, settings, (*case, study.times.rounds, study.times.steps))
    for one in study.comparisons:
        if one.measure == "all_reduces":
            settings = tuple(study.settings_of(v, next(iter(study.sizes))) for v in (study.base, one.variant))
            yield Task("ledger", one.measure, "", (study.base, one.variant), settings, tuple(one.configs))


def trained_sizes(study: Study, variant: str) -> list[str]:
    """Sizes at which a variant is trained."""
    losses = [one for one in study.comparisons if one.measure in LOSSES]
    used = {size for one in losses if variant in (one.variant, study.base) for size in one.sizes}
    if variant == study.base and study.fit:
        used |= set(study.fit.sizes)
    return [size for size in study.sizes if size in used]


def tuning_size(study: Study, variant: str, size: str) -> str:
    """The size of ``rates.sizes`` at which the learning rate of a variant at a size is tuned: the nearest by FLOPs."""
    if size in study.rates.sizes:
        return size

    def flops(name: str) -> int:
        settings = study.settings_of(study.base, name)
        return settings.model.flops_per_token(settings.data.seq_len)

    return min(study.rates.sizes, key=lambda name: abs(flops(name) / flops(size) - 1))


def describe_counts(study: Study) -> str:
    """How many runs and measurements a study has."""
    tuned, measured = len(list(tuning(study))), len(list(measuring(study)))
    compared = sum(len(trained_sizes(study, variant)) for variant in study.variants) * len(study.seeds)
    return f"{tuned} runs to tune learning rates, {compared} runs to compare, {measured} measurements"


def _trained(study: Study) -> list[str]:
    return [variant for variant in study.variants if trained_sizes(study, variant)]


def _train(study: Study, role: str, variant: str, size: str, rate: float, seed: int) -> Task:
    settings = study.settings_of(variant, size, rate, seed)
    beyond = study.beyond if role == "comparison" and _reads_beyond(study, variant, size) else ()
    return Task("train", role, size, (variant,), (settings,), tuple(beyond))


def _reads_beyond(study: Study, variant: str, size: str) -> bool:
    """Whether a comparison asks for a network's loss beyond the trained length, which costs passes over the text."""
    asked = [one for one in study.comparisons if one.measure == "loss_beyond" and size in one.sizes]
    return any(variant in (one.variant, study.base) for one in asked)
