"""The commands on a GPU, from a text to an answer; what a GPU cannot do is a sentence before anything is compiled."""

from __future__ import annotations

import json

import pytest

from mindspore_palm.file_names import ADAPTER

TINY = ["model.layers=1", "model.d_model=16", "model.heads=2", "model.head_dim=8", "model.d_ff=32", "data.seq_len=32"]
TINY += ["model.vocab_size=300", "data.path=LICENSE", "train.batch_size=4"]
TINY += ["train.steps=3", "train.peak_tflops=1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("on a gpu")
    pairs = [{"prompt": f"def f{i}", "target": "(a):"} for i in range(40)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    questions = [{"prompt": "def f", "choices": ["1(a", "(((("], "answer": i % 2} for i in range(2)]
    (home / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    return home


@pytest.fixture(scope="module")
def train(gpu, home):
    def train(name: str, *overrides: str):
        data = f"data.prepared={home}/prepared"
        return gpu("run/train.py", *TINY, data, f"train.output={home}/{name}", "train.device=GPU", *overrides)

    return train


@pytest.fixture(scope="module")
def trained(train, home):
    ended = train("float32")
    assert ended.returncode == 0, ended.stderr
    assert "device      GPU, as set" in ended.stdout
    assert "float32: weights, activations and loss: MindSpore's GPU backend has no bfloat16 kernel" in ended.stdout
    assert "held out, all" in ended.stdout and "Traceback" not in ended.stderr
    return home / "float32"


def test_float16_trains_with_a_loss_scale(train, home):
    ended = train("float16", "train.compute_dtype=float16")
    assert ended.returncode == 0, ended.stderr
    assert "scale 65536" in ended.stdout
    assert (home / "float16" / "final").exists()


def test_bfloat16_is_refused_before_anything_is_compiled(train, home):
    ended = train("bfloat16", "train.compute_dtype=bfloat16")
    assert ended.returncode == 2
    assert "train.compute_dtype = bfloat16: MindSpore's GPU backend has no bfloat16 kernel; set" in ended.stderr
    assert not (home / "bfloat16").exists()


FLOAT32, TF32 = "68", "77"  # CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32


@pytest.mark.parametrize(("tf32", "types"), [("false", {FLOAT32}), ("true", {TF32})])
def test_matmuls_use_tf32_if_it_is_set(gpu, home, tf32, types):
    recorded = home / f"matmuls with {tf32}"
    words = [*TINY, f"data.prepared={home}/prepared", f"train.output={home}/tf32 {tf32}", f"train.tf32={tf32}"]
    ended = gpu("run/train.py", *words, "train.steps=1", STANDIN_MATMULS=str(recorded))
    assert ended.returncode == 0, ended.stderr
    assert set(recorded.read_text().split()) == types


def test_fine_tuning_with_adapters(train, trained, home):
    finetune = [f"finetune.checkpoint={trained}", "finetune.lora_rank=2", f"data.path={home}/pairs.jsonl"]
    ended = train("adapted", *finetune, "optimizer.name=adamw")
    assert ended.returncode == 0, ended.stderr
    assert (home / "adapted" / ADAPTER).exists()


def test_generating(gpu, trained):
    ended = gpu("run/generate.py", "--checkpoint", trained, "--device", "GPU", "--max-tokens", "3", "def f", "class")
    assert ended.returncode == 0, ended.stderr
    assert "def f" in ended.stdout and "class" in ended.stdout


def test_evaluating(gpu, trained, home):
    words = ["--data", "CONTRIBUTING.md", "--task", home / "questions.jsonl", "--device", "GPU"]
    ended = gpu("run/evaluate.py", "--checkpoint", trained, *words)
    assert ended.returncode == 0, ended.stderr
    assert "bits/byte" in ended.stdout and "accuracy" in ended.stdout
