"""conceptofmind's PaLMs, which are those of PaLM-rlhf-pytorch (0.8.0)."""

from __future__ import annotations

from typing import Any

from mindspore_palm.config import PaLMConfig
from mindspore_palm.convert.fused_linear import FusedLinear, Names
from mindspore_palm.convert.pytorch import need


def _make(config: PaLMConfig) -> Any:
    return need("palm_rlhf_pytorch", "PaLM-rlhf-pytorch==0.8.0").PaLM(
        dim=config.d_model,
        num_tokens=config.padded_vocab,
        depth=config.layers,
        dim_head=config.head_dim,
        heads=config.heads,
        ff_mult=config.d_ff // config.d_model,
        rotary_xpos_scale_base=int(config.xpos_base),
    )


CONCEPTOFMIND = FusedLinear(
    who="conceptofmind's PaLM",
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
    xpos_base=512.0,
    refused={
        ".q_scale": "queries and keys are normalised (qk_rmsnorm=True), which PaLM does not do",
        "finetune_modules.": "this holds LoRA kernels beside the model's; merge them by merge_finetune_params first",
    },
)
