"""What a run says before step 0."""

from __future__ import annotations

from mindspore_palm.config import Settings
from mindspore_palm.data import Prepared
from mindspore_palm.parallel.context import Device
from mindspore_palm.train.memory import readable


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
        "numbers": f"{device.dtype}: {device.dtype_reason}",
        "peak": f"{peak / 1e12:.3f} TFLOP/s ({'as set' if train.peak_tflops else 'measured on a matrix product now'})",
        "parameters": f"{model.parameter_count():,} ({kinds})",
        "work": f"{model.flops_per_token(length) / 1e6:,.1f} MFLOPs a token (6N + 12*L*H*Q*T), {sizes} tokens a step",
        "memory": f"about {readable(sum(memory.values()))} ({parts})",
        "optimizer": f"{optimizer.name}, schedule {optimizer.schedule}, highest rate {optimizer.learning_rate:g}",
        "output": train.output,
    }
    text = "\n".join(f"  {name:<11} {line}" for name, line in lines.items())
    data = "\n".join(f"  {line}" for line in prepared.summary().splitlines())
    return f"{text}\n{data}"
