"""Device types, and the compute dtypes that MindSpore 2.10 has kernels for on each: the one table of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceType:
    """A kind of device, as ``train.device`` names it."""

    name: str
    dtypes: tuple[str, ...]
    """Compute dtypes that a training step has kernels for; the first is what ``auto`` selects."""
    why: str
    """Why ``auto`` selects it."""
    fused_dtypes: tuple[str, ...] = ()
    """Compute dtypes of a fused attention; none for a device without one."""
    fused_head_dims: range = range(0)
    """Sizes of heads that it takes."""

    def fuses_attention(self, dtype: str, head_dim: int) -> bool:
        """Whether attention runs as one primitive, which never stores the scores."""
        return dtype in self.fused_dtypes and head_dim in self.fused_head_dims

    def dtype(self, setting: str) -> str:
        """The compute dtype that a value of ``train.compute_dtype`` selects."""
        return self.dtypes[0] if setting == "auto" else setting


DEVICES = {
    device.name: device
    for device in (
        DeviceType(
            "Ascend",
            ("bfloat16", "float16", "float32"),
            "the range of float32 at half its size",
            fused_dtypes=("bfloat16", "float16"),
            fused_head_dims=range(16, 513, 16),
        ),
        DeviceType("GPU", ("float32", "float16"), "MindSpore's GPU backend has no bfloat16 kernel"),
        DeviceType("CPU", ("float32", "float16"), "MindSpore's CPU backend has no bfloat16 matmul"),
    )
}
"""Fastest first, the order in which ``train.device=auto`` looks for them. MS-31: kernels for bfloat16. Fused attention
takes what MindSpore's page on ``flash_attention_score`` says."""

PLANNED_DTYPE = "bfloat16"
"""Selected by ``auto`` where nothing is computed: plans and dry runs are also for TPUs, and need no kernel."""
