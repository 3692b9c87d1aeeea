"""A corpus is identified by its bytes, not by names, sizes or times."""

import gzip
import json
import os
import sys

import numpy as np
import pytest

from mindspore_palm.config import DataConfig
from mindspore_palm.data import content, prepare
from mindspore_palm.data.files import find_files
from mindspore_palm.data.prepare import Pinned
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.errors import UserError

module = sys.modules["mindspore_palm.data.prepare"]  # the package has the function under this name
TIME = (1_600_000_000_000_000_000,) * 2
LINE = "a line of {} that says {} and no more than {}\n"


def text(word):
    return "".join(LINE.format(word, i, i * i) for i in range(400))


def write(file, content):
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(content)
    os.utime(file, ns=TIME)
    return file


def run(path, folder, pinned=None, **changes):
    data = DataConfig(**{"path": str(path), "prepared": str(folder / "p"), "validation_fraction": 0.1, **changes})
    return prepare(data, 300, progress=False, pinned=pinned)


def text_of(prepared):
    """Text of both splits, train first."""
    return "".join(
        prepared.tokenizer.decode(np.asarray(split.tokens)) for split in (prepared.train, prepared.validation)
    )


def test_two_texts_with_one_name_size_and_time_in_two_folders(tmp_path):
    one, other = (write(tmp_path / word / "a.txt", text(word)) for word in ("cats", "dogs"))
    assert one.stat().st_size == other.stat().st_size and one.stat().st_mtime_ns == other.stat().st_mtime_ns
    assert text_of(run(one, tmp_path)) == text("cats")
    assert text_of(run(other, tmp_path)) == text("dogs")
    assert text_of(run(one.parent, tmp_path)) == text("cats")
    assert text_of(run(other.parent, tmp_path)) == text("dogs")


def test_a_text_rewritten_in_place_with_its_old_time(tmp_path):
    file = write(tmp_path / "a.txt", text("cats"))
    run(file, tmp_path)
    with open(file, "r+") as stream:  # the inode stays as well
        stream.write(text("dogs"))
    os.utime(file, ns=TIME)
    assert text_of(run(file, tmp_path)) == text("dogs")


def test_a_text_that_is_moved_renamed_or_touched_is_not_prepared_again(tmp_path, monkeypatch):
    file = write(tmp_path / "a.txt", text("cats"))
    first = run(file, tmp_path)
    monkeypatch.setattr(module, "survey_corpus", None)
    moved = file.rename(tmp_path / "another name.txt")
    os.utime(moved)
    second = run(moved, tmp_path)
    assert second.folder == first.folder
    assert "another name.txt" in second.summary() and "another name.txt" not in first.summary()


def test_swapping_two_documents_makes_another_text(tmp_path):
    write(tmp_path / "c" / "1.txt", text("cats"))
    write(tmp_path / "c" / "2.txt", text("dogs"))
    first = run(tmp_path / "c", tmp_path)
    for source, target in (("1", "x"), ("2", "1"), ("x", "2")):
        (tmp_path / "c" / f"{source}.txt").rename(tmp_path / "c" / f"{target}.txt")
    second = run(tmp_path / "c", tmp_path)
    assert first.folder != second.folder
    hashes = [[prepared.meta[name]["sha256"] for name in ("train", "validation")] for prepared in (first, second)]
    assert hashes[0][0] != hashes[1][0]
    counts = [{k: v for k, v in p.meta["train"].items() if k != "sha256"} for p in (first, second)]
    assert counts[0]["bytes"] == counts[1]["bytes"]


def test_the_same_documents_in_another_file_format_give_the_same_tokens(tmp_path):
    documents = [LINE.format(f"document {i}", i, i) * 5 for i in range(60)]
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    write(tmp_path / "a.jsonl", lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for number, document in enumerate(documents):
        write(tmp_path / "c" / f"{number:03d}.txt", document)
    runs = [run(tmp_path / name, tmp_path) for name in ("a.jsonl", "b.jsonl.gz", "c")]
    assert len({prepared.meta["train"]["sha256"] for prepared in runs}) == 1
    assert len({prepared.folder for prepared in runs}) == 3


def test_a_tokenizer_file_is_identified_by_its_bytes(tmp_path):
    file = write(tmp_path / "a.txt", text("cats"))
    model = tmp_path / "m" / "tokenizer.model"
    model.parent.mkdir()
    Tokenizer.train([text("cats")], 300, model)
    first = run(file, tmp_path, tokenizer=str(model))
    copy = model.rename(tmp_path / "moved.model")
    assert run(file, tmp_path, tokenizer=str(copy)).folder == first.folder
    Tokenizer.train([text("dogs")], 300, model)
    os.utime(model, ns=TIME)
    second = run(file, tmp_path, tokenizer=str(model))
    assert second.folder != first.folder and text_of(second) == text("cats")


def test_a_large_file_is_read_once_until_anything_about_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "CACHED_BYTES", 1000)
    monkeypatch.setattr(content, "SETTLED_SECONDS", -3600)  # as if the file were old
    file = write(tmp_path / "a.txt", text("cats"))
    cache = tmp_path / "cache"
    cache.mkdir()

    def read():
        """The hash, and whether the file was read to compute it."""
        reads = []
        monkeypatch.setattr(content.hashlib, "blake2b", lambda **o: reads.append(1) or blake2b(**o))
        result = content.content_of(find_files(str(file)).read, cache)
        monkeypatch.setattr(content.hashlib, "blake2b", blake2b)
        return result, bool(reads)

    blake2b = content.hashlib.blake2b
    first, was_read = read()
    assert was_read and read() == (first, False)
    file.write_text(text("dogs"))
    os.utime(file, ns=TIME)  # size, inode and time as before, but not ctime
    second, was_read = read()
    assert was_read and second != first
    file.rename(tmp_path / "b.txt")
    write(file, text("cats"))
    assert read() == (first, True)
    (cache / "hashes.json").write_text("{")
    assert read() == (first, True)


def test_the_hash_of_a_file_that_just_changed_is_not_cached(tmp_path, monkeypatch):
    """The file system's clock may be too coarse to show a change right after the file was read."""
    monkeypatch.setattr(content, "CACHED_BYTES", 1000)
    file = write(tmp_path / "a.txt", text("cats"))
    content.content_of(find_files(str(file)).read, tmp_path)
    assert not (tmp_path / "hashes.json").exists()


def test_a_folder_of_an_earlier_version_is_never_read(tmp_path):
    """Its name depends only on sizes and times, and its tokenizer may be lossy."""
    file = write(tmp_path / "a.txt", text("cats"))
    first = run(file, tmp_path)
    old = first.folder.rename(first.folder.with_name("a-300-cf466a5dec"))
    assert run(file, tmp_path).folder not in (old,)
    assert old.exists()


def test_a_text_that_changes_and_changes_back_while_it_is_prepared_is_refused(tmp_path, monkeypatch):
    file = write(tmp_path / "a.txt", text("cats"))
    survey = module.survey_corpus

    def change(*arguments):
        result = survey(*arguments)
        write(file, text("dogs"))
        return result

    monkeypatch.setattr(module, "survey_corpus", change)
    check = module._Preparation._text_changed

    def change_back(self):
        write(file, text("cats"))
        check(self)

    monkeypatch.setattr(module._Preparation, "_text_changed", change_back)
    with pytest.raises(UserError, match="the text changed while it was prepared"):
        run(file, tmp_path)
    monkeypatch.undo()
    assert text_of(run(file, tmp_path)) == text("cats")


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_a_tokenizer_altered_midway_is_trained_again(tmp_path, monkeypatch, content):
    file = write(tmp_path / "a.txt", text("cats"))
    uninterrupted = run(file, tmp_path / "uninterrupted").folder
    monkeypatch.setattr(module, "write_json", _stop_at(module.write_json, "progress.json"))
    with pytest.raises(RuntimeError):
        run(file, tmp_path)
    monkeypatch.undo()
    (model,) = tmp_path.glob("p/*/tokenizer.model")
    if content is None:  # another tokenizer, lossless too
        Tokenizer.train([text("dogs and birds")], 300, model)
    else:
        model.write_bytes(content)
    prepared = run(file, tmp_path)
    assert text_of(prepared) == text("cats")
    if content is not None:
        assert (prepared.folder / "tokenizer.model").read_bytes() == (uninterrupted / "tokenizer.model").read_bytes()


def _stop_at(write_json, name):
    def write(path, value):
        write_json(path, value)
        if path.name == name:
            raise RuntimeError("stopped here")

    return write


def test_a_run_that_resumes_keeps_its_tokenizer(tmp_path):
    file = write(tmp_path / "a.txt", text("cats"))
    first = run(file, tmp_path)
    pinned = Pinned(first.tokenizer.serialized)
    assert run(file, tmp_path, pinned).folder == first.folder  # nothing is encoded twice
    other = write(tmp_path / "b.txt", text("dogs"))
    second = run(other, tmp_path, pinned)
    assert second.tokenizer.serialized == first.tokenizer.serialized and text_of(second) == text("dogs")
    assert run(other, tmp_path).tokenizer.serialized != first.tokenizer.serialized


def test_a_name_that_is_not_utf8_is_prepared(tmp_path):
    folder = tmp_path / "caf\udce9"
    file = write(folder / "caf\udce9.txt", text("cats"))
    for path in (file, folder):
        prepared = run(path, folder)
        assert text_of(prepared) == text("cats") and "caf\\xe9" in prepared.summary()
        prepared.summary().encode()
