"""Base model of a fine-tuning run, identified by its content."""

from __future__ import annotations

from pathlib import Path

from mindspore_palm.checkpoint.format import DamagedCheckpoint
from mindspore_palm.checkpoint.identity import weights_identity
from mindspore_palm.checkpoint.model_folder import find_model, weight_reader
from mindspore_palm.checkpoint.progress import Progress
from mindspore_palm.checkpoint.timeline import current_checkpoint, progress_of
from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.model.weights import weight_shapes


def base_identity(settings: Settings) -> str:
    """Hash of the weights of the model at ``finetune.checkpoint``.

    Raises:
        UserError: a weight is missing, damaged or of another shape.
    """
    reader = weight_reader(find_model(Path(settings.finetune.checkpoint)), settings.model)
    weights = {name: reader(name, shape) for name, shape in weight_shapes(settings.model).items()}
    return weights_identity(weights, settings.model)


def has_moved(folder: Path, settings: Settings) -> bool:
    """Whether ``finetune.checkpoint`` is another path to the model that the run started from."""
    try:
        newest = current_checkpoint(folder)
        base = progress_of(newest).base if newest else ""
        return bool(base) and base == base_identity(settings)
    except (UserError, DamagedCheckpoint, OSError):
        return False


def check_base(settings: Settings, progress: Progress) -> None:
    """Checks that a run at step 0 starts from the same base model as before, which ``progress`` stores.

    After step 0 a run has weights of its own, and the base model may be trained further or deleted.

    Raises:
        UserError: the run goes back to its start, and the base model has changed.
    """
    checkpoint = settings.finetune.checkpoint
    if not checkpoint or progress.step:
        return
    identity = base_identity(settings)
    if progress.base not in ("", identity):
        raise UserError(
            f"finetune.checkpoint = {checkpoint} holds another model than the one that this run started from, and the "
            "run goes back to its start; restore that model, or start over with --overwrite"
        )
    progress.base = identity
