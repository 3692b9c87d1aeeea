"""Training runs of Narayanan and others 2021 (arXiv 2104.04473), table 1: what the A100's figure is calibrated on."""

from __future__ import annotations

from mindspore_palm.config import PaLMConfig
from mindspore_palm.cost.workload import Workload
from mindspore_palm.parallel.axes import Layout
from mindspore_palm.parallel.mesh import Mesh

LENGTH, VOCABULARY = 2048, 51200
# heads, width, layers, model ranks, stages, devices, sequences, TFLOP/s a device
TABLE = {
    "1.7B": (24, 2304, 24, 1, 1, 32, 512, 137),
    "3.6B": (32, 3072, 30, 2, 1, 64, 512, 138),
    "7.5B": (32, 4096, 36, 4, 1, 128, 512, 142),
    "18.4B": (48, 6144, 40, 8, 1, 256, 1024, 135),
    "39.1B": (64, 8192, 48, 8, 2, 512, 1536, 138),
    "76.1B": (80, 10240, 60, 8, 4, 1024, 1792, 140),
    "145.6B": (96, 12288, 80, 8, 8, 1536, 2304, 148),
    "310.1B": (128, 16384, 96, 8, 16, 1920, 2160, 155),
    "529.6B": (128, 20480, 105, 8, 35, 2520, 2520, 163),
    "1008B": (160, 25600, 128, 8, 64, 3072, 3072, 163),
}


def workload(name: str) -> Workload:
    """A row as this package's planner takes it; stages take turns layer by layer, a sequence a pass."""
    heads, width, layers, model, stages, devices, batch, _ = TABLE[name]
    config = PaLMConfig(
        layers=layers,
        d_model=width,
        heads=heads,
        head_dim=width // heads,
        d_ff=4 * width,
        vocab_size=VOCABULARY,
        block="serial",
        attention="multi_head",
        mlp="gelu",
    )
    data = devices // model // stages
    layout = Layout(Mesh(1, data, model), shard_weights="off", recompute="block", compute_dtype="bfloat16")
    micro_batch, turns = (batch, 1) if stages == 1 else (data, layers // stages)
    return Workload(config, layout, LENGTH, batch, micro_batch, pipeline=stages, turns=turns)


def flops(name: str) -> float:
    """FLOPs of a step as that paper counts them (its equation 3), everything recomputed."""
    _, width, layers, _, _, _, batch, _ = TABLE[name]
    share = 1 + LENGTH / (6 * width) + VOCABULARY / (16 * layers * width)
    return 96 * batch * LENGTH * layers * width**2 * share
