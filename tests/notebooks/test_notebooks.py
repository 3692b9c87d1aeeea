"""The notebooks run from first cell to last, and what they show is what is committed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="tests/requirements.txt has nbclient and ipykernel")
from nbclient import NotebookClient  # noqa: E402
from nbclient.exceptions import CellExecutionError  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "docs" / "notebooks"
BLOCK, PLANNING = NOTEBOOKS / "palm_block.ipynb", NOTEBOOKS / "planning_540b.ipynb"
LARGEST = 30_000  # bytes of a committed notebook
DIFFERENCE = re.compile(r"\d(\.\d)?e[-+]\d\d")  # of two machines; they round in another order
STEPS = ["embedding", "norm", "queries", "gate", "up", "keys", "values", "rotated queries", "attention", "SwiGLU"]
STEPS += ["output", "output, as a sum", "block", "logits", "PaLM"]


def read(file):
    return nbformat.read(file, as_version=4)


def execute(notebook, ask=None):
    """Runs a notebook where it is kept; returns its cells, and the value of a variable at its end."""
    if ask:
        notebook.cells.append(nbformat.v4.new_code_cell(f"import json; print(json.dumps({ask}))"))
    here = {"metadata": {"path": str(NOTEBOOKS)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=here).execute()
    return notebook.cells, json.loads(printed(notebook.cells.pop())) if ask else None


def printed(cell):
    """Text that a cell has written to standard output; other output is an error."""
    outputs = [output for output in cell.get("outputs", ()) if output.get("name") != "stderr"]
    assert all(output.output_type == "stream" for output in outputs), outputs
    return "".join(output.text for output in outputs)


@pytest.mark.parametrize("file", [BLOCK, PLANNING], ids=lambda file: file.stem)
def test_a_notebook_is_small_and_was_run_from_start_to_end(file):
    assert file.stat().st_size < LARGEST
    notebook = read(file)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert all(output.get("name") == "stdout" for cell in notebook.cells for output in cell.get("outputs", ()))


def test_the_block_is_the_references():
    cells, differences = execute(read(BLOCK), "differences")
    assert list(differences) == STEPS
    assert max(differences.values()) < 1e-5  # float32, some hundred roundings
    for cell, committed in zip(cells, read(BLOCK).cells, strict=True):
        assert DIFFERENCE.sub("", printed(cell)) == DIFFERENCE.sub("", printed(committed))


def test_the_plan_is_arithmetic_and_the_papers():
    cells, figures = execute(read(PLANNING), "figures")
    assert figures["parameters"] == 540_354_281_472
    layers, width, heads, dim, hidden, rows = 118, 18432, 48, 256, 73728, 256000
    count = layers * (2 * width * heads * dim + 2 * width * dim + 3 * width * hidden) + rows * width
    scores = 12 * layers * heads * dim * 2048
    assert figures["parameters"] == count and figures["flops_per_token"] == 6 * count + scores
    # appendix B: a third of the scores' FLOPs again, and three quarters of the forward pass of the weights
    assert figures["hardware_flops_per_token"] == pytest.approx(6 * count + scores + 1.5 * count + scores / 3)
    assert round(figures["published_mfu"], 3) == 0.462 and round(figures["published_hfu"], 3) == 0.578
    assert figures["step_seconds"] == pytest.approx(2048 * 2048 / 238.3e3, rel=0.05)
    assert figures["two_pods"] == pytest.approx(1.95, abs=0.05)
    assert [printed(cell) for cell in cells] == [printed(cell) for cell in read(PLANNING).cells]


def test_a_wrong_equation_stops_the_notebook():
    notebook = read(BLOCK)
    norm = next(cell for cell in notebook.cells if "y_TD = block.norm" in cell.source)
    norm.source = norm.source.replace('weights["blocks.0.norm.scale"]', "None")
    notebook.cells = notebook.cells[: notebook.cells.index(norm) + 1]
    with pytest.raises(CellExecutionError, match="AssertionError"):
        execute(notebook)
