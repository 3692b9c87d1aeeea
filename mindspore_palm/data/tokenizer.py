"""Lossless tokenizer: SentencePiece with the properties of PaLM's vocabulary (section 2.2), or a byte-level BPE.

Whitespace is preserved, characters outside the vocabulary become their UTF-8 bytes, and every digit is a token of its
own. SentencePiece writes a space as U+2581, so it cannot tell a U+2581 in the text from a space. Here such a character
is always encoded as its three bytes, so nothing is lost. A tokenizer.json of Hugging Face is known by its content, not
by its name; see ``byte_level``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import sentencepiece

from mindspore_palm.data.byte_level import ByteLevelModel, is_tokenizer_json
from mindspore_palm.data.cuts import Cuts
from mindspore_palm.data.files import printable, read_bytes
from mindspore_palm.data.model_proto import BPE, read_properties
from mindspore_palm.data.train_tokenizer import EOD, SPACE, train_model
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import TOKENIZER_JSON
from mindspore_palm.files import write_atomically
from mindspore_palm.machine import processors

CHUNK_CHARACTERS = 100_000  # longer text is split after a line: bounds memory, and threads share a document


class Tokenizer:
    """A lossless SentencePiece model or tokenizer.json: ``decode(encode(text)) == text`` for any text.

    Attributes:
        model_file: path that the model was read from.
        serialized: the model's bytes; a file of them is the same tokenizer.
        vocab_size: number of tokens.
        eod: the token that ends a document. No text encodes to it, not even a literal "[eod]".
        piece_bytes: int32 [vocab_size], the number of UTF-8 bytes that a token stands for, 0 for control tokens; so
            ``piece_bytes[encode(text)].sum() == len(text.encode())`` for any text.
    """

    def __init__(self, model_file: str | Path, serialized: bytes | None = None) -> None:
        """Opens a model.

        Args:
            model_file: path to read from; with ``serialized``, only a name for messages.
            serialized: the model's bytes, if they are in memory already.

        Raises:
            UserError: the file is missing, is of neither kind, has no token for the end of a document, or is not
                lossless; or it is a tokenizer.json, and the library for it is not installed.
        """
        self.model_file, self._name = Path(model_file), printable(model_file)
        self.serialized = self._read() if serialized is None else serialized
        self._byte_level = ByteLevelModel(self.serialized, self._name) if is_tokenizer_json(self.serialized) else None
        if self._byte_level is None:
            self._open_sentencepiece()
        else:
            self._bytes, self.eod = self._byte_level.token_bytes, self._byte_level.eod
        self.vocab_size = len(self._bytes)
        self.piece_bytes = np.array([len(piece) for piece in self._bytes], np.int32)

    def _open_sentencepiece(self) -> None:
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            if not self.serialized or not self._model.LoadFromSerializedProto(self.serialized):
                raise RuntimeError
            self._bytes = [self._bytes_of(token) for token in range(self._model.vocab_size())]
            properties = read_properties(self.serialized)
        except (RuntimeError, ValueError):
            raise UserError(f"{self._name}: this is not a SentencePiece model or a {TOKENIZER_JSON}") from None
        self.eod = self._find_eod()
        self._check_lossless(properties.losses())
        names = [self._model.id_to_piece(token) for token in range(len(self._bytes))]
        self._cuts = Cuts(names) if properties.model_type == BPE else None
        self._space_is_piece = self._cuts is not None and not self._model.is_unknown(self._model.piece_to_id(SPACE))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, model_file: str | Path, progress: bool = False) -> Tokenizer:
        """Learns a vocabulary, checks that it is lossless, and only then writes it. Deterministic.

        Args:
            texts: training text; read once, and kept in memory.
            vocab_size: tokens of the vocabulary: 3 control tokens, 256 bytes, characters and pieces.
            model_file: path to write to.
            progress: show a progress bar on standard error, if that is a terminal.

        Raises:
            UserError: the texts are too small for this vocabulary size, or the size is too small for any vocabulary;
                the message names the size that is possible.
        """
        tokenizer = cls(model_file, train_model(texts, vocab_size, progress))
        tokenizer.write(model_file)
        return tokenizer

    def write(self, model_file: str | Path) -> None:
        """Writes the model to a file, from which it opens as the same tokenizer.

        Raises:
            OSError: the file cannot be written; with its name.
        """
        with write_atomically(Path(model_file)) as file:
            file.write(self.serialized)

    def encode(self, text: str) -> list[int]:
        """Tokens of ``text``, without [eod].

        Raises:
            UserError: the text holds a lone surrogate, which UTF-8 cannot encode.
        """
        tokens: list[int] = self.encode_batch([text])[0].tolist()
        return tokens

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokens of each text, the same as from ``encode``, computed on all cores.

        Returns:
            int32 [tokens] for each text.

        Raises:
            UserError: a text holds a lone surrogate.
        """
        chunks: list[str] = []
        ends: list[int] = []
        for text in texts:
            _check_encodable(text)
            chunks.extend(self._chunks(text))
            ends.append(len(chunks))
        encoded = self._encode_chunks(chunks)
        return [_joined(encoded[start:end]) for start, end in pairwise([0, *ends])]

    def _chunks(self, text: str) -> Iterator[str]:
        """Chunks of ``text`` that are encoded separately; a literal U+2581 is one."""
        if self._byte_level is not None:
            yield from _runs(text)
            return
        for part in re.split(f"({SPACE})", text) if SPACE in text else [text]:
            for run in _runs(part):
                yield from [run] if self._cuts is None else self._cuts.cut(run)

    def _encode_chunks(self, chunks: list[str]) -> list[np.ndarray]:
        if self._byte_level is not None:
            return self._byte_level.encode(chunks)
        threads = max(1, min(processors(), len(chunks)))
        encoded: list[np.ndarray] = self._model.encode(chunks, num_threads=threads, return_type="numpy")
        if not self._space_is_piece:
            encoded = [self._with_spaces(tokens) for tokens in encoded]
        literal = self._literal_space
        return [literal if chunk == SPACE else tokens for chunk, tokens in zip(chunks, encoded, strict=True)]

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of ``tokens``; control tokens decode to nothing, bytes that are not UTF-8 to U+FFFD.

        Raises:
            ValueError: a token is outside the vocabulary.
        """
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """UTF-8 bytes of ``tokens``: for text that is generated token by token, where a character may be incomplete.

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
        """Checks that the model is lossless, by its own properties and not by sample texts."""
        byte_tokens = {piece: token for token, piece in enumerate(self._bytes) if self._model.is_byte(token)}
        if len(byte_tokens) < 256 and "it has no byte fallback" not in losses:
            losses = [*losses, f"it has {len(byte_tokens)} of the 256 byte pieces"]
        if losses:
            raise UserError(
                f"{self._name}: the tokenizer loses text: {'; '.join(losses)}. Train it with byte_fallback=true, "
                "normalization_rule_name=identity, add_dummy_prefix=false and remove_extra_whitespaces=false"
            )
        self._literal_space = np.array([byte_tokens[bytes([byte])] for byte in SPACE.encode()], np.int32)
        self._space = byte_tokens[b" "]

    def _with_spaces(self, tokens: np.ndarray) -> np.ndarray:
        """The tokens, with a space wherever the model encoded one as the three bytes of U+2581.

        A model does that if its vocabulary lacks U+2581, or has only full words. The text given to the model never
        contains U+2581, so these three bytes in a row are always a space.
        """
        starts = tokens[:-2] == self._literal_space[0]
        for offset in (1, 2):
            starts &= tokens[offset : len(tokens) - 2 + offset] == self._literal_space[offset]
        first = np.flatnonzero(starts)
        if not len(first):
            return tokens
        result = tokens.copy()
        result[first] = self._space
        return np.delete(result, [*(first + 1), *(first + 2)])


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """A copy of all parts as one array, int32."""
    return np.concatenate(parts) if parts else np.empty(0, np.int32)


def _runs(text: str) -> Iterator[str]:
    """Runs of ``text`` of bounded length, each ending after a line if it has one."""
    start = 0
    while len(text) - start > CHUNK_CHARACTERS:
        line_end = text.rfind("\n", start, start + CHUNK_CHARACTERS) + 1
        end = line_end or start + CHUNK_CHARACTERS
        yield text[start:end]
        start = end
    if text[start:]:
        yield text[start:]


def _check_encodable(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text holds a lone surrogate ({text[error.start]!r} at character {error.start}), "
            "which is not valid in Unicode text"
        ) from None
