"""Fixtures that several unit tests share."""

import json

import pytest

from mindspore_palm.data.tokenizer import Tokenizer

CODE = '''
def permute(index, size):
    """Where an index goes; 1234 and 567 are numbers."""
    for row in range(index):
        if row % 2 == 0:
            yield row * size

\tclass Tabs:
\t\tpass\r
'''


@pytest.fixture(scope="session")
def code():
    """A page of source with tabs, digits and a carriage return."""
    return CODE


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A tiny tokenizer, trained in milliseconds."""
    return Tokenizer.train([CODE] * 3, 320, tmp_path_factory.mktemp("tokenizer") / "tiny.model")


@pytest.fixture(scope="session")
def write_documents():
    """Writes a .jsonl of ``count`` different documents."""

    def write(file, count=60):
        texts = [f"{CODE}# document {i} says {'x' * (i % 7)} héllo 漢字\n" for i in range(count)]
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        return file

    return write
