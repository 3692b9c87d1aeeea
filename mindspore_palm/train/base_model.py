"""The model that fine-tuning starts from, by its content."""

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
    """Names the content of the model at ``finetune.checkpoint``.

    Raises:
        UserError: a weight is missing, damaged or of another shape.
    """
    reader = weight_reader(find_model(Path(settings.finetune.checkpoint)), settings.model)
    weights = {name: reader(name, shape) for name, shape in weight_shapes(settings.model).items()}
    return weights_identity(weights, settings.model)


def has_moved(folder: Path, settings: Settings) -> bool:
    """Whether a run's ``finetune.checkpoint`` has another path, and is the model that the run started from."""
    try:
        newest = current_checkpoint(folder)
        base = progress_of(newest).base if newest else ""
        return bool(base) and base == base_identity(settings)
    except (UserError, DamagedCheckpoint, OSError):
        return False


def check_base(settings: Settings, progress: Progress) -> None:
    """Sees that a run that starts from a model's weights starts from the same ones each time; notes which they are.

    Later on, a run has its own weights: that model may then be trained further, or be gone.

    Raises:
        UserError: it goes back to weights that are not there any more.
    """
    checkpoint = settings.finetune.checkpoint
    if not checkpoint or progress.step:
        return
    found = base_identity(settings)
    if progress.base not in ("", found):
        raise UserError(
            f"finetune.checkpoint = {checkpoint} holds another model than the one that this run started from, and the "
            "run goes back to its start; bring that model back, or start over with --overwrite"
        )
    progress.base = found
