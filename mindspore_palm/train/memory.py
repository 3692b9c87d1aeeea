"""How much memory a run needs on one device, before it takes any."""

from __future__ import annotations

import psutil

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError

FLOAT = 4  # bytes


def memory_by_kind(settings: Settings) -> dict[str, int]:
    """Bytes of weights, gradients, optimizer state and saved activations on one device, in float32.

    Activations are estimated from what the backward pass of a block needs: its normalised input, q before and after
    the rotation, gate, up, sigmoid and two products, and the attention weights of the half that each query run sees.
    """
    model, optimizer = settings.model, settings.optimizer
    weights = model.parameter_count() + (model.padded_vocab - model.vocab_size) * model.d_model
    full_moments = 1 if optimizer.name == "adafactor" and optimizer.factored else 2
    batch = max(settings.train.micro_batch_of(size) for _, size in settings.train.batch_ramp())
    tokens = batch * settings.data.seq_len
    accumulators = 1 if settings.train.micro_batch else 0
    block = 4 * model.d_model + 8 * model.heads * model.head_dim + 6 * model.d_ff
    scores = 3 * model.heads * settings.data.seq_len * 3 // 4
    return {
        "weights": FLOAT * weights,
        "gradients": FLOAT * weights * (1 + accumulators),
        "optimizer state": FLOAT * weights * full_moments,
        "activations": FLOAT * tokens * (model.layers * (block + scores) + 4 * model.padded_vocab),
    }


def check_memory(settings: Settings) -> dict[str, int]:
    """The estimate, if the machine has that much.

    Raises:
        UserError: it has not; names both and what to change.
    """
    kinds = memory_by_kind(settings)
    needed, there = sum(kinds.values()), psutil.virtual_memory().available
    if needed > there:
        largest = max(kinds, key=kinds.__getitem__)
        fits_without_batch = needed - kinds["activations"] < there
        fix = "train.micro_batch, train.batch_size or data.seq_len" if fits_without_batch else "the model"
        raise UserError(
            f"this run needs about {readable(needed)} on one device ({largest}: {readable(kinds[largest])}), and "
            f"{readable(there)} of memory are free here; make {fix} smaller"
        )
    return kinds


def readable(size: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:  # 999.6 would be shown as 1e+03
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB" if size < 1000 else f"{size:,.0f} TB"
