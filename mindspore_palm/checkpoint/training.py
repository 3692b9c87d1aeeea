"""Facts about the training of a model, as its run recorded them. They are stored in the header of its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mindspore_palm.checkpoint.format import Checkpoint
from mindspore_palm.config import Settings
from mindspore_palm.data.split import SPLITS

TRAINING = "training"  # key in the metadata of a model's file
UNITS = ("documents", "bytes", "tokens")  # in which a fingerprint counts a text
HUB = "hf://"


@dataclass(frozen=True)
class HeldOut:
    """Loss on all held-out text after the last step."""

    tokens: int
    nats_per_token: float
    bits_per_byte: float


@dataclass(frozen=True)
class Training:
    """Training of a model: what its run recorded, and nothing else."""

    step: int
    """Optimizer steps taken."""
    tokens: int
    """Tokens trained on."""
    loss: str = ""
    """Training loss of the last step in nats/token, as metrics.csv has it; empty if it is not recorded."""
    corpus: dict[str, Any] = field(default_factory=dict)
    """Fingerprint of tokenizer and text, as in state.json."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of Python, MindSpore and NumPy that trained it, as in state.json."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the run that the card of the model shows, by ``section.key``."""
    base: str = ""
    """Identity of the weights that fine-tuning started from; empty if it started from initial weights."""
    held_out: HeldOut | None = None
    """None if it was not measured."""

    @staticmethod
    def of(checkpoint: Checkpoint, settings: Settings, held_out: HeldOut | None = None) -> Training | None:
        """Training of a checkpoint; None if its state does not record how far it is."""
        state = checkpoint.state
        progress = state.get("progress", {})
        if "step" not in progress or "tokens" not in progress:
            return None
        losses = dict(state.get("losses", ()))
        return Training(
            progress["step"],
            progress["tokens"],
            losses.get(progress["step"], ""),
            state.get("corpus", {}),
            state.get("versions", {}),
            _recorded(settings),
            progress.get("base", ""),
            held_out,
        )

    def is_sound(self) -> bool:
        """Whether all values have their types: anybody can write the header of a file."""
        texts = [self.corpus.get(part, {}) for part in SPLITS] if isinstance(self.corpus, dict) else [None]
        numbers = [self.held_out.nats_per_token, self.held_out.bits_per_byte] if self.held_out else []
        counts = [self.step, self.tokens, *([self.held_out.tokens] if self.held_out else [])]
        if not all(isinstance(group, dict) for group in (*texts, self.versions, self.settings)):
            return False
        counts += [text[unit] for text in texts for unit in UNITS if unit in text]
        numbers += [value for value in [self.corpus.get("gzip9_bits_per_byte")] if value is not None]
        words = [self.loss, self.base, *self.versions.values(), *(text.get("sha256", "") for text in texts)]
        return (
            all(type(count) is int for count in counts)
            and all(isinstance(number, int | float) for number in numbers)
            and all(isinstance(word, str) for word in words)
        )

    def to_header(self) -> str:
        """Text for the header of a safetensors file."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_header(header: Mapping[str, str]) -> Training | None:
        """Inverse of ``to_header``; None if the header records no training, or was altered."""
        try:
            values = json.loads(header[TRAINING])
            known = {name: values[name] for name in Training.__dataclass_fields__ if name in values}
            held_out = known.pop("held_out", None)
            training = Training(**known, held_out=HeldOut(**held_out) if held_out else None)
            return training if training.is_sound() else None
        except (KeyError, ValueError, TypeError):
            return None


def _recorded(settings: Settings) -> dict[str, Any]:
    """The settings that a card shows: the data, the sizes of a step, the optimizer, and fine-tuning if it was that."""
    data, train, optimizer, finetune = settings.data, settings.train, settings.optimizer, settings.finetune
    sources = [{"path": _public(source.path), "weight": source.weight} for source in data.mixture]
    return {
        **({"data.mixture": sources} if sources else {"data.path": _public(data.path)}),
        "data.seq_len": data.seq_len,
        "train.batch_size": train.batch_size,
        "train.seed": train.seed,
        "train.compute_dtype": train.compute_dtype,
        "optimizer.name": optimizer.name,
        "optimizer.schedule": optimizer.schedule,
        "optimizer.learning_rate": optimizer.learning_rate,
        **({"finetune.lora_rank": finetune.lora_rank} if finetune.checkpoint else {}),
    }


def _public(path: str) -> str:
    """A path without the folders above it: cards are published, and those name users and machines."""
    return path if path.startswith(HUB) or not Path(path).is_absolute() else Path(path).name
