"""A step of one token on one CPU (MS-41): the network as one C++ function, which MindSpore calls as an op.

It is built at its first use, in seconds, by g++. Without it, MindSpore's own ops do the same, slower; as they do for
ablations of the block, in other types than float32, on several devices, and on GPU and Ascend.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.errors import UserError
from mindspore_palm.generate.cache import CachedAttention
from mindspore_palm.machine import processors
from mindspore_palm.model.palm import PaLM
from mindspore_palm.native import cache_root, compiler
from mindspore_palm.parallel.axes import current_layout

SOURCE = Path(__file__).with_suffix(".cc")
WEIGHTS = ("norm.scale", "q_wi", "kv", "o_wo")  # of a block, in the order of the function's arguments
FLAGS = ["-O3", "-march=native", "-pthread", "-fno-math-errno"]
# MS-32: MindSpore unloads the library with the last network that calls it, while its threads are in it.
FLAGS += ["-Wl,-z,nodelete"]
SUPPORTED = ("attention", "norm", "norm_epsilon", "norm_scale", "final_norm_scale", "scaled_logits", "xpos_base")
"""Departures from PaLM that the function computes."""
PROCESSORS = "MINDSPORE_PALM_PROCESSORS"  # tells the function how many processors it may use


@functools.cache
def library() -> Path | None:
    """The built function; None where it cannot be built, kept or loaded."""
    os.environ[PROCESSORS] = str(processors())  # read by the function when it is loaded
    command = compiler()
    parts = [platform.machine(), _processor(), " ".join(command), *FLAGS]
    digest = hashlib.sha256("\n".join(parts).encode() + SOURCE.read_bytes()).hexdigest()
    try:
        built = cache_root() / f"decoding-{digest[:12]}.so"
        if not (built.exists() and _loads(built)):
            _build(command, built)
        return built if _loads(built) else None
    except (UserError, OSError, subprocess.SubprocessError):
        return None


def _build(command: Sequence[str], built: Path) -> None:
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as work:
        whole = [*command, *FLAGS, "-shared", "-fPIC", str(SOURCE), "-o", str(Path(work) / built.name)]
        subprocess.run(whole, check=True, capture_output=True)  # noqa: S603 - our own source
        os.replace(Path(work) / built.name, built)  # nobody sees half of it


def _loads(built: Path) -> bool:
    """Whether a file is the library: MindSpore ends with a traceback on one that is not."""
    try:
        return hasattr(ctypes.CDLL(str(built)), "DecodeStep")
    except OSError:
        return False


def wanted(config: PaLMConfig) -> bool:
    """Whether it is for a network that is built for the current layout: PaLM's block, on one CPU, in float32."""
    here = current_layout()
    on_cpu = here.target == "CPU" and ms.get_context("device_target") == "CPU"
    one_in_float32 = here.devices == 1 and here.compute_dtype == "float32"
    return on_cpu and one_in_float32 and not config.departures(SUPPORTED)


def usable(config: PaLMConfig) -> bool:
    """Whether such a network can have it here."""
    return wanted(config) and library() is not None


class CpuStep(nn.Cell):
    """The next token of each of B sequences: to logits float32 [B, vocab_size] and log(Z) [B].

    Args:
        palm: the network.
        caches: of its blocks, in order; the tokens' keys and values are written into them.
        turns: cosines and sines of queries, then of keys, of every position: [C, K/2].
        vocab_size: rows of the table that are tokens; the others are padding.
    """

    def __init__(
        self, palm: PaLM, caches: Sequence[CachedAttention], turns: Sequence[np.ndarray], vocab_size: int
    ) -> None:
        super().__init__(auto_prefix=False)
        config = palm.config
        neutral = 0.0 if config.norm_scale == "around_zero" else 1.0
        final = palm.final_norm.scale if config.final_norm_scale else Tensor(np.full(config.d_model, neutral, "f4"))
        switches = config.norm == "layer_norm", config.norm_epsilon, 1.0 - neutral, palm.logit_scale
        self.constants = (Tensor(np.array(switches, np.float32)), *map(Tensor, turns))
        self.embedding, self.final_scale = palm.embedding, final
        self.blocks = ParameterTuple(
            parameter
            for i, cache in enumerate(caches)
            for parameter in (*(palm.block_weights(i)[name] for name in WEIGHTS), cache.keys, cache.values)
        )
        self.phase = (
            "increment"  # MS-24, MindSpore's name for decoding: a compiled graph is called without a look at its inputs
        )
        sequences = caches[0].keys.shape[0]
        shapes = [sequences, vocab_size], [sequences]
        self.step = ops.Custom(f"{library()}:DecodeStep", shapes, (ms.float32, ms.float32), func_type="aot")

    def construct(self, token_ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """int32 [B, 1] and [B]; always the same B."""
        return self.step(token_ids, positions, *self.constants, self.embedding, self.final_scale, *self.blocks)


def _processor() -> str:
    """What the processor can do, as far as Linux tells: the function is built for this one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))
