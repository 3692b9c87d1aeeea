"""Text to tokens and back without loss: SentencePiece with the properties of PaLM's vocabulary (section 2.2).

Whitespace is kept as it is, characters outside the vocabulary become their UTF-8 bytes, every digit is a token of its
own. SentencePiece writes a space as U+2581 and so takes a U+2581 in the text for a space; here such a character always
goes as its three bytes, and nothing is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from mindspore_palm.data.files import printable, read_bytes
from mindspore_palm.data.model_proto import read_properties
from mindspore_palm.data.train_tokenizer import EOD, SPACE, train_model
from mindspore_palm.errors import UserError
from mindspore_palm.files import write_atomically
from mindspore_palm.machine import processors

CHUNK_CHARACTERS = 100_000  # longer text is cut after a line: bounds memory, and threads share one document


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

    def __init__(self, model_file: str | Path, serialized: bytes | None = None) -> None:
        """Opens a model.

        Args:
            model_file: where it is read from; with ``serialized``, only a name for messages.
            serialized: the model itself, where it is at hand.

        Raises:
            UserError: the file is missing, is no SentencePiece model, has no token for the end of a document, or
                loses something of the text.
        """
        self.model_file, self._name = Path(model_file), printable(model_file)
        self.serialized = self._read() if serialized is None else serialized
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            if not self.serialized or not self._model.LoadFromSerializedProto(self.serialized):
                raise RuntimeError
            self.vocab_size: int = self._model.vocab_size()
            self._bytes = [self._bytes_of(token) for token in range(self.vocab_size)]
            properties = read_properties(self.serialized)
        except (RuntimeError, ValueError):
            raise UserError(f"{self._name}: this is not a SentencePiece model") from None
        self.piece_bytes = np.array([len(piece) for piece in self._bytes], np.int32)
        self.eod = self._find_eod()
        self._check_lossless(properties.losses())

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, model_file: str | Path) -> Tokenizer:
        """Learns a vocabulary, sees that it loses nothing, and only then writes it; the same texts give the same bytes.

        Args:
            texts: what to learn from; read once, and kept in memory.
            vocab_size: tokens of the vocabulary: 3 control tokens, 256 bytes, characters and pieces.
            model_file: where the model goes.

        Raises:
            UserError: the texts are too small for so many tokens, or too few tokens for a vocabulary; the message
                names the size that is possible.
        """
        tokenizer = cls(model_file, train_model(texts, vocab_size))
        tokenizer.write(model_file)
        return tokenizer

    def write(self, model_file: str | Path) -> None:
        """Writes the model; read from there, it is the same tokenizer.

        Raises:
            OSError: with the name of the file.
        """
        with write_atomically(Path(model_file)) as file:
            file.write(self.serialized)

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
            result[owner].extend(self._literal_space if chunk == SPACE else self._with_spaces(tokens))
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

    def _read(self) -> bytes:
        try:
            return read_bytes(self.model_file)
        except FileNotFoundError:
            raise UserError(f"there is no tokenizer {self._name}") from None
        except OSError as error:
            raise UserError(f"{self._name}: {error.strerror}") from None

    def _find_eod(self) -> int:
        for token in (self._model.piece_to_id(EOD), self._model.eos_id()):
            if token >= 0 and self._model.is_control(token):
                return token
        raise UserError(f"{self._name}: the tokenizer has no control token {EOD} or </s> that ends a document")

    def _check_lossless(self, losses: list[str]) -> None:
        """Sees that nothing in the model loses text: not by samples of text, but by what the model itself says."""
        byte_tokens = {self._bytes[t]: t for t in range(self.vocab_size) if self._model.is_byte(t)}
        if len(byte_tokens) < 256 and "it has no byte fallback" not in losses:
            losses = [*losses, f"it has {len(byte_tokens)} of the 256 byte pieces"]
        if losses:
            raise UserError(
                f"{self._name}: the tokenizer loses text: {'; '.join(losses)}. Train it with byte_fallback=true, "
                "normalization_rule_name=identity, add_dummy_prefix=false and remove_extra_whitespaces=false"
            )
        self._literal_space = [byte_tokens[bytes([byte])] for byte in SPACE.encode()]
        self._space = byte_tokens[b" "]

    def _with_spaces(self, tokens: list[int]) -> list[int]:
        """The tokens, with a space where the model has written one as the bytes of U+2581.

        It does so if its vocabulary lacks U+2581, or knows whole words alone. No text that reaches the model holds
        U+2581, so each time these three bytes come in a row they are a space.
        """
        if self._literal_space[0] not in tokens:
            return tokens
        result: list[int] = []
        for token in tokens:
            result.append(token)
            if result[-3:] == self._literal_space:
                result[-3:] = [self._space]
        return result


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
