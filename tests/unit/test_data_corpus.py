"""Every corpus format is read unchanged, and bad content is refused with its location and a fix."""

import decimal
import json

import pytest

from mindspore_palm.data import corpus
from mindspore_palm.data.corpus import corpus_files, documents
from mindspore_palm.errors import UserError

parquet_files = pytest.importorskip("pyarrow.parquet", reason="pyarrow, an extra, reads .parquet")
pyarrow = pytest.importorskip("pyarrow", reason="pyarrow, an extra, reads .parquet")


def read(path, field="text"):
    return [document.text for document in documents(str(path), field)]


def parquet(file, columns):
    parquet_files.write_table(pyarrow.table(columns), file)
    return file


def test_text_is_read_unchanged(tmp_path):
    content = "\ufeffa\r\nb\rc\0\t \u2581\n\n"
    (tmp_path / "a.txt").write_bytes(content.encode())
    assert read(tmp_path / "a.txt") == [content[1:]]  # without the byte order mark


def test_json_lines(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "a\\n\\u00e9"}\r\n\n{"text": ""}\n{"text": "b\\u2028", "n": 1}')
    assert read(file) == ["a\né", "b\u2028"]


def test_parquet(tmp_path):
    assert read(parquet(tmp_path / "a.parquet", {"body": ["a", "", "é"], "n": [1, 2, 3]}), "body") == ["a", "é"]


def test_folder_and_glob_are_sorted_and_hidden_files_skipped(tmp_path):
    for name in ("b.txt", "sub/a.TXT", ".hidden.txt", ".git/x.txt", "c.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "d"}))
    assert [file.name for file in corpus_files(str(tmp_path))] == ["b.txt", "d.jsonl", "sub/a.TXT"]
    assert read(tmp_path) == ["b.txt", "d", "sub/a.TXT"]
    assert read(tmp_path / "*.txt") == ["b.txt"]
    assert read(tmp_path / "**" / "*.TXT") == ["sub/a.TXT"]


@pytest.mark.parametrize("text", ["line\n" * 50, "x" * 200, "é漢😀" * 40, "a\n" + "😀" * 60 + "\nend"])
def test_the_parts_of_a_large_text_make_up_the_text(tmp_path, monkeypatch, text):
    monkeypatch.setattr(corpus, "PART_BYTES", 17)
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode())
    parts = list(documents(str(file), "text"))
    assert "".join(part.text for part in parts) == text
    assert len(parts) > 5 and max(part.part_size for part in parts) <= 17
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert [part.offset for part in parts] == [sum(p.part_size for p in parts[:i]) for i in range(len(parts))]


def test_python_stdlib_comes_without_its_tests():
    names = [file.name for file in corpus_files("python-stdlib")]
    assert "argparse.py" in names and "json/decoder.py" in names
    assert not any("/test" in name or "site-packages" in name or "_sysconfigdata" in name for name in names)


def bad(name, content, message):
    return pytest.param(name, content, message, id=message[:30])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        bad("a.txt", b"abc\n\xff", r"a\.txt: not UTF-8 text at byte 4; save"),
        bad("a.txt", b"\xef\xbb\xbfab\xc3", r"a\.txt: not UTF-8 text at byte 5"),
        bad("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl, line 2, column 9: this is not JSON"),
        bad(
            "a.jsonl",
            b'{"text": "a"}\n\n{"body": "b"}',
            r"line 3: there is no field 'text'.*text_field.*\(body\)",
        ),
        bad("a.jsonl", b"{}", r"line 1: there is no field 'text'.*none"),
        bad("a.jsonl", b'{"text": 7}', r"line 1: the field 'text' must be a string, not a number"),
        bad("a.jsonl", b'{"text": null}', "not null"),
        bad("a.jsonl", b'["a"]', "line 1: expected an object with the field 'text', found a list"),
        bad("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', "line 2: not UTF-8 text at byte 10 of the line"),
        bad("a.jsonl", b'{"text": "a\\ud800"}', "line 1: the text holds a lone surrogate at character 1"),
        bad("a.jsonl", b"[" * 100_000, "line 1: this is not JSON"),
        bad("a.parquet", b"PAR1 no", r"a\.parquet: this is not a readable \.parquet file"),
        bad("a.parquet", b"", r"a\.parquet: this is not a readable \.parquet file"),
    ],
)
def test_bad_content_is_refused_with_its_location(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / name)
    assert len(str(error.value).splitlines()) == 1


def test_bad_parquet_columns(tmp_path):
    file = parquet(tmp_path / "a.parquet", {"body": ["a", None], "n": [1, 2]})
    with pytest.raises(UserError, match=r"no column 'text'; set data\.text_field to one of .* \(body, n\)"):
        read(file)
    with pytest.raises(UserError, match="row 1: the column 'n' must hold strings, not a number"):
        read(file, "n")
    with pytest.raises(UserError, match="row 2: the column 'body' must hold strings, not null"):
        read(file, "body")


def test_bytes_of_a_parquet_are_text_if_they_are_utf8(tmp_path):
    file = parquet(tmp_path / "a.parquet", {"text": pyarrow.array([b"caf\xc3\xa9", b""], pyarrow.binary())})
    assert read(file) == ["café"]
    file = parquet(tmp_path / "b.parquet", {"text": pyarrow.array([b"ok", b"caf\xe9"], pyarrow.binary())})
    with pytest.raises(UserError, match=r"b\.parquet, row 2: not UTF-8 text at byte 3 of the column 'text'"):
        read(file)


TEXTS = ["ab", "é", "ab"]
BYTES = [text.encode() for text in TEXTS]


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array(TEXTS, pyarrow.string()),
        pyarrow.array(TEXTS, pyarrow.large_string()),
        pyarrow.array(TEXTS, pyarrow.string_view()),
        pyarrow.array(TEXTS).dictionary_encode(),
        pyarrow.array(BYTES, pyarrow.binary()),
        pyarrow.array(BYTES, pyarrow.large_binary()),
        pyarrow.array(BYTES, pyarrow.binary(2)),
    ],
    ids=lambda column: str(column.type)[:12],
)
def test_every_string_type_of_parquet_is_read(tmp_path, column):
    assert read(parquet(tmp_path / "a.parquet", {"text": column})) == TEXTS


@pytest.mark.parametrize(
    ("value", "arrow_type", "type_name"),
    [
        (1_600_000_000, pyarrow.timestamp("s"), "a date or time"),
        (1_600_000_000_000_000_001, pyarrow.timestamp("ns"), "(a date or time|a value of type timestamp)"),
        (10_000, pyarrow.date32(), "a date or time"),
        (10_000, pyarrow.time32("s"), "a date or time"),
        (5, pyarrow.duration("s"), "a duration"),
        (2**62, pyarrow.duration("s"), "a value of type duration"),
        (True, pyarrow.bool_(), "a boolean"),
        (1.5, pyarrow.float64(), "a number"),
        (decimal.Decimal("1.5"), pyarrow.decimal128(5, 2), "a number"),
        (["a"], pyarrow.list_(pyarrow.string()), "a list"),
        ({"a": "b"}, pyarrow.struct({"a": pyarrow.string()}), "an object"),
        (None, pyarrow.null(), "null"),
    ],
)
def test_other_types_of_parquet_are_refused_by_name(tmp_path, value, arrow_type, type_name):
    file = parquet(tmp_path / "a.parquet", {"text": pyarrow.array([value], arrow_type)})
    with pytest.raises(UserError, match=f"row 1: the column 'text' must hold strings, not {type_name}"):
        read(file)


def test_a_column_with_a_dot_in_its_name(tmp_path):
    assert read(parquet(tmp_path / "a.parquet", {"my.text": ["a"], "my": ["b"]}), "my.text") == ["a"]


def test_no_such_files(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt: there is no such file or folder; python-stdlib always works"):
        read(tmp_path / "none.txt")
    with pytest.raises(UserError, match=r"the folder holds no \.txt"):
        read(tmp_path)
    with pytest.raises(UserError, match="among the 0 files that match"):
        read(tmp_path / "*.txt")
