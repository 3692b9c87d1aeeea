"""Datasets of Hugging Face's Hub, written to disk as .jsonl once: from then on they are text like any other.

``hf://OWNER/NAME?config=...&split=...&revision=...&first=N`` names one; so does ``hf://FOLDER`` for a local copy. With
``first``, the first N documents are streamed, and the rest is never downloaded. Runs are prepared from the file on
disk, so they resume exactly whatever the Hub has by then, and the identity of the text is its content.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mindspore_palm.data.files import printable
from mindspore_palm.errors import Interrupted, UserError
from mindspore_palm.file_names import LOCK
from mindspore_palm.files import locked, write_atomically, write_json

SCHEME = "hf://"
DOCUMENTS, SOURCE = "documents.jsonl", "source.json"
KEYS = ("config", "split", "revision", "first")
OLDEST = 4  # of the library: older versions run code that comes with a dataset


@dataclass(frozen=True)
class HubDataset:
    """A dataset, as a path names it."""

    name: str
    """OWNER/NAME, or a folder."""
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    first: int | None = None
    """Documents to stream; None: all of them."""


def is_hub_path(path: str) -> bool:
    """Whether a path names a dataset of the Hub."""
    return path.startswith(SCHEME)


def parse_hub_path(path: str, setting: str) -> HubDataset:
    """The dataset that a path names.

    Raises:
        UserError: the path has no name, or an unknown or repeated part.
    """
    where = f"{setting} = {printable(path)}"
    name, _, query = path.removeprefix(SCHEME).partition("?")
    values: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        if key not in KEYS or not value or key in values:
            raise UserError(f"{where}: {part!r} is not one of {', '.join(f'{key}=...' for key in KEYS)}, each once")
        values[key] = value
    if not name:
        raise UserError(f"{where}: write {SCHEME}OWNER/NAME, or {SCHEME} and a folder")
    if "first" in values:
        if not values["first"].isdecimal() or int(values["first"]) < 1:
            raise UserError(f"{where}: first={values['first']} must be a number of documents, 1 or more")
        values["first"] = int(values["first"])
    return HubDataset(name, **values)


def fetch(path: str, text_field: str, root: Path, setting: str) -> Path:
    """The .jsonl of a dataset's texts, written first if it is not there yet. A second process waits.

    Args:
        path: as ``data.path``.
        text_field: the column that holds text.
        root: folder of prepared text.
        setting: that the user gave the path with, for messages.

    Raises:
        UserError: the dataset or its column cannot be read, or the library ``datasets`` is not installed.
        Interrupted: Ctrl-C; what was downloaded is in the library's own cache.
        OSError: the file cannot be written.
    """
    dataset = parse_hub_path(path, setting)
    identity = json.dumps([asdict(dataset), text_field]).encode()
    slug = re.sub(r"[^A-Za-z0-9]+", "-", dataset.name).strip("-")[-40:]
    folder = root / f"dataset-{slug}-{hashlib.blake2b(identity, digest_size=6).hexdigest()}"
    file = folder / DOCUMENTS
    if file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / LOCK):
            if not file.exists():  # else another process wrote it while this one waited
                count = 0
                with write_atomically(file) as stream:
                    for text in _texts(dataset, text_field, f"{setting} = {printable(path)}"):
                        stream.write(json.dumps({text_field: text}, ensure_ascii=True).encode() + b"\n")
                        count += 1
                write_json(folder / SOURCE, {**asdict(dataset), "text_field": text_field, "documents": count})
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted while reading {printable(path)}; the same command starts that over") from None
    return file


def _texts(dataset: HubDataset, column: str, where: str) -> Iterator[str]:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{where}: this needs the library datasets of Hugging Face; pip install 'datasets>={OLDEST}', or download "
            "the files and name their folder"
        ) from None
    if int(datasets.__version__.partition(".")[0]) < OLDEST:
        raise UserError(
            f"{where}: datasets {datasets.__version__} may run code that comes with a dataset; pip install "
            f"'datasets>={OLDEST}'"
        )
    try:
        rows = datasets.load_dataset(
            dataset.name,
            dataset.config,
            split=dataset.split,
            revision=dataset.revision,
            streaming=dataset.first is not None,
        )
        rows = rows if dataset.first is None else rows.take(dataset.first)
        for number, row in enumerate(rows, 1):
            if column not in row:
                columns = ", ".join(printable(name) for name in list(row)[:10])
                raise UserError(f"{where}: there is no column {column!r}; set data.text_field to one of {columns}")
            if not isinstance(row[column], str):
                raise UserError(
                    f"{where}, row {number}: the column {column!r} must hold strings, not {type(row[column]).__name__}"
                )
            yield row[column]
    except (UserError, KeyboardInterrupt, GeneratorExit):
        raise
    except Exception as error:  # the library raises its own, and those of five others
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{where}: the dataset cannot be read ({printable(lines[0])})") from None
