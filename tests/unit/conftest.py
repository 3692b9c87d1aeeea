"""What several of the unit tests share."""

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


def write_documents(file, count=60, first=0):
    """A .jsonl of ``count`` different documents."""
    lines = [
        json.dumps({"text": CODE + f"# document {first + i} says {'x' * (i % 7)} héllo 漢字\n"}) for i in range(count)
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A tiny tokenizer, trained in milliseconds."""
    return Tokenizer.train([CODE] * 3, 320, tmp_path_factory.mktemp("tokenizer") / "tiny.model")
