"""Planted errors, each of a kind that is easily made when a network is cut: the suite must see them all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from mindspore import nn

from mindspore_palm.optim import adafactor, norm
from mindspore_palm.parallel import context


class NoSumOverDevices(nn.Cell):
    """A reduction is missing: a device takes its own part for all."""

    def construct(self, x):
        return x


class NoSumOverShards(nn.Cell):
    """A root mean square is that of the slice."""

    def __init__(self, weights):
        super().__init__()

    def construct(self, x):
        return x


def mean_settings(layout):
    """Gradients are averaged over data shards, though the loss is a mean over the whole batch already."""
    return {**SETTINGS(layout), "gradients_mean": True}


SETTINGS = context.parallel_settings
MUTATIONS = {
    "no reduction": (norm, "SumOverDevices", NoSumOverDevices),
    "mean for sum": (context, "parallel_settings", mean_settings),
    "local rms": (adafactor, "SumOverShards", NoSumOverShards),
}


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """Networks that are built in the ``with`` block have the error; an empty name plants none."""
    if not name:
        yield
        return
    with mock.patch.object(*MUTATIONS[name]):
        yield
