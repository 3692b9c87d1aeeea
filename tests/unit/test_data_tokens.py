"""Token files: types, documents over parts, and never half a file taken for a whole one."""

import numpy as np
import pytest

from mindspore_palm.data.tokens import TokenFile, write_tokens
from mindspore_palm.errors import UserError

PARTS = [
    (np.array([5, 6, 1, 7]), np.array([3])),  # the second document goes on in the next part
    (np.array([], int), np.array([], int)),
    (np.array([8, 1, 9, 1]), np.array([2, 4])),
]


@pytest.mark.parametrize(("vocab_size", "kind"), [(10, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_what_is_written_is_read(tmp_path, vocab_size, kind):
    top = vocab_size - 1
    write_tokens(tmp_path / "t", [*PARTS, (np.array([top]), np.array([1]))], vocab_size, {"bytes": 77})
    file = TokenFile(tmp_path / "t")
    assert file.tokens.tolist() == [5, 6, 1, 7, 8, 1, 9, 1, top]
    assert file.tokens.dtype == kind
    assert file.documents.tolist() == [0, 3, 6, 8, 9]
    assert file.meta["tokens"] == len(file) == 9
    assert (file.meta["documents"], file.meta["bytes"]) == (4, 77)


def test_sequences_are_whole_and_the_tail_is_left(tmp_path):
    file = write_tokens(tmp_path / "t", PARTS, 10, {})
    assert file.sequences(3) == 2
    assert file.read(np.array([1, 0, 1]), 3).tolist() == [[7, 8, 1], [5, 6, 1], [7, 8, 1]]
    assert file.read(np.array([0]), 3).dtype == np.int32
    with pytest.raises(IndexError):
        file.read(np.array([2]), 3)


def test_no_tokens_at_all(tmp_path):
    file = write_tokens(tmp_path / "t", [], 10, {})
    assert len(file) == 0 and file.sequences(4) == 0 and file.documents.tolist() == [0]


@pytest.mark.parametrize("name", ["tokens.bin", "documents.bin"])
def test_a_cut_file_is_refused(tmp_path, name):
    write_tokens(tmp_path / "t", PARTS, 10, {})
    file = tmp_path / "t" / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{name}: \d+ bytes instead of \d+"):
        TokenFile(tmp_path / "t")


def test_a_missing_file_is_refused(tmp_path):
    write_tokens(tmp_path / "t", PARTS, 10, {})
    (tmp_path / "t" / "tokens.bin").unlink()
    with pytest.raises(UserError, match="tokens.bin"):
        TokenFile(tmp_path / "t")
    (tmp_path / "t" / "meta.json").unlink()
    with pytest.raises(UserError, match="not whole"):
        TokenFile(tmp_path / "t")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"{", b"\xff", b'{"dtype": 3}'])
def test_a_bad_index_is_refused(tmp_path, content):
    write_tokens(tmp_path / "t", PARTS, 10, {})
    (tmp_path / "t" / "meta.json").write_bytes(content)
    with pytest.raises(UserError, match=r"meta\.json"):
        TokenFile(tmp_path / "t")


def test_a_failure_while_writing_leaves_no_index(tmp_path):
    def parts():
        yield PARTS[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_tokens(tmp_path / "t", parts(), 10, {})
    assert list((tmp_path / "t").iterdir()) == []
