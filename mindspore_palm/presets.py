"""Named sizes: those of the paper's table 1, and two that a laptop can train."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "palm_tiny": {"layers": 4, "d_model": 128, "heads": 4, "head_dim": 32, "d_ff": 512, "vocab_size": 4096},
    "palm_small": {"layers": 8, "d_model": 512, "heads": 8, "head_dim": 64, "d_ff": 2048, "vocab_size": 32768},
    "palm_8b": {"layers": 32, "d_model": 4096, "heads": 16, "head_dim": 256, "d_ff": 16384, "vocab_size": 256000},
    "palm_62b": {"layers": 64, "d_model": 8192, "heads": 32, "head_dim": 256, "d_ff": 32768, "vocab_size": 256000},
    "palm_540b": {"layers": 118, "d_model": 18432, "heads": 48, "head_dim": 256, "d_ff": 73728, "vocab_size": 256000},
}
