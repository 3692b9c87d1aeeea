"""MindSpore's errors when it does not partition a network (MS-34), as a sentence that a user can act on."""

from __future__ import annotations

import re

from mindspore_palm.config import Settings
from mindspore_palm.parallel.axes import Layout
from mindspore_palm.parallel.check import SETTINGS

_DIVIDE = re.compile(r"shape value (\d+) at dim index (\d+) cannot be divisible by strategy value (\d+)")
_GROUP = re.compile(r"rank list is: \[const vector\]\{(.*?)\}\s*$", re.MULTILINE)
_LOG = re.compile(r"^\[ERROR\] \S+ \[.*?\] \w+\] ?(.*)$", re.MULTILINE)
_OTHER = re.compile(
    r"^(?:MemoryError|OSError|\w+NotFoundError|PermissionError|UserError|mindspore_palm\S+)\b.*$", re.MULTILINE
)
OUR_OWN = "mindspore_palm.errors.UserError: "
_ENDED = re.compile(r"^\w*(?:Error|Exception): .*$", re.MULTILINE)


def explain(log: str, settings: Settings, layout: Layout) -> str:
    """A sentence with parameter, axis and what to set, followed by MindSpore's own words.

    Args:
        log: log and traceback of the process that failed.
        settings: of the run.
        layout: the layout that it was compiled for.
    """
    if error := _OTHER.search(log):
        return f"the step was not compiled: {error.group().strip().removeprefix(OUR_OWN)}"
    words = [*_LOG.findall(log), *_ENDED.findall(log)] or log.strip().splitlines()[-1:]
    return f"{_sentence(log, settings, layout)}\n  MindSpore: {' | '.join(word.strip() for word in words[:3])}"


def _sentence(log: str, settings: Settings, layout: Layout) -> str:
    if match := _DIVIDE.search(log):
        size, _, shards = (int(number) for number in match.groups())
        dimension, setting = _dimension_of(size, settings)
        axes = [name for name in ("vocab", "heads", "tokens") if layout.shards(name) == shards]
        mesh = " x ".join(SETTINGS[a] for a in layout.mesh_axes(axes[0])) if axes else "the mesh"
        rule = f"cannot be sharded into {mesh} = {shards:,} equal parts"
        return f"{dimension} of {size:,} {rule}; change {setting} or {mesh}"
    if match := _GROUP.search(log):
        ranks = [int(rank) for rank in re.findall(r"\{(\d+)\}", match.group(1))]
        step = ranks[1] - ranks[0] if len(ranks) > 1 else 0
        strides = {1: "model", layout.mesh.model: "data", layout.mesh.model * layout.mesh.data: "pod"}
        setting = SETTINGS.get(strides.get(step, ""), "the mesh")
        return (
            f"{layout.target} has no group of the ranks {ranks[0]}, {ranks[min(1, len(ranks) - 1)]} ... {ranks[-1]}, "
            f"which {setting} = {len(ranks)} asks for; set it to another size"
        )
    if "device_num" in log:  # MS-14
        count = layout.devices
        return f"MindSpore partitions for 1, 2 or 4 devices or a multiple of 8, not for {count:,}; change parallel"
    return f"MindSpore does not partition this step for {layout.mesh}; change parallel, or see its message"


def _dimension_of(size: int, settings: Settings) -> tuple[str, str]:
    """The dimension that has a size, and its setting."""
    model = settings.model
    batch = settings.train.micro_batch_of(settings.train.batch_ramp()[-1][1])
    named = {
        model.padded_vocab: ("a vocabulary", "model.vocab_size or model.vocab_multiple"),
        model.heads: ("a number of heads", "model.heads"),
        batch: ("a batch", "train.batch_size or train.micro_batch"),
        batch * settings.data.seq_len: ("a batch's tokens", "train.batch_size or train.micro_batch"),
        model.d_ff: ("a width d_ff", "model.d_ff"),
        model.d_model: ("a width d_model", "model.d_model"),
    }
    return named.get(size, ("a size", "the model's sizes"))
