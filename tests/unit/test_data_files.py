"""Files of a corpus: all that the user meant are read, skipped files are listed, and nothing hangs."""

import bz2
import gzip
import json
import lzma
import os
import socket
import sys
import sysconfig

import pytest

from mindspore_palm.data.corpus import documents, json_lines
from mindspore_palm.data.files import PYTHON_STDLIB, find_files, printable
from mindspore_palm.errors import UserError


def read(path, field="text"):
    return [document.text for document in documents(str(path), field)]


def names(path):
    return [file.name for file in find_files(str(path)).read]


@pytest.mark.parametrize(
    "name", ["notes.md", "code.py", "no_ending", "table.csv", "a.TXT", "x.json", ".hidden", "a b.rst"]
)
def test_any_explicitly_named_file_is_text(tmp_path, name):
    (tmp_path / name).write_text("héllo\n")
    assert read(tmp_path / name) == ["héllo\n"]


def test_a_pattern_with_an_extension_names_its_files_explicitly(tmp_path):
    for name in ("a.md", "b.md", "c.txt", "d.png"):
        (tmp_path / name).write_text(name)
    assert read(tmp_path / "*.md") == ["a.md", "b.md"]
    assert read(tmp_path / "*") == ["c.txt"]
    assert "3 files" in find_files(str(tmp_path / "*")).describe_skipped()


COMPRESSORS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
LINES = b'{"text": "one"}\n{"text": "two\\n"}\n'


@pytest.fixture
def zstd():
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow, an extra, reads .zst")
    return lambda content: pyarrow.compress(content, "zstd", asbytes=True)


@pytest.mark.parametrize("compression", [*COMPRESSORS, ".zst"])
def test_compressed_text_is_read_decompressed(tmp_path, compression, request):
    compress = COMPRESSORS.get(compression) or request.getfixturevalue("zstd")
    (tmp_path / f"a.txt{compression}").write_bytes(compress("\ufefflíne\n\n".encode()))
    (tmp_path / f"b.jsonl{compression}").write_bytes(compress(LINES))
    (tmp_path / f"notes.md{compression}").write_bytes(compress(b"notes"))
    assert read(tmp_path) == ["líne\n\n", "one", "two\n"]
    assert read(tmp_path / f"notes.md{compression}") == ["notes"]
    assert f"notes.md{compression}" in find_files(str(tmp_path)).describe_skipped()
    assert [record["text"] for record, _ in json_lines(tmp_path / f"b.jsonl{compression}", compression)] == [
        "one",
        "two\n",
    ]


@pytest.mark.parametrize("compression", [*COMPRESSORS, ".zst"])
def test_a_large_compressed_text_is_read_in_parts(tmp_path, compression, request, monkeypatch):
    from mindspore_palm.data import corpus

    monkeypatch.setattr(corpus, "PART_BYTES", 1000)
    compress = COMPRESSORS.get(compression) or request.getfixturevalue("zstd")
    text = "".join(f"line {i} é\n" for i in range(3000))
    (tmp_path / f"a.txt{compression}").write_bytes(compress(text.encode()))
    parts = list(documents(str(tmp_path), "text"))
    assert "".join(part.text for part in parts) == text
    assert len(parts) > 30 and parts[-1].last and not any(part.last for part in parts[:-1])


@pytest.mark.parametrize("compression", [*COMPRESSORS, ".zst"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_damaged_compressed_file_is_refused_by_name(tmp_path, compression, damage, request):
    compress = COMPRESSORS.get(compression) or request.getfixturevalue("zstd")
    content = compress(os.urandom(3000).hex().encode())
    middle = len(content) // 2
    content = {
        "cut": content[:middle],
        "flipped": content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :],
        "foreign": b"plain text",
    }[damage]
    (tmp_path / f"a.txt{compression}").write_bytes(content)
    try:
        texts = read(tmp_path)
    except UserError as error:
        assert f"a.txt{compression}" in str(error) and len(str(error).splitlines()) == 1
    else:  # zstd without a checksum cannot detect a flipped literal
        assert compression == ".zst" and damage == "flipped" and texts


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.zip", "a.parquet.gz"])
def test_archives_are_refused_and_not_treated_as_text(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match="unpack it"):
        read(tmp_path / name)


def test_skipped_files_of_a_folder_are_listed(tmp_path):
    for name, content in {"LICENSE.txt": "licence", "part-0.jsonl.gz": "", "a.png": "x" * 2000, "b.md": "y"}.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "part-0.jsonl.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / ".git").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert read(tmp_path) == ["licence", "one", "two\n"]  # compressed text is read
    listed = find_files(str(tmp_path)).describe_skipped()
    assert listed == "4 files, 2.0 kB, not read: a.png (.png), b.md (.md), .git (hidden) and 1 more"


def test_a_folder_without_text_is_refused_with_its_files(tmp_path):
    (tmp_path / "a.md").write_text("abc")
    with pytest.raises(UserError, match=r"holds no \.txt, \.jsonl, \.parquet file \(1 file, 3 bytes, not read: a\.md"):
        read(tmp_path)


@pytest.fixture
def special(tmp_path):
    """A named pipe, a socket and a device, each with the extension of a text file."""
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        before = os.getcwd()
        os.chdir(tmp_path)  # the path of a socket has at most 107 bytes
        server.bind("socket.jsonl")
        os.chdir(before)
        (tmp_path / "device.txt").symlink_to("/dev/zero")
        yield tmp_path


def test_pipes_sockets_and_devices_in_a_folder_are_skipped_and_listed(special):
    (special / "a.txt").write_text("text")
    assert read(special) == ["text"]
    listed = find_files(str(special)).describe_skipped()
    for part in ("3 files", "pipe.txt (a named pipe)", "socket.jsonl (a socket)", "device.txt (a device)"):
        assert part in listed


@pytest.mark.parametrize(
    ("name", "special_file"), [("pipe.txt", "a named pipe"), ("socket.jsonl", "a socket"), ("device.txt", "a device")]
)
def test_an_explicitly_named_pipe_socket_or_device_is_refused(special, name, special_file):
    with pytest.raises(UserError, match=f"this is {special_file}"):
        read(special / name)
    with pytest.raises(UserError, match=f"this is {special_file}"):
        read(special / f"*{name[1:]}")


def test_a_pipe_is_never_waited_for_wherever_text_is_read(special):
    from mindspore_palm.data.tokenizer import Tokenizer

    with pytest.raises(UserError, match="a named pipe"):
        list(json_lines(special / "pipe.txt"))
    with pytest.raises(UserError, match="a named pipe"):
        Tokenizer(special / "pipe.txt")


def test_links_are_followed_and_a_cycle_of_them_ends(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("behind a link")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "link").symlink_to(tmp_path / "elsewhere")
    (corpus / "cycle").symlink_to(corpus)
    (corpus / "file.txt").symlink_to(tmp_path / "elsewhere" / "a.txt")
    assert read(corpus) == ["behind a link", "behind a link"]
    (tmp_path / "link of a folder").symlink_to(corpus)
    assert len(read(tmp_path / "link of a folder")) == 2


def test_a_broken_link_is_refused_where_text_is_expected(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / ".#a.txt").symlink_to("an editor's lock")
    (tmp_path / "b.md").symlink_to("nowhere")
    assert read(tmp_path) == ["text"]
    (tmp_path / "c.txt").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"c\.txt: a broken link"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"c\.txt: a broken link"):
        read(tmp_path / "c.txt")


NOT_UTF8 = b"caf\xe9"


def test_names_that_are_not_utf8_are_read_and_shown_as_bytes(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), NOT_UTF8)
    os.mkdir(folder)
    for name in (NOT_UTF8 + b".txt", NOT_UTF8 + b".md"):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"ab\xff" if name.endswith(b"md") else b"abc")
    path = os.fsdecode(folder)
    assert read(path) == ["abc"]
    assert find_files(path).describe_skipped() == "1 file, 3 bytes, not read: caf\\xe9.md (.md)"
    with pytest.raises(UserError) as error:
        read(os.path.join(path, "caf\udce9.md"))
    assert "caf\\xe9.md: not UTF-8 text at byte 2" in str(error.value)
    str(error.value).encode()
    assert printable("caf\udce9/é\ud800").isprintable()


def test_messages_name_what_the_user_wrote(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"body": 1}))
    with pytest.raises(UserError, match=r"^--data = .*none\.txt: there is no such file"):
        list(documents(str(tmp_path / "none.txt"), "text", "--data", "--text-field"))
    with pytest.raises(UserError, match=r"set --text-field to one of the fields here \(body\)"):
        list(documents(str(file), "text", "--data", "--text-field"))
    with pytest.raises(UserError, match=r"^--data is empty"):
        list(documents("", "text", "--data", "--text-field"))


@pytest.mark.parametrize("order", ["utf-16", "utf-16-be"])
def test_utf_16_is_recognised(tmp_path, order):
    (tmp_path / "a.txt").write_bytes("\ufeffhéllo".encode(order) if order == "utf-16-be" else "héllo".encode(order))
    with pytest.raises(UserError, match=r"not UTF-8 text at byte 0 \(it looks like UTF-16\); save the file as UTF-8"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.parquet", "a.txt.zst"])
def test_without_pyarrow_its_file_formats_name_the_package(tmp_path, name, monkeypatch):
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=f"{name}: .*pip install pyarrow"):
        read(tmp_path / name)


def test_the_standard_library_is_listed_without_looking_at_installed_packages(tmp_path, monkeypatch):
    for name in ("abc.py", "json/decoder.py", "json/tests/a.py", "site-packages/numpy/core.py", "site-packages.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    looked, scandir = [], os.scandir
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    monkeypatch.setattr(
        os, "scandir", lambda folder: looked.append(os.path.relpath(folder, tmp_path)) or scandir(folder)
    )
    found = find_files(PYTHON_STDLIB)
    assert [file.name for file in found.read] == ["abc.py", "json/decoder.py", "site-packages.py"]
    assert looked == [".", "json"]
