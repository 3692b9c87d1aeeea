"""conceptofmind's PaLMs: networks of PaLM-rlhf-pytorch (0.8.0)."""

from __future__ import annotations

from typing import Any

from mindspore_palm.convert.fused_linear import FusedLinear, Names
from mindspore_palm.convert.pytorch import optional_package

XPOS_BASE = 512.0
PACKAGE, PIP_NAME = "palm_rlhf_pytorch", "PaLM-rlhf-pytorch"


def _make(**sizes: int) -> Any:
    return optional_package(PACKAGE, f"{PIP_NAME}==0.8.0").PaLM(**sizes)  # with its defaults, xPos's base among them


CONCEPTOFMIND = FusedLinear(
    who="conceptofmind's PaLM",
    package=PACKAGE,
    pip_name=PIP_NAME,
    names=Names(
        embedding="token_emb.weight",
        block="layers.{i}.fn",
        mlp_out="ff_out.2.weight",
        final_norm="norm",
        logits="to_logits.weight",
    ),
    make=_make,
    norm_scale="around_zero",
    stored_both_ways=True,
    xpos_base=XPOS_BASE,
    refused={
        ".q_scale": "queries and keys are normalised (qk_rmsnorm=True), which PaLM does not do",
        "finetune_modules.": "this holds LoRA kernels beside the model's; merge them with merge_finetune_params first",
    },
)
