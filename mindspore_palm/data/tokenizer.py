"""Text to tokens and back without loss: SentencePiece with the properties of PaLM's vocabulary (section 2.2).

Whitespace is kept as it is, characters outside the vocabulary become their UTF-8 bytes, every digit is a token of its
own. SentencePiece writes a space as U+2581 and so takes a U+2581 in the text for a space; here such a character always
goes as its three bytes, and nothing is lost.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from mindspore_palm.data.atomic import write_atomically
from mindspore_palm.errors import UserError
from mindspore_palm.machine import processors

EOD = "[eod]"
SPACE = "\u2581"  # how SentencePiece writes a space inside a piece
CHUNK_CHARACTERS = 100_000  # longer text is cut after a line: bounds memory, and threads share one document
UNIT_CHARACTERS = 1000  # longest unit shown to the trainer, for text without spaces
UNTRAINABLE = re.compile("[\0\u2581\u2585]")  # characters that SentencePiece's trainer uses for itself
# What a lossless model must give back unchanged. The last ones fall to Unicode normalisation.
PROBES = ("a", " a", "  a   b  ", "\n\ta\r\n\n  b\n", "7 42", "\0", "ﬁ ① Å e\u0301 \u3000 é", "漢字 😀")


class Tokenizer:
    """A SentencePiece model that is lossless: ``decode(encode(text)) == text`` for any text.

    Attributes:
        model_file: where the model was read from.
        serialized: the model's bytes; written to a file they are the same tokenizer.
        vocab_size: number of tokens.
        eod: the token that ends a document. No text encodes to it, not even a literal "[eod]".
        piece_bytes: int32 [vocab_size], the UTF-8 bytes a token stands for, 0 for control tokens; so
            ``piece_bytes[encode(text)].sum() == len(text.encode())`` for any text.
    """

    def __init__(self, model_file: str | Path) -> None:
        """Reads a model.

        Raises:
            UserError: the file is missing, is no SentencePiece model, has no token for the end of a document, or
                loses something of the text.
        """
        self.model_file = Path(model_file)
        try:
            self.serialized = self.model_file.read_bytes()
        except FileNotFoundError:
            raise UserError(f"there is no tokenizer {model_file}; leave data.tokenizer empty to train one") from None
        except OSError as error:
            raise UserError(f"{model_file}: {error.strerror}") from None
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            if not self.serialized or not self._model.LoadFromSerializedProto(self.serialized):
                raise RuntimeError
        except RuntimeError:
            raise UserError(f"{model_file}: this is not a SentencePiece model") from None
        self.vocab_size: int = self._model.vocab_size()
        self._bytes = [self._bytes_of(token) for token in range(self.vocab_size)]
        self.piece_bytes = np.array([len(piece) for piece in self._bytes], np.int32)
        self.eod = self._find_eod()
        self._check_lossless()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, model_file: str | Path) -> Tokenizer:
        """Learns a vocabulary and writes it; the same texts give the same bytes.

        Byte-pair encoding and not the unigram model: on 4 MB of Python it trains in 2 s instead of 25 s and gives
        longer tokens at this size. It sees words together with the whitespace before them, so that a newline with its
        indentation can be one token, but no token runs over the end of a word.

        Args:
            texts: what to learn from; read once, and kept in memory by SentencePiece.
            vocab_size: tokens of the vocabulary: 3 control tokens, 256 bytes, characters and pieces.
            model_file: where the model goes.

        Raises:
            UserError: the texts are too small for so many tokens, or too few tokens for their characters; the message
                names the size that is possible.
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_training_units(texts),
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
                max_sentence_length=8 * UNIT_CHARACTERS,  # bytes; longer ones would be left out silently
                hard_vocab_limit=True,
                num_threads=1,  # the same model on any machine
                pad_id=0,
                eos_id=1,
                unk_id=2,
                bos_id=-1,
                pad_piece="<pad>",
                eos_piece=EOD,
                minloglevel=3,
            )
        except RuntimeError as error:
            raise UserError(_explain_training(str(error), vocab_size)) from None
        with write_atomically(Path(model_file)) as file:
            file.write(model.getvalue())
        return cls(model_file)

    def encode(self, text: str) -> list[int]:
        """The tokens of ``text``, without [eod].

        Raises:
            UserError: the text holds a lone surrogate, which no UTF-8 text can.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, as ``encode`` gives them, on all cores."""
        chunks: list[str] = []
        owners: list[int] = []  # which text a chunk belongs to
        for owner, text in enumerate(texts):
            _check_encodable(text)
            for chunk in _chunks(text):
                chunks.append(chunk)
                owners.append(owner)
        result: list[list[int]] = [[] for _ in texts]
        threads = max(1, min(processors(), len(chunks)))
        for owner, chunk, tokens in zip(owners, chunks, self._model.encode(chunks, num_threads=threads), strict=True):
            result[owner].extend(self._literal_space if chunk == SPACE else tokens)
        return result

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ``tokens``; control tokens give nothing, bytes that are not UTF-8 give U+FFFD.

        Raises:
            ValueError: a token is outside the vocabulary.
        """
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """As ``decode``, before UTF-8 is read: for text that arrives token by token, where a character may be cut.

        Raises:
            ValueError: a token is outside the vocabulary.
        """
        pieces = []
        for token in tokens:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token {token} is outside the vocabulary of {self.vocab_size}")
            pieces.append(self._bytes[token])
        return b"".join(pieces)

    def _bytes_of(self, token: int) -> bytes:
        piece = self._model.id_to_piece(token)
        if self._model.is_byte(token):
            return bytes([int(piece[1:-1], 16)])  # <0x41>
        if self._model.is_control(token) or self._model.is_unknown(token):
            return b""
        return piece.replace(SPACE, " ").encode()

    def _find_eod(self) -> int:
        for token in (self._model.piece_to_id(EOD), self._model.eos_id()):
            if token >= 0 and self._model.is_control(token):
                return token
        raise UserError(f"{self.model_file}: the tokenizer has no control token {EOD} or </s> that ends a document")

    def _check_lossless(self) -> None:
        fix = (
            "train it with byte_fallback=true, normalization_rule_name=identity, add_dummy_prefix=false and "
            "remove_extra_whitespaces=false, or leave data.tokenizer empty"
        )
        byte_tokens = {self._bytes[t]: t for t in range(self.vocab_size) if self._model.is_byte(t)}
        if len(byte_tokens) < 256:
            raise UserError(f"{self.model_file}: the tokenizer has no byte fallback, so it would lose text; {fix}")
        self._literal_space = [byte_tokens[bytes([byte])] for byte in SPACE.encode()]
        for text in PROBES:
            back = self.decode(self.encode(text))
            if back != text:
                raise UserError(
                    f"{self.model_file}: the tokenizer turns {text!r} into {back!r}, so it loses text; {fix}"
                )


def _training_units(texts: Iterable[str]) -> Iterator[str]:
    """Words with the whitespace before them."""
    for text in texts:
        for clean in UNTRAINABLE.split(text):
            for match in re.finditer(r"\s*\S+|\s+$", clean):
                unit = match.group()
                for start in range(0, len(unit), UNIT_CHARACTERS):
                    yield unit[start : start + UNIT_CHARACTERS]


def _chunks(text: str) -> Iterator[str]:
    """Pieces of ``text`` that are encoded by themselves: the character U+2581 alone, and bounded runs without it."""
    for run in re.split(f"({SPACE})", text):
        start = 0
        while len(run) - start > CHUNK_CHARACTERS:
            line_end = run.rfind("\n", start, start + CHUNK_CHARACTERS) + 1
            end = line_end or start + CHUNK_CHARACTERS
            yield run[start:end]
            start = end
        if run[start:]:
            yield run[start:]


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text holds a lone surrogate ({text[error.start]!r} at character {error.start}), "
            "which no Unicode text does"
        ) from None


def _explain_training(message: str, vocab_size: int) -> str:
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
