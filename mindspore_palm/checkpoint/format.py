"""A checkpoint on disk: shards of all state, and a manifest that verifies every byte.

``checkpoints/step_000200/`` holds

    rank_0.safetensors ...   shards of weights and optimizer state; replicated shards are stored once
    state.json               step, position in the data, skipped batches, spike statistics, seed, versions
    config.yaml              all settings
    tokenizer.model          the tokenizer
    manifest.json            location of every shard, size and SHA-256 of every file, and its own SHA-256

It is written under a temporary name, the manifest last, and gets its name by one rename: it is complete, or it is not
visible. Nothing in it can execute code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from mindspore_palm.checkpoint.cleanup import delete_own_files, move_into
from mindspore_palm.checkpoint.safetensors_stream import Digest, Digesting, digest_of, row_windows, write_tensors
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import CONFIG, DAMAGED, GONE, MANIFEST, STATE, TEMPORARY, TOKENIZER
from mindspore_palm.files import names_pattern, sync_folder, write_atomically
from mindspore_palm.parallel.placement import Placement, Window

CHECKPOINT_FORMAT = "mindspore_palm checkpoint 1"
CHECKPOINT_FILES = names_pattern(
    r"rank_[0-9]+\.(safetensors|json)", *map(re.escape, (STATE, CONFIG, TOKENIZER, MANIFEST))
)
"""Names of a checkpoint's files: no other is ever deleted."""
CHECKPOINT_FOLDER = re.compile(
    rf"(?P<name>step_[0-9]{{6,}}({re.escape(DAMAGED)}(\.[0-9]+)?)?)"
    rf"(?P<ending>({re.escape(TEMPORARY)}|{re.escape(GONE)})?)"
)
"""Names of a checkpoint's folder: complete, set aside as damaged, being written, or being deleted."""
BLOCK_BYTES = 2**26  # bytes of a tensor in memory at a time while it is copied


class DamagedCheckpoint(UserError):
    """A file of a checkpoint is missing, truncated or altered; the message names it."""


@dataclass(frozen=True)
class Sharding:
    """An even grid of shards, and the file that each is stored in."""

    shape: tuple[int, ...]
    """Of the full tensor."""
    shard_shape: tuple[int, ...]
    """Of each shard."""
    ranks: tuple[int, ...]
    """Whose file each window is in; the last dimension varies fastest. A shard is one window, or one of each part."""
    parts: int = 1
    """Equal parts of the last dimension, each sharded by itself; a shard holds its window of each, one after the other.
    In the manifest only where there are several."""

    @staticmethod
    def of(placement: Placement) -> Sharding:
        """The sharding of a placement; each shard is in the file of the first rank that holds it."""
        grid = [range(0, size, part) for size, part in zip(placement.shape, placement.window_shape, strict=True)]
        ranks = {starts: -1 for starts in product(*grid)}
        left = len(ranks)
        for rank in range(placement.layout.devices):
            if left and placement.is_first(rank):
                for window in placement.windows(rank):
                    ranks[tuple(part.start for part in window)] = rank
                    left -= 1
        return Sharding(placement.shape, placement.shard_shape, tuple(ranks.values()), placement.parts)

    @property
    def window_shape(self) -> tuple[int, ...]:
        """Of one part's window."""
        *rest, last = self.shard_shape
        return (*rest, last // self.parts)

    def overlapping(self, window: Window) -> Iterator[tuple[int, Window]]:
        """Ranks whose files overlap a window, each with the overlap as a window of the full tensor."""
        counts = [size // part for size, part in zip(self.shape, self.window_shape, strict=True)]
        touched = [
            range(part.start // size, -(-part.stop // size))
            for part, size in zip(window, self.window_shape, strict=True)
        ]
        for indices in product(*touched):
            number = 0
            for index, count in zip(indices, counts, strict=True):
                number = number * count + index
            yield (
                self.ranks[number],
                tuple(
                    slice(max(part.start, i * size), min(part.stop, (i + 1) * size))
                    for part, i, size in zip(window, indices, self.window_shape, strict=True)
                ),
            )

    def within(self, window: Window) -> Window:
        """A window of the full tensor as one of the shard that holds it."""
        part = window[-1].start // (self.shape[-1] // self.parts)
        starts = [w.start % size for w, size in zip(window, self.window_shape, strict=True)]
        starts[-1] += part * self.window_shape[-1]
        return tuple(slice(start, start + w.stop - w.start) for start, w in zip(starts, window, strict=True))


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint, read by window, or by blocks of rows that fit in memory."""

    checkpoint: Checkpoint
    name: str
    sharding: Sharding
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the full tensor."""
        return self.sharding.shape

    def read(self, window: Window | None = None) -> np.ndarray:
        """A window of the tensor, or all of it; only files with overlapping shards are opened.

        Raises:
            DamagedCheckpoint: a file does not match the manifest.
        """
        window = window or tuple(slice(0, size) for size in self.shape)
        out = np.empty([part.stop - part.start for part in window], self.dtype)
        for rank, part in self.sharding.overlapping(window):
            file = self.checkpoint.folder / rank_file(rank)
            target = tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, window, strict=True))
            try:
                with safe_open(file, framework="numpy") as tensors:
                    out[target] = tensors.get_slice(self.name)[self.sharding.within(part)]
            except (SafetensorError, OSError, ValueError) as error:
                raise DamagedCheckpoint(f"{file}: {self.name} cannot be read ({error})") from None
        return out

    def blocks(self) -> Iterator[np.ndarray]:
        """Blocks of rows, in order."""
        for window in row_windows(self.shape, self.dtype.itemsize, BLOCK_BYTES):
            yield self.read(window)


class Checkpoint:
    """A checkpoint whose manifest, small files and file sizes are verified; ``verify`` reads the shards as well.

    Raises:
        DamagedCheckpoint: one of them is missing or altered.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = _read_manifest(folder / MANIFEST)
        self.step: int = manifest["step"]
        shardings = [
            Sharding(tuple(shape), tuple(shard_shape), tuple(ranks), *parts)
            for shape, shard_shape, ranks, *parts in manifest["slicings"]
        ]
        self.tensors = {
            name: StoredTensor(self, name, shardings[number], np.dtype(dtype))
            for name, (dtype, number) in manifest["tensors"].items()
        }
        self.files = {name: Digest(**digest) for name, digest in manifest["files"].items()}
        if step_of(folder) not in (None, self.step):
            raise DamagedCheckpoint(f"{folder}: its manifest is of step {self.step}, its name is not")
        for name, digest in self.files.items():
            size = (folder / name).stat().st_size if (folder / name).is_file() else None
            if size != digest.size:
                problem = "is missing" if size is None else f"has {size:,} bytes"
                raise DamagedCheckpoint(f"{folder / name} {problem}; the manifest says {digest.size:,} bytes")
        self.verify([name for name in self.files if not name.startswith("rank_")])
        try:
            self.state: dict[str, Any] = json.loads((folder / STATE).read_bytes())
        except OSError as error:
            raise DamagedCheckpoint(f"{folder / STATE}: {error.strerror}") from None

    def verify(self, files: Iterable[str] | None = None) -> None:
        """Reads files in full, all of them for None, and compares them with the manifest.

        Raises:
            DamagedCheckpoint: names the first file that differs.
        """
        for name in self.files if files is None else files:
            try:
                digest = digest_of(self.folder / name)
            except OSError as error:
                raise DamagedCheckpoint(f"{self.folder / name}: {error.strerror}") from None
            if digest != self.files[name]:
                raise DamagedCheckpoint(f"{self.folder / name} was altered: its SHA-256 is not the manifest's")

    @property
    def identity(self) -> str:
        """Hash of the content (weights, optimizer state, tokenizer), wherever the checkpoint is stored."""
        digests = sorted((n, d.sha256) for n, d in self.files.items() if n.startswith("rank_") or n == TOKENIZER)
        return hashlib.sha256(json.dumps(digests).encode()).hexdigest()

    def files_to_verify(self, rank: int, devices: int) -> list[str]:
        """The shard files that this rank verifies, so that all ranks together verify each once."""
        return sorted(name for name in self.files if name.startswith("rank_"))[rank::devices]


def write_shards(folder: Path, rank: int, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes this worker's shards into a folder that still has its temporary name, and their digest beside them.

    Raises:
        OSError: names the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest = _write(folder / rank_file(rank), lambda file: write_tensors(file, tensors, {"format": CHECKPOINT_FORMAT}))
    _write_json(folder / _digest_file(rank), asdict(digest))


def shardings(placements: Mapping[str, Placement]) -> dict[str, Sharding]:
    """The sharding of each tensor. Tensors that are sharded alike share one."""
    distinct: dict[tuple, Sharding] = {}
    keys = {name: (p.shape, p.axes, p.fully_sharded, p.parts, p.stage) for name, p in placements.items()}
    for name, key in keys.items():
        if key not in distinct:
            distinct[key] = Sharding.of(placements[name])
    return {name: distinct[key] for name, key in keys.items()}


def publish(
    temporary: Path,
    tensors: Mapping[str, Sharding],
    dtypes: Mapping[str, str],
    step: int,
    small_files: Mapping[str, bytes],
) -> Path:
    """Completes a folder into which all workers have written their shards, and renames it to its final name.

    Args:
        temporary: the folder, under its temporary name.
        tensors: name to sharding.
        dtypes: name to dtype.
        step: of the checkpoint.
        small_files: name to content of all other files.

    Returns:
        The folder under its final name.

    Raises:
        OSError: names the file.
    """
    distinct = list(dict.fromkeys(tensors.values()))
    files = {name: asdict(_write(temporary / name, content)) for name, content in small_files.items()}
    for rank in sorted({rank for sharding in distinct for rank in sharding.ranks}):
        files[rank_file(rank)] = json.loads((temporary / _digest_file(rank)).read_bytes())
    for digest_file in temporary.glob(_digest_file("*")):
        digest_file.unlink()
    manifest = {
        "format": CHECKPOINT_FORMAT,
        "step": step,
        "slicings": [[s.shape, s.shard_shape, s.ranks, *[s.parts] * (s.parts > 1)] for s in distinct],
        "tensors": {name: [dtypes[name], distinct.index(sharding)] for name, sharding in tensors.items()},
        "files": files,
    }
    with write_atomically(temporary / MANIFEST) as file:
        file.write(_seal(manifest))
    folder = temporary.with_name(folder_name(step))
    discard(folder)  # a damaged checkpoint of the same step
    if folder.is_dir():
        move_into(folder, temporary)  # users' own files
    os.replace(temporary, folder)
    sync_folder(folder.parent)
    return folder


def discard(folder: Path) -> None:
    """Deletes a checkpoint; a partly deleted one is never treated as a checkpoint.

    Of a link, only the link is deleted. Users' own files in the folder stay.

    Raises:
        OSError: it could not be deleted.
    """
    if folder.is_symlink():
        folder.unlink()
    elif folder.is_dir():
        gone = folder.with_name(f"{folder.name}{GONE}")
        if gone.exists() and not delete_own_files(gone, CHECKPOINT_FILES):  # from an interrupted deletion
            move_into(gone, folder)
        os.replace(folder, gone)
        if not delete_own_files(gone, CHECKPOINT_FILES):
            os.replace(gone, folder)


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in ``checkpoints/``, newest first."""
    if not folder.is_dir():
        return []
    return sorted(
        (step for path in folder.iterdir() if (step := step_of(path)) is not None and has_our_files(path)), reverse=True
    )


def has_our_files(folder: Path) -> bool:
    """Whether a folder holds files of a checkpoint, or is empty, as an interrupted deletion leaves it."""
    if not folder.is_dir():
        return False
    names = [path.name for path in folder.iterdir()]
    return not names or any(CHECKPOINT_FILES.fullmatch(name) for name in names)


def folder_name(step: int) -> str:
    """Name of a checkpoint's folder, such as ``step_000200``."""
    return f"step_{step:06d}"


def step_of(folder: Path) -> int | None:
    """The step in the name of a checkpoint's folder; None for any other name."""
    match = re.fullmatch(r"step_([0-9]{6,})", folder.name)
    return int(match.group(1)) if match and folder_name(int(match.group(1))) == folder.name else None


def rank_file(rank: int) -> str:
    """Name of the file with a worker's shards."""
    return f"rank_{rank}.safetensors"


def _digest_file(rank: int | str) -> str:
    return f"rank_{rank}.json"


def _write(path: Path, content: bytes | Callable[[Digesting], None]) -> Digest:
    with write_atomically(path) as file:
        digesting = Digesting(file)
        if isinstance(content, bytes):
            digesting.write(content)
        else:
            content(digesting)
    return digesting.digest


def _write_json(path: Path, value: Any) -> None:
    with write_atomically(path) as file:
        file.write(json.dumps(value).encode())


def _seal(manifest: Mapping[str, Any]) -> bytes:
    """JSON whose last entry is the SHA-256 of the JSON without that entry."""
    text = json.dumps(manifest, indent=1)
    return (json.dumps({**manifest, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1) + "\n").encode()


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DamagedCheckpoint(f"{file}: {error.strerror}") from None
    try:
        manifest = json.loads(content)
        del manifest["sha256"]
        intact = _seal(manifest) == content  # down to every space
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise DamagedCheckpoint(f"{file} was altered: it does not hold its own SHA-256")
    if manifest["format"] != CHECKPOINT_FORMAT:
        raise DamagedCheckpoint(
            f"{file} is of the format {manifest['format']!r}; this version reads {CHECKPOINT_FORMAT!r}"
        )
    return manifest
