"""What a run says before step 0."""

from __future__ import annotations

from math import prod

from mindspore_palm.config import Settings
from mindspore_palm.cost.memory import readable
from mindspore_palm.data import Prepared
from mindspore_palm.model.lora import adapter_shapes
from mindspore_palm.parallel.axes import Layout, current_layout
from mindspore_palm.parallel.context import Device, parallel_settings


def banner(settings: Settings, device: Device, prepared: Prepared, memory: dict[str, int], peak: float) -> str:
    """Device, numbers, sizes, work and text of a run, a line each."""
    model, train, length = settings.model, settings.train, settings.data.seq_len
    kinds = ", ".join(f"{name} {count:,}" for name, count in model.parameters_by_kind().items())
    ramp = train.batch_ramp()
    sizes = " then ".join(f"{size * length:,}" + (f" from step {start:,}" if start else "") for start, size in ramp)
    parts = ", ".join(f"{name} {readable(size)}" for name, size in memory.items())
    optimizer = settings.optimizer
    lines = {
        "device": f"{device.name}, {device.reason}",
        **_devices(),
        "numbers": numbers(current_layout()),
        "peak": f"{peak / 1e12:.3f} TFLOP/s ({'as set' if train.peak_tflops else 'measured on a matrix product now'})",
        "parameters": f"{model.parameter_count():,} ({kinds})",
        "work": f"{_flops(settings)}, {sizes} tokens a step",
        "memory": f"about {readable(sum(memory.values()))} ({parts})",
        "optimizer": f"{optimizer.name}, schedule {optimizer.schedule}, highest rate {optimizer.learning_rate:g}",
        "output": train.output,
    }
    if settings.finetune.checkpoint:
        lines = {"fine-tunes": _finetuning(settings), **lines}
    text = "\n".join(f"  {name:<11} {line}" for name, line in lines.items())
    data = "\n".join(f"  {line}" for line in prepared.summary().splitlines())
    return f"{text}\n{data}"


def _flops(settings: Settings) -> str:
    """FLOPs of a token, and with what is recomputed where something is."""
    model, length, recompute = settings.model, settings.data.seq_len, settings.parallel.recompute
    text = f"{model.flops_per_token(length) / 1e6:,.1f} MFLOPs a token (6N + 12*L*H*Q*T"
    if recompute != "none":
        text += f"; {model.hardware_flops_per_token(length, recompute) / 1e6:,.1f} with what is recomputed"
    return f"{text})"


def numbers(layout: Layout) -> str:
    """The type of numbers, and why."""
    if layout.compute_dtype == "float32":
        why = ": MindSpore's CPU has no bfloat16 matrix product" if layout.target == "CPU" else ", as set"
        return f"float32: weights, activations and loss{why}"
    return f"{layout.compute_dtype} activations and products in blocks; weights, norms, softmax, logits, loss float32"


def _devices() -> dict[str, str]:
    """Mesh and MindSpore's parallel context, where there are several devices."""
    layout = current_layout()
    if layout.devices == 1:
        return {}
    context = ", ".join(f"{name}={value}" for name, value in parallel_settings(layout).items())
    return {"mesh": f"{layout.mesh}, recompute {layout.recompute}", "context": context}


def _finetuning(settings: Settings) -> str:
    """What is trained of which model, for the start of a run."""
    finetune, all_weights = settings.finetune, settings.model.parameter_count()
    what = "all weights"
    if finetune.lora_rank:
        trained = sum(prod(shape) for shape in adapter_shapes(settings.model, finetune.lora_rank).values())
        what = f"LoRA of rank {finetune.lora_rank}: {trained:,} numbers beside {all_weights:,} that stay"
    return f"{finetune.checkpoint}, {what}, dropout {finetune.dropout:g}"
