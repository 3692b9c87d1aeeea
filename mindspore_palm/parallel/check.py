"""What must fit before anything is compiled: sizes to axes, groups to servers, weights to shards."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.parallel.axes import TABLES, Layout
from mindspore_palm.parallel.mesh import DATA, MODEL, POD, Mesh
from mindspore_palm.parallel.placement import Placement

SERVER = 8  # Ascend devices of a server
WHOLE_AT_MOST = 0.02  # of all bytes of weights may lie whole on every device when weights are to be sharded
SETTINGS = {POD: "parallel.pods", DATA: "parallel.data", MODEL: "parallel.model"}
TYPES = {"CPU": "float32", "GPU": "bfloat16", "Ascend": "bfloat16"}


def layout_of(settings: Settings, target: str = "CPU") -> Layout:
    """The layout that settings ask for on a kind of device."""
    parallel, dtype = settings.parallel, settings.train.compute_dtype
    return Layout(
        Mesh(parallel.pods, parallel.data, parallel.model),
        TABLES[parallel.strategy],
        parallel.shard_weights,
        parallel.recompute,
        TYPES[target] if dtype == "auto" else dtype,
        target,
    )


def check_layout(settings: Settings, layout: Layout, placements: Sequence[Placement]) -> None:
    """Sees that the settings fit the layout.

    Raises:
        UserError: names setting, sizes and what to change.
    """
    if layout.target == "CPU" and layout.compute_dtype == "bfloat16":  # MS-31
        raise UserError("train.compute_dtype = bfloat16: MindSpore's CPU has no such product; set float32 or float16")
    if layout.devices == 1:
        return
    _check_ablations(settings)
    _check_sizes(settings, layout)
    if layout.target == "Ascend":
        check_servers(layout.mesh)
    if layout.weight_shards > 1:
        _check_sharded(layout, placements)


def check_servers(mesh: Mesh) -> None:
    """Ascend's groups must take the same places in every server of 8 that they touch (MS-13).

    Raises:
        UserError: names the axis and sizes that work.
    """
    for axis, setting in reversed(SETTINGS.items()):
        for rank in range(min(mesh.devices, SERVER * mesh.model)):  # from there on, places repeat
            group = mesh.group(rank, [axis])
            places: dict[int, set[int]] = {}
            for member in group:
                places.setdefault(member // SERVER, set()).add(member % SERVER)
            if len({frozenset(taken) for taken in places.values()}) > 1:
                raise UserError(
                    f"{setting} = {mesh.sizes[axis]}: on Ascend, the ranks of a group must take the same places in "
                    f"every server of {SERVER}, and {group[0]}, {group[1]} ... {group[-1]} do not; "
                    "set parallel.model to 1, 2, 4 or a multiple of 8, such as 8, 16 or 24"
                )


def _check_ablations(settings: Settings) -> None:
    model = settings.model
    ablated = {
        "model.parallel=false": not model.parallel,
        "model.attention=multi_head": model.attention != "multi_query",
        f"model.mlp={model.mlp}": model.mlp != "swiglu",
        "model.norm=layer_norm": model.norm != "rms_norm",
        "model.norm_scale=around_one": model.norm_scale != "around_zero",
        "model.final_norm_scale=true": model.final_norm_scale,
        "model.scaled_logits=false": not model.scaled_logits,
        f"model.xpos_base={model.xpos_base:g}": bool(model.xpos_base),
        f"finetune.lora_rank={settings.finetune.lora_rank}": bool(settings.finetune.lora_rank),
        "optimizer.factored=true": settings.optimizer.name == "adafactor" and settings.optimizer.factored,
    }
    for setting, there in ablated.items():
        if there:
            raise UserError(
                f"{setting} is for one device, and parallel asks for {settings.parallel.devices}; "
                f"leave it out, or set parallel.pods, parallel.data and parallel.model to 1"
            )


def _check_sizes(settings: Settings, layout: Layout) -> None:
    model, train = settings.model, settings.train
    heads, vocab, batch = layout.shards("heads"), layout.shards("vocab"), layout.shards("batch")
    names = {
        axis: " x ".join(SETTINGS[name] for name in layout.mesh_axes(axis)) for axis in ("heads", "vocab", "batch")
    }
    if model.heads % heads:
        fits = max(n for n in range(1, heads + 1) if model.heads % n == 0)
        raise UserError(
            f"model.heads = {model.heads} cannot be cut into {names['heads']} = {heads} equal parts; "
            f"set parallel.model so that it divides them, for example {fits}"
        )
    if model.padded_vocab % vocab:
        raise UserError(
            f"the {model.padded_vocab:,} rows of the embedding cannot be cut into {names['vocab']} = {vocab} equal "
            f"parts; set model.vocab_multiple to {vocab * layout.weight_shards}"
        )
    for _, size in train.batch_ramp():
        one_pass = train.micro_batch_of(size)
        if one_pass % batch:
            name = "train.micro_batch" if train.micro_batch else "train.batch_size"
            raise UserError(
                f"{name} = {one_pass} cannot be cut into {names['batch']} = {batch} equal parts; "
                f"set it to {-(-one_pass // batch) * batch}"
            )


def _check_sharded(layout: Layout, placements: Sequence[Placement]) -> None:
    whole = [p for p in placements if p.data_slices == 1]  # MS-08: MindSpore would not say so
    there, all_bytes = sum(prod(p.shape) for p in whole), sum(prod(p.shape) for p in placements)
    if there <= WHOLE_AT_MOST * all_bytes:
        return
    worst = max(whole, key=lambda p: prod(p.shape))
    rows = worst.shape[0] // worst.pieces[0]
    fix = f"model.vocab_multiple to {worst.pieces[0] * layout.weight_shards}"
    if worst.axes[0] != "vocab":
        fix = f"parallel.data so that it divides {rows:,}, or parallel.shard_weights=off"
    raise UserError(
        f"the weight {worst.name} {list(worst.shape)} would lie whole on every device, {there / all_bytes:.1%} of all "
        f"weights: its {rows:,} rows a device are no multiple of {layout.weight_shards} data shards; set {fix}"
    )
