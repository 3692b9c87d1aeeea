"""The ledger: for each sentence of the README and its pages, the tests that show it, or that it promises nothing.

One YAML file per section of the README (``readme/``) and per page of PAGES (``docs/``), with its sentences in their
order. Each entry is one of

    - promises: a sentence              and at least one of
      tests: [path::test_name, ...]     tests that fail if the promise is broken
      measured: command                 the command that prints its numbers (or a list of commands)
      source: where it is published     for facts about other software, papers or machines
      untested: what, and why           the part of it that no test shows
    - explains: a sentence              that promises nothing: what things mean, what to type, what comes next

The checker writes two more kinds when a page changes, and the tests refuse both: ``unclassified`` (a new sentence)
and an entry with ``was`` (a changed sentence, with the evidence of the old one; read it again, then delete ``was``).
"""

from __future__ import annotations

import ast
import difflib
import re
import shlex
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from promises.sentences import normal, sentences_of

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = (
    "getting-started",
    "own-text",
    "generation",
    "fine-tuning",
    "evaluation",
    "conversion",
    "checkpoints",
    "loss-spikes",
    "many-devices",
    "pipelines",
    "accelerators",
    "dry-run",
    "cost-model",
    "machines",
    "pathways",
    "tpu-v4",
    "verification",
    "benchmarks",
    "commands",
    "data",
    "serving",
    "watching",
    "studies",
    "compiled-graphs",
    "planner",
    "hub",
    "clusters",
    "reference/api",
    "reference/checkpoint-format",
    "reference/metrics",
    "reference/weights",
    "design/architecture",
    "design/cpu-back-end",
    "design/decoding",
    "design/numerics",
    "design/sharding",
)
"""Pages of docs/ whose sentences are classified, as those of the README are."""
KINDS = ("promises", "explains", "unclassified")
EVIDENCE = ("tests", "measured", "source", "untested")
MARKS = ("slow", "tpu", "torch", "harness", "package", "browser", "trackers")  # tests that do not run by default
EXTENDED = ROOT / "tests" / "extended.txt"  # nor do these
ALIKE = 0.6  # of two sentences, so that one counts as the other one changed


@dataclass(frozen=True)
class Entry:
    """A sentence of the ledger."""

    kind: str  # of KINDS
    says: str
    tests: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    source: str = ""
    untested: str = ""
    was: str = ""


def read_ledger(folder: Path = FOLDER) -> dict[str, list[Entry]]:
    """Files below a folder, without their ending, to entries. Raises ValueError for what is no entry."""
    files = sorted(folder.rglob("*.yaml"))
    return {str(file.relative_to(folder).with_suffix("")): [_entry(raw, file) for raw in _raw(file)] for file in files}


def file_name(section: str) -> str:
    """Of a section's part of the ledger, without its ending."""
    return re.sub(r"\W+", "_", section.lower()).strip("_")


def sections_of(markdown: str) -> dict[str, list[str]]:
    """Sentences of a text by the names of its sections' files."""
    return {file_name(name): sentences for name, sentences in sentences_of(markdown).items()}


def classified_texts() -> dict[str, str]:
    """README and PAGES, by their paths: what users may take for promises."""
    files = [README, *(DOCS / f"{page}.md" for page in PAGES)]
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}


def classified(texts: dict[str, str]) -> dict[str, list[str]]:
    """Sentences by the file of the ledger that classifies them.

    Args:
        texts: as of ``classified_texts``.
    """
    found = {}
    for path, markdown in texts.items():
        sections = sections_of(markdown)
        if path == README.name:
            found |= {f"readme/{name}": sentences for name, sentences in sections.items()}
        else:
            found[path.removesuffix(".md")] = [sentence for sentences in sections.values() for sentence in sentences]
    return found


def problems(sections: dict[str, list[str]], ledger: dict[str, list[Entry]]) -> list[str]:
    """Sentences that are unclassified, stale, classified twice or out of place, and evidence that is not there."""
    found = [f"{name}.yaml: there is no such section or page" for name in ledger.keys() - sections.keys()]
    for name, sentences in sections.items():
        entries = ledger.get(name, [])
        wanted, there = Counter(sentences), Counter(entry.says for entry in entries)
        found += [f"{name}: unclassified: {sentence}" for sentence in wanted - there]
        found += [f"{name}: not on the page (or classified twice): {sentence}" for sentence in there - wanted]
        if wanted == there and sentences != [entry.says for entry in entries]:
            found.append(f"{name}.yaml: not in the order of the page")
        for entry in entries:
            found += [f"{name}: {problem}: {entry.says[:80]}" for problem in _problems_of(entry)]
    return found


def _problems_of(entry: Entry) -> Iterator[str]:
    if entry.kind == "unclassified":
        yield "unclassified"
    if entry.was:
        yield "changed (see whether its evidence still shows it, then delete 'was')"
    if entry.kind == "promises" and not any(getattr(entry, name) for name in EVIDENCE):
        yield f"a promise without any of {', '.join(EVIDENCE)}"
    if entry.kind != "promises" and any(getattr(entry, name) for name in EVIDENCE):
        yield "evidence of what is no promise"
    for test in entry.tests:
        yield from _problem_of_test(test)
    for command in entry.measured:
        files = [word for word in shlex.split(command) if "/" in word and "=" not in word]
        if not files:
            yield f"the command names no file: {command}"
        yield from (f"there is no {file}" for file in files if not (ROOT / file).exists())


def _problem_of_test(test: str) -> Iterator[str]:
    path, _, name = test.partition("::")
    if not (ROOT / path).is_file() or not re.fullmatch(r"tests/.*test_\w+\.py", path):
        yield f"there is no file of tests {path}"
    elif name not in marked_tests(path):
        yield f"there is no test {name} in {path}"
    elif "skip" in marked_tests(path)[name]:
        yield f"{test} is always skipped"


@cache
def marked_tests(path: str) -> dict[str, frozenset[str]]:
    """Tests of a file by name (of a class: Class::name), each with its marks; read, not imported. None of no file."""
    if not (ROOT / path).is_file():
        return {}
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    everywhere: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "pytestmark" for t in node.targets):
            everywhere |= _marks([*node.value.elts] if isinstance(node.value, ast.List) else [node.value])
    return dict(_tests(tree.body, "", everywhere))


def _tests(body: list[ast.stmt], prefix: str, marks: set[str]) -> Iterator[tuple[str, frozenset[str]]]:
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from _tests(node.body, f"{prefix}{node.name}::", marks | _marks(node.decorator_list))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            own = _marks(node.decorator_list) | ({"skip"} if any(map(_skips, node.body)) else set())
            yield prefix + node.name, frozenset(marks | own)


def _marks(decorators: list[ast.expr]) -> set[str]:
    """Names of marks; a skipif of a constant is a skip, any other may run."""
    found = set()
    for node in decorators:
        call = node if isinstance(node, ast.Call) else None
        name = ast.unparse(call.func if call else node)
        if name.startswith("pytest.mark."):
            always = call and call.args and isinstance(call.args[0], ast.Constant) and call.args[0].value
            found.add("skip" if name.endswith(".skipif") and always else name.removeprefix("pytest.mark."))
    return found


def _skips(statement: ast.stmt) -> bool:
    """Whether a statement of a test skips it whatever comes."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and ast.unparse(call.func) in ("pytest.skip", "pytest.xfail")


def marks_of(test: str) -> list[str]:
    """Those of MARKS that keep a test out of the default suite; ``extended`` for one that only CI runs."""
    path, _, name = test.partition("::")
    lines = EXTENDED.read_text(encoding="utf-8").splitlines()
    extended = any(line in lines for line in (test, test.partition("[")[0], path))
    return [mark for mark in MARKS if mark in marked_tests(path).get(name, ())] + ["extended"] * extended


def updated(sections: dict[str, list[str]], ledger: dict[str, list[Entry]]) -> dict[str, list[Entry]]:
    """The ledger in the order of the pages; new sentences are unclassified, changed ones keep evidence and ``was``."""
    unused = Counter({entry: 1 for entries in ledger.values() for entry in entries})
    by_text = {entry.says: entry for entry in unused}
    known = {sentence for sentences in sections.values() for sentence in sentences}
    stale = [entry for entry in unused if entry.says not in known]
    result = {}
    for name, sentences in sections.items():
        entries = result[name] = []
        for sentence in sentences:
            if sentence in by_text:
                entries.append(by_text[sentence])
            elif near := difflib.get_close_matches(sentence, [entry.says for entry in stale], 1, ALIKE):
                old = next(entry for entry in stale if entry.says == near[0])
                stale.remove(old)
                entries.append(Entry(**{**vars(old), "says": sentence, "was": old.was or old.says}))
            else:
                entries.append(Entry("unclassified", sentence))
    return result


def written(entries: list[Entry]) -> str:
    """The text of a section's file."""
    return "\n".join(map(_written, entries))


def _written(entry: Entry) -> str:
    lines = [f"- {entry.kind}: >-", *_wrapped(entry.says)]
    if entry.was:
        lines += ["  was: >-", *_wrapped(entry.was)]
    for name in EVIDENCE:
        value = getattr(entry, name)
        if value and isinstance(value, tuple):
            lines += [f"  {name}:", *(f"  - {one}" for one in value)]
        elif value:
            lines += [f"  {name}: >-", *_wrapped(value)]
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> list[str]:
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, 110, initial_indent="    ", subsequent_indent="    ", **options)


def _raw(file: Path) -> list[dict]:
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or []
    if not isinstance(content, list) or not all(isinstance(raw, dict) for raw in content):
        raise ValueError(f"{file}: expected a list of entries")
    return content


def _entry(raw: dict, file: Path) -> Entry:
    kinds = [kind for kind in KINDS if kind in raw]
    if len(kinds) != 1 or set(raw) - {*KINDS, *EVIDENCE, "was"}:
        raise ValueError(f"{file}: {raw}: an entry has one of {', '.join(KINDS)}, and {', '.join(EVIDENCE)}")
    measured = raw.get("measured") or ()
    return Entry(
        kind=kinds[0],
        says=normal(raw[kinds[0]]),
        tests=tuple(raw.get("tests") or ()),
        measured=(measured,) if isinstance(measured, str) else tuple(measured),
        source=normal(raw.get("source") or ""),
        untested=normal(raw.get("untested") or ""),
        was=normal(raw.get("was") or ""),
    )
