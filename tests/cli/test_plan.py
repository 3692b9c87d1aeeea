"""``run/plan.py`` and ``run/dry_run.py`` as a user calls them: what they print, draw and refuse."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mindspore_palm.cli import plan as plan_command
from mindspore_palm.errors import UserError, run_command
from mindspore_palm.plan.machines import HOME, load_machine, machine_names

ROOT = Path(__file__).resolve().parents[2]
PNG = b"\x89PNG\r\n"


def run(script, *arguments, cwd=ROOT):
    command = [sys.executable, str(ROOT / "run" / script), *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, env=environment)


def plan(*arguments, **options):
    return run("plan.py", *arguments, **options)


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs plan.py in this process, as a start takes seconds; returns the refusal on standard error."""

    def run(*arguments):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr("sys.argv", ["plan.py", *map(str, arguments)])
        assert run_command(plan_command.main) == 2
        printed = capsys.readouterr()
        assert not printed.out
        return printed.err

    return run


def test_palm_540b_on_its_own_machine(tmp_path):
    done = plan("--config", "yaml/palm_540b.yaml", "--charts", tmp_path, "--json", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    for words in ("540,354,281,472", "FLOPs/token  3.28 T; 4.10 T", "6,144 devices", "usable: fits"):
        assert words in done.stdout
    seconds = float(re.search(r"step +([\d.]+) s", done.stdout).group(1))
    assert seconds == pytest.approx(17.60, rel=0.15)
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["layouts"][0]["step_seconds"] == pytest.approx(seconds, abs=0.01)
    for name in ("step.png", "scaling.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)


def test_the_papers_table():
    done = plan("--published")
    assert done.returncode == 0, done.stderr
    for words in (
        "GPT-3 175B",
        "21.3 % does not follow",
        "not the paper's 50 %",
        "46.2",
        "57.8",
        "60.10 s",
        "17.60 s",
    ):
        assert words in done.stdout


def test_meshes_that_fit(tmp_path):
    settings = ["--config", "yaml/palm_62b.yaml", "--machine", "ascend-910b", "--devices", 512, "--search"]
    done = plan(*settings, "--charts", tmp_path, "--json", tmp_path / "meshes.json")
    assert done.returncode == 0, done.stderr
    rates = [float(rate) for rate in re.findall(r"([\d.]+)%  +[\d.]+%$", done.stdout, re.MULTILINE)]
    assert len(rates) == 10 and rates == sorted(rates, reverse=True)
    assert (tmp_path / "meshes.png").read_bytes().startswith(PNG)
    assert len(json.loads((tmp_path / "meshes.json").read_text())["layouts"]) > 10


@pytest.mark.slow
def test_spmd_or_pathways(tmp_path):
    done = plan("--pods", "--charts", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "owes nothing to Pathways" in done.stdout and "published: 1.95" in done.stdout
    other = plan("--pods", "--config", "yaml/palm_8b.yaml", "parallel.pods=2")
    assert other.returncode == 0 and "Pathways)" in other.stdout
    assert "published" not in other.stdout and "the paper" not in other.stdout  # nothing was published about this
    for name in ("pods.png", "ways.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)
    answer = " ".join(done.stdout.split())
    assert "When does a controller such as Pathways pay? With 8 pods" in answer
    assert "from 1 GB/s on, data parallel always does" in answer  # as in docs/planner.md


def test_schedules_of_a_network_with_memory_by_stage():
    mesh = ("parallel.data=8", "parallel.model=8", "train.micro_batch=8")
    done = plan("--schedules", 8, 24, "--config", "yaml/palm_62b.yaml", "--machine", "a100", *mesh)
    assert done.returncode == 0, done.stderr
    for name in ("gpipe", "1f1b", "interleaved 1f1b", "zb-h1", "zb-v", "dualpipe"):
        assert f"{name}, GB per device" in done.stdout
    first, *_, last = done.stdout.partition("1f1b, GB per device\n")[2].partition("\n\n")[0].splitlines()[1:]
    activations = [float(row.split()[5]) for row in (first, last)]
    assert activations[0] == pytest.approx(8 * activations[1], rel=0.01)


@pytest.mark.slow
def test_the_planner_s_page_prints_what_the_commands_print():
    page = (ROOT / "docs" / "planner.md").read_text()
    for line in plan("--published").stdout.partition("runs with pipelines")[2].splitlines()[1:]:
        assert line in page, line
    search = plan("--config", "yaml/palm_540b.yaml", "--search").stdout
    pods = plan("--pods").stdout
    assert pods.startswith("Fastest way")
    for line in [*search.splitlines(), *pods.partition("One SPMD program: step time")[0].splitlines()]:
        assert line in page, line


@pytest.mark.slow
def test_where_a_pipeline_overtakes_a_mesh():
    small = ("train.batch_size=16", "train.micro_batch=0")
    done = plan("--crossover", "--config", "yaml/palm_8b.yaml", "--devices", 16, *small)
    assert done.returncode == 0, done.stderr
    assert "16 devices, 16 sequences" in done.stdout and "links at 1/4 of their bandwidth" in done.stdout


@pytest.mark.slow
def test_schedules_of_a_pipeline(tmp_path):
    done = plan("--schedules", 8, 24, "--charts", tmp_path)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("\n\n")[0]
    assert table in (ROOT / "docs" / "pipelines.md").read_text()
    assert (tmp_path / "schedules.png").read_bytes().startswith(PNG)
    few = plan("--schedules", 3, 5)
    assert few.returncode == 0 and "No dualpipe: 3 devices and 5 micro-batches must both be even" in few.stdout


def test_every_machine_names_its_sources():
    assert machine_names() == ["a100", "ascend-910a", "ascend-910b", "h100", "tpu-v3", "tpu-v4", "v100"]
    for name in machine_names():
        assert load_machine(name).peak > 1e14
    assert [name for name in machine_names() if load_machine(name).target == "Ascend"] == ["ascend-910a", "ascend-910b"]
    done = plan("--config", "yaml/palm_8b.yaml", "--machine", HOME / "h100.yaml")
    assert done.returncode == 0, done.stderr


REFUSED = {
    "nothing": ([], "give --config FILE, --published, --crossover, --pods or --schedules"),
    "machine": (["--config", "yaml/palm_8b.yaml", "--machine", "tpu-v5"], "no machine is called 'tpu-v5'"),
    "near": (["--config", "yaml/palm_8b.yaml", "--machine", "ascend910b"], "did you mean ascend-910b?"),
    "file": (["--config", "yaml/palm_8b.yaml", "--machine", "LICENSE"], "no machine is called 'LICENSE'"),
    "config": (["--config", "LICENSE"], "LICENSE"),
    "no file": (["--config", "yaml/palm_9b.yaml"], "did you mean yaml/palm_8b.yaml?"),
    "mesh": (["--config", "yaml/palm_540b.yaml", "parallel.model=5"], "model.heads = 48 cannot be sharded into"),
    "ascend": (["--config", "yaml/palm_540b.yaml", "--machine", "ascend-910a"], "the ranks of a group must take"),
    "devices": (["--config", "yaml/palm_540b.yaml", "--search", "--devices", "3"], "--devices 3 cannot be split into"),
    "none": (["--config", "yaml/palm_8b.yaml", "--search", "--devices", "0"], "--devices 0: set it to 1 or more"),
    "memory": (["--config", "yaml/palm_62b.yaml", "--search", "--devices", "8"], "GB are usable; take more --devices"),
    "no pods": (["--pods", "--machine", "a100"], "a100 has none: take tpu-v4 or tpu-v3"),
    "batch of pods": (["--pods", "train.batch_size=1"], "train.batch_size = 1 cannot be sharded into"),
    "heads of pods": (["--pods", "parallel.model=5"], "model.heads = 48 cannot be sharded into"),
    "devices alone": (["--config", "yaml/palm_8b.yaml", "--devices", "8"], "--devices is for a search"),
    "published more": (["--published", "--json", "x.json"], "--published takes no other option; leave out json"),
    "json of a crossover": (["--crossover", "--json", "x.json"], "leave out --crossover"),
    "charts of a crossover": (["--crossover", "--charts", "x"], "--crossover draws no charts"),
    "no devices to cross": (["--crossover", "--devices", "0"], "--devices 0: set it to 1 or more"),
    "charts of a network": (
        ["--schedules", "8", "24", "--config", "yaml/palm_62b.yaml", "--charts", "x"],
        "--schedules takes no other option than --machine and settings",
    ),
    "more stages than layers": (
        ["--schedules", "80", "24", "--config", "yaml/palm_62b.yaml"],
        "a pipeline of 64 layers has 2 to 64 devices",
    ),
    "json of pods": (["--pods", "--json", "x.json"], "--json is for a plan or a search"),
    "a file for charts": (["--pods", "--charts", "README.md/charts"], "a file is in the place of the folder"),
    "no folder": (
        ["--config", "yaml/palm_8b.yaml", "--json", "no/such/plan.json"],
        "there is no folder to write",
    ),
    "a folder": (["--config", "yaml/palm_8b.yaml", "--json", "tests"], "this is a folder or a device"),
    "a device": (["--config", "yaml/palm_8b.yaml", "--json", "/dev/null"], "this is a folder or a device"),
    "a machine's folder": (
        ["--config", "yaml/palm_8b.yaml", "--machine", "no/such.yaml"],
        "there is no file no/such.yaml",
    ),
    "setting": (["--config", "yaml/palm_8b.yaml", "model.layer=3"], "did you mean model.layers?"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_sentence(case, refused):
    arguments, words = REFUSED[case]
    said = refused(*arguments)
    assert words in said and len(said.strip().splitlines()) <= 2


def test_a_refusal_of_the_script_is_no_traceback():
    done = plan("--config", "yaml/palm_8b.yaml", "--machine", "tpu-v5")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: no machine is called 'tpu-v5'") and "Traceback" not in done.stderr


A100, TPU_V4 = ((HOME / f"{name}.yaml").read_text() for name in ("a100", "tpu-v4"))
BROKEN = {
    "not a list of numbers": ("- 1\n", "a machine is a list of"),
    "a number is missing": ("title: x\nsources: {}\n", "peak_tflops"),
    "no source": (A100.replace("  tile: ", "  tyle: "), "sources must name every number"),
    "a word": (A100.replace("memory_gib: 80", "memory_gib: much"), "memory_gib"),
    "negative": (A100.replace("peak_tflops: 312", "peak_tflops: -1"), "peak_tflops"),
    "two wirings": (A100.replace("server_gb_s: 300", "link_gb_s: 300"), "give either"),
    "no dimension": (TPU_V4.replace("[12, 16, 16]", "[]"), "torus"),
    "nothing": (A100.replace("network_gb_s: 25\n", "network_gb_s: null\n"), "give either"),
    "too little": (
        A100.replace("peak_tflops: 312", "peak_tflops: 1.0e-320"),
        "peak_tflops",
    ),
    "not YAML": ("title: [", "line"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_machine_is_one_sentence(case, tmp_path):
    text, words = BROKEN[case]
    file = tmp_path / "machine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words) as refused:
        load_machine(str(file))
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)


def test_a_dry_run_that_does_not_fit():
    done = run("dry_run.py", "--config", "yaml/palm_540b.yaml", "--target", "Ascend")
    assert done.returncode == 2 and "parallel.model = 12: on Ascend" in done.stderr
    done = run("dry_run.py", "--config", "yaml/palm_540b.yaml", "--rank", "6144")
    assert done.returncode == 2 and "--rank 6144 is not one of 6,144 devices" in done.stderr
