"""Results on disk, each a small file that is written at once; never of two versions of the code, texts or machines."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from mindspore_palm.data import Prepared
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import LOCK
from mindspore_palm.files import check_links, try_lock, write_json
from mindspore_palm.machine import processor_name, processors
from mindspore_palm.study.runs import Task

PACKAGE = Path(__file__).resolve().parents[1]
CODE = (
    *("model", "optim", "data", "parallel/*.py", "generate", "cost", "plan", "dry_run", "train/step.py"),
    *("train/evaluate.py", "config.py", "palm_config.py", "parallel_config.py", "presets.py", "random.py"),
    *("study/trainer.py", "study/turns.py", "study/equal.py"),
)
"""Files and folders of the package that decide a result: other code only reads and shows results."""
SUFFIXES = (".py", ".cc", ".h", ".yaml")
HEADER, RUNS = "fingerprint.json", "runs"


def fingerprint(prepared: Prepared) -> dict[str, str]:
    """All that a trained network depends on beside its settings: code, text, machine and libraries.

    The number of processors is no part of it: sums do not depend on it, bit by bit.
    """
    text = hashlib.blake2b(digest_size=10)
    for split in ("train", "validation"):
        text.update(prepared.meta[split]["sha256"].encode())
    text.update(prepared.tokenizer.serialized)
    return {
        "code": code_of(PACKAGE),
        "text": text.hexdigest(),
        "machine": processor_name(),
        "libraries": f"Python {platform.python_version()}, MindSpore {ms.__version__}, NumPy {np.__version__}",
    }


def tokens_of(prepared: Prepared) -> dict[str, int]:
    """Tokens of the text, by split."""
    return {"train": len(prepared.train), "held_out": len(prepared.validation)}


def code_of(package: Path) -> str:
    """Hash of the files of ``CODE``, by name and content."""
    digest = hashlib.blake2b(digest_size=10)
    files = {
        file
        for pattern in CODE
        for path in package.glob(pattern)
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.suffix in SUFFIXES
    }
    for file in sorted(files):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


class Store:
    """The finished results of a study in a folder.

    Args:
        folder: of the study; created if it is missing.
        now: the fingerprint of this version, text and machine.
        tokens: of this text, by split.
        elsewhere: whether the networks were trained on another machine, and only times are measured on this one.

    Raises:
        UserError: the folder holds results of another fingerprint, or files that are no study's; networks that should
            be trained already are not there at all.
    """

    def __init__(self, folder: Path, now: dict[str, str], tokens: dict[str, int], elsewhere: bool = False) -> None:
        self.folder, self.elsewhere = folder, elsewhere
        self.trained, self.tokens = now, tokens
        """Fingerprint of the networks, and tokens of their text."""
        self.measured = {name: value for name, value in now.items() if name != "text"}
        """Fingerprint of what is measured."""
        self.measured["machine"] += f", {processors()} processors"
        self._runs = folder / RUNS
        header = folder / HEADER
        if header.exists():
            stored = _read(header)
            self._check(header, stored, {"code": now["code"]} if elsewhere else now)
            if elsewhere:
                self.trained, self.tokens = {name: stored[name] for name in now}, stored["tokens"]
        elif elsewhere:
            raise UserError(f"{folder} holds no study; leave out --only-times to train its networks here")
        elif folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
            raise UserError(f"{folder} holds files that are not a study's; choose another --output")
        self._runs.mkdir(parents=True, exist_ok=True)
        if not header.exists():
            write_json(header, {**now, "tokens": tokens})

    def read(self, task: Task) -> Any | None:
        """The result of a task; None if it is not finished.

        Raises:
            UserError: it is of another fingerprint, or its file was changed; it is a network that was to be trained
                elsewhere.
        """
        file = self._file(task)
        if not file.exists():
            if self.elsewhere and task.kind == "train":
                raise UserError(f"{task.describe()} is not trained; finish the study on the machine where it began")
            return None
        stored = _read(file)
        self._check(file, stored.get("fingerprint", {}), self._of(task))
        if stored.get("key") != task.key or "result" not in stored:
            raise UserError(f"{file} is not the result that its name says; delete it, and it is computed again")
        return stored["result"]

    def write(self, task: Task, result: Any, seconds: float) -> None:
        """Keeps a result; after a kill it is there, or not at all."""
        what = {"what": task.describe(), "key": task.key, "fingerprint": self._of(task), "seconds": round(seconds, 1)}
        write_json(self._file(task), {**what, "result": result})

    def _file(self, task: Task) -> Path:
        return self._runs / f"{task.name}-{task.key}.json"

    def _of(self, task: Task) -> dict[str, str]:
        return self.trained if task.kind == "train" else self.measured

    def _check(self, file: Path, stored: dict[str, str], expected: dict[str, str]) -> None:
        other = [name for name, value in expected.items() if stored.get(name) != value]
        if other:
            was, here = stored.get(other[0], "nothing"), expected[other[0]]
            raise UserError(
                f"{file} is of other {' and '.join(other)} ({was} there, {here} here), and a study never mixes two; "
                f"choose another --output, or delete {self.folder}"
            )


@contextlib.contextmanager
def locked_study(folder: Path) -> Iterator[None]:
    """Holds a study's folder, so that two processes never run it at once; a kill releases it.

    Raises:
        UserError: another process holds it.
    """
    check_links(folder, "--output")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: this is a file, not a folder; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "ab") as file:
        if not try_lock(file):
            raise UserError(f"another process runs the study in {folder}; wait for it, or choose another --output")
        yield


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
        if not isinstance(value, dict):
            raise ValueError
        return value
    except ValueError:
        raise UserError(f"{file} is damaged; delete it, and what it held is computed again") from None
