"""Planted errors of kinds that are easily made when a network is sharded: the suite must detect them all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import numpy as np
from mindspore import nn, ops

from mindspore_palm.model import initial, palm
from mindspore_palm.optim import adafactor, norm
from mindspore_palm.parallel import context
from mindspore_palm.parallel.axes import shard
from mindspore_palm.parallel.sums import SumAlongSides
from mindspore_palm.train import build, unrolled


class NoSumOverDevices(nn.Cell):
    """A missing reduction: a device uses its local sum."""

    several = True

    def construct(self, x):
        return x


class NoSumOverShards(nn.Cell):
    """A root mean square over the local shard only."""

    def __init__(self, weights):
        super().__init__()

    def construct(self, x):
        return x


class LocalMeans(SumAlongSides):
    """Row and column means of the local shard only."""

    def __init__(self, matrices):
        super().__init__(matrices)
        self.over_stage = NoSumOverDevices()


def weight_in_one_part(placement, draw):
    """Keys and values as one range of columns: some devices hold keys alone, and others values."""
    return MAKE_WEIGHT(replace(placement, parts=1), draw)


def mean_settings(layout):
    """Gradients are averaged over data shards, though the loss is a mean over the global batch already."""
    return {**SETTINGS(layout), "gradients_mean": True}


class LosesMicroBatch(unrolled.UnrolledStep):
    """The last micro-batch of each step is not computed."""

    def __call__(self, inputs, targets, tokens):
        return super().__call__(inputs[: -self.micro_batch], targets[: -self.micro_batch], tokens)


class RepeatsMicroBatch(unrolled.UnrolledStep):
    """The last micro-batch of each step is computed twice."""

    def __call__(self, inputs, targets, tokens):
        twice = [np.concatenate([part, part[-self.micro_batch :]]) for part in (inputs, targets)]
        return super().__call__(*twice, tokens)


class UnembedWithoutGradient(palm.Unembed):
    """Of the gradient of the table from the logits, a thousandth is left: MindSpore does not compile without any."""

    def __init__(self, config, norm_scale):
        super().__init__(config, norm_scale)
        table = ("vocab", "embed")
        self.part, self.both = shard(ops.Mul(), table, ()), shard(ops.Add(), table, table)

    def construct(self, x, table_VD):
        kept, lost = self.part(table_VD, 2.0**-10), ops.stop_gradient(self.part(table_VD, 1.0 - 2.0**-10))
        return super().construct(x, self.both(kept, lost))


SETTINGS, MAKE_WEIGHT = context.parallel_settings, initial.make_weight
MUTATIONS = {
    "no reduction": (norm, "SumOverDevices", NoSumOverDevices),
    "mean for sum": (context, "parallel_settings", mean_settings),
    "local rms": (adafactor, "SumOverShards", NoSumOverShards),
    "micro-batch lost": (build, "UnrolledStep", LosesMicroBatch),
    "micro-batch twice": (build, "UnrolledStep", RepeatsMicroBatch),
    "no gradient from the logits": (palm, "Unembed", UnembedWithoutGradient),
    "local means": (adafactor, "SumAlongSides", LocalMeans),
    "values with other heads": (initial, "make_weight", weight_in_one_part),
}


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """Networks built in the ``with`` block have the error; an empty name plants none."""
    if not name:
        yield
        return
    with mock.patch.object(*MUTATIONS[name]):
        yield
