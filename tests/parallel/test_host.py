"""Workers on CPU: MindSpore partitions, shared memory carries the data, and errors are one sentence."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from parallel import host_pipeline
from parallel import host_worker as worker
from parallel.msrun import environment, msrun_command

from mindspore_palm.errors import UserError

WORKER = Path(__file__).with_name("host_worker.py")
RANKS = range(worker.WORKERS)
LIMIT = 120.0  # seconds for the workers; on an idle machine they take a fifth of that


def end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def ends_of_logs(out: Path) -> str:
    return "\n".join(path.read_text()[-2000:] for path in sorted((out / "log").glob("worker_*.log")))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The output folder of four workers, after all of them have ended by themselves."""
    out = tmp_path_factory.mktemp("host")
    from mindspore_palm.parallel.host import build

    build.extension()  # before the clock of the workers starts
    command = msrun_command(worker.WORKERS, out / "log", WORKER, out)
    with open(out / "msrun.log", "w") as log:
        process = subprocess.Popen(command, cwd=out, env=environment(), stdout=log, stderr=log, start_new_session=True)
    try:
        start = time.monotonic()
        while not all((out / f"ended_{rank}").exists() for rank in RANKS):
            if time.monotonic() - start > LIMIT or process.poll() is not None:
                pytest.fail(f"workers have not ended after {time.monotonic() - start:.0f} s:\n{ends_of_logs(out)}")
            time.sleep(0.1)
        if not all((out / f"done_{rank}").exists() for rank in (0, 1, 2)):
            pytest.fail(f"workers have failed:\n{ends_of_logs(out)}")
        yield out
    finally:
        # The scheduler would look for the killed worker for half a minute. Workers lead their own process groups.
        end_group(process.pid)
        process.wait()
        for path in out.glob("group_*"):
            end_group(int(path.read_text()))


@pytest.fixture(scope="module")
def results(run):
    return [dict(np.load(run / f"rank_{rank}.npz")) for rank in RANKS]


def in_order(parts: list[np.ndarray]) -> np.ndarray:
    """Their sum in order; that of float16 in float32, rounded once."""
    wide = np.float32 if parts[0].dtype == np.float16 else parts[0].dtype
    total = parts[0].astype(wide)
    for part in parts[1:]:
        total = total + part.astype(wide)
    return total.astype(parts[0].dtype)


@pytest.mark.parametrize("dtype", worker.DTYPES)
@pytest.mark.parametrize("group", worker.GROUPS)
def test_collectives_have_numpys_bits(results, group, dtype):
    for rank in RANKS:
        members = worker.GROUPS[group][rank]
        for size, count in worker.SIZES.items():
            inputs = [worker.numbers(member, dtype, count) for member in members]
            long_inputs = [worker.numbers(member, dtype, count * len(members)) for member in members]
            index = members.index(rank)
            expected = {
                "gather": np.concatenate(inputs),
                "reduce": in_order(inputs),
                "scatter": in_order([long[index * count : (index + 1) * count] for long in long_inputs]),
            }
            for kind, value in expected.items():
                got = results[rank][f"{group}/{dtype}/{size}/{kind}"]
                assert got.dtype == value.dtype
                np.testing.assert_array_equal(got, value, f"worker {rank}: {kind} of {size}")


def test_maximum_and_minimum_keep_what_is_not_a_number(results):
    inputs = np.stack([worker.numbers(rank, "float32", 9) for rank in RANKS])
    inputs[RANKS, RANKS] = np.nan
    for result in results:
        np.testing.assert_array_equal(result["max"], inputs.max(0))
        np.testing.assert_array_equal(result["min"], inputs.min(0))


@pytest.mark.parametrize("dtype", worker.MESSAGES)
def test_a_message_passes_through_all_workers_unchanged(results, dtype):
    for rank in RANKS:
        for step in range(2):
            got, expected = results[rank][f"{dtype}/{step}"], worker.message(dtype, step)
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected, f"worker {rank}, step {step}")


def test_mindspores_pipeline_learns_what_one_process_does(results):
    losses, weights = host_pipeline.trained()
    model = host_pipeline.MODEL
    for rank, result in enumerate(results):
        stage, part = divmod(rank, model)
        if stage == host_pipeline.STAGES - 1:
            np.testing.assert_allclose(result["pipeline/loss"], losses, rtol=2e-6)
        size = host_pipeline.HIDDEN // model
        columns = slice(part * size, (part + 1) * size)
        per_stage = host_pipeline.LAYERS // host_pipeline.STAGES
        for i in range(stage * per_stage, (stage + 1) * per_stage):
            close(result[f"pipeline/wide{i}"], weights[i][0][:, columns])
            close(result[f"pipeline/narrow{i}"], weights[i][1][columns])


def trained(steps: int) -> tuple[float, np.ndarray, np.ndarray]:
    """The network of host_worker.networks in NumPy: the loss of the last of ``steps`` steps, then w and v after it."""
    x, w, v = (matrix.astype(np.float64) for matrix in worker.matrices())
    for _ in range(steps):
        hidden = x @ w
        out = hidden @ v
        loss = (out**2).sum() / worker.BATCH
        d_out = 2 * out / worker.BATCH
        w, v = w - worker.RATE * x.T @ d_out @ v.T, v - worker.RATE * hidden.T @ d_out
    return loss, w, v


def close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


def test_a_partitioned_network_learns_what_one_process_does(results):
    loss, w, v = trained(1)
    half = worker.HIDDEN // 2
    for rank, result in enumerate(results):
        columns = slice(rank % 2 * half, (rank % 2 + 1) * half)  # of two in the model axis, the inner one
        close(result["tensor/loss"], loss)
        close(result["tensor/w"], w[:, columns])
        close(result["tensor/v"], v[columns])


def test_sharded_weights_are_gathered_and_their_gradients_scattered(results):
    loss, w, v = trained(1)
    half, quarter_hidden, height = worker.HIDDEN // 2, worker.HIDDEN // 4, worker.WIDTH // 2
    for rank, result in enumerate(results):
        model, data = rank % 2, rank // 2
        close(result["sharded/loss"], loss)  # needs the weights' other halves, which are on another worker
        close(result["sharded/w"], w[data * height : (data + 1) * height, model * half : (model + 1) * half])
        start = model * half + data * quarter_hidden
        close(result["sharded/v"], v[start : start + quarter_hidden])
        quarter = worker.WIDTH // 4
        close(result["newer/loss"], loss)
        close(result["newer/w"], w[rank * quarter : (rank + 1) * quarter])


def test_networks_of_all_kinds_take_turns_in_one_process(results):
    start = trained(1)[0]
    loss, w, v = trained(1)
    again, w_again, _ = trained(2)
    half = worker.HIDDEN // 2
    for rank, result in enumerate(results):
        close(result["evaluated/loss"], start)
        close(result["plain/loss"], loss)
        close(result["plain/w"], w)
        close(result["plain/v"], v)
        assert str(result["plain/device"]) == "CPU"
        assert str(result["dry"]) == "partitioned for GPU"
        close(result["last/loss"], loss)
        close(result["again/loss"], again)
        close(result["again/w"], w_again[:, rank % 2 * half : (rank % 2 + 1) * half])


def test_replicas_are_the_same_to_the_bit(results):
    for name in ("tensor", "again"):
        for left, right in ((0, 2), (1, 3)):
            np.testing.assert_array_equal(results[left][f"{name}/w"], results[right][f"{name}/w"])
    for result in results:
        np.testing.assert_array_equal(result["again/loss"], results[0]["again/loss"])


def test_workers_that_run_different_collectives_are_reported(results):
    for result in results:
        text = str(result["disagree"])
        assert "workers disagree in group mccl_world_group" in text
        assert "worker 2 (pid " in text and "AllReduce of 20 bytes" in text and "AllReduce of 16 bytes" in text


def test_a_worker_that_is_killed_is_missed(run, results):
    killed = (run / "pid_3").read_text()
    for rank in (0, 1, 2):
        assert f"worker 3 (pid {killed}) is gone" in str(results[rank]["lost"])
        assert results[rank]["lost/seconds"] < 30
        said = str(results[rank]["lost/receive"])
        assert f"worker 3 (pid {killed}) is gone" in said and "the lane of tag 99 and 16 bytes" in said
        log = (run / "log" / f"worker_{rank}.log").read_text()
        assert f"mindspore_palm: worker 3 (pid {killed}) is gone" in log
        assert (run / f"done_{rank}").exists()
    assert (run / "ended_3").read_text() == str(-signal.SIGKILL)
    for rank in RANKS:
        assert not Path("/proc", (run / f"pid_{rank}").read_text()).exists()


def test_nothing_is_left_in_the_folder_of_a_run(run):
    assert not list(run.glob("kernel_meta"))
    assert not list(Path("/dev/shm").glob("*palm*"))


def test_dry_run_of_6144_devices_allocates_nothing(tmp_path):
    graphs = tmp_path / "graphs"
    done = subprocess.run(
        [sys.executable, str(WORKER), str(tmp_path), "dry"],
        cwd=tmp_path,
        env=environment(MS_DEV_SAVE_GRAPHS="2", MS_DEV_SAVE_GRAPHS_PATH=str(graphs)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr[-2000:]
    assert lines[:4] == [
        "GPU 5 6144 complete CPU",
        "GPU 6143 6144 complete CPU",
        "Ascend 5 6144 complete CPU",
        "after 0 1 CPU",
    ]
    assert int(lines[4].split()[1]) < 3000  # of 9.7 GB of weights
    ir = "\n".join(path.read_text() for path in sorted(graphs.rglob("*_validate_*.ir")))
    # Rank 5 of 512 x 12: w [49152, 49152] is sharded by 12 along columns, and by 512 along rows.
    assert "AllGather" in ir and "ReduceScatter" in ir and "(96, 4096)" in ir and "(49152, 4096)" in ir
    assert 'group_ranks: "5-17-29-' in ir and 'group_ranks: "11-23-35-' in ir  # and that of rank 6143
    assert "nccl_world_group" in ir and "hccl_world_group" in ir


def broken(code: str, folder: Path, **more: str) -> str:
    """The error message of a command that needs the library, in a process with nothing built."""
    code = f"""
from mindspore_palm.errors import run_command
def command():
    from mindspore_palm.parallel.host import build
    {code}
    build.extension()
raise SystemExit(run_command(command))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(MINDSPORE_PALM_CACHE=str(folder / "cache"), **more),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stdout == ""
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1
    return sentences[0]


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_no_compiler(tmp_path):
    text = broken("pass", tmp_path, PATH=str(tmp_path))
    assert "there is no g++ in PATH: install it" in text


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    from mindspore_palm.parallel.host import build

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINDSPORE_PALM_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(build, "_LOADED", {})
    with pytest.raises(UserError, match="set MINDSPORE_PALM_CACHE to a folder that can be written"):
        build.extension()


def test_a_compiler_that_fails(tmp_path):
    program(tmp_path / "bin" / "g++", "echo 'kernels.cc:1: error: no such luck' >&2; exit 1")
    text = broken("pass", tmp_path, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert text.endswith("kernels.cc:1: error: no such luck")
    (log,) = (tmp_path / "cache").glob("*/build.log")
    assert str(log) in text and "no such luck" in log.read_text()
    assert not list(tmp_path.glob("kernel_meta"))


def test_another_mindspore(tmp_path, monkeypatch):
    from mindspore_palm.parallel.host import build

    monkeypatch.setattr(build, "_LOADED", {})
    monkeypatch.setattr(build.ms, "__version__", "2.11.1")
    with pytest.raises(UserError, match=r"MindSpore 2\.11\.1 is installed, but .* install mindspore==2\.10\.0"):
        build.extension()


def test_workers_that_start_at_once_build_once(tmp_path, monkeypatch):
    from mindspore_palm.parallel.host import build

    built, loaded = [], []

    def slowly(command: list[str], work: Path) -> Path:
        built.append(work.parent)
        time.sleep(0.3)
        (work / "library.so").write_text("complete")
        return work / "library.so"

    monkeypatch.setenv("MINDSPORE_PALM_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_compile", slowly)
    monkeypatch.setattr(build, "_load", lambda library: loaded.append(library.read_text()))
    monkeypatch.setattr(build, "_LOADED", {})
    threads = [threading.Thread(target=build.extension) for _ in RANKS]  # a file is locked among threads, too
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert built == [build.cpp_part().cache_folder()]
    assert loaded and set(loaded) == {"complete"}


def test_another_source_is_another_library(tmp_path, monkeypatch):
    from mindspore_palm.parallel.host import build

    here = build.cpp_part().cache_folder()
    copy = tmp_path / "kernels.cc"
    copy.write_text("int other;")
    monkeypatch.setattr(build, "_HERE", tmp_path)
    assert build.cpp_part().cache_folder() != here and "2.10." in here.name


def test_only_ranks_and_targets_that_exist_can_be_installed():
    from mindspore_palm.parallel import host

    with pytest.raises(UserError, match="GPU or Ascend, not for 'TPU'"):
        host.install_dry_run(0, 4, "TPU")
    with pytest.raises(UserError, match="rank 4 is not one of 4 devices"):
        host.install_dry_run(4, 4)
    with pytest.raises(UserError, match=r"call mindspore\.communication\.init\(\) first, under msrun"):
        host.install(0, 4)


def test_a_file_in_the_cache_that_is_no_library(tmp_path, monkeypatch):
    from mindspore_palm.parallel.host import build

    monkeypatch.setenv("MINDSPORE_PALM_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_LOADED", {})
    folder = build.cpp_part().cache_folder()
    folder.mkdir()
    (folder / "mindspore_palm_host.so").write_text("half a file")
    with pytest.raises(UserError, match=f"does not load: .*; delete {folder}"):
        build.extension()


@pytest.mark.parametrize(
    ("cxx", "said"),
    [
        ("", "there is no g++ in PATH: install it"),
        ("   ", "there is no g++ in PATH: install it"),
        ("no-such-compiler -O1", "there is no no-such-compiler in PATH: CXX names it: set CXX to a C++ compiler"),
    ],
)
def test_a_compiler_that_cxx_does_not_name(tmp_path, cxx, said):
    assert said in broken("pass", tmp_path, PATH=str(tmp_path), CXX=cxx)


def test_a_compiler_that_prints_nothing_and_writes_nothing(tmp_path):
    program(tmp_path / "bin" / "quiet", "exit 0")
    text = broken("pass", tmp_path, CXX=str(tmp_path / "bin" / "quiet"))
    assert "was not built" in text and "build.log)" in text


def test_ninja_beside_the_interpreter_is_found_without_an_activated_environment(tmp_path):
    program(tmp_path / "bin" / "g++", "echo 'kernels.cc:1: error: no such luck' >&2; exit 1")
    text = broken("pass", tmp_path, PATH=str(tmp_path / "bin"))
    assert text.endswith("kernels.cc:1: error: no such luck")
