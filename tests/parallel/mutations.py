"""Planted errors of kinds that are easily made when a network is sharded: the suite must detect them all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from mindspore import nn

from mindspore_palm.optim import adafactor, norm
from mindspore_palm.parallel import context


class NoSumOverDevices(nn.Cell):
    """A missing reduction: a device uses its local sum."""

    def construct(self, x):
        return x


class NoSumOverShards(nn.Cell):
    """A root mean square over the local shard only."""

    def __init__(self, weights):
        super().__init__()

    def construct(self, x):
        return x


def mean_settings(layout):
    """Gradients are averaged over data shards, though the loss is a mean over the global batch already."""
    return {**SETTINGS(layout), "gradients_mean": True}


SETTINGS = context.parallel_settings
MUTATIONS = {
    "no reduction": (norm, "SumOverDevices", NoSumOverDevices),
    "mean for sum": (context, "parallel_settings", mean_settings),
    "local rms": (adafactor, "SumOverShards", NoSumOverShards),
}


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """Networks built in the ``with`` block have the error; an empty name plants none."""
    if not name:
        yield
        return
    with mock.patch.object(*MUTATIONS[name]):
        yield
