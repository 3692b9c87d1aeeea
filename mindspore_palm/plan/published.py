"""The article's table, published beside recomputed: GPT-3, Gopher, Megatron-Turing NLG and PaLM.

MFU and HFU by appendix B of the PaLM paper (arXiv 2204.02311): tokens a second times FLOPs a token over the peak.
"""

from __future__ import annotations

from dataclasses import dataclass

from mindspore_palm.config import PaLMConfig
from mindspore_palm.cost.workload import Workload
from mindspore_palm.parallel.axes import Layout
from mindspore_palm.parallel.mesh import Mesh
from mindspore_palm.plan.machines import TERA, load_machine
from mindspore_palm.plan.step_time import step_time

LENGTH = 2048  # tokens of a sequence, of all four
TOKENS_PER_SECOND = 238.3e3  # of PaLM 540B
STEP_SECONDS = 2048 * LENGTH / TOKENS_PER_SECOND
TWO_PODS = 1.95  # times one, of PaLM 540B
PALM = PaLMConfig.from_preset("palm_540b", vocab_multiple=3072)
MT_NLG = PaLMConfig(
    layers=105,
    d_model=20480,
    heads=128,
    head_dim=160,
    d_ff=81920,
    vocab_size=51200,
    block="serial",
    attention="multi_head",
    mlp="gelu",
)

PUBLISHED_FLOPS = {"palm_8b": (0.0550, 0.0561), "palm_62b": (0.388, 0.392), "palm_540b": (3.28, "4.10")}
"""10^12 FLOPs a token of PaLM, without and with what was recomputed (appendix B)."""
RECOMPUTED = {"palm_8b": "attention", "palm_62b": "attention", "palm_540b": "block"}


@dataclass(frozen=True)
class System:
    """What was published of one training run, and what follows from it."""

    name: str
    parameters: float
    accelerators: str
    devices: int
    peak_tflops: float
    layers: int
    heads: int
    head_dim: int
    throughput: str
    """The published figure that MFU follows from, in words."""
    tokens_per_second: float
    """That figure, for all devices."""
    recomputed_flops: float
    """FLOPs a token that were computed again."""
    mfu: float
    """As published, in percent."""
    hfu: float | None
    note: str = ""

    @property
    def flops_per_token(self) -> float:
        """6N + 12*L*H*Q*T."""
        return 6 * self.parameters + 12 * self.layers * self.heads * self.head_dim * LENGTH

    def utilisation(self, flops_per_token: float) -> float:
        """Percent of the devices' peak."""
        return 100 * self.tokens_per_second * flops_per_token / (self.devices * self.peak_tflops * TERA)

    @property
    def our_mfu(self) -> float:
        """MFU that follows, in percent."""
        return self.utilisation(self.flops_per_token)

    @property
    def our_hfu(self) -> float | None:
        """HFU that follows, in percent; None where nothing was published of it."""
        return None if self.hfu is None else self.utilisation(self.flops_per_token + self.recomputed_flops)


def systems() -> list[System]:
    """The four runs."""
    gpt3, gopher, mt_nlg = 175e9, 280e9, 530e9
    mt_nlg_flops = 6 * mt_nlg + 12 * 105 * 128 * 160 * LENGTH
    palm_recomputed = PALM.recomputed_flops_per_token(LENGTH, "block")
    return [
        System(
            *("GPT-3 175B", gpt3, "V100", 1, 125, 96, 96, 128),
            *("24.6 TFLOP/s a device, as 6N a token", 24.6e12 / (6 * gpt3), 0, 21.3, None),
            note="21.3 % does not follow: 24.6 TFLOP/s give 19.7 % of 125, and 20.2 % with attention counted",
        ),
        System(
            *("Gopher 280B", gopher, "TPU v3", 4096, 123, 80, 128, 128),
            *("0.0152 steps/s of 3,072 sequences", 0.0152 * 3072 * LENGTH, 0, 32.5, None),
        ),
        System(
            *("MT-NLG 530B", mt_nlg, "A100", 2240, 312, 105, 128, 160),
            *("60.1 s for 1,920 sequences", 1920 * LENGTH / 60.1, mt_nlg_flops / 3, 30.2, 50.0),
            note="all of the forward pass is recomputed, a third more; that gives 40.4 %, not the article's 50 %",
        ),
        System(
            *("PaLM 540B", PALM.parameter_count(), "TPU v4", 6144, 275, 118, 48, 256),
            *("238.3 thousand tokens/s", TOKENS_PER_SECOND, palm_recomputed, 46.2, 57.8),
        ),
    ]


@dataclass(frozen=True)
class Prediction:
    """A published time, and the cost model's."""

    what: str
    unit: str
    published: float
    ours: float
    source: str

    @property
    def error(self) -> float:
        """Ours over published, less one."""
        return self.ours / self.published - 1


def predictions() -> list[Prediction]:
    """What the cost model says of runs whose time was published; none of them was used to calibrate it."""
    one, two = palm_seconds(1), palm_seconds(2)
    return [
        Prediction("PaLM 540B, two pods, a step of 2,048 sequences", "s", STEP_SECONDS, two, "238.3 thousand tokens/s"),
        Prediction(
            *("PaLM 540B, one pod, a step of 1,024 sequences", "s", TWO_PODS * STEP_SECONDS / 2, one),
            "from 17.60 s and 1.95x",
        ),
        Prediction("PaLM 540B, speed of two pods over one", "x", TWO_PODS, 2 * one / two, "PaLM, section 4"),
        Prediction(
            "MT-NLG 530B, 2,240 A100, a step of 1,920 sequences", "s", 60.1, mt_nlg_seconds(), "PaLM, appendix B"
        ),
    ]


def palm_seconds(pods: int) -> float:
    """Predicted step of PaLM 540B, 1,024 sequences a pod."""
    batch = 1024 * pods
    layout = Layout(Mesh(pods, 256, 12), recompute="block", compute_dtype="bfloat16")
    return step_time(Workload(PALM, layout, LENGTH, batch, batch), load_machine("tpu-v4")).seconds


def mt_nlg_seconds() -> float:
    """Predicted step of Megatron-Turing NLG: 8 model x 8 data x 35 stages, a sequence a pass, all recomputed."""
    layout = Layout(Mesh(1, 8, 8), shard_weights="off", recompute="block", compute_dtype="bfloat16")
    return step_time(Workload(MT_NLG, layout, LENGTH, 1920, 8, pipeline=35), load_machine("a100")).seconds
