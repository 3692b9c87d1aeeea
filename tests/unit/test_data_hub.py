"""Datasets of Hugging Face: written to disk once, so that a run resumes from there; refused in a sentence otherwise."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace

import pytest

from mindspore_palm.config import DataConfig
from mindspore_palm.data import hub, prepare_text
from mindspore_palm.data.files import find_files
from mindspore_palm.data.hub import HubDataset, fetch, parse_hub_path
from mindspore_palm.errors import UserError

ROWS = [{"text": f"story {i}: ünï\n" + "and so on. " * 20, "id": i} for i in range(60)]


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A folder that the real library reads, as it reads one of the Hub."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets", reason="the library datasets, an extra, reads datasets of the Hub")
    folder = tmp_path / "stories"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


class Library(SimpleNamespace):
    """Stands in for the library: counts what is loaded, and with which arguments."""

    def __init__(self, rows=ROWS, version="4.1.0"):
        super().__init__(__version__=version, rows=rows, calls=[])

    def load_dataset(self, *arguments, **named):
        self.calls.append((arguments, named))
        if isinstance(self.rows, Exception):
            raise self.rows
        return Rows(self.rows)


class Rows(list):
    def take(self, count):
        return Rows(self[:count])


@pytest.fixture
def library(monkeypatch):
    def install(**values):
        monkeypatch.setitem(sys.modules, "datasets", Library(**values))
        return sys.modules["datasets"]

    return install


def test_a_path_names_a_dataset():
    assert parse_hub_path("hf://a/b", "data.path") == HubDataset("a/b")
    whole = parse_hub_path("hf://a/b?config=en&split=train[:1%]&revision=abc&first=500", "data.path")
    assert whole == HubDataset("a/b", "en", "train[:1%]", "abc", 500)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("hf://", "write hf://OWNER/NAME"),
        ("hf://a/b?splt=x", "'splt=x' is not one of config=..., split=..., revision=..., first=..."),
        ("hf://a/b?split=a&split=b", "'split=b' is not one of"),
        ("hf://a/b?first=0", "first=0 must be a number of documents"),
        ("hf://a/b?first=ten", "first=ten must be a number of documents"),
    ],
)
def test_what_is_no_dataset_is_refused(path, message):
    with pytest.raises(UserError, match=r"^data\.path = hf://") as caught:
        parse_hub_path(path, "data.path")
    assert message in str(caught.value)


def test_it_is_read_once_and_never_again(tmp_path, library):
    here = library()
    file = fetch("hf://a/b?config=en&revision=r&first=7", "text", tmp_path, "data.path")
    assert [json.loads(line)["text"] for line in file.read_text().splitlines()] == [row["text"] for row in ROWS[:7]]
    assert here.calls == [(("a/b", "en"), {"split": "train", "revision": "r", "streaming": True})]
    library(rows=RuntimeError("the Hub is gone"))
    assert fetch("hf://a/b?config=en&revision=r&first=7", "text", tmp_path, "data.path") == file
    assert fetch("hf://a/b?first=7&revision=r&config=en", "text", tmp_path, "data.path") == file
    shutil.rmtree(file.parent)
    library(rows=ROWS[7:])  # without its folder, it is read again
    again = fetch("hf://a/b?config=en&revision=r&first=7", "text", tmp_path, "data.path")
    assert json.loads(again.read_text().splitlines()[0])["text"] == ROWS[7]["text"]
    library(rows=RuntimeError("the Hub is gone"))
    with pytest.raises(UserError, match=r"hf://a/b\?first=8: the dataset cannot be read \(the Hub is gone\)"):
        fetch("hf://a/b?first=8", "text", tmp_path, "data.path")


def test_an_interrupted_copy_is_not_taken_for_a_complete_one(tmp_path, library):
    def rows():
        yield from ROWS[:3]
        raise ConnectionError("reset")

    class Broken(Rows):
        def __iter__(self):
            return rows()

    here = library()
    here.load_dataset = lambda *_, **__: Broken()
    with pytest.raises(UserError, match=r"cannot be read \(reset\)"):
        fetch("hf://a/b", "text", tmp_path, "data.path")
    assert not list(tmp_path.rglob("documents.jsonl*"))
    library()
    assert len(fetch("hf://a/b", "text", tmp_path, "data.path").read_text().splitlines()) == len(ROWS)


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"version": "3.6.0"}, "text", "may run code that comes with a dataset; pip install 'datasets>=4'"),
        ({}, "body", "there is no column 'body'; set data.text_field to one of text, id"),
        ({}, "id", "row 1: the column 'id' must hold strings, not int"),
        ({"rows": ValueError("Unknown split 'x'.\nmore")}, "text", "cannot be read (Unknown split 'x'.)"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(tmp_path, library, values, field, message):
    library(**values)
    with pytest.raises(UserError, match=r"^data\.path = hf://a/b") as caught:
        fetch("hf://a/b", field, tmp_path, "data.path")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_library_is_named_if_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"this needs the library datasets of Hugging Face; pip install 'datasets>=4'"):
        fetch("hf://a/b", "text", tmp_path, "data.path")
    with pytest.raises(UserError, match=r"^--data = hf://a/b: only training on text reads a dataset of the Hub"):
        find_files("hf://a/b", "--data")


@pytest.mark.parametrize("query", ["", "?first=40"])
def test_the_library_itself_reads_a_folder(local, tmp_path, query):
    data = {"path": f"hf://{local}{query}", "prepared": str(tmp_path / "prepared"), "seq_len": 16}
    prepared = prepare_text(DataConfig.model_validate(data), 290, progress=False)
    assert prepared.summary().startswith(f"corpus      hf://{local}{query}: 1 file")
    read = sorted(
        text
        for part in (prepared.train, prepared.validation)
        for text in prepared.tokenizer.decode_bytes(part.read(0, len(part))).decode().split("story ")[1:]
    )
    assert len(read) == (40 if query else 60)
    again = prepare_text(DataConfig.model_validate(data), 290, progress=False)
    assert again.meta == prepared.meta and again.folder == prepared.folder
    assert hub.SOURCE in {path.name for path in tmp_path.rglob("source.json")}
