"""wandb and trackio with one interface. Each is imported when it is used."""

from __future__ import annotations

import contextlib
import importlib
import io
import netrc
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROJECT = "mindspore_palm"
HOST = re.compile(r"\w+://([^/:]+).*")
STEP = "step"  # the x-axis of all charts


class Service(Protocol):
    """A run of a tracker, as it is written."""

    where: str
    """Where the values go, for the log."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Logs values of a step.

        Raises:
            Exception: of the tracker.
        """

    def close(self) -> None:
        """Ends the connection when everything is sent.

        Raises:
            Exception: of the tracker.
        """


class Wandb:
    """Weights & Biases; offline if there is no account.

    wandb's own step only rises, also where a run resumes. So the step is a value of its own, and the x-axis.
    """

    def __init__(self, folder: Path, title: str, run_id: str, config: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        mode = wandb_mode(wandb.setup().settings)
        home = Path(os.environ.get("WANDB_DIR") or folder.resolve())
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=os.environ.get("WANDB_NAME") or title,
            id=run_id,
            resume="allow",
            dir=str(home),
            mode=mode,
            config=dict(config),
            settings=wandb.Settings(console="off", silent=True, save_code=False, disable_git=True),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        why = "there is no account (wandb login, or WANDB_API_KEY)" if mode == "offline" else "set"
        files = f"offline, as {why}; its files are in {home / 'wandb'}, and wandb sync uploads them"
        self.where = files if self._run.offline else f"run {run_id}, {self._run.url}"

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({STEP: step, **values})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """trackio: a database on this machine, or wherever its own environment variables say."""

    def __init__(self, folder: Path, title: str, run_id: str, config: Mapping[str, Any]) -> None:
        self._trackio = importlib.import_module("trackio")
        with quiet():
            self._run = self._trackio.init(
                project=PROJECT,
                name=f"{title} {run_id}",
                resume="allow",
                config=dict(config),
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        self.where = f"run {title} {run_id}; trackio show --project {PROJECT}"

    def add(self, step: int, values: Mapping[str, float]) -> None:
        with quiet():
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        with quiet():
            self._trackio.finish()


@dataclass(frozen=True)
class Package:
    """A tracker's package."""

    version: str
    """That this project is tested with."""
    open: Callable[[Path, str, str, Mapping[str, Any]], Service]
    """Opens a run, from the folder of the training run, a title, an id and all settings."""


SERVICES = {"wandb": Package("0.31.0", Wandb), "trackio": Package("0.43.0", Trackio)}
"""Trackers beside TensorBoard by name, which is also that of their package."""


def wandb_mode(settings: Any) -> str | None:
    """Offline where nobody has an account or asked for a mode; else None, and wandb decides.

    Args:
        settings: wandb's own.
    """
    if os.environ.get("WANDB_MODE") or settings.mode != "online":
        return None
    has_token = settings.api_key or getattr(settings, "identity_token_file", None)
    return None if has_token or _is_in_netrc(HOST.sub(r"\1", settings.base_url)) else "offline"


def _is_in_netrc(host: str) -> bool:
    """Whether ``wandb login`` has stored a key for a host."""
    for file in (os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc"):
        with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
            if file and netrc.netrc(str(file)).authenticators(host):
                return True
    return False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what a tracker prints: the log has one line on it."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
