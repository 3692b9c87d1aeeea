"""Text that grows token by token: never half a character, and no part of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class GrowingText:
    """A text that is built from the bytes of one token after another.

    Bytes that are not UTF-8 become U+FFFD. An incomplete character waits for its other bytes, and is dropped if they
    never come.

    Args:
        stop: texts that end it; the first one that occurs, and everything after it, is dropped.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop, self._characters = stop, codecs.getincrementaldecoder("utf-8")("replace")
        self._given = 0
        self.whole, self.stopped = "", False

    def add(self, data: bytes) -> None:
        """Appends the bytes of a token."""
        before = len(self.whole)
        self.whole += self._characters.decode(data)
        positions = [self.whole.find(stop, max(0, before - len(stop) + 1)) for stop in self._stop]
        positions = [position for position in positions if position >= 0]
        if positions:
            self.whole, self.stopped = self.whole[: min(positions)], True

    def piece(self, last: bool = False) -> str:
        """The new text. Characters that may begin a stop text are held back, unless this is the last piece."""
        end = len(self.whole) if last or self.stopped else len(self.whole) - self._held_back()
        piece = self.whole[self._given : end]
        self._given = max(self._given, end)
        return piece

    def _held_back(self) -> int:
        """The number of characters at the end that a stop text begins with."""
        lengths = (n for stop in self._stop for n in range(len(stop) - 1, 0, -1) if self.whole.endswith(stop[:n]))
        return max(lengths, default=0)
