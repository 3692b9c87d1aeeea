"""Options of the commands: no option twice, output files checked first, messages that name the user's options."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mindspore_palm import invocation
from mindspore_palm.devices import DEVICES
from mindspore_palm.errors import UserError


class Parser(argparse.ArgumentParser):
    """Parser of all commands. An option that is given twice is refused, unless each occurrence has an effect.

    List options (``action="append"``) collect all values, and switches may be repeated. Any other option is given once.

    Args:
        args: as for ``argparse.ArgumentParser``; ``prog`` is the command as the user called it.
        examples: arguments of this command, one example each, for its help.
        kwargs: as for ``argparse.ArgumentParser``.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        if examples:
            lines = "\n".join(f"  %(prog)s {example}" for example in examples)
            kwargs |= {"epilog": f"examples:\n{lines}", "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(*args, **{"prog": invocation.name(), **kwargs})
        self.register("action", None, _StoreOnce)
        self.register("action", "store", _StoreOnce)
        self.given: dict[str, Any] = {}

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> Any:
        """Parses as argparse does; every parse method of argparse calls this one."""
        self.given = {}
        return super().parse_known_args(args, namespace)


class _StoreOnce(argparse._StoreAction):
    """Stores a value that is given only once.

    Raises:
        UserError: the option was given twice.
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
                both = f"{_as_given(parser.given[self.dest])} and {_as_given(values)}"
                raise UserError(f"{option_string} is given twice, with {both}; give it once")
            parser.given[self.dest] = values
        super().__call__(parser, namespace, values, option_string)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds --device, which means the same for every command that computes."""
    choices = ("auto", *DEVICES)
    parser.add_argument("--device", choices=choices, default="auto", help="where to run; auto: the fastest kind found")


def check_output(option: str, file: str | Path, inputs: Sequence[str | Path] = ()) -> None:
    """Checks that a file can be written, before any work is done for it. An existing file is not changed.

    Args:
        option: the option that names the file.
        file: the file to write or replace.
        inputs: files that the command reads.

    Raises:
        UserError: the file is a folder or one of the inputs, or its folder is missing or cannot be written.
    """
    path = Path(file)
    if not path.parent.is_dir():
        raise UserError(f"{option} {file}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise UserError(f"{option} {file}: this is a folder or a device, not a file; choose another name")
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
    """Makes error messages name a command's options instead of the underlying settings.

    ``{"data.path": "--data"}`` turns "data.path = x: ..." into "--data x: ...".

    Raises:
        UserError: the original error, with its message rewritten.
    """
    try:
        yield
    except UserError as error:
        text = str(error)
        for setting, option in names.items():
            pattern = rf"(?<![\w./-]){re.escape(setting)}(?!\w|\.\w)(?: = )?"
            text = re.sub(pattern, partial(_option, option=option), text)
        raise UserError(text) from None


def _option(match: re.Match[str], option: str) -> str:
    return f"{option} " if match.group().endswith(" = ") else option


def _as_given(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
