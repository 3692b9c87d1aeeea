"""Preparation of a corpus, once: text to tokens on disk. An interrupted preparation resumes to the same bits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspore_palm.config import DataConfig
from mindspore_palm.data.bars import counted
from mindspore_palm.data.batches import Sequences
from mindspore_palm.data.content import content_of
from mindspore_palm.data.corpus import Document, documents
from mindspore_palm.data.files import PYTHON_STDLIB, Files, amount, find_files, printable
from mindspore_palm.data.split import SPLITS, Piece, share_is_near, split
from mindspore_palm.data.survey import Digest, Survey, sample, survey_corpus, survey_from_json
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.data.tokens import Mark, TokenFile, TokenWriter
from mindspore_palm.errors import Interrupted, UserError
from mindspore_palm.file_names import LOCK, TEMPORARY, TOKENIZER
from mindspore_palm.files import check_links, locked, write_json

PREPARED_FORMAT = 2  # incremented whenever the same corpus would give other bits
SHARD_BYTES = 4 * 2**20  # text encoded between two marks: the most work that a kill can cost
SURVEY, PROGRESS, META = "survey.json", "progress.json", "meta.json"


@dataclass(frozen=True)
class Pinned:
    """Choices that a resumed run keeps, instead of deriving them from the text again."""

    tokenizer: bytes
    """Serialized tokenizer; the rows of the embedding table are its tokens."""
    any_share: bool = False
    """Whether the run was started by a version that accepted any share of the text that the hash held out."""


@dataclass(frozen=True)
class Prepared:
    """A corpus that is ready to train on."""

    folder: Path
    """Folder of the prepared corpus."""
    tokenizer: Tokenizer
    """Tokenizer trained on the train split, or the given one."""
    train: Sequences
    """Sequences to train on."""
    validation: Sequences
    """Held-out sequences."""
    meta: dict[str, Any]
    """``meta.json``: split_mode, any_share, long_document, validation_fraction, vocab_size, eod, bytes_per_token,
    gzip9_bits_per_byte; for ``train`` and ``validation`` each documents, bytes, tokens ([eod] included) and the sha256
    of the tokens; and, for the present corpus, its path (corpus), number of files, and skipped files (left_out)."""

    def summary(self) -> str:
        """Four lines to print at the start of a run, or a few more if files are skipped or the split is unusual."""
        meta = self.meta
        lines = [f"corpus      {meta['corpus']}: {meta['files']:,} {'file' if meta['files'] == 1 else 'files'}"]
        if meta["left_out"]:
            lines.append(f"left out    {meta['left_out']}")
        for name in SPLITS:
            part = meta[name]
            documents = f"{part['documents']:,} {'document' if part['documents'] == 1 else 'documents'}"
            lines.append(f"{name:<11} {documents}, {part['bytes'] / 1e6:,.2f} MB, {part['tokens']:,} tokens")
        if note := self._split_note():
            lines.append(f"held out    {note}")
        return "\n".join([*lines, self._tokenizer_line()])

    def _tokenizer_line(self) -> str:
        meta = self.meta
        return (
            f"tokenizer   {meta['vocab_size']:,} tokens, {meta['bytes_per_token']:.2f} bytes/token; "
            f"gzip -9 needs {meta['gzip9_bits_per_byte']:.3f} bits/byte of the validation text"
        )

    def _split_note(self) -> str:
        """A phrase about the split; empty if complete documents make up about the share that was asked for."""
        meta = self.meta
        size, fraction = {name: meta[name]["bytes"] for name in SPLITS}, meta["validation_fraction"]
        share = size["validation"] / sum(size.values())
        long = amount(meta["long_document"])
        note = {
            "documents": "",
            "long tails": f"the end of each document of more than {long}, and some of the shorter ones",
            "tails": "the end of each document",
        }[meta["split_mode"]]
        if share_is_near(share, fraction):
            return note
        far = f"{share:.1%} of the text instead of data.validation_fraction = {fraction}: it has too few documents"
        return f"{note}; {far}" if note else far


def prepare(data: DataConfig, vocab_size: int, progress: bool = True, pinned: Pinned | None = None) -> Prepared:
    """Prepares a corpus under ``data.prepared``, or opens it if that is already done.

    The folder's name ends with a hash of everything that determines its content. The bytes of the text count, its
    location and times do not. A preparation can stop at any moment, even by a kill or on a full disk: the next call
    resumes from the last complete stage or shard, to the same bits. A second process waits.

    Args:
        data: the settings. ``seq_len`` has no effect, as tokens are split into sequences when they are read.
        vocab_size: ``model.vocab_size``.
        progress: show progress bars on standard error, if that is a terminal.
        pinned: choices of a run that resumes. Without it and ``data.tokenizer``, a tokenizer is trained on the text.

    Raises:
        UserError: the corpus, the tokenizer or its size is not usable; says what to change.
        Interrupted: Ctrl-C; completed work is kept.
        OSError: the disk is full or cannot be written; with a file name.
    """
    check_links(Path(data.prepared), "data.prepared")
    try:
        given = Tokenizer(Path(data.tokenizer).expanduser()) if data.tokenizer else None
    except UserError as error:
        raise UserError(f"data.tokenizer: {error}; leave data.tokenizer empty to train one on the text") from None
    if given is not None and given.vocab_size != vocab_size:
        raise UserError(
            f"data.tokenizer = {printable(data.tokenizer)} has {given.vocab_size} tokens and model.vocab_size = "
            f"{vocab_size}; set model.vocab_size to {given.vocab_size}"
        )
    files, root = find_files(data.path), Path(data.prepared).expanduser()
    any_share = pinned is not None and pinned.any_share
    work = _Work(data, vocab_size, given, files, any_share, content_of(files.read, root, progress))
    if given is None and pinned is not None:
        finished = work.finished_folder(root)
        if finished is None or (finished / TOKENIZER).read_bytes() != pinned.tokenizer:
            given = Tokenizer(root / "tokenizer of the run", pinned.tokenizer)
            work = dataclasses.replace(work, given=given)
    folder = work.finished_folder(root)
    if folder is None:
        folder = root / f"{work.name}-{work.key}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(folder / LOCK):
                if not (folder / META).exists():  # else another process prepared it while this one waited
                    _Preparation(work, folder, progress).run()
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted while preparing {folder}; the same command resumes from there") from None
    return _open(folder, data, files)


def _open(folder: Path, data: DataConfig, files: Files) -> Prepared:
    try:
        meta = json.loads((folder / META).read_bytes())
        if not isinstance(meta, dict):
            raise ValueError
        train, validation = (TokenFile(folder / name) for name in SPLITS)
        for name, split_tokens in zip(SPLITS, (train, validation), strict=True):
            meta[name]["sha256"] = split_tokens.sha256
        tokenizer = Tokenizer(folder / TOKENIZER)
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / META}: not readable; delete {folder} and prepare again") from None
    except UserError as error:
        advice = "" if "prepare again" in str(error) else f"; delete {folder} and prepare again"
        raise UserError(f"{error}{advice}") from None
    present = {"corpus": printable(data.path), "files": len(files.read), "left_out": files.describe_skipped()}
    return Prepared(folder, tokenizer, train, validation, {**meta, **present})


@dataclass(frozen=True)
class _Work:
    """A corpus to prepare, with everything that determines the result."""

    data: DataConfig
    vocab_size: int
    given: Tokenizer | None
    """The tokenizer to use, or None to train one."""
    files: Files
    any_share: bool
    content: list[list[str]]
    """Result of ``content_of``."""

    @property
    def key(self) -> str:
        """Hash of everything that determines the content of the folder."""
        train = {"train": [self.vocab_size, self.data.tokenizer_megabytes]}
        inputs = {
            "format": PREPARED_FORMAT,
            "stdlib": self.data.path == PYTHON_STDLIB,
            "files": self.content,
            "text_field": self.data.text_field,
            "validation_fraction": self.data.validation_fraction,
            "any_share": self.any_share,
            "tokenizer": hashlib.blake2b(self.given.serialized).hexdigest() if self.given else train,
        }
        return hashlib.blake2b(json.dumps(inputs).encode(), digest_size=12).hexdigest()

    @property
    def name(self) -> str:
        """Readable first part of the folder's name."""
        stem = Path(self.data.path).expanduser().absolute().stem
        return f"{re.sub(r'[^A-Za-z0-9]+', '-', stem).strip('-')[:40] or 'corpus'}-{self.vocab_size}"

    def finished_folder(self, root: Path) -> Path | None:
        """Folder in which this corpus was prepared, maybe when it had another name; None if it was not."""
        named = root / f"{self.name}-{self.key}"
        folders = [named, *sorted(root.glob(f"*-{self.vocab_size}-{self.key}"))]
        return next((folder for folder in folders if (folder / META).exists()), None)


class _Preparation:
    """One process's work on a folder that it has locked.

    Each stage ends by writing a file, and is skipped if that file exists: survey.json, tokenizer.model, progress.json
    (after every shard), and finally meta.json.
    """

    def __init__(self, work: _Work, folder: Path, progress: bool) -> None:
        self.work, self.folder, self.progress = work, folder, progress
        self.data, self.vocab_size, self.given = work.data, work.vocab_size, work.given

    def run(self) -> None:
        for leftover in self.folder.rglob(f"*{TEMPORARY}"):
            leftover.unlink()
        survey = self._survey()
        tokenizer = self._tokenizer(survey)
        marks = self._encode(survey, tokenizer)
        content = content_of(find_files(self.data.path).read, self.folder.parent, self.progress)
        if content != self.work.content:
            self._text_changed()
        size, tokens = survey.size, {name: marks[name].tokens for name in SPLITS}
        meta: dict[str, Any] = {
            "format": PREPARED_FORMAT,
            "split_mode": survey.mode,
            "any_share": self.work.any_share,
            "long_document": survey.long,
            "validation_fraction": self.data.validation_fraction,
            "vocab_size": self.vocab_size,
            "eod": tokenizer.eod,
            "bytes_per_token": sum(size.values()) / sum(tokens.values()),
            "gzip9_bits_per_byte": survey.gzip9_bits_per_byte,
            **{
                name: {"documents": marks[name].documents, "bytes": size[name], "tokens": tokens[name]}
                for name in SPLITS
            },
        }
        write_json(self.folder / META, meta)

    def _survey(self) -> Survey:
        file = self.folder / SURVEY
        try:
            return survey_from_json(json.loads(file.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):  # not written yet, or damaged
            fraction, where = self.data.validation_fraction, f"data.path = {printable(self.data.path)}"
            result = survey_corpus(lambda: self._documents("reading"), fraction, where, self.work.any_share)
            write_json(file, dataclasses.asdict(result))
            return result

    def _tokenizer(self, survey: Survey) -> Tokenizer:
        file = self.folder / TOKENIZER
        if self.given is not None:
            self.given.write(file)
            return Tokenizer(file)
        try:
            return Tokenizer(file)
        except UserError:  # not written yet, or altered
            file.unlink(missing_ok=True)
        digest = Digest()
        pieces = self._split(survey, digest.hashing(self._documents("tokenizer")))
        most = int(self.data.tokenizer_megabytes * 1e6)
        texts = list(sample(pieces, survey.size["train"], most))
        if str(digest) != survey.digest:
            self._text_changed()
        try:
            return Tokenizer.train(texts, self.vocab_size, file, self.progress)
        except UserError as error:
            raise UserError(f"data.path = {printable(self.data.path)}: {error}") from None

    def _encode(self, survey: Survey, tokenizer: Tokenizer) -> dict[str, Mark]:
        done, writers = self._writers(tokenizer)
        digest = Digest()
        pieces = self._split(survey, digest.hashing(self._documents("encoding")))
        with closing(_ahead(_shards(pieces, done))) as shards:
            for shard in shards:
                for piece, tokens in zip(shard, tokenizer.encode_batch([p.text for p in shard]), strict=True):
                    writers[piece.split].add(tokens, piece.ends)
                done += len(shard)
                marks = {name: dataclasses.asdict(writer.flush()) for name, writer in writers.items()}
                write_json(self.folder / PROGRESS, {"pieces": done, "tokenizer": _hash(tokenizer), **marks})
        if str(digest) != survey.digest:
            self._text_changed()
        for writer in writers.values():
            writer.finish()
        return {name: writer.mark for name, writer in writers.items()}

    def _split(self, survey: Survey, read: Iterable[Document]) -> Iterator[Piece]:
        return split(read, survey.mode, self.data.validation_fraction, survey.long)

    def _writers(self, tokenizer: Tokenizer) -> tuple[int, dict[str, TokenWriter]]:
        """Number of pieces already encoded, and writers that resume after them."""

        def open_at(marks: dict[str, Mark]) -> dict[str, TokenWriter]:
            return {n: TokenWriter(self.folder / n, self.vocab_size, tokenizer.eod, marks[n]) for n in SPLITS}

        try:
            state = json.loads((self.folder / PROGRESS).read_bytes())
            if state["tokenizer"] != _hash(tokenizer):
                raise ValueError
            return state["pieces"], open_at({name: Mark(**state[name]) for name in SPLITS})
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # not written yet, or damaged
            return 0, open_at({name: Mark() for name in SPLITS})

    def _text_changed(self) -> None:
        for name in (SURVEY, TOKENIZER, PROGRESS):  # they may belong to neither the old text nor the new one
            (self.folder / name).unlink(missing_ok=True)
        raise UserError(f"data.path = {printable(self.data.path)}: the text changed while it was prepared; start again")

    def _documents(self, stage: str) -> Iterator[Document]:
        return counted(documents(self.data.path, self.data.text_field), self.work.files.read, stage, self.progress)


def _hash(tokenizer: Tokenizer) -> str:
    return hashlib.blake2b(tokenizer.serialized, digest_size=16).hexdigest()


def _ahead(shards: Iterator[list[Piece]]) -> Generator[list[Piece]]:
    """Yields the shards; while the caller works on one, a thread reads the next."""
    with ThreadPoolExecutor(1, "reading") as pool:
        following = pool.submit(next, shards, None)
        while (shard := following.result()) is not None:
            following = pool.submit(next, shards, None)
            yield shard


def _shards(pieces: Iterable[Piece], done: int) -> Iterator[list[Piece]]:
    """Pieces after the first ``done`` ones, in lists of about ``SHARD_BYTES``."""
    shard: list[Piece] = []
    size = 0
    for number, piece in enumerate(pieces):
        if number < done:
            continue
        shard.append(piece)
        size += piece.size
        if size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard
