"""What XLA made of PaLM for TPU v4, and its collectives of a layer beside those of MindSpore's partitioner.

``python tests/tpu/table.py --memory``: bytes a chip of 8B, 62B and 540B, on the meshes of ``yaml/``.
``python tests/tpu/table.py``: the collectives of one layer of 540B on two pods, or of ``--config palm_62b``.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections import Counter
from itertools import zip_longest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tpu.cases import case_of, settings_of
from tpu.collectives import per_layer
from tpu.runs import compiled

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


def xla_lines(config: str) -> dict[tuple[str, str], list[str]]:
    """(part, of what) to what XLA has."""
    case = case_of(settings_of(config))
    lines: dict[tuple[str, str], list[str]] = {}
    for kind, count in sorted(per_layer(compiled(case).program, case).items()):
        text = cell(count, kind.op, kind.axes, TYPES[kind.dtype], kind.bytes)
        lines.setdefault((kind.part, kind.what), []).append(text)
    return lines


def mindspore_lines(config: str) -> dict[tuple[str, str], list[str]]:
    """(part, of what) to what MindSpore has, less the scalars of the optimizer."""
    from mindspore_palm.plan import ledger
    from mindspore_palm.plan.dry_run import dry_run

    two, three = (dry_run(settings_of(config, f"model.layers={layers}")) for layers in (2, 3))
    found: Counter[ledger.Collective] = ledger.per_layer(two, three)
    lines: dict[tuple[str, str], list[str]] = {}
    for kind, count in sorted(found.items()):
        if kind.given:
            text = cell(count, kind.op, kind.axes, kind.dtype.lower(), kind.bytes)
            lines.setdefault((kind.part, kind.weight or "activations"), []).append(text)
    return lines


def cell(count: int, op: str, axes: str, dtype: str, size: int) -> str:
    """One kind of collective."""
    return f"{f'{count} x ' if count > 1 else ''}{op}, {axes}: {dtype} {size / 1e6:,.3f}"


def beside(config: str) -> list[tuple[str, ...]]:
    """Rows of the table of both."""
    ours, theirs = mindspore_lines(config), xla_lines(config)
    rows = [("part", "of", "MindSpore: MB", "XLA, TPU v4: MB")]
    for key in sorted({*ours, *theirs}, key=lambda key: (key[0] != "forward", key[1])):
        for i, pair in enumerate(zip_longest(ours.get(key, []), theirs.get(key, []), fillvalue="")):
            rows.append((*(key if i == 0 else ("", "")), *pair))
    return rows


def show(rows: list[tuple[str, ...]]) -> str:
    """Columns to read."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=("palm_62b", "palm_540b"), default="palm_540b")
    parser.add_argument("--memory", action="store_true", help="bytes a chip, for all sizes")
    options = parser.parse_args()
    if options.memory:
        print(show(memory()))
        return
    print(show(beside(options.config)))
    if options.config == "palm_540b":
        print("\n" + textwrap.fill(NOTES, 120))


if __name__ == "__main__":
    main()
