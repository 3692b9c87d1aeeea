"""``palm harness``: EleutherAI's harness. Its options are its own; ``pip install lm-eval`` installs it."""

from __future__ import annotations

import sys

from mindspore_palm.errors import UserError
from mindspore_palm.parallel.workers import refuse_workers


def main() -> None:
    """Registers this project's models, and calls the harness."""
    refuse_workers("the harness")
    try:
        from lm_eval import evaluator
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry
    except ImportError:
        raise UserError("the harness is not installed; pip install lm-eval==0.4.13") from None
    options = [word.partition("=")[0] for word in sys.argv[1:] if word.startswith("--")]
    if twice := [option for option in options if options.count(option) > 1]:
        raise UserError(f"{twice[0]} is given twice, and the harness would keep the last; give it once")
    if "--model" in options and "--device" not in options:
        sys.argv += ["--device", "auto"]  # the harness's own default is cuda:0
    model_registry.register("mindspore_palm", target="mindspore_palm.evaluate.harness:HarnessPaLM")
    from mindspore_palm.evaluate.harness import with_task_checks

    evaluator.evaluate = with_task_checks(evaluator.evaluate)
    cli_evaluate()
