"""Searches for text that is not preserved: any script, structure, encoding and file format is lossless or refused.

A refusal must be one line that names the location, and it must have a reason: bytes that are not UTF-8, no text, or a
vocabulary size that does not fit, in which case the size that the message names must work. ``TEXTS=2000`` searches
longer.
"""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import random
import re
import shutil
import sys
import tempfile
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindspore_palm.config import DataConfig
from mindspore_palm.data import corpus, prepare
from mindspore_palm.data import tokenizer as tokenizer_module
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.errors import UserError

ALL = int(os.environ.get("TEXTS", "500"))
SAMPLE = 15
BLOCK = 128  # code points; every script has its own blocks
SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "<pad>",
    "[eod]",
    "<0x0A>",
    "<0x41>",
    "\u2581",
    "\u2585",
    "\u2047",
    "\ufffd",
    "\ufeff",
]
SPECIAL += ["\0", "\r\n", "\r", "\t", "\x0b", "\x85", "\u2028", "\xa0", "\u3000", "\u200d", "e\u0301", "ﬁ", "①", "  "]


def _blocks() -> list[str]:
    """Letters, marks, numbers and symbols of each block of code points that has any."""
    blocks = []
    for start in range(0, 0x110000, BLOCK):
        characters = [chr(code) for code in range(start, start + BLOCK) if not 0xD800 <= code < 0xE000]
        if written := "".join(c for c in characters if unicodedata.category(c)[0] in "LMNS"):
            blocks.append(written)
    return blocks


BLOCKS = _blocks()


@dataclass(frozen=True)
class Case:
    """Documents, and how they are stored in files."""

    documents: list[str]
    format: str
    encoding: str
    compression: str
    name: bytes
    fraction: float
    vocabulary: int
    given: bool
    """Whether a tokenizer trained on other text is given."""


@st.composite
def texts(draw: st.DrawFn) -> str:
    """One document: words of one or two scripts in some structure."""
    draw_block = st.sampled_from(BLOCKS)
    alphabet = "".join(draw(st.lists(draw_block, min_size=1, max_size=2)))
    words = draw(
        st.lists(st.text(alphabet, min_size=1, max_size=8) | st.sampled_from(SPECIAL), min_size=1, max_size=12)
    )
    joint = draw(st.sampled_from([" ", "", "\n", ",", "\t", "\r\n", "  ", "\n\n    ", "\u3000"]))
    text = joint.join(words)
    structure = draw(st.sampled_from(["as it is", "repeated", "one character", "whitespace", "empty", "any", "large"]))
    if structure == "repeated":
        text = (text + joint) * draw(st.integers(2, 200))
    elif structure == "one character":
        text = draw(st.sampled_from(alphabet)) * draw(st.integers(1, 3000))
    elif structure == "whitespace":
        text = draw(st.sampled_from([" ", "\n", "\t", "\r\n", "\u3000", " \n"])) * draw(st.integers(1, 400))
    elif structure == "empty":
        text = ""
    elif structure == "any":
        text = draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
    elif structure == "large":
        text = "".join(f"{text}{joint}{number}" for number in range(draw(st.integers(100, 1500))))
    return text


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A corpus of few or many documents."""
    documents = draw(st.lists(texts(), min_size=1, max_size=5))
    if draw(st.booleans()):
        documents = [f"{text}{number}" for number in range(draw(st.integers(1, 60))) for text in documents]
        documents = documents[:100]
    formats = ["folder", ".txt", ".jsonl", ".parquet", ".md", "no extension", "pattern"]
    return Case(
        documents=documents,
        format=draw(st.sampled_from(formats)),
        encoding=draw(st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-16-le", "latin-1", "broken"])),
        compression=draw(st.sampled_from(["", "", "", ".gz", ".bz2", ".xz"])),
        name=draw(st.sampled_from([b"a", b"a b", b"caf\xe9", "漢字".encode(), b"a[1]", b"-x", b"line\nend", b"%s{}"])),
        fraction=draw(st.sampled_from([0.02, 0.1, 0.5])),
        vocabulary=draw(st.sampled_from([262, 270, 300, 400, 1000, 4096])),
        given=draw(st.integers(0, 3)) == 0,
    )


def as_bytes(text: str, encoding: str) -> bytes:
    """The text as a user's program may have encoded it."""
    if encoding == "broken":
        content = text.encode()
        return content[: len(content) // 2] + b"\xc3\x28" + content[len(content) // 2 :]
    return text.encode(encoding, errors="replace")


def in_utf8(content: bytes) -> str | None:
    """Text of a file's bytes; None if they are not UTF-8."""
    try:
        return content.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError:
        return None


def write(case: Case, home: Path) -> tuple[str, list[str | None]]:
    """Writes the corpus; returns data.path and the documents that must round-trip, None for one that is not UTF-8."""
    compress = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[case.compression]
    stem = os.fsdecode(case.name)
    if case.format in ("folder", "pattern"):
        folder = home / stem
        folder.mkdir()
        expected = []
        for number, text in enumerate(case.documents):
            content = as_bytes(text, case.encoding)
            (folder / f"{number:04d} {stem}.txt{case.compression}").write_bytes(compress(content))
            expected.append(in_utf8(content))
        if case.format == "folder":
            (folder / "left out.bin").write_bytes(b"\xff" * 10)
            return str(folder), expected
        (home / "all").symlink_to(folder)
        return str(home / "all" / "0*"), expected
    if case.format == ".parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow, an extra, reads .parquet")
        import pyarrow.parquet as parquet_files

        contents = [as_bytes(text, case.encoding) for text in case.documents]
        as_text = case.encoding == "utf-8"
        column = pyarrow.array(case.documents) if as_text else pyarrow.array(contents, pyarrow.binary())
        file = home / f"{stem}.parquet"
        with open(file, "wb") as stream:
            parquet_files.write_table(pyarrow.table({"text": column}), stream)
        return str(file), case.documents if as_text else [_decoded(content) for content in contents]
    if case.format == ".jsonl":
        content = b"".join(
            as_bytes(json.dumps({"text": text}, ensure_ascii=bool(number % 2)) + "\n", "utf-8")
            for number, text in enumerate(case.documents)
        )
        content = b"\xef\xbb\xbf" + content if case.encoding == "utf-8-sig" else content
        file = home / f"{stem}.jsonl{case.compression}"
        file.write_bytes(compress(content))
        return str(file), list(case.documents)
    file = home / (stem + ("" if case.format == "no extension" else case.format) + case.compression)
    content = as_bytes("".join(case.documents), case.encoding)
    file.write_bytes(compress(content))
    return str(file), [in_utf8(content)]


def _decoded(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def documents_of(prepared, split: str) -> list[str]:
    tokens, ends = getattr(prepared, split).tokens, getattr(prepared, split).document_offsets
    return [prepared.tokenizer.decode(np.asarray(tokens[a:b])) for a, b in itertools.pairwise(ends)]


def round_trips(documents: list[str], train: list[str], validation: list[str]) -> bool:
    """Whether both splits, in order, make up the documents: each is in one split, or a head and a tail in both."""
    positions = {(0, 0)}
    for document in documents:
        positions = {
            (i + a, j + b)
            for i, j in positions
            for a, b in ((1, 0), (0, 1), (1, 1))
            if i + a <= len(train)
            and j + b <= len(validation)
            and (train[i] if a else "") + (validation[j] if b else "") == document
        }
    return (len(train), len(validation)) in positions


def check(case: Case, foreign: Tokenizer, counts: Counter[str]) -> None:
    """Prepares a corpus and checks that it round-trips; counts the outcome."""
    home = Path(tempfile.mkdtemp(prefix="texts"))
    try:
        path, expected = write(case, home)
        data = DataConfig(
            path=path,
            prepared=str(home / "prepared"),
            validation_fraction=case.fraction,
            tokenizer=str(foreign.model_file) if case.given else "",
        )
        size = foreign.vocab_size if case.given else case.vocabulary
        for _ in range(2):
            try:
                prepared = prepare(data, size, progress=False)
                break
            except UserError as error:
                size = refused(str(error), expected, case, home, counts)
                if size is None:
                    return
                assert not list(home.glob("prepared/*/meta.json"))
        else:
            raise AssertionError(f"the size that the message names, {size}, was refused as well: {case}")
        assert None not in expected, "bytes that are not UTF-8 were accepted"
        expected_texts = [text for text in expected if text]
        assert round_trips(expected_texts, documents_of(prepared, "train"), documents_of(prepared, "validation"))
        pieces = [prepared.tokenizer.decode([token]) for token in range(prepared.tokenizer.vocab_size)]
        assert case.given or not any(len(p) > 1 and any(c.isdecimal() for c in p) for p in pieces)
        again = prepare(data, size, progress=False)
        assert again.folder == prepared.folder and again.meta == prepared.meta
        prepared.summary().encode()
        counts["lossless"] += 1
    finally:
        shutil.rmtree(home)


def refused(message: str, expected: list[str | None], case: Case, home: Path, counts: Counter[str]) -> int | None:
    """Checks that a refusal has a reason; returns the vocabulary size that it suggests, if any."""
    assert len(message.splitlines()) == 1 and message.isprintable(), message
    if "not UTF-8 text at byte" in message:
        assert None in expected, message
        assert re.search(rf"^{re.escape(str(home))}/.+: not UTF-8", message), message
        counts["refused, not UTF-8"] += 1
        return None
    assert f"data.path = {home}" in message, message
    suggested = re.search(r"largest possible is (\d+)|set it to (\d+) or more", message)
    if suggested and not case.given:
        return int(suggested.group(1) or suggested.group(2))
    text = "".join(text or "" for text in expected)
    if "there is no text in it" in message:
        assert not text
    elif "there is no text to train a tokenizer on" in message:
        assert not text.strip("\r\n\0\u2581\u2585") or len(text) < 1000, message
    else:
        assert "leave none for" in message and len(text.encode()) < 200, message
    counts["refused, " + ("no text" if "no text" in message else "too little text")] += 1
    return None


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A tokenizer trained on unrelated text."""
    text = "def f(x):\n    return x + 1234 # names and words\n" * 5
    return Tokenizer.train([text], 290, tmp_path_factory.mktemp("foreign") / "tokenizer.model")


@pytest.mark.parametrize(
    "number", [pytest.param(SAMPLE, id="sample"), pytest.param(ALL, id="all", marks=pytest.mark.slow)]
)
def test_any_text_is_prepared_losslessly_or_refused_with_its_location(number, foreign, monkeypatch):
    monkeypatch.setattr(corpus, "PART_BYTES", 1000)  # small texts have many parts and shards, as large ones do
    monkeypatch.setattr(sys.modules["mindspore_palm.data.prepare"], "SHARD_BYTES", 3000)
    monkeypatch.setattr(tokenizer_module, "CHUNK_CHARACTERS", 400)
    counts: Counter[str] = Counter()

    @settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(case=cases())
    def search(case):
        check(case, foreign, counts)

    search()
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    print(f"\n{counts.total()} texts: {outcomes}")
    assert counts["lossless"] > number / 3


SYMBOLS = [
    "<mask>",
    "  ",
    " x",
    "\n",
    "\u2581\u2581",
    "12",
    "é",
    "e\u0301",
    "ab c",
    "\t",
    "a\u2581b",
    "\u2581",
    " ",
    "<0x41",
    "漢",
]
CORPORA = [
    "def permute(index, size):\n    for row in range(index):\n 1234 漢字 é\n\tx  y\r\n" * 3,
    "emma\nolivia\n" * 30,
    "漢字漢" * 20,
]


def foreign_model(draw: random.Random) -> bytes:
    """A lossless SentencePiece model of any type, as another project may have trained it."""
    model = io.BytesIO()
    extra = {"control_symbols": ["<c>", "ctl"]} if draw.random() < 0.3 else {}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(draw.choice(CORPORA).splitlines(keepends=True)),
        model_writer=model,
        vocab_size=340,
        hard_vocab_limit=False,
        model_type=draw.choice(["bpe", "unigram", "char", "word"]),
        user_defined_symbols=draw.sample(SYMBOLS, draw.randint(0, 5)),
        treat_whitespace_as_suffix=draw.random() < 0.5,
        split_by_whitespace=draw.random() < 0.5,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=4,
        **extra,
    )
    return model.getvalue()


@pytest.mark.parametrize(
    "number", [pytest.param(SAMPLE, id="sample"), pytest.param(ALL, id="all", marks=pytest.mark.slow)]
)
def test_any_accepted_foreign_model_is_lossless(number):
    draw, parts = random.Random(20220405), [*"abc xyz 12\n\t\r<>", *SYMBOLS, *SPECIAL]
    for _ in range(number):
        tokenizer = Tokenizer("theirs", foreign_model(draw))
        for _ in range(40):
            text = "".join(draw.choices(parts, k=draw.randint(1, 12)))
            tokens = tokenizer.encode(text)
            assert tokenizer.decode(tokens) == text
            assert tokenizer.piece_bytes[np.array(tokens, int)].sum() == len(text.encode())
    print(f"\n{number} foreign models, 40 texts each: all lossless")
