"""lucidrains' PaLM-pytorch (0.2.2)."""

from __future__ import annotations

from typing import Any

from mindspore_palm.convert.fused_linear import FusedLinear, Names
from mindspore_palm.convert.pytorch import optional_package

PACKAGE, PIP_NAME = "palm_pytorch", "PaLM-pytorch"


def _make(**sizes: int) -> Any:
    return optional_package(PACKAGE, f"{PIP_NAME}==0.2.2").PaLM(**sizes)


LUCIDRAINS = FusedLinear(
    who="lucidrains' PaLM",
    package=PACKAGE,
    pip_name=PIP_NAME,
    names=Names(
        embedding="0.weight",
        block="{n}.fn",
        mlp_out="ff_out.1.weight",
        final_norm="{last}",
        logits="{logits}.weight",
    ),
    make=_make,
    norm_scale="around_one",
    hint="; or set --widen, for a model of twice the width that computes the same",
)
