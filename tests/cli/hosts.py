"""Two hosts on one machine: two network namespaces with a cable between them. Their processes share memory and disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from mindspore_palm.native import with_interpreter

ADDRESS = "10.77.0.1"
TOGETHER = """
set -eu
ip link set lo up
unshare -n sleep 1000 & peer=$!
trap 'kill $peer' EXIT
until [ "$(readlink /proc/$peer/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link add name host0 type veth peer name host1 netns $peer
ip addr add 10.77.0.1/24 dev host0
ip link set host0 up
other="nsenter -t $peer -n"
$other ip link set lo up
$other ip addr add 10.77.0.2/24 dev host1
$other ip link set host1 up
export other
"""
"""Start of a script: this shell is host 0, and ``$other COMMAND`` runs a command on host 1."""


def _unshare() -> list[str] | None:
    """The command that gives a process a network of its own; None if this machine does not allow it."""
    if not all(shutil.which(name) for name in ("unshare", "nsenter", "ip")):
        return None
    for options in (["-n"], ["-r", "-n"]):
        probe = "unshare -n true && ip link add name a0 type veth peer name a1"
        if subprocess.run(["unshare", *options, "sh", "-c", probe], capture_output=True).returncode == 0:
            return ["unshare", *options]
    return None


UNSHARE = _unshare()


def start(script: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Starts a bash script on host 0, in a folder, with a process group of its own."""
    return subprocess.Popen(
        [*(UNSHARE or ()), "bash", "-c", TOGETHER + script],
        cwd=folder,
        env={**os.environ, "PATH": with_interpreter(os.environ.get("PATH")), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seconds: float) -> str:
    """Waits for a script, and returns what it printed; kills its process group in any case.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
