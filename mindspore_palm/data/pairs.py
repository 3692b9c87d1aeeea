"""Pairs of a prompt and a target from .jsonl: what is given, and what is learned.

They meet where a prompt and its continuation always meet, see ``data.prompt``.
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

NO_TARGET = -1


@dataclass(frozen=True)
class Pair:
    """A prompt and its target as tokens."""

    prompt: np.ndarray
    """int32, up to the border; may be empty."""
    target: np.ndarray
    """int32, the prompt's last white space before it and [eod] at its end."""

    @property
    def length(self) -> int:
        """Tokens of the sequence that the network sees, [eod] before the prompt included."""
        return len(self.prompt) + len(self.target)


class Pairs:
    """Pairs as batches want them, a sequence each, in memory.

    The inputs are [eod], prompt and target, the targets what follows each of them; those inside the prompt and behind
    the pair are -1, which no loss counts. So the target's first token is learned from the last of the prompt, and its
    [eod] from its last.
    """

    repeats = True

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = list(pairs)

    def __len__(self) -> int:
        """Tokens that are learned, [eod] included."""
        return sum(len(pair.target) for pair in self.pairs)

    def sequences(self, seq_len: int) -> int:
        """How many pairs there are."""
        return len(self.pairs)

    def only(self, numbers: Sequence[int] | np.ndarray) -> Pairs:
        """Some of them, by their numbers."""
        return Pairs([self.pairs[number] for number in numbers])

    def examples(self, indices: Sequence[int] | np.ndarray, seq_len: int, eod: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of pairs by their numbers, int32 [n, seq_len] each.

        Raises:
            ValueError: a pair is longer than a sequence.
        """
        inputs = np.full((len(indices), seq_len), eod, np.int32)
        targets = np.full((len(indices), seq_len), NO_TARGET, np.int32)
        for row, number in enumerate(indices):
            pair = self.pairs[number]
            inputs[row, 1 : pair.length] = np.concatenate([pair.prompt, pair.target[:-1]])
            targets[row, len(pair.prompt) : pair.length] = pair.target
        return inputs, targets

    def real_tokens(self, indices: Sequence[int] | np.ndarray, seq_len: int) -> int:
        """Tokens of the targets of pairs by their numbers."""
        return sum(len(self.pairs[number].target) for number in indices)


@dataclass(frozen=True)
class PreparedPairs(Prepared):
    """Pairs that are ready to train on; ``meta`` has for ``train`` and ``validation`` each pairs and sha256."""

    train: Pairs
    validation: Pairs

    def summary(self) -> str:
        """Three lines for the start of a run."""
        sides = {"train": self.train, "validation": self.validation}
        longest = max(pair.length for side in sides.values() for pair in side.pairs)
        lines = [f"pairs       {printable(self.folder)}, the longest of {longest:,} tokens"]
        for name, side in sides.items():
            count = len(side.pairs)
            lines.append(f"{name:<11} {count:,} {'pair' if count == 1 else 'pairs'}, {len(side):,} tokens to learn")
        if self.meta.get("left_out"):
            lines.append(f"left out    {self.meta['left_out']}")
        return "\n".join(lines)


def read_pairs(data: DataConfig, finetune: FinetuneConfig, tokenizer: Tokenizer) -> PreparedPairs:
    """The pairs of ``data.path``, those for training and those held out by the hash of their prompt.

    Where the hash holds out none or most of them, as it may where many have one prompt, the last ones are held out.

    Args:
        data: ``path``, ``seq_len`` and ``validation_fraction`` are read here.
        finetune: names the fields.
        tokenizer: of the model.

    Raises:
        UserError: names file and line, and what to change.
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
    out = [held_out(prompt, data.validation_fraction) for prompt, _, _ in texts]
    if not 0 < sum(out) <= len(out) * max(0.5, 2 * data.validation_fraction):
        last = len(pairs) - max(1, round(len(pairs) * data.validation_fraction))
        out = [number >= max(1, last) for number in range(len(pairs))]
    sides = {
        name: [number for number, held in enumerate(out) if held == (name == "validation")]
        for name in ("train", "validation")
    }
    train, validation = (Pairs([pairs[number] for number in numbers]) for numbers in sides.values())
    meta: dict[str, Any] = {name: _describe([texts[n] for n in numbers]) for name, numbers in sides.items()}
    of_corpus = {"gzip9_bits_per_byte": None, "left_out": find_files(data.path).describe_skipped()}
    return PreparedPairs(Path(data.path), tokenizer, train, validation, {**meta, **of_corpus})


def _texts(path: str, finetune: FinetuneConfig) -> Iterator[tuple[str, str, str]]:
    """Prompt, target and where they stand."""
    for found in corpus_files(path):
        file = printable(found.path)
        if found.format != JSON_LINES:
            raise UserError(
                f"data.path = {printable(path)}: fine-tuning learns from a .jsonl of pairs, such as "
                f'{{"{finetune.prompt_field}": "2 + 2 =", "{finetune.target_field}": " 4"}}, and {file} is none'
            )
        try:
            for record, where in json_lines(found.path, found.compression):
                prompt = read_text_field(record, finetune.prompt_field, where, "finetune.prompt_field")
                target = read_text_field(record, finetune.target_field, where, "finetune.target_field")
                if not target:
                    raise UserError(
                        f"{where}: the field {finetune.target_field!r} is empty, and it is what is learned; "
                        "write it or take the line out"
                    )
                for field, text in ((finetune.prompt_field, prompt), (finetune.target_field, target)):
                    check_encodable(text, f"{where}: the field {field!r}")
                yield prompt, target, where
        except OSError as error:
            raise UserError(f"{file}: {error.strerror or error}") from None


def _check_lengths(pairs: Sequence[Pair], places: Sequence[str], seq_len: int) -> None:
    too_long = [number for number, pair in enumerate(pairs) if pair.length > seq_len]
    if too_long:
        longest = max(pair.length for pair in pairs)
        raise UserError(
            f"{places[too_long[0]]}: prompt and target take {pairs[too_long[0]].length} tokens with [eod], and "
            f"data.seq_len = {seq_len} ({len(too_long):,} of {len(pairs):,} pairs are too long); "
            f"set data.seq_len to {longest}, which fits all, or shorten them"
        )


def _describe(texts: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for prompt, target, _ in texts:
        for text in (prompt, target):
            content = text.encode()
            digest.update(len(content).to_bytes(8, "little") + content)
    return {"pairs": len(texts), "sha256": digest.hexdigest()}
