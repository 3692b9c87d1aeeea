"""Cases of the parity suite: one small network, trained on the same batches in many layouts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# heads * head_dim is not d_model; the vocabulary is padded, and the padding is on its last shard.
MODEL = dict(layers=2, d_model=48, heads=4, head_dim=16, d_ff=192, vocab_size=61, vocab_multiple=8)
SEED = 3
BATCH, LENGTH, STEPS = 8, 16, 10
# Adafactor's settings are PaLM's. AdamW's rate is one that users would set, and its decay is large enough to be missed
# if it were absent. Its eps keeps a gradient of mere rounding noise from a full step in the direction of the noise.
OPTIMIZERS = {
    "adafactor": {"name": "adafactor"},
    "adamw": {"name": "adamw", "learning_rate": 1e-3, "adamw_weight_decay": 0.1, "adamw_eps": 1e-5},
    "lion": {"name": "lion", "learning_rate": 1e-4, "lion_weight_decay": 0.1},
}
# Adafactor's variant, which no name of the registry has.
OPTIMIZER_SETTINGS = {**OPTIMIZERS, "factored": {"name": "adafactor", "factored": True}}
NETWORKS = {  # departures from PaLM: each alone, and those of GPT-3
    "palm": {},
    "deep": {"layers": 4},  # enough for the stages of a pipeline
    "serial": {"block": "serial"},
    "heads": {"attention": "multi_head"},
    "gelu": {"mlp": "gelu"},
    "geglu": {"mlp": "geglu"},
    "relu": {"mlp": "relu"},
    "layer_norm": {"norm": "layer_norm", "norm_epsilon": 1e-5},
    "around_one": {"norm_scale": "around_one", "final_norm_scale": True},
    "unscaled": {"scaled_logits": False},
    "xpos": {"xpos_base": 4.0},
    "gpt3": {
        **{"block": "serial", "attention": "multi_head", "mlp": "gelu"},
        **{"norm": "layer_norm", "norm_epsilon": 1e-5, "norm_scale": "around_one", "final_norm_scale": True},
    },
}
MUTATIONS = ("no reduction", "mean for sum", "local rms")
MUTATIONS_OF_PIPELINES = ("micro-batch lost", "micro-batch twice", "no gradient from the logits")
MUTATIONS_OF_DEPARTURES = ("local means", "values with other heads")


@dataclass(frozen=True)
class Case:
    """One layout and how it is trained."""

    mesh: tuple[int, int, int]
    """Pods, data, model."""
    shard_weights: str = "pod"
    recompute: str = "none"
    optimizer: str = "adafactor"
    micro_batches: int = 1
    """Micro-batches per step."""
    gradients: bool = False
    """Whether to save initial weights and the first step's gradients, too: one more network to compile."""
    table: str = "palm"
    length: int = LENGTH
    network: str = "palm"
    mutation: str = ""
    """A planted error, one of MUTATIONS or of MUTATIONS_OF_DEPARTURES."""
    stages: int = 1
    """Stages of a pipeline. With more than one, ``mesh`` is that of each stage."""
    interleave: int = 1
    schedule: str = "1f1b"
    reduce: str = "auto"
    """How often gradients are reduced."""

    @property
    def devices(self) -> int:
        return self.stages * int(np.prod(self.mesh))

    @property
    def name(self) -> str:
        """The settings that differ from case to case, as a file name."""
        words = [
            "x".join(map(str, self.mesh)),
            self.shard_weights,
            self.recompute,
            self.optimizer,
            str(self.micro_batches),
        ]
        words += [self.table] * (self.table != "palm") + [str(self.length)] * (self.length != LENGTH)
        words += [self.network] * (self.network != "palm")
        words += [f"{self.stages}x{self.interleave}_stages", self.schedule] * (self.stages > 1)
        words += [self.reduce] * (self.reduce != "auto")
        words += [self.mutation.replace(" ", "_")] * bool(self.mutation)
        return "-".join(words)


def batches(length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of the steps, int32 [steps, B, S].

    Rows have from none to all real tokens: devices feed unequal numbers of them, some none at all.
    """
    draw = np.random.default_rng(20220405)
    inputs, targets = draw.integers(0, MODEL["vocab_size"], (2, STEPS, BATCH, length)).astype(np.int32)
    real = draw.integers(length // 2, length + 1, (STEPS, BATCH))
    real[:, 0] = length
    real[1::2, 5] = 0
    targets[np.arange(length) >= real[..., None]] = -1
    targets[:, 2, :3] = -1  # and not only at the end
    return inputs, targets


def norm_scale(name: str) -> np.ndarray:
    """Initial values of a norm scale, float32 [d_model].

    A network starts with zeros, which would hide a wrong use of them. And relative to weights that are no larger than a
    few updates, a comparison would be one of the updates.
    """
    draw = np.random.default_rng(list(name.encode()))
    return (0.3 * draw.standard_normal(MODEL["d_model"])).astype(np.float32)
