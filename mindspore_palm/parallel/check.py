"""Checks before anything is compiled: devices, sizes of axes, groups on servers, shards of weights.

``check_layout`` rejects settings and advises a change that it has tried: with it, the check passes. ``find_misfit``
holds the rules themselves; the search for meshes uses it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from math import prod
from typing import Any

from mindspore_palm.config import PaLMConfig, Settings
from mindspore_palm.devices import DEVICES, PLANNED_DTYPE
from mindspore_palm.errors import UserError
from mindspore_palm.parallel.advice import Change, apply, in_words, meshes
from mindspore_palm.parallel.axes import PER_MICRO_BATCH, PER_STEP, PODS_PER_STEP, TABLES, ZERO_BUBBLE_V, Layout
from mindspore_palm.parallel.mesh import DATA, MODEL, POD, STAGE, Mesh
from mindspore_palm.parallel.placement import Placement
from mindspore_palm.parallel.stages import stage_layers

SERVER = 8  # Ascend devices per server; MindSpore wants larger numbers of devices to be multiples of it
REPEATS = 64  # members of a group beyond which a longer one adds nothing about servers
SMALL_COUNTS = (1, 2, 4)  # smaller numbers of devices that MindSpore partitions for
MAX_REPLICATED = 0.02  # share of the weights' bytes that may be replicated although weights are to be sharded
ANY = ()  # every value of a setting
SETTINGS = {STAGE: "parallel.stages", POD: "parallel.pods", DATA: "parallel.data", MODEL: "parallel.model"}
SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "model.block": ("serial",),
    "model.attention": ("multi_head",),
    "model.mlp": ("geglu", "gelu", "relu"),
    "model.norm": ("layer_norm",),
    "model.norm_epsilon": ANY,
    "model.norm_scale": ("around_one",),
    "model.final_norm_scale": (True,),
    "model.scaled_logits": (False,),
    "model.xpos_base": ANY,
    "optimizer.factored": (True,),
}
"""Departures from PaLM that a mesh supports, with their values; LoRA is for one device."""
PlacementsOf = Callable[[PaLMConfig, Layout], Sequence[Placement]]


@dataclass(frozen=True)
class Misfit:
    """The first thing about settings that does not fit their layout."""

    kind: str
    """Name of the check that failed."""
    text: str
    """Setting, value and rule."""
    changes: tuple[Change, ...]
    """Changes of settings that may help, best first; none has been tried."""


def layout_of(settings: Settings, target: str = "CPU", planned: bool = False) -> Layout:
    """The layout of settings on a device target.

    Args:
        settings: all of them.
        target: CPU, GPU or Ascend.
        planned: for a plan or a dry run, which computes nothing: any dtype will do, and auto is bfloat16 but on a CPU.
    """
    parallel, dtype = settings.parallel, settings.train.compute_dtype
    return Layout(
        Mesh(parallel.pods, parallel.data, parallel.model, parallel.stages),
        TABLES[parallel.strategy],
        parallel.shard_weights,
        parallel.recompute,
        PLANNED_DTYPE if planned and dtype == "auto" and target != "CPU" else DEVICES[target].dtype(dtype),
        target,
        stage_layers(settings),
        parallel.schedule,
        _reductions(settings),
        parallel.reduce_dtype,
        planned,
    )


def _reductions(settings: Settings) -> str:
    """How often a step reduces gradients, where auto is resolved, and what makes no difference is per micro-batch."""
    parallel = settings.parallel
    if parallel.stages > 1:
        return PER_STEP
    if parallel.reduce_gradients == "auto" or parallel.devices == 1 or not settings.train.accumulates:
        return PER_MICRO_BATCH
    return parallel.reduce_gradients


def check_layout(
    settings: Settings,
    layout: Layout,
    placements_of: PlacementsOf,
    from_step: int = 0,
    may_change: Callable[[str], bool] = lambda _: True,
) -> None:
    """Checks that the settings fit the layout.

    Args:
        settings: of the run.
        layout: the layout.
        placements_of: returns the placements of a network's weights on a layout.
        from_step: the first step still to be taken; batch sizes of earlier steps need not fit.
        may_change: whether the message may advise a change of a setting; a started run keeps most of them.

    Raises:
        UserError: names setting, sizes and a change with which the check passes.
    """
    misfit = find_misfit(settings, layout, placements_of, from_step)
    if misfit is None:
        return
    own_sizes = bool(settings.finetune.checkpoint)  # of which a fine-tuned model changes the padding alone
    table = layout.table if layout.table != TABLES[settings.parallel.strategy] else None  # as decoding has it

    def is_choice(name: str) -> bool:
        return may_change(name) and not (own_sizes and name.startswith("model.") and name != "model.vocab_multiple")

    def left(change: Change) -> Misfit | None:
        """The misfit that remains after a change; the same one if the change is not allowed."""
        changed = apply(settings, change) if all(map(is_choice, change)) else None
        if changed is None:
            return misfit
        other = layout_of(changed, layout.target, layout.planned)
        return find_misfit(changed, replace(other, table=table) if table else other, placements_of, from_step)

    def completed(change: Change, kinds: frozenset[str]) -> Change | None:
        """A change together with further ones that make the rest fit; None if there are none."""
        rest = left(change)
        if rest is None:
            return change
        if rest.kind in kinds:
            return None
        more = (completed({**change, **own}, kinds | {rest.kind}) for own in rest.changes or meshes(layout.mesh))
        return next(filter(None, more), None)

    own = (completed(change, frozenset({misfit.kind})) for change in misfit.changes)
    other = (change for change in meshes(layout.mesh) if left(change) is None)
    change = next(filter(None, chain(own, other)), None)
    raise UserError(f"{misfit.text}; set {in_words(change)}" if change else misfit.text)


def find_misfit(settings: Settings, layout: Layout, placements_of: PlacementsOf, from_step: int = 0) -> Misfit | None:
    """The first thing that does not fit; None if everything does. Arguments as in ``check_layout``."""
    device = DEVICES[layout.target]
    if not layout.planned and layout.compute_dtype not in device.dtypes:  # MS-31
        text = f"train.compute_dtype = {layout.compute_dtype}: {device.why}"
        return Misfit("dtype", text, tuple({"train.compute_dtype": dtype} for dtype in device.dtypes))
    if layout.devices == 1:
        return None
    return (
        _devices(layout)
        or _departures(settings)
        or (_stages(settings, layout, from_step) if layout.mesh.stages > 1 else None)
        or _reduced(settings, layout)
        or _sizes(settings, layout)
        or _batches(settings, layout, from_step)
        or (_servers(layout.mesh) if layout.target == "Ascend" else None)
        or (_sharded(settings, layout, placements_of) if layout.weight_shards > 1 else None)
    )


def partitions_for(devices: int) -> bool:
    """Whether MindSpore partitions for this number of devices."""
    return devices in SMALL_COUNTS or devices % SERVER == 0


def check_servers(mesh: Mesh) -> None:
    """Ascend's groups must take the same places in every server of 8 that they touch (MS-13).

    Raises:
        UserError: names the axis and sizes that work.
    """
    if misfit := _servers(mesh):
        raise UserError(misfit.text)


def _devices(layout: Layout) -> Misfit | None:
    if partitions_for(layout.devices):
        return None
    several = [name for axis, name in SETTINGS.items() if layout.mesh.sizes[axis] > 1]
    text = (
        f"{' x '.join(several)} = {layout.devices:,} devices, and MindSpore partitions for 1, 2, 4 or a multiple of 8"
    )
    return Misfit("devices", text, ())


def _servers(mesh: Mesh) -> Misfit | None:
    stride = 1
    for axis, setting in reversed(SETTINGS.items()):
        size = mesh.sizes[axis]
        length = size if size <= REPEATS else REPEATS + size % SERVER  # places repeat after 8 members
        starts = (outer * stride * size + inner for outer, inner in product(range(SERVER), range(min(stride, SERVER))))
        for start in (start for start in starts if start < mesh.devices):  # and after 8 groups, or 8 ranks beside
            places: dict[int, set[int]] = {}
            for member in range(start, start + length * stride, stride):
                places.setdefault(member // SERVER, set()).add(member % SERVER)
            if len({frozenset(taken) for taken in places.values()}) > 1:
                text = (
                    f"{setting} = {size}: on Ascend, the ranks of a group must take the same places in every server "
                    f"of {SERVER}, and {start}, {start + stride} ... {start + (size - 1) * stride} do not, as with "
                    "parallel.model 1, 2, 4 or a multiple of 8, such as 8, 16 or 24"
                )
                return Misfit("servers", text, ())
        stride *= size
    return None


def _departures(settings: Settings) -> Misfit | None:
    for setting, value in settings.departures().items():
        if setting in SUPPORTED and (SUPPORTED[setting] == ANY or value in SUPPORTED[setting]):
            continue
        section, name = setting.split(".")
        default = type(getattr(settings, section)).model_fields[name].default
        text = f"{in_words({setting: value})} is for one device, and parallel asks for {settings.parallel.devices}"
        one = {name: 1 for name in SETTINGS.values() if name != SETTINGS[STAGE] or settings.parallel.stages > 1}
        return Misfit(f"departure {setting}", text, ({setting: default}, one))
    return None


def _stages(settings: Settings, layout: Layout, from_step: int) -> Misfit | None:
    """Layers, micro-batches, text and dtypes that a pipeline does not take."""
    stages, layers, train = layout.mesh.stages, settings.model.layers, settings.train
    asked, by_hand = f"parallel.stages = {stages}", settings.parallel.stage_layers
    interleave, schedule = settings.parallel.interleave, settings.parallel.schedule
    if schedule != "1f1b" and interleave == 1:
        text = f"parallel.schedule = {schedule}: MindSpore has it for interleaved stages alone"
        return Misfit("schedule", text, ({"parallel.interleave": 2}, {"parallel.schedule": "1f1b"}))
    if schedule == ZERO_BUBBLE_V and interleave != 2:
        text = f"parallel.schedule = {schedule} has 2 runs of layers a stage, and parallel.interleave = {interleave}"
        return Misfit("schedule", text, ({"parallel.interleave": 2},))
    runs = settings.parallel.runs
    cut = asked if interleave == 1 else f"{asked} with parallel.interleave = {interleave}"
    if layers < runs:
        fewer = [{"parallel.interleave": n} for n in range(layers // stages, 0, -1) if interleave > 1]
        text = f"{cut} needs {runs} layers, and model.layers = {layers}"
        return Misfit("stages", text, (*fewer, {"parallel.stages": layers}))
    if by_hand and (len(by_hand) != runs or sum(by_hand) != layers):
        text = (
            f"parallel.stage_layers = {by_hand} are {len(by_hand)} runs of {sum(by_hand)} layers in all, and {cut} "
            f"and model.layers = {layers} need {runs} of {layers}"
        )
        return Misfit("stage layers", text, ({"parallel.stage_layers": []},))
    least = settings.parallel.least_micro_batches
    for size in train.sizes_from(from_step):
        count = size // train.micro_batch_of(size)
        if count < least:
            shards = layout.shards("batch")
            fitting = [n for n in range(shards, size // least + 1, shards) if size % n == 0]
            text = (
                f"{asked} with parallel.schedule = {schedule} needs {least} micro-batches, and a batch of {size} "
                f"sequences with train.micro_batch = {train.micro_batch} has {count}"
            )
            return Misfit("micro-batches", text, tuple({"train.micro_batch": n} for n in reversed(fitting)))
    return None


def _reduced(settings: Settings, layout: Layout) -> Misfit | None:
    """Reductions of gradients that a layout does not have, and what steps do not take that are one graph."""
    parallel, reduced = settings.parallel, settings.parallel.reduce_gradients
    asked = f"parallel.reduce_gradients = {reduced}"
    again: Change = {"parallel.reduce_gradients": PER_MICRO_BATCH}
    if parallel.stages > 1:
        asked, again = f"parallel.stages = {parallel.stages}", {"parallel.stages": 1}
        if reduced not in ("auto", PER_STEP):
            text = f"parallel.reduce_gradients = {reduced}: a pipeline reduces gradients once a step"
            return Misfit("reductions", text, ({"parallel.reduce_gradients": PER_STEP},))
    if layout.unrolled and settings.finetune.checkpoint:
        return Misfit(
            "fine-tuning",
            f"{asked}: fine-tuning takes one stage, and gradients of one micro-batch after the other",
            (again,),
        )
    if layout.unrolled and layout.compute_dtype == "float16":
        text = f"{asked}: train.compute_dtype = float16 needs a loss scale, which a step of one graph does not have"
        return Misfit("float16", text, ({"train.compute_dtype": "float32"}, again))
    replicated = parallel.pods > 1 and layout.shard_weights == "pod" and layout.weight_shards > 1
    if layout.reduce_gradients == PODS_PER_STEP and not replicated:
        text = f"{asked} is for weights that are sharded inside each of several pods"
        return Misfit("reductions", text, ({"parallel.reduce_gradients": PER_STEP}, again))
    if layout.reduce_dtype == "float32":
        return None
    asked, back = f"parallel.reduce_dtype = {layout.reduce_dtype}", {"parallel.reduce_dtype": "float32"}
    if layout.unrolled:  # MindSpore's sums are as the weights
        return Misfit("reduce dtype", f"{asked}: gradients that are summed over a step are float32", (back,))
    if layout.weight_shards > 1:  # MS-67
        text = f"{asked}: MindSpore would reduce full gradients between pods, and scatter them in float32 all the same"
        return Misfit("reduce dtype", text, ({"parallel.shard_weights": "off"}, back))
    return None


def _named(layout: Layout, axis: str) -> str:
    """The settings of the mesh axes that shard a logical axis."""
    return " x ".join(SETTINGS[name] for name in layout.mesh_axes(axis))


def _sizes(settings: Settings, layout: Layout) -> Misfit | None:
    model = settings.model
    heads, vocab = layout.shards("heads"), layout.shards("vocab")
    if model.heads % heads:
        text = f"model.heads = {model.heads} cannot be sharded into {_named(layout, 'heads')} = {heads} equal parts"
        return Misfit("heads", text, ())
    if model.padded_vocab % vocab:
        text = (
            f"the {model.padded_vocab:,} rows of the embedding cannot be sharded into {_named(layout, 'vocab')} = "
            f"{vocab} equal parts"
        )
        multiples = (vocab * layout.weight_shards, vocab)
        return Misfit("vocab", text, tuple({"model.vocab_multiple": multiple} for multiple in multiples))
    return None


def _batches(settings: Settings, layout: Layout, from_step: int) -> Misfit | None:
    train, parts = settings.train, layout.shards("batch")
    for size in train.sizes_from(from_step):
        micro_batch = train.micro_batch_of(size)
        if micro_batch % parts:
            name = "train.micro_batch" if train.micro_batch else "train.batch_size"
            text = f"{name} = {micro_batch} cannot be sharded into {_named(layout, 'batch')} = {parts} equal parts"
            return Misfit("batch", text, tuple(_larger_batches(settings, parts)))
    return None


def _larger_batches(settings: Settings, parts: int) -> list[Change]:
    """Changes that make batches divisible: each size rounded up to a multiple of the shards, or of a micro-batch."""
    train = settings.train

    def rounded(multiple: int) -> int | list[list[int]]:
        ramp = [[start, -(-size // multiple) * multiple] for start, size in train.batch_ramp()]
        return ramp[0][1] if isinstance(train.batch_size, int) else ramp

    if not train.micro_batch:
        return [{"train.batch_size": rounded(parts)}]
    micro_batch = -(-train.micro_batch // parts) * parts
    return [
        {"train.micro_batch": micro_batch},
        {"train.micro_batch": micro_batch, "train.batch_size": rounded(micro_batch)},
        {"train.micro_batch": 0},
    ]


def _sharded(settings: Settings, layout: Layout, placements_of: PlacementsOf) -> Misfit | None:
    """Checks the weights of one block, since all blocks are alike."""
    model = settings.model
    placements = placements_of(model.model_copy(update={"layers": 1}), layout)

    def size_of(placement: Placement) -> int:
        return prod(placement.shape) * (model.layers if placement.name.startswith("blocks.") else 1)

    # MS-08: MindSpore would not say so. Norms, and the table of a pipeline, are replicated on purpose
    replicated = [p for p in placements if p.fully_sharded and p.data_shards == 1]
    size, total = sum(map(size_of, replicated)), sum(map(size_of, placements))
    if size <= MAX_REPLICATED * total:
        return None
    worst = max(replicated, key=lambda p: prod(p.shape))
    rows = worst.shape[0] // worst.table_shards[0]
    text = (
        f"the weight {worst.name} {list(worst.shape)} would be replicated on every device, {size / total:.1%} of all "
        f"weights: its {rows:,} rows per device are no multiple of {layout.weight_shards} data shards"
    )
    changes: list[Change] = [{"parallel.shard_weights": "off"}]
    if worst.axes[0] == "vocab":
        changes.insert(0, {"model.vocab_multiple": worst.table_shards[0] * layout.weight_shards})
    return Misfit("sharded", text, tuple(changes))
