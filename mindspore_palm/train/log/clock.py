"""Time of day that does not follow changes of the system's clock."""

from __future__ import annotations

import time

MIN_JUMP = 10.0  # seconds; smaller corrections of a system clock are routine


class SteadyClock:
    """Starts at the system's time and then advances steadily, whatever happens to the system's clock."""

    def __init__(self) -> None:
        self._start, self._steady_start, self._reported = time.time(), time.monotonic(), 0.0

    def now(self) -> float:
        """Seconds since 1970."""
        return self._start + time.monotonic() - self._steady_start

    def jump(self) -> float:
        """Seconds by which the system's clock was set since the last call; 0 if it was not."""
        ahead = time.time() - self.now()
        jump, self._reported = ahead - self._reported, ahead
        return jump if abs(jump) >= MIN_JUMP else 0.0
