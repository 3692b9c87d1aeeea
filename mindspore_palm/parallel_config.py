"""Settings of the section ``parallel``: mesh, stages, sharding and reductions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from mindspore_palm.fields import Devices, Section, off_is_a_word
from mindspore_palm.palm_config import Recompute


class ParallelConfig(Section):
    """Placement of the network on devices (section 4 of the paper)."""

    pods: Devices = 1
    """Pods of devices; only gradients are sent between them. Default 1 (PaLM 540B: 2)."""
    data: Devices = 1
    """Data parallelism inside a pod: shards of a batch. Default 1 (PaLM 540B: 256)."""
    model: Devices = 1
    """Model parallelism: shards of heads, feed-forward features and vocabulary. Default 1 (PaLM 540B: 12)."""
    stages: Devices = 1
    """Pipeline parallelism: stages, each with a run of layers on devices of its own. Default 1 (PaLM: no pipeline)."""
    interleave: Annotated[int, Field(ge=1, le=64)] = 1
    """Runs of layers of each stage, which take turns with those of the other stages. Default 1."""
    schedule: Literal["1f1b", "gpipe", "seqpipe", "seqvpp", "seqsmartvpp", "zero_bubble_v"] = "1f1b"
    """Order of the forward and backward passes of micro-batches in a pipeline. Default 1f1b."""
    stage_layers: list[Annotated[int, Field(ge=1)]] = Field(default=[])
    """Layers of each run, in order, such as [5,3]. Default [], balanced by work, the logits counted."""
    strategy: Literal["palm", "data", "model"] = "palm"
    """The table of logical axes: palm; data shards only sequences; model shards only matmuls. Default palm."""
    shard_weights: Literal["off", "pod", "all"] = "pod"
    """Weights and optimizer state fully sharded: off, within a pod as PaLM did, or over everything. Default pod."""
    recompute: Recompute = "none"
    """Activations that the backward pass recomputes. Default none (PaLM 540B: block)."""
    reduce_gradients: Literal["auto", "per_micro_batch", "pods_per_step", "per_step"] = "auto"
    """How often gradients are reduced over data and pods. per_step adds up full gradients, which takes their memory and
    the fewest collectives; pods_per_step reduces inside a pod after each micro-batch. Default auto: per_step in a
    pipeline, else per_micro_batch."""
    reduce_dtype: Literal["float32", "compute_dtype"] = "float32"
    """dtype in which gradients of kernels are reduced. compute_dtype halves the bytes in 16 bits. Default float32."""

    @field_validator("shard_weights", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return off_is_a_word(value)

    @property
    def data_shards(self) -> int:
        """Shards of a batch."""
        return {"palm": self.pods * self.data, "data": self.pods * self.data * self.model, "model": 1}[self.strategy]

    @property
    def runs(self) -> int:
        """Runs of layers in a pipeline."""
        return self.stages * self.interleave

    @property
    def least_micro_batches(self) -> int:
        """Micro-batches that a pipeline's step needs; 1 without a pipeline."""
        return self.stages * (2 if self.schedule == "zero_bubble_v" and self.stages > 1 else 1)

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return self.stages * self.pods * self.data * self.model
