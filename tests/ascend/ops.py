"""Ops of the training step compiled for Ascend, and the kernel that MindSpore's plugin has for each.

``python tests/ascend/ops.py`` prints the table of docs/design/ascend-kernels.md.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from mindspore_palm.config import Settings  # noqa: E402 - found by the path above
from mindspore_palm.devices import DEVICES  # noqa: E402
from mindspore_palm.dry_run.compile import partitioned_graph  # noqa: E402

MODEL = {"layers": 1, "d_model": 64, "heads": 2, "head_dim": 32, "d_ff": 128, "vocab_size": 302, "vocab_multiple": 4}
OPTIMIZERS = ({"name": "adafactor"}, {"name": "adamw"}, {"name": "lion"})
SMALLEST = {"name": "adamw"}  # the optimizer with the smallest graph
NOTHING = frozenset(["MakeTuple", "TupleGetItem", "UpdateState", "Load", "Depend", "Partial", "Switch", "Return"])
"""Nodes that the compiler resolves: none of them is computed."""
COLLECTIVES = frozenset(["AllReduce", "AllGather", "ReduceScatter"])
NODE = re.compile(r"^ +%\d+\([^)]*\) = (?:PrimFunc_)?(\w+)\(")
Op = tuple[str, tuple[str | None, ...]]
"""Name, and the dtype of each input; None for what is no tensor."""


def settings_of(dtype: str, optimizer: dict[str, Any], mesh: dict[str, int], **switches: Any) -> Settings:
    """The smallest step with these settings."""
    return Settings.model_validate(
        {
            "model": {**MODEL, **switches},
            "data": {"seq_len": 16},
            "parallel": mesh,
            "train": {"batch_size": 4, "compute_dtype": dtype},
            "optimizer": optimizer,
        }
    )


def graphs(dtype: str) -> list[str]:
    """Texts of the step of each optimizer for Ascend, in a compute dtype, as rank 0 of 2 x 2."""
    chosen = OPTIMIZERS if dtype == DEVICES["Ascend"].dtypes[0] else OPTIMIZERS[:1]
    mesh = {"data": 2, "model": 2}
    return [partitioned_graph(settings_of(dtype, optimizer, mesh), "Ascend", 0)[0] for optimizer in chosen]


def ops_of(graph: str) -> set[Op]:
    """The ops of a graph that compute."""
    found: set[Op] = set()
    lines = graph.splitlines()
    for line, types in pairwise(lines):
        node = NODE.match(line)
        if node and node[1] not in NOTHING | COLLECTIVES:
            inputs = types[types.index("(<") + 1 : types.index(">) -> (")].split(">, <")
            dtypes = tuple(m[1] if (m := re.match(r"<?(?:Ref\[)?Tensor\[(\w+)\]", text)) else None for text in inputs)
            found.add((node[1], dtypes))
    return found


def kernels(ops: list[Op]) -> list[tuple[str, list[int]]]:
    """Kind of kernel of each op, and its inputs whose dtype the plugin does not list."""
    with tempfile.TemporaryDirectory() as folder:
        script = str(ROOT / "tests" / "ascend" / "plugin.py")
        asked = subprocess.run(
            [sys.executable, script, folder], input=json.dumps(ops), capture_output=True, text=True, cwd=ROOT
        )
    if asked.returncode:
        raise RuntimeError(asked.stderr)
    return [(kind, unsupported) for kind, unsupported in json.loads(asked.stdout.splitlines()[-1])]


def table() -> str:
    """The table of the page: op, dtypes of its tensors, kernel."""
    ops = sorted({op for dtype in DEVICES["Ascend"].dtypes for graph in graphs(dtype) for op in ops_of(graph)}, key=str)
    rows: dict[tuple[str, str], set[str]] = {}
    for (name, dtypes), (kind, unsupported) in zip(ops, kernels(ops), strict=True):
        where = {"aclnn": f"aclnn{name}", "acl": "graph engine", "": "none"}[kind]
        if unsupported and kind != "aclnn":
            where += f", which does not list the dtype of input {unsupported[0]}"
        rows.setdefault((name, where), set()).update(t.lower() for t in dtypes if t)
    lines = [f"| {name} | {', '.join(sorted(types))} | {where} |" for (name, where), types in rows.items()]
    return "\n".join(["| op | dtypes of its tensors | kernel |", "|---|---|---|", *lines])


if __name__ == "__main__":
    print(table())
