"""How much memory a run needs on one device, before it takes any."""

from __future__ import annotations

import psutil

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.model.initial import placements
from mindspore_palm.parallel.axes import Layout

FLOAT = 4  # bytes


def memory_by_kind(settings: Settings, layout: Layout | None = None) -> dict[str, int]:
    """Bytes of weights, gradients, optimizer state and saved activations on one device, in float32.

    Activations are estimated from what the backward pass of a block needs: its normalised input, q before and after
    the rotation, gate, up, sigmoid and two products, and the attention weights of the half that each query run sees.
    What is recomputed is kept for one block at a time. Fully sharded weights are whole while they are used.
    """
    layout = layout or Layout()
    model, optimizer = settings.model, settings.optimizer
    weights = sum(p.slice_bytes for p in placements(model, layout))
    gathered = sum(p.slice_bytes * (p.data_slices - 1) for p in placements(model, layout))
    full_moments = 1 if optimizer.name == "adafactor" and optimizer.factored else 2
    batch = max(settings.train.micro_batch_of(size) for _, size in settings.train.batch_ramp())
    tokens = batch * settings.data.seq_len // layout.shards("batch")
    accumulators = 1 if settings.train.micro_batch else 0
    heads = layout.shards("heads")
    block = 4 * model.d_model + (8 * model.heads * model.head_dim + 6 * model.d_ff) // heads
    scores = 3 * model.heads * settings.data.seq_len * 3 // 4 // heads
    kept = {
        "none": model.layers * (block + scores),
        "attention": model.layers * block + scores,
        "block": model.layers * model.d_model // heads + block + scores,
    }[settings.parallel.recompute]
    kinds = {
        "weights": weights,
        "gradients": weights * (1 + accumulators),
        "optimizer state": weights * full_moments,
        "activations": FLOAT * tokens * (kept + 4 * model.padded_vocab // layout.shards("vocab")),
    }
    return {**kinds, "gathered weights": gathered} if gathered else kinds


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
        fits_without_batch = needed - kinds["activations"] * layout.devices < there
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
