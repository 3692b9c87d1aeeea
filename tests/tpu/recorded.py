"""Cases whose memory is planned and compiled, and what XLA took of a TPU v4 chip for each.

``python tests/tpu/table.py --plan`` compiles them all and prints both, with the bytes to record here.
"""

from __future__ import annotations

from mindspore_palm.config import Settings
from mindspore_palm.cost.memory import memory_by_kind
from mindspore_palm.parallel.check import layout_of

ONE_PASS = "train.micro_batch=0"  # no gradients of several to add up


def _of(config: str, pods: int, data: int, model: int, sequences: int, recompute: str) -> tuple[str, ...]:
    batch = pods * data * sequences
    mesh = (f"parallel.pods={pods}", f"parallel.data={data}", f"parallel.model={model}")
    return (config, *mesh, f"parallel.recompute={recompute}", f"train.batch_size={batch}", ONE_PASS)


# name to configuration and overrides
CASES = {
    "540B, two pods": _of("palm_540b", 2, 256, 12, 4, "block"),
    "540B, one pod": _of("palm_540b", 1, 256, 12, 4, "block"),
    "62B, block, 4 sequences": _of("palm_62b", 1, 64, 8, 4, "block"),
    "62B, block, 2 sequences": _of("palm_62b", 1, 64, 8, 2, "block"),
    "62B, attention": _of("palm_62b", 1, 64, 8, 1, "attention"),
    "8B, block": _of("palm_8b", 1, 4, 2, 2, "block"),
    "8B, block, 64 chips": _of("palm_8b", 1, 16, 4, 4, "block"),
    "8B, attention, 64 chips": _of("palm_8b", 1, 16, 4, 4, "attention"),
    "8B, none, 64 chips": _of("palm_8b", 1, 16, 4, 2, "none"),
    "8B, block, 8 model ranks": _of("palm_8b", 1, 8, 8, 4, "block"),
}

# bytes a chip beside the arguments
RECORDED = {
    "540B, two pods": 9_115_992_064,
    "540B, one pod": 9_130_180_608,
    "62B, block, 4 sequences": 4_167_712_768,
    "62B, block, 2 sequences": 4_794_449_920,
    "62B, attention": 26_186_317_824,
    "8B, block": 9_487_204_352,
    "8B, block, 64 chips": 4_253_990_912,
    "8B, attention, 64 chips": 25_328_123_904,
    "8B, none, 64 chips": 21_581_332_480,
    "8B, block, 8 model ranks": 2_541_092_864,
}


def planned(settings: Settings) -> dict[str, int]:
    """The plan's bytes a device, for a compiler that fuses as XLA does."""
    return memory_by_kind(settings, layout_of(settings, "GPU", planned=True), fused=True)


def beside_state(memory: dict[str, int]) -> int:
    """All but weights and optimizer state."""
    return sum(size for kind, size in memory.items() if kind not in ("weights", "optimizer state"))
