"""A decoding step on one CPU (MS-41): the whole network as one C++ function, which MindSpore calls as an op.

g++ builds it at first use, in seconds. Without it, MindSpore's own ops compute the same, slower. They also decode
ablations of the block, dtypes other than float32, several devices, and GPU and Ascend.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from mindspore_palm import native
from mindspore_palm.config import PaLMConfig
from mindspore_palm.errors import UserError
from mindspore_palm.generate.cache import CachedAttention
from mindspore_palm.machine import processors
from mindspore_palm.model.palm import PaLM
from mindspore_palm.parallel.axes import current_layout

SOURCE = Path(__file__).with_suffix(".cc")
WEIGHTS = ("norm.scale", "q_wi", "kv", "o_wo")  # of a block, in the order of the function's arguments
FLAGS = ["-O3", "-march=native", "-pthread", "-fno-math-errno"]
# MS-32: MindSpore unloads the library with the last network that calls it, while its threads are in it.
FLAGS += ["-Wl,-z,nodelete"]
SUPPORTED = ("attention", "norm", "norm_epsilon", "norm_scale", "final_norm_scale", "scaled_logits", "xpos_base")
"""Departures from PaLM that the function computes."""
IDLE = -(2**31)  # position of a sequence that has no token in a step; its row of the matmuls is left out
PROCESSORS = "MINDSPORE_PALM_PROCESSORS"  # tells the library how many processors it may use


@functools.cache
def library() -> Path | None:
    """The built library; None where it cannot be built, kept or loaded."""
    os.environ[PROCESSORS] = str(processors())  # read once, at the library's first step
    try:
        return native.load(cpp_part())
    except (UserError, OSError):
        return None


def cpp_part() -> native.CppPart:
    """The C++ part, for this processor and the compiler that CXX names."""
    return native.CppPart(
        name="decoding",
        title="the C++ part that decodes on CPU",
        cache_name="decoding",
        sources=SOURCE.parent,
        settings=(_processor(), " ".join(native.compiler()), *FLAGS),
        compile=_compile,
        load=_load,
        rebuild_damaged=True,
    )


def _compile(command: Sequence[str], work: Path) -> Path:
    built = work / "decoding.so"
    line = [*command, *FLAGS, "-shared", "-fPIC", str(SOURCE), "-o", str(built)]
    done = subprocess.run(line, capture_output=True, encoding="utf-8", errors="replace")  # noqa: S603 - our own source
    if done.returncode != 0:
        raise RuntimeError(done.stderr or f"{command[0]} ended with exit code {done.returncode}")
    return built


def _load(library: Path) -> Path:
    """The library's own path: MindSpore loads it by that, but ends with a traceback if it is not a library."""
    if not hasattr(ctypes.CDLL(str(library)), "DecodeStep"):
        raise OSError(f"{library} has no function DecodeStep")
    return library


def wanted(config: PaLMConfig) -> bool:
    """Whether the C++ step is meant for a network in the current layout: PaLM's block, on one CPU, in float32."""
    here = current_layout()
    on_cpu = here.target == "CPU" and ms.get_context("device_target") == "CPU"
    one_in_float32 = here.devices == 1 and here.compute_dtype == "float32"
    return on_cpu and one_in_float32 and not config.departures(SUPPORTED)


def usable(config: PaLMConfig) -> bool:
    """Whether the network decodes by the C++ step on this machine."""
    return wanted(config) and library() is not None


class CpuStep(nn.Cell):
    """One decoding step: the next token of each of B sequences to logits float32 [B, vocab_size] and log(Z) [B].

    Args:
        palm: the network.
        caches: the caches of its blocks, in order; the step appends the tokens' keys and values.
        rotation: cosines and sines of queries, then of keys, for every position: [C, K/2] each.
        vocab_size: rows of the embedding that are tokens; the others are padding.
    """

    def __init__(
        self, palm: PaLM, caches: Sequence[CachedAttention], rotation: Sequence[np.ndarray], vocab_size: int
    ) -> None:
        super().__init__(auto_prefix=False)
        config = palm.config
        neutral = 0.0 if config.norm_scale == "around_zero" else 1.0
        final = palm.unembed.norm.scale if config.final_norm_scale else Tensor(np.full(config.d_model, neutral, "f4"))
        switches = config.norm == "layer_norm", config.norm_epsilon, 1.0 - neutral, palm.unembed.logit_scale
        self.constants = (Tensor(np.array(switches, np.float32)), *map(Tensor, rotation))
        self.embedding, self.final_scale = palm.embedding, final
        self.blocks = ParameterTuple(
            parameter
            for i, cache in enumerate(caches)
            for parameter in (*(palm.block_weights(i)[name] for name in WEIGHTS), cache.keys, cache.values)
        )
        # MS-24: in this phase, MindSpore's name for decoding, calls of a compiled graph skip the check of its inputs
        self.phase = "increment"
        sequences = caches[0].keys.shape[0]
        shapes = [sequences, vocab_size], [sequences]
        self.step = ops.Custom(f"{library()}:DecodeStep", shapes, (ms.float32, ms.float32), func_type="aot")

    def construct(self, token_ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """int32 [B, 1] and [B]; always the same B. At least one position is not ``IDLE``."""
        return self.step(token_ids, positions, *self.constants, self.embedding, self.final_scale, *self.blocks)


def _processor() -> str:
    """The processor's model and features, for which -march=native builds the library, as far as Linux lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))
