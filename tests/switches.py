"""Every switch of the model, in the combinations that tests compare and compile."""

from __future__ import annotations

from typing import Any

SWITCHES: list[dict[str, Any]] = [
    {"block": "serial", "attention": "multi_head", "mlp": "gelu"},  # the standard Transformer
    {"block": "serial"},
    {"attention": "multi_head"},
    {"mlp": "relu"},
    {"mlp": "geglu"},
    {"norm": "layer_norm", "norm_epsilon": 0.3, "final_norm_scale": True},
    {"norm": "rms_norm", "norm_scale": "around_one", "final_norm_scale": True, "scaled_logits": False},
    {"xpos_base": 4.0},
    {"xpos_base": 4.0, "attention": "multi_head"},
    {"position": "learned", "position_rows": 14},
    {"position": "alibi"},
    {"position": "alibi", "attention": "multi_head"},
    {"position": "none"},
]


def name_of(switches: dict[str, Any]) -> str:
    """Name of a combination in test ids: its values."""
    return "-".join(map(str, switches.values())) or "palm"
