"""An open model of how long a training step takes: each part a formula of a few lines, each figure from the machine.

A step is a sum: products, memory traffic, exchanges over model, over data, between pods, and the optimizer. Nothing is
hidden behind anything else unless ``overlap`` says which share of the exchange of weights and gradients is.
"""

from __future__ import annotations

from dataclasses import dataclass

from mindspore_palm.cost.workload import FLOAT, HALF, Product, Workload, gathered_numbers
from mindspore_palm.parallel.mesh import POD
from mindspore_palm.plan.links import all_gather, all_reduce, reduce_scatter
from mindspore_palm.plan.machines import GB, Machine

PARTS = ("products", "memory traffic", "model axis", "data axis", "between pods", "pipeline", "optimizer")


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, by part."""

    parts: dict[str, float]
    model_flops: float
    """Of all devices, as MFU counts them."""
    hardware_flops: float
    """With what is recomputed, as HFU counts them."""
    peak: float
    """FLOP/s of all devices."""

    @property
    def seconds(self) -> float:
        """Of the step."""
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
    """Predicts a step.

    Args:
        work: what is computed, and where.
        machine: its devices and links.
        overlap: share of the data axis' exchanges that happens behind products, 0 to 1.
    """
    stage = _Stage(work, machine)
    passes, stages, weights = work.passes, work.pipeline, stage.over_data()
    parts = {
        "products": passes * stage.products(),
        "memory traffic": passes * stage.traffic(),
        "model axis": passes * stage.over_model(),
        "data axis": sum(seconds for axis, seconds in weights.items() if axis != POD),
        "between pods": weights.get(POD, 0.0),
        "pipeline": 0.0,
        "optimizer": machine.stream_seconds(work.optimizer_traffic),
    }
    hidden = min(overlap * parts["data axis"], parts["products"])
    parts["data axis"] -= hidden
    if stages > 1:
        one_pass = (parts["products"] + parts["memory traffic"] + parts["model axis"]) / passes
        parts["pipeline"] = (stages - 1) * one_pass / work.turns + stage.between_stages()
    model, tokens = work.model, work.tokens_per_step
    return StepTime(
        parts,
        tokens * model.flops_per_token(work.length),
        tokens * model.hardware_flops_per_token(work.length, work.recompute),
        work.devices * machine.peak,
    )


class _Stage:
    """One device, of the stage that has most to do: the one with the logits."""

    def __init__(self, work: Workload, machine: Machine) -> None:
        self.work, self.machine, self.layout = work, machine, work.layout

    def products(self) -> float:
        """Products of a pass: forward, backward, and what is done again."""
        work = self.work
        block = [p for product in work.block_products() for p in (product, *product.backward())] + work.recomputed()
        logits = work.logits_product()
        return work.layers * sum(map(self._product, block)) + sum(map(self._product, (logits, *logits.backward())))

    def _product(self, product: Product) -> float:
        if not product.weight and self.machine.fused_attention:  # scores stay inside: arithmetic alone
            return product.flops / (self.machine.peak * self.machine.matmul_efficiency)
        return self.machine.product_seconds(product.m, product.k, product.n, product.count)

    def traffic(self) -> float:
        """Traffic of a pass outside of products. The backward pass of an op moves twice what its forward pass does."""
        work, fused = self.work, self.machine.fused_attention
        again = {"none": 0, "attention": 0, "block": 1}[work.recompute]
        block = (3 + again) * work.block_traffic(fused)
        if work.recompute == "attention" and not fused:
            block += work.block_traffic(False) - work.block_traffic(True)
        return self.machine.stream_seconds(work.layers * block + work.loss_traffic())

    def over_model(self) -> float:
        """Sums of activations over the axes that cut heads, in a pass.

        Each all-reduce of the forward pass has one in the backward pass. What is recomputed starts from an input that
        was kept in slices over model, which are gathered: half an all-reduce. Serial blocks recompute one sum as well.
        Of the whole network, the embedding's look-up and the logits' gradient are summed, in float32.
        """
        work = self.work
        sums = 2.0 * work.all_reduces
        if work.recompute == "block":
            sums += 0.5 + (work.all_reduces - 1)
        size = (work.layers * sums + 2 * FLOAT / HALF) * work.activation_bytes
        return sum(all_reduce(self.machine, self.layout, self.layout.mesh_axes("heads"), size).values())

    def over_data(self) -> dict[str, float]:
        """Weights gathered and gradients summed, in a step: seconds along each axis.

        Fully sharded weights are gathered for each pass forward, and again for its backward pass if blocks are
        recomputed; their gradients are scattered, and their slices summed over the axes that are left: between pods.
        The gradient of a weight that is whole is summed over all.
        """
        work, machine, layout = self.work, self.machine, self.layout
        everywhere = layout.mesh_axes("tokens")
        inside = [axis for axis in everywhere if axis != POD or layout.shard_weights == "all"]
        outside = [axis for axis in everywhere if axis not in inside]
        seconds = dict.fromkeys(everywhere, 0.0)
        gathers = work.passes * (2 if work.recompute == "block" else 1)
        for weight, count in work.weights_of_device():
            numbers = count * gathered_numbers(weight)
            size = machine.gradient_bytes * numbers
            if weight.data_slices > 1:
                item = FLOAT if weight.name == "embedding" else HALF
                gathered = all_gather(machine, layout, inside, item * numbers)
                scattered = reduce_scatter(machine, layout, inside, size)
                summed = all_reduce(machine, layout, outside, size / weight.data_slices)
                exchanges = ((gathered, gathers), (scattered, work.passes), (summed, work.gradient_sums))
            else:
                exchanges = ((all_reduce(machine, layout, everywhere, size), work.gradient_sums),)
            for along, times in exchanges:
                for axis, one in along.items():
                    seconds[axis] += times * one
        return seconds

    def between_stages(self) -> float:
        """Activations, and their gradients, from stage to stage of a pipeline.

        Every model rank sends its copy; where stages take turns, and therefore send more, each sends a part of one.
        """
        passes, copies = self.work.passes + self.work.pipeline - 1, 1.0
        if self.work.turns > 1:
            copies = self.work.turns / self.layout.shards("heads")
        return 2 * passes * copies * self.work.activation_bytes / (self.machine.network_gb_s * GB)
