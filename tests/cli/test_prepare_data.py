"""The door for data: a good run ends with 0 from any folder, a bad one with 2 and a sentence."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = "def f(x):\n    return x + 1234\n\nclass Héllo:\n    name = '漢字'\n"


def command(folder, *arguments, **options):
    line = [sys.executable, str(ROOT / "run" / "prepare_data.py"), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, **options)


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"{TEXT}# {i}\n" for i in range(300)), encoding="utf-8")
    return ["data.path=a.txt", "data.prepared=p", "model.vocab_size=300"]


def test_a_good_run_from_any_folder(tmp_path, settings):
    for _ in range(2):
        done = command(tmp_path, "--config", str(ROOT / "yaml" / "palm_tiny.yaml"), *settings)
        assert (done.returncode, done.stderr) == (0, "")
        assert "a.txt: 1 file" in done.stdout and "gzip -9" in done.stdout
        (folder,) = (tmp_path / "p").iterdir()
        assert done.stdout.splitlines()[-1].split() == ["folder", f"p/{folder.name}"]
    assert {path.name for path in folder.iterdir()} >= {"tokenizer.model", "train", "validation", "meta.json"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.path=none.txt", "none.txt: there is no such file or folder"),
        ("data.path=bad.txt", "not UTF-8 text at byte 2"),
        ("data.path=empty", "the folder holds no"),
        ("data.pth=a.txt", "did you mean data.path?"),
        ("model.vocab_size=100000", "the largest possible is"),
        ("data.tokenizer=a.txt", "not a SentencePiece model"),
        ("data.prepared=a.txt", "a.txt"),
    ],
)
def test_bad_input_is_a_sentence(tmp_path, settings, change, message):
    (tmp_path / "bad.txt").write_bytes(b"ab\xff")
    (tmp_path / "empty").mkdir()
    done = command(tmp_path, *settings, change)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2 and not done.stdout


def test_a_limit_of_the_system_is_a_sentence(tmp_path, settings):
    """What a full disk does, done by the system itself: no file may pass 2,000 bytes."""
    done = command(tmp_path, *settings, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))
    assert done.returncode == 2
    assert done.stderr.startswith("error: File too large (p/") and len(done.stderr.splitlines()) == 1
    assert not list((tmp_path / "p").glob("*/meta.json"))
    assert command(tmp_path, *settings).returncode == 0
