"""One worker: trains the cases of a list one after the other, and saves this device's results of each.

Started by msrun, or alone for cases of one device: ``worker.py FOLDER`` reads FOLDER/cases.json and writes, for each
case, FOLDER/CASE/RANK.npz.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops
from parallel.cases import BATCH, MODEL, NETWORKS, OPTIMIZER_SETTINGS, SEED, STEPS, Case, batches, norm_scale
from parallel.mutations import planted

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.config import OptimizerConfig, ParallelConfig, Settings, TrainConfig
from mindspore_palm.model.loss import Loss
from mindspore_palm.parallel.axes import layout
from mindspore_palm.parallel.check import layout_of
from mindspore_palm.parallel.context import join_workers, open_device, partition
from mindspore_palm.train.build import build_step
from mindspore_palm.train.step import BATCH_AXES, Objective
from mindspore_palm.train.unrolled import UnrolledStep


class Gradients(nn.Cell):
    """The gradients of a batch, as shards."""

    def __init__(self, loss: Loss, parameters: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.objective = Objective(loss)
        self.gradients = ops.value_and_grad(self.objective, None, parameters, has_aux=True)

    def construct(self, inputs: Tensor, targets: Tensor, count: Tensor) -> tuple[Tensor, ...]:
        return self.gradients(inputs, targets, count)[1]


def settings_of(case: Case) -> Settings:
    """The settings of a case, as users write them."""
    pods, data, model = case.mesh
    return Settings(
        model=PaLMConfig(**{**MODEL, **NETWORKS[case.network]}),
        optimizer=OptimizerConfig(**OPTIMIZER_SETTINGS[case.optimizer]),
        train=TrainConfig(
            steps=STEPS,
            batch_size=BATCH,
            micro_batch=BATCH // case.micro_batches if case.micro_batches > 1 else 0,
            seed=SEED,
            device="CPU",
        ),
        parallel=ParallelConfig(
            stages=case.stages,
            interleave=case.interleave,
            schedule=case.schedule,
            pods=pods,
            data=data,
            model=model,
            strategy=case.table,
            shard_weights=case.shard_weights,
            recompute=case.recompute,
            reduce_gradients=case.reduce,
        ),
    )


def first_gradients(
    palm: PaLM, step: object, batch: tuple[np.ndarray, np.ndarray], count: int
) -> dict[str, np.ndarray]:
    """Shards of the initial weights and of their gradients."""
    if isinstance(step, UnrolledStep):
        weights, sums = step.gradients(*map(Tensor, batch))
        gradients = [Tensor(total.asnumpy() / np.float32(count)) for total in sums]
    else:
        weights = palm.trainable_params()
        cell = partition(Gradients(Loss(palm), ParameterTuple(weights)).set_train(), *BATCH_AXES)
        gradients = cell(*map(Tensor, batch), Tensor(np.float32(count)))
    seen = {f"gradient/{w.name}": g.asnumpy().copy() for w, g in zip(weights, gradients, strict=True)}
    return seen | {f"initial/{w.name}": w.asnumpy().copy() for w in weights}  # drawn by now


def train(case: Case, rank: int) -> dict[str, np.ndarray]:
    """All results of a case on one device."""
    settings = settings_of(case)
    with layout(layout_of(settings)) as here, planted(case.mutation):
        palm, step = build_step(settings)
        weights = [weight for weight in palm.trainable_params() if weight.placement.holds(rank)]
        for weight in palm.trainable_params():
            if weight.name.endswith("norm.scale"):
                weight.set_data(Tensor(norm_scale(weight.name)))
        inputs, targets = batches(case.length)
        tokens = [int((batch >= 0).sum()) for batch in targets]
        rows = here.rows(rank, BATCH)
        inputs, targets = inputs[:, rows], targets[:, rows]
        seen = first_gradients(palm, step, (inputs[0], targets[0]), tokens[0]) if case.gradients else {}
        curve = []
        for batch in zip(inputs, targets, tokens, strict=True):
            result = step(*batch)
            assert not result.skipped
            curve.append((result.loss, result.cross_entropy, result.gradient_norm))
        seen["curve"] = np.array(curve).T
        for weight in weights:
            windows = [[slice(0, size) for size in weight.shape]]
            if case.devices > 1:
                windows = weight.placement.windows(rank)
                assert weight.shape == weight.placement.shard_shape, f"{weight.name}: the compiler sharded differently"
            seen[f"window/{weight.name}"] = np.array([[(s.start, s.stop) for s in window] for window in windows])
            seen[f"final/{weight.name}"] = weight.asnumpy().copy()
    return seen


def main(folder: Path) -> None:
    group = folder / f"group_{os.getpgid(0)}"  # to kill it by: each of msrun's workers leads its own process group
    group.touch()
    cases = [Case(**{**case, "mesh": tuple(case["mesh"])}) for case in json.loads((folder / "cases.json").read_text())]
    open_device("CPU")
    rank = join_workers(cases[0].devices, "CPU")
    for case in cases:
        start = time.monotonic()
        seen = train(case, rank)
        (folder / case.name).mkdir(exist_ok=True)
        np.savez(folder / case.name / f"{rank}.npz", **seen)
        print(f"{case.name}: {time.monotonic() - start:.1f} s", dataclasses.asdict(case), flush=True)
    (folder / f"done_{rank}").touch()
    group.unlink(missing_ok=True)  # its number may soon be another group's


if __name__ == "__main__":
    main(Path(sys.argv[1]))
