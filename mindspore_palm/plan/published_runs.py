"""Published training runs on GPUs, with sizes and times, beside the cost model: Megatron's tables, MT-NLG, H100.

One of them calibrated A100: the row of 529.6 billion parameters of arXiv 2104.04473. None calibrated H100, whose matmul
efficiency is assumed to be that of A100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from statistics import linear_regression

from mindspore_palm.config import PaLMConfig, Settings
from mindspore_palm.cost.workload import Workload
from mindspore_palm.palm_config import Recompute
from mindspore_palm.parallel.axes import Layout
from mindspore_palm.parallel.mesh import Mesh
from mindspore_palm.plan.machines import TERA, Machine, load_machine
from mindspore_palm.plan.published import ADAM, LENGTH, MT_NLG, Prediction
from mindspore_palm.plan.search import Candidate
from mindspore_palm.plan.search_pipelines import search_pipelines
from mindspore_palm.plan.step_time import Overlap, step_time

VOCABULARY = 51200

MEGATRON: dict[str, tuple[int, ...]] = {
    "1.7B": (24, 2304, 24, 1, 1, 32, 512, 137),
    "3.6B": (32, 3072, 30, 2, 1, 64, 512, 138),
    "7.5B": (32, 4096, 36, 4, 1, 128, 512, 142),
    "18.4B": (48, 6144, 40, 8, 1, 256, 1024, 135),
    "39.1B": (64, 8192, 48, 8, 2, 512, 1536, 138),
    "76.1B": (80, 10240, 60, 8, 4, 1024, 1792, 140),
    "145.6B": (96, 12288, 80, 8, 8, 1536, 2304, 148),
    "310.1B": (128, 16384, 96, 8, 16, 1920, 2160, 155),
    "529.6B": (128, 20480, 105, 8, 35, 2520, 2520, 163),
    "1008.0B": (160, 25600, 128, 8, 64, 3072, 3072, 163),
}
"""arXiv 2104.04473, table 1: heads, width, layers, model ranks, stages, devices, sequences, TFLOP/s per device."""
FITTED = "529.6B"

SELECTIVE = {
    "22B": (64, 6144, 48, 8, 1, 1, 4, 4, 1.42, 1.10),
    "175B": (96, 12288, 96, 8, 8, 3, 64, 1, 18.13, 13.75),
    "530B": (128, 20480, 105, 8, 35, 3, 280, 1, 49.05, 37.83),
    "1T": (160, 25600, 128, 8, 64, 1, 512, 1, 94.42, 71.49),
}
"""arXiv 2205.05198, tables 3 and 5: heads, width, layers, model ranks, stages, chunks, sequences, sequences per
micro-batch, seconds with full recomputation, and seconds with sequence parallelism and scores alone recomputed."""

SELECTIVE_MFU = (42.1, 54.2)
"""The same of 530B on 2,240 devices, 8 replicas: MFU in %."""

MT_NLG_SECONDS = {8: 60.1, 10: 50.2, 12: 44.4}
"""arXiv 2201.11990, section 2.4: seconds of 1,920 sequences on 280, 350 and 420 servers, by data ranks."""

STRONG_SCALING = {96: 47.0, 4608: 42.0}
"""README of NVIDIA/Megatron-LM, training speed and scalability: MFU in % of GPT-3 175B by H100 devices."""
H100_BATCH, H100_LENGTH, H100_VOCABULARY = 1152, 4096, 131_072


def gpt(layers: int, width: int, heads: int, vocabulary: int = VOCABULARY) -> PaLMConfig:
    """A network of Megatron: serial blocks, multi-head attention, gelu."""
    return PaLMConfig(
        layers=layers,
        d_model=width,
        heads=heads,
        head_dim=width // heads,
        d_ff=4 * width,
        vocab_size=vocabulary,
        block="serial",
        attention="multi_head",
        mlp="gelu",
    )


def megatron_workload(name: str) -> Workload:
    """A row of Megatron's table: interleaved, one layer per chunk, one sequence per data rank and micro-batch."""
    heads, width, layers, model, stages, devices, batch, _ = MEGATRON[name]
    data = devices // model // stages
    layout = Layout(Mesh(1, data, model), shard_weights="off", recompute="block", compute_dtype="bfloat16")
    micro_batch, chunks = (batch, 1) if stages == 1 else (data, layers // stages)
    config = gpt(layers, width, heads)
    return Workload(config, layout, LENGTH, batch, micro_batch, pipeline=stages, chunks=chunks, optimizer=ADAM)


def megatron_flops(name: str) -> float:
    """FLOPs per step by equation 3 of arXiv 2104.04473, which counts full recomputation."""
    _, width, layers, _, _, _, batch, _ = MEGATRON[name]
    share = 1 + LENGTH / (6 * width) + VOCABULARY / (16 * layers * width)
    return 96 * batch * LENGTH * layers * width**2 * share


def selective_workload(name: str, recompute: Recompute, data: int = 1) -> Workload:
    """A row of arXiv 2205.05198, table 5; without full recomputation, activations are sharded over model."""
    heads, width, layers, model, stages, chunks, batch, micro_batch = map(int, SELECTIVE[name][:8])
    layout = Layout(Mesh(1, data, model), shard_weights="off", recompute=recompute, compute_dtype="bfloat16")
    work = Workload(gpt(layers, width, heads), layout, LENGTH, batch * data, micro_batch * data, optimizer=ADAM)
    return replace(work, pipeline=stages, chunks=chunks, sequence_parallel=recompute != "block")


def mt_nlg_workload(data: int) -> Workload:
    """MT-NLG's step on ``data`` replicas of 8 model ranks and 35 stages; one sequence per micro-batch and replica."""
    layout = Layout(Mesh(1, data, 8), shard_weights="off", recompute="block", compute_dtype="bfloat16")
    return Workload(MT_NLG, layout, LENGTH, 1920, data, pipeline=35, optimizer=ADAM)


@lru_cache(maxsize=1)
def mt_nlg_seconds() -> dict[int, float]:
    """Predicted seconds of MT-NLG's step, by data ranks."""
    return {data: step_time(mt_nlg_workload(data), load_machine("a100")).seconds for data in MT_NLG_SECONDS}


def per_slot(seconds: Mapping[int, float]) -> tuple[float, float]:
    """Seconds per micro-batch of a stage, and per step beside these, that fit MT-NLG's three times best.

    A step takes as long as its micro-batches and the 34 of the bubble, and what it does once: gradients and update.
    """
    slots = [1920 / data + 34 for data in seconds]
    slope, once = linear_regression(slots, list(seconds.values()))
    return slope, once


def h100_machine() -> Machine:
    """H100 as Megatron used it: fused attention keeps scores on chip."""
    return load_machine("h100").model_copy(update={"fused_attention": True})


@lru_cache(maxsize=8)
def strong_scaling(devices: int) -> Candidate:
    """The best mesh of our search for GPT-3 175B on H100, all collectives hidden as far as matmuls last."""
    settings = Settings.model_validate(
        {
            "model": gpt(96, 12288, 96, H100_VOCABULARY).model_dump(),
            "data": {"seq_len": H100_LENGTH},
            "train": {"batch_size": H100_BATCH, "compute_dtype": "bfloat16"},
            "optimizer": {"name": "adamw"},
        }
    )
    hidden = Overlap(data=1.0, model=1.0, sends=True)
    found, _ = search_pipelines(settings, h100_machine(), devices, lambda *_: "", hidden)
    return found[0]


def runs() -> list[Prediction]:
    """All of them but MT-NLG's first, which is with PaLM's table."""
    a100 = load_machine("a100")
    rows = []
    ours: float
    published: float
    for name, (*_, devices, _, published) in MEGATRON.items():
        ours = megatron_flops(name) / step_time(megatron_workload(name), a100).seconds / devices / TERA
        source = "2104.04473, table 1" + (", calibrates A100" if name == FITTED else "")
        rows.append(Prediction(f"Megatron {name}, {devices:,} A100", "TFLOP/s", published, ours, source))
    for data, ours in list(mt_nlg_seconds().items())[1:]:
        name, source = f"MT-NLG 530B, {280 * data:,} A100", "2201.11990, section 2.4"
        rows.append(Prediction(name, "s", MT_NLG_SECONDS[data], ours, source))
    kinds: tuple[tuple[str, Recompute], ...] = (("full recomputation", "block"), ("sequence parallel", "attention"))
    for name, (*sizes, full, selective) in SELECTIVE.items():
        for (words, recompute), published in zip(kinds, (full, selective), strict=True):
            ours = step_time(selective_workload(name, recompute), a100).seconds
            count = f"{sizes[3] * sizes[4]:,} A100"
            rows.append(Prediction(f"Megatron {name}, {count}, {words}", "s", published, ours, "2205.05198, table 5"))
    for (words, recompute), published in zip(kinds, SELECTIVE_MFU, strict=True):
        ours = 100 * step_time(selective_workload("530B", recompute, 8), a100).mfu
        name = f"Megatron 530B, 2,240 A100, {words}"
        rows.append(Prediction(name, "% MFU", published, ours, "2205.05198, abstract"))
    for devices, published in STRONG_SCALING.items():
        ours = 100 * strong_scaling(devices).time.mfu
        name = f"GPT-3 175B, {devices:,} H100, best mesh"
        rows.append(Prediction(name, "% MFU", published, ours, "README of Megatron-LM"))
    return rows


def remarks() -> list[str]:
    """Remarks on the runs: where MT-NLG's time is, and the meshes that the search chose for H100."""
    (slot, once), (ours, ours_once) = per_slot(MT_NLG_SECONDS), per_slot(mt_nlg_seconds())
    lines = [
        f"MT-NLG's three times fit {slot:.3f} s per micro-batch of a stage and {once:.1f} s once per step; ours are "
        f"{ours:.3f} s and {ours_once:.1f} s"
    ]
    for devices in STRONG_SCALING:
        best = strong_scaling(devices)
        parallel, pipeline, micro_batch = best.settings.parallel, best.pipeline, best.settings.train.micro_batch
        lines.append(
            f"{devices:,} H100: {parallel.data} data x {parallel.model} model x {pipeline.stages} stages of "
            f"{pipeline.interleave}, recompute {parallel.recompute}, {micro_batch} sequences per micro-batch"
        )
    return lines
