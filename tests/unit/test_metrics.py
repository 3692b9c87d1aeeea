"""Records of a run: metrics.csv, TensorBoard and loss.png."""

import csv
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from event_files import events
from PIL import Image

from mindspore_palm.train.log import loss_chart, recorder, tensorboard
from mindspore_palm.train.log.metrics import MetricsRow, read_rows
from mindspore_palm.train.log.recorder import Recorder, truncate_records

COLUMNS = [
    "step",
    "loss",
    "cross_entropy",
    "learning_rate",
    "gradient_norm",
    "skipped",
    "tokens",
    "seconds",
    "tokens_per_second",
    "mfu",
    "hfu",
    "validation_loss",
    "validation_bits_per_byte",
    "loss_scale",
]


def row(step, loss=2.5, **more):
    base = MetricsRow(step, loss, loss - 0.1, 0.01, 0.75, 0, 128 * step, 0.5, 256.0, 0.125, 0.25)
    return dataclasses.replace(base, **more)


def values_of(folder):
    """Every (step, tag, value) of the event files."""
    return [(event.step, value.tag, value.simple_value) for event in events(folder) for value in event.summary.value]


def table(folder):
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_row_per_step_with_the_documented_columns(tmp_path):
    with Recorder(tmp_path, 1.5) as records:
        for step in (1, 2, 3):
            records.add(row(step))
            assert len(table(tmp_path)) == step  # at once
        records.add(row(4, validation_loss=1.25, validation_bits_per_byte=0.5, loss_scale=65536.0))
    rows = table(tmp_path)
    assert list(rows[0]) == COLUMNS == [field.name for field in dataclasses.fields(MetricsRow)]
    assert [int(r["step"]) for r in rows] == [1, 2, 3, 4]
    assert [float(rows[1][name]) for name in COLUMNS[1:11]] == [2.5, 2.4, 0.01, 0.75, 0, 256, 0.5, 256, 0.125, 0.25]
    assert (rows[0]["validation_loss"], rows[0]["validation_bits_per_byte"]) == ("", "")
    assert rows[0]["loss_scale"] == "" and float(rows[3]["loss_scale"]) == 65536
    assert (float(rows[3]["validation_loss"]), float(rows[3]["validation_bits_per_byte"])) == (1.25, 0.5)


def test_tensorboard_has_every_number(tmp_path):
    with Recorder(tmp_path, None) as records:
        records.add(row(1))
        assert (1, "loss", 2.5) in values_of(tmp_path)  # at once
        records.add(row(2, validation_loss=1.25))
    found = values_of(tmp_path)
    assert {tag for step, tag, _ in found if step == 1} == set(COLUMNS[1:11])
    assert {tag for step, tag, _ in found if step == 2} == {*COLUMNS[1:11], "validation_loss"}
    assert (2, "validation_loss", 1.25) in found
    assert (2, "tokens", 256.0) in found


@pytest.mark.parametrize("reference", [1.5, None])
@pytest.mark.parametrize(
    "losses", [[2.0, 1.0], [2.0], [float("nan")] * 3, [float("inf"), -float("inf")], [2.0, float("nan"), 1.0]]
)
def test_the_chart_is_a_png_whatever_the_losses(losses, reference, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Recorder(tmp_path, reference) as records:
            for step, loss in enumerate(losses, 1):
                records.add(row(step, loss, validation_loss=loss, validation_bits_per_byte=loss))
    image = Image.open(io.BytesIO((tmp_path / "loss.png").read_bytes()))
    assert image.format == "PNG"
    image.load()
    assert image.convert("L").getextrema()[0] < 128 < image.width  # something is drawn
    assert [float(r["loss"]) for r in table(tmp_path)] == pytest.approx(losses, nan_ok=True)


def test_the_size_by_gzip_is_drawn(tmp_path):
    """As a line at its height: the chart differs from one without it and from one with another number."""
    drawn = set()
    for number, reference in enumerate((None, 1.5, 1.9)):
        (tmp_path / str(number)).mkdir()
        with Recorder(tmp_path / str(number), reference) as records:
            for step in (1, 2):
                records.add(row(step, validation_loss=1.2, validation_bits_per_byte=1.7))
        drawn.add(Image.open(tmp_path / str(number) / "loss.png").tobytes())
    assert len(drawn) == 3


def test_no_rows_no_chart(tmp_path):
    with Recorder(tmp_path, 1.0):
        pass
    assert not (tmp_path / "loss.png").exists()
    assert table(tmp_path) == []


def test_the_moving_average_ignores_values_that_are_not_finite():
    nan = float("nan")
    assert loss_chart._smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert loss_chart._smooth([nan, 3.0, float("inf"), 3.0]) == pytest.approx([nan, 3.0, 3.0, 3.0], nan_ok=True)


def write(folder, steps, **more):
    with Recorder(folder, None) as records:
        for step in steps:
            records.add(row(step, **more))


def test_rows_continue_after_a_truncation(tmp_path):
    write(tmp_path, range(1, 6), loss=1 / 3, validation_loss=0.1)
    before = (tmp_path / "metrics.csv").read_text().splitlines()
    truncate_records(tmp_path, 3)
    write(tmp_path, [4, 5, 6], loss=0.25)
    after = (tmp_path / "metrics.csv").read_text().splitlines()
    assert after[:4] == before[:4]
    assert [int(r["step"]) for r in table(tmp_path)] == [1, 2, 3, 4, 5, 6]
    losses = [(step, value) for step, tag, value in values_of(tmp_path) if tag == "loss"]
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in losses] == pytest.approx([1 / 3] * 3 + [0.25] * 3)


@pytest.mark.parametrize("lost", [1, 3, 30])
def test_incomplete_rows_and_events_are_removed(lost, tmp_path):
    write(tmp_path, [1, 2, 3])
    for file in (tmp_path / "metrics.csv", *(tmp_path / "tensorboard").iterdir()):
        file.write_bytes(file.read_bytes()[:-lost])
    assert {step for step, _, _ in values_of(tmp_path)} == {1, 2}
    truncate_records(tmp_path, 2)
    write(tmp_path, [3])
    assert [int(r["step"]) for r in table(tmp_path)] == [1, 2, 3]
    assert [step for step, tag, _ in values_of(tmp_path) if tag == "loss"] == [1, 2, 3]


def test_a_truncation_to_the_start(tmp_path):
    write(tmp_path, [1, 2])
    truncate_records(tmp_path, 0)
    assert not (tmp_path / "metrics.csv").exists() and not values_of(tmp_path)
    write(tmp_path, [1])
    assert len(table(tmp_path)) == 1


def test_a_truncation_that_was_killed_midway(tmp_path):
    """Between deleting the old events and renaming the new ones, and before that."""
    write(tmp_path, [1, 2])
    (tmp_path / "tensorboard").rename(tmp_path / "tensorboard.tmp")
    truncate_records(tmp_path, 1)
    assert {step for step, _, _ in values_of(tmp_path)} == {1}
    (tmp_path / "tensorboard.tmp").mkdir()
    (tmp_path / "tensorboard.tmp" / "half").write_bytes(b"half")
    truncate_records(tmp_path, 1)
    assert {step for step, _, _ in values_of(tmp_path)} == {1}


def test_a_table_of_an_older_version(tmp_path):
    """It lacks a column that is written now."""
    write(tmp_path, [1, 2])
    lines = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    (tmp_path / "metrics.csv").write_text("\n".join(",".join(line[:9] + line[10:]) for line in lines) + "\n")
    truncate_records(tmp_path, 2)
    write(tmp_path, [3])
    rows = table(tmp_path)
    assert list(rows[0]) == COLUMNS and [r["mfu"] for r in rows] == ["nan", "nan", "0.125"]


def test_rewinds_are_drawn(tmp_path):
    sizes = []
    for rewinds in ([], [(2, "from step 9 back to 2"), (0, "from step 5 back to 0")]):
        loss_chart.draw_loss([row(step) for step in range(1, 9)], None, tmp_path / "loss.png", rewinds)
        image = Image.open(io.BytesIO((tmp_path / "loss.png").read_bytes())).convert("RGB")
        red, green, blue = np.moveaxis(np.array(image), -1, 0)
        sizes.append(((red > 130) & (green < 60) & (blue < 80)).sum())
    assert sizes[0] == 0 < sizes[1]


def fail(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), ValueError("no such backend")])
def test_a_failed_chart_is_logged_once_and_ends_nothing(problem, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise problem

    monkeypatch.setattr(recorder, "draw_loss", fail)
    with Recorder(tmp_path, None) as records:
        records.add(row(1))
        records.draw()
        records.add(row(2))
    assert len(table(tmp_path)) == 2
    (sentence,) = capsys.readouterr().out.splitlines()
    assert "loss.png cannot be written now: " in sentence and "training continues" in sentence


def test_a_failed_chart_does_not_hide_what_ended_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "draw_loss", fail)
    with pytest.raises(KeyError, match="the cause"), Recorder(tmp_path, None) as records:
        records.add(row(1))
        raise KeyError("the cause")


def test_rows_that_a_full_disk_refuses_are_written_when_there_is_room(tmp_path, monkeypatch, capsys):
    """Even if part of a line was written before the disk was full."""
    write = os.pwrite

    def write_a_part(handle, data, at):
        write(handle, data[:7], at)
        fail()

    with Recorder(tmp_path, None) as records:
        records.add(row(1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", write_a_part)
            for step in (2, 3, 4):
                records.add(row(step))
            assert [values["step"] for values in records.unwritten()] == [2, 3, 4]
        assert [int(r["step"]) for r in table(tmp_path)] == [1]
        records.add(row(5))
        assert [int(r["step"]) for r in table(tmp_path)] == [1, 2, 3, 4, 5] and not records.unwritten()
    said = capsys.readouterr().out
    assert said.count("metrics.csv cannot be written now: No space left on device") == 1
    assert [step for step, tag, _ in values_of(tmp_path) if tag == "loss"] == [1, 2, 3, 4, 5]


def test_events_that_a_full_disk_refuses_are_written_when_there_is_room(tmp_path, monkeypatch, capsys):
    with Recorder(tmp_path, None) as records:
        records.add(row(1))
        with monkeypatch.context() as patch:
            patch.setattr(tensorboard.RecordWriter, "flush", fail)
            records.add(row(2))
            records.add(row(3))
        records.add(row(4))
    assert capsys.readouterr().out.count("tensorboard cannot be written now: No space left on device") == 1
    assert {step for step, tag, _ in values_of(tmp_path) if tag == "loss"} == {1, 2, 3, 4}
    assert len(table(tmp_path)) == 4


@pytest.mark.parametrize("gone", ["metrics.csv", "tensorboard", "."])
def test_files_that_are_deleted_meanwhile_are_rewritten(gone, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with Recorder(folder, None) as records:
        records.add(row(1))
        path = folder / gone
        path.unlink() if path.is_file() else shutil.rmtree(path)
        records.add(row(2))
        assert [int(r["step"]) for r in table(folder)] == [1, 2]
    assert (2, "loss", 2.5) in values_of(folder)
    assert (folder / "loss.png").exists()


def test_rows_that_only_a_checkpoint_holds_come_back(tmp_path, monkeypatch):
    """The run was killed before there was room again."""
    with Recorder(tmp_path, None) as records:
        for step in (1, 2):
            records.add(row(step))
        monkeypatch.setattr(os, "pwrite", fail)
        records.add(row(3, loss=float("nan")))
        records.add(row(4))
        saved = json.loads(json.dumps(records.unwritten()))
    monkeypatch.undo()
    with Recorder(tmp_path, None, until=4, unwritten=saved) as records:
        records.add(row(5))
    assert [int(r["step"]) for r in table(tmp_path)] == [1, 2, 3, 4, 5]
    assert [r["loss"] for r in table(tmp_path)] == ["2.5", "2.5", "nan", "2.5", "2.5"]
    with Recorder(tmp_path, None, until=5, unwritten=saved):  # they are there by now
        pass
    assert [int(r["step"]) for r in table(tmp_path)] == [1, 2, 3, 4, 5]


def test_rows_after_the_step_that_a_run_resumes_from_are_removed(tmp_path):
    write(tmp_path, range(1, 9))
    with Recorder(tmp_path, None, until=5) as records:
        assert len(records.rows) == 5
        records.add(row(6, loss=0.25))
    assert [(int(r["step"]), float(r["loss"])) for r in table(tmp_path)][-2:] == [(5, 2.5), (6, 0.25)]


def test_a_held_out_loss_that_comes_later_is_added_to_its_row(tmp_path):
    with Recorder(tmp_path, None) as records:
        records.add(row(1))
        records.add(row(2))
        assert records.lacks_evaluation()
    with Recorder(tmp_path, None, until=2) as records:
        records.amend(1.25, 0.5)
        assert not records.lacks_evaluation()
        records.add(row(3))
    expected = [("", ""), ("1.25", "0.5"), ("", "")]
    assert [(r["validation_loss"], r["validation_bits_per_byte"]) for r in table(tmp_path)] == expected
    assert (2, "validation_loss", 1.25) in values_of(tmp_path)


BACKENDS = ["module://matplotlib_inline.backend_inline", "TkAgg", "no_such_backend"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_backend_of_a_notebook_plays_no_part(backend, tmp_path):
    """Both charts: that of a run and that of a plan."""
    script = (
        "from pathlib import Path\n"
        "from mindspore_palm.train.log.loss_chart import draw_loss\n"
        "from mindspore_palm.plan import charts\n"
        "from mindspore_palm.train.log.metrics import MetricsRow\n"
        "draw_loss([MetricsRow(1, 2.5, 2.4, 0.1, 1, 0, 8, 1, 8, 0.1, 0.1)], None, Path('loss.png'))\n"
        "figure, _ = charts._figure(3, 3)\n"
        "charts._save(figure, Path('plan.png'))\n"
        "import os; assert os.environ['MPLBACKEND']\n"
    )
    environment = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "loss.png").exists() and (tmp_path / "plan.png").exists()


def test_files_of_others_beside_the_events_stay(tmp_path):
    """Folders and files of TensorBoard, notebooks and desktops: none is an event file, and none is deleted."""
    write(tmp_path, [1, 2, 3])
    others = [".DS_Store", "plugins/profile/a.pb", ".ipynb_checkpoints/b", "events.txt", "Thumbs.db"]
    for name in others:
        (tmp_path / "tensorboard" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tensorboard" / name).write_text("mine")
    (tmp_path / "far").write_bytes(b"far")
    (tmp_path / "tensorboard" / "events.out.tfevents.0.far").symlink_to(tmp_path / "far")
    truncate_records(tmp_path, 2)
    write(tmp_path, [3])
    assert all((tmp_path / "tensorboard" / name).read_text() == "mine" for name in others)
    assert (tmp_path / "far").read_bytes() == b"far"
    (tmp_path / "tensorboard" / "events.out.tfevents.0.far").unlink()
    for name in others:
        path = tmp_path / "tensorboard" / name
        path.unlink()
        if path.parent.name != "tensorboard":
            path.parent.rmdir()
    (tmp_path / "tensorboard" / "plugins").rmdir()
    assert [step for step, tag, _ in values_of(tmp_path) if tag == "loss"] == [1, 2, 3]


def test_a_truncation_that_was_killed_before_the_old_files_were_deleted(tmp_path):
    write(tmp_path, [1, 2])
    write(tmp_path, [3])
    _, second = sorted((tmp_path / "tensorboard").iterdir())
    content = second.read_bytes()
    truncate_records(tmp_path, 3)
    second.write_bytes(content)
    truncate_records(tmp_path, 3)
    assert [step for step, tag, _ in values_of(tmp_path) if tag == "loss"] == [1, 2, 3]


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\xff\xfe", b"step,loss\n" + b"9" * 200_000 + b",1\n", b"a\n"])
def test_a_table_of_something_else(content, tmp_path):
    (tmp_path / "metrics.csv").write_bytes(content)
    assert read_rows(tmp_path / "metrics.csv") == []
