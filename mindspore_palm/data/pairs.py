"""Pairs of a prompt and a target from .jsonl: the prompt is given, the target is learned.

The boundary between the two is that of ``data.prompt``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindspore_palm.config import DataConfig, FinetuneConfig
from mindspore_palm.data.corpus import check_encodable, corpus_files, json_lines, read_text_field
from mindspore_palm.data.files import JSON_LINES, find_files, printable
from mindspore_palm.data.prepare import Prepared
from mindspore_palm.data.prompt import encode_pairs
from mindspore_palm.data.split import held_out
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.errors import UserError

NO_TARGET = -1  # the loss ignores it


@dataclass(frozen=True)
class Pair:
    """A prompt and its target as tokens."""

    prompt: np.ndarray
    """int32, up to the boundary; may be empty."""
    target: np.ndarray
    """int32, from the prompt's trailing white space to the final [eod]."""

    @property
    def length(self) -> int:
        """Tokens of the sequence that the network sees, with [eod] before the prompt."""
        return len(self.prompt) + len(self.target)


class Pairs:
    """Pairs as a source of batches, in memory: each pair is one sequence.

    The inputs are [eod], prompt and target. The targets are the next token of each input; inside the prompt and after
    the pair they are -1, which the loss ignores. So the first target token is predicted from the last prompt token, and
    the final [eod] from the last target token.
    """

    repeats = True

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = list(pairs)

    def __len__(self) -> int:
        """Number of tokens to learn, each pair's [eod] included."""
        return sum(len(pair.target) for pair in self.pairs)

    def sequences(self, seq_len: int) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def only(self, indices: Sequence[int] | np.ndarray) -> Pairs:
        """The pairs at ``indices``."""
        return Pairs([self.pairs[index] for index in indices])

    def examples(self, indices: Sequence[int] | np.ndarray, seq_len: int, eod: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the pairs at ``indices``: int32 [n, seq_len] each.

        Raises:
            ValueError: a pair is longer than a sequence.
        """
        inputs = np.full((len(indices), seq_len), eod, np.int32)
        targets = np.full((len(indices), seq_len), NO_TARGET, np.int32)
        for row, index in enumerate(indices):
            pair = self.pairs[index]
            inputs[row, 1 : pair.length] = np.concatenate([pair.prompt, pair.target[:-1]])
            targets[row, len(pair.prompt) : pair.length] = pair.target
        return inputs, targets

    def real_tokens(self, indices: Sequence[int] | np.ndarray, seq_len: int) -> int:
        """Number of tokens to learn in the pairs at ``indices``."""
        return sum(len(self.pairs[index].target) for index in indices)


@dataclass(frozen=True)
class PreparedPairs(Prepared):
    """Pairs that are ready to train on; for each split, ``meta`` has their count (``pairs``) and sha256."""

    train: Pairs
    validation: Pairs

    def summary(self) -> str:
        """Three lines to print at the start of a run."""
        splits = {"train": self.train, "validation": self.validation}
        longest = max(pair.length for split in splits.values() for pair in split.pairs)
        lines = [f"pairs       {printable(self.folder)}, the longest of {longest:,} tokens"]
        for name, split in splits.items():
            count = len(split.pairs)
            lines.append(f"{name:<11} {count:,} {'pair' if count == 1 else 'pairs'}, {len(split):,} tokens to learn")
        if self.meta.get("left_out"):
            lines.append(f"left out    {self.meta['left_out']}")
        return "\n".join(lines)


def read_pairs(data: DataConfig, finetune: FinetuneConfig, tokenizer: Tokenizer) -> PreparedPairs:
    """Reads the pairs of ``data.path`` and splits them by the hash of their prompt.

    If the hash holds out none or most of them, as it may when many pairs share a prompt, the last ones are held out.

    Args:
        data: provides ``path``, ``seq_len`` and ``validation_fraction``.
        finetune: provides the names of the fields.
        tokenizer: the model's tokenizer.

    Raises:
        UserError: a pair cannot be read or is too long; names file and line, and what to change.
    """
    texts = list(_texts(data.path, finetune))
    if len(texts) < 2:
        raise UserError(
            f"data.path = {printable(data.path)}: there must be two pairs or more, one of which is held out"
        )
    eod = np.array([tokenizer.eod], np.int32)
    tokens = encode_pairs(tokenizer, ((prompt, target) for prompt, target, _ in texts))
    pairs = [Pair(prompt, np.concatenate([target, eod])) for prompt, target in tokens]
    _check_lengths(pairs, [where for _, _, where in texts], data.seq_len)
    held = [held_out(prompt, data.validation_fraction) for prompt, _, _ in texts]
    if not 0 < sum(held) <= len(held) * max(0.5, 2 * data.validation_fraction):
        last = len(pairs) - max(1, round(len(pairs) * data.validation_fraction))
        held = [index >= max(1, last) for index in range(len(pairs))]
    splits = {
        name: [index for index, is_held_out in enumerate(held) if is_held_out == (name == "validation")]
        for name in ("train", "validation")
    }
    train, validation = (Pairs([pairs[index] for index in indices]) for indices in splits.values())
    meta: dict[str, Any] = {name: _describe([texts[i] for i in indices]) for name, indices in splits.items()}
    of_corpus = {"gzip9_bits_per_byte": None, "left_out": find_files(data.path).describe_skipped()}
    return PreparedPairs(Path(data.path), tokenizer, train, validation, {**meta, **of_corpus})


def _texts(path: str, finetune: FinetuneConfig) -> Iterator[tuple[str, str, str]]:
    """Prompt, target and location of each pair."""
    for file in corpus_files(path):
        name = printable(file.path)
        if file.format != JSON_LINES:
            raise UserError(
                f"data.path = {printable(path)}: fine-tuning learns from a .jsonl of pairs, such as "
                f'{{"{finetune.prompt_field}": "2 + 2 =", "{finetune.target_field}": " 4"}}, and {name} is not one'
            )
        try:
            for record, where in json_lines(file.path, file.compression):
                prompt = read_text_field(record, finetune.prompt_field, where, "finetune.prompt_field")
                target = read_text_field(record, finetune.target_field, where, "finetune.target_field")
                if not target:
                    raise UserError(
                        f"{where}: the field {finetune.target_field!r} is empty, so there is nothing to learn; "
                        "fill it in or remove the line"
                    )
                for field, text in ((finetune.prompt_field, prompt), (finetune.target_field, target)):
                    check_encodable(text, f"{where}: the field {field!r}")
                yield prompt, target, where
        except OSError as error:
            raise UserError(f"{name}: {error.strerror or error}") from None


def _check_lengths(pairs: Sequence[Pair], locations: Sequence[str], seq_len: int) -> None:
    too_long = [index for index, pair in enumerate(pairs) if pair.length > seq_len]
    if too_long:
        longest = max(pair.length for pair in pairs)
        raise UserError(
            f"{locations[too_long[0]]}: prompt and target take {pairs[too_long[0]].length} tokens with [eod], and "
            f"data.seq_len = {seq_len} ({len(too_long):,} of {len(pairs):,} pairs are too long); "
            f"set data.seq_len to {longest}, which fits all pairs, or shorten them"
        )


def _describe(texts: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for prompt, target, _ in texts:
        for text in (prompt, target):
            content = text.encode()
            digest.update(len(content).to_bytes(8, "little") + content)
    return {"pairs": len(texts), "sha256": digest.hexdigest()}
