"""How much memory a run needs on one device, before it takes any."""

from __future__ import annotations

from math import prod

import psutil

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.model.initial import placements
from mindspore_palm.model.lora import KERNELS, adapter_shapes
from mindspore_palm.parallel.axes import Layout

FLOAT, HALF = 4, 2  # bytes


def memory_by_kind(settings: Settings, layout: Layout | None = None, fused: bool = False) -> dict[str, int]:
    """Bytes on one device, by kind; each kind is a function below, with its formula.

    Letters: L layers, T tokens of a pass on a device, S length, D d_model, H heads, K head_dim, F d_ff, V padded
    vocabulary, m model ranks, c bytes of the compute type.

    Args:
        settings: of the run.
        layout: where it lies; None is one device.
        fused: whether the compiler computes elementwise ops again where they are used, as XLA does, instead of keeping
            the inputs of every op for the backward pass, as MindSpore does.
    """
    device = _Device(settings, layout or Layout(), fused)
    kinds = {
        "weights": device.weights(),
        "gradients": device.gradients(),
        "optimizer state": device.optimizer_state(),
        "activations": device.activations(),
        "gathered weights": device.gathered_weights(),
        "temporaries": device.temporaries(),
    }
    return {kind: int(size) for kind, size in kinds.items() if size}


class _Device:
    """One device and its formulas."""

    def __init__(self, settings: Settings, layout: Layout, fused: bool) -> None:
        model = settings.model
        self.settings, self.layout, self.model, self.fused = settings, layout, model, fused
        self.recompute = settings.parallel.recompute
        self.width = FLOAT if layout.compute_dtype == "float32" else HALF
        self.parts, self.length = layout.shards("heads"), settings.data.seq_len
        batch = max(settings.train.micro_batch_of(size) for _, size in settings.train.batch_ramp())
        self.tokens = batch * self.length // layout.shards("batch")
        self.placements = placements(model, layout)

    def weights(self) -> float:
        """4 bytes a number of every weight's slice; with LoRA, of A and B and of the kernels with A B added as well."""
        weights = sum(p.slice_bytes for p in self.placements)
        if not self.settings.finetune.lora_rank:
            return weights
        return weights + self.trained() + sum(p.slice_bytes for p in self.placements if p.name.endswith(KERNELS))

    def trained(self) -> float:
        """4 bytes a number of what is trained: all weights, or LoRA's A and B."""
        if rank := self.settings.finetune.lora_rank:
            return FLOAT * sum(prod(shape) for shape in adapter_shapes(self.model, rank).values())
        return sum(p.slice_bytes for p in self.placements)

    def gradients(self) -> float:
        """As what is trained; twice if they are accumulated over passes."""
        return self.trained() * (2 if self.settings.train.micro_batch else 1)

    def optimizer_state(self) -> float:
        """As what is trained, for each full moment: two, or one for the factored Adafactor."""
        optimizer = self.settings.optimizer
        return self.trained() * (1 if optimizer.name == "adafactor" and optimizer.factored else 2)

    def activations(self) -> float:
        """What all layers keep for the backward pass.

        recompute=block: L*T*D*c, in slices over m where D divides. attention: every layer's without scores. none: all.
        """
        if self.recompute == "block":
            parts = self.parts if self.model.d_model % self.parts == 0 else 1
            return self.model.layers * self.width * self.tokens * self.model.d_model / parts
        return self.model.layers * (self.of_a_layer() + (self.scores() if self.recompute == "none" else 0))

    def of_a_layer(self) -> float:
        """A layer's activations without scores.

        fused: T*c*(D + D/m + 2K + (3*H*K + 4F)/m): norm, residual, k and v; q, its rotation, attention; gate, up, the
        activated gate and the product. Not fused: T*c*(4D + (8*H*K + 6F)/m), and 4*T*D if norms have another type.
        """
        model, m = self.model, self.parts
        attention, mlp = model.heads * model.head_dim, model.d_ff
        if self.fused:
            row = model.d_model * (1 + 1 / m) + 2 * model.head_dim + (3 * attention + 4 * mlp) / m
            return self.width * self.tokens * row
        row = 4 * model.d_model + (8 * attention + 6 * mlp) / m
        cast = FLOAT * model.d_model if self.width != FLOAT else 0
        return self.tokens * (self.width * row + cast)

    def scores(self) -> float:
        """A layer's attention: T*S*H/m numbers.

        fused: in float32 and in the compute type. Not fused: three times in float32, of three quarters, as queries go
        in two runs. On Ascend none: the fused primitive never holds them.
        """
        if self.layout.target == "Ascend":
            return 0.0
        numbers = self.tokens * self.length * self.model.heads / self.parts
        return numbers * (FLOAT + self.width) if self.fused else numbers * 3 * FLOAT * 3 / 4

    def gathered_weights(self) -> float:
        """Fully sharded weights that stay whole from the forward pass to the backward pass.

        c bytes a number of what the model axis leaves, of L layers. None with recompute=block, which gathers again.
        """
        return 0.0 if self.recompute == "block" else self.model.layers * self.gathered_layer()

    def gathered_layer(self) -> float:
        """One layer's weights, gathered over data."""
        return self.width * self._gathered("blocks.0.")

    def temporaries(self) -> float:
        """The larger of two moments: the loss, or a block's backward pass.

        Loss: the logits T*V/m in float32, 1.5 of them fused and 4 if not; the embedding V/m*D in float32, gathered, and
        its gradients from both of its uses: 3, or 1 more than the weight itself where it is not sharded.
        Block: what a layer that keeps nothing computes again, with the gradients of the widest of it; its gathered
        weights and their gradients.
        """
        vocab = self.model.padded_vocab / self.layout.shards("vocab")
        logits = FLOAT * self.tokens * vocab * (1.5 if self.fused else 4)
        loss = logits + FLOAT * (3 * self._gathered("embedding") or vocab * self.model.d_model)
        block = self.gathered_layer()
        if self.recompute == "attention":
            block += self.scores()
        elif self.recompute == "block":
            block += self.gathered_layer() + 1.5 * self.of_a_layer() + 2 * self.scores()
        return max(loss, block)

    def _gathered(self, prefix: str) -> int:
        """Numbers of the weights of that name that are gathered over data, all slices together."""
        own = (p for p in self.placements if p.name.startswith(prefix) and p.data_slices > 1)
        return sum(prod(p.slice_shape) * p.data_slices for p in own)


def check_memory(settings: Settings, layout: Layout | None = None) -> dict[str, int]:
    """The estimate for one device, if this machine has that much for each of them that is on it.

    Raises:
        UserError: it has not; names both and what to change.
    """
    layout = layout or Layout()
    kinds = memory_by_kind(settings, layout)
    if layout.target != "CPU":  # an accelerator's memory is not this machine's
        return kinds
    needed, there = sum(kinds.values()) * layout.devices, psutil.virtual_memory().available
    if needed > there:
        largest = max(kinds, key=kinds.__getitem__)
        of_the_batch = kinds["activations"] + kinds["temporaries"]
        fits_without_batch = needed - of_the_batch * layout.devices < there
        fix = "train.micro_batch, train.batch_size or data.seq_len" if fits_without_batch else "the model"
        where = "on one device" if layout.devices == 1 else f"for {layout.devices:,} workers on this machine"
        raise UserError(
            f"this run needs about {readable(needed)} {where} ({largest}: {readable(kinds[largest])}"
            f"{'' if layout.devices == 1 else ' each'}), and {readable(there)} of memory are free here; "
            f"make {fix} smaller"
        )
    return kinds


def readable(size: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:  # 999.6 would be shown as 1e+03
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB" if size < 1000 else f"{size:,.0f} TB"
