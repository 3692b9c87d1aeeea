"""Settings from a YAML file and ``section.key=value`` overrides: values with their origin, errors with their fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

import yaml
from mindspore_palm.config import PRESETS, Settings
from mindspore_palm.errors import UserError


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads 1e-4 as a number, which YAML 1.1 takes for text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice; keep one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str, where: str) -> Any:
    """Parses YAML safely.

    Raises:
        UserError: names ``where``, the line, and what is wrong.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: {error.problem or 'this is not YAML'}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: this is not YAML ({str(error).splitlines()[0]})") from None


def load_settings(file: str | Path | None, overrides: Iterable[str] = ()) -> tuple[Settings, dict[str, str]]:
    """Resolves defaults, a file and overrides, in this order.

    Returns:
        The settings, and for every ``section.key`` that is not a default its origin.

    Raises:
        UserError: one or two lines naming origin, key, value and what to change.
    """
    values: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    if file is not None:
        _merge(_read_file(Path(file)), str(file), values, origins)
    for override in overrides:
        key, equals, text = override.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot and section and name):
            raise UserError(f"{override!r} is not an override; write section.key=value, for example train.steps=50")
        _merge({section: {name: read_yaml(text, f"override {override!r}")}}, f"override {override}", values, origins)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, origins)) from None
    preset = settings.model.preset
    for name in PRESETS.get(preset, {}):
        origins.setdefault(f"model.{name}", f"preset {preset}")
    return settings, origins


def settings_to_yaml(settings: Settings) -> str:
    """All settings as YAML that ``load_settings`` reads back to the same settings."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def describe(settings: Settings, origins: dict[str, str]) -> str:
    """The resolved settings as YAML, the origin of each behind it: what ``--print-config`` shows."""
    lines = []
    for section, group in settings.model_dump(mode="json").items():
        lines.append(f"{section}:")
        for name, value in group.items():
            text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
            lines.append(f"  {f'{name}: {text}':<44} # {origins.get(f'{section}.{name}', 'default')}")
    return "\n".join(lines)


def _read_file(file: Path) -> dict[str, dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(file.name, [p.name for p in Path("yaml").glob("*.yaml")], n=1, cutoff=0.5)
        hint = f"did you mean yaml/{near[0]}?" if near else "the ones that come with the project are in yaml/"
        raise UserError(f"there is no configuration file {file}; {hint}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text at byte {error.start}; a configuration is YAML text") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    data = read_yaml(text, str(file))
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{file}: expected sections ({', '.join(Settings.model_fields)}), found {_short(data)}")
    return data


def _merge(data: dict, where: str, values: dict[str, dict[str, Any]], origins: dict[str, str]) -> None:
    for section, group in data.items():
        if section not in Settings.model_fields:
            raise UserError(f"{where}: there is no section {section!r}{_nearest(str(section), Settings.model_fields)}")
        if group is None:
            continue
        if not isinstance(group, dict):
            raise UserError(f"{where}: {section} = {_short(group)} must be a group of 'key: value' lines")
        fields = Settings.model_fields[section].annotation.model_fields
        for name, value in group.items():
            if name not in fields:
                raise UserError(f"{where}: there is no setting {section}.{name}{_nearest(str(name), fields, section)}")
            values.setdefault(section, {})[name] = value
            origins[f"{section}.{name}"] = where


def _nearest(name: str, names: Iterable[str], section: str = "") -> str:
    names = list(names)
    dotted = f"{section}." if section else ""
    for other, field in Settings.model_fields.items():
        if section and name in field.annotation.model_fields:
            return f"; did you mean {other}.{name}?"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {dotted}{near[0]}?"
    return f"; there are {', '.join(names)}"


def _explain(error: ValidationError, origins: dict[str, str]) -> str:
    """The first thing that is wrong, as ``origin: section.key = value: what; what to do``."""
    errors = error.errors()
    first = next((e for e in errors if isinstance(e["input"], list) == ("list" in str(e["loc"]))), errors[0])
    path = [str(part) for part in first["loc"]]
    section = path[0] if path else ""
    key = ".".join(path[:2])
    message = first["msg"].removeprefix("Value error, ")
    if len(path) < 2:  # a check across fields: its message names fields, values and the fix
        files = sorted({where for name, where in origins.items() if name.startswith(f"{section}.")})
        return f"{', '.join(files) or 'defaults'}: {section}.{message}"
    field = Settings.model_fields[section].annotation.model_fields[path[1]]
    where = origins.get(key, "defaults")
    if first["type"] == "literal_error":
        choices = [str(choice) for choice in get_args(field.annotation) if choice != ""]
        near = difflib.get_close_matches(str(first["input"]), choices, n=1, cutoff=0.5)
        fix = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(choices)}"
        return f"{where}: {key} = {_short(first['input'])} is not known; {fix}"
    value = first["input"]
    what = message[:1].lower() + message[1:]
    return f"{where}: {key} = {_short(value)}: {what}.\n  {key}: {' '.join((field.description or '').split())}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
