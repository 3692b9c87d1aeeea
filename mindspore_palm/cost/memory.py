"""How much memory a run needs on one device, before it takes any."""

from __future__ import annotations

from math import prod

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.machine import available_memory
from mindspore_palm.model.lora import adapter_shapes
from mindspore_palm.model.weights import KERNELS, placements
from mindspore_palm.optim import optimizer_class
from mindspore_palm.parallel.axes import Layout

FLOAT, HALF = 4, 2  # bytes
PROCESS = 300_000_000  # bytes of a worker before it has a network: Python, MindSpore and what they share with nobody
LANES = 128  # of a TPU's vector register
UNROLLED_RANKS = 4  # at most so many: XLA unrolls a product's ring; seen with 2 and 4, and loops with 8, 12 and 16


def memory_by_kind(
    settings: Settings, layout: Layout | None = None, fused: bool = False, fused_attention: bool | None = None
) -> dict[str, int]:
    """Bytes on one device, by kind; each kind is a function below, with its formula.

    Letters: L layers, T tokens of a pass on a device, S length, D d_model, H heads, K head_dim, F d_ff, V padded
    vocabulary, m model ranks, c bytes of the compute type.

    Args:
        settings: of the run.
        layout: where it lies; None is one device.
        fused: whether the compiler computes elementwise ops again where they are used, as XLA does, instead of keeping
            the inputs of every op for the backward pass, as MindSpore does.
        fused_attention: whether attention never holds its scores; None: as the model does for the layout's target.
    """
    device = _Device(settings, layout or Layout(), fused, fused_attention)
    kinds = {
        "weights": device.weights(),
        "gradients": device.gradients(),
        "optimizer state": device.optimizer_state(),
        "snapshot to save": device.snapshot(),
        "activations": device.activations(),
        "gathered weights": device.gathered_weights(),
        "temporaries": device.temporaries(),
    }
    return {kind: int(size) for kind, size in kinds.items() if size}


class _Device:
    """One device and its formulas."""

    def __init__(self, settings: Settings, layout: Layout, fused: bool, fused_attention: bool | None) -> None:
        model = settings.model
        self.settings, self.layout, self.model, self.fused = settings, layout, model, fused
        self.recompute = settings.parallel.recompute
        self.holds_scores = layout.target != "Ascend" if fused_attention is None else not fused_attention
        self.width = FLOAT if layout.compute_dtype == "float32" else HALF
        self.parts, self.length = layout.shards("heads"), settings.data.seq_len
        batch = max(settings.train.micro_batch_of(size) for _, size in settings.train.batch_ramp())
        self.tokens = batch * self.length // layout.shards("batch")
        self.placements = placements(model, layout)
        self.optimizer = optimizer_class(settings.optimizer)

    def weights(self) -> float:
        """4 bytes a number of every weight's slice; with LoRA, of A and B and of the kernels with A B added as well."""
        weights = sum(p.slice_bytes for p in self.placements)
        if not self.settings.finetune.lora_rank:
            return weights
        return weights + self.trained() + sum(p.slice_bytes for p in self.placements if p.name.endswith(KERNELS))

    def trained_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of what this device trains: its shards of all weights, or LoRA's A and B."""
        if rank := self.settings.finetune.lora_rank:
            return list(adapter_shapes(self.model, rank).values())
        return [p.slice_shape for p in self.placements]

    def trained(self) -> float:
        """4 bytes per parameter that is trained."""
        return FLOAT * sum(map(prod, self.trained_shapes()))

    def gradients(self) -> float:
        """As what is trained; twice if they are accumulated over passes."""
        return self.trained() * (2 if self.settings.train.micro_batch else 1)

    def optimizer_state(self) -> float:
        """Moments of what is trained, as the optimizer declares them."""
        return sum(map(self.optimizer.state_bytes, self.trained_shapes()))

    def snapshot(self) -> float:
        """What a checkpoint is written from while training goes on: a copy of what is trained and of its moments.

        It lies in the memory of the machine: on a CPU, that is the device's.
        """
        return self.trained() + self.optimizer_state() if self.layout.target == "CPU" else 0.0

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

        fused: T*c*(D/m + 2K + (2*H*K + 6F)/m) + 12*T*D/m, as XLA stacks them: the residual, k and v, q, what o_wo
        multiplies, and five of gate and up; three of the norm in float32. Not fused: T*c*(4D + (8*H*K + 6F)/m), and
        4*T*D if norms have another type.
        """
        model, m = self.model, self.parts
        attention, mlp = model.heads * model.head_dim, model.d_ff
        if self.fused:
            row = model.d_model / m + 2 * model.head_dim + (2 * attention + 6 * mlp) / m
            return self.tokens * (self.width * row + 3 * FLOAT * model.d_model / m)
        row = 4 * model.d_model + (8 * attention + 6 * mlp) / m
        cast = FLOAT * model.d_model if self.width != FLOAT else 0
        return self.tokens * (self.width * row + cast)

    def scores(self) -> float:
        """A layer's attention: T*S*H/m numbers.

        fused: in float32 and in the compute type. Not fused: three times in float32, of three quarters, as queries go
        in two runs. Fused attention, as on Ascend, never holds them.
        """
        if not self.holds_scores:
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
        """The largest of three moments: the loss, a block's backward pass, or the update."""
        return max(self.loss(), self.backward_of_a_block(), self.update())

    def update(self) -> float:
        """Temporaries of the update, as the optimizer declares them."""
        return sum(map(self.optimizer.temporaries, self.trained_shapes()))

    def loss(self) -> float:
        """Logits T*V/m and embedding V/m*D, in float32, whole over data.

        Not fused: four times the logits; the embedding, gathered, and its gradients from both of its uses: 3, or 1 more
        than the weight itself where it is not sharded.
        fused, as in XLA's programs for TPU v4: the logits; half of them again where more than 4 model ranks make the
        ring of their product's gradient a loop, as what a loop reads lies whole, in bfloat16 (with 2 or 4 it is
        unrolled and computes its pieces in place). The embedding, gathered, and a place of its own for its gradient: 2;
        a copy in another layout where D over data is no multiple of 128 lanes. Slices of weights converted for both
        passes. No gradient of a block is there yet: less the gradients.

        That place is inferred: table and gradient are never alive at once, but XLA's heap is 0 to 1.5 tables larger
        than what is alive. It has none with 62B's 4 sequences, and holes as well with 2, so that this is 20 % more and
        24 % less than XLA takes beside the state.
        """
        vocab = self.model.padded_vocab / self.layout.shards("vocab")
        logits, table = FLOAT * self.tokens * vocab, FLOAT * self._gathered("embedding")
        own = FLOAT * vocab * self.model.d_model  # its gradient, where it is not sharded
        if not self.fused:
            return 4 * logits + (3 * table or own)
        ring = 1.5 if self.parts > UNROLLED_RANKS else 1
        copied = self.model.d_model % (LANES * self._data_slices("embedding")) > 0
        return ring * logits + ((3 if copied else 2) * table or own) + self.converted() - self.weights()

    def backward_of_a_block(self) -> float:
        """What a layer that keeps nothing computes again, with the gradients of the widest of it; its gathered weights.

        recompute=block: gathered weights and their gradients. fused: also the embedding's gradient, whole, and the
        slices of weights converted for both passes.
        """
        block = self.gathered_layer()
        if self.recompute == "attention":
            block += self.scores()
        elif self.recompute == "block":
            block += self.gathered_layer() + 1.5 * self.of_a_layer() + 2 * self.scores()
        return block + (FLOAT * self._gathered("embedding") + self.converted() if self.fused else 0)

    def converted(self) -> float:
        """Slices of all blocks in a compute type of c = 2 bytes, which recompute=block keeps to gather them twice."""
        if self.recompute != "block" or self.width == FLOAT:
            return 0.0
        return self.width * sum(prod(p.slice_shape) for p in self.placements if p.name.startswith("blocks."))

    def _data_slices(self, name: str) -> int:
        return next(p.data_slices for p in self.placements if p.name == name)

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
    needed, there = sum(kinds.values()) * layout.devices, available_memory()
    if layout.devices > 1:
        needed += PROCESS * layout.devices  # each worker is a MindSpore of its own
    if needed > there:
        largest = max(kinds, key=kinds.__getitem__)
        of_the_batch = kinds["activations"] + kinds["temporaries"]
        fits_without_batch = needed - of_the_batch * layout.devices < there
        fix = "train.micro_batch, train.batch_size or data.seq_len" if fits_without_batch else "the model"
        if layout.devices > 1 and PROCESS * layout.devices > there:
            fix = f"the mesh (a worker takes {readable(PROCESS)} without a network)"
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
