"""A reader who types the commands of a page, in a folder of their own.

Commands run to the letter, except for RULES. The folder looks like a checkout with small configurations (``TINY``), and
holds the reader's own files that pages mention.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import yaml
from cli.pages import ROOT, Command
from study.small import small, write_study

LINKED = ("run", "mindspore_palm", "tests", "benchmarks")
TINY = {
    "model": {
        "layers": 2,
        "d_model": 32,
        "heads": 4,
        "head_dim": 8,
        "d_ff": 64,
        "vocab_size": 512,
    },
    "data": {"path": "my_texts/", "seq_len": 64},
    "train": {
        "steps": 30,
        "batch_size": 8,
        "eval_every": 10,
        "eval_sequences": 8,
        "checkpoint_every": 10,
        "keep_last": 12,
        "output": "runs/palm_tiny",
    },
}
"""In the place of yaml/palm_tiny.yaml."""
PORT = "8000"  # of pages
RULES = (
    (r"(run/serve\.py|palm serve) \S+", r"\g<0> --port PORT", "a free port"),
    (r"127\.0\.0\.1:8000", "127.0.0.1:PORT", "the same port"),
    (r"^curl ", "curl --fail --silent --show-error ", "an error of the server fails the command"),
    (r"--rewind-to 1400 --skip-batches 1400:1500", "--rewind-to 20 --skip-batches 20:22", "a small run has 30 steps"),
    (r"data\.seq_len=16", "data.seq_len=24", "a small vocabulary takes more tokens for a pair"),
)
"""Patterns, their replacements, and why. PORT is a free port."""
SECONDS = 300  # of a command


class Reader:
    """Types commands in a folder; servers run until ``leave``.

    Args:
        folder: an empty folder.
        prepared: a folder for prepared text, which readers may share.
    """

    def __init__(self, folder: Path, prepared: Path) -> None:
        self.folder, self._port, self._server = folder, free_port(), None
        for name in LINKED:
            (folder / name).symlink_to(ROOT / name)
        _own_files(folder)
        _configurations(folder, prepared)
        bin_folder = folder.parent / f"{folder.name}-bin"
        bin_folder.mkdir()
        for name, words in (("python", ""), ("python3", ""), ("palm", "-m mindspore_palm ")):
            program = bin_folder / name
            path = f"PYTHONPATH={shlex.quote(str(ROOT))} " if words else ""
            program.write_text(f'#!/bin/sh\n{path}exec {shlex.quote(sys.executable)} {words}"$@"\n')
            program.chmod(0o755)
        self._environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}

    def type(self, command: Command) -> None:
        """Runs a command, and checks how it ends: with 0, or with the refusal that the page shows."""
        line = typed(command, self._port)
        if re.search(RULES[0][0], line):
            self._serve(line)
            return
        if "killed" in command.comment:
            self._kill(line)
            return
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self._environment,
            input="import os\n",
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        printed = f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert done.returncode == (2 if command.answer.startswith("error:") else 0), printed
        assert "Traceback" not in printed
        if command.answer.startswith(("error:", "note:")):
            assert command.answer in done.stdout + done.stderr, printed

    def leave(self) -> None:
        """Stops the server as Ctrl-C does, if one was started."""
        if self._server is None:
            return
        self._server.send_signal(signal.SIGINT)
        try:
            assert self._server.wait(60) == 130
        finally:
            self._server.kill()
            self._server.wait()

    def _serve(self, line: str) -> None:
        """Starts a server, and asks it once."""
        log = self.folder / "server.log"
        with log.open("w") as file:
            self._server = subprocess.Popen(
                shlex.split(line), cwd=self.folder, env=self._environment, stdout=file, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + 120
        while f"http://127.0.0.1:{self._port}" not in log.read_text():
            assert self._server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=30) as answer:
            assert answer.status == 200

    def _kill(self, line: str) -> None:
        """Starts a training, and kills it as soon as there is a checkpoint."""
        checkpoints = self.folder / "runs" / "palm_tiny" / "checkpoints"
        with subprocess.Popen(
            ["bash", "-c", f"exec {line}"],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            deadline = time.monotonic() + 120
            while not any(checkpoints.glob("step_*")) and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def typed(command: Command, port: int) -> str:
    """A command with the rules applied."""
    line = command.text
    for pattern, replacement, _ in RULES:
        line = re.sub(pattern, replacement, line)
    return line.replace("PORT", str(port))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _own_files(folder: Path) -> None:
    """Files that pages take for granted: texts, questions, a machine, lines for the chat."""
    sources = sorted(Path(json.__file__).parents[1].glob("email/*.py"))
    for name in ("my_texts", "notes"):
        (folder / name).mkdir()
        for source in sources:
            (folder / name / f"{source.stem}.txt").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "my.txt").write_text(sources[1].read_text(encoding="utf-8")[:5000], encoding="utf-8")
    question = {"prompt": "for i in", "choices": [" range(10):", " def(10):"], "answer": 0}
    (folder / "choices.jsonl").write_text(f"{json.dumps(question)}\n" * 12)
    pairs = (json.dumps({"prompt": f"after {n} comes ", "target": str(n + 1)}) for n in range(200))
    (folder / "pairs.jsonl").write_text("\n".join(pairs) + "\n")
    (folder / "questions.txt").write_text("import os\nimport re\n")
    machine = ROOT / "mindspore_palm" / "plan" / "machines" / "a100.yaml"
    (folder / "my_machine.yaml").write_text(machine.read_text(encoding="utf-8"), encoding="utf-8")


def _configurations(folder: Path, prepared: Path) -> None:
    """The configurations of the checkout; small where they train, also by name."""
    (folder / "yaml" / "studies").mkdir(parents=True)
    for file in (ROOT / "yaml").glob("*.yaml"):
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        if file.stem == "palm_tiny":
            values = {**TINY, "data": {**TINY["data"], "prepared": str(prepared)}}
            (folder / file.stem).write_text(yaml.safe_dump(values))
        elif "finetune" in values:
            values["train"] |= {"steps": 4, "batch_size": 8, "eval_sequences": 8}
            values["data"]["prepared"] = str(prepared)
        (folder / "yaml" / file.name).write_text(yaml.safe_dump(values))
    few = small(fit=None, seeds=[0, 1], comparisons=small()["comparisons"][:2])
    write_study(folder, few, "yaml/studies/article.yaml")
    (folder / "docs" / "results").mkdir(parents=True)
    results = ROOT / "docs" / "results" / "results.json"
    (folder / "docs" / "results" / results.name).write_bytes(results.read_bytes())
