"""Files of a model: a single file, shards with an index, or a folder of either."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mindspore_palm.errors import UserError

INDEX_SUFFIX = ".index.json"
SINGLE = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pt")  # names of the single file in a folder


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: there is no such file, or no JSON object in it.
    """
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise UserError(f"there is no {file}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: this is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected an object")
    return value


def find_files(path: Path) -> Path:
    """The file or index of a model: the path itself, or the one in it if it is a folder.

    Raises:
        UserError: the folder holds none, or several.
    """
    if not path.is_dir():
        return path
    files = sorted(path.glob(f"*{INDEX_SUFFIX}")) or [path / name for name in SINGLE if (path / name).is_file()]
    if not files:
        raise UserError(f"{path} is a folder without {' or '.join(SINGLE)} or an index *{INDEX_SUFFIX}; name the file")
    if len(files) > 1:
        raise UserError(f"{path} holds {' and '.join(file.name for file in files)}; name one of them")
    return files[0]


def read_files(file: Path, read: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """Tensors by name, from a single file or from all shards of an index.

    Args:
        file: a file of tensors, or an index: ``{"weight_map": {name: file}}``.
        read: reads one file of tensors.

    Raises:
        UserError: the index does not match its files.
    """
    if not file.name.endswith(INDEX_SUFFIX):
        return dict(read(file))
    index = read_json(file).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise UserError(f"{file}: there is no 'weight_map' of names to files")
    tensors: dict[str, Any] = {}
    for shard in sorted(set(index.values())):
        if Path(shard).name != shard:
            raise UserError(f"{file}: {shard} is not a file of this folder")
        for name, tensor in read(file.parent / shard).items():
            if index.get(name) != shard:
                listed = f"lists in {index[name]}" if name in index else "does not list"
                raise UserError(f"{file.parent / shard} holds {name}, which {file.name} {listed}")
            tensors[name] = tensor
    if missing := sorted(index.keys() - tensors.keys()):
        raise UserError(f"{file}: {missing[0]} is not in {index[missing[0]]} ({len(missing)} such)")
    return tensors
