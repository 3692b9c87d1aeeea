"""The sources, parsed: their modules, and what each imports."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "mindspore_palm"
PATTERNS = (f"{PACKAGE}/**/*.py", "run/*.py", "mindspore_hub_conf.py")
SHIPPED = [file for pattern in PATTERNS for file in sorted(ROOT.glob(pattern))]


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_by(file: Path) -> set[str]:
    """Modules by their full names, wherever in the file they are imported."""
    own, found = module_of(file), set()
    package = own if file.name == "__init__.py" else own.rpartition(".")[0]
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= names
            if base != PACKAGE or not all(is_module(name) for name in names):
                found.add(base)
    return found


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()
