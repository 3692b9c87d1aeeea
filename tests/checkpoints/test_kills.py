"""SIGKILL at random moments, also during a save: every resume is exact, only steps since the checkpoint are lost."""

from __future__ import annotations

import random
import signal
import time

import pytest
from checkpoints.command import (
    checkpoints_of,
    family,
    finish,
    kill,
    lines_of,
    run,
    same_bits,
    start,
    wait_for_rows,
    workers,
    write_text,
)

from mindspore_palm.checkpoint.format import Checkpoint, folder_name

EVERY = 5  # steps between checkpoints: most of the time, one is being written
OPTIONS = [f"train.checkpoint_every={EVERY}", "train.eval_every=7", "train.eval_sequences=16"]
MESHES = {
    "one process": [],
    "1 x 2 x 2": ["parallel.data=2", "parallel.model=2"],
    "2 stages x 2": ["parallel.stages=2", "parallel.model=2", "train.micro_batch=4", "model.layers=2"],
}
CASES = [
    pytest.param("one process", 2, id="one process, 2 kills"),
    pytest.param("one process", 50, id="one process, 50 kills", marks=pytest.mark.slow),
    pytest.param("1 x 2 x 2", 50, id="1 x 2 x 2, 50 kills", marks=pytest.mark.slow),
    pytest.param("2 stages x 2", 20, id="2 stages x 2 model, 20 kills", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize(("mesh", "kills"), CASES)
def test_killed_at_any_moment(mesh, kills, home, request):
    """Every tenth kill may come before training starts; half of the others come while a checkpoint is being written."""
    draw, name = random.Random(f"{mesh} {kills}"), f"{mesh.replace(' ', '')}-{kills}"
    folder, options = home / name, [*OPTIONS, *MESHES[mesh]]
    lost, during_save, resumed = [], 0, 0
    for number in range(kills):
        process = start(home, name, "train.steps=1000000", *options)
        if number % 10 == 9:
            time.sleep(draw.uniform(0, 5))
        else:
            wait_for_rows(process, folder, draw.randint(1, 20), resumed)
            time.sleep(draw.uniform(0, 0.1))
            if number % 2:
                wait_for_saving(folder)
                time.sleep(draw.uniform(0, 0.02))
        victim = draw.choice(["all", "command", "worker"]) if workers(process) else "all"
        if victim == "all":
            kill(process)
        elif victim == "command":
            members = family(process)
            members[0].kill()
            wait_until_gone(members, 20)
        else:
            workers(process)[draw.choice("0123")].send_signal(signal.SIGKILL)
            code, _, err = finish(process)
            assert code == 2 and "was ended by SIGKILL" in err, err
        steps = checkpoints_of(folder)
        for step in steps:  # every visible checkpoint is complete
            Checkpoint(folder / "checkpoints" / folder_name(step)).verify()
        during_save += bool(list((folder / "checkpoints").glob("*.tmp"))) if steps else 0
        taken = max(0, len(lines_of(folder)) - 1)
        resumed = steps[-1] if steps else 0
        if taken >= resumed:
            lost.append(taken - resumed)
    total = (resumed // EVERY + 2) * EVERY + 3
    out = run(home, name, f"train.steps={total}", *options)
    assert f"resuming from step {resumed}\n" in out
    run(home, f"{name}-straight", f"train.steps={total}", *options, "train.checkpoint_every=0")
    assert not same_bits(folder, home / f"{name}-straight")
    with capsys_disabled(request):
        print(
            f"\n{mesh}: {kills} kills, {during_save} of them during a save, {total} steps to the same bits; "
            f"steps lost per kill: {sum(lost) / len(lost):.1f} on average, {max(lost)} at most"
        )


def wait_for_saving(folder, limit=30):
    end = time.monotonic() + limit
    while not list((folder / "checkpoints").glob("*.tmp")):
        assert time.monotonic() < end, "no checkpoint is being written"
        time.sleep(0.0005)


def wait_until_gone(members, seconds):
    import psutil

    _, alive = psutil.wait_procs(members, timeout=seconds)
    assert not alive, f"{len(alive)} processes outlive their command"


def capsys_disabled(request):
    return request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled()
