"""Token files: dtypes, documents in several parts, marks to resume from, and no incomplete file is ever read."""

import numpy as np
import pytest

from mindspore_palm.data.tokens import Mark, TokenFile, TokenWriter
from mindspore_palm.errors import UserError

EOD = 1


def write(folder, vocab_size=10):
    """Writes three documents in two flushes: [5 6 eod], [7 8 eod] in two parts, and an empty one."""
    writer = TokenWriter(folder, vocab_size, EOD)
    writer.add([5, 6], True)
    writer.add([7], False)
    writer.flush()
    writer.add([8], True)
    writer.add([], True)
    return writer.finish()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(10, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_written_tokens_are_read_back(tmp_path, vocab_size, dtype):
    writer = TokenWriter(tmp_path / "t", vocab_size, EOD)
    writer.add([vocab_size - 1, 3], True)
    writer.finish()
    file = TokenFile(tmp_path / "t")
    assert file.tokens.tolist() == [vocab_size - 1, 3, EOD]
    assert file.tokens.dtype == dtype
    assert (file.vocab_size, file.documents, len(file)) == (vocab_size, 1, 3)


def test_tokens_are_memory_mapped(tmp_path):
    write(tmp_path / "t")
    file = TokenFile(tmp_path / "t")
    assert isinstance(file.tokens, np.memmap) and file.tokens.mode == "r"


def test_documents_over_parts_and_flushes(tmp_path):
    file = write(tmp_path / "t")
    assert file.tokens.tolist() == [5, 6, 1, 7, 8, 1, 1]
    assert file.document_offsets.tolist() == [0, 3, 6, 7]
    assert file.documents == 3


def test_sequences_are_full_and_the_tail_is_dropped(tmp_path):
    file = write(tmp_path / "t")
    assert file.sequences(3) == 2
    assert file.rows(np.array([1, 0, 1]), 3).tolist() == [[7, 8, 1], [5, 6, 1], [7, 8, 1]]
    assert file.rows([0], 3).dtype == np.int32 and type(file.rows([0], 3)) is np.ndarray
    assert file.rows([], 3).shape == (0, 3)
    for index in (2, -1):
        with pytest.raises(IndexError):
            file.rows([index], 3)


def test_no_tokens_at_all(tmp_path):
    file = TokenWriter(tmp_path / "t", 10, EOD).finish()
    assert len(file) == 0 and file.sequences(4) == 0 and file.document_offsets.tolist() == [0]
    assert file.rows([], 4).shape == (0, 4)


def test_a_writer_resumes_from_its_mark_and_truncates_the_rest(tmp_path):
    write(tmp_path / "uninterrupted")
    writer = TokenWriter(tmp_path / "t", 10, EOD)
    writer.add([5, 6], True)
    writer.add([7], False)
    mark = writer.flush()
    assert mark == Mark(4, 1)
    writer.add([9, 9, 9], True)
    writer.flush()  # as by a killed process, after its last mark
    again = TokenWriter(tmp_path / "t", 10, EOD, mark)
    again.add([8], True)
    again.add([], True)
    again.finish()
    for name in ("tokens.bin", "documents.bin", "meta.json"):
        assert (tmp_path / "t" / name).read_bytes() == (tmp_path / "uninterrupted" / name).read_bytes()


def test_a_mark_after_the_end_is_refused(tmp_path):
    write(tmp_path / "t")
    for mark in (Mark(8, 0), Mark(0, 4)):
        with pytest.raises(ValueError, match="less than its mark"):
            TokenWriter(tmp_path / "t", 10, EOD, mark)


def test_a_folder_that_is_being_rewritten_is_not_complete(tmp_path):
    write(tmp_path / "t")
    TokenWriter(tmp_path / "t", 10, EOD).flush()
    with pytest.raises(UserError, match="not complete"):
        TokenFile(tmp_path / "t")


@pytest.mark.parametrize("name", ["tokens.bin", "documents.bin"])
def test_a_truncated_or_missing_file_is_refused(tmp_path, name):
    write(tmp_path / "t")
    file = tmp_path / "t" / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{name}: \d+ bytes instead of \d+"):
        TokenFile(tmp_path / "t")
    file.unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        TokenFile(tmp_path / "t")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"{", b"\xff", b'{"tokens": "3"}'])
def test_a_bad_meta_is_refused(tmp_path, content):
    write(tmp_path / "t")
    (tmp_path / "t" / "meta.json").write_bytes(content)
    with pytest.raises(UserError, match="not complete"):
        TokenFile(tmp_path / "t")
