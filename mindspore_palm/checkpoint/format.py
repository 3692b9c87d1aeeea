"""A checkpoint on disk: slices of all state, and a manifest by which every byte of it can be believed.

``checkpoints/step_000200/`` holds

    rank_0.safetensors ...   slices of weights and optimizer state; a slice that several workers hold, once
    state.json               step, place in the data, what was skipped, spike statistics, seed, versions
    config.yaml              all settings
    tokenizer.model          the tokenizer
    manifest.json            which slice is where, and size and SHA-256 of every file; of itself, too

It is written under another name, the manifest last, and takes its name by one rename: it is whole, or it is not seen.
Nothing in it can execute code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from mindspore_palm.checkpoint.cleanup import delete_own_files, move_into
from mindspore_palm.checkpoint.safetensors_stream import Digest, Digesting, digest_of, write_tensors
from mindspore_palm.errors import UserError
from mindspore_palm.files import TEMPORARY, sync_folder, write_atomically
from mindspore_palm.parallel.placement import Placement, Window

CHECKPOINT_FORMAT = "mindspore_palm checkpoint 1"
MANIFEST, STATE, CONFIG, TOKENIZER = "manifest.json", "state.json", "config.yaml", "tokenizer.model"
GONE = f".gone{TEMPORARY}"  # the ending of a checkpoint that is being deleted
OWN_FILES = re.compile(
    r"(rank_[0-9]+\.(safetensors|json)|state\.json|config\.yaml|tokenizer\.model|manifest\.json)(\.[0-9]+\.tmp)?"
)
"""Names of a checkpoint's files: no other is ever deleted."""
ALL = re.compile(rf"(?P<name>step_[0-9]{{6,}}(\.damaged(\.[0-9]+)?)?)(?P<ending>((\.gone)?{TEMPORARY})?)")
BLOCK = 2**26  # bytes of a tensor that are in memory at a time when it is copied


class DamagedCheckpoint(UserError):
    """A file of a checkpoint is missing, cut off or altered; the text names it."""


@dataclass(frozen=True)
class Slicing:
    """How a tensor is cut into files: an even grid of slices."""

    shape: tuple[int, ...]
    """Of the whole tensor."""
    slice_shape: tuple[int, ...]
    """Of each slice."""
    ranks: tuple[int, ...]
    """In whose file each slice is, the last dimension counting fastest."""

    @staticmethod
    def of(placement: Placement) -> Slicing:
        """The slicing of a placement; each slice is in the file of the first rank that holds it."""
        grid = [range(0, size, part) for size, part in zip(placement.shape, placement.slice_shape, strict=True)]
        missing = {starts: -1 for starts in product(*grid)}
        left = len(missing)
        for rank in range(placement.layout.devices):
            if left and placement.is_first(rank):
                missing[tuple(part.start for part in placement.window(rank))] = rank
                left -= 1
        return Slicing(placement.shape, placement.slice_shape, tuple(missing.values()))

    def overlapping(self, window: Window) -> Iterator[tuple[int, Window]]:
        """The files that hold some of a window, and for each the part of the whole tensor that it has of it."""
        counts = [size // part for size, part in zip(self.shape, self.slice_shape, strict=True)]
        touched = [
            range(part.start // size, -(-part.stop // size))
            for part, size in zip(window, self.slice_shape, strict=True)
        ]
        for place in product(*touched):
            number = 0
            for index, count in zip(place, counts, strict=True):
                number = number * count + index
            yield (
                self.ranks[number],
                tuple(
                    slice(max(part.start, i * size), min(part.stop, (i + 1) * size))
                    for part, i, size in zip(window, place, self.slice_shape, strict=True)
                ),
            )


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint: read in windows, or from its first row to its last in blocks that fit in memory."""

    checkpoint: Checkpoint
    name: str
    slicing: Slicing
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""
        return self.slicing.shape

    def read(self, window: Window | None = None) -> np.ndarray:
        """A window of it, or all; only the slices that overlap it are opened.

        Raises:
            DamagedCheckpoint: a file does not hold what the manifest says.
        """
        window = window or tuple(slice(0, size) for size in self.shape)
        out = np.empty([part.stop - part.start for part in window], self.dtype)
        for rank, part in self.slicing.overlapping(window):
            file = self.checkpoint.folder / rank_file(rank)
            within = tuple(
                slice(p.start % size, p.start % size + p.stop - p.start)
                for p, size in zip(part, self.slicing.slice_shape, strict=True)
            )
            target = tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, window, strict=True))
            try:
                with safe_open(file, framework="numpy") as tensors:
                    out[target] = tensors.get_slice(self.name)[within]
            except (SafetensorError, OSError, ValueError) as error:
                raise DamagedCheckpoint(f"{file}: {self.name} cannot be read ({error})") from None
        return out

    def blocks(self) -> Iterator[np.ndarray]:
        """Runs of rows, in order."""
        rows = max(1, BLOCK // max(1, prod(self.shape[1:]) * self.dtype.itemsize))
        rest = tuple(slice(0, size) for size in self.shape[1:])
        for start in range(0, self.shape[0], rows):
            yield self.read((slice(start, min(start + rows, self.shape[0])), *rest))


class Checkpoint:
    """A checkpoint that is whole as far as its manifest, its small files and all sizes tell.

    Raises:
        DamagedCheckpoint: it is not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = _read_manifest(folder / MANIFEST)
        self.step: int = manifest["step"]
        slicings = [Slicing(*(tuple(part) for part in slicing)) for slicing in manifest["slicings"]]
        self.tensors = {
            name: Stored(self, name, slicings[number], np.dtype(kind))
            for name, (kind, number) in manifest["tensors"].items()
        }
        self.files = {name: Digest(**digest) for name, digest in manifest["files"].items()}
        if step_of(folder) not in (None, self.step):
            raise DamagedCheckpoint(f"{folder}: its manifest is of step {self.step}, its name is not")
        for name, digest in self.files.items():
            size = (folder / name).stat().st_size if (folder / name).is_file() else None
            if size != digest.size:
                found = "is missing" if size is None else f"has {size:,} bytes"
                raise DamagedCheckpoint(f"{folder / name} {found}; the manifest says {digest.size:,} bytes")
        self.verify([name for name in self.files if not name.startswith("rank_")])
        try:
            self.state: dict[str, Any] = json.loads((folder / STATE).read_bytes())
        except OSError as error:
            raise DamagedCheckpoint(f"{folder / STATE}: {error.strerror}") from None

    def verify(self, files: Iterable[str] | None = None) -> None:
        """Reads files whole, all of them for None, and compares them with the manifest.

        Raises:
            DamagedCheckpoint: names the first that differs.
        """
        for name in self.files if files is None else files:
            try:
                found = digest_of(self.folder / name)
            except OSError as error:
                raise DamagedCheckpoint(f"{self.folder / name}: {error.strerror}") from None
            if found != self.files[name]:
                raise DamagedCheckpoint(f"{self.folder / name} was altered: its SHA-256 is not the manifest's")

    @property
    def identity(self) -> str:
        """Names the content: all weights, the optimizer's state and the tokenizer, wherever the checkpoint is."""
        digests = sorted((n, d.sha256) for n, d in self.files.items() if n.startswith("rank_") or n == TOKENIZER)
        return hashlib.sha256(json.dumps(digests).encode()).hexdigest()

    def share_of_files(self, rank: int, devices: int) -> list[str]:
        """The slice files that one of so many workers verifies, so that each is verified once."""
        return sorted(name for name in self.files if name.startswith("rank_"))[rank::devices]


def write_slices(folder: Path, rank: int, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes this worker's file into a folder that is still under its other name, and beside it what it must be.

    Raises:
        OSError: names the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest = _write(folder / rank_file(rank), lambda file: write_tensors(file, tensors, {"format": CHECKPOINT_FORMAT}))
    _write_json(folder / _note(rank), asdict(digest))


def slicings(placements: Mapping[str, Placement]) -> dict[str, Slicing]:
    """The slicing of each tensor; most are cut like others, and share it."""
    found: dict[tuple, Slicing] = {}
    keys = {name: (p.shape, p.axes, p.fully_sharded) for name, p in placements.items()}
    for name, key in keys.items():
        if key not in found:
            found[key] = Slicing.of(placements[name])
    return {name: found[key] for name, key in keys.items()}


def publish(
    temporary: Path,
    tensors: Mapping[str, Slicing],
    kinds: Mapping[str, str],
    step: int,
    small: Mapping[str, bytes],
) -> Path:
    """Completes a folder into which all workers have written their slices, and gives it its name.

    Args:
        temporary: the folder, under its other name.
        tensors: name to slicing.
        kinds: name to number type.
        step: whose checkpoint it is.
        small: name to content of all further files.

    Returns:
        The folder under its own name.

    Raises:
        OSError: names the file.
    """
    different = list(dict.fromkeys(tensors.values()))
    files = {name: asdict(_write(temporary / name, content)) for name, content in small.items()}
    for rank in sorted({rank for slicing in different for rank in slicing.ranks}):
        files[rank_file(rank)] = json.loads((temporary / _note(rank)).read_bytes())
    for note in temporary.glob(_note("*")):
        note.unlink()
    manifest = {
        "format": CHECKPOINT_FORMAT,
        "step": step,
        "slicings": [[s.shape, s.slice_shape, s.ranks] for s in different],
        "tensors": {name: [kinds[name], different.index(slicing)] for name, slicing in tensors.items()},
        "files": files,
    }
    with write_atomically(temporary / MANIFEST) as file:
        file.write(_seal(manifest))
    folder = temporary.with_name(folder_name(step))
    discard(folder)  # a damaged one of the same step
    if folder.is_dir():
        move_into(folder, temporary)  # what others put into it
    os.replace(temporary, folder)
    sync_folder(folder.parent)
    return folder


def discard(folder: Path) -> None:
    """Deletes a checkpoint; at no moment is a part of it treated as one.

    Of a link, the link alone is deleted. What others put into the folder stays there.

    Raises:
        OSError: it could not be deleted.
    """
    if folder.is_symlink():
        folder.unlink()
    elif folder.is_dir():
        gone = folder.with_name(f"{folder.name}{GONE}")
        if gone.exists() and not delete_own_files(gone, OWN_FILES):  # of a deletion that was cut short
            move_into(gone, folder)
        os.replace(folder, gone)
        if not delete_own_files(gone, OWN_FILES):
            os.replace(gone, folder)


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in ``checkpoints/``, the newest first."""
    if not folder.is_dir():
        return []
    return sorted(
        (step for path in folder.iterdir() if (step := step_of(path)) is not None and has_our_files(path)), reverse=True
    )


def has_our_files(folder: Path) -> bool:
    """Whether a folder holds files of a checkpoint, or is all that is left of one: nothing."""
    if not folder.is_dir():
        return False
    names = [path.name for path in folder.iterdir()]
    return not names or any(OWN_FILES.fullmatch(name) for name in names)


def folder_name(step: int) -> str:
    """``step_000200``"""
    return f"step_{step:06d}"


def step_of(folder: Path) -> int | None:
    """The step in a folder's name; None if it is not a checkpoint's."""
    found = re.fullmatch(r"step_([0-9]{6,})", folder.name)
    return int(found.group(1)) if found and folder_name(int(found.group(1))) == folder.name else None


def rank_file(rank: int) -> str:
    """Where a worker's slices are."""
    return f"rank_{rank}.safetensors"


def _note(rank: int | str) -> str:
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
    """JSON whose last entry is the SHA-256 of itself without that entry."""
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
        whole = _seal(manifest) == content  # also of every space in it
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise DamagedCheckpoint(f"{file} was altered: it does not hold its own SHA-256")
    if manifest["format"] != CHECKPOINT_FORMAT:
        raise DamagedCheckpoint(
            f"{file} is of the format {manifest['format']!r}; this version reads {CHECKPOINT_FORMAT!r}"
        )
    return manifest
