"""The lines that a run prints before its first step."""

from __future__ import annotations

from math import prod

from mindspore_palm.config import Settings
from mindspore_palm.cost.memory import readable
from mindspore_palm.data import Prepared
from mindspore_palm.devices import DEVICES
from mindspore_palm.file_names import TENSORBOARD
from mindspore_palm.model.lora import adapter_shapes
from mindspore_palm.parallel.axes import Layout, current_layout
from mindspore_palm.parallel.context import Device, parallel_settings


def banner(
    settings: Settings, device: Device, prepared: Prepared, memory: dict[str, int], peak: float, source: str
) -> str:
    """Device, dtype, sizes, work and text of a run, one line each.

    Args:
        settings: of the run.
        device: that it trains on.
        prepared: its text.
        memory: bytes by what they hold.
        peak: FLOP/s of all devices.
        source: of the peak, in words.
    """
    model, train, length = settings.model, settings.train, settings.data.seq_len
    counts = ", ".join(f"{name} {count:,}" for name, count in model.parameters_by_kind().items())
    ramp = train.batch_ramp()
    batches = " then ".join(f"{size * length:,}" + (f" from step {start:,}" if start else "") for start, size in ramp)
    parts = ", ".join(f"{name} {readable(size)}" for name, size in memory.items())
    optimizer = settings.optimizer
    lines = {
        "device": f"{device.name}, {device.reason}",
        **_mesh(),
        "dtype": _dtype(current_layout()),
        "peak": f"{peak / 1e12:.3f} TFLOP/s ({source})",
        "parameters": f"{model.parameter_count():,} ({counts})",
        "work": f"{_flops(settings)}, {batches} tokens/step",
        "memory": f"about {readable(sum(memory.values()))} ({parts})",
        "optimizer": f"{optimizer.name}, schedule {optimizer.schedule}, peak learning rate {optimizer.learning_rate:g}",
        "output": train.output,
        **({"trackers": ", ".join(dict.fromkeys([TENSORBOARD, *train.trackers]))} if train.trackers else {}),
    }
    if settings.finetune.checkpoint:
        lines = {"fine-tunes": _finetuning(settings), **lines}
    text = "\n".join(f"  {name:<11} {line}" for name, line in lines.items())
    data = "\n".join(f"  {line}" for line in prepared.summary().splitlines())
    return f"{text}\n{data}"


def _flops(settings: Settings) -> str:
    """Model FLOPs/token, and hardware FLOPs/token if some activations are recomputed."""
    model, length, recompute = settings.model, settings.data.seq_len, settings.parallel.recompute
    text = f"{model.flops_per_token(length) / 1e6:,.1f} MFLOPs/token (6N + 12*L*H*Q*T"
    if recompute != "none":
        text += f"; {model.hardware_flops_per_token(length, recompute) / 1e6:,.1f} with recomputation"
    return f"{text})"


def _dtype(layout: Layout) -> str:
    """The compute dtype, and why it is used."""
    if layout.compute_dtype == "float32":
        device = DEVICES[layout.target]
        why = f": {device.why}" if device.dtype("auto") == "float32" else ", as set"
        return f"float32: weights, activations and loss{why}"
    return f"{layout.compute_dtype} activations and matmuls in blocks; weights, norms, softmax, logits, loss float32"


def _mesh() -> dict[str, str]:
    """Mesh and MindSpore's parallel context; nothing on one device."""
    layout = current_layout()
    if layout.devices == 1:
        return {}
    runs = " + ".join(map(str, layout.stage_layers))
    pipeline = {"pipeline": f"{runs} layers, schedule {layout.schedule}"} if runs else {}
    context = ", ".join(f"{name}={value}" for name, value in parallel_settings(layout).items())
    return {"mesh": f"{layout.mesh}, recompute {layout.recompute}", **pipeline, "context": context}


def _finetuning(settings: Settings) -> str:
    """Base model, the weights that are trained, and dropout."""
    finetune, parameters = settings.finetune, settings.model.parameter_count()
    trained = "all weights"
    if finetune.lora_rank:
        added = sum(prod(shape) for shape in adapter_shapes(settings.model, finetune.lora_rank).values())
        trained = f"LoRA of rank {finetune.lora_rank}: {added:,} trained parameters beside {parameters:,} frozen ones"
    return f"{finetune.checkpoint}, {trained}, dropout {finetune.dropout:g}"
