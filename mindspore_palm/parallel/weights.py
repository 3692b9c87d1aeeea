"""Weights as MindSpore Parameters: whole on one device, this device's slice on several; and what lies as they do."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor
from mindspore.common.initializer import Initializer, initializer
from mindspore.nn.utils import no_init_parameters

from mindspore_palm.parallel.axes import Axes, current_layout
from mindspore_palm.parallel.context import this_rank
from mindspore_palm.parallel.placement import Placement, Window

UNCUT = "embed"  # a logical axis that no table cuts
_later = False


@contextlib.contextmanager
def deferred_init() -> Iterator[None]:
    """Weights that are made in a ``with`` block take no memory yet.

    MindSpore draws their initial values when their network is first called, or by ``network.init_parameters_data()``;
    values that are set before then are never drawn.
    """
    global _later
    before, _later = _later, True
    try:
        yield
    finally:
        _later = before


class _Slice(Initializer):
    """Fills a device's slice of a weight when MindSpore asks for it, and never holds the whole."""

    def __init__(self, draw: Callable[[Window], np.ndarray], window: Window) -> None:
        super().__init__()
        self._draw, self._window = draw, window

    def _initialize(self, arr: np.ndarray) -> None:
        arr[...] = self._draw(self._window)  # of another shape, this is an error: the compiler cut differently


def make_weight(
    name: str,
    shape: tuple[int, ...],
    axes: Axes,
    draw: Callable[[Window | None], np.ndarray],
    fully_sharded: bool = True,
) -> Parameter:
    """A weight for the current layout: whole on one device, on several only this device's slice of it.

    Args:
        name: of the weight.
        shape: of the whole weight.
        axes: logical axis of each dimension.
        draw: gives the initial values of a window of it, or of all of it for None.
        fully_sharded: whether the first dimension may be cut over data.
    """
    placement = Placement(name, shape, axes, current_layout(), fully_sharded)
    if placement.layout.devices == 1 and not _later:
        weight = Parameter(Tensor(draw(None)), name=name, parallel_optimizer=fully_sharded)
    else:
        values = initializer(_Slice(draw, placement.window(this_rank())), shape, ms.float32)
        with no_init_parameters():  # MS-51: drawn at the first compilation, when MindSpore knows the slice as well
            weight = Parameter(values, name=name, parallel_optimizer=fully_sharded)
    weight.placement = placement
    return weight


def zeros_like(weights: Sequence[Parameter], prefix: str) -> ParameterTuple:
    """For each weight, zeros that lie on the devices as it does, named ``prefix.`` and its name."""
    later = current_layout().devices > 1 or any(weight.has_init for weight in weights)
    with no_init_parameters() if later else contextlib.nullcontext():
        zeros = ParameterTuple(weights).clone(prefix=prefix, init="zeros")
    for weight, zero in zip(weights, zeros, strict=True):
        zero.placement = dataclasses.replace(placement_of(weight), name=zero.name)
    return zeros


def placement_of(weight: Parameter) -> Placement:
    """Where a weight lies, or what lies as one does; anything else is whole on every device."""
    if hasattr(weight, "placement"):
        return weight.placement
    return Placement(weight.name, tuple(weight.shape), (UNCUT,) * weight.ndim, current_layout(), fully_sharded=False)


def local_shard(weight: Parameter) -> np.ndarray:
    """A copy of what this device holds of a weight, which later steps do not change.

    Raises:
        RuntimeError: MindSpore has cut it otherwise than its placement says; nobody could put it together again.
    """
    values, wanted = np.array(weight.asnumpy()), placement_of(weight).shard_shape
    if values.shape != wanted:
        raise RuntimeError(f"{weight.name} is {list(values.shape)} on this device; its placement says {list(wanted)}")
    return values


def set_shard(weight: Parameter, read: Callable[[Window], np.ndarray]) -> None:
    """Gives a weight new values: ``read`` is asked for this device's window alone.

    Before the first compilation, which is when slices are made, it is asked later.
    """
    placement = placement_of(weight)
    window = placement.window(this_rank())
    if weight.has_init:
        weight.set_data(initializer(_Slice(read, window), placement.shape, weight.dtype))
    else:
        weight.set_data(Tensor(read(window)))
