"""Options of the commands: one rule for what is given twice, output files tried first, messages in the user's words."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mindspore_palm.errors import UserError


class Parser(argparse.ArgumentParser):
    """The parser of all commands: an option takes effect each time that it is given, or it is refused.

    Options that are lists (``action="append"``) grow; a switch may be repeated; any other option is given once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("action", None, _StoreOnce)
        self.register("action", "store", _StoreOnce)
        self.given: dict[str, Any] = {}

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None) -> Any:
        """As argparse does it, which calls this for every way to parse."""
        self.given = {}
        return super().parse_known_args(args, namespace)


class _StoreOnce(argparse._StoreAction):
    """Stores a value.

    Raises:
        UserError: the option was given before.
    """

    def __call__(
        self,
        parser: Parser,  # type: ignore[override]
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if option_string is not None:
            if self.dest in parser.given:
                both = f"{_said(parser.given[self.dest])} and {_said(values)}"
                raise UserError(f"{option_string} is given twice, with {both}; give it once")
            parser.given[self.dest] = values
        super().__call__(parser, namespace, values, option_string)


def check_output(option: str, file: str | Path, inputs: Sequence[str | Path] = ()) -> None:
    """Sees that a file can be written, before anything is computed for it. What is there stays as it is.

    Args:
        option: that names the file.
        file: will be written or replaced.
        inputs: files that the command reads.

    Raises:
        UserError: it is a folder, it is one of the inputs, or its folder is missing or cannot be written.
    """
    path = Path(file)
    if not path.parent.is_dir():
        raise UserError(f"{option} {file}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise UserError(f"{option} {file}: a folder or a device stands there, not a file; choose another name")
    for other in map(Path, inputs):
        if path.exists() and other.exists() and path.samefile(other):
            raise UserError(f"{option} {file}: this would replace an input of the command; name another file")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise UserError(f"{option} {file}: nothing can be written in {path.parent} ({error.strerror})") from None


@contextmanager
def naming_options(names: Mapping[str, str]) -> Iterator[None]:
    """Has messages name the options of a command instead of the settings behind them.

    ``{"data.path": "--data"}`` turns "data.path = x: ..." into "--data x: ...".

    Raises:
        UserError: in these words.
    """
    try:
        yield
    except UserError as error:
        text = str(error)
        for setting, option in names.items():
            text = re.sub(
                rf"(?<![\w./-]){re.escape(setting)}(?!\w|\.\w)(?: = )?", lambda m, o=option: _option(m, o), text
            )
        raise UserError(text) from None


def _option(match: re.Match[str], option: str) -> str:
    return f"{option} " if match.group().endswith(" = ") else option


def _said(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
