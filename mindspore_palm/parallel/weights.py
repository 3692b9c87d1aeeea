"""Weights as MindSpore Parameters: full on one device, this device's shard on several; and tensors that match them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor
from mindspore.common.initializer import Initializer, initializer
from mindspore.nn.utils import no_init_parameters

from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.context import this_rank
from mindspore_palm.parallel.placement import Placement, Window

REPLICATED = "embed"  # a logical axis that no table shards
_deferred = False


@contextlib.contextmanager
def deferred_init() -> Iterator[None]:
    """Weights that are made in a ``with`` block take no memory yet.

    MindSpore draws their initial values when their network is first called, or in ``network.init_parameters_data()``.
    Values that are set before that are never drawn.
    """
    global _deferred
    before, _deferred = _deferred, True
    try:
        yield
    finally:
        _deferred = before


class _Shard(Initializer):
    """Fills a device's shard of a weight when MindSpore asks for it, and never holds the full weight."""

    def __init__(self, draw: Callable[[Window], np.ndarray], placement: Placement) -> None:
        super().__init__()
        self._draw, self._placement = draw, placement

    def _initialize(self, arr: np.ndarray) -> None:
        # another shape is an error: the compiler has sharded it differently
        arr[...] = read_shard(self._draw, self._placement)


def make_weight(placement: Placement, draw: Callable[[Window | None], np.ndarray]) -> Parameter:
    """A weight as a Parameter: full on one device; on several, this device's shard only.

    The weight of another stage takes no memory: MindSpore does not draw what no graph of this device reads.

    Args:
        placement: the weight's, in the current layout.
        draw: returns the initial values of a window of the weight, or of all of it for None.
    """
    name, fully_sharded = placement.name, placement.fully_sharded
    if placement.layout.devices == 1 and not _deferred:
        weight = Parameter(Tensor(draw(None)), name=name, parallel_optimizer=fully_sharded)
    else:
        values = initializer(_Shard(draw, placement), placement.shape, ms.float32)
        with no_init_parameters():  # MS-51: drawn at the first compilation, when MindSpore knows the shard as well
            weight = Parameter(values, name=name, parallel_optimizer=fully_sharded)
    weight.placement = placement
    return weight


def zeros_like(weights: Sequence[Parameter], prefix: str) -> ParameterTuple:
    """Zeros that are sharded as the weights are, each named ``prefix.`` and the weight's name."""
    deferred = current_layout().devices > 1 or any(weight.has_init for weight in weights)
    with no_init_parameters() if deferred else contextlib.nullcontext():
        zeros = ParameterTuple(weights).clone(prefix=prefix, init="zeros")
    for weight, zero in zip(weights, zeros, strict=True):
        zero.placement = dataclasses.replace(placement_of(weight), name=zero.name)
    return zeros


def zeros_beside(weight: Parameter, prefix: str, shape: tuple[int, ...]) -> Parameter:
    """Zeros of another shape than the weight's, named as above: replicated, on the devices of the weight's stage."""
    zero = Parameter(Tensor(np.zeros(shape, np.float32)), name=f"{prefix}.{weight.name}")
    zero.placement = dataclasses.replace(placement_of(zero), stage=placement_of(weight).stage)
    return zero


def placement_of(weight: Parameter) -> Placement:
    """The placement of a weight, or of a tensor sharded like one.

    Anything else is replicated on all devices, and the first stage saves it.
    """
    if hasattr(weight, "placement"):
        return weight.placement
    return Placement(
        weight.name, tuple(weight.shape), (REPLICATED,) * weight.ndim, current_layout(), fully_sharded=False
    )


def local_shard(weight: Parameter) -> np.ndarray:
    """A copy of this device's shard of a weight, which later steps do not change.

    Raises:
        RuntimeError: MindSpore has sharded it differently from its placement, so that it could not be reassembled.
    """
    values, expected = np.array(weight.asnumpy()), placement_of(weight).shard_shape
    if values.shape != expected:
        raise RuntimeError(f"{weight.name} is {list(values.shape)} on this device; its placement says {list(expected)}")
    return values


def read_shard(read: Callable[[Window], np.ndarray], placement: Placement) -> np.ndarray:
    """The shard that this device holds of a weight; ``read`` is called with its windows, one for each part."""
    shards = [read(window) for window in placement.windows(this_rank())]
    return shards[0] if len(shards) == 1 else np.concatenate(shards, axis=-1)


def set_shard(weight: Parameter, read: Callable[[Window], np.ndarray]) -> None:
    """Gives a weight new values. ``read`` is called with this device's windows only.

    Shards are made at the first compilation; before it, ``read`` is called then.
    """
    placement = placement_of(weight)
    if weight.has_init:
        weight.set_data(initializer(_Shard(read, placement), placement.shape, weight.dtype))
    else:
        weight.set_data(Tensor(read_shard(read, placement)))
