"""The scripts for several hosts: two hosts train as one process does, stop together, and refuse in one sentence."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from cli import hosts

ROOT = Path(__file__).resolve().parents[2]
MSRUN, SLURM = ROOT / "run" / "cluster" / "msrun.sh", ROOT / "run" / "cluster" / "slurm.sh"
TEXT = "".join(f"def f{i}(a, b):\n    return a + {i} * b\n" for i in range(400))
SIZES = {"layers": 1, "d_model": 16, "heads": 2, "head_dim": 8, "d_ff": 32, "vocab_size": 310}
RUN = [f"model.{name}={size}" for name, size in SIZES.items()]
RUN += ["data.path=text.txt", "data.seq_len=16", "train.batch_size=4", "train.eval_every=0"]
LIMIT = 150.0  # seconds for a start of both hosts; 25 on an idle machine
needs_hosts = pytest.mark.skipif(hosts.UNSHARE is None, reason="this machine allows no network namespaces")

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 $other "$@"
wait $first
"""
SCONTROL = """#!/usr/bin/env bash
[[ "$*" == "show hostnames node[0-1]" ]] && printf '10.77.0.1\\n10.77.0.2\\n'
"""
BOTH = """
NODE_RANK=0 "$MSRUN" "$@" >host0.out 2>&1 & first=$!
NODE_RANK=1 $other "$MSRUN" "$@" >host1.out 2>&1 & second=$!
echo $second >host1.pid
wait $first && code=0 || code=$?
wait $second && codes="$code $?" || codes="$code $?"
echo "exit codes $codes"
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with a text; nothing that a test starts outlives it."""
    from mindspore_palm.parallel.host import build

    build.extension()  # before the clock of the workers starts
    (tmp_path / "text.txt").write_text(TEXT)
    before = set(psutil.process_iter())
    yield tmp_path
    for process in set(psutil.process_iter()) - before:
        try:
            if str(tmp_path) in " ".join([process.cwd(), *process.cmdline()]):
                process.kill()
        except psutil.Error:
            continue


def train(*settings):
    return " ".join(f"'{word}'" for word in [*RUN, *settings])


def losses(run):
    with open(run / "metrics.csv", newline="") as lines:
        return np.array([float(row["loss"]) for row in csv.DictReader(lines)])


@needs_hosts
def test_two_hosts_of_slurm_train_as_one_process(home, door):
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL)):
        (home / "bin" / name).parent.mkdir(exist_ok=True)
        (home / "bin" / name).write_text(content)
        (home / "bin" / name).chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_JOB_NUM_NODES": "2"}
    job |= {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "1", "LOGS": str(home / "logs"), "COPY": str(home / "spooled")}
    shutil.copy(SLURM, home / "spooled")  # as Slurm runs it
    run = train(*(f"{key}={home / name}" for key, name in (("data.path", "text.txt"), ("train.output", "run"))))
    script = f'PATH="{home}/bin:$PATH"\n"$COPY" {run} data.prepared={home}/prepared train.steps=6 parallel.data=2'
    printed = hosts.finish(hosts.start(script, home, **job), LIMIT)
    assert "1 pods x 2 data x 1 model" in printed and "held out, all" in printed, printed
    assert "[INFO]" not in printed
    for host in (0, 1):  # each has started its own worker alone
        assert [file.name for file in (home / "logs" / f"host_{host}").glob("worker_*")] == [f"worker_{host}.log"]
    code, _, err = door("train", home, *RUN, "train.output=alone", "train.steps=6", "data.prepared=prepared")
    assert code == 0, err
    np.testing.assert_allclose(losses(home / "run"), losses(home / "alone"), rtol=5e-6)  # as tests/parallel/


@needs_hosts
def test_a_stop_of_one_host_saves_and_stops_both(home):
    words = train("train.output=run", "data.prepared=prepared", "train.steps=100000", "parallel.data=2")
    settings = {"NODES": "2", "DEVICES_PER_NODE": "1", "MASTER_ADDR": hosts.ADDRESS, "MSRUN": str(MSRUN)}
    process = hosts.start(f"set -- {words}\n{BOTH}", home, LOGS="logs", **settings)
    try:
        end = time.monotonic() + LIMIT
        metrics = home / "run" / "metrics.csv"
        while not (metrics.exists() and metrics.read_text().count("\n") > 1) and time.monotonic() < end:
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        psutil.Process(int((home / "host1.pid").read_text())).terminate()
    finally:
        printed = hosts.finish(process, LIMIT)
    log = (home / "host0.out").read_text()
    assert "exit codes 0 130" in printed, (printed, log)
    step = int(re.search(r"stopped after step (\d+); the same command resumes from there", log)[1])
    assert (home / "run" / "checkpoints" / f"step_{step:06}" / "manifest.json").exists()


@needs_hosts
def test_bad_input_is_one_sentence_on_a_host(home):
    words = train("train.output=run", "data.prepared=prepared", "parallel.data=4")
    settings = {"NODES": "2", "DEVICES_PER_NODE": "1", "MASTER_ADDR": hosts.ADDRESS, "MSRUN": str(MSRUN)}
    printed = hosts.finish(hosts.start(f"set -- {words}\n{BOTH}", home, LOGS="logs", **settings), LIMIT)
    assert "exit codes 2 2" in printed, printed
    for host in (0, 1):
        last = (home / f"host{host}.out").read_text().splitlines()[-1]
        assert last.startswith("error: parallel.stages x") and "is 4, and msrun started 2 workers" in last


COMPLETE = {
    "NODES": "2",
    "NODE_RANK": "1",
    "DEVICES_PER_NODE": "8",
    "MASTER_ADDR": "10.0.0.1",
    "PYTHON": sys.executable,
}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"NODES": ""}, "NODES =  is not a number of hosts; set it, such as NODES=2"),
        ({"NODES": "two"}, "NODES = two is not a number of hosts"),
        ({"DEVICES_PER_NODE": "0"}, "DEVICES_PER_NODE = 0 is not a number of devices"),
        ({"NODE_RANK": "2"}, "NODE_RANK = 2 is not the number of a host; set it to 0 ... 1"),
        ({"NODE_RANK": "08"}, "NODE_RANK = 08 is not the number of a host"),
        ({"NODE_RANK": ""}, "NODE_RANK =  is not the number of a host"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"MASTER_ADDR": "127.0.0.1"}, "MASTER_ADDR = 127.0.0.1 is every host's own address"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT = x is not a port"),
        ({"PYTHON": "/nowhere/python"}, "PYTHON = /nowhere/python is not there"),
    ],
)
def test_a_wrong_environment_is_one_sentence(change, problem, tmp_path):
    environment = {"PATH": "/usr/bin:/bin", **COMPLETE, **change}
    result = subprocess.run([str(MSRUN)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert re.fullmatch(r"error: .*\n", result.stderr) and problem in result.stderr, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_page_has_the_defaults_of_the_script():
    page, script = (ROOT / "docs" / "clusters.md").read_text(), MSRUN.read_text()
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (.*?) ?\|", page, re.MULTILINE))
    defaults = {
        name: f"`{value}`" for name, value in re.findall(r"^([A-Z_]+)=\$\{\1:-([\w/]+)\}$", script, re.MULTILINE)
    }
    assert rows == {name: "" for name in COMPLETE} | {
        **{name: value.strip("`") if value.strip("`").isdigit() else value for name, value in defaults.items()},
        "NODE_RANK": "Slurm's `SLURM_NODEID`",
    }
    assert "${NODE_RANK:-${SLURM_NODEID:-}}" in script
    asked = re.findall(r"^#SBATCH --(\S+)$", SLURM.read_text(), re.MULTILINE)
    assert {"gpus-per-node=8", "time=24:00:00", "signal=TERM@300"} <= set(asked)


def test_slurm_refuses_another_folder(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path)}
    result = subprocess.run([str(SLURM)], env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and "submit in the root of the checkout" in result.stderr


@pytest.mark.parametrize("script", [MSRUN, SLURM], ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script):
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed; tests/requirements.txt has it")
    result = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
