"""Tokens that a text with given first bytes may begin with: generation starts at the token boundary of its prompt."""

from __future__ import annotations

import numpy as np

from mindspore_palm.data.tokenizer import Tokenizer


class Openings:
    """Finds the tokens that a text with given first bytes may begin with.

    Args:
        tokenizer: the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pieces: list[bytes] = []
        self._cached: dict[bytes, np.ndarray] = {}

    def __call__(self, given: bytes) -> np.ndarray:
        """int64 [n], sorted: the tokens that begin with ``given``, or that ``given`` begins with.

        There is always one, since a lossless tokenizer has a token for each byte. [eod] is never among them.
        """
        if not self._pieces:
            self._pieces = [self._tokenizer.decode_bytes([token]) for token in range(self._tokenizer.vocab_size)]
        if given not in self._cached:
            fits = (
                token
                for token, piece in enumerate(self._pieces)
                if piece and (piece.startswith(given) or given.startswith(piece))
            )
            self._cached[given] = np.fromiter(fits, np.int64)
        return self._cached[given]
