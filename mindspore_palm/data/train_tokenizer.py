"""Training of a vocabulary: byte-pair encoding over words with their whitespace, each digit a separate word."""

from __future__ import annotations

import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import sentencepiece

from mindspore_palm.data.bars import bar
from mindspore_palm.errors import UserError

EOD = "[eod]"
SPACE = "\u2581"  # how SentencePiece writes a space inside a piece
RESERVED = "\u2585"  # never in training text, so no text can spell the name of a control token
UNTRAINABLE = re.compile("[\0\u2581\u2585]")  # characters that SentencePiece's trainer reserves
UNIT_CHARACTERS = 1000  # longest unit for the trainer, which bounds text without spaces
COVERAGE = 0.9995  # share of the text's characters that get a token; rarer ones become bytes
FIXED = 3 + 256  # control tokens and bytes
# A unit is a digit of any script, or a word with the whitespace before it. An ASCII digit, which the trainer separates
# itself, keeps its whitespace too: the trainer would drop line ends that nothing follows.
UNIT = re.compile(r"\s*[0-9]|\d|\s*[^\s\d]+|\s+")
LINE_ENDS = "\r\n"
BYTE_NAME = re.compile(r"(?<=<0x[0-9A-F]{2})(?=>)")  # the trainer would treat the name of a byte piece as the byte


def train_model(texts: Iterable[str], vocab_size: int, progress: bool = False) -> bytes:
    """Learns a vocabulary; the same texts give the same bytes.

    It uses byte-pair encoding and not the unigram model: on 4 MB of Python, BPE trains in 2 s instead of 25 s and gives
    longer tokens at this size. A word includes the whitespace before it, so a newline with its indentation can be one
    token, but no token crosses the end of a word. Every digit of any script (category Nd) is a word: SentencePiece's
    own split_digits knows only ASCII and fullwidth digits. U+2581 is always a piece, even if the text has no space.

    Args:
        texts: training text; read once, and kept in memory.
        vocab_size: tokens of the vocabulary: 3 control tokens, 256 bytes, characters and pieces. If the characters of
            the text would take more than half of the rest, only the most frequent ones get a token, and the others are
            encoded as bytes.
        progress: show a progress bar on standard error, if that is a terminal.

    Returns:
        The serialized model.

    Raises:
        UserError: the texts are too small for this vocabulary size, or the size is too small for any vocabulary; the
            message names the size that is possible.
    """
    texts = list(texts)
    counts = _count_characters(texts)
    if not counts:
        raise UserError("there is no text to train a tokenizer on; data.path must hold some")
    room = vocab_size - FIXED
    if room < 2:  # U+2581 and a character
        raise UserError(f"model.vocab_size = {vocab_size} is too small for any text; set it to {FIXED + 2} or more")
    wanted = _alphabet(counts)
    sizes = [len(wanted)] if len(wanted) <= room else [max(1, room // 2), room]  # the second leaves no room for pieces
    for number, size in enumerate(sizes, 1):
        try:
            return _train(texts, set(wanted[:size]), counts, vocab_size, progress)
        except RuntimeError as error:
            if number == len(sizes):
                raise UserError(_explain(str(error), vocab_size)) from None
    raise AssertionError("the last size returns or raises")


def _count_characters(texts: Sequence[str]) -> Counter[str]:
    total = np.zeros(sys.maxunicode + 1, np.int64)
    for text in texts:  # 20 times as fast as Counter
        of_text = np.bincount(np.frombuffer(text.encode("utf-32-le"), "<u4"))
        total[: len(of_text)] += of_text
    counts = Counter({chr(code): int(total[code]) for code in np.flatnonzero(total)})
    for character in ("\0", SPACE, RESERVED):
        counts.pop(character, None)
    for end in LINE_ENDS:
        if end in counts and not any(end in unit.rstrip(LINE_ENDS) for unit in _units(texts, {})):
            del counts[end]  # the trainer drops it
    return counts


def _alphabet(counts: Counter[str]) -> list[str]:
    """Characters worth a token, the most important first: the space, digits, then the most frequent ones."""
    total, seen, frequent = sum(counts.values()), 0, []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if seen >= COVERAGE * total:
            break
        seen += count
        frequent.append(character)
    digits = [c for c, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if c.isdecimal()]
    return [" ", *digits, *(c for c in frequent if c != " " and not c.isdecimal())]


def _train(texts: Sequence[str], alphabet: set[str], counts: Counter[str], vocab_size: int, progress: bool) -> bytes:
    left_out = {ord(character): RESERVED for character in counts if character not in alphabet}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_units(_counted(texts, progress), left_out),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        split_by_whitespace=False,  # the units are already words
        character_coverage=1.0,  # the units contain only the alphabet
        required_chars=SPACE,  # without it, a space in a text would be encoded as U+2581
        max_sentence_length=8 * UNIT_CHARACTERS,  # bytes; longer ones would be skipped silently
        hard_vocab_limit=True,
        num_threads=1,  # the same model on any machine
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece=f"<pad>{RESERVED}",  # so text that contains <unk> is learned like any other
        eos_piece=f"{EOD}{RESERVED}",
        unk_piece=f"<unk>{RESERVED}",
        minloglevel=3,
    )
    return model.getvalue()


def _counted(texts: Sequence[str], progress: bool) -> Iterator[str]:
    """Yields the texts, and shows how much of them the trainer has read: about two thirds of its time."""
    with bar("training the tokenizer", sum(map(len, texts)), progress, "char") as shown:
        for text in texts:
            yield text
            shown.update(len(text))


def _units(texts: Iterable[str], left_out: dict[int, str]) -> Iterator[str]:
    """Units for the trainer: words with the whitespace before them, and digits."""
    for text in texts:
        for clean in UNTRAINABLE.split(text.translate(left_out) if left_out else text):
            for part in BYTE_NAME.split(clean):
                units = UNIT.findall(part)
                if max(map(len, units), default=0) <= UNIT_CHARACTERS:
                    yield from units
                    continue
                for unit in units:
                    for start in range(0, len(unit), UNIT_CHARACTERS):
                        yield unit[start : start + UNIT_CHARACTERS]


def _explain(message: str, vocab_size: int) -> str:
    if most := re.search(r"too high \(\d+\)\. Please set it to a value <= (\d+)", message):
        return (
            f"the text is too small for model.vocab_size = {vocab_size}: the largest possible is {most.group(1)}; "
            "lower it, or bring more text"
        )
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"model.vocab_size = {vocab_size} is too small for the characters of the text; "
            f"set it to {least.group(1)} or more"
        )
    if "sentences_.empty()" in message or "all_chars_count" in message:
        return "there is no text to train a tokenizer on; data.path must hold some"
    return f"SentencePiece could not train a tokenizer: {message.strip()}"
