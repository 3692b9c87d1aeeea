"""Whole weights out of the slices that workers hold."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from mindspore_palm.data.atomic import write_atomically
from mindspore_palm.model.palm import PaLM
from mindspore_palm.parallel.agree import Agreement
from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.context import this_rank
from mindspore_palm.parallel.weights import placement_of


def whole_weights(palm: PaLM, folder: Path, agreement: Agreement) -> dict[str, np.ndarray]:
    """Name to whole array on rank 0, and nothing on the others, which must all call this.

    Slices travel through files in ``folder``, which all workers see and which is gone afterwards: a weight need not fit
    any one device, and each slice is written once, by the first of the ranks that hold it.

    Raises:
        OSError: a slice could not be written or read.
    """
    weights = palm.trainable_params()
    if current_layout().devices == 1:
        return weights_of(palm)
    rank, devices = this_rank(), current_layout().devices
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    agreement()
    own = {p.name: p.asnumpy() for p in weights if placement_of(p).is_first(rank)}
    with write_atomically(folder / _file(rank)) as file:
        file.write(save(own))
    agreement()
    if rank != 0:
        agreement()
        return {}
    whole = {p.name: np.empty(placement_of(p).shape, np.float32) for p in weights}
    placements = {p.name: placement_of(p) for p in weights}
    for other in range(devices):
        for name, part in load_file(folder / _file(other)).items():
            whole[name][placements[name].window(other)] = part
    shutil.rmtree(folder)
    agreement()
    return whole


def weights_of(palm: PaLM) -> dict[str, np.ndarray]:
    """Name to array of what this process holds of every weight."""
    return {p.name: p.asnumpy() for p in palm.trainable_params()}


def _file(rank: int) -> str:
    return f"rank_{rank}.safetensors"
