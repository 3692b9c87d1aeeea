"""A corpus is prepared once, to the same bits after any interruption, and never appears complete before it is."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mindspore_palm import files as atomic
from mindspore_palm.config import DataConfig
from mindspore_palm.data import prepare as prepare_function
from mindspore_palm.data import tokens
from mindspore_palm.data.corpus import documents
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.errors import Interrupted, UserError, run_command

module = sys.modules["mindspore_palm.data.prepare"]  # the package has the function under this name
VOCAB = 320
ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import os, signal, sys
from mindspore_palm.config import DataConfig
from mindspore_palm.data import prepare, tokens
from mindspore_palm import files as atomic
module = sys.modules["mindspore_palm.data.prepare"]
module.SHARD_BYTES = 2000
corpus, prepared, deadline = sys.argv[1], sys.argv[2], int(sys.argv[3])
count, write, replace = 0, tokens.write_all, os.replace
def tick():
    global count
    count += 1
    if count == deadline:
        os.kill(os.getpid(), signal.SIGKILL)
def half_written(file, content):
    write(file, content[: len(content) // 2])
    file.flush()
    tick()
    write(file, content[len(content) // 2 :])
def renamed(source, target):
    tick()
    replace(source, target)
tokens.write_all, os.replace = half_written, renamed
prepare(DataConfig(path=corpus, prepared=prepared, validation_fraction=0.2), 320, progress=False)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, write_documents):
    return write_documents(tmp_path_factory.mktemp("corpus") / "some texts.jsonl")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 2000)


def run(corpus, prepared, vocab=VOCAB, **changes):
    values = {"path": str(corpus), "prepared": str(prepared), "validation_fraction": 0.2, **changes}
    return prepare_function(DataConfig(**values), vocab, progress=False)


def bits(prepared):
    """Every file of the only prepared corpus below a folder, except its lock."""
    (folder,) = Path(prepared).iterdir()
    files = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != "lock"}
    return folder.name, files


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    shard, module.SHARD_BYTES = module.SHARD_BYTES, 2000
    run(corpus, folder)
    module.SHARD_BYTES = shard
    return bits(folder)


def test_the_tokens_are_the_text(corpus, tmp_path):
    prepared = run(corpus, tmp_path)
    texts = {document.text for document in documents(str(corpus), "text")}
    seen = set()
    for name in ("train", "validation"):
        split, sizes = getattr(prepared, name), prepared.meta[name]
        offsets = split.document_offsets
        assert all(split.tokens[offsets[1:] - 1] == prepared.tokenizer.eod)
        decoded = [prepared.tokenizer.decode(split.tokens[a:b]) for a, b in itertools.pairwise(offsets)]
        assert sizes == {
            "documents": len(decoded),
            "bytes": sum(len(text.encode()) for text in decoded),
            "tokens": len(split),
            "sha256": hashlib.sha256(np.asarray(split.tokens).tobytes()).hexdigest(),
        }
        assert prepared.tokenizer.piece_bytes[np.asarray(split.tokens)].sum() == sizes["bytes"]
        assert not seen & set(decoded)
        seen |= set(decoded)
    assert seen == texts and prepared.meta["validation"]["documents"] > 3
    total = prepared.meta["train"]["bytes"] + prepared.meta["validation"]["bytes"]
    assert prepared.meta["bytes_per_token"] == total / (len(prepared.train) + len(prepared.validation))
    assert 0 < prepared.meta["gzip9_bits_per_byte"] < 8
    summary = prepared.summary()
    assert "1 file" in summary and "320 tokens" in summary and f"{len(prepared.train):,} tokens" in summary


def test_the_second_call_only_opens(corpus, tmp_path, monkeypatch):
    first = run(corpus, tmp_path)
    before = {f: f.stat().st_mtime_ns for f in first.folder.rglob("*")}
    monkeypatch.setattr(module, "documents", None)
    monkeypatch.setattr(module, "locked", None)
    second = run(corpus, tmp_path, seq_len=8)  # sequences are cut when they are read
    assert second.folder == first.folder and second.meta == first.meta
    assert {f: f.stat().st_mtime_ns for f in first.folder.rglob("*")} == before


def test_everything_that_determines_the_content_determines_the_folder(corpus, tmp_path, write_documents):
    other = write_documents(tmp_path / "some texts.jsonl", 59)
    folder = tmp_path / "prepared"
    names = {
        run(corpus, folder).folder.name,
        run(corpus, folder, vocab=321).folder.name,
        run(corpus, folder, validation_fraction=0.3).folder.name,
        run(corpus, folder, tokenizer_megabytes=0.003).folder.name,
        run(other, folder).folder.name,
    }
    os.utime(other, ns=(1, 1))
    names.add(run(other, folder).folder.name)  # the same folder: times do not matter
    both = tmp_path / "some texts" / "some texts.jsonl"
    both.parent.mkdir()
    both.write_text("".join(json.dumps({"text": f"a text {i}", "body": f"body {i}"}) + "\n" for i in range(400)))
    names |= {run(both, folder, vocab=275, text_field=field).folder.name for field in ("text", "body")}
    assert len(names) == 7
    assert all(name.startswith("some-texts-") for name in names)


def test_the_shard_size_changes_nothing(corpus, tmp_path, uninterrupted, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 10**9)
    run(corpus, tmp_path)
    ours, theirs = bits(tmp_path)[1], uninterrupted[1]
    assert ours == theirs


class Bomb:
    """Counts disk writes, and raises in the middle of one of them."""

    def __init__(self, monkeypatch, error):
        self.count, self.deadline, self.error = 0, 10**9, error
        write, replace = tokens.write_all, os.replace

        def write_half(file, content):
            write(file, content[: len(content) // 2])
            self.tick()
            write(file, content[len(content) // 2 :])

        def rename(source, target):
            self.tick()
            replace(source, target)

        monkeypatch.setattr(tokens, "write_all", write_half)
        monkeypatch.setattr(atomic.os, "replace", rename)

    def tick(self):
        self.count += 1
        if self.count == self.deadline:
            raise self.error


def looks_complete(prepared):
    return any(Path(prepared).glob("*/meta.json"))


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (KeyboardInterrupt(), Interrupted),
        (OSError(errno.ENOSPC, "No space left on device"), OSError),
        (RuntimeError("a bug"), RuntimeError),
    ],
    ids=["ctrl-c", "disk full", "bug"],
)
def test_stopped_at_any_moment_it_resumes_to_the_same_bits(corpus, tmp_path, monkeypatch, uninterrupted, error, raised):
    bomb = Bomb(monkeypatch, error)
    run(corpus, tmp_path / "count")
    moments = bomb.count
    assert moments > 30
    for moment in range(1, moments + 1, 1 if raised is OSError else 5):
        folder = tmp_path / str(moment)
        bomb.count, bomb.deadline = 0, moment
        with pytest.raises(raised):
            run(corpus, folder)
        assert not looks_complete(folder)
        assert not list(folder.rglob("*.tmp"))
        bomb.deadline = 10**9
        run(corpus, folder)
        assert bits(folder) == uninterrupted, f"stopped at moment {moment}"


def test_stopped_again_and_again_it_still_finishes(corpus, tmp_path, monkeypatch, uninterrupted):
    bomb = Bomb(monkeypatch, KeyboardInterrupt())
    for _ in range(100):
        bomb.count, bomb.deadline = 0, 10
        try:
            run(corpus, tmp_path)
            break
        except Interrupted as stop:
            assert "resumes from there" in str(stop)
    assert bits(tmp_path) == uninterrupted


def test_completed_work_is_not_repeated(corpus, tmp_path, monkeypatch):
    encoded, encode = [], Tokenizer.encode_batch

    def count(self, texts):
        new = [text for text in texts if "# document" in text]  # only texts of the corpus
        encoded.extend(new)
        if new and len(encoded) == 40:
            raise KeyboardInterrupt
        return encode(self, texts)

    with contextlib.suppress(Interrupted):
        monkeypatch.setattr(module, "SHARD_BYTES", 1)
        monkeypatch.setattr(Tokenizer, "encode_batch", count)
        run(corpus, tmp_path)
    assert len(encoded) == 40
    monkeypatch.setattr(Tokenizer, "train", None)
    monkeypatch.setattr(module, "survey_corpus", None)
    run(corpus, tmp_path)
    assert len(encoded) == 61 and encoded[39] == encoded[40] and len(set(encoded)) == 60


@pytest.mark.parametrize("moment", [1, 2, 5, 20, 33])
def test_killed_it_resumes_to_the_same_bits(corpus, tmp_path, uninterrupted, moment):
    killed = subprocess.run([sys.executable, "-c", KILLED, corpus, tmp_path, str(moment)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert not looks_complete(tmp_path)
    run(corpus, tmp_path)
    assert bits(tmp_path) == uninterrupted


def test_truncated_files_are_encoded_again(corpus, tmp_path, uninterrupted):
    """A power failure may lose more than what follows the last mark."""
    folder = run(corpus, tmp_path).folder
    (folder / "meta.json").unlink()
    os.truncate(folder / "train" / "tokens.bin", 10)
    (folder / "validation" / "documents.bin").unlink()
    run(corpus, tmp_path)
    assert bits(tmp_path) == uninterrupted


def test_a_full_disk_is_one_message(corpus, tmp_path, monkeypatch, capsys):
    bomb = Bomb(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    bomb.deadline = 10
    assert run_command(lambda: run(corpus, tmp_path)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: No space left on device (") and ".bin)" in message
    assert len(message.splitlines()) == 1 and not looks_complete(tmp_path)


def test_a_second_process_waits_and_finds_it_done(corpus, tmp_path, uninterrupted):
    folder = tmp_path / uninterrupted[0]
    folder.mkdir()
    with atomic.locked(folder / "lock"):
        other = subprocess.Popen(
            [sys.executable, "-c", KILLED, corpus, tmp_path, "0"], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        assert "waiting for another process" in other.stderr.readline()
        time.sleep(0.2)
        assert other.poll() is None and not looks_complete(tmp_path)
    assert other.wait(60) == 0
    assert bits(tmp_path) == uninterrupted
    other.stderr.close()


@pytest.mark.skipif(atomic.fcntl is None, reason="a system without these locks")
def test_a_disk_without_locks_works(corpus, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    assert len(run(corpus, tmp_path).train) > 0


def test_two_processes_at_once(corpus, tmp_path, uninterrupted):
    command = [sys.executable, "-c", KILLED, corpus, tmp_path, "0"]
    both = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert bits(tmp_path) == uninterrupted


def test_one_long_text(tmp_path, code):
    file = tmp_path / "book.txt"
    file.write_text(code * 200, newline="")
    prepared = run(file, tmp_path / "p", validation_fraction=0.1)
    assert prepared.meta["split_mode"] == "tails"
    assert (prepared.train.documents, prepared.validation.documents) == (1, 1)
    text = "".join(prepared.tokenizer.decode(split.tokens) for split in (prepared.train, prepared.validation))
    assert text == code * 200
    assert 0.08 < prepared.meta["validation"]["bytes"] / len(text) < 0.12


def test_equal_texts_are_in_one_split(tmp_path, code):
    texts = [f"{code} {i % 20}" for i in range(100)]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    prepared = run(file, tmp_path / "p", validation_fraction=0.3)
    splits = []
    for split in (prepared.train, prepared.validation):
        ends = split.document_offsets
        splits.append({prepared.tokenizer.decode(split.tokens[a:b]) for a, b in itertools.pairwise(ends)})
    assert not splits[0] & splits[1] and len(splits[0]) + len(splits[1]) == 20 and splits[1]


def test_a_given_tokenizer_is_used_and_checked(corpus, tmp_path, tokenizer):
    prepared = run(corpus, tmp_path / "p", tokenizer=str(tokenizer.model_file))
    assert prepared.tokenizer.serialized == tokenizer.serialized
    assert prepared.tokenizer.model_file == prepared.folder / "tokenizer.model"
    with pytest.raises(UserError, match=r"has 320 tokens and model\.vocab_size = 4096; set model\.vocab_size to 320"):
        run(corpus, tmp_path / "p", vocab=4096, tokenizer=str(tokenizer.model_file))
    with pytest.raises(UserError, match="there is no tokenizer"):
        run(corpus, tmp_path / "p", tokenizer=str(tmp_path / "none.model"))


def test_text_that_changes_meanwhile_is_refused(tmp_path, write_documents, monkeypatch):
    file = write_documents(tmp_path / "a.jsonl")
    train = Tokenizer.train

    def change(*arguments):
        write_documents(file, 50)
        return train(*arguments)

    monkeypatch.setattr(Tokenizer, "train", change)
    with pytest.raises(UserError, match="the text changed while it was prepared"):
        run(file, tmp_path / "p")
    assert not looks_complete(tmp_path / "p")


def test_too_little_text_for_the_vocabulary(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("some words and some more words\n" * 30)
    with pytest.raises(UserError, match=r"too small for model\.vocab_size = 4096: the largest possible is \d+"):
        run(file, tmp_path / "p", vocab=4096)
    assert not looks_complete(tmp_path / "p")


@pytest.mark.parametrize("name", ["meta.json", "tokenizer.model", "train/tokens.bin", "validation/meta.json"])
def test_damage_after_the_fact_names_the_file(corpus, tmp_path, name):
    folder = run(corpus, tmp_path).folder
    (folder / name).write_bytes(b"{")
    with pytest.raises(UserError, match=r"delete .* and prepare again|not a SentencePiece model"):
        run(corpus, tmp_path)
