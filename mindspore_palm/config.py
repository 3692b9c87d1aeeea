"""Every setting: typed, documented beside the field, checked, with the fix named in the error.

A YAML file states only what differs from the defaults here; reading files and overrides is in ``settings.py``.
Sizes are those of the paper "PaLM: Scaling Language Modeling with Pathways" (arXiv 2204.02311), table 1.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from mindspore_palm.fields import (
    LARGEST,
    Contradiction,
    Count,
    CountOrZero,
    Devices,
    Fraction,
    Layers,
    Name,
    NonNegative,
    Positive,
    Section,
    Size,
    off_is_a_word,
)
from mindspore_palm.presets import PRESETS

Recompute = Literal["none", "attention", "block"]


class PaLMConfig(Section):
    """The shape of a PaLM. Owns its parameter count and its FLOPs: nobody else computes them."""

    SIZES: ClassVar[frozenset[str]] = frozenset(
        {"preset", "layers", "d_model", "heads", "head_dim", "d_ff", "vocab_size", "vocab_multiple"}
    )
    """Fields that every PaLM chooses. Any other field is PaLM's at its default, and a departure from PaLM elsewhere."""

    preset: Literal["", "palm_tiny", "palm_small", "palm_8b", "palm_62b", "palm_540b"] = ""
    """A named size to start from; the other fields of the section then say only what differs. Default: none."""
    layers: Layers = 4
    """Number of blocks. Default 4."""
    d_model: Count = 128
    """Width of the residual stream, in features. Default 128."""
    heads: Count = 4
    """Query heads of a block; must divide d_ff. Default 4."""
    head_dim: Count = 32
    """Features of one head; even, for the rotation. heads * head_dim need not be d_model. Default 32."""
    d_ff: Count = 512
    """Features of the feed-forward layer (of each of its two inputs for SwiGLU). Default 512."""
    vocab_size: Count = 4096
    """Tokens of the vocabulary. Default 4096."""
    vocab_multiple: Count = 1
    """The rows of the embedding are padded to a multiple of this (model x data shards). Default 1: no padding."""
    block: Literal["parallel", "serial"] = "parallel"
    """Ablation: serial is the block of the standard Transformer, with a norm before each half. Default parallel."""
    attention: Literal["multi_query", "multi_head"] = "multi_query"
    """Ablation: multi_head gives every query head its own key and value. Default multi_query."""
    mlp: Literal["swiglu", "geglu", "gelu", "relu"] = "swiglu"
    """Ablation: the feed-forward layer; gelu and relu have one input kernel instead of two. Default swiglu."""
    norm: Literal["rms_norm", "layer_norm"] = "rms_norm"
    """Ablation: layer_norm takes the mean off first, as PyTorch's PaLMs do (without a bias). Default rms_norm."""
    norm_epsilon: Positive = 1e-6
    """Ablation: what norms add to the mean square. Default 1e-6 (PyTorch's layer norm: 1e-5)."""
    norm_scale: Literal["around_zero", "around_one"] = "around_zero"
    """Ablation: around_one stores a norm's scale as it is applied, not less one. Default around_zero."""
    final_norm_scale: bool = False
    """Ablation: true gives the norm before the logits a learned scale as well. Default false."""
    scaled_logits: bool = True
    """Ablation: false leaves the logits' factor 1/sqrt(d_model) out. Default true."""
    xpos_base: Annotated[float, Field(ge=0)] = 0.0
    """Ablation: rotation with decay over this distance (xPos, arXiv 2212.10554: 512). Default 0: rotation alone."""

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, values: Any) -> Any:
        preset = values.get("preset", "") if isinstance(values, dict) else ""
        return {**PRESETS[preset], **values} if isinstance(preset, str) and preset in PRESETS else values

    @model_validator(mode="after")
    def _sizes_fit(self) -> PaLMConfig:
        if self.d_ff % self.heads:
            nearest = max(1, round(self.d_ff / self.heads)) * self.heads
            text = f"d_ff = {self.d_ff} is not a multiple of heads = {self.heads}; set d_ff to {nearest}"
            raise Contradiction(text, "d_ff", "heads")
        if self.head_dim % 2:
            text = f"head_dim = {self.head_dim} is odd, and RoPE rotates pairs; set it to {self.head_dim + 1}"
            raise Contradiction(text, "head_dim")
        return self

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> PaLMConfig:
        """A named size, for example ``PaLMConfig.from_preset("palm_8b", layers=2)``."""
        if name not in PRESETS:
            raise ValueError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
        return cls(preset=name, **overrides)  # type: ignore[arg-type]

    @classmethod
    def switches(cls) -> dict[str, Any]:
        """PaLM's own value of each field that is not a size."""
        return {name: field.default for name, field in cls.model_fields.items() if name not in cls.SIZES}

    def departures(self, supported: Collection[str] = ()) -> dict[str, Any]:
        """Fields in which the network departs from PaLM, with their values.

        Code that supports PaLM alone asks this and refuses what it gets. So it refuses a field that is added later.

        Args:
            supported: names of the fields that the caller supports at any value.
        """
        palm = self.switches()
        return {
            name: getattr(self, name) for name in palm if name not in supported and getattr(self, name) != palm[name]
        }

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding table: vocab_size rounded up to a multiple of vocab_multiple."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values: one, or as many as queries for multi-head attention."""
        return 1 if self.attention == "multi_query" else self.heads

    @property
    def mlp_inputs(self) -> int:
        """Input kernels of the feed-forward layer: two (gate, up) if gated, else one."""
        return 2 if self.mlp in ("swiglu", "geglu") else 1

    @property
    def mlp_per_head(self) -> int:
        """Feed-forward features that are stored with one head in the fused kernels."""
        return self.d_ff // self.heads

    def parameters_by_kind(self) -> dict[str, int]:
        """Parameters of embedding, attention and mlp. Padding rows and norm scales are not counted, as published."""
        projections = 2 * self.heads * self.head_dim + 2 * self.kv_heads * self.head_dim
        return {
            "embedding": self.vocab_size * self.d_model,
            "attention": self.layers * self.d_model * projections,
            "mlp": self.layers * self.d_model * self.d_ff * (self.mlp_inputs + 1),
        }

    def parameter_count(self) -> int:
        """Parameters as the paper counts them: 8,631,877,632 for palm_8b (padding rows and norm scales left out)."""
        return sum(self.parameters_by_kind().values())

    def flops_per_token(self, length: int) -> int:
        """FLOPs of one token's forward and backward pass at a sequence length: 6N + 12*L*H*Q*T (appendix B).

        Not halved for causality, and recomputation not counted: what MFU is measured against.
        """
        return 6 * self.parameter_count() + 12 * self.layers * self.heads * self.head_dim * length

    def recomputed_flops_per_token(self, length: int, recompute: Recompute) -> float:
        """FLOPs of one token that the backward pass does a second time, as the paper counts them (appendix B).

        attention: both products of every head, 4*L*H*Q*T (palm_8b and palm_62b). block: those, and three quarters of
        the forward pass of all weights, 0.75*2N (palm_540b).
        """
        attention = 4 * self.layers * self.heads * self.head_dim * length
        of_weights = 0.75 * 2 * self.parameter_count()
        return {"none": 0, "attention": attention, "block": of_weights + attention}[recompute]

    def hardware_flops_per_token(self, length: int, recompute: Recompute) -> float:
        """FLOPs of one token with what is recomputed: what HFU is measured against."""
        return self.flops_per_token(length) + self.recomputed_flops_per_token(length, recompute)


class ReadBy(NamedTuple):
    """Marks a setting that one optimizer reads and the others do not."""

    optimizer: str
    off: float | bool | None = None
    """The value that turns off what is set; None if there is none."""


class OptimizerConfig(Section):
    """Adafactor as PaLM used it (section 5), AdamW, or Lion."""

    name: Literal["adafactor", "adamw", "lion"] = "adafactor"
    """Which optimizer. Default adafactor."""
    schedule: Literal["palm", "constant", "cosine"] = "palm"
    """palm: min(learning_rate, 1/sqrt(step)); constant and cosine start with a linear warm-up. Default palm."""
    learning_rate: Positive = 1e-2
    """The highest rate; relative to each weight's root mean square for adafactor. Default 0.01."""
    warmup_steps: CountOrZero = 0
    """Steps of linear warm-up of constant and cosine. Default 0."""
    final_fraction: Fraction = 0.1
    """Where cosine ends at train.steps, as a fraction of learning_rate. Default 0.1."""
    clip_norm: NonNegative = 1.0
    """Global norm to which gradients are clipped; 0 for no clipping. Default 1."""
    factored: Annotated[bool, ReadBy("adafactor", off=False)] = False
    """Adafactor: store row and column means of the second moment instead of all of it. PaLM did not. Default false."""
    update_clip: Annotated[NonNegative, ReadBy("adafactor", off=0.0)] = 1.0
    """Adafactor: root mean square to which each weight's update is clipped; 0 for no clipping. Default 1."""
    lr_squared_decay: Annotated[bool, ReadBy("adafactor", off=False)] = True
    """Adafactor: decay weights by lr^2 a step, as PaLM did. Default true."""
    adamw_beta1: Annotated[Fraction, ReadBy("adamw")] = 0.9
    """AdamW: decay of the first moment. Default 0.9."""
    adamw_beta2: Annotated[Fraction, ReadBy("adamw")] = 0.99
    """AdamW: decay of the second moment. Default 0.99."""
    adamw_eps: Annotated[Positive, ReadBy("adamw")] = 1e-8
    """AdamW: added to the root of the second moment. Default 1e-8."""
    adamw_weight_decay: Annotated[NonNegative, ReadBy("adamw", off=0.0)] = 0.0
    """AdamW: decay of kernels and embedding, times the learning rate. Norm scales do not decay. Default 0."""
    lion_beta1: Annotated[Fraction, ReadBy("lion")] = 0.9
    """Lion: weight of the moment, beside the gradient, in the sign of the update. Default 0.9."""
    lion_beta2: Annotated[Fraction, ReadBy("lion")] = 0.99
    """Lion: decay of the moment. Default 0.99."""
    lion_weight_decay: Annotated[NonNegative, ReadBy("lion", off=0.0)] = 0.0
    """Lion: decay of kernels and embedding, times the learning rate. Norm scales do not decay. Default 0."""


class DataConfig(Section):
    """Where text comes from, and how it becomes sequences of tokens."""

    path: Name = "python-stdlib"
    """Any text file, a .jsonl, a .parquet, a folder or a glob; python-stdlib (default) is Python's own source."""
    text_field: Name = "text"
    """The field of .jsonl and the column of .parquet that holds the text. Default text."""
    seq_len: Annotated[int, Field(ge=2, lt=LARGEST)] = 256
    """Tokens of a sequence. Default 256 (PaLM: 2048)."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Share of the text that is held out: documents by their hash, of long ones the end. Default 0.02."""
    tokenizer: str = ""
    """A SentencePiece model to use; empty trains one on the corpus with model.vocab_size tokens. Default empty."""
    tokenizer_megabytes: Annotated[float, Field(ge=0.001)] = 4.0
    """Text that the tokenizer is trained on at most, in MB, spread over the corpus. Default 4."""
    prepared: Name = "runs/prepared"
    """Folder of the prepared tokens; each corpus and tokenizer gets a subfolder. Default runs/prepared."""


class TrainConfig(Section):
    """The run."""

    steps: Count = 1000
    """Optimizer steps. Default 1000."""
    batch_size: Count | list[Annotated[list[Size], Field(min_length=2, max_length=2)]] = 16
    """Sequences a step, or a ramp of [first step, size]: [[0, 512], [50000, 1024], [115000, 2048]]. Default 16."""
    micro_batch: CountOrZero = 0
    """Sequences a forward pass; gradients add up to the batch. Must divide every size. Default 0: the batch."""
    z_loss: NonNegative = 1e-4
    """Weight of log(Z)^2 in the loss. Default 1e-4."""
    seed: CountOrZero = 0
    """Decides the initial weights and the order of the data. Default 0."""
    eval_every: CountOrZero = 200
    """Steps between evaluations on held-out text; 0 evaluates at the end alone. Default 200."""
    eval_sequences: Count = 128
    """Held-out sequences of an evaluation on the way; the last one takes all. Default 128."""
    output: Name = "runs/palm"
    """Folder of the run. Default runs/palm."""
    checkpoint_every: CountOrZero = 100
    """Steps between checkpoints, from which a run goes on; 0 saves at the end and when stopped alone. Default 100."""
    keep_last: Count = 3
    """Checkpoints that are kept, the newest ones. Default 3."""
    keep_every: CountOrZero = 0
    """Checkpoints of steps that are a multiple of this are kept for good. Default 0: none."""
    checkpoint_in_background: bool = True
    """Copy the state at once and write it while training goes on; false waits for the disk. Default true."""
    spikes: Literal["off", "palm"] = "off"
    """palm: when the loss spikes, go back and skip batches, as PaLM's authors did by hand. Default off."""
    spike_window: Annotated[int, Field(ge=16, lt=LARGEST)] = 128
    """Steps whose median and spread say what is usual. Default 128."""
    spike_deviations: Positive = 6.0
    """Robust standard deviations above the median from which on a step is an outlier. Default 6."""
    spike_steps: Count = 3
    """Outliers in a row that are a spike. Default 3."""
    spike_look_back: Count = 100
    """Go back to the newest checkpoint that is at least so many steps before the spike. Default 100, as PaLM."""
    spike_skip: Count = 200
    """Batches that are left out from there at the first try; more where they do not cover the spike. Default 200."""
    spike_skip_most: Count = 500
    """Batches that are left out at the last try. Default 500, as PaLM at most."""
    spike_tries: Count = 3
    """How often to go back for the same spike before the run ends. Default 3."""
    device: Literal["auto", "CPU", "GPU", "Ascend"] = "auto"
    """Where to run; auto takes Ascend, then GPU, then CPU. Default auto."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of activations and of products inside blocks; weights, norms, softmax, logits, loss and optimizer are
    float32. auto: bfloat16 on GPU and Ascend, float32 on CPU, whose MindSpore multiplies no bfloat16. Default auto."""
    peak_tflops: NonNegative = 0.0
    """Peak of the machine in TFLOP/s, for MFU; 0 measures a matrix product at start. Default 0."""

    def batch_ramp(self) -> list[tuple[int, int]]:
        """The batch size as a list of (first step, sequences)."""
        return [(0, self.batch_size)] if isinstance(self.batch_size, int) else [(a, b) for a, b in self.batch_size]

    @field_validator("spikes", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return off_is_a_word(value)

    @model_validator(mode="after")
    def _spikes_fit(self) -> TrainConfig:
        if self.spikes == "off":
            return self
        if not self.checkpoint_every:
            text = "checkpoint_every = 0 and spikes = palm: there is nothing to go back to; set checkpoint_every to 100"
            raise Contradiction(text, "checkpoint_every", "spikes")
        # the newest checkpoint far enough back is up to one interval older, and none may have been deleted since
        least = 1 - -(self.spike_look_back + self.spike_steps) // self.checkpoint_every
        if self.keep_last < least:
            raise Contradiction(
                f"keep_last = {self.keep_last} checkpoints, one every {self.checkpoint_every} steps, do not reach "
                f"spike_look_back = {self.spike_look_back} steps back; set keep_last to {least}",
                *("keep_last", "checkpoint_every", "spike_look_back", "spike_steps", "spikes"),
            )
        if self.spike_skip_most < self.spike_skip:
            raise Contradiction(
                f"spike_skip_most = {self.spike_skip_most} is below spike_skip = {self.spike_skip}; "
                f"set spike_skip_most to {self.spike_skip} or more",
                *("spike_skip_most", "spike_skip", "spikes"),
            )
        return self

    @model_validator(mode="after")
    def _ramp_fits(self) -> TrainConfig:
        ramp = self.batch_ramp()
        starts = [start for start, _ in ramp]
        if not ramp or starts[0] != 0 or starts != sorted(set(starts)):
            raise Contradiction(
                f"batch_size = {self.batch_size} must start at step 0, and its steps must rise; "
                "write [[0, 8], [500, 16]] for 8 sequences, then 16 from step 500",
                "batch_size",
            )
        for _, size in ramp:
            if size < 1:
                text = f"batch_size = {self.batch_size} has a size below 1; sizes count sequences"
                raise Contradiction(text, "batch_size")
            if self.micro_batch and size % self.micro_batch:
                given = f"= {size}" if isinstance(self.batch_size, int) else f"has the size {size}, which"
                raise Contradiction(
                    f"batch_size {given} is not a multiple of micro_batch = {self.micro_batch}; "
                    f"set it to {-(-size // self.micro_batch) * self.micro_batch}",
                    *("batch_size", "micro_batch"),
                )
        return self

    def sizes_from(self, step: int) -> list[int]:
        """The batch sizes that are in effect when ``step`` steps are done, and after that."""
        ramp = self.batch_ramp()
        ends = [start for start, _ in ramp[1:]] + [float("inf")]
        return [size for (_, size), end in zip(ramp, ends, strict=True) if end > step]

    def micro_batch_of(self, batch: int) -> int:
        """Sequences of one forward pass when a step has ``batch`` of them."""
        return self.micro_batch or batch


class FinetuneConfig(Section):
    """Teaching a trained PaLM by pairs of a prompt and a target; used where ``checkpoint`` is given.

    data.path is then a .jsonl of pairs, and the section model comes from the checkpoint.
    """

    checkpoint: str = ""
    """The model to start from: the folder of a run, of a checkpoint or of a model. Default empty: none, train on text.
    Weights and tokenizer are its own; the optimizer's state begins anew."""
    prompt_field: Name = "prompt"
    """The field of data.path with what is given; may be empty text. Default prompt."""
    target_field: Name = "target"
    """The field of data.path with what is learned, and [eod] behind it. Default target."""
    dropout: Fraction = 0.1
    """Share of the features that is dropped behind the embedding and behind each block. Default 0.1, as PaLM."""
    lora_rank: CountOrZero = 0
    """Train W + lora_alpha/lora_rank * A B for each kernel W, and of it A and B alone, with so many columns and rows
    (LoRA, arXiv 2106.09685). B begins at zero, and Adafactor's steps are relative to a weight's size: take adamw, as
    yaml/finetune_lora.yaml does. Default 0: train all weights."""
    lora_alpha: Positive = 16.0
    """lora_rank times what A B is multiplied with. Default 16."""

    @property
    def lora_scale(self) -> float:
        """What A B is multiplied with."""
        return self.lora_alpha / self.lora_rank if self.lora_rank else 0.0

    @model_validator(mode="after")
    def _has_a_start(self) -> FinetuneConfig:
        if self.lora_rank and not self.checkpoint:
            raise Contradiction(
                f"lora_rank = {self.lora_rank} and no checkpoint: LoRA adapts a trained model; "
                "set finetune.checkpoint to the folder of one",
                *("lora_rank", "checkpoint"),
            )
        return self


class ParallelConfig(Section):
    """How a network lies on devices (section 4 of the paper)."""

    pods: Devices = 1
    """Pods of devices; only gradients travel between them. Default 1 (PaLM 540B: 2)."""
    data: Devices = 1
    """Parts of a batch in one pod. Default 1 (PaLM 540B: 256)."""
    model: Devices = 1
    """Parts of every product: of heads, feed-forward features and vocabulary. Default 1 (PaLM 540B: 12)."""
    strategy: Literal["palm", "data", "model"] = "palm"
    """The table of axes: palm; data gives every device sequences of its own; model cuts products only. Default palm."""
    shard_weights: Literal["off", "pod", "all"] = "pod"
    """Weights and optimizer state fully sharded: off, within a pod as PaLM did, or over everything. Default pod."""
    recompute: Recompute = "none"
    """What the backward pass computes again instead of keeping. Default none (PaLM 540B: block)."""

    @field_validator("shard_weights", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return off_is_a_word(value)

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return self.pods * self.data * self.model


class Settings(Section):
    """All settings of a run, by section."""

    model: PaLMConfig = PaLMConfig()
    """The network."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How weights are updated."""
    data: DataConfig = DataConfig()
    """What it learns from."""
    train: TrainConfig = TrainConfig()
    """The run itself."""
    finetune: FinetuneConfig = FinetuneConfig()
    """What it starts from, if it is not new."""
    parallel: ParallelConfig = ParallelConfig()
    """Where it runs."""

    def departures(self, supported: Collection[str] = ()) -> dict[str, Any]:
        """Settings by which a run departs from PaLM's network and update, as ``section.key`` with their values.

        Args:
            supported: those that the caller supports at any value.
        """
        found = {f"model.{name}": value for name, value in self.model.departures().items()}
        if self.finetune.lora_rank:
            found["finetune.lora_rank"] = self.finetune.lora_rank
        if self.optimizer.name == "adafactor" and self.optimizer.factored:
            found["optimizer.factored"] = True
        return {name: value for name, value in found.items() if name not in supported}


def settings_of(section: str) -> dict[str, FieldInfo]:
    """The fields of a section of ``Settings`` by name; empty if there is no such section."""
    field = Settings.model_fields.get(section)
    model = field.annotation if field else None
    return model.model_fields if isinstance(model, type) and issubclass(model, Section) else {}
