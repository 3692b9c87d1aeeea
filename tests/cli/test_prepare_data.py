"""The command prepare_data: it exits with 0 from any folder, and on bad input with 2 and one message."""

import os
import re
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


def test_text_without_a_space_is_prepared(tmp_path):
    (tmp_path / "n.txt").write_text("emma\nolivia\nava\nnoah\n" * 500)
    done = command(tmp_path, "data.path=n.txt", "data.prepared=p", "model.vocab_size=270")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_name_that_is_not_utf8_is_prepared_and_shown(tmp_path, settings):
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt")
    os.rename(tmp_path / "a.txt", name)
    for environment in ({}, {"PYTHONIOENCODING": "ascii"}):
        line = [sys.executable, str(ROOT / "run" / "prepare_data.py"), *settings[1:], b"data.path=caf\xe9.txt"]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, env={**os.environ, **environment})
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"caf\\xe9.txt: 1 file" in done.stdout
    missing = subprocess.run([*line[:-1], b"data.path=th\xe9.txt"], cwd=tmp_path, capture_output=True)
    assert missing.returncode == 2 and b"th\\xe9.txt: there is no such file" in missing.stderr


def test_skipped_files_are_printed_and_a_pipe_is_not_waited_for(tmp_path, settings):
    texts = tmp_path / "texts"
    texts.mkdir()
    (tmp_path / "a.txt").rename(texts / "a.txt")
    (texts / "cover.png").write_bytes(b"x" * 3000)
    os.mkfifo(texts / "pipe.txt")
    done = command(tmp_path, *settings[1:], "data.path=texts", timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "left out    2 files, 3.0 kB, not read: cover.png (.png), pipe.txt (a named pipe)\n" in done.stdout


def test_a_book_among_notes_is_trained_on(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text(f"note {number}: milk, {number * 7} eggs and {number % 9} loaves\n" * 3)
    book = "".join(f"line {i} of the book tells of {i * i} things\n" for i in range(22_000))
    (texts / "book.txt").write_text(book)
    done = command(tmp_path, "data.path=texts", "data.prepared=p", "model.vocab_size=300")
    assert (done.returncode, done.stderr) == (0, "")
    assert "held out    the end of each document of more than " in done.stdout
    sizes = dict(re.findall(r"^(train|validation) +.*?([\d.]+) MB", done.stdout, re.MULTILINE))
    assert float(sizes["validation"]) == pytest.approx(0.02 * len(book) / 1e6, abs=0.01)


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
def test_bad_input_is_one_message(tmp_path, settings, change, message):
    (tmp_path / "bad.txt").write_bytes(b"ab\xff")
    (tmp_path / "empty").mkdir()
    done = command(tmp_path, *settings, change)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2 and not done.stdout


def test_a_limit_of_the_system_is_one_message(tmp_path, settings):
    """The system limits files to 2,000 bytes, which has the effect of a full disk."""
    done = command(tmp_path, *settings, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))
    assert done.returncode == 2
    assert done.stderr.startswith("error: File too large (p/") and len(done.stderr.splitlines()) == 1
    assert not list((tmp_path / "p").glob("*/meta.json"))
    assert command(tmp_path, *settings).returncode == 0
