"""The shape of a PaLM: sizes, departures from PaLM, parameters and FLOPs.

Sizes are those of the paper "PaLM: Scaling Language Modeling with Pathways" (arXiv 2204.02311), table 1.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mindspore_palm.fields import Contradiction, Count, CountOrZero, Layers, Positive, Section
from mindspore_palm.presets import PRESETS

Recompute = Literal["none", "attention", "block"]


class PaLMConfig(Section):
    """The shape of a PaLM. Owns its parameter count and its FLOPs: nobody else computes them."""

    SIZES: ClassVar[frozenset[str]] = frozenset(
        {"preset", "layers", "d_model", "heads", "head_dim", "d_ff", "vocab_size", "vocab_multiple"}
    )
    """Fields that every PaLM chooses. Any other field is PaLM's at its default value and a departure at any other."""

    preset: Literal["", "palm_tiny", "palm_small", "palm_8b", "palm_62b", "palm_540b"] = ""
    """A named size to start from; the other fields of the section then say only what differs. Default: none."""
    layers: Layers = 4
    """Number of blocks. Default 4."""
    d_model: Count = 128
    """Width of the residual stream, in features. Default 128."""
    heads: Count = 4
    """Query heads of a block; must divide d_ff. Default 4."""
    head_dim: Count = 32
    """Features of one head; even, because RoPE rotates pairs. heads * head_dim need not be d_model. Default 32."""
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
    """Ablation: layer_norm subtracts the mean first, as PyTorch's PaLMs do (without a bias). Default rms_norm."""
    norm_epsilon: Positive = 1e-6
    """Ablation: epsilon that norms add to the mean square. Default 1e-6 (PyTorch's layer norm: 1e-5)."""
    norm_scale: Literal["around_zero", "around_one"] = "around_zero"
    """Ablation: around_one stores a norm's scale as applied; around_zero stores it minus one. Default around_zero."""
    final_norm_scale: bool = False
    """Ablation: true also gives the norm before the logits a learned scale. Default false."""
    scaled_logits: bool = True
    """Ablation: false drops the factor 1/sqrt(d_model) of the logits. Default true."""
    xpos_base: Annotated[float, Field(ge=0)] = 0.0
    """Ablation: rotation with decay over this distance (xPos, arXiv 2212.10554: 512). Default 0: rotation alone."""
    position: Literal["rope", "learned", "alibi", "none"] = "rope"
    """Ablation: how attention knows positions. learned adds a trained row per position to the embedding; alibi (arXiv
    2108.12409) lowers scores by 2^(-8i/heads) per token of distance, i = 1 .. heads; none leaves it to the causal mask.
    Default rope."""
    position_rows: CountOrZero = 0
    """Rows of the table of position=learned, the longest sequence that it can read. Default 0: data.seq_len."""

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
        if self.xpos_base and self.position != "rope":
            text = (
                f"xpos_base = {self.xpos_base:g} is of a rotation, and position = {self.position} has none; set it to 0"
            )
            raise Contradiction(text, "xpos_base", "position")
        if self.position == "learned" and not self.position_rows:
            text = "position = learned needs position_rows, the rows of its table; set it to the longest sequence"
            raise Contradiction(text, "position_rows", "position")
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
        """Key and value heads: one, or one per query head for multi-head attention."""
        return 1 if self.attention == "multi_query" else self.heads

    @property
    def neutral_scale(self) -> float:
        """Stored scale of a norm that changes nothing; applied are stored ones plus one minus it."""
        return 0.0 if self.norm_scale == "around_zero" else 1.0

    @property
    def mlp_inputs(self) -> int:
        """Input kernels of the feed-forward layer: two (gate, up) if gated, else one."""
        return 2 if self.mlp in ("swiglu", "geglu") else 1

    @property
    def mlp_per_head(self) -> int:
        """Feed-forward features stored with one head in the fused kernels."""
        return self.d_ff // self.heads

    @property
    def alibi_heads(self) -> int:
        """Heads whose scores ALiBi lowers: all of them, or none."""
        return self.heads if self.position == "alibi" else 0

    @property
    def longest(self) -> int | None:
        """Tokens of the longest sequence that the network can read; None if it has no end."""
        return self.position_rows if self.position == "learned" else None

    def parameters_by_kind(self) -> dict[str, int]:
        """Parameters of embedding, attention and mlp, and of learned positions if the network has them.

        Like the paper, it leaves out padding rows and norm scales.
        """
        projections = 2 * self.heads * self.head_dim + 2 * self.kv_heads * self.head_dim
        return {
            "embedding": self.vocab_size * self.d_model,
            "attention": self.layers * self.d_model * projections,
            "mlp": self.layers * self.d_model * self.d_ff * (self.mlp_inputs + 1),
            **({"positions": self.longest * self.d_model} if self.longest else {}),
        }

    def parameter_count(self) -> int:
        """Parameters as the paper counts them: 8,631,877,632 for palm_8b (padding rows and norm scales left out)."""
        return sum(self.parameters_by_kind().values())

    def flops_per_token(self, length: int) -> int:
        """FLOPs/token of the forward and backward pass at a sequence length: 6N + 12*L*H*Q*T (appendix B).

        The basis of MFU: not halved for causality, and without recomputation. Learned positions are added, not
        multiplied with anything: they are not in N.
        """
        multiplied = self.parameter_count() - self.parameters_by_kind().get("positions", 0)
        return 6 * multiplied + self.score_flops_per_token(length)

    def score_flops_per_token(self, length: int) -> int:
        """FLOPs/token of both passes of attention's matmuls without weights, scores and mix: 12*L*H*Q*T."""
        return 12 * self.layers * self.heads * self.head_dim * length

    def recomputed_flops_per_token(self, length: int, recompute: Recompute) -> float:
        """FLOPs/token that the backward pass recomputes, as the paper counts them (appendix B).

        attention: both matmuls of every head, 4*L*H*Q*T (palm_8b and palm_62b). block: those, and three quarters of the
        forward pass of all weights, 0.75*2N (palm_540b).
        """
        attention = self.score_flops_per_token(length) // 3
        of_weights = 0.75 * 2 * self.parameter_count()
        return {"none": 0, "attention": attention, "block": of_weights + attention}[recompute]

    def hardware_flops_per_token(self, length: int, recompute: Recompute) -> float:
        """FLOPs/token including recomputation: the basis of HFU."""
        return self.flops_per_token(length) + self.recomputed_flops_per_token(length, recompute)
