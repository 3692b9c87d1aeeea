"""Settings of the commands that look at a run without starting it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mindspore_palm.config import Settings
from mindspore_palm.effects import print_notes
from mindspore_palm.settings import load_settings


def settings_to_look_at(config: str | None, overrides: Sequence[str]) -> Settings:
    """Settings of a file and overrides, with the model of a checkpoint if they fine-tune one; notes on standard error.

    Raises:
        UserError: a setting is wrong, or the checkpoint cannot be read.
    """
    settings, origins = load_settings(config, overrides)
    if settings.finetune.checkpoint:
        from mindspore_palm.train.finetune import with_model_of_checkpoint

        settings = with_model_of_checkpoint(settings, origins)
    print_notes(settings, origins, overrides, sys.stderr)
    return settings
