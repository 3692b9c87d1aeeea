"""Compressed text: a bomb, a truncated file and one of another kind are each one sentence that names the file."""

from __future__ import annotations

import bz2
import gzip
import lzma

import pytest

from mindspore_palm.data import corpus, files
from mindspore_palm.data.corpus import documents
from mindspore_palm.errors import UserError

TEXT = "".join(f"line {i} of {i * i}\n" for i in range(5000))


def zstd(content):
    pyarrow = pytest.importorskip("pyarrow", reason="reads and writes .zst")
    return pyarrow.compress(content, codec="zstd", asbytes=True)


WRITERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "a.jsonl"])
def test_it_is_read_as_it_was(tmp_path, ending, name):
    text = f'{{"text": "{"é" * 3000}"}}\n' if name.endswith("jsonl") else TEXT
    (tmp_path / f"{name}{ending}").write_bytes(WRITERS[ending](text.encode()))
    read = "".join(document.text for document in documents(str(tmp_path / f"{name}{ending}"), "text"))
    assert read == ("é" * 3000 if name.endswith("jsonl") else TEXT)


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_truncated_and_mislabelled_files_are_named(tmp_path, ending, name):
    path = tmp_path / f"{name}{ending}"
    lines = "".join(f'{{"text": "line {i} of {i * i}"}}\n' for i in range(5000))
    complete = WRITERS[ending]((lines if name.endswith("jsonl") else TEXT).encode())
    for content in (complete[: len(complete) // 2], b"plain text, and no archive at all", complete[:2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}{ending}: this is not a complete {ending} file") as caught:
            list(documents(str(path), "text"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch, ending, name):
    monkeypatch.setattr(files, "BOMB_BYTES", 2**20)
    path = tmp_path / f"{name}{ending}"
    path.write_bytes(WRITERS[ending](bytes(2**26)))
    assert path.stat().st_size * files.BOMB_RATIO < 2**26 or ending == ".gz"
    monkeypatch.setattr(files, "BOMB_RATIO", min(files.BOMB_RATIO, 2**25 // path.stat().st_size))
    with pytest.raises(UserError, match=rf"{name}{ending}: .* decompress to more than .* decompress the file yourself"):
        list(documents(str(path), "text"))


def test_a_line_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "LINE_BYTES", 2**20)
    (tmp_path / "a.jsonl").write_text('{"text": "short"}\n' + "x" * 2**20)
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: the line has 1 MB or more"):
        list(documents(str(tmp_path / "a.jsonl"), "text"))
