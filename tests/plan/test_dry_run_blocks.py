"""Blocks of a dry run share one graph until MindSpore inlines them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from plan.small import small

from mindspore_palm.dry_run.compile import child_environment
from mindspore_palm.dry_run.graph import read_nodes, read_parameters
from mindspore_palm.dry_run.ledger import read_ledger
from mindspore_palm.parallel.check import layout_of
from mindspore_palm.settings import settings_to_yaml

ROOT = Path(__file__).resolve().parents[2]
COUNTED = """
import gc, sys
from mindspore.graph._parse import parser
from mindspore_palm.dry_run import compile as module
parsed, parse = [], parser.Parser.parse
parser.Parser.parse = lambda self: (parsed.append(self), parse(self))[1]
if sys.argv.pop() == "apart":
    module.share_blocks = lambda palm: None
module._compile()
print("parsed", len(parsed), "without" if not gc.isenabled() else "with", "collector")
"""


def compiled_by_hand(folder, layers, blocks):
    """Text of a graph, and how many functions were parsed for it; ``blocks``: shared or apart."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, "GPU", "0", blocks],
        input=settings_to_yaml(small(layers)),
        env=child_environment(str(folder)),
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    (graph,) = folder.rglob("*_validate_*.ir")
    return graph.read_text(encoding="utf-8", errors="replace"), int(
        re.findall(r"parsed (\d+) without collector", done.stdout)[0]
    )


def test_blocks_share_what_is_parsed_and_the_graph_is_that_of_blocks_apart(device, tmp_path):
    shared, parsed = compiled_by_hand(tmp_path / "shared", 4, "shared")
    apart, one_by_one = compiled_by_hand(tmp_path / "apart", 4, "apart")
    assert one_by_one - parsed >= 3 * 30  # functions of a block, for three of four
    assert Counter((n.op, n.shapes) for n in read_nodes(shared)) == Counter((n.op, n.shapes) for n in read_nodes(apart))
    assert sorted(read_parameters(shared), key=str) == sorted(read_parameters(apart), key=str)
    mesh = layout_of(small(4), "GPU", planned=True).mesh
    assert read_ledger(shared, mesh) == read_ledger(apart, mesh)
