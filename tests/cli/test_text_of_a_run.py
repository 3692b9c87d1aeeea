"""A run resumes on the text that it started with, identified by content, and on another one only if accepted."""

import json
import shutil

import pytest

from mindspore_palm.checkpoint.format import Checkpoint

SIZES = ["model.vocab_size=300", "model.d_model=16", "model.layers=1", "model.heads=2", "model.head_dim=8"]
SIZES += ["model.d_ff=32", "data.seq_len=16", "train.batch_size=4", "train.device=CPU", "train.peak_tflops=1"]
SIZES += ["train.eval_every=0", "train.checkpoint_every=2", "data.prepared=prepared"]


@pytest.fixture
def run(tmp_path, door):
    """Trains in a folder of its own; returns exit code, standard output and standard error."""
    for number in range(20):
        write(tmp_path / "texts" / f"{number:02d}.txt", number)
    return lambda *more: door("train", tmp_path, *SIZES, *more)


def write(file, number):
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(f"document {number} has a line {i} and {i * i + number}\n" for i in range(20, 60)))


def test_a_moved_text_resumes_and_another_one_does_not(tmp_path, run):
    code, _, err = run("data.path=texts", "train.output=r", "train.steps=2")
    assert code == 0, err
    (tmp_path / "texts").rename(tmp_path / "moved")
    code, out, err = run("data.path=moved", "train.output=r", "train.steps=4")
    assert code == 0 and "from step 2" in out, err

    reordered, altered = tmp_path / "reordered", tmp_path / "altered"
    shutil.copytree(tmp_path / "moved", reordered)
    for source, target in (("03", "x"), ("04", "03"), ("x", "04")):
        (reordered / f"{source}.txt").rename(reordered / f"{target}.txt")
    shutil.copytree(tmp_path / "moved", altered)
    for file in altered.iterdir():
        file.write_text(file.read_text().replace("line 30 ", "line 31 "))
    for path in ("reordered", "altered"):
        for accept in ([], ["--accept", "data.path"]):
            code, _, err = run(f"data.path={path}", "train.output=r", "train.steps=6", *accept)
            assert code == 2 and "its text changed since the run began" in err and "--accept data.content" in err
    before = Checkpoint(tmp_path / "r" / "checkpoints" / "step_000004").state["corpus"]

    code, out, err = run("data.path=altered", "train.output=r", "train.steps=6", "--accept", "data.content")
    assert code == 0 and "from step 4" in out, err
    after = Checkpoint(tmp_path / "r" / "checkpoints" / "step_000006").state["corpus"]
    assert after["tokenizer"] == before["tokenizer"]  # its weights only know this one
    assert after["train"]["sha256"] != before["train"]["sha256"]
    json.dumps(after)
