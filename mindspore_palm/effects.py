"""Settings without effect: values that somebody wrote and that other settings make useless.

One rule for all settings. Each has an entry in ``USELESS``: None if it always has an effect, or a function of all
settings that returns the reason why it has none, or less than its value suggests. ``config.py`` rejects settings that
contradict each other. Useless ones are only noted, since one file may serve several runs.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from glob import iglob
from itertools import islice
from pathlib import Path
from typing import IO, Any

from mindspore_palm.config import OptimizerConfig, ReadBy, Settings, settings_of
from mindspore_palm.parallel.workers import speaks
from mindspore_palm.presets import PRESETS

Why = Callable[[Settings], str]
STARTED = "MINDSPORE_PALM_LAUNCHER"  # environment variable of processes that a command has started
OVERRIDE = "override "  # the origin of a value from the command line starts with it
FIELDS = (".jsonl", ".json", ".parquet")  # suffixes of files whose documents have fields
MAX_FILES = 10_000  # names that are checked for these suffixes
USUAL_STEPS = 16  # steps whose losses must be known before one can be an outlier


def notes(settings: Settings, origins: Mapping[str, str], overrides: Iterable[str] = ()) -> list[str]:
    """A sentence for each setting that somebody wrote and that has no effect, or less than its value suggests.

    Args:
        settings: the settings.
        origins: origin of each value that is not a default, as ``load_settings`` returns them.
        overrides: the overrides of the command line, in order.
    """
    reasons = [
        f"{name} = {_value(settings, name)} ({origins[name]}): {why}" for name, why in useless(settings, origins)
    ]
    return [*_given_twice(overrides), *reasons]


def useless(settings: Settings, origins: Mapping[str, str]) -> list[tuple[str, str]]:
    """Name and reason of each setting that somebody wrote and that has no effect, or less than its value suggests.

    Values that turn something off, and defaults in a file, are not reported: config.yaml of a run states all defaults.
    """
    found = []
    for name, why in USELESS.items():
        origin, value = origins.get(name, ""), _value(settings, name)
        written = origin.startswith(OVERRIDE) or (origin and value != _default(name))
        if why is None or not written or origin.startswith("preset ") or value == OFF.get(name, object):
            continue
        if reason := why(settings):
            found.append((name, reason))
    return found


def print_notes(
    settings: Settings, origins: Mapping[str, str], overrides: Iterable[str] = (), file: IO[str] | None = None
) -> None:
    """Prints the notes, by default to standard output; only the first process of a command does."""
    if STARTED not in os.environ and speaks():
        for note in notes(settings, origins, overrides):
            with contextlib.suppress(OSError):  # a reader that went away does not end what follows
                print(f"note: {note}", file=file or sys.stdout, flush=True)


def _given_twice(overrides: Iterable[str]) -> list[str]:
    last: dict[str, str] = {}
    said = []
    for override in overrides:
        name = override.partition("=")[0]
        if name in last and last[name] != override:
            said.append(f"{last[name]} has no effect: {override} comes after it")
        last[name] = override
    return said


def _value(settings: Settings, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(settings, section), key)


def _default(name: str) -> Any:
    section, key = name.split(".")
    return settings_of(section)[key].default


def _only(section: str, name: str, *values: str) -> Why:
    """A reason for settings that only some values of another setting use."""

    def why(settings: Settings) -> str:
        value = getattr(getattr(settings, section), name)
        wanted = " or ".join(values)
        return (
            "" if value in values else f"no effect, as {section}.{name} = {value}; it is of {section}.{name}={wanted}"
        )

    return why


def _without_checkpoint(settings: Settings) -> str:
    return "" if settings.finetune.checkpoint else "no effect without finetune.checkpoint"


def _finetuning(what: str) -> Why:
    def why(settings: Settings) -> str:
        return f"no effect with finetune.checkpoint: {what}" if settings.finetune.checkpoint else ""

    return why


def _either(*reasons: Why) -> Why:
    """The first of several reasons that applies."""
    return lambda settings: next(filter(None, (why(settings) for why in reasons)), "")


def _preset(settings: Settings) -> str:
    sizes = PRESETS.get(settings.model.preset, {})
    differ = sizes and all(getattr(settings.model, name) != size for name, size in sizes.items())
    return "no effect, as every size of it is set to another value" if differ else ""


def _learning_rate(settings: Settings) -> str:
    optimizer = settings.optimizer
    high = optimizer.schedule == "palm" and optimizer.learning_rate > 1
    return "no more effect than 1, as schedule palm is min(learning_rate, 1/sqrt(step))" if high else ""


def _long_warmup(settings: Settings) -> str:
    warmup, steps = settings.optimizer.warmup_steps, settings.train.steps
    if warmup <= steps:
        return ""
    return (
        f"longer than train.steps = {steps}, so that the rate only rises, to {steps / warmup:.2g} of "
        "optimizer.learning_rate"
    )


def _final_fraction(settings: Settings) -> str:
    if settings.optimizer.warmup_steps >= settings.train.steps:
        return "no effect, as optimizer.warmup_steps is not shorter than train.steps"
    return ""


def _path(settings: Settings) -> str:
    return "no effect, as data.mixture names the texts" if settings.data.mixture else ""


def _text_field(settings: Settings) -> str:
    path = settings.data.path
    if settings.data.mixture or path.startswith("hf://"):  # each of its sources may have the field
        return ""
    if path == "python-stdlib":
        return "no effect, as data.path = python-stdlib has no fields; it is of .jsonl and .parquet"
    try:
        place = Path(path).expanduser()
        names = (str(p) for p in place.rglob("*")) if place.is_dir() else iglob(str(place), recursive=True)
        checked = list(islice(names, MAX_FILES))
        if not checked or any(kind in name.lower() for name in checked for kind in FIELDS):
            return ""
    except (OSError, ValueError, RuntimeError):  # said when the text is read
        return ""
    return f"no effect, as data.path = {path} has neither .jsonl nor .parquet"


def _tokenizer_megabytes(settings: Settings) -> str:
    return f"no effect, as data.tokenizer = {settings.data.tokenizer}" if settings.data.tokenizer else ""


def _ramp(settings: Settings) -> str:
    steps = settings.train.steps
    late = [start for start, _ in settings.train.batch_ramp() if start >= steps]
    return f"no effect from step {late[0]} on, as train.steps = {steps}" if late else ""


def _micro_batch(settings: Settings) -> str:
    sizes = settings.train.sizes_from(0)
    same = all(size == settings.train.micro_batch for size in sizes)
    return "no effect, as it is the whole of train.batch_size" if same else ""


def _eval_every(settings: Settings) -> str:
    every, steps = settings.train.eval_every, settings.train.steps
    return f"no effect: the evaluation after train.steps = {steps} is the only one" if every >= steps else ""


def _eval_sequences(settings: Settings) -> str:
    every, steps = settings.train.eval_every, settings.train.steps
    none = not every or every >= steps
    return f"no effect, as train.eval_every = {every} leaves no evaluation before the last one" if none else ""


def _checkpoint_every(settings: Settings) -> str:
    every, steps = settings.train.checkpoint_every, settings.train.steps
    return f"no effect: the checkpoint after train.steps = {steps} is the only one" if every >= steps else ""


def _few_checkpoints(settings: Settings) -> str:
    every, steps = settings.train.checkpoint_every, settings.train.steps
    none = not every or every >= steps
    return f"no effect, as train.checkpoint_every = {every} leaves no checkpoint but the last" if none else ""


def _keep_every(settings: Settings) -> str:
    keep, every, steps = settings.train.keep_every, settings.train.checkpoint_every, settings.train.steps
    if not (keep and every):
        return ""
    common = math.lcm(keep, every)
    if common > steps:
        return f"no effect, as no checkpoint of every {every} steps is a multiple of it up to train.steps = {steps}"
    if common > keep:
        return f"keeps checkpoints of every {common} steps, as train.checkpoint_every = {every} makes no others"
    return ""


def _spikes(settings: Settings) -> str:
    steps, least = settings.train.steps, USUAL_STEPS + settings.train.spike_steps
    short = settings.train.spikes == "palm" and steps < least
    return f"no effect with train.steps = {steps}: the first spike is seen after {least} steps" if short else ""


def _spike_skip_most(settings: Settings) -> str:
    return "no effect, as train.spike_tries = 1: there is no later try" if settings.train.spike_tries == 1 else ""


def _spike_window(settings: Settings) -> str:
    window, steps = settings.train.spike_window, settings.train.steps
    return f"no more effect than train.steps = {steps}, which it is beyond" if window > steps else ""


def _scale_window(settings: Settings) -> str:
    window, steps = settings.train.loss_scale_window, settings.train.steps
    return f"no effect, as it is longer than train.steps = {steps}" if window > steps else ""


def _lora_alpha(settings: Settings) -> str:
    return "" if settings.finetune.lora_rank else "no effect without finetune.lora_rank"


def _pipeline(settings: Settings) -> str:
    return "" if settings.parallel.stages > 1 else "no effect without parallel.stages"


def _strategy(settings: Settings) -> str:
    parallel = settings.parallel
    if parallel.strategy == "data" and parallel.model == 1:
        return "no effect, as palm is the same where parallel.model = 1"
    if parallel.strategy == "model" and parallel.pods * parallel.data == 1:
        return "no effect, as palm is the same where parallel.pods x parallel.data = 1"
    return ""


def _shard_weights(settings: Settings) -> str:
    parallel = settings.parallel
    in_pod = parallel.data * (parallel.model if parallel.strategy == "data" else 1)
    if parallel.strategy == "model":
        return "no effect, as parallel.strategy = model has no data shards"
    if parallel.shard_weights == "all" and parallel.pods == 1:
        return "no more effect than pod, as parallel.pods = 1" if in_pod > 1 else "no effect without data shards"
    if in_pod == 1 and parallel.shard_weights == "pod":
        return "no effect, as there is one data shard in a pod"
    return ""


def _reduce_gradients(settings: Settings) -> str:
    if settings.parallel.reduce_gradients == "auto":
        return ""
    if settings.parallel.data_shards == 1:
        return "no effect without data shards"
    return "" if settings.train.accumulates else "no effect, as each step is one micro-batch"


def _one_device(settings: Settings) -> str:
    return "no effect on one device" if settings.parallel.devices == 1 else ""


_PAIRS = _finetuning("a run on pairs does not store prepared tokens")
_OWN_TOKENIZER = _finetuning("a fine-tuned model keeps its tokenizer")
_READ_BY = {  # marked settings of the optimizers
    f"optimizer.{name}": mark
    for name, field in OptimizerConfig.model_fields.items()
    for mark in field.metadata
    if isinstance(mark, ReadBy)
}
_SPIKES = _only("train", "spikes", "palm")
_SCALED = _only("train", "compute_dtype", "float16")

USELESS: dict[str, Why | None] = {
    "model.preset": _preset,
    "model.layers": None,
    "model.d_model": None,
    "model.heads": None,
    "model.head_dim": None,
    "model.d_ff": None,
    "model.vocab_size": None,
    "model.vocab_multiple": None,
    "model.block": None,
    "model.attention": None,
    "model.mlp": None,
    "model.norm": None,
    "model.norm_epsilon": None,
    "model.norm_scale": None,
    "model.final_norm_scale": None,
    "model.scaled_logits": None,
    "model.xpos_base": None,
    "model.position": None,
    "model.position_rows": _only("model", "position", "learned"),
    "optimizer.name": None,
    "optimizer.schedule": None,
    "optimizer.learning_rate": _learning_rate,
    "optimizer.warmup_steps": _either(_only("optimizer", "schedule", "constant", "cosine"), _long_warmup),
    "optimizer.final_fraction": _either(_only("optimizer", "schedule", "cosine"), _final_fraction),
    "optimizer.clip_norm": None,
    **{name: _only("optimizer", "name", mark.optimizer) for name, mark in _READ_BY.items()},
    "data.path": _path,
    "data.mixture": None,
    "data.text_field": _either(_finetuning("finetune.prompt_field and target_field name its fields"), _text_field),
    "data.seq_len": None,
    "data.validation_fraction": None,
    "data.tokenizer": _OWN_TOKENIZER,
    "data.tokenizer_megabytes": _either(_OWN_TOKENIZER, _tokenizer_megabytes),
    "data.prepared": _PAIRS,
    "train.steps": None,
    "train.batch_size": _ramp,
    "train.micro_batch": _micro_batch,
    "train.z_loss": None,
    "train.seed": None,
    "train.eval_every": _eval_every,
    "train.eval_sequences": _eval_sequences,
    "train.output": None,
    "train.checkpoint_every": _checkpoint_every,
    "train.keep_last": _few_checkpoints,
    "train.keep_every": _either(_few_checkpoints, _keep_every),
    "train.checkpoint_in_background": _few_checkpoints,
    "train.spikes": _spikes,
    "train.spike_window": _either(_SPIKES, _spike_window),
    "train.spike_deviations": _SPIKES,
    "train.spike_steps": _SPIKES,
    "train.spike_look_back": _SPIKES,
    "train.spike_skip": _SPIKES,
    "train.spike_skip_most": _either(_SPIKES, _spike_skip_most),
    "train.spike_tries": _SPIKES,
    "train.device": None,
    "train.compute_dtype": None,
    "train.tf32": _only("train", "device", "auto", "GPU"),
    "train.loss_scale": _SCALED,
    "train.loss_scale_window": _either(_SCALED, _scale_window),
    "train.peak_tflops": None,
    "train.trackers": None,  # what it names beside TensorBoard; the banner says that TensorBoard is always written
    "finetune.checkpoint": None,
    "finetune.prompt_field": _without_checkpoint,
    "finetune.target_field": _without_checkpoint,
    "finetune.dropout": _without_checkpoint,
    "finetune.lora_rank": _without_checkpoint,
    "finetune.lora_alpha": _either(_without_checkpoint, _lora_alpha),
    "parallel.pods": None,
    "parallel.data": None,
    "parallel.model": None,
    "parallel.stages": None,
    "parallel.interleave": _pipeline,
    "parallel.schedule": _pipeline,
    "parallel.stage_layers": _pipeline,
    "parallel.strategy": _either(_one_device, _strategy),
    "parallel.shard_weights": _either(_one_device, _shard_weights),
    "parallel.recompute": None,
    "parallel.reduce_gradients": _either(_one_device, _reduce_gradients),
    "parallel.reduce_dtype": _either(_one_device, _only("train", "compute_dtype", "auto", "bfloat16", "float16")),
}
"""Why each setting has no effect, or less than it says; closed: a test asks for an entry for every setting."""

OFF: dict[str, Any] = {
    "model.position_rows": 0,
    "optimizer.warmup_steps": 0,
    **{name: mark.off for name, mark in _READ_BY.items() if mark.off is not None},
    "data.mixture": [],
    "data.tokenizer": "",
    "train.micro_batch": 0,
    "train.eval_every": 0,
    "train.checkpoint_every": 0,
    "train.keep_every": 0,
    "train.tf32": False,
    "finetune.dropout": 0.0,
    "finetune.lora_rank": 0,
    "parallel.strategy": "palm",
    "parallel.shard_weights": "off",
    "parallel.reduce_gradients": "auto",
    "parallel.reduce_dtype": "float32",
}
"""Values that ask for nothing."""
