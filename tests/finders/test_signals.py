"""Signals at random moments from exec to exit: each ends a run in time, with its code; it resumes to the same bits.

A chain is one run: each launch resumes what the launch before has left, until the run is finished; then it is compared
with a run that nobody has disturbed, and the next chain begins. ``PALM_SIGNALS=n`` sets how many signals are sent.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from checkpoints.command import checkpoints_of, family, finish, kill, same_bits, workers

ROOT = Path(__file__).resolve().parents[2]
SEED = 20220405
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
IN_TIME = 20.0  # seconds from the signal to the end, for a command that has a processor; longer where many wait for one
LAUNCH = 400.0  # seconds for a launch that nobody stops
SIZES = ["model.layers=1", "model.d_model=16", "model.heads=2", "model.head_dim=8", "model.d_ff=32"]
SIZES += ["model.vocab_size=300", "data.seq_len=16", "train.batch_size=4", "train.peak_tflops=1", "train.device=CPU"]
SIZES += ["train.steps=24", "train.checkpoint_every=5", "train.eval_every=4", "train.eval_sequences=24"]
MESHES = {"one process": [], "1 x 2 x 2": ["parallel.data=2", "parallel.model=2"]}
COUNT = int(os.environ.get("PALM_SIGNALS", "300"))
CASES = [
    pytest.param("one process", 3, id="one process, 3 signals"),
    pytest.param("one process", COUNT * 4 // 5, id="one process", marks=pytest.mark.slow),
    pytest.param("1 x 2 x 2", COUNT - COUNT * 4 // 5, id="1 x 2 x 2", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("signals")
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(300)]
    (home / "text.txt").write_text("\n".join(" ".join(draw.choices(words, k=12)) for _ in range(600)))
    return home


def launch(home, output, *more):
    places = [f"data.path={home / 'text.txt'}", f"data.prepared={home / 'prepared'}", f"train.output={home / output}"]
    command = [sys.executable, str(ROOT / "run" / "train.py"), *SIZES, *places, *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


@pytest.fixture(scope="module")
def straight(home):
    """A run that nobody disturbs, per mesh: its folder and how long it took."""
    done = {}

    def get(mesh):
        if mesh not in done:
            begun = time.monotonic()
            process = launch(home, f"straight-{len(done)}", *MESHES[mesh])
            code, out, err = finish(process, LAUNCH)
            assert code == 0, err + out
            done[mesh] = home / f"straight-{len(done)}", time.monotonic() - begun
        return done[mesh]

    return get


@pytest.mark.parametrize(("mesh", "count"), CASES)
def test_a_signal_at_any_moment(mesh, count, home, straight, request):
    folder, span = straight(mesh)
    draw, chain, said, slowest, faults = random.Random(f"{SEED} {mesh} {count}"), 0, Counter(), 0.0, []
    show = request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled
    for number in range(count):
        output = f"chain-{mesh.replace(' ', '')}-{count}-{chain}"
        restarts = ["--max-restarts", "2"] if draw.random() < 0.4 else []
        case = Case(draw, span)
        process = launch(home, output, *MESHES[mesh], *restarts)
        try:
            case.run(process)
        finally:
            kill(process)
        problem = case.problem() or ("it left processes" if leftovers(home / output) else "")
        if not problem and case.code == 0:
            problem = "; ".join(same_bits(home / output, folder))
        if case.code == 0 or problem:
            chain += 1
        if problem:
            faults.append(f"signal {number}, {case} {' '.join(restarts)}: {problem}")
            with show():
                print(f"\n{faults[-1]}")
        said["a fault" if problem else case.outcome()] += 1
        slowest = max(slowest, case.seconds)
    process = launch(home, output, *MESHES[mesh])
    code, out, err = finish(process, LAUNCH)
    assert code == 0, err + out
    assert not same_bits(home / output, folder)
    with show():
        counts = ", ".join(f"{number} {outcome}" for outcome, number in said.most_common())
        print(f"\n{mesh}: {count} signals: {counts}; {chain + 1} runs to the same bits; {slowest:.1f} s at most")
    assert not faults


class Case:
    """One signal: which, to whom, and when."""

    def __init__(self, draw, span):
        self.signal = draw.choice(SIGNALS)
        self.to = draw.choice(["command", "worker", "all"])
        self.which, self.pick = draw.random(), draw.random()
        # half at any time from exec to exit, the others while the run has something to lose or is just ending
        self.when = draw.uniform(0, span) if draw.random() < 0.6 else ("rows", draw.randint(0, 12))
        self.code, self.out, self.err = None, "", ""
        self.early, self.seconds = False, 0.0

    def __str__(self):
        return f"{self.signal.name} to {self.to} at {self.when}"

    def run(self, process):
        """Sends it, and waits for the end."""
        self._wait(process)
        if process.poll() is not None:  # it came too late
            self.out, self.err = process.communicate()
            self.code = process.returncode
            return
        members = family(process)
        self.early = bool(members) and not hears(members[0], self.signal)
        below = [member for member in members[1:] if hears(member, self.signal)]
        if self.to == "worker":
            below = list(workers(process).values()) or below[:1]  # before there are workers: what will start them
        if self.to == "command" or not below or self.early:
            targets = members[:1]
        elif self.to == "worker":
            targets = [below[int(self.pick * len(below))]]
        else:
            targets = members
        sent = time.monotonic()
        for target in targets:
            try:
                target.send_signal(self.signal)
            except psutil.Error:
                continue
        try:
            self.out, self.err = process.communicate(timeout=LAUNCH)
        except subprocess.TimeoutExpired as late:
            self.out, self.err = ((text or b"").decode() for text in (late.stdout, late.stderr))
        self.seconds = 0.0 if self.early else (time.monotonic() - sent) / crowd()
        self.code = process.poll()

    def problem(self):
        """What is wrong with how it ended; nothing if all is well."""
        said = f"exit code {self.code} after {self.seconds:.1f} s\n{self.err[-3000:]}\n{self.out[-3000:]}"
        if self.early:
            return "" if self.code in (-self.signal, 1, 130) else said
        well = "Traceback" not in self.err and "starting again" not in self.out and self.seconds < IN_TIME
        return "" if well and (self.code == 0 or (self.code == 130 and "stopped" in self.err)) else said

    def outcome(self):
        """How it ended, for the counts."""
        if self.early:
            return "before the command's first line"
        if self.code == 0:
            return "finished"
        return "saved and stopped" if "stopped after step" in self.err else "stopped with nothing to save"

    def _wait(self, process):
        if isinstance(self.when, float):
            end = time.monotonic() + self.when
            while time.monotonic() < end and process.poll() is None:
                time.sleep(0.002)
            return
        output = next(word for word in process.args if word.startswith("train.output=")).split("=", 1)[1]
        table = Path(output) / "metrics.csv"
        end, before, wanted = time.monotonic() + LAUNCH, inode(table), None
        while process.poll() is None and (wanted is None or rows(table) < wanted):
            if wanted is None and inode(table) not in (None, before):  # rows of earlier steps are written anew first
                wanted = rows(table) + self.when[1]
            assert time.monotonic() < end, "no rows in time"
            time.sleep(0.002)


def crowd():
    """How many processes share a processor, on the average of the last minute; 1 at least."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def inode(table):
    try:
        return table.stat().st_ino
    except OSError:
        return None


def rows(table):
    try:
        return len(table.read_bytes().splitlines()) - 1
    except OSError:
        return 0


def hears(process, number):
    """Whether a process has a handler for a signal, or keeps it until it has one: before, Python is only starting.

    A supervisor that waits for signals does neither, but it has a child then.
    """
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if process.children() or "State:\tZ" in status:
            return True
    except (OSError, psutil.Error):
        return True  # it has ended
    masks = dict(line.split(":\t") for line in status.splitlines() if line.startswith(("SigBlk", "SigCgt")))
    caught = int(masks["SigCgt"], 16) if number != signal.SIGINT else 0  # Python's own handler is there very early
    return bool((caught | int(masks["SigBlk"], 16)) >> (number - 1) & 1)


def leftovers(folder, limit=5.0):
    """Processes that still work on a folder."""
    end = time.monotonic() + limit
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if f"train.output={folder}" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
            except psutil.Error:
                continue
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.1)


def test_the_last_checkpoint_of_a_run_is_its_last_step(straight):
    assert checkpoints_of(straight("one process")[0])[-1] == 24
