"""A Cell that counts how often MindSpore walks through it."""

from __future__ import annotations

from mindspore import nn


class CountsVisits(nn.Cell):
    """Twice its input."""

    visits = 0

    @property
    def compile_phase(self):
        return self._compile_phase

    @compile_phase.setter
    def compile_phase(self, phase):
        self.visits += 1
        nn.Cell.compile_phase.fset(self, phase)

    def construct(self, x):
        return x + x
