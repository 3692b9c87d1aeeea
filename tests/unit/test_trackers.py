"""Trackers beside TensorBoard: the same numbers at the same steps, each step once, and no failure that ends a run."""

import dataclasses
import importlib.metadata
import json
import os
import re
import sqlite3
import struct
import sys
from pathlib import Path

import pytest
from checkpoints.in_process import trainer, write_text
from event_files import events

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.settings import load_settings
from mindspore_palm.train.log.metrics import MetricsRow
from mindspore_palm.train.log.recorder import Recorder
from mindspore_palm.train.log.services import SERVICES, wandb_mode
from mindspore_palm.train.log.trackers import Trackers, check_trackers, read_runs

NAMES = ("wandb", "trackio")
ROOT = Path(__file__).resolve().parents[2]

# A tracker that writes its calls to a file, one JSON a line, and fails where a test asks it to.
COMMON = """
import json, os
def note(*call):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(call) + "\\n")
def fail(what):
    if os.environ.get("FAIL") == what:
        raise OSError(28, "No space left on device")
"""
FAKES = {
    "wandb": COMMON
    + """
from types import SimpleNamespace
def Settings(**options): return SimpleNamespace(**options)
def setup(): return SimpleNamespace(settings=Settings(mode="online", api_key=None, base_url="https://api.wandb.ai"))
class Run:
    def __init__(self, id, mode): self.id, self.offline, self.url = id, mode == "offline", "https://there"
    def define_metric(self, name, **options): note("wandb", self.id, "define", name, options)
    def log(self, values): fail("log"); note("wandb", self.id, "log", values.pop("step"), values)
    def finish(self): fail("finish"); note("wandb", self.id, "finish")
def init(id, mode, **options):
    fail("init")
    note("wandb", id, "init", mode, {name: options[name] for name in ("project", "name", "resume", "dir", "config")})
    return Run(id, mode)
""",
    "trackio": COMMON
    + """
class Run:
    def log(self, values, step): fail("log"); note("trackio", self.id, "log", step, values)
run = Run()
def init(name, **options):
    fail("init")
    run.id = name
    print("* a banner of trackio")
    note("trackio", run.id, "init", {name: options[name] for name in ("project", "resume", "config")})
    return run
def finish(): fail("finish"); note("trackio", run.id, "finish")
""",
}


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Fakes of both packages; a function that returns the calls so far."""
    home = tmp_path / "packages"
    home.mkdir()
    for name, source in FAKES.items():
        (home / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(home)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_NAME", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield lambda: [json.loads(line) for line in Path(os.environ["CALLS"]).read_text().splitlines()]
    for name in FAKES:
        sys.modules.pop(name, None)


def row(step, loss=2.5, **more):
    base = MetricsRow(step, loss, loss - 0.1, 0.01, 0.75, 0, 128 * step, 0.5, 256.0, 0.125, 0.25)
    return dataclasses.replace(base, **more)


def settings(*names):
    return load_settings(None, [f"train.trackers=[{','.join(names)}]"])[0]


def opened(folder, until=None, rewinds=0, names=NAMES):
    trackers = Trackers(settings(*names), folder, until or 0, rewinds).all
    return Recorder(folder, None, until=until, trackers=trackers)


def logged(calls, name):
    """Every (id of the run, step, values) that a tracker got."""
    return [(id, step, values) for who, id, what, step, *values in map(padded, calls()) if (who, what) == (name, "log")]


def padded(call):
    return [*call, None, None][: max(5, len(call))]


def of_tensorboard(folder):
    """The values of each step in the event files."""
    found = {}
    for event in events(folder):
        found.setdefault(event.step, {}).update({value.tag: value.simple_value for value in event.summary.value})
    return {step: values for step, values in found.items() if values}


def test_every_tracker_gets_the_numbers_of_tensorboard_at_the_same_steps(tmp_path, calls):
    with opened(tmp_path) as records:
        records.add(row(1))
        records.add(row(2, loss=1.5, validation_loss=1.25, validation_bits_per_byte=0.5, loss_scale=65536.0))
    expected = of_tensorboard(tmp_path)
    assert {"loss", "cross_entropy", "gradient_norm", "learning_rate", "tokens_per_second", "mfu", "hfu"} < set(
        expected[1]
    )
    assert expected[2]["validation_loss"] == 1.25 and "validation_loss" not in expected[1]
    for name in NAMES:
        steps = {step: values for _, step, (values, *_) in logged(calls, name)}
        assert set(steps) == set(expected)
        for step, values in steps.items():
            assert values == pytest.approx(expected[step], rel=1e-6)  # events are float32


def test_a_held_out_loss_that_was_owed_reaches_all(tmp_path, calls):
    with opened(tmp_path) as records:
        records.add(row(1))
        records.amend(1.25, 0.5)
    owed = {"validation_loss": 1.25, "validation_bits_per_byte": 0.5}
    for name in NAMES:
        assert [(step, values[0]) for _, step, values in logged(calls, name)][1:] == [(1, owed)]


def test_a_killed_run_continues_its_trackers_and_sends_no_step_twice(tmp_path, calls):
    records = opened(tmp_path)
    for step in range(1, 8):
        records.add(row(step))
    # killed: nothing is closed; resumed from 5, and killed again after 6
    records = opened(tmp_path, until=5)
    records.add(row(6))
    with opened(tmp_path, until=5) as records:
        for step in (6, 7, 8):
            records.add(row(step))
    with opened(tmp_path, until=8) as records:
        records.add(row(9))
    for name in NAMES:
        found = logged(calls, name)
        assert [step for _, step, _ in found] == list(range(1, 10))
        assert len({id for id, *_ in found}) == 1
    assert all(call[4]["resume"] == "allow" for call in calls() if call[0] == "wandb" and call[2] == "init")


def test_after_a_rewind_a_new_run_of_the_tracker_has_each_step_once(tmp_path, calls, capsys):
    with opened(tmp_path) as records:
        for step in range(1, 8):
            records.add(row(step, loss=9.0 if step > 5 else 2.0))
    with opened(tmp_path, until=5, rewinds=1) as records:
        for step in (6, 7):
            records.add(row(step, loss=1.0))
    for name in NAMES:
        runs = {}
        for id, step, (values, *_) in logged(calls, name):
            runs.setdefault(id, []).append((step, values["loss"]))
        first, second = runs.values()
        assert first == [(1, 2.0), (2, 2.0), (3, 2.0), (4, 2.0), (5, 2.0), (6, 9.0), (7, 9.0)]
        assert second == [(1, 2.0), (2, 2.0), (3, 2.0), (4, 2.0), (5, 2.0), (6, 1.0), (7, 1.0)]
    assert "the steps after 5 are taken back" in capsys.readouterr().out


def test_batches_skipped_ahead_of_what_was_sent_continue_the_run(tmp_path, calls):
    with opened(tmp_path) as records:
        records.add(row(1))
    with opened(tmp_path, until=1, rewinds=1) as records:
        records.add(row(2))
    assert len({id for id, *_ in logged(calls, "wandb")}) == 1


def test_a_tracker_named_later_gets_the_steps_before(tmp_path, calls):
    with opened(tmp_path, names=["wandb"]) as records:
        records.add(row(1))
    with opened(tmp_path, until=1, names=[]) as records:
        records.add(row(2))
    with opened(tmp_path, until=2) as records:
        records.add(row(3))
    for name in NAMES:
        assert [step for _, step, _ in logged(calls, name)] == [1, 2, 3]


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_one_line_and_catches_up_later(tmp_path, calls, monkeypatch, capsys, where):
    Path(os.environ["CALLS"]).touch()
    monkeypatch.setenv("FAIL", where)
    with opened(tmp_path) as records:
        for step in (1, 2, 3):
            records.add(row(step))
    out = capsys.readouterr().out
    for name in NAMES:
        assert len(re.findall(rf"^{name} fails: .*No space left on device; training continues", out, re.M)) == 1
    assert sorted(of_tensorboard(tmp_path)) == [1, 2, 3]
    monkeypatch.delenv("FAIL")
    with opened(tmp_path, until=3) as records:
        records.add(row(4))
    for name in NAMES:
        assert [step for _, step, _ in logged(calls, name)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"wandb": 3}',
        '{"wandb": {"id": "../../../x", "sent": 1, "open": false, "rewinds": 0}}',
        '{"wandb": {"id": "0123abcd", "sent": "1", "open": false, "rewinds": 0}}',
        '{"other": {"id": "0123abcd", "sent": 1, "open": false, "rewinds": 0}}',
    ],
)
def test_a_file_of_runs_that_is_not_ours_is_left_out(tmp_path, content):
    (tmp_path / "trackers.json").write_text(content)
    assert read_runs(tmp_path / "trackers.json") == {}


def test_a_run_without_trackers_writes_no_file_for_them(tmp_path):
    with opened(tmp_path, names=["tensorboard"]) as records:
        records.add(row(1))
    assert not (tmp_path / "trackers.json").exists()
    assert sorted(of_tensorboard(tmp_path)) == [1]


def test_wandb_is_offline_without_an_account_and_says_so_once(tmp_path, calls, capsys):
    with opened(tmp_path) as records:
        records.add(row(1))
    (start,) = [call for call in calls() if call[:1] == ["wandb"] and call[2] == "init"]
    assert start[3] == "offline"
    assert start[4]["dir"] == str(tmp_path) and start[4]["config"]["train"]["trackers"] == list(NAMES)
    assert capsys.readouterr().out.count("wandb: offline, as there is no account") == 1


def test_wandb_gets_its_project_folder_and_axis(tmp_path, calls, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    for project in ("", "mine"):
        monkeypatch.setenv("WANDB_PROJECT", project)
        with opened(tmp_path, names=["wandb"]) as records:
            records.add(row(1))
    starts = [call[4] for call in calls() if call[2] == "init"]
    assert [start["project"] for start in starts] == ["mindspore_palm", "mine"]
    assert {start["dir"] for start in starts} == {str(tmp_path / "elsewhere")}
    assert ["*", {"step_metric": "step"}] in [call[3:] for call in calls() if call[2] == "define"]


@pytest.mark.parametrize("how", ["mode", "key", "set", "netrc"])
def test_wandb_decides_where_somebody_has_an_account_or_set_a_mode(tmp_path, calls, monkeypatch, how):
    import wandb

    own = wandb.setup().settings
    assert wandb_mode(own) == "offline"
    if how == "mode":
        monkeypatch.setenv("WANDB_MODE", "online")
    elif how == "key":
        own.api_key = "x"
    elif how == "set":
        own.mode = "disabled"
    else:
        (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password x\n")
        (tmp_path / ".netrc").chmod(0o600)
    assert wandb_mode(own) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_is_not_installed_is_one_sentence_with_the_command(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=rf"^train.trackers = \['{name}'\]: {name} is not installed; pip install '{name}=="
    ):
        check_trackers(settings(name))
    check_trackers(settings("tensorboard"))


def test_the_extras_are_the_versions_that_are_tested():
    pins = [f"{name}=={package.version}" for name, package in SERVICES.items()]
    extras = (ROOT / "pyproject.toml").read_text()
    assert all(f'\n{pin.partition("=")[0]} = ["{pin}"]' in extras for pin in pins)
    assert (ROOT / "tests" / "requirements-trackers.txt").read_text().splitlines()[1:] == pins


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[wandb,wandb]", "must name each tracker once"),
        ("[mlflow]", "is not known; choose one of tensorboard, wandb, trackio"),
        ("[wandbb]", "did you mean wandb?"),
        ("wandb", "train.trackers"),
    ],
)
def test_a_wrong_list_is_named(value, said):
    with pytest.raises(UserError, match=re.escape(said)):
        load_settings(None, [f"train.trackers={value}"])


def test_old_settings_name_no_tracker():
    assert Settings().train.trackers == []


def test_a_run_that_is_resumed_and_one_without_trackers_have_the_same_rows(tmp_path, calls, monkeypatch, capsys):
    write_text(tmp_path)
    train = trainer(tmp_path, monkeypatch, capsys)
    code, out, err = train("plain", "train.steps=8")
    assert code == 0, err
    code, out, err = train("tracked", "train.steps=5", "train.trackers=[tensorboard,wandb,trackio]")
    assert code == 0, err
    assert out.count("wandb: offline") == 1 and "tensorboard, wandb, trackio" in out and "banner of trackio" not in out
    code, out, err = train("tracked", "train.steps=8", "train.trackers=[wandb,trackio]")
    assert code == 0, err
    expected = of_tensorboard(tmp_path / "plain")
    for name in NAMES:
        found = logged(calls, name)
        assert [step for _, step, _ in found] == list(range(1, 9)) and len({id for id, *_ in found}) == 1
        for _, step, (values, *_) in found:
            for quantity in ("loss", "gradient_norm", "learning_rate"):
                assert values[quantity] == pytest.approx(expected[step][quantity], rel=1e-6)
    code, out, err = train("tracked", "train.steps=3", "train.trackers=[wandb]", "--overwrite")
    assert code == 0, err
    assert len({id for id, *_ in logged(calls, "wandb")}) == 2  # another run


def wandb_records(file):
    """Records of wandb's file: a log of LevelDB in blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, at, pending = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        if not kind:
            break
        pending += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or the last part
            yield wandb_internal_pb2.Record.FromString(pending)
            pending = b""


@pytest.mark.trackers
def test_real_wandb_writes_every_row_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="tests/requirements-trackers.txt has it")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert importlib.metadata.version("wandb") == SERVICES["wandb"].version
    for until, steps in ((None, (1, 2, 3)), (2, (3, 4))):  # the third step again
        with opened(tmp_path, until, names=["wandb"]) as records:
            for step in steps:
                records.add(row(step, loss=1 / step))
    found = []
    for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime):
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                found.append((items["step"], items["loss"], items["tokens_per_second"]))
    assert found == [(step, 1 / step, 256.0) for step in (1, 2, 3, 4)]
    assert len({path.name.rpartition("-")[2] for path in tmp_path.glob("wandb/offline-run-*")}) == 1


@pytest.mark.trackers
def test_real_trackio_writes_every_row_to_its_database(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio", reason="tests/requirements-trackers.txt has it")
    assert importlib.metadata.version("trackio") == SERVICES["trackio"].version
    for until, steps in ((None, (1, 2, 3)), (2, (3, 4))):
        with opened(tmp_path, until, names=["trackio"]) as records:
            for step in steps:
                records.add(row(step, loss=1 / step))
    with sqlite3.connect(tmp_path / "trackio" / "mindspore_palm.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert [(step, json.loads(metrics)["loss"]) for _, step, metrics in rows] == [(s, 1 / s) for s in (1, 2, 3, 4)]
    assert len({name for name, *_ in rows}) == 1
