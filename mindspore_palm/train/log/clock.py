"""The time of day, by a clock that nobody sets."""

from __future__ import annotations

import time

LEAST = 10.0  # seconds: less than that, clocks are set right as a matter of course


class Clock:
    """Begins with the system's time and then goes on steadily, whatever becomes of the system's."""

    def __init__(self) -> None:
        self._began, self._steady, self._known = time.time(), time.monotonic(), 0.0

    def now(self) -> float:
        """Seconds since 1970."""
        return self._began + time.monotonic() - self._steady

    def jump(self) -> float:
        """Seconds by which the system's clock was set since the last call; 0 if it was not."""
        ahead = time.time() - self.now()
        jump, self._known = ahead - self._known, ahead
        return jump if abs(jump) >= LEAST else 0.0
