"""What XLA made of PaLM for TPU v4, and its collectives of a layer beside those of MindSpore's partitioner.

``python tests/tpu/table.py --memory``: bytes a chip of 8B, 62B and 540B, on the meshes of ``yaml/``.
``python tests/tpu/table.py --plan``: the same beside the plan's formulas, for more meshes and kinds of recomputation.
``python tests/tpu/table.py``: the collectives of one layer of 540B on two pods, or of another configuration, such as
``--config palm_62b parallel.recompute=block``.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tpu import recorded
from tpu.cases import case_of, settings_of
from tpu.collectives import per_layer
from tpu.runs import compiled

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError, run_command

GiB = 2**30
CASES = {
    "8B": ("palm_8b", (), "minimal"),
    "62B": ("palm_62b", (), "minimal"),
    "540B, one pod": ("palm_540b", ("parallel.pods=1", "train.batch_size=1024"), ""),
    "540B, two pods": ("palm_540b", (), ""),
}
TYPES = {"bf16": "bfloat16", "f32": "float32"}
NOTES = """\
Both gather each weight over data in bfloat16, once for each pass, and sum gradients over data into slices, so that \
only slices cross pods. MindSpore sums them in float32, XLA in bfloat16 as the products give them: half the bytes; and \
72 rows a chip are no multiple of the 16 that bfloat16 comes in on a TPU, so XLA pads them to 80 and moves the rest \
to its place by permutes. Over model, MindSpore has the residual whole in a pass: one all-reduce, and before \
recomputing one all-gather of the slices that were kept. For XLA it stays in slices: an all-reduce is split into its \
halves, a reduce-scatter, here a ring around the output product, and an all-gather of the normed activations, which \
the backward pass does twice. The norm then sums its squares over model, kv is made of slices and summed, and every \
chip has only its slice of the norm's scale to sum. kv lies on every rank of model: XLA shards it over data, \
MindSpore over runs of consecutive ranks."""


def memory() -> list[tuple[str, ...]]:
    """Rows of the table of bytes a chip."""
    rows = [("PaLM", "chips", "mesh", "sequences a data rank", "recomputed", "state", "the rest", "GiB a chip")]
    for name, (config, overrides, recompute) in CASES.items():
        case = case_of(settings_of(config, *overrides), recompute)
        found = compiled(case)
        mesh = (case.pods, case.data, case.model)
        chips = f"{case.pods * case.data * case.model:,}"
        sizes = (f"{size / GiB:.2f}" for size in (found.argument_bytes, found.temp_bytes, found.bytes))
        rows.append((name, chips, " x ".join(map(str, mesh)), str(case.sequences), case.recompute, *sizes))
    return rows


def plan() -> list[tuple[str, ...]]:
    """Rows of the table of what the plan says, and what XLA took."""
    rows = [("PaLM", "mesh", "sequences", "recomputed", "state", "XLA's", "the rest", "XLA's", "differ by", "bytes")]
    for name, (config, *overrides) in recorded.CASES.items():
        settings = settings_of(config, *overrides)
        case, memory = case_of(settings), recorded.planned(settings)
        found, rest = compiled(case), recorded.beside_state(memory)
        sizes = (sum(memory.values()) - rest, found.alias_bytes, rest, found.temp_bytes)
        rows.append(
            (
                name.split(",")[0],
                f"{case.pods} x {case.data} x {case.model}",
                str(case.sequences),
                case.recompute,
                *(f"{size / GiB:.2f}" for size in sizes),
                f"{rest / found.temp_bytes - 1:+.1%}",
                f"{found.temp_bytes:,}",
            )
        )
    return rows


@dataclass(frozen=True, order=True)
class Entry:
    """One kind of collective of either side."""

    part: str
    what: str
    op: str
    axes: str
    dtype: str
    bytes: int
    count: int

    def __str__(self) -> str:
        times = f"{self.count} x " if self.count > 1 else ""
        return f"{times}{self.op}, {self.axes}: {self.dtype} {self.bytes / 1e6:,.3f}"


def xla_entries(settings: Settings) -> list[Entry]:
    """What a layer has in XLA's program."""
    case = case_of(settings)
    return sorted(
        Entry(kind.part, kind.what, kind.op, kind.axes, TYPES[kind.dtype], kind.bytes, count)
        for kind, count in per_layer(compiled(case).program, case).items()
    )


def mindspore_entries(settings: Settings) -> list[Entry]:
    """What a layer has in MindSpore's ledger."""
    from mindspore_palm.dry_run.compile import layer_ledger

    return sorted(
        Entry(kind.part, kind.weight or "activations", kind.op, kind.axes, kind.dtype.lower(), kind.bytes, count)
        for kind, count in layer_ledger(settings).counts.items()
    )


def sent(entries: list[Entry], axes: str, mesh: dict[str, int]) -> float:
    """MB that a device sends for a layer along axes of the mesh, by rings: an all-reduce in its two halves.

    ``axes``: "other" for groups along no one axis.
    """
    total = 0.0
    for entry in entries:
        if axes == (entry.axes if entry.axes in mesh else "other"):
            size = mesh[axes] if axes in mesh else group_size(entry.axes, mesh)
            passes = 1 if entry.op == "permute" else (size - 1) / size * (2 if "all-reduce" in entry.op else 1)
            total += entry.count * passes * entry.bytes / 1e6
    return total


def group_size(axes: str, mesh: dict[str, int]) -> int:
    """Devices of a group: of several axes, or as "24 ranks, every 256th" says."""
    words = axes.split()
    return int(words[0]) if words[0].isdigit() else prod(mesh[axis] for axis in axes.split(" x "))


def beside(settings: Settings) -> list[tuple[str, ...]]:
    """Rows of the table of both."""
    sides = mindspore_entries(settings), xla_entries(settings)
    rows = [("part", "of", "MindSpore: MB", "XLA, TPU v4: MB")]
    keys = {(entry.part, entry.what) for side in sides for entry in side}
    for key in sorted(keys, key=lambda key: (key[0] != "forward", key[1])):
        cells = ([str(entry) for entry in side if (entry.part, entry.what) == key] for side in sides)
        for i, pair in enumerate(zip_longest(*cells, fillvalue="")):
            rows.append((*(key if i == 0 else ("", "")), *pair))
    parallel = settings.parallel
    mesh = {"model": parallel.model, "data": parallel.data, "pod": parallel.pods}
    for axes in (*mesh, "other"):
        label = f"over {axes}" if axes in mesh else "other groups"
        rows.append(("sent", label, *(f"{sent(side, axes, mesh):,.1f}" for side in sides)))
    return rows


def show(rows: list[tuple[str, ...]]) -> str:
    """Columns to read."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=("palm_8b", "palm_62b", "palm_540b"), default="palm_540b")
    tables = parser.add_mutually_exclusive_group()
    tables.add_argument("--memory", action="store_true", help="bytes a chip, for all sizes")
    tables.add_argument("--plan", action="store_true", help="bytes a chip beside those of the plan")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for example parallel.pods=1")
    options = parser.parse_intermixed_args()
    try:
        if options.memory or options.plan:
            rows = memory() if options.memory else plan()
        else:
            rows = beside(settings_of(options.config, *options.overrides))
    except RuntimeError as error:
        raise UserError(f"not compiled: {error}") from error
    print(show(rows))
    if options.config == "palm_540b" and not options.overrides and not options.memory and not options.plan:
        print("\n" + textwrap.fill(NOTES, 120, break_on_hyphens=False))


if __name__ == "__main__":
    sys.exit(run_command(main))
