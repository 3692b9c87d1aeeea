"""A Cell that Python calls, with a graph of its own."""

from __future__ import annotations

from mindspore import nn


class TopCell(nn.Cell):
    """A Cell whose calls do not walk through all Cells inside, once it is compiled (MS-23)."""

    @property
    def compile_phase(self) -> str:
        """The compilation to use; MindSpore asks for it."""
        return self._compile_phase

    @compile_phase.setter
    def compile_phase(self, phase: str) -> None:
        # MindSpore sets it in all inner Cells at every call, in milliseconds; they need it only while they are compiled
        if phase not in self.compile_cache:
            nn.Cell.compile_phase.fset(self, phase)
