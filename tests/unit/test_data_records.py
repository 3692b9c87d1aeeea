"""No record, column or file is dropped silently, and every message about them is one line that names them."""

from __future__ import annotations

import json
import os

import pytest

from mindspore_palm.config import DataConfig, FinetuneConfig
from mindspore_palm.data import Tokenizer, read_pairs
from mindspore_palm.data.corpus import documents
from mindspore_palm.data.files import find_files, printable
from mindspore_palm.errors import UserError
from mindspore_palm.evaluate.questions import read_questions


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.train(["some words\n" * 20], 262, tmp_path_factory.mktemp("tokenizer") / "it.model")


def refusal(call):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable(), message
    return message


def test_a_duplicate_field_is_refused_where_it_is_read(tmp_path, tokenizer):
    """JSON readers keep the last of two values, and the first would be lost."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n{"text": "two", "text": "three"}\n')
    message = refusal(lambda: list(documents(str(file), "text")))
    assert message == f"{file}, line 2: the field 'text' appears twice; keep one of them"

    file.write_text('{"prompt": "a", "target": "b"}\n{"prompt": "a", "prompt": "c", "target": "b"}\n')
    data = DataConfig(path=str(file), seq_len=32)
    message = refusal(lambda: read_pairs(data, FinetuneConfig(checkpoint="runs/some"), tokenizer))
    assert message == f"{file}, line 2: the field 'prompt' appears twice; keep one of them"

    file.write_text('{"prompt": "a", "answer": "b", "answer": "c"}\n')
    assert (
        refusal(lambda: read_questions(file)) == f"{file}, line 1: the field 'answer' appears twice; keep one of them"
    )


def test_a_duplicate_field_that_is_not_read_does_not_matter(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one", "n": 1, "n": 2, "of": {"text": 1, "text": 2}}\n')
    assert [document.text for document in documents(str(file), "text")] == ["one"]


def test_a_duplicate_column_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow, an extra, reads .parquet")
    parquet_files = pytest.importorskip("pyarrow.parquet", reason="pyarrow, an extra, reads .parquet")
    file = tmp_path / "a.parquet"
    columns = [pyarrow.array(["one"]), pyarrow.array(["other"])]
    parquet_files.write_table(pyarrow.Table.from_arrays(columns, names=["text", "text"]), file)
    message = refusal(lambda: list(documents(str(file), "text")))
    assert message == f"{file}: the column 'text' appears twice; keep one of them"


def test_names_of_fields_and_columns_are_one_line_of_a_message(tmp_path):
    record = {"a\nb": 1, "\x1b[31mred": 2, "\ud800": 3}
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(record) + "\n")
    names = r"a\nb, \x1b[31mred, \ud800"
    assert f"({names})" in refusal(lambda: list(documents(str(file), "text")))
    assert names in refusal(lambda: read_questions(file))
    file.write_text(json.dumps({f"field {n}": n for n in range(1000)}) + "\n")
    assert len(refusal(lambda: read_questions(file))) < 500

    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow, an extra, reads .parquet")
    parquet_files = pytest.importorskip("pyarrow.parquet", reason="pyarrow, an extra, reads .parquet")
    file = tmp_path / "a.parquet"
    parquet_files.write_table(pyarrow.table({"a\nb": ["x"]}), file)
    assert r"(a\nb)" in refusal(lambda: list(documents(str(file), "text")))


def test_a_damaged_parquet_is_refused_in_one_line(tmp_path):
    """pyarrow raises many types of errors, some with several lines."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow, an extra, reads .parquet")
    parquet_files = pytest.importorskip("pyarrow.parquet", reason="pyarrow, an extra, reads .parquet")
    file = tmp_path / "a.parquet"
    parquet_files.write_table(pyarrow.table({"text": [f"some text {n}" for n in range(300)]}), file)
    intact = file.read_bytes()
    refused = 0
    for byte in range(0, len(intact), 7):
        file.write_bytes(intact[:byte] + bytes([intact[byte] ^ 0xFF]) + intact[byte + 1 :])
        try:
            for _ in documents(str(file), "text"):
                pass
        except UserError as error:
            refused += 1
            assert str(error).isprintable(), error
            assert str(error).startswith(str(file))
            reasons = ("not a readable .parquet file", "not UTF-8", "no column")
            assert any(reason in str(error) for reason in reasons), error
    assert refused > 20


def test_half_a_character_is_refused_with_its_line(tmp_path, tokenizer):
    r""" "\ud83d" is the first half of an emoji: not text, but JSON readers accept it."""
    file = tmp_path / "a.jsonl"
    for field in ("prompt", "target"):
        file.write_text(
            json.dumps({"prompt": "a", "target": "b"} | {field: "c \ud83d"}) + '\n{"prompt": "", "target": "x"}'
        )
        data = DataConfig(path=str(file), seq_len=32)
        message = refusal(lambda: read_pairs(data, FinetuneConfig(checkpoint="runs/some"), tokenizer))  # noqa: B023
        assert message.startswith(f"{file}, line 1: the field '{field}' holds a lone surrogate at character 2")
    good = {"prompt": "a", "answer": "b"}
    for bad in ({"prompt": "c \ud83d"}, {"answer": "\ud83d"}, {"answer": ["x", "\ud83d"]}):
        file.write_text(json.dumps(good) + "\n" + json.dumps(good | bad) + "\n")
        message = refusal(lambda: read_questions(file))
        assert message.startswith(f"{file}, line 2: ") and "holds a lone surrogate" in message
    file.write_text(json.dumps({"prompt": "a", "choices": ["x", "y\ud83d"], "answer": 0}))
    assert refusal(lambda: read_questions(file)).startswith(f"{file}, line 1: 'choices' holds a lone surrogate")


def test_hidden_folders_are_listed_with_their_files_and_sizes(tmp_path):
    for name, size in {"a.txt": 10, ".secret/big.txt": 5000, ".secret/b/c.txt": 2000, ".alone": 3}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x" * size)
    message = find_files(str(tmp_path)).describe_skipped()
    assert message == ("3 files, 7.0 kB, not read: .secret (hidden), .alone (hidden)")


def test_a_folder_that_matches_a_pattern_with_an_extension_is_listed(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").mkdir()
    (tmp_path / "b.txt" / "c.txt").write_text("other")
    files = find_files(str(tmp_path / "*.txt"))
    assert [file.path.name for file in files.read] == ["a.txt"]
    assert "b.txt (a folder)" in files.describe_skipped()
    assert len(find_files(str(tmp_path / "**" / "*.txt")).read) == 2  # the pattern matches the file in it, too
    assert not find_files(str(tmp_path / "**" / "*.txt")).describe_skipped()


def test_questions_are_read_compressed_and_their_file_is_one_line_of_a_message(tmp_path):
    import gzip

    file = tmp_path / "a\nb.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"prompt": "a", "answer": "b"}\n'))
    assert [question.prompt for question in read_questions(file)] == ["a"]
    assert r"a\nb.jsonl.gz: there is no question" in _emptied(file)
    file.write_bytes(gzip.compress(b'{"prompt": "a", "answer": "b"}\n')[:-9])
    assert "is not a complete .gz file" in refusal(lambda: read_questions(file))
    assert "No such file" in refusal(lambda: read_questions(tmp_path / "no\none.jsonl"))


def _emptied(file):
    import gzip

    file.write_bytes(gzip.compress(b"\n"))
    return refusal(lambda: read_questions(file))


def test_evaluation_names_a_file_once_and_in_one_line(tmp_path):
    """Also if its name contains a line end or is not UTF-8."""
    from mindspore_palm.evaluate.evaluate import EvaluateOptions, _naming_file, _read_tasks

    file = os.fsdecode(os.fsencode(tmp_path) + b"/a\n\xe9.txt")
    for inner in (f"{printable(file)}: not UTF-8 text at byte 3", "there is no text to score"):
        with pytest.raises(UserError) as caught, _naming_file(file):
            raise UserError(inner)
        assert str(caught.value).isprintable() and str(caught.value).count(r"a\n\xe9.txt") == 1
    assert refusal(lambda: _read_tasks(EvaluateOptions(text=["a.txt"], stop=("\n", "\udcff")))).startswith("--stop '")
