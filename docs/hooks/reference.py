"""The parts of pages that are made from the code: settings, help of commands, machines.

A page marks the place: ``<!-- generated: settings -->``. GENERATED has what there is. Nothing here starts MindSpore.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mindspore_palm.cli.palm import COMMANDS
from mindspore_palm.config import Settings
from mindspore_palm.plan.machines import Machine, load_machine, machine_names

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"^<!-- generated: ([\w -]+) -->$", re.MULTILINE)
WIDTH = 100  # columns of a command's help


def filled(markdown: str) -> str:
    """The text of a page with its marks replaced. Raises KeyError for a mark that GENERATED lacks."""
    return MARK.sub(lambda found: GENERATED[found.group(1)](), markdown)


def settings() -> str:
    """Every setting by section: type, default and documentation."""
    schema = Settings.model_json_schema()
    sections = []
    for name, field in Settings.model_fields.items():
        section = schema["$defs"][field.annotation.__name__]
        rows = [
            f"| `{name}.{key}` | {_type(value, schema)} | {_default(value)} | {_cell(value.get('description', ''))} |"
            for key, value in section["properties"].items()
        ]
        head = "| setting | type | default | |\n|---|---|---|---|"
        sections.append("\n".join([f"## {name}\n\n{_plain(section['description'])}\n\n{head}", *rows]))
    return "\n\n".join(sections)


def commands() -> str:
    """Help of every command."""
    parts = []
    for name, command in COMMANDS.items():
        text = _help(name) if name != "harness" else ""
        shown = (
            f"```text\n{text}```"
            if text
            else "Its options are those of the harness: `palm harness --help` after its installation."
        )
        parts.append(f"## palm {name}\n\n{command.summary[0].upper()}{command.summary[1:]}.\n\n{shown}")
    return "\n\n".join(parts)


def machine_fields() -> str:
    """Every number of a machine's file."""
    schema = Machine.model_json_schema()
    rows = [
        f"| `{key}` | {_type(value, schema)} | {_cell(value['description'])} |"
        for key, value in schema["properties"].items()
    ]
    return "\n".join(["| number | type | |\n|---|---|---|", *rows])


def machines() -> str:
    """The machines that come with the package."""
    rows = []
    for name in machine_names():
        machine = load_machine(name)
        wiring = (
            f"torus {' x '.join(map(str, machine.torus))}" if machine.torus else f"servers of {machine.server_devices}"
        )
        numbers = (machine.peak_tflops, machine.memory_gib, machine.memory_gb_s, machine.matmul_efficiency)
        cells = [f"`{name}`", machine.title, *(f"{number:g}" for number in numbers), wiring]
        rows.append(f"| {' | '.join(cells)} |")
    head = "| `--machine` | | peak TFLOP/s | GiB | GB/s | efficiency of matmuls | wiring |"
    return "\n".join([head, "|---|---|---:|---:|---:|---:|---|", *rows])


GENERATED: dict[str, Callable[[], str]] = {
    "settings": settings,
    "commands": commands,
    "machine fields": machine_fields,
    "machines": machines,
}


def _help(name: str) -> str:
    environment = {**os.environ, "COLUMNS": str(WIDTH), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mindspore_palm", name, "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout


def _type(value: dict[str, Any], schema: dict[str, Any]) -> str:
    """A JSON schema in words, such as ``integer, at least 0``."""
    if "anyOf" in value:
        return " or ".join(_type(one, schema) for one in value["anyOf"])
    if "$ref" in value:
        fields = schema["$defs"][value["$ref"].rpartition("/")[2]]["properties"]
        return f"{{{', '.join(f'`{name}`' for name in fields)}}}"
    if "enum" in value or "const" in value:
        return ", ".join(f"`{one}`" if one != "" else "empty" for one in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        return f"list of ({_type(value['items'], schema)})" if value.get("items") else "list"
    if value.get("type") == "object":
        return "table"
    words = [
        {"number": "number", "integer": "integer", "boolean": "true or false", "string": "text"}.get(
            value.get("type", ""), value.get("type", "any")
        )
    ]
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    for key, word in limits.items():
        if key in value and abs(value[key]) < 10**9:  # larger ones only keep out nonsense
            words.append(f"{word} {value[key]:,}")
    return ", ".join(words)


def _default(value: dict[str, Any]) -> str:
    default = value.get("default", "")
    if isinstance(default, bool):
        default = str(default).lower()
    return "empty" if default == "" else f"`{default}`"


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;").replace("*", "\\*")
