"""Runs side by side: who takes which, and results that are those of one process."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import psutil
import pytest
from study.small import small, write_study
from study.test_kill import command, finished, results_of
from study.test_runner import NOW, TOKENS

from mindspore_palm.errors import UserError
from mindspore_palm.machine import processors
from mindspore_palm.study import jobs
from mindspore_palm.study.file import read_study
from mindspore_palm.study.jobs import Jobs, _next
from mindspore_palm.study.runner import Runner
from mindspore_palm.study.runs import tuning
from mindspore_palm.study.store import Store
from mindspore_palm.study.trainer import open_text


@pytest.mark.parametrize(
    ("waiting", "networks", "taken"),
    [
        ("aab", {1: "", 2: ""}, "a"),  # the first
        ("aab", {1: "", 2: "a"}, "b"),  # of nobody
        ("aab", {1: "b", 2: ""}, "b"),  # its own
        ("abb", {1: "c", 2: "a", 3: "b"}, "b"),  # most left
    ],
)
def test_a_process_takes_its_own_network_then_one_of_nobody_then_the_longest(waiting, networks, taken):
    assert _next([SimpleNamespace(network=name) for name in waiting], networks, 1).network == taken


@pytest.mark.parametrize("count", [0, -1, processors() + 1])
def test_as_many_as_there_are_processors(count, tmp_path):
    with pytest.raises(UserError, match=rf"^--jobs {count}: from 1 to {processors()}, the processors that this"):
        Jobs(count, read_study(write_study(tmp_path)).settings_of("palm", "a"))


@pytest.mark.parametrize(
    ("cores", "gibibytes", "count"), [(2, 24, 2), (2, 3.9, 1), (16, 15.9, 7), (64, 256, 16), (1, 1, 1), (4, 0.5, 1)]
)
def test_by_default_as_many_as_processors_and_memory_allow(cores, gibibytes, count, monkeypatch):
    monkeypatch.setattr(jobs, "processors", lambda: cores)
    monkeypatch.setattr(jobs, "available_memory", lambda: int(gibibytes * 2**30))
    assert jobs.as_many_as_fit() == count


@pytest.fixture
def two(tmp_path, monkeypatch):
    """A study of a few seconds, and its text."""
    monkeypatch.chdir(tmp_path)
    study = read_study(write_study(tmp_path, small(fit=None, seeds=[0, 1], comparisons=small()["comparisons"][:1])))
    settings = study.settings_of("palm", "a")
    return study, open_text(settings), settings


@pytest.mark.slow
@pytest.mark.skipif(processors() < 2, reason="one processor")
def test_a_process_that_is_killed_ends_the_study_in_a_sentence_and_keeps_what_is_finished(two, tmp_path, monkeypatch):
    study, prepared, settings = two
    store = Store(tmp_path / "out", NOW, TOKENS)
    write = store.write

    def write_and_kill(*arguments):
        write(*arguments)
        os.kill(psutil.Process().children()[-1].pid, signal.SIGKILL)

    monkeypatch.setattr(store, "write", write_and_kill)
    with pytest.raises(UserError, match=r"a job ended in the middle of tuning: .* the same command resumes$"):
        Runner(study, store, prepared, Jobs(2, settings)).run()
    assert 1 <= finished(tmp_path / "out") < len(list(tuning(study)))
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.slow
@pytest.mark.skipif(processors() < 2, reason="one processor")
def test_two_have_the_results_of_one_to_the_last_bit(tmp_path):
    import subprocess

    write_study(tmp_path, small(fit=None, seeds=[0, 1], comparisons=small()["comparisons"][:4]))
    for output, more in ((tmp_path / "one", ["--jobs", "1"]), (tmp_path / "two", ["--jobs", "2"])):
        done = subprocess.run([*command(tmp_path, output), *more], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert results_of(tmp_path / "one") == results_of(tmp_path / "two")
