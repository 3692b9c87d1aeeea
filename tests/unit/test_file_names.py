"""The names of a run's files have one home: no other module of the package spells them out."""

from __future__ import annotations

import ast
import re

import pytest
from unit.imports import PACKAGE, ROOT, SHIPPED, tree_of

from mindspore_palm import file_names

HOME = ROOT / PACKAGE / "file_names.py"
NAMES = {name: value for name, value in vars(file_names).items() if name.isupper()}
OF_OTHERS = {
    "mindspore_palm/config.py": {"tensorboard"},  # the name of a tracker
    "mindspore_palm/convert/huggingface.py": {"model.safetensors"},  # the name in the format of Hugging Face
    "mindspore_palm/convert/shards.py": {"model.safetensors"},  # the same
    "mindspore_palm/native.py": {"lock"},  # of a build
    "mindspore_palm/train/continuation.py": {"profile"},  # an option of the command
}
"""Names of other formats and folders that are spelled alike."""


def is_spelled_out(value: str, text: str) -> bool:
    """Whether a string is a name or a path with it; a name with an ending, wherever it stands in the string."""
    name = re.escape(value)
    if "." not in value:
        return re.search(rf"(^|/){name}($|/)", text) is not None
    before = "" if value.startswith(".") else r"(?<![\w.])"
    return re.search(rf"{before}{name}(?!\w)", text.replace("\\.", ".")) is not None


def spelled_out(tree: ast.AST) -> set[str]:
    """The names that strings of a module spell out; docstrings are free to speak of them."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    )
    return {value for text in strings for value in NAMES.values() if is_spelled_out(value, text)}


def test_no_other_module_spells_a_name_out():
    found = {str(file.relative_to(ROOT)): spelled_out(tree_of(file)) for file in SHIPPED if file != HOME}
    assert {file: names for file, names in found.items() if names} == OF_OTHERS


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ('folder / "checkpoints"', {"checkpoints"}),
        ('f"{folder}/final/model.safetensors"', {"final", "model.safetensors"}),
        ('say("metrics.csv lacks rows")', {"metrics.csv"}),
        (r're.compile(r"(state\.json|x)(\.[0-9]+\.tmp)?")', {"state.json", ".tmp"}),
        ('"saves checkpoints"', set()),
        ('"my_state.json"', set()),
        ('def f():\n    """Reads metrics.csv."""', set()),
    ],
)
def test_a_name_that_is_spelled_out_is_found(line, names):
    assert spelled_out(ast.parse(line)) == names
