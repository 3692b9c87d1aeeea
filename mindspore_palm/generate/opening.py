"""Tokens with which a text of given first bytes may begin: a generation starts at the border of its prompt."""

from __future__ import annotations

import numpy as np

from mindspore_palm.data.tokenizer import Tokenizer


class Openings:
    """Finds these tokens.

    Args:
        tokenizer: whose tokens they are.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._pieces = tokenizer, []
        self._found: dict[bytes, np.ndarray] = {}

    def __call__(self, given: bytes) -> np.ndarray:
        """int64 [n], rising: the tokens that begin with ``given``, or that ``given`` begins with.

        There always are some, since a lossless tokenizer has a token for each byte. [eod] is none of them.
        """
        if not self._pieces:
            self._pieces = [self._tokenizer.decode_bytes([token]) for token in range(self._tokenizer.vocab_size)]
        if given not in self._found:
            fits = (
                token
                for token, piece in enumerate(self._pieces)
                if piece and (piece.startswith(given) or given.startswith(piece))
            )
            self._found[given] = np.fromiter(fits, np.int64)
        return self._found[given]
