"""Preparation of a mixture: every source as a text of its own, with one tokenizer for all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mindspore_palm.config import DataConfig
from mindspore_palm.data.bars import counted
from mindspore_palm.data.content import content_of
from mindspore_palm.data.corpus import Document, documents
from mindspore_palm.data.files import PYTHON_STDLIB, CorpusFile, find_files, printable
from mindspore_palm.data.hub import fetch, is_hub_path
from mindspore_palm.data.mixture import Mixture, tokens_by_weight
from mindspore_palm.data.prepare import PREPARED_FORMAT, Pinned, Prepared, prepare
from mindspore_palm.data.split import SPLITS, split
from mindspore_palm.data.survey import sample, survey_corpus
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.errors import Interrupted, UserError
from mindspore_palm.file_names import LOCK, TOKENIZER
from mindspore_palm.files import check_links, locked

SETTING = "data.mixture"
MOST_TOKENS = 2**60  # of an epoch


@dataclass(frozen=True)
class PreparedMixture(Prepared):
    """A mixture that is ready to train on; ``meta`` has the sums over its sources, ``folder`` the tokenizer."""

    train: Mixture
    validation: Mixture
    sources: tuple[Prepared, ...] = ()

    def summary(self) -> str:
        """A line for each source, and three for all, to print at the start of a run."""
        lines = []
        for number, part in enumerate(self.sources):
            count, length = self.train.counts[number], len(part.train)
            passes = count / length
            again = f", {passes:.1f} times" if passes > 1.05 else ""
            share, files = count / len(self.train), part.meta["files"]
            lines.append(
                f"{'mixture' if not number else '':<11} {share:.1%} {part.meta['corpus']}: {files:,} "
                f"{'file' if files == 1 else 'files'}, {length:,} tokens{again} in an epoch"
            )
            if part.meta["left_out"]:
                lines.append(f"{'left out':<11} {part.meta['left_out']}")
        held_out = sum(len(part.validation) for part in self.sources)
        lines.append(f"{'train':<11} {len(self.train):,} tokens in an epoch")
        lines.append(
            f"{'validation':<11} {len(self.validation):,} of the {held_out:,} tokens that are held out, in the same "
            "mixture, none twice"
        )
        return "\n".join([*lines, self._tokenizer_line()])

    def describe(self, tokens: np.ndarray) -> str:
        """Shares of the sources in tokens that were taken, as one phrase; ``tokens`` is int64 [sources]."""
        shares = tokens / max(1, tokens.sum())
        names = (part.meta["corpus"] for part in self.sources)
        return ", ".join(f"{share:.2%} {name}" for share, name in zip(shares, names, strict=True))


def prepare_text(
    data: DataConfig, vocab_size: int, progress: bool = True, pinned: Pinned | None = None
) -> Prepared | PreparedMixture:
    """Prepares the text of ``data.path``, or the mixture of ``data.mixture``; see ``prepare``.

    Raises:
        UserError, Interrupted, OSError: as ``prepare``.
    """
    check_links(Path(data.prepared), "data.prepared")
    if not data.mixture:
        part = prepare(_fetched(data, "data.path"), vocab_size, progress, pinned)
        return named(part, data.path)
    given = [data.model_copy(update={"path": source.path, "mixture": []}) for source in data.mixture]
    single = [_fetched(one, SETTING) for one in given]
    weights = [source.weight for source in data.mixture]
    if pinned is None and not data.tokenizer:
        pinned = Pinned(_tokenizer(data, single, weights, vocab_size, progress))
    parts = []
    for number, one in enumerate(single):
        try:
            parts.append(named(prepare(one, vocab_size, progress, pinned), given[number].path))
        except UserError as error:
            raise UserError(str(error).replace("data.path = ", f"data.mixture, source {number + 1}: ")) from None
    return mixed(parts, weights)


def _fetched(data: DataConfig, setting: str) -> DataConfig:
    """Settings with a dataset of the Hub as a file on disk; unchanged for any other text."""
    if not is_hub_path(data.path):
        return data
    file = fetch(data.path, data.text_field, Path(data.prepared).expanduser(), setting)
    return data.model_copy(update={"path": str(file)})


def named(prepared: Prepared, path: str) -> Prepared:
    """Prepared text under the path that the user gave, for messages."""
    return replace(prepared, meta={**prepared.meta, "corpus": printable(path)})


def mixed(parts: list[Prepared], weights: list[float]) -> PreparedMixture:
    """The mixture of prepared texts.

    Its identity is that of its parts and the tokens that each of them gives: another weight is another text.
    """
    mixtures: dict[str, Mixture] = {}
    meta: dict[str, Any] = {}
    for name in SPLITS:
        sources: list[Any] = [getattr(part, name) for part in parts]
        counts = tokens_by_weight([len(source) for source in sources], weights, repeat=name == "train")
        if sum(counts) > MOST_TOKENS:
            shares = ", ".join(f"{weight:g}" for weight in weights)
            raise UserError(
                f"data.mixture: with weights {shares}, an epoch that holds every source in full repeats the others for "
                f"more than {MOST_TOKENS:.0e} tokens; raise the smallest weight, or leave its source out"
            )
        mixtures[name] = Mixture(sources, counts)
        identity = json.dumps([[part.meta[name]["sha256"] for part in parts], counts])
        meta[name] = {
            "documents": sum(part.meta[name]["documents"] for part in parts),
            "bytes": sum(part.meta[name]["bytes"] for part in parts),
            "tokens": len(mixtures[name]),
            "sha256": hashlib.sha256(identity.encode()).hexdigest(),
        }
    held_out = mixtures["validation"]
    per_token = [part.meta["validation"]["bytes"] / part.meta["validation"]["tokens"] for part in parts]
    size = [count * ratio for count, ratio in zip(held_out.counts, per_token, strict=True)]
    gzip9 = [part.meta["gzip9_bits_per_byte"] for part in parts]
    ratios = [part.meta["bytes_per_token"] for part in parts]
    of_all = {
        "vocab_size": parts[0].meta["vocab_size"],
        "bytes_per_token": sum(a * b for a, b in zip(ratios, mixtures["train"].counts, strict=True))
        / len(mixtures["train"]),
        "gzip9_bits_per_byte": sum(a * b for a, b in zip(gzip9, size, strict=True)) / max(1, sum(size)),
        **({"any_share": True} if any(part.meta.get("any_share") for part in parts) else {}),
    }
    first = parts[0]
    return PreparedMixture(
        first.folder, first.tokenizer, mixtures["train"], held_out, {**meta, **of_all}, sources=tuple(parts)
    )


def _tokenizer(
    data: DataConfig, single: list[DataConfig], weights: list[float], vocab_size: int, progress: bool
) -> bytes:
    """A tokenizer that is trained on a sample of each source, in proportion to the weights; kept under data.prepared.

    Raises:
        UserError: a source cannot be read, or the samples are too small for the vocabulary.
    """
    root = Path(data.prepared).expanduser()
    inputs = {
        "format": PREPARED_FORMAT,
        "stdlib": [one.path == PYTHON_STDLIB for one in single],
        "sources": [content_of(find_files(one.path, SETTING).read, root, progress) for one in single],
        "weights": [weight / sum(weights) for weight in weights],
        "text_field": data.text_field,
        "validation_fraction": data.validation_fraction,
        "train": [vocab_size, data.tokenizer_megabytes],
    }
    key = hashlib.blake2b(json.dumps(inputs).encode(), digest_size=12).hexdigest()
    folder = root / f"mixture-{vocab_size}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / TOKENIZER
    try:
        with locked(folder / LOCK):
            if not file.exists():
                texts = list(_samples(data, single, weights, progress))
                try:
                    Tokenizer.train(texts, vocab_size, file, progress)
                except UserError as error:
                    raise UserError(f"data.mixture: {error}") from None
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted while preparing {folder}; the same command starts that over") from None
    return file.read_bytes()


def _samples(data: DataConfig, single: list[DataConfig], weights: list[float], progress: bool) -> Iterator[str]:
    """Text to train a tokenizer on: of every source's train split, its share of ``data.tokenizer_megabytes``."""
    for one, weight in zip(single, weights, strict=True):
        read = partial(_documents, one, find_files(one.path, SETTING).read, progress)
        survey = survey_corpus(read, one.validation_fraction, f"data.mixture: {printable(one.path)}")
        pieces = split(read("tokenizer"), survey.mode, one.validation_fraction, survey.long)
        most = max(1, int(data.tokenizer_megabytes * 1e6 * weight / sum(weights)))
        yield from sample(pieces, survey.size["train"], most)


def _documents(
    one: DataConfig, files: Sequence[CorpusFile], progress: bool, stage: str = "reading"
) -> Iterator[Document]:
    """The documents of a source, with the bar of a stage over its files."""
    return counted(documents(one.path, one.text_field, SETTING), files, stage, progress)
