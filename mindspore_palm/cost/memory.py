"""Estimate of the memory that a run needs on one device, before it allocates any."""

from __future__ import annotations

from math import prod

from mindspore_palm.config import Settings
from mindspore_palm.cost.activations import FLOAT, Activations
from mindspore_palm.cost.process import InCpp, in_cpp, process_by_kind
from mindspore_palm.errors import UserError
from mindspore_palm.machine import available_memory, resident_memory
from mindspore_palm.model.lora import adapter_shapes
from mindspore_palm.model.weights import KERNELS, placements
from mindspore_palm.optim import optimizer_class
from mindspore_palm.parallel.axes import PER_STEP, Layout

PROCESS = 300_000_000  # private bytes of a worker before it has a network: Python and MindSpore
LANES = 128  # of a TPU's vector register
UNEMBED_PART = 4096  # kPart of cpu/training/unembed.h
UNROLLED_RANKS = 4  # XLA unrolls a matmul's ring up to this many: seen with 2 and 4; with 8, 12 and 16 it loops


def memory_by_kind(
    settings: Settings,
    layout: Layout | None = None,
    fused: bool = False,
    fused_attention: bool | None = None,
    sequence_parallel: bool = False,
    parts: InCpp = InCpp(),  # noqa: B008 - frozen
) -> dict[str, int]:
    """Bytes on one device, by kind. Each kind is a method of ``_Device`` with its formula.

    Letters: L layers, T tokens of a micro-batch per device, S sequence length, D d_model, H heads, K head_dim, F d_ff,
    V padded vocabulary, m model ranks, c bytes of the compute dtype.

    Args:
        settings: of the run.
        layout: mesh and table; None for one device.
        fused: whether the compiler recomputes elementwise ops where they are used, as XLA does. MindSpore saves the
            inputs of every op for the backward pass.
        fused_attention: whether attention keeps its scores out of memory; None for what the layout's target does.
        sequence_parallel: whether norms and residuals are sharded over model.
        parts: of the step, that are C++ functions.
    """
    layout = layout or Layout()
    ends = {0, layout.mesh.stages - 1}  # the first stage holds the most activations, and the last one the logits
    more = fused, fused_attention, sequence_parallel, parts
    devices = [_Device(settings, layout, *more, stage) for stage in sorted(ends)]
    return max((device.kinds() for device in devices), key=lambda kinds: sum(kinds.values()))


class _Device:
    """The formulas, for one device of a stage."""

    def __init__(
        self,
        settings: Settings,
        layout: Layout,
        fused: bool,
        fused_attention: bool | None,
        sequence_parallel: bool,
        parts: InCpp,
        stage: int,
    ) -> None:
        model, stages = settings.model, layout.mesh.stages
        self.settings, self.layout, self.model, self.fused = settings, layout, model, fused
        self.parts = parts
        own = [i for i in range(model.layers) if layout.stage(i) == stage] or [0]
        self.is_first, self.is_last = stage == 0, layout.stage(model.layers - 1) == stage
        self.layers, self.block = len(own), f"blocks.{own[0]}."
        most = max(size // settings.train.micro_batch_of(size) for _, size in settings.train.batch_ramp())
        self.in_flight = min(stages - stage, most)  # micro-batches between their two passes; 1F1B starts so many
        self.recompute = settings.parallel.recompute
        self.tokens = largest_micro_batch(settings) // layout.shards("batch")
        self.layer = Activations(
            model,
            layout,
            self.tokens,
            settings.data.seq_len,
            self.recompute,
            fused,
            fused_attention,
            sequence_parallel,
            parts.blocks,
        )
        self.compute_bytes, self.model_ranks = self.layer.item, self.layer.model_ranks
        self.placements = [p for p in placements(model, layout) if p.stage == stage]
        self.optimizer = optimizer_class(settings.optimizer)

    def kinds(self) -> dict[str, int]:
        """Bytes by kind, of the kinds that there are."""
        kinds = {
            "weights": self.weights(),
            "gradients": self.gradients(),
            "optimizer state": self.optimizer_state(),
            "snapshot to save": self.snapshot(),
            "activations": self.activations(),
            "gathered weights": self.gathered_weights(),
            "temporaries": self.temporaries(),
        }
        return {kind: int(size) for kind, size in kinds.items() if size}

    def weights(self) -> float:
        """4 bytes per parameter of each weight's shard. LoRA adds A, B, and the kernels with A B added to them."""
        weights = sum(p.shard_bytes for p in self.placements)
        if not self.settings.finetune.lora_rank:
            return weights
        return weights + self.trained() + sum(p.shard_bytes for p in self.placements if p.name.endswith(KERNELS))

    def trained_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of what this device trains: its shards of all weights, or LoRA's A and B."""
        if rank := self.settings.finetune.lora_rank:
            return list(adapter_shapes(self.model, rank).values())
        return [p.shard_shape for p in self.placements]

    def trained(self) -> float:
        """4 bytes per parameter that is trained."""
        return FLOAT * sum(map(prod, self.trained_shapes()))

    def gradients(self) -> float:
        """As large as what is trained, and sums over micro-batches: of shards, or full ones if reduced once a step."""
        if not self.settings.train.micro_batch:
            return self.trained()
        full = FLOAT * sum(prod(p.shard_shape) * p.data_shards for p in self.placements)
        return self.trained() + (full if self.layout.reduce_gradients == PER_STEP else self.trained())

    def optimizer_state(self) -> float:
        """Moments of what is trained, as the optimizer declares them."""
        if self.settings.finetune.lora_rank:
            return sum(map(self.optimizer.state_bytes, self.trained_shapes()))
        return sum(self.optimizer.state_bytes(p.shape, p.shard_shape) for p in self.placements)

    def snapshot(self) -> float:
        """Copy of the trained weights and their moments, from which a checkpoint is written while training continues.

        The copy is in host memory, which is the device's memory on CPU only.
        """
        return self.trained() + self.optimizer_state() if self.layout.target == "CPU" else 0.0

    def activations(self) -> float:
        """Activations that all layers of a stage save for the backward pass, of all micro-batches that it holds."""
        return self.in_flight * self.layers * self.layer.saved()

    def gathered_weights(self) -> float:
        """Fully sharded weights that stay gathered from the forward to the backward pass, in L layers.

        c bytes per parameter of the model rank's shard. Zero with recompute=block, which gathers them again, unless
        gradients are reduced once a step.
        """
        again = self.recompute == "block" and self.layout.reduce_gradients != PER_STEP
        return 0.0 if again else self.layers * self.gathered_layer()

    def gathered_layer(self) -> float:
        """Weights of one layer, gathered over data."""
        return self.compute_bytes * self._gathered(self.block)

    def temporaries(self) -> float:
        """The peak of the loss, of a block's backward pass and of the update; and what C++ keeps from pass to pass."""
        kept = self.layer.buffers() + self.unembed_buffers()
        return max(self.loss(), self.block_backward(), self.update()) + kept

    def update(self) -> float:
        """Temporaries of the update, as the optimizer declares them; none in C++."""
        return 0.0 if self.parts.update else sum(map(self.optimizer.temporaries, self.trained_shapes()))

    def loss(self) -> float:
        """Logits T*V/m and embedding table V/m*D, in float32, gathered over data; on the stage of the last layer.

        Not fused: four times the logits, the gathered table and its gradients from both uses. That is 3 tables, or 1
        beside the weight itself if it is not sharded over data.

        fused, as in XLA's programs for TPU v4:

        - The logits. With more than 4 model ranks, the ring of their matmul's gradient is a loop, whose bfloat16 input
          is stored in full: half of the logits more. With 2 or 4, XLA unrolls the ring and computes shards in place.
        - The gathered table and a buffer for its gradient: 2 tables. One more, in another memory layout, if D over data
          is not a multiple of 128 lanes.
        - The shards of weights that were cast for both passes.
        - No gradient of a block exists yet, so the gradients are subtracted.

        The buffer is inferred: table and gradient are never live at once, but XLA's heap exceeds the live bytes by 0 to
        1.5 tables. For 62B it has no such buffer with 4 sequences, and fragments as well with 2. So this estimate is
        20 % above and 24 % below what XLA takes beside the state.

        In C++: the logits, which become what their gradient needs.
        """
        if not self.is_last:
            return 0.0
        vocab = self.model.padded_vocab / self.layout.shards("vocab")
        logits, table = FLOAT * self.tokens * vocab, FLOAT * self._gathered("embedding")
        gradient = FLOAT * vocab * self.model.d_model  # if the table is not sharded over data
        if self.parts.loss:
            return logits
        if not self.is_first:  # the table comes from the first stage, and its gradient goes back
            return (1.5 if self.fused else 4) * logits + 2 * gradient
        if not self.fused:
            return 4 * logits + (3 * table or gradient)
        ring = 1.5 if self.model_ranks > UNROLLED_RANKS else 1
        copied = self.model.d_model % (LANES * self._data_slices("embedding")) > 0
        return ring * logits + ((3 if copied else 2) * table or gradient) + self.cast_shards() - self.weights()

    def unembed_buffers(self) -> float:
        """Buffers of the logits' gradient in C++, kept from pass to pass: 4*(T*P + P*D + 2*T*D).

        The gradient is computed for a part of the table at a time, of P rows.
        """
        if not self.parts.loss:
            return 0.0
        part = min(UNEMBED_PART, self.model.padded_vocab)
        return FLOAT * (self.tokens * part + part * self.model.d_model + 2 * self.tokens * self.model.d_model)

    def block_backward(self) -> float:
        """Gathered weights of the layer, and what it recomputes, with gradients of the widest tensors.

        recompute=block: the gradients of the gathered weights as well. fused: also the embedding's gathered gradient
        and the shards of weights that were cast for both passes.
        """
        block = self.gathered_layer()
        if self.recompute == "attention":
            block += self.layer.scores()
        elif self.recompute == "block":
            block += self.gathered_layer() + 1.5 * self.layer.layer() + 2 * self.layer.scores()
        return block + (FLOAT * self._gathered("embedding") + self.cast_shards() if self.fused else 0)

    def cast_shards(self) -> float:
        """Shards of all blocks' weights in a compute dtype of 2 bytes; recompute=block saves them to gather twice."""
        if self.recompute != "block" or self.compute_bytes == FLOAT:
            return 0.0
        return self.compute_bytes * sum(prod(p.shard_shape) for p in self.placements if p.name.startswith("blocks."))

    def _data_slices(self, name: str) -> int:
        return next(p.data_shards for p in self.placements if p.name == name)

    def _gathered(self, prefix: str) -> int:
        """Parameters, after gathering, of the weights with a name prefix that are gathered over data."""
        gathered = (p for p in self.placements if p.name.startswith(prefix) and p.data_shards > 1)
        return sum(prod(p.shard_shape) * p.data_shards for p in gathered)


def largest_micro_batch(settings: Settings) -> int:
    """Tokens of the largest micro-batch, on all devices."""
    sizes = (settings.train.micro_batch_of(size) for _, size in settings.train.batch_ramp())
    return max(sizes) * settings.data.seq_len


def run_memory(settings: Settings, layout: Layout) -> dict[str, int]:
    """Bytes of one device of a run, by kind; on one CPU, all that the process takes at its peak."""
    if layout.target != "CPU" or layout.devices > 1:
        return memory_by_kind(settings, layout)
    parts = in_cpp(settings, layout)
    network = memory_by_kind(settings, layout, parts=parts)
    return {**network, **process_by_kind(settings, largest_micro_batch(settings), parts)}


def check_memory(settings: Settings, layout: Layout | None = None) -> dict[str, int]:
    """Checks that this machine has the memory for all devices on it, and returns the estimate for one device.

    Raises:
        UserError: it does not; names both sizes and what to change.
    """
    layout = layout or Layout()
    kinds = run_memory(settings, layout)
    if layout.target != "CPU":  # an accelerator's memory is not this machine's
        return kinds
    needed, available = sum(kinds.values()) * layout.devices, available_memory()
    if layout.devices > 1:
        needed += PROCESS * layout.devices  # each worker is a process with its own MindSpore
    held = resident_memory() if layout.devices == 1 else 0  # by this process, whose MindSpore is part of the estimate
    if needed > available + held:
        largest = max(kinds, key=kinds.__getitem__)
        batch_bytes = sum(kinds.get(kind, 0) for kind in ("activations", "temporaries", "index tables"))
        fits_without_batch = needed - batch_bytes * layout.devices < available
        fix = "train.micro_batch, train.batch_size or data.seq_len" if fits_without_batch else "the model"
        if layout.devices > 1 and PROCESS * layout.devices > available:
            fix = f"the mesh (a worker takes {readable(PROCESS)} without a network)"
        where = "on one device" if layout.devices == 1 else f"for {layout.devices:,} workers on this machine"
        raise UserError(
            f"this run needs about {readable(needed)} {where} ({largest}: {readable(kinds[largest])}"
            f"{'' if layout.devices == 1 else ' each'}), and {readable(available)} of memory are free here; "
            f"make {fix} smaller"
        )
    return kinds


def readable(size: float) -> str:
    """Bytes with a unit and three digits, for example 1.23 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:  # 999.6 would be shown as 1e+03
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB" if size < 1000 else f"{size:,.0f} TB"
