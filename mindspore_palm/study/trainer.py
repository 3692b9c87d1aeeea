"""One network of a study, compiled once, and trained again for every seed and learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, mutable, nn, ops

from mindspore_palm.config import Settings
from mindspore_palm.data import Batches, Prepared, prepare_text, validation_batches
from mindspore_palm.model.initial import initial_values
from mindspore_palm.model.loss import Loss, make_unembed_loss
from mindspore_palm.model.palm import PaLM
from mindspore_palm.model.weights import weights
from mindspore_palm.optim import make_optimizer
from mindspore_palm.optim.schedule import Schedule
from mindspore_palm.parallel.top_cell import TopCell
from mindspore_palm.train.evaluate import Evaluator
from mindspore_palm.train.step import TrainStep

POINTS = 50  # of a training curve that are kept
PARTS = 4  # buckets of positions in a trained length


@dataclass(frozen=True)
class Trained:
    """The result of a run."""

    loss: float
    """Held-out loss, nats/token."""
    bits_per_byte: float
    curve: list[list[float]]
    """(step, mean training cross-entropy since the last point) of up to ``POINTS`` points."""
    diverged: bool
    """Whether a step was skipped, a loss is not finite, or the held-out loss is above that of the first batch."""
    beyond: dict[str, list[float]] = field(default_factory=dict)
    """By multiple of the trained length: held-out loss by quarter of it; empty where the network cannot read it."""


class TunableSchedule(Schedule):
    """The schedule, with its peak in a Parameter instead of a constant: one compilation for all learning rates."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.optimizer, settings.train.steps)
        self.rate = Parameter(Tensor(np.float32(settings.optimizer.learning_rate)), name="rate", requires_grad=False)

    def peak_rate(self) -> Tensor:
        return self.rate


class AssignAll(nn.Cell):
    """Gives Parameters new values in a graph, as ``set_data`` cannot once they are compiled (MS-22)."""

    def __init__(self, parameters: list[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.parameters, self.assign = ParameterTuple(parameters), ops.Assign()

    def construct(self, values: tuple[Tensor, ...]) -> Tensor:
        assigned: tuple[Tensor, ...] = ()
        for i in range(len(self.parameters)):
            assigned += (self.assign(self.parameters[i], values[i]),)
        return assigned[0]


class LossByPosition(TopCell):
    """Cross-entropy of every token: int32 [B, S] twice to float32 [B, S]."""

    def __init__(self, palm: PaLM) -> None:
        super().__init__(auto_prefix=False)
        self.palm, self.unembed_loss, self.reshape = palm, make_unembed_loss(palm), ops.Reshape()

    def construct(self, inputs: Tensor, targets: Tensor) -> Tensor:
        loss_T = self.unembed_loss(*self.palm.stream(inputs), self.reshape(targets, (-1,)))[0]
        return self.reshape(loss_T, targets.shape)


class Trainer:
    """Trains one network, on the CPU, as ``run/train.py`` does, bit by bit.

    Args:
        settings: of the runs; seed and learning rate are those of each run.
        prepared: the text.
    """

    def __init__(self, settings: Settings, prepared: Prepared) -> None:
        self.settings, self.prepared = settings, prepared
        self.palm = PaLM(settings.model, settings.train.seed)
        optimizer = make_optimizer(self.palm.trainable_params(), settings.optimizer, settings.train.steps)
        optimizer.schedule = schedule = TunableSchedule(settings)
        loss, micro_batch = Loss(self.palm, settings.train.z_loss), settings.train.micro_batch
        self.step = TrainStep(loss, optimizer, settings.optimizer.clip_norm, micro_batch)
        self._weights = {weight.name: weight for weight in weights(settings.model)}
        self._state = [*self.step.state, schedule.rate]
        self._others = [p.asnumpy().copy() for p in self._state if p.name not in self._weights]  # moments and counts
        self._assign, self._losses = AssignAll(self._state), LossByPosition(self.palm)
        self._evaluator = Evaluator(self.palm, prepared.tokenizer.piece_bytes)

    def reset(self, seed: int, rate: float) -> None:
        """Puts the network, its optimizer and the learning rate where a run with this seed and rate starts."""
        others = iter(self._others)
        values = [
            initial_values(self._weights[p.name], seed) if p.name in self._weights else next(others)
            for p in self._state[:-1]
        ]
        self._assign(mutable(tuple(map(Tensor, [*values, np.float32(rate)]))))

    def run(self, seed: int, rate: float, beyond: tuple[int, ...] = ()) -> Trained:
        """Trains from the start to the end, and scores all held-out text.

        Args:
            seed: of the initial weights and of the order of the text, which is the same for every network.
            rate: peak learning rate.
            beyond: multiples of the trained length at which the loss by position is measured.
        """
        train, data = self.settings.train, self.settings.data
        self.reset(seed, rate)
        batches = Batches(self.prepared.train, data.seq_len, self.prepared.tokenizer.eod, train.batch_ramp(), seed)
        every, losses, curve, skipped, first = max(1, train.steps // POINTS), [], [], False, math.inf
        for step in range(train.steps):
            result = self.step(*batches.slice(step, 0, batches.batch_size(step)))
            first = result.cross_entropy if step == 0 else first
            losses.append(result.cross_entropy)
            skipped = skipped or result.skipped
            if len(losses) == every or step == train.steps - 1:
                curve.append([step + 1, sum(losses) / len(losses)])
                losses = []
        scores = self._evaluator(self._held_out(data.seq_len, train.batch_ramp()[-1][1]))
        loss = scores.nats_per_token
        diverged = skipped or not math.isfinite(loss) or loss > first
        return Trained(
            loss, scores.bits_per_byte, curve, diverged, {str(n): self._by_position(n) for n in (1, *beyond) if beyond}
        )

    def steps(self, count: int) -> Any:
        """A function that takes a step of a fixed batch, for measuring times."""
        self.reset(0, self.settings.optimizer.learning_rate)
        train, data = self.settings.train, self.settings.data
        batches = Batches(self.prepared.train, data.seq_len, self.prepared.tokenizer.eod, train.batch_ramp(), 0)
        inputs, targets = batches.slice(0, 0, batches.batch_size(0))
        return lambda: self.step(inputs, targets)

    def _by_position(self, times: int) -> list[float]:
        """Held-out loss by bucket of positions, in sequences of so many times the trained length."""
        length = times * self.settings.data.seq_len
        if self.settings.model.longest is not None and length > self.settings.model.longest:
            return []  # learned positions end there
        total, count = np.zeros(length), 0
        for inputs, targets in self._held_out(length, max(1, self.settings.train.batch_ramp()[-1][1] // times)):
            losses = self._losses(Tensor(inputs), Tensor(targets)).asnumpy().astype(np.float64)
            real = targets[:, 0] >= 0  # rows that only fill the last batch are not
            total, count = total + losses[real].sum(axis=0), count + int(real.sum())
        buckets = np.array_split(total / max(1, count), times * min(PARTS, self.settings.data.seq_len))
        return [float(bucket.mean()) for bucket in buckets]

    def _held_out(self, length: int, batch: int) -> Any:
        return validation_batches(self.prepared.validation, length, self.prepared.tokenizer.eod, batch)


def open_text(settings: Settings) -> Prepared:
    """The prepared text of a study.

    Raises:
        UserError, Interrupted, OSError: as ``prepare``.
    """
    return prepare_text(settings.data, settings.model.vocab_size)
