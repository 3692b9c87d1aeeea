"""Every setting: typed, documented beside the field, checked, with the fix named in the error.

A YAML file states only what differs from the defaults here; reading files and overrides is in ``settings.py``.
The sections ``model`` and ``parallel`` are in ``palm_config.py`` and ``parallel_config.py``.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from mindspore_palm.fields import (
    LARGEST,
    Contradiction,
    Count,
    CountOrZero,
    Departure,
    Fraction,
    Name,
    NonNegative,
    Positive,
    Section,
    Size,
    off_is_a_word,
)
from mindspore_palm.palm_config import PaLMConfig
from mindspore_palm.parallel_config import ParallelConfig


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
    """Peak learning rate; adafactor's is relative to each weight's root mean square. Default 0.01."""
    warmup_steps: CountOrZero = 0
    """Steps of linear warm-up of constant and cosine. Default 0."""
    final_fraction: Fraction = 0.1
    """Final rate of cosine, at train.steps, as a fraction of learning_rate. Default 0.1."""
    clip_norm: NonNegative = 1.0
    """Global norm to which gradients are clipped; 0 for no clipping. Default 1."""
    factored: Annotated[bool, ReadBy("adafactor", off=False), Departure()] = False
    """Adafactor: keep row and column means of the second moment, not the full one. PaLM did not. Default false."""
    update_clip: Annotated[NonNegative, ReadBy("adafactor", off=0.0)] = 1.0
    """Adafactor: root mean square to which each weight's update is clipped; 0 for no clipping. Default 1."""
    lr_squared_decay: Annotated[bool, ReadBy("adafactor", off=False)] = True
    """Adafactor: decay weights by lr^2 per step, as PaLM did. Default true."""
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


class MixtureSource(Section):
    """A source of a mixture: text, and how much of an epoch it is."""

    path: Name
    """As data.path."""
    weight: Positive
    """Share of the tokens of an epoch, relative to the other sources' weights."""


class DataConfig(Section):
    """The text, and how it becomes sequences of tokens."""

    path: Name = "python-stdlib"
    """Any text file, a .jsonl, a .parquet, a folder, a glob, or hf://OWNER/NAME of Hugging Face's Hub; python-stdlib
    (default) is Python's own source."""
    mixture: list[MixtureSource] = Field(default=[])
    """Several texts instead of data.path, such as [{path: a.txt, weight: 3}, {path: b/, weight: 1}]: of the tokens of
    an epoch, 75% are of a.txt. Default []: data.path."""
    text_field: Name = "text"
    """The field of .jsonl and the column of .parquet that holds the text. Default text."""
    seq_len: Annotated[int, Field(ge=2, lt=LARGEST)] = 256
    """Tokens per sequence. Default 256 (PaLM: 2048)."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Share of the text to hold out: documents by their hash, and the end of long ones. Default 0.02."""
    tokenizer: str = ""
    """A SentencePiece model or a tokenizer.json (byte-level BPE) to use; empty trains one on the corpus with
    model.vocab_size tokens. Default empty."""
    tokenizer_megabytes: Annotated[float, Field(ge=0.001)] = 4.0
    """Maximum text to train the tokenizer on, in MB, spread over the corpus. Default 4."""
    prepared: Name = "runs/prepared"
    """Folder of the prepared tokens; each corpus and tokenizer gets a subfolder. Default runs/prepared."""

    @field_validator("mixture")
    @classmethod
    def _sources_differ(cls, value: list[MixtureSource]) -> list[MixtureSource]:
        paths = [source.path for source in value]
        if twice := next((path for path in paths if paths.count(path) > 1), None):
            raise ValueError(f"must name each path once: add the weights of {twice}")
        return value


class TrainConfig(Section):
    """The training run."""

    steps: Count = 1000
    """Optimizer steps. Default 1000."""
    batch_size: Count | list[Annotated[list[Size], Field(min_length=2, max_length=2)]] = 16
    """Sequences per step, or a ramp of [first step, size]: [[0, 512], [50000, 1024], [115000, 2048]]. Default 16."""
    micro_batch: CountOrZero = 0
    """Sequences per forward pass; gradients accumulate over the batch. Must divide every size. Default 0: the batch."""
    z_loss: NonNegative = 1e-4
    """Weight of log(Z)^2 in the loss. Default 1e-4."""
    seed: CountOrZero = 0
    """Seed of the initial weights and of the order of the data. Default 0."""
    eval_every: CountOrZero = 200
    """Steps between evaluations on held-out text; 0 evaluates only at the end. Default 200."""
    eval_sequences: Count = 128
    """Held-out sequences per evaluation during training; the last evaluation takes all. Default 128."""
    output: Name = "runs/palm"
    """Folder of the run. Default runs/palm."""
    checkpoint_every: CountOrZero = 100
    """Steps between checkpoints, from which a run resumes; 0 saves only at the end and when stopped. Default 100."""
    keep_last: Count = 3
    """Number of newest checkpoints to keep. Default 3."""
    keep_every: CountOrZero = 0
    """Checkpoints at multiples of this step are never deleted. Default 0: none."""
    checkpoint_in_background: bool = True
    """Copy the state and write it while training continues; false waits for the disk. Default true."""
    spikes: Literal["off", "palm"] = "off"
    """palm: when the loss spikes, go back and skip batches, as PaLM's authors did by hand. Default off."""
    spike_window: Annotated[int, Field(ge=16, lt=LARGEST)] = 128
    """Steps over which the usual loss and its spread are measured. Default 128."""
    spike_deviations: Positive = 6.0
    """Robust standard deviations above the median that make a step an outlier. Default 6."""
    spike_steps: Count = 3
    """Consecutive outliers that make a spike. Default 3."""
    spike_look_back: Count = 100
    """Go back to the newest checkpoint at least this many steps before the spike. Default 100, as PaLM."""
    spike_skip: Count = 200
    """Batches to skip from there at the first try; more if they do not cover the spike. Default 200."""
    spike_skip_most: Count = 500
    """Batches to skip at the last try. Default 500, PaLM's maximum."""
    spike_tries: Count = 3
    """Attempts to get past the same spike before the run ends. Default 3."""
    device: Literal["auto", "CPU", "GPU", "Ascend"] = "auto"
    """Where to run; auto takes Ascend, then GPU, then CPU. Default auto."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of activations and matmuls inside blocks; weights, norms, softmax, logits, loss and optimizer are float32.
    auto: bfloat16 on Ascend; float32 on GPU and CPU, for which MindSpore has no bfloat16 kernels. Default auto."""
    tf32: bool = False
    """GPU: let matmuls of float32 round their inputs to TF32, with 10 bits of mantissa instead of 23, as Ampere and
    newer do at several times the speed. Default false: losses then agree with CPU's to float32."""
    loss_scale: Annotated[float, Field(ge=1, le=2.0**40)] = 65536.0
    """float16: the first loss scale, a power of two; it halves when a gradient overflows. Default 65536."""
    loss_scale_window: Count = 2000
    """float16: steps without overflow after which the loss scale doubles. Default 2000."""
    peak_tflops: NonNegative = 0.0
    """Peak of the machine in TFLOP/s, for MFU; 0 times a matmul at the start, on a CPU once a day. Default 0."""
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default=[])
    """Trackers that get every row of metrics.csv. TensorBoard's files are always written, whether or not it is named;
    wandb and trackio are extras to install. Default []."""

    def batch_ramp(self) -> list[tuple[int, int]]:
        """The batch size as a list of (first step, sequences)."""
        return [(0, self.batch_size)] if isinstance(self.batch_size, int) else [(a, b) for a, b in self.batch_size]

    @field_validator("spikes", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return off_is_a_word(value)

    @field_validator("trackers")
    @classmethod
    def _trackers_differ(cls, value: list[str]) -> list[str]:
        if twice := next((name for name in value if value.count(name) > 1), None):
            raise ValueError(f"must name each tracker once: {twice} is there twice")
        return value

    @field_validator("loss_scale")
    @classmethod
    def _is_a_power_of_two(cls, value: float) -> float:
        if math.frexp(value)[0] != 0.5:
            raise ValueError(f"must be a power of two, such as {2.0 ** round(math.log2(value)):,.0f}")
        return value

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
        """Batch sizes in effect after ``step`` steps, and later."""
        ramp = self.batch_ramp()
        ends = [start for start, _ in ramp[1:]] + [float("inf")]
        return [size for (_, size), end in zip(ramp, ends, strict=True) if end > step]

    def micro_batch_of(self, batch: int) -> int:
        """Sequences per forward pass of a step with ``batch`` sequences."""
        return self.micro_batch or batch

    @property
    def accumulates(self) -> bool:
        """Whether a step has several micro-batches, at any batch size of the run."""
        return any(size > self.micro_batch_of(size) for _, size in self.batch_ramp())


class FinetuneConfig(Section):
    """Fine-tuning of a trained PaLM on pairs of prompt and target; in effect if ``checkpoint`` is set.

    data.path is then a .jsonl of pairs, and the section model comes from the checkpoint.
    """

    checkpoint: str = ""
    """The model to start from: the folder of a run, a checkpoint or a model. Default empty: none, train on text. Its
    weights and tokenizer are used; the optimizer starts from zero moments."""
    prompt_field: Name = "prompt"
    """The field of data.path that holds the prompt; may be empty text. Default prompt."""
    target_field: Name = "target"
    """The field of data.path that holds the target, after which [eod] is learned. Default target."""
    dropout: Fraction = 0.1
    """Dropout rate after the embedding and after each block. Default 0.1, as PaLM."""
    lora_rank: Annotated[CountOrZero, Departure()] = 0
    """Rank of LoRA (arXiv 2106.09685): each kernel W becomes W + lora_alpha/lora_rank * A B, of which only A and B are
    trained. B starts at zero, and Adafactor's steps are relative to a weight's size: use adamw, as
    yaml/finetune_lora.yaml does. Default 0: train all weights."""
    lora_alpha: Positive = 16.0
    """lora_rank times the factor of A B. Default 16."""

    @property
    def lora_scale(self) -> float:
        """The factor of A B: lora_alpha / lora_rank."""
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


class Settings(Section):
    """All settings of a run, by section."""

    model: PaLMConfig = PaLMConfig()
    """The network."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The update of the weights."""
    data: DataConfig = DataConfig()
    """The text to learn from."""
    train: TrainConfig = TrainConfig()
    """The training run."""
    finetune: FinetuneConfig = FinetuneConfig()
    """The model to fine-tune, if any."""
    parallel: ParallelConfig = ParallelConfig()
    """The devices to run on."""

    @model_validator(mode="before")
    @classmethod
    def _rows_of_learned_positions(cls, values: Any) -> Any:
        """Gives model.position=learned a row for each token of data.seq_len, unless the settings say how many."""
        if not isinstance(values, dict) or not isinstance(model := values.get("model"), dict):
            return values
        if model.get("position") != "learned" or model.get("position_rows", 0) != 0:
            return values
        data = values.get("data") or {}
        length = data.get("seq_len") if isinstance(data, dict) else data.seq_len
        rows = DataConfig.model_fields["seq_len"].default if length is None else length
        return {**values, "model": {**model, "position_rows": rows}}

    @model_validator(mode="after")
    def _positions_reach(self) -> Settings:
        check_length(self.model, self.data.seq_len)
        return self

    def departures(self, supported: Collection[str] = ()) -> dict[str, Any]:
        """Settings in which a run departs from PaLM's network and update, as ``section.key`` with their values.

        Args:
            supported: those that the caller supports at any value.
        """
        departures = {f"model.{name}": value for name, value in self.model.departures().items()}
        for section, group in self:
            for name, field in type(group).model_fields.items():
                value, marks = getattr(group, name), {type(mark): mark for mark in field.metadata}
                is_read = ReadBy not in marks or marks[ReadBy].optimizer == self.optimizer.name
                if Departure in marks and is_read and value != field.default:
                    departures[f"{section}.{name}"] = value
        return {name: value for name, value in departures.items() if name not in supported}


def check_length(model: PaLMConfig, length: int) -> None:
    """Checks that a network can read sequences of ``data.seq_len`` = length tokens.

    Raises:
        Contradiction: they are longer than its table of learned positions.
    """
    if model.longest is not None and length > model.longest:
        raise Contradiction(
            f"data.seq_len = {length} is beyond model.position_rows = {model.longest}: learned positions end there; "
            f"set data.seq_len to at most {model.longest}, or train with another model.position",
            *("data.seq_len", "model.position_rows"),
        )


def settings_of(section: str) -> dict[str, FieldInfo]:
    """The fields of a section of ``Settings`` by name; empty if there is no such section."""
    field = Settings.model_fields.get(section)
    model = field.annotation if field else None
    return model.model_fields if isinstance(model, type) and issubclass(model, Section) else {}
