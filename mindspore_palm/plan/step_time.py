"""A cost model of a training step: each part is a formula of a few lines, and each constant comes from the machine.

A step is the sum of matmuls, memory traffic, collectives over model, over data and between pods, and the optimizer.
Nothing overlaps unless ``overlap`` gives the share of the data axis' collectives that is hidden behind matmuls.
"""

from __future__ import annotations

from dataclasses import dataclass

from mindspore_palm.cost.workload import FLOAT, HALF, Matmul, Workload, gathered_size
from mindspore_palm.parallel.mesh import POD
from mindspore_palm.plan.links import all_gather, all_reduce, reduce_scatter
from mindspore_palm.plan.machines import GB, Machine

PARTS = ("matmuls", "memory traffic", "model axis", "data axis", "between pods", "pipeline", "optimizer")


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, by part."""

    parts: dict[str, float]
    model_flops: float
    """FLOPs of the step over all devices, as MFU counts them."""
    hardware_flops: float
    """The same with what is recomputed, as HFU counts them."""
    peak: float
    """Peak FLOP/s over all devices."""

    @property
    def seconds(self) -> float:
        """Duration of the step."""
        return sum(self.parts.values())

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation."""
        return self.model_flops / self.seconds / self.peak

    @property
    def hfu(self) -> float:
        """Hardware FLOPs utilisation."""
        return self.hardware_flops / self.seconds / self.peak


def step_time(work: Workload, machine: Machine, overlap: float = 0.0) -> StepTime:
    """Predicts the time of a step.

    Args:
        work: the step and its layout.
        machine: devices and links.
        overlap: share of the data axis' collectives that is hidden behind matmuls, 0 to 1.
    """
    stage = _Stage(work, machine)
    micro_batches, stages, weights = work.micro_batches, work.pipeline, stage.over_data()
    parts = {
        "matmuls": micro_batches * stage.matmuls(),
        "memory traffic": micro_batches * stage.traffic(),
        "model axis": micro_batches * stage.over_model(),
        "data axis": sum(seconds for axis, seconds in weights.items() if axis != POD),
        "between pods": weights.get(POD, 0.0),
        "pipeline": 0.0,
        "optimizer": machine.stream_seconds(work.optimizer_traffic),
    }
    hidden = min(overlap * parts["data axis"], parts["matmuls"])
    parts["data axis"] -= hidden
    if stages > 1:
        one = (parts["matmuls"] + parts["memory traffic"] + parts["model axis"]) / micro_batches
        parts["pipeline"] = (stages - 1) * one / work.chunks + stage.between_stages()
    model, tokens = work.model, work.tokens_per_step
    return StepTime(
        parts,
        tokens * model.flops_per_token(work.length),
        tokens * model.hardware_flops_per_token(work.length, work.recompute),
        work.devices * machine.peak,
    )


class _Stage:
    """A device of the slowest stage, the one with the logits."""

    def __init__(self, work: Workload, machine: Machine) -> None:
        self.work, self.machine, self.layout = work, machine, work.layout

    def matmuls(self) -> float:
        """Matmuls of a micro-batch: forward, backward and recomputed."""
        work = self.work
        block = [m for matmul in work.block_matmuls() for m in (matmul, *matmul.backward())] + work.recomputed()
        logits = work.logits_matmul()
        return work.layers * sum(map(self._seconds, block)) + sum(map(self._seconds, (logits, *logits.backward())))

    def _seconds(self, matmul: Matmul) -> float:
        if not matmul.weight and self.machine.fused_attention:  # scores stay on chip: limited by arithmetic alone
            return matmul.flops / (self.machine.peak * self.machine.matmul_efficiency)
        return self.machine.matmul_seconds(matmul.m, matmul.k, matmul.n, matmul.count)

    def traffic(self) -> float:
        """Memory traffic of a micro-batch outside of matmuls. The backward pass of an op moves twice the bytes."""
        work, fused = self.work, self.machine.fused_attention
        again = {"none": 0, "attention": 0, "block": 1}[work.recompute]
        block = (3 + again) * work.block_traffic(fused)
        if work.recompute == "attention" and not fused:
            block += work.block_traffic(False) - work.block_traffic(True)
        return self.machine.stream_seconds(work.layers * block + work.loss_traffic())

    def over_model(self) -> float:
        """All-reduces of activations over the axes that shard heads, in a micro-batch.

        Each all-reduce of the forward pass has one in the backward pass. Recomputation starts from an input that was
        saved sharded over model, and gathers it: half an all-reduce. Serial blocks recompute one all-reduce as well.
        Once per network, the embedding lookup and the gradient of the logits matmul are all-reduced in float32.
        """
        work = self.work
        count = 2.0 * work.all_reduces
        if work.recompute == "block":
            count += 0.5 + (work.all_reduces - 1)
        size = (work.layers * count + 2 * FLOAT / HALF) * work.activation_bytes
        return sum(all_reduce(self.machine, self.layout, self.layout.mesh_axes("heads"), size).values())

    def over_data(self) -> dict[str, float]:
        """All-gathers of weights and reductions of gradients in a step: seconds along each axis.

        Fully sharded weights are all-gathered for the forward pass of each micro-batch, and again for its backward pass
        if blocks are recomputed. Their gradients are reduce-scattered, and the shards all-reduced over the axes that
        are left, between pods. The gradient of a weight that is not fully sharded is all-reduced over all axes.
        """
        work, machine, layout = self.work, self.machine, self.layout
        everywhere = layout.mesh_axes("tokens")
        inside = [axis for axis in everywhere if axis != POD or layout.shard_weights == "all"]
        outside = [axis for axis in everywhere if axis not in inside]
        seconds = dict.fromkeys(everywhere, 0.0)
        gathers = work.micro_batches * (2 if work.recompute == "block" else 1)
        for weight, count in work.device_weights():
            collectives: tuple[tuple[dict[str, float], int], ...]
            elements = count * gathered_size(weight)
            size = machine.gradient_bytes * elements
            if weight.data_shards > 1:
                item = FLOAT if weight.name == "embedding" else HALF
                gathered = all_gather(machine, layout, inside, item * elements)
                scattered = reduce_scatter(machine, layout, inside, size)
                summed = all_reduce(machine, layout, outside, size / weight.data_shards)
                collectives = ((gathered, gathers), (scattered, work.micro_batches), (summed, work.gradient_reductions))
            else:
                collectives = ((all_reduce(machine, layout, everywhere, size), work.gradient_reductions),)
            for along, times in collectives:
                for axis, one in along.items():
                    seconds[axis] += times * one
        return seconds

    def between_stages(self) -> float:
        """Sends of activations and their gradients between pipeline stages.

        Every model rank sends a full copy. With several chunks per stage, which send more often, each sends its shard.
        """
        sends, copies = self.work.micro_batches + self.work.pipeline - 1, 1.0
        if self.work.chunks > 1:
            copies = self.work.chunks / self.layout.shards("heads")
        return 2 * sends * copies * self.work.activation_bytes / (self.machine.network_gb_s * GB)
