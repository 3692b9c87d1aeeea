"""The sources, read and not run: which way imports go, what is never called, and what the package says of itself."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from graphlib import TopologicalSorter

import pytest
from unit import imports
from unit.imports import PACKAGE, ROOT, SHIPPED, imported_by, module_of, tree_of

UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
NETWORK = {"urllib", "http", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "huggingface_hub", "urllib3"}


def calls():
    """Every call of the shipped sources: its file, and what is called as it is written."""
    for file in SHIPPED:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Call):
                yield file.name, ast.unparse(node.func), node


def test_imports_only_go_down():
    """Neither between the rooms of the package nor between two modules is there a circle, late imports included."""
    files = {module_of(file): file for file in (ROOT / PACKAGE).rglob("*.py")}
    modules, rooms = {}, defaultdict(set)
    for name, file in files.items():
        modules[name] = {other for other in imported_by(file) & files.keys() if other != name}
        if name != PACKAGE:  # its names are found late, by design
            room = name.split(".")[1]
            rooms[room] |= {other.split(".")[1] for other in modules[name] if "." in other} - {room}
            assert PACKAGE not in modules[name] or file.parent == ROOT / PACKAGE, f"{name} imports the whole package"
    del modules[PACKAGE]
    packages = {name for name in modules if files[name].name == "__init__.py"}
    for name in modules:  # a package's own modules are below it
        modules[name] = {other for other in modules[name] if not (other in packages and name.startswith(f"{other}."))}
    for graph in (rooms, modules):
        assert list(TopologicalSorter(graph).static_order())  # a circle is a CycleError that names it
    assert {"model", "train", "config"} <= rooms.keys() | set().union(*rooms.values())


def test_the_reference_shares_no_code_with_the_package():
    for file in (ROOT / "tests" / "reference").glob("*.py"):
        assert not any(name.split(".")[0] == PACKAGE for name in imported_by(file)), file
        assert "mindspore" not in {name.split(".")[0] for name in imported_by(file)}, file
    for file in SHIPPED:
        assert not any(name.split(".")[0] in ("tests", "reference") for name in imported_by(file)), file


def test_nothing_opens_a_connection():
    """Sockets are for a free port of this machine alone."""
    for file in SHIPPED:
        assert not {name.split(".")[0] for name in imported_by(file)} & NETWORK, file
    for file, called, _ in calls():
        assert called.rpartition(".")[2] not in ("connect", "create_connection", "urlopen", "urlretrieve"), file


def test_nothing_that_is_read_can_execute_code():
    """No unpickling, no eval; YAML by a SafeLoader, PyTorch's files weights-only."""
    from mindspore_palm import settings

    for file in SHIPPED:
        for node in ast.walk(
            tree_of(file)
        ):  # of pickle, only the errors, by which a file that would need it is refused
            if isinstance(node, ast.Import):
                assert not any(alias.asname and alias.name in UNPICKLERS for alias in node.names), file
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in UNPICKLERS, file
            elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in UNPICKLERS:
                assert node.attr.endswith("Error"), f"{file}: {ast.unparse(node)}"
    seen = set()
    for file, called, node in calls():
        name, options = called.rpartition(".")[2], {option.arg: option.value for option in node.keywords}
        assert called not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), file
        assert name not in ("unsafe_load", "full_load", "load_checkpoint", "load_all"), f"{file}: {called}"
        if called == "yaml.load":
            seen.add(called)
            loader = getattr(settings, ast.unparse(options["Loader"]))
            assert file == "settings.py" and issubclass(loader, settings.yaml.SafeLoader)
        if called == "torch.load":
            seen.add(called)
            assert options["weights_only"].value is True, file
        assert "allow_pickle" not in options, file
        shell = options.get("shell")
        assert shell is None or (isinstance(shell, ast.Constant) and shell.value is False), file
    assert seen == {"yaml.load", "torch.load"}  # the sources were really read


def test_docstrings_start_with_a_noun_or_a_verb():
    for file in SHIPPED:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                assert not text.startswith("What"), f"{file}: {text.splitlines()[0]}"
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # beside a field
                assert not str(node.value.value).startswith("What"), f"{file}:{node.lineno}"


def test_no_file_of_ours_is_longer_than_400_lines():
    sources = [*SHIPPED, *(ROOT / PACKAGE).rglob("*.cc"), *(ROOT / PACKAGE).rglob("*.h")]
    sources += [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert not [file for file in sources if len(file.read_text(encoding="utf-8").splitlines()) > 400]


def test_every_file_of_text_names_its_encoding():
    """Else it is the locale's, which is ASCII under LC_ALL=C without Python's UTF-8 mode."""
    seen = set()
    for file, called, node in calls():
        name, options = called.rpartition(".")[2], {option.arg: option.value for option in node.keywords}
        where = f"{file}: {ast.unparse(node)}"
        if name in ("read_text", "write_text"):
            seen.add(name)
            assert "encoding" in options, where
        if called == "open":
            mode = options.get("mode") or (node.args[1] if len(node.args) > 1 else ast.Constant("r"))
            assert "encoding" in options or "b" in ast.unparse(mode), where
        if called.startswith("subprocess."):
            assert "encoding" in options or not {"text", "universal_newlines"} & options.keys(), where
    assert seen == {"read_text", "write_text"}


def test_the_versions_of_python_are_those_of_the_package():
    """And the sources are in the grammar of the oldest one."""
    assert "Python 3.10, 3.11 or 3.12" in (ROOT / "README.md").read_text()
    assert 'requires-python = ">=3.10,<3.13"\n' in (ROOT / "pyproject.toml").read_text()
    for file in [*SHIPPED, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        ast.parse(file.read_text(encoding="utf-8"), str(file), feature_version=(3, 10))


def test_pre_commit_has_the_ruff_of_the_tests():
    (version,) = re.findall(r"^ruff==(\S+)$", (ROOT / "tests" / "requirements.txt").read_text(), re.MULTILINE)
    assert f"    rev: v{version} #" in (ROOT / ".pre-commit-config.yaml").read_text()


def test_the_licence_is_apache_2_0():
    assert 'license = { text = "Apache-2.0" }\n' in (ROOT / "pyproject.toml").read_text()
    assert (ROOT / "LICENSE").read_text().split()[:5] == ["Apache", "License", "Version", "2.0,", "January"]


@pytest.mark.parametrize(
    ("text", "says"), [("from . import b", {"mindspore_palm", "mindspore_palm.b"}), ("import a.b", {"a.b"})]
)
def test_imports_are_read(text, says, monkeypatch):
    monkeypatch.setattr(imports, "tree_of", lambda _: ast.parse(text))
    assert imported_by(ROOT / PACKAGE / "x.py") == says
