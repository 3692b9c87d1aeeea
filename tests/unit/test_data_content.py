"""A corpus is known by its bytes: neither name nor size nor time makes two texts one, or one text two."""

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

module = sys.modules["mindspore_palm.data.prepare"]  # its name in the package is that of its function
TIME = (1_600_000_000_000_000_000,) * 2
LINE = "a line of {} that says {} and no more than {}\n"


def text(word):
    return "".join(LINE.format(word, i, i * i) for i in range(400))


def write(file, content):
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(content)
    os.utime(file, ns=TIME)
    return file


def run(path, folder, kept=None, **changes):
    data = DataConfig(**{"path": str(path), "prepared": str(folder / "p"), "validation_fraction": 0.1, **changes})
    return prepare(data, 300, progress=False, pinned=kept)


def whole(prepared):
    """All text, in the order of the splits."""
    return "".join(
        prepared.tokenizer.decode(np.asarray(split.tokens)) for split in (prepared.train, prepared.validation)
    )


def test_two_texts_of_one_name_size_and_time_in_two_folders(tmp_path):
    one, other = (write(tmp_path / word / "a.txt", text(word)) for word in ("cats", "dogs"))
    assert one.stat().st_size == other.stat().st_size and one.stat().st_mtime_ns == other.stat().st_mtime_ns
    assert whole(run(one, tmp_path)) == text("cats")
    assert whole(run(other, tmp_path)) == text("dogs")
    assert whole(run(one.parent, tmp_path)) == text("cats")
    assert whole(run(other.parent, tmp_path)) == text("dogs")


def test_a_text_rewritten_in_place_with_its_old_time(tmp_path):
    file = write(tmp_path / "a.txt", text("cats"))
    run(file, tmp_path)
    with open(file, "r+") as stream:  # the inode stays as well
        stream.write(text("dogs"))
    os.utime(file, ns=TIME)
    assert whole(run(file, tmp_path)) == text("dogs")


def test_a_text_that_is_moved_renamed_or_touched_is_not_prepared_again(tmp_path, monkeypatch):
    file = write(tmp_path / "a.txt", text("cats"))
    first = run(file, tmp_path)
    monkeypatch.setattr(module, "survey", None)
    moved = file.rename(tmp_path / "another name.txt")
    os.utime(moved)
    second = run(moved, tmp_path)
    assert second.folder == first.folder
    assert "another name.txt" in second.summary() and "another name.txt" not in first.summary()


def test_two_documents_that_change_places_are_another_text(tmp_path):
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


def test_the_same_documents_out_of_another_kind_of_file_are_the_same_tokens(tmp_path):
    documents = [LINE.format(f"document {i}", i, i) * 5 for i in range(60)]
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    write(tmp_path / "a.jsonl", lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for number, document in enumerate(documents):
        write(tmp_path / "c" / f"{number:03d}.txt", document)
    runs = [run(tmp_path / name, tmp_path) for name in ("a.jsonl", "b.jsonl.gz", "c")]
    assert len({prepared.meta["train"]["sha256"] for prepared in runs}) == 1
    assert len({prepared.folder for prepared in runs}) == 3


def test_a_tokenizer_file_is_known_by_its_bytes(tmp_path):
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
    assert second.folder != first.folder and whole(second) == text("cats")


def test_a_large_file_is_read_once_until_anything_about_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "REMEMBERED_BYTES", 1000)
    monkeypatch.setattr(content, "SETTLED_SECONDS", -3600)  # as if the file was old
    file = write(tmp_path / "a.txt", text("cats"))
    memory = tmp_path / "memory"
    memory.mkdir()

    def read():
        """The hash, and whether the file was read for it."""
        opened = []
        monkeypatch.setattr(content.hashlib, "blake2b", lambda **o: opened.append(1) or blake2b(**o))
        result = content.content_of(find_files(str(file)).read, memory)
        monkeypatch.setattr(content.hashlib, "blake2b", blake2b)
        return result, bool(opened)

    blake2b = content.hashlib.blake2b
    first, was_read = read()
    assert was_read and read() == (first, False)
    file.write_text(text("dogs"))
    os.utime(file, ns=TIME)  # size, inode and time as before; ctime is not
    second, was_read = read()
    assert was_read and second != first
    file.rename(tmp_path / "b.txt")
    write(file, text("cats"))
    assert read() == (first, True)
    (memory / "hashes.json").write_text("{")
    assert read() == (first, True)


def test_a_file_that_changed_a_moment_ago_is_not_remembered(tmp_path, monkeypatch):
    """A clock of the disk may be too coarse to tell a change right after it was read."""
    monkeypatch.setattr(content, "REMEMBERED_BYTES", 1000)
    file = write(tmp_path / "a.txt", text("cats"))
    content.content_of(find_files(str(file)).read, tmp_path)
    assert not (tmp_path / "hashes.json").exists()


def test_a_folder_of_an_earlier_version_is_never_read(tmp_path):
    """Its name knew sizes and times alone, and its tokenizer may lose text."""
    file = write(tmp_path / "a.txt", text("cats"))
    first = run(file, tmp_path)
    old = first.folder.rename(first.folder.with_name("a-300-cf466a5dec"))
    assert run(file, tmp_path).folder not in (old,)
    assert old.exists()


def test_a_text_that_changes_and_changes_back_while_it_is_prepared_is_refused(tmp_path, monkeypatch):
    file = write(tmp_path / "a.txt", text("cats"))
    survey = module.survey

    def change(*arguments):
        result = survey(*arguments)
        write(file, text("dogs"))
        return result

    monkeypatch.setattr(module, "survey", change)
    check = module._Preparation._text_changed

    def change_back(self):
        write(file, text("cats"))
        check(self)

    monkeypatch.setattr(module._Preparation, "_text_changed", change_back)
    with pytest.raises(UserError, match="the text changed while it was prepared"):
        run(file, tmp_path)
    monkeypatch.undo()
    assert whole(run(file, tmp_path)) == text("cats")


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_a_tokenizer_that_was_altered_on_the_way_is_trained_again(tmp_path, monkeypatch, content):
    file = write(tmp_path / "a.txt", text("cats"))
    whole_folder = run(file, tmp_path / "uninterrupted").folder
    monkeypatch.setattr(module, "write_json", _stop_at(module.write_json, "progress.json"))
    with pytest.raises(RuntimeError):
        run(file, tmp_path)
    monkeypatch.undo()
    (model,) = tmp_path.glob("p/*/tokenizer.model")
    if content is None:  # another one, which is lossless
        Tokenizer.train([text("dogs and birds")], 300, model)
    else:
        model.write_bytes(content)
    prepared = run(file, tmp_path)
    assert whole(prepared) == text("cats")
    if content is not None:
        assert (prepared.folder / "tokenizer.model").read_bytes() == (whole_folder / "tokenizer.model").read_bytes()


def _stop_at(write_json, name):
    def write(path, value):
        write_json(path, value)
        if path.name == name:
            raise RuntimeError("stopped here")

    return write


def test_a_run_that_resumes_keeps_its_tokenizer(tmp_path):
    file = write(tmp_path / "a.txt", text("cats"))
    first = run(file, tmp_path)
    kept = Pinned(first.tokenizer.serialized)
    assert run(file, tmp_path, kept).folder == first.folder  # nothing is encoded twice
    other = write(tmp_path / "b.txt", text("dogs"))
    second = run(other, tmp_path, kept)
    assert second.tokenizer.serialized == first.tokenizer.serialized and whole(second) == text("dogs")
    assert run(other, tmp_path).tokenizer.serialized != first.tokenizer.serialized


def test_a_name_that_is_not_utf8_is_prepared(tmp_path):
    folder = tmp_path / "caf\udce9"
    file = write(folder / "caf\udce9.txt", text("cats"))
    for path in (file, folder):
        prepared = run(path, folder)
        assert whole(prepared) == text("cats") and "caf\\xe9" in prepared.summary()
        prepared.summary().encode()
