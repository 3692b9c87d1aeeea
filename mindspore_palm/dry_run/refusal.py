"""What MindSpore says when it does not partition a network (MS-34), as a sentence a user can act on."""

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


def explain(said: str, settings: Settings, layout: Layout) -> str:
    """A sentence with parameter, axis and what to set, and below it MindSpore's own words.

    Args:
        said: the log and the traceback of the process that failed.
        settings: of the run.
        layout: for which it was compiled.
    """
    if found := _OTHER.search(said):
        return f"the step was not compiled: {found.group().strip().removeprefix(OUR_OWN)}"
    words = [*_LOG.findall(said), *_ENDED.findall(said)] or said.strip().splitlines()[-1:]
    return f"{_sentence(said, settings, layout)}\n  MindSpore: {' | '.join(word.strip() for word in words[:3])}"


def _sentence(said: str, settings: Settings, layout: Layout) -> str:
    if found := _DIVIDE.search(said):
        size, _, pieces = (int(number) for number in found.groups())
        what, setting = _axis_of(size, settings, layout)
        axes = [name for name in ("vocab", "heads", "tokens") if layout.shards(name) == pieces]
        cut = " x ".join(SETTINGS[a] for a in layout.mesh_axes(axes[0])) if axes else "the mesh"
        return f"{what} of {size:,} cannot be cut into {cut} = {pieces:,} equal parts; change {setting} or {cut}"
    if found := _GROUP.search(said):
        ranks = [int(rank) for rank in re.findall(r"\{(\d+)\}", found.group(1))]
        step = ranks[1] - ranks[0] if len(ranks) > 1 else 0
        strides = {1: "model", layout.mesh.model: "data", layout.mesh.model * layout.mesh.data: "pod"}
        setting = SETTINGS.get(strides.get(step, ""), "the mesh")
        return (
            f"{layout.target} has no group of the ranks {ranks[0]}, {ranks[min(1, len(ranks) - 1)]} ... {ranks[-1]}, "
            f"which {setting} = {len(ranks)} asks for; set it to another size"
        )
    if "device_num" in said:  # MS-14
        count = layout.devices
        return f"MindSpore partitions for 1, 2 or 4 devices or a multiple of 8, not for {count:,}; change parallel"
    return f"MindSpore does not partition this step for {layout.mesh}; change parallel, or see what it says"


def _axis_of(size: int, settings: Settings, layout: Layout) -> tuple[str, str]:
    """What has a size, and the setting that gives it."""
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
