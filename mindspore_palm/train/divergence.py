"""A run whose loss is not finite any more: when that is so for good, and what to do then."""

from __future__ import annotations

from pathlib import Path

from mindspore_palm.checkpoint.format import folder_name, steps_in
from mindspore_palm.checkpoint.progress import Progress
from mindspore_palm.config import OptimizerConfig, Settings, TrainConfig
from mindspore_palm.errors import UserError, same_command
from mindspore_palm.file_names import CHECKPOINTS, CONFIG
from mindspore_palm.settings import load_settings

LOST = 25  # steps in a row that are not finite, after which no later one will be
LOWER = 10  # what a learning rate is divided by where nothing says which one was good


def check_not_lost(progress: Progress, settings: Settings) -> None:
    """Sees that some step may still change something.

    Raises:
        UserError: none of the last steps, or of all there are, was finite.
    """
    if progress.not_finite >= LOST or progress.not_finite == settings.train.steps:
        raise UserError(
            f"the loss or a gradient was not finite in the last {progress.not_finite} steps, up to step "
            f"{progress.step:,}, and nothing is learned any more: {advice(settings, progress)}"
        )


def advice(settings: Settings, progress: Progress) -> str:
    """What to do, with the arguments that do it.

    The run goes back to the newest checkpoint after which a step was finite. The learning rate becomes the one that the
    checkpoint was trained with; where that is the same, the default, or a tenth.
    """
    folder = Path(settings.train.output)
    steps = steps_in(folder / CHECKPOINTS)
    to = max((step for step in steps if step <= progress.sound), default=0)
    rate = settings.optimizer.learning_rate
    trained = load_settings(folder / CHECKPOINTS / folder_name(to) / CONFIG)[0].optimizer.learning_rate if to else rate
    lower = next((known for known in (trained, OptimizerConfig().learning_rate) if known < rate), rate / LOWER)
    changes = {"optimizer.learning_rate": lower}
    z_loss = TrainConfig().z_loss
    if progress.not_finite == progress.step and settings.train.z_loss > z_loss:  # no step has changed a weight
        changes["train.z_loss"] = z_loss
    arguments = [f"{name}={value!r}" for name, value in changes.items()]
    if steps:
        arguments += [f"--rewind-to {_not_asked_before(to, steps, progress)}"]
        arguments += [f"--accept {name}" for name in changes]
        command = same_command().replace("--overwrite", "--overwrite and")
        where = f"goes back to step {to:,}, the last checkpoint from which training went well"
    else:
        arguments.append("--overwrite")
        command, where = "the same command", "starts over, as there is no checkpoint"
    return f"lower {' and '.join(changes)}; {command} with {' '.join(arguments)} {where}"


def _not_asked_before(to: int, steps: list[int], progress: Progress) -> int:
    """A number for --rewind-to that means this checkpoint, and was not given before: that would be taken as done."""
    asked = {rewind.asked for rewind in progress.rewinds}
    end = min((step for step in steps if step > to), default=to + len(asked) + 1)
    return next((step for step in range(to, end) if f"--rewind-to {step}" not in asked), to)
