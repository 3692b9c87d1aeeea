"""Text that comes token by token: never half a character, and nothing of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class GrowingText:
    """Bytes in, text out.

    Bytes that are no UTF-8 become U+FFFD. A character that has come in part only waits for the rest, and is left out
    if that never comes.

    Args:
        stop: texts that end it; the first of them, and all behind it, is left out.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop, self._characters = stop, codecs.getincrementaldecoder("utf-8")("replace")
        self._given = 0
        self.whole, self.stopped = "", False

    def add(self, data: bytes) -> None:
        """What a token stands for."""
        before = len(self.whole)
        self.whole += self._characters.decode(data)
        found = [self.whole.find(stop, max(0, before - len(stop) + 1)) for stop in self._stop]
        found = [place for place in found if place >= 0]
        if found:
            self.whole, self.stopped = self.whole[: min(found)], True

    def piece(self, last: bool = False) -> str:
        """What is new and sure: what may be the beginning of a stop text waits, unless this is the last piece."""
        end = len(self.whole) if last or self.stopped else len(self.whole) - self._doubtful()
        piece = self.whole[self._given : end]
        self._given = max(self._given, end)
        return piece

    def _doubtful(self) -> int:
        """Characters at the end with which a stop text begins."""
        lengths = (n for stop in self._stop for n in range(len(stop) - 1, 0, -1) if self.whole.endswith(stop[:n]))
        return max(lengths, default=0)
