"""The training command, from text to an exported model, and everything that may stop it on the way."""

import csv
import importlib.util
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindspore_palm.errors import run_command
from mindspore_palm.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / "run" / "train.py"
SIZES = ["model.vocab_size=512", "model.d_model=32", "model.layers=1", "model.heads=2", "model.head_dim=16"]
SIZES += ["model.d_ff=64", "data.seq_len=32", "train.batch_size=4", "train.device=CPU", "train.peak_tflops=1"]
WORDS = ["alpha", "beta", "gamma", "delta", "row", "column", "total", "index", "value", "width", "height"]


def source(size):
    """Text of this many characters that looks like Python, no two functions alike."""
    draw, parts, length = random.Random(20220405), [], 0
    while length < size:
        a, b, c = draw.sample(WORDS, 3)
        parts.append(
            f"def {a}_{b}({c}, count={draw.randint(0, 99)}):\n    for {a} in range(count):\n"
            f"        {b} = {c} + {a} * {draw.randint(2, 9)}\n    return {b}\n\n"
        )
        length += len(parts[-1])
    return "".join(parts)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("train")
    (home / "text.txt").write_text(source(200_000))
    return home


def arguments(home, output, *more):
    return [
        *SIZES,
        f"data.path={home / 'text.txt'}",
        f"data.prepared={home / 'prepared'}",
        f"train.output={output}",
        *more,
    ]


def start(home, output, *more, **options):
    command = [sys.executable, COMMAND, *arguments(home, output, *more)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=home, stdout=pipe, stderr=pipe, text=True, **options)


def rows_of(folder):
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(home):
    """One run of twelve steps, shared by the tests: its folder and its output."""
    process = start(home, home / "run", "train.steps=12", "train.eval_every=5")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return home / "run", out, err


@pytest.fixture
def command(home, finished, tmp_path, monkeypatch, capsys):
    """The command in this process, on text that is already prepared; returns exit code and standard error."""
    spec = importlib.util.spec_from_file_location("run_train", COMMAND)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(output, *more):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments(home, output, *more)])
        code = run_command(module.main)
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def no_work(monkeypatch):
    """Fails the test if text is prepared or a network is built."""
    from mindspore_palm.train import loop, start

    for module, name in ((loop, "open_data"), (start, "build_step"), (loop, "peak_of")):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} came before the check"))


def check_refused(result, *said):
    code, err = result
    assert code == 2, err
    assert err.startswith("error: ")
    assert err.count("\n") <= 2
    assert "Traceback" not in err
    for part in said:
        assert part in err


def test_the_folder_of_a_run(finished):
    folder, _, err = finished
    assert "Traceback" not in err
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "metrics.csv",
        "tensorboard",
        "loss.png",
        "final",
        "checkpoints",
        "lock",
    }
    assert {path.name for path in (folder / "final").iterdir()} == {
        "README.md",
        "model.safetensors",
        "tokenizer.model",
        "config.yaml",
    }
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert all(path.stat().st_size > 100 for path in (folder / "tensorboard").iterdir())
    settings, _ = load_settings(folder / "config.yaml")
    assert (settings.train.steps, settings.model.d_model) == (12, 32)
    assert load_settings(folder / "final" / "config.yaml")[0] == settings


def test_the_metrics_of_a_run(finished):
    rows = rows_of(finished[0])
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert [int(row["tokens"]) for row in rows] == [128 * step for step in range(1, 13)]
    losses = [float(row["cross_entropy"]) for row in rows]
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 0.2
    assert all(row["skipped"] == "0" for row in rows)
    assert all(float(row["loss"]) > float(row["cross_entropy"]) for row in rows)  # z-loss is on top
    assert [i for i, row in enumerate(rows, 1) if row["validation_loss"]] == [5, 10, 12]


def test_utilisation_is_the_share_of_the_peak(finished):
    """Tokens/second times FLOPs/token over train.peak_tflops, which is 1 here; without recomputation HFU is MFU."""
    flops = 6 * (512 * 32 + 32 * (2 * 2 * 16 + 2 * 16) + 3 * 32 * 64) + 12 * 1 * 2 * 16 * 32
    for row in rows_of(finished[0]):
        assert float(row["mfu"]) == pytest.approx(float(row["tokens_per_second"]) * flops / 1e12, rel=1e-4)
        assert float(row["hfu"]) == float(row["mfu"])
        assert float(row["tokens_per_second"]) == pytest.approx(128 / float(row["seconds"]), rel=1e-3)


def test_the_banner_of_a_run(finished):
    _, out, _ = finished
    before = out.split("step 5:")[0]
    assert re.search(r"device +CPU, \S+", before)
    assert re.search(r"dtype +float32: \S+", before)
    parameters = 512 * 32 + 32 * (2 * 2 * 16 + 2 * 16) + 3 * 32 * 64
    assert re.search(rf"parameters +{parameters:,} ", before)
    flops = 6 * parameters + 12 * 1 * 2 * 16 * 32
    assert f"{flops / 1e6:,.1f} MFLOPs/token" in before
    assert "128 tokens/step" in before
    assert re.search(r"memory +about \d.*weights .*gradients .*optimizer state .*activations", before)
    assert re.search(r"corpus +.*text\.txt: 1 file", before)
    assert re.search(r"train +1 document, 0\.\d+ MB, [\d,]+ tokens", before)
    assert re.search(r"tokenizer +512 tokens", before)


def test_the_summary_of_a_run(finished):
    _, out, _ = finished
    model = re.search(r"held out, all [\d,]+ tokens: (\S+) nats/token, (\S+) bits/byte", out)
    gzip = re.search(r"gzip -9 on the same text: (\S+) bits/byte", out)
    assert 0 < float(model.group(2)) < 8
    assert 0 < float(gzip.group(1)) < 8
    assert float(model.group(1)) < 6.5  # log(512) = 6.24, and the text is far from uniform once it has learned


def test_the_model_of_a_run_opens(finished):
    from mindspore_palm import Tokenizer, load

    assert load(finished[0]).config.d_model == 32
    assert Tokenizer(finished[0] / "final" / "tokenizer.model").vocab_size == 512


def test_the_same_command_again_changes_nothing(finished, command, no_work):
    before = content(finished[0])
    assert command(finished[0], "train.steps=12", "train.eval_every=5") == (0, "")
    assert content(finished[0]) == before


def test_fewer_steps_than_were_taken(finished, command, no_work):
    check_refused(command(finished[0], "train.steps=11"), "has taken 12 steps", "train.steps", "--rewind-to")


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("train.seed=1", "train.seed was 0 and is 1 now"),
        ("data.seq_len=16", "data.seq_len was 32 and is 16 now"),
        ("model.layers=2", "model.layers was 1 and is 2 now"),
        ("train.batch_size=[[0,4],[9,8]]", "train.batch_size was 4 and is [[0, 4], [9, 8]] now"),
        ("optimizer.clip_norm=2.0", "optimizer.clip_norm was 1.0 and is 2.0 now"),
    ],
)
def test_other_settings_are_shown_and_change_nothing(change, shown, finished, command, no_work):
    before = content(finished[0])
    code, err = command(finished[0], "train.steps=12", change)
    assert code == 2 and err.startswith("error: ") and "Traceback" not in err
    assert shown in err and f"--accept {change.split('=')[0]}" in err
    assert content(finished[0]) == before


def test_a_finished_run_is_refused_another_text(finished, command, home, tmp_path):
    before = content(finished[0])
    (tmp_path / "same.txt").write_bytes((home / "text.txt").read_bytes())
    (tmp_path / "other.txt").write_text(source(200_000)[::-1])
    assert command(finished[0], "train.steps=12", "data.path=same.txt")[0] == 0
    check_refused(command(finished[0], "train.steps=12", "data.path=other.txt"), "its text changed", "data.content")
    check_refused(command(finished[0], "train.steps=12", "data.path=none.txt"), "none.txt: there is no such file")
    assert content(finished[0]) == before


def test_overwrite_deletes_nothing_before_the_new_run_is_sure_to_start(finished, command):
    before = content(finished[0])
    check_refused(command(finished[0], "--overwrite", "data.path=nowhere.txt"), "nowhere.txt")
    check_refused(command(finished[0], "--overwrite", "train.batch_size=100000", "train.micro_batch=4"), "batch_size")
    assert content(finished[0]) == before


def test_a_model_of_another_origin_is_not_deleted(command, no_work, tmp_path):
    (tmp_path / "mine" / "final").mkdir(parents=True)
    check_refused(command(tmp_path / "mine"), "holds a run already")


def test_an_output_below_a_file(command, no_work, tmp_path):
    (tmp_path / "file").touch()
    check_refused(command(tmp_path / "file" / "run"), str(tmp_path / "file"))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc that nobody can write to")
def test_an_output_that_cannot_be_made(command, no_work):
    check_refused(command("/proc/palm_run"), "/proc/palm_run")


def test_a_device_that_is_not_there(command, no_work, tmp_path):
    from mindspore_palm.parallel.context import _available

    if _available("Ascend"):
        pytest.skip("there is an Ascend")
    check_refused(command(tmp_path / "run", "train.device=Ascend"), "train.device = Ascend", "train.device=auto")
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_fit(command, no_work, tmp_path, monkeypatch):
    from mindspore_palm.cost import memory

    monkeypatch.setattr(memory, "available_memory", lambda: 20 * 10**9)
    spare = [f"model.{name}" for name in ("layers=32", "d_model=4096", "heads=16", "head_dim=256", "d_ff=16384")]
    result = command(tmp_path / "run", "model.preset=palm_8b", "model.vocab_size=256000", *spare)
    check_refused(result, "snapshot to save: 104 GB", "20 GB", "free", "make the model smaller")  # 8.63e9 * 12
    assert not (tmp_path / "run").exists()


def test_a_missing_corpus(command, tmp_path):
    check_refused(command(tmp_path / "run", "data.path=nowhere.txt"), "data.path = nowhere.txt")
    assert not (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.parametrize(("size", "said"), [(0, "small.txt"), (60, "model.vocab_size"), (3000, "data.seq_len")])
def test_a_corpus_that_is_too_small(size, said, command, tmp_path):
    (tmp_path / "small.txt").write_text(source(3000)[:size])
    result = command(tmp_path / "run", "data.path=small.txt", f"data.prepared={tmp_path / 'prepared'}")
    check_refused(result, said)
    assert not (tmp_path / "run" / "final").exists()


def test_too_little_text_for_a_batch(command, tmp_path):
    check_refused(command(tmp_path / "run", "train.batch_size=5000"), "train.batch_size = 5000", "bring more text")


def test_a_vocabulary_too_large_for_the_text(command, tmp_path):
    check_refused(command(tmp_path / "run", "model.vocab_size=60000"), "model.vocab_size = 60000", "lower it")


def wait_for_rows(process, folder, rows):
    end = time.monotonic() + 90
    while time.monotonic() < end and process.poll() is None:
        if (folder / "metrics.csv").exists() and len(rows_of(folder)) >= rows:
            return
        time.sleep(0.05)
    pytest.fail(f"no {rows} rows came: {process.communicate(timeout=5)}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_saves_everything_so_far(number, home, finished, tmp_path):
    from mindspore_palm import load

    process = start(home, tmp_path / "run", "train.steps=1000000", "train.eval_every=0", "train.checkpoint_every=0")
    try:
        wait_for_rows(process, tmp_path / "run", 1)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    rows = rows_of(tmp_path / "run")
    assert f"stopped after step {len(rows)}; the same command resumes from there" in err
    assert "Ctrl-C again" in out
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step_{len(rows):06d}"]
    assert load(tmp_path / "run").config.d_model == 32
    assert not (tmp_path / "run" / "final").exists()
    assert (tmp_path / "run" / "loss.png").exists()


def limit_files_to(size):
    """Limits a child's files to ``size`` bytes, which looks like a full disk to the writer."""
    resource = pytest.importorskip("resource", reason="a system that cannot limit the size of files")
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_while_saving(home, finished, tmp_path):
    # weights and moments are 300 kB, loss.png and metrics.csv less
    process = start(home, tmp_path / "run", "train.steps=2", preexec_fn=limit_files_to(90_000))
    _, err = process.communicate(timeout=90)
    assert process.returncode == 2, err
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "rank_0.safetensors" in last
    assert not (tmp_path / "run" / "final").exists()
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert len(rows_of(tmp_path / "run")) == 2
