"""From a corpus to tokens on disk, once: whatever stops it, the next call goes on from there to the same bits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mindspore_palm.config import DataConfig
from mindspore_palm.data.atomic import TEMPORARY, locked, write_atomically, write_json
from mindspore_palm.data.batches import Sequences
from mindspore_palm.data.corpus import PYTHON_STDLIB, Document, corpus_files, documents
from mindspore_palm.data.split import SPLITS, Piece, split
from mindspore_palm.data.survey import Survey, sample, survey, survey_from_json
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.data.tokens import Mark, TokenFile, TokenWriter
from mindspore_palm.errors import Interrupted, UserError

FORMAT = 1  # goes up whenever the same corpus would give other bits
SHARD_BYTES = 4 * 2**20  # text that is encoded between two marks; what a kill costs at most
LOCK, MODEL, SURVEY, PROGRESS, META = "lock", "tokenizer.model", "survey.json", "progress.json", "meta.json"


@dataclass(frozen=True)
class Prepared:
    """A corpus that is ready to train on."""

    folder: Path
    """Where it lies."""
    tokenizer: Tokenizer
    """Trained on the train split, or the one that was given."""
    train: Sequences
    """Tokens to learn from."""
    validation: Sequences
    """Tokens held out."""
    meta: dict[str, Any]
    """``meta.json``: corpus, files, split_mode, vocab_size, eod, bytes_per_token, gzip9_bits_per_byte, and for
    ``train`` and ``validation`` each documents, bytes and tokens ([eod] included)."""

    def summary(self) -> str:
        """Four lines for the start of a run."""
        meta = self.meta
        lines = [f"corpus      {meta['corpus']}: {meta['files']:,} {'file' if meta['files'] == 1 else 'files'}"]
        for name in SPLITS:
            part = meta[name]
            documents = f"{part['documents']:,} {'document' if part['documents'] == 1 else 'documents'}"
            lines.append(f"{name:<11} {documents}, {part['bytes'] / 1e6:,.2f} MB, {part['tokens']:,} tokens")
        lines.append(
            f"tokenizer   {meta['vocab_size']:,} tokens, {meta['bytes_per_token']:.2f} bytes a token; "
            f"gzip -9 needs {meta['gzip9_bits_per_byte']:.3f} bits a byte of the validation text"
        )
        return "\n".join(lines)


def prepare(data: DataConfig, vocab_size: int, progress: bool = True) -> Prepared:
    """Prepares a corpus under ``data.prepared``, or opens it where that is already done.

    The folder's name holds a hash of all that decides its content. Stopped at any moment, even by a kill or a full
    disk, it goes on from the last complete stage or shard at the next call, to the same bits. A second process waits.

    Args:
        data: the settings; ``seq_len`` plays no part, sequences are cut when they are read.
        vocab_size: ``model.vocab_size``.
        progress: show bars on standard error, where that is a terminal.

    Raises:
        UserError: of the corpus, the tokenizer or its size, with what to change.
        Interrupted: by Ctrl-C; what is complete stays.
        OSError: with a file name, for a full or unwritable disk.
    """
    given = Tokenizer(Path(data.tokenizer).expanduser()) if data.tokenizer else None
    if given is not None and given.vocab_size != vocab_size:
        raise UserError(
            f"data.tokenizer = {data.tokenizer} has {given.vocab_size} tokens and model.vocab_size = {vocab_size}; "
            f"set model.vocab_size to {given.vocab_size}"
        )
    folder = Path(data.prepared).expanduser() / _key(data, vocab_size, given)
    if not (folder / META).exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(folder / LOCK):
                if not (folder / META).exists():  # else another process did it while this one waited
                    _Preparation(data, vocab_size, given, folder, progress).run()
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted while preparing {folder}; the same command goes on from there") from None
    return _open(folder)


def _open(folder: Path) -> Prepared:
    try:
        meta = json.loads((folder / META).read_bytes())
    except ValueError:
        raise UserError(f"{folder / META}: not readable; delete {folder} and prepare again") from None
    train, validation = (TokenFile(folder / name) for name in SPLITS)
    return Prepared(folder, Tokenizer(folder / MODEL), train, validation, meta)


def _key(data: DataConfig, vocab_size: int, given: Tokenizer | None) -> str:
    """A readable name and the hash of all that decides the content, of the files their names, sizes and times."""
    files = corpus_files(data.path)
    tokenizer = (
        hashlib.blake2b(given.serialized).hexdigest() if given else {"train": [vocab_size, data.tokenizer_megabytes]}
    )
    decides = {
        "format": FORMAT,
        "stdlib": data.path == PYTHON_STDLIB,
        "files": [[file.name, file.size, file.modified] for file in files],
        "text_field": data.text_field,
        "validation_fraction": data.validation_fraction,
        "tokenizer": tokenizer,
    }
    digest = hashlib.blake2b(json.dumps(decides).encode(), digest_size=5).hexdigest()
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(data.path).expanduser().absolute().stem).strip("-")[:40] or "corpus"
    return f"{name}-{vocab_size}-{digest}"


class _Preparation:
    """One process's work on a folder that it has locked. Each stage ends by writing one file, and is skipped if that is
    there: survey.json, tokenizer.model, progress.json (after every shard), and at last meta.json."""

    def __init__(
        self, data: DataConfig, vocab_size: int, given: Tokenizer | None, folder: Path, progress: bool
    ) -> None:
        self.data, self.vocab_size, self.given, self.folder, self.progress = data, vocab_size, given, folder, progress

    def run(self) -> None:
        for left_over in self.folder.rglob(f"*{TEMPORARY}"):
            left_over.unlink()
        found = self._survey()
        tokenizer = self._tokenizer(found)
        marks = self._encode(found, tokenizer)
        self._check_unchanged()
        size, tokens = found.size, {name: marks[name].tokens for name in SPLITS}
        meta = {
            "format": FORMAT,
            "corpus": self.data.path,
            "files": len(corpus_files(self.data.path)),
            "split_mode": found.mode,
            "vocab_size": self.vocab_size,
            "eod": tokenizer.eod,
            "bytes_per_token": sum(size.values()) / sum(tokens.values()),
            "gzip9_bits_per_byte": found.gzip9_bits_per_byte,
            **{
                name: {"documents": marks[name].documents, "bytes": size[name], "tokens": tokens[name]}
                for name in SPLITS
            },
        }
        write_json(self.folder / META, meta)

    def _survey(self) -> Survey:
        file = self.folder / SURVEY
        if not file.exists():
            fraction = self.data.validation_fraction
            result = survey(lambda: self._documents("reading"), fraction, self.data.path)
            write_json(file, dataclasses.asdict(result))
        return survey_from_json(json.loads(file.read_bytes()))

    def _tokenizer(self, found: Survey) -> Tokenizer:
        file = self.folder / MODEL
        if self.given is not None:
            with write_atomically(file) as stream:
                stream.write(self.given.serialized)
        elif not file.exists():
            pieces = split(self._documents("tokenizer"), found.mode, self.data.validation_fraction)
            most = int(self.data.tokenizer_megabytes * 1e6)
            return Tokenizer.train(sample(pieces, found.size["train"], most), self.vocab_size, file)
        return Tokenizer(file)

    def _encode(self, found: Survey, tokenizer: Tokenizer) -> dict[str, Mark]:
        done, writers = self._writers(tokenizer)
        pieces = split(self._documents("encoding"), found.mode, self.data.validation_fraction)
        for shard in _shards(pieces, done):
            for piece, tokens in zip(shard, tokenizer.encode_batch([p.text for p in shard]), strict=True):
                writers[piece.split].add(tokens, piece.ends)
            done += len(shard)
            marks = {name: dataclasses.asdict(writer.flush()) for name, writer in writers.items()}
            write_json(self.folder / PROGRESS, {"pieces": done, **marks})
        for writer in writers.values():
            writer.finish()
        return {name: writer.mark for name, writer in writers.items()}

    def _writers(self, tokenizer: Tokenizer) -> tuple[int, dict[str, TokenWriter]]:
        """Pieces that are already encoded, and the writers that go on behind them."""

        def open_at(marks: dict[str, Mark]) -> dict[str, TokenWriter]:
            return {n: TokenWriter(self.folder / n, self.vocab_size, tokenizer.eod, marks[n]) for n in SPLITS}

        try:
            state = json.loads((self.folder / PROGRESS).read_bytes())
            return state["pieces"], open_at({name: Mark(**state[name]) for name in SPLITS})
        except (FileNotFoundError, ValueError):  # ValueError: somebody cut the files; encode them again
            return 0, open_at({name: Mark() for name in SPLITS})

    def _check_unchanged(self) -> None:
        if self.folder.name != _key(self.data, self.vocab_size, self.given):
            for name in (SURVEY, MODEL, PROGRESS):  # they may be of neither the old text nor the new
                (self.folder / name).unlink(missing_ok=True)
            raise UserError(f"data.path = {self.data.path}: the text changed while it was prepared; start again")

    def _documents(self, stage: str) -> Iterator[Document]:
        total = sum(file.size for file in corpus_files(self.data.path))
        hide = None if self.progress else True  # None: only on a terminal
        # Parquet is packed, so that its bar may run past its end: tqdm then goes on without one.
        with tqdm(total=total, desc=stage, unit="B", unit_scale=True, leave=False, disable=hide) as bar:
            for document in documents(self.data.path, self.data.text_field):
                yield document
                bar.update(document.part_size)


def _shards(pieces: Iterable[Piece], done: int) -> Iterator[list[Piece]]:
    """What comes after the first ``done`` pieces, in lists of about ``SHARD_BYTES``."""
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
