"""Divergence: when a loss that is not finite will not recover, and how the user can recover the run."""

from __future__ import annotations

from pathlib import Path

from mindspore_palm.checkpoint.format import folder_name, steps_in
from mindspore_palm.checkpoint.progress import Progress
from mindspore_palm.config import OptimizerConfig, Settings, TrainConfig
from mindspore_palm.errors import UserError, same_command
from mindspore_palm.file_names import CHECKPOINTS, CONFIG
from mindspore_palm.settings import load_settings

DIVERGED_AFTER = 25  # non-finite steps in a row, after which no later one will be finite
DIVISOR = 10  # of the learning rate, if no checkpoint was trained with a lower one


def check_not_diverged(progress: Progress, settings: Settings) -> None:
    """Checks that training can still recover.

    Raises:
        UserError: none of the last steps, or of all steps, was finite.
    """
    if progress.not_finite >= DIVERGED_AFTER or progress.not_finite == settings.train.steps:
        raise UserError(
            f"the loss or a gradient was not finite in the last {progress.not_finite} steps, up to step "
            f"{progress.step:,}, so the run no longer learns: {recovery_advice(settings, progress)}"
        )


def recovery_advice(settings: Settings, progress: Progress) -> str:
    """Sentence that says how to recover, with the arguments for it.

    The run goes back to the newest checkpoint from which a step was finite. The learning rate becomes that of the
    checkpoint; if that is not lower, the default; if that is not lower either, a tenth.
    """
    folder = Path(settings.train.output)
    steps = steps_in(folder / CHECKPOINTS)
    to = max((step for step in steps if step <= progress.sound), default=0)
    rate = settings.optimizer.learning_rate
    trained = load_settings(folder / CHECKPOINTS / folder_name(to) / CONFIG)[0].optimizer.learning_rate if to else rate
    lower = next((known for known in (trained, OptimizerConfig().learning_rate) if known < rate), rate / DIVISOR)
    changes = {"optimizer.learning_rate": lower}
    z_loss = TrainConfig().z_loss
    if progress.not_finite == progress.step and settings.train.z_loss > z_loss:  # no step has changed a weight
        changes["train.z_loss"] = z_loss
    arguments = [f"{name}={value!r}" for name, value in changes.items()]
    if steps:
        arguments += [f"--rewind-to {_unused_rewind_to(to, steps, progress)}"]
        arguments += [f"--accept {name}" for name in changes]
        command = same_command().replace("--overwrite", "--overwrite and")
        effect = f"goes back to step {to:,}, the last checkpoint from which training went well"
    else:
        arguments.append("--overwrite")
        command, effect = "the same command", "starts over, as there is no checkpoint"
    return f"lower {' and '.join(changes)}; {command} with {' '.join(arguments)} {effect}"


def _unused_rewind_to(to: int, steps: list[int], progress: Progress) -> int:
    """Value of --rewind-to that selects this checkpoint and was not given before: repeating one does nothing."""
    asked = {rewind.asked for rewind in progress.rewinds}
    end = min((step for step in steps if step > to), default=to + len(asked) + 1)
    return next((step for step in range(to, end) if f"--rewind-to {step}" not in asked), to)
