"""Decoding and prompts on one CPU (MS-41): the network as one C++ function for each, which MindSpore calls as ops.

g++ builds it at first use, in seconds. Without it, MindSpore's own ops compute the same, slower. They also decode
ablations of the block, dtypes other than float32, several devices, and GPU and Ascend.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from mindspore_palm import native
from mindspore_palm.config import PaLMConfig
from mindspore_palm.cpu.library import cpp_part as library_part
from mindspore_palm.cpu.library import load
from mindspore_palm.generate.cache import CachedAttention
from mindspore_palm.model.palm import PaLM
from mindspore_palm.parallel.axes import current_layout

SOURCE = Path(__file__).with_suffix(".cc")
WEIGHTS = ("norm.scale", "q_wi", "kv", "o_wo")  # of a block, in the order of the function's arguments
SUPPORTED = ("attention", "norm", "norm_epsilon", "norm_scale", "final_norm_scale", "scaled_logits", "xpos_base")
"""Departures from PaLM that the function computes."""
IDLE = -(2**31)  # position of a row without a token; it is left out of the matmuls


@functools.cache
def library() -> Path | None:
    """The built library; None where it cannot be built, kept or loaded."""
    return load(cpp_part())


def cpp_part() -> native.CppPart:
    """The C++ part, for this processor and the compiler that CXX names."""
    return library_part("decoding", "the C++ part that decodes on CPU", SOURCE, "DecodeStep")


def wanted(config: PaLMConfig) -> bool:
    """Whether the C++ step is meant for a network in the current layout: PaLM's block, on one CPU, in float32."""
    here = current_layout()
    on_cpu = here.target == "CPU" and ms.get_context("device_target") == "CPU"
    one_in_float32 = here.devices == 1 and here.compute_dtype == "float32"
    return on_cpu and one_in_float32 and not config.departures(SUPPORTED)


def usable(config: PaLMConfig) -> bool:
    """Whether the network decodes by the C++ step on this machine."""
    return wanted(config) and library() is not None


class CpuFunction(nn.Cell):
    """The network as a C++ function: inputs of its own to logits float32 [B, vocab_size] and log(Z) [B].

    Args:
        palm: the network.
        caches: the caches of its blocks, in order; the function appends the tokens' keys and values.
        rotation: cosines and sines of queries, then of keys, for every position: [C, K/2] each.
        vocab_size: rows of the embedding that are tokens; the others are padding.
    """

    NAME: str
    """Of the function in the library."""

    def __init__(
        self, palm: PaLM, caches: Sequence[CachedAttention], rotation: Sequence[np.ndarray], vocab_size: int
    ) -> None:
        super().__init__(auto_prefix=False)
        config = palm.config
        neutral = config.neutral_scale
        final = palm.unembed.norm.scale if config.final_norm_scale else Tensor(np.full(config.d_model, neutral, "f4"))
        switches = config.norm == "layer_norm", config.norm_epsilon, 1.0 - neutral, palm.unembed.logit_scale
        self.constants = (Tensor(np.array(switches, np.float32)), *map(Tensor, rotation))
        self.embedding, self.final_scale = palm.embedding, final
        self.blocks = ParameterTuple(
            parameter
            for i, cache in enumerate(caches)
            for parameter in (*(palm.block_weights(i)[name] for name in WEIGHTS), cache.keys, cache.values)
        )
        sequences = caches[0].keys.shape[0]
        shapes = [sequences, vocab_size], [sequences]
        self.compute = ops.Custom(f"{library()}:{self.NAME}", shapes, (ms.float32, ms.float32), func_type="aot")


class CpuStep(CpuFunction):
    """One decoding step: the next token of each of B sequences."""

    NAME = "DecodeStep"

    def __init__(
        self, palm: PaLM, caches: Sequence[CachedAttention], rotation: Sequence[np.ndarray], vocab_size: int
    ) -> None:
        super().__init__(palm, caches, rotation, vocab_size)
        # MS-24: in this phase, MindSpore's name for decoding, calls of a compiled graph skip the check of its inputs
        self.phase = "increment"

    def construct(self, token_ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """int32 [B, 1] and [B]; always the same B. At least one position is not ``IDLE``."""
        return self.compute(token_ids, positions, *self.constants, self.embedding, self.final_scale, *self.blocks)


class CpuPrompts(CpuFunction):
    """Tokens of prompts into the caches, ``ROWS`` in a call; results are those after the rows that are wanted."""

    NAME = "ReadPrompts"
    ROWS = 256
    """Tokens of a call: with more, weights are read for more of them at a time, and activations leave the caches."""

    def construct(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """int32 [4, ROWS]: tokens, sequences, positions, wanted or not. Rows at position ``IDLE`` are left out.

        The rows of a sequence lie side by side, at consecutive positions.
        """
        return self.compute(rows, *self.constants, self.embedding, self.final_scale, *self.blocks)
