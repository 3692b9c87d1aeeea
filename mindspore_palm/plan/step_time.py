"""A cost model of a training step: each part is a formula of a few lines, and each constant comes from the machine.

A step is the sum of matmuls, memory traffic, collectives over model, over data and between pods, and the optimizer.
With a pipeline, its schedule is played with the times of its stages (``plan/timeline.py``), and what that takes beyond
the work of the busiest device is the part "pipeline". Nothing overlaps unless ``overlap`` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from mindspore_palm.cost.workload import FLOAT, Matmul, Workload, gathered_size
from mindspore_palm.parallel.mesh import POD
from mindspore_palm.plan.links import all_gather, all_reduce, reduce_scatter, send_bandwidth, without_stages
from mindspore_palm.plan.machines import Machine
from mindspore_palm.plan.timeline import StageTimes, pipeline_seconds, played

PARTS = ("matmuls", "memory traffic", "model axis", "data axis", "between pods", "pipeline", "optimizer")
PER_MICRO_BATCH = PARTS[:3]
NOTHING = StageTimes(0.0, 0.0, 0.0)


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


@dataclass(frozen=True)
class Overlap:
    """Shares of collectives that matmuls hide, 0 to 1, as far as these last."""

    data: float = 0.0
    """Of the data axis. If each weight has one collective per step, the matmuls of one micro-batch can hide it."""
    model: float = 0.0
    """Of the model axis."""
    sends: bool = False
    """Whether stages send while they compute."""


def step_time(work: Workload, machine: Machine, overlap: float | Overlap = 0.0, send: float | None = None) -> StepTime:
    """Predicts the time of a step.

    Args:
        work: the step and its layout.
        machine: devices and links.
        overlap: what is hidden; a number is the share of the data axis.
        send: bytes per second from a device to that of the next stage, if stages are in several pods.

    Raises:
        UserError: the pipeline's schedule cannot have so many micro-batches.
    """
    hidden = overlap if isinstance(overlap, Overlap) else Overlap(data=overlap)
    costs = StageCosts.of(work, machine, hidden, send)
    parts = costs.busiest_parts()
    parts.update(costs.per_step(parts["matmuls"]))
    parts["pipeline"] = costs.pipeline(sum(parts[name] for name in PER_MICRO_BATCH)) if work.pipeline > 1 else 0.0
    model, tokens = work.model, work.tokens_per_step
    return StepTime(
        {name: parts[name] for name in PARTS},
        tokens * model.flops_per_token(work.length),
        tokens * model.hardware_flops_per_token(work.length, work.recompute),
        work.devices * machine.peak,
    )


class StageCosts:
    """Costs of the stages of a step; without a pipeline, of the only one."""

    def __init__(self, work: Workload, machine: Machine, send: float, overlap: Overlap) -> None:
        self.work, self.machine, self.layout, self.overlap = work, machine, work.layout, overlap
        self.send_bandwidth = send

    @classmethod
    def of(
        cls,
        work: Workload,
        machine: Machine,
        overlap: Overlap,
        send: float | None = None,
        like: StageCosts | None = None,
    ) -> StageCosts:
        """The costs of a step on a machine.

        Args:
            work: the step.
            machine: devices and links.
            overlap: what is hidden.
            send: as in ``step_time``.
            like: costs of a step that differs in how layers are cut into stages alone; not computed again.
        """
        inside = machine if send else without_stages(machine, work.pipeline)
        costs = cls(work, inside, send or send_bandwidth(machine), overlap)
        if like:
            costs.layer, costs.first, costs.last = like.layer, like.first, like.last
        return costs

    @cached_property
    def layer(self) -> dict[str, StageTimes]:
        """Seconds of a layer for one micro-batch, by part."""
        return self._hide(
            {"matmuls": self.matmuls(), "memory traffic": self.traffic(), "model axis": self.over_model()}
        )

    @cached_property
    def first(self) -> dict[str, StageTimes]:
        """Seconds of the embedding: its lookup is all-reduced in float32."""
        return {"model axis": StageTimes(self._all_reduce(FLOAT / self.work.item), 0.0, 0.0)}

    @cached_property
    def last(self) -> dict[str, StageTimes]:
        """Seconds of the logits and the loss: the gradient of the logits' matmul is all-reduced in float32."""
        matmul, loss = self.work.logits_matmul(), self.machine.stream_seconds(self.work.loss_traffic())
        left, right = matmul.backward()
        return {
            "matmuls": StageTimes(self._seconds(matmul), self._seconds(left), self._seconds(right)),
            "memory traffic": StageTimes(loss / 3, 2 * loss / 3, 0.0),
            "model axis": StageTimes(0.0, self._all_reduce(FLOAT / self.work.item), 0.0),
        }

    @cached_property
    def stages(self) -> list[dict[str, StageTimes]]:
        """Seconds of each stage for one micro-batch, by part."""
        stages = []
        layers = self.work.stage_layers
        for stage, count in enumerate(layers):
            parts = {name: NOTHING.plus(time, count) for name, time in self.layer.items()}
            for extra in [self.first] * (stage == 0) + [self.last] * (stage == len(layers) - 1):
                for name, time in extra.items():
                    parts[name] = parts[name].plus(time)
            stages.append(parts)
        return stages

    def busiest_parts(self) -> dict[str, float]:
        """Seconds that the busiest device takes for all micro-batches, by part."""
        work, copies = self.work, 1
        held: list[tuple[int, ...]] = [(0,)]
        if work.pipeline > 1:
            schedule, *_ = played(work.schedule, work.pipeline, work.chunks, work.micro_batches)
            held, copies = [schedule.stages_of(device) for device in range(schedule.devices)], schedule.copies
        devices = [
            {name: sum(self.stages[stage][name].total for stage in stages) / copies for name in PER_MICRO_BATCH}
            for stages in held
        ]
        busiest = max(devices, key=lambda parts: sum(parts.values()))
        return {name: work.micro_batches * seconds for name, seconds in busiest.items()}

    def matmuls(self) -> StageTimes:
        """Matmuls of a layer. The gradient of a weight has its own task; what is recomputed belongs to the backward."""
        work = self.work
        time = StageTimes(0.0, sum(map(self._seconds, work.recomputed())), 0.0)
        for matmul in work.block_matmuls():
            forward, (left, right) = self._seconds(matmul), map(self._seconds, matmul.backward())
            time = time.plus(
                StageTimes(forward, left, right) if matmul.weight else StageTimes(forward, left + right, 0)
            )
        return time

    def _seconds(self, matmul: Matmul) -> float:
        if not matmul.weight and self.machine.fused_attention:  # scores stay on chip: limited by arithmetic alone
            return matmul.flops / (self.machine.peak * self.machine.matmul_efficiency)
        return self.machine.matmul_seconds(matmul.m, matmul.k, matmul.n, matmul.count, self.work.item)

    def traffic(self) -> StageTimes:
        """Memory traffic of a layer outside of matmuls. The backward pass of an op moves twice the bytes."""
        work, fused = self.work, self.machine.fused_attention
        block = work.block_traffic(fused)
        again = {"none": 0, "attention": 0, "block": block}[work.recompute]
        if work.recompute == "attention" and not fused:
            again = work.block_traffic(False) - work.block_traffic(True)
        seconds = self.machine.stream_seconds
        return StageTimes(seconds(block), seconds(2 * block + again), 0.0)

    def over_model(self) -> StageTimes:
        """All-reduces of activations over the axes that shard heads, in a layer.

        Each all-reduce of the forward pass has one in the backward pass. Recomputation starts from an input that was
        saved sharded over model, and gathers it: half an all-reduce. Serial blocks recompute one all-reduce as well.
        """
        forward = self.work.all_reduces
        again = 0.5 + (forward - 1) if self.work.recompute == "block" else 0.0
        return StageTimes(self._all_reduce(forward), self._all_reduce(forward + again), 0.0)

    def _all_reduce(self, count: float) -> float:
        """Seconds of all-reduces of activations [T, D] over the model axis."""
        size = count * self.work.activation_bytes
        return sum(all_reduce(self.machine, self.layout, self.layout.mesh_axes("heads"), size).values())

    def _hide(self, parts: dict[str, StageTimes]) -> dict[str, StageTimes]:
        """The parts with what matmuls hide of the model axis left out."""
        axis, matmuls, share = parts["model axis"], parts["matmuls"], self.overlap.model
        forward = axis.forward - min(share * axis.forward, matmuls.forward)
        backward = axis.backward - min(share * axis.backward, matmuls.backward)
        return {**parts, "model axis": StageTimes(forward, backward, axis.weights)}

    def per_step(self, matmuls: float) -> dict[str, float]:
        """Seconds of what a step does once, by part: weights and gradients over data and pods, and the update.

        Args:
            matmuls: seconds of the busiest device's matmuls, which may hide the data axis.
        """
        work, weights = self.work, self.over_data()
        inside = sum(seconds for axis, seconds in weights.items() if axis != POD)
        if work.once_a_step:  # all but the first and the last micro-batch have no collective
            matmuls /= work.micro_batches
        return {
            "data axis": inside - min(self.overlap.data * inside, matmuls),
            "between pods": weights.get(POD, 0.0),
            "optimizer": self.machine.stream_seconds(work.optimizer_traffic),
        }

    def over_data(self) -> dict[str, float]:
        """All-gathers of weights and reductions of gradients in a step: seconds along each axis.

        Fully sharded weights are all-gathered for the forward pass of each micro-batch, and again for its backward pass
        if blocks are recomputed. Their gradients are reduce-scattered, and the shards all-reduced over the axes that
        are left, between pods. The gradient of a weight that is not fully sharded is all-reduced over all axes. Each of
        these is done once per step where gathered weights and full gradients are kept.
        """
        work, machine, layout = self.work, self.machine, self.layout
        everywhere = layout.mesh_axes("tokens")
        inside = [axis for axis in everywhere if axis != POD or layout.shard_weights == "all"]
        outside = [axis for axis in everywhere if axis not in inside]
        seconds = dict.fromkeys(everywhere, 0.0)
        for weight, count in work.device_weights():
            collectives: tuple[tuple[dict[str, float], int], ...]
            elements = count * gathered_size(weight)
            halved = layout.reduce_dtype != "float32" and len(weight.shape) > 1 and weight.name != "embedding"
            size = (work.item if halved else machine.gradient_bytes) * elements
            if weight.data_shards > 1:
                item = FLOAT if weight.name == "embedding" else work.item
                gathered = all_gather(machine, layout, inside, item * elements)
                scattered = reduce_scatter(machine, layout, inside, size)
                summed = all_reduce(machine, layout, outside, size / weight.data_shards)
                collectives = (
                    (gathered, work.weight_gathers),
                    (scattered, work.gradient_scatters),
                    (summed, work.gradient_reductions),
                )
            else:
                collectives = ((all_reduce(machine, layout, everywhere, size), work.gradient_reductions),)
            for along, times in collectives:
                for axis, one in along.items():
                    seconds[axis] += times * one
        return seconds

    def pipeline(self, busy: float) -> float:
        """Seconds of a step beyond the busiest device's ``busy`` ones: bubble, sends and the tied embedding.

        A device waits for its sends, unless they overlap. The first and the last stage each have the embedding, and add
        their gradients, of which each data rank has its shard.
        """
        work = self.work
        send = self.send_seconds()
        inside = 0.0 if self.overlap.sends else send
        times, last = self.stage_times(), len(self.stages) - 1
        times = [
            time.plus(StageTimes(inside * (stage < last), inside * (stage > 0), 0.0))
            for stage, time in enumerate(times)
        ]
        link = send if self.overlap.sends else 0.0
        seconds = pipeline_seconds(work.schedule, work.pipeline, work.chunks, work.micro_batches, times, link)
        tied = self.machine.gradient_bytes * prod(work.embedding.shard_shape) / self.send_bandwidth
        return seconds - busy + tied

    def stage_times(self) -> list[StageTimes]:
        """Seconds of each stage for one micro-batch, without sends."""
        times = []
        for parts in self.stages:
            time = NOTHING
            for one in parts.values():
                time = time.plus(one)
            times.append(time)
        return times

    def send_seconds(self) -> float:
        """Seconds to send a micro-batch's activations, or their gradients, to the next stage.

        Every model rank sends a full copy, or its shard: with several chunks per stage, which send more often, and if
        activations are sharded over model.
        """
        work = self.work
        sharded = work.sharded_sends or work.chunks > 1 or work.sequence_parallel
        shards = self.layout.shards("heads") if sharded else 1
        return work.activation_bytes / shards / self.send_bandwidth
