"""Settings from a YAML file and ``section.key=value`` overrides: values with their origin, errors with their fix."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from mindspore_palm.config import PaLMConfig, Settings, settings_of
from mindspore_palm.effects import useless
from mindspore_palm.errors import UserError
from mindspore_palm.fields import Contradiction
from mindspore_palm.files import expanded
from mindspore_palm.presets import PRESETS
from mindspore_palm.shipped import find_config, shipped_configs

# What pydantic calls a wrong type, as the writer of a YAML file knows it.
WANTED = {
    "int_type": "must be a whole number, without quotes, point or exponent",
    "int_from_float": "must be a whole number, without quotes, point or exponent",
    "float_type": "must be a number, without quotes",
    "bool_type": "must be true or false, without quotes",
    "string_type": "must be text; put it in quotes",
}
PATHS = ("data.path", "data.tokenizer", "data.prepared", "train.output", "finetune.checkpoint")  # ~ is a home in them
MIXTURE = "must be a list of sources with a path and a weight above 0, [{path: a.txt, weight: 3}, ...]"
RAMP = "must be a whole number, or a list of pairs [first step, size]"


class _Loader(yaml.SafeLoader):
    """Safe YAML that rejects duplicate keys and reads 1e-4 as a number, which YAML 1.1 treats as text."""

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

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        if ":" in text or re.fullmatch(r"[-+]?0[0-9_]+", text):  # to YAML 1.1, 1:30 is 90 and 0100 is 64
            problem = f"{text} is no plain number; write it in digits that do not start with 0, or in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_yaml_int(node)

    def refuse_tag(self, node: yaml.Node) -> None:
        problem = f"the tag {node.tag.replace('tag:yaml.org,2002:', '!!')} is refused; write plain values"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _Dumper(yaml.SafeDumper):
    """Writes YAML that ``_Loader`` reads back unchanged: text that looks like 1e-4 is quoted."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor(None, _Loader.refuse_tag)


def read_yaml(text: str, where: str) -> Any:
    """Parses YAML safely.

    Raises:
        UserError: names ``where``, the line, and what is wrong.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = error.problem or "this is not YAML"
        if problem.startswith("but "):  # the second half of a sentence
            problem = f"{error.context}, {problem}"
        raise UserError(f"{where}{line}: {problem}") from None
    except (KeyError, AttributeError):  # PyYAML's own, for !!bool and !!timestamp before what is neither
        raise UserError(f"{where}: a tag (!!) stands before a value of another kind; write plain values") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: this is not YAML ({str(error).splitlines()[0]})") from None


@dataclass(frozen=True)
class Renamed:
    """A setting under its new name."""

    name: str
    values: Mapping[Any, Any]
    """Today's value of each value that it had."""


RENAMED = {"model.parallel": Renamed("model.block", {True: "parallel", False: "serial"})}
"""Settings of earlier versions. They are understood in files, such as the config.yaml of a run."""


def load_settings(file: str | Path | None, overrides: Iterable[str] = ()) -> tuple[Settings, dict[str, str]]:
    """Resolves defaults, then a file, then overrides.

    Args:
        file: path of a YAML file, or name of a configuration that comes with the package; see ``find_config``.
        overrides: words of the form ``section.key=value``.

    Returns:
        The settings, and for every ``section.key`` that is not a default its origin.

    Raises:
        UserError: one or two lines naming origin, key, value and what to change.
    """
    values: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    if file is not None:
        _merge(_read_file(find_config(expanded(file, "--config"))), str(file), values, origins)
    for override in overrides:
        key, equals, text = override.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot and section and name):
            raise UserError(f"{override!r} is not an override; write section.key=value, for example train.steps=50")
        value = text if _is_text(section, name) else read_yaml(text, f"override {override!r}")
        if new := RENAMED.get(f"{section}.{name}"):
            advice = f"write {new.name}={new.values[value is not False]}"
            raise UserError(f"override {override}: {section}.{name} is called {new.name} now; {advice}")
        _merge({section: {name: value}}, f"override {override}", values, origins)
    for name in PATHS:
        section, _, key = name.partition(".")
        path = values.get(section, {}).get(key)
        if isinstance(path, str) and path.startswith("~") and "/" in path:
            values[section][key] = str(expanded(path, f"{origins[name]}: {name}"))
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, values, origins)) from None
    preset = settings.model.preset
    for name in PRESETS.get(preset, {}):
        origins.setdefault(f"model.{name}", f"preset {preset}")
    return settings, origins


def model_config(values: Any, where: str) -> PaLMConfig:
    """The sizes of a network from the values of the section ``model``.

    Raises:
        UserError: names ``where``, the setting, and what is wrong.
    """
    if isinstance(values, dict):
        values = _with_new_names("model", values, where)
    try:
        return PaLMConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(["model", *map(str, first["loc"])])  # a check across fields has no field of its own
        raise UserError(f"{where}: {name}: {first['msg'].removeprefix('Value error, ')}") from None


def settings_to_yaml(settings: Settings) -> str:
    """All settings as YAML that ``load_settings`` reads back to the same settings."""
    return yaml.dump(settings.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


def describe(settings: Settings, origins: dict[str, str]) -> str:
    """The resolved settings as YAML, each with its origin and why it has no effect: what ``--print-config`` shows."""
    reasons, lines = dict(useless(settings, origins)), []
    for section, group in settings.model_dump(mode="json").items():
        lines.append(f"{section}:")
        for name, value in group.items():
            text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=1000).removesuffix("...\n").strip()
            said = [origins.get(f"{section}.{name}", "default"), *filter(None, [reasons.get(f"{section}.{name}")])]
            lines.append(f"  {f'{name}: {text}':<44} # {': '.join(said)}")
    return "\n".join(lines)


def _is_text(section: str, name: str) -> bool:
    """Whether a setting is plain text on the command line: data.path=*.txt is not YAML."""
    field = settings_of(section).get(name)
    return field is not None and field.annotation is str


def _read_file(file: Path) -> dict[str, dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        there = {p.stem: p for folder in (Path("yaml"), file.parent) for p in folder.glob("*.y*ml")}
        near = difflib.get_close_matches(file.stem, there, n=1, cutoff=0.5)
        near_shipped = difflib.get_close_matches(file.stem, shipped_configs(), n=1, cutoff=0.5)
        hint = f"the ones that come with the project are in yaml/: {', '.join(shipped_configs())}"
        if near or near_shipped:
            hint = f"did you mean {there[near[0]] if near else near_shipped[0]}?"
        raise UserError(f"there is no configuration file {file}; {hint}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text at byte {error.start}; a configuration is YAML text") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
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
        fields = settings_of(section)
        for name, value in _with_new_names(section, group, where).items():
            if name not in fields:
                raise UserError(f"{where}: there is no setting {section}.{name}{_nearest(str(name), fields, section)}")
            values.setdefault(section, {})[name] = value
            origins[f"{section}.{name}"] = where


def _with_new_names(section: str, group: Mapping[Any, Any], where: str) -> dict[Any, Any]:
    """A section of a file with the names that settings have now."""
    result = dict(group)
    for name in group:
        if (new := RENAMED.get(f"{section}.{name}")) is None:
            continue
        value, key = result.pop(name), new.name.partition(".")[2]
        if key in result:
            raise UserError(f"{where}: {section}.{name} is called {new.name} now, and both are there; remove one")
        if not isinstance(value, bool):
            raise UserError(f"{where}: {section}.{name} = {_short(value)}: must be true or false")
        result[key] = new.values[value]
    return result


def _nearest(name: str, names: Iterable[str], section: str = "") -> str:
    names = list(names)
    dotted = f"{section}." if section else ""
    for other in Settings.model_fields:
        if section and name in settings_of(other):
            return f"; did you mean {other}.{name}?"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {dotted}{near[0]}?"
    return f"; there are {', '.join(names)}"


def _explain(error: ValidationError, values: dict[str, dict[str, Any]], origins: dict[str, str]) -> str:
    """The first thing that is wrong, as ``origin: section.key = value: what; what to do``."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    section = path[0] if path else ""
    key = ".".join(path[:2])
    message = first["msg"].removeprefix("Value error, ")
    if len(path) < 2:  # a check across fields: its message names fields, values and the fix
        cause = first.get("ctx", {}).get("error")
        fields = cause.fields if isinstance(cause, Contradiction) else ()
        dotted = f"{section}." if section else ""  # a check across sections names them itself
        wrote = list(dict.fromkeys(where for name in fields if (where := origins.get(f"{dotted}{name}"))))
        return f"{', '.join(wrote) or 'defaults'}: {dotted}{message}"
    field = settings_of(section)[path[1]]
    where = origins.get(key, "defaults")
    if first["type"] == "literal_error":
        kind = get_args(field.annotation)[0] if get_origin(field.annotation) is list else field.annotation
        choices = [str(choice) for choice in get_args(kind) if choice != ""]
        near = difflib.get_close_matches(str(first["input"]), choices, n=1, cutoff=0.5)
        fix = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(choices)}"
        return f"{where}: {key} = {_short(first['input'])} is not known; {fix}"
    value = values[section][path[1]]  # the whole of it, as it was given
    what = WANTED.get(first["type"], message.replace("Input should", "must"))
    if key == "train.batch_size" and (first["type"] in WANTED or isinstance(value, list)):
        what = RAMP
    if key == "data.mixture" and first["type"] != "value_error":
        what = MIXTURE
    return f"{where}: {key} = {_short(value)}: {what}.\n  {key}: {' '.join((field.description or '').split())}"


def _short(value: Any) -> str:
    """A value as YAML writes it, truncated: a few lines with anchors can stand for gigabytes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxstring, shown.maxother = 3, 60, 60
    text = shown.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
