"""Model card: README.md of an exported model, with the YAML front matter that Hugging Face reads.

It states what the configuration and the run have recorded. What nobody has recorded, it calls unknown.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from mindspore_palm.checkpoint.cleanup import free_name
from mindspore_palm.checkpoint.training import UNITS, Training
from mindspore_palm.config import PaLMConfig
from mindspore_palm.data.split import SPLITS
from mindspore_palm.file_names import OTHER
from mindspore_palm.presets import PRESETS
from mindspore_palm.version import PACKAGE, commit, version

SEAL = re.compile(r"\n<!-- written by mindspore_palm, sha256 of the text above: ([0-9a-f]{64}) -->\n\Z")
FRONT = {
    "license": "unknown",  # the weights' owner decides it, and may be bound by the licence of the text
    "language": "und",  # ISO 639-2: undetermined; the program does not look at the language of its text
    "library_name": PACKAGE,
    "pipeline_tag": "text-generation",
    "tags": ["palm", "mindspore", "text-generation"],
}
NATIVE_USE = """```python
from mindspore_palm import load

palm = load("FOLDER")  # a MindSpore Cell: int32 [B, S] to float32 logits [B, S, vocabulary]
```

`palm generate --checkpoint FOLDER "a text"` continues a text, where the folder has a tokenizer. Nothing in it executes
code."""


def model_card(config: PaLMConfig, training: Training | None, seq_len: int | None = None, use: str = NATIVE_USE) -> str:
    """The card of a model, in Markdown. Its last line is a seal, by which ``is_unedited`` knows it.

    Args:
        config: of the network.
        training: as recorded; None if it is unknown.
        seq_len: tokens of the sequences that it was trained on; None if they are unknown.
        use: how the model is loaded, in Markdown.
    """
    parts = [
        f"---\n{yaml.safe_dump(FRONT, sort_keys=False)}---",
        f"# {_name(config)}, {config.parameter_count():,} parameters",
        "A decoder-only language model with the architecture of PaLM (arXiv 2204.02311).",
        "## Architecture",
        _table(_architecture(config, seq_len)),
        "## Training",
        *_training(training),
        "## Evaluation",
        _evaluation(training),
        "## Intended use",
        _intended(training),
        "## Limits",
        _limits(seq_len),
        "## How to load it",
        use,
        "## Origin",
        _origin(training),
    ]
    return _sealed("\n\n".join(parts) + "\n")


def is_unedited(card: Path) -> bool:
    """Whether a file is a card that this package wrote, and that nobody has changed since."""
    try:
        text = card.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return False
    seal = SEAL.search(text)
    return seal is not None and seal[1] == _digest(text[: seal.start()])


def keep_edited(card: Path, folder: Path | None = None) -> None:
    """Renames a card that is about to be replaced, if somebody has written, linked or edited it; else does nothing.

    Args:
        card: the path of the new card.
        folder: to move the old one to; None: the folder that it is in.

    Raises:
        OSError: it could not be renamed.
    """
    if card.is_symlink() or (card.is_file() and not is_unedited(card)):
        aside = free_name((folder or card.parent) / f"{card.name}{OTHER}")
        os.replace(card, aside)
        print(f"{card} was edited: it is kept as {aside.name}", file=sys.stderr)


def _name(config: PaLMConfig) -> str:
    """Name of a preset if all its sizes are those of the model, else PaLM."""
    for name, sizes in PRESETS.items():
        if all(getattr(config, size) == value for size, value in sizes.items()) and not config.departures():
            return name
    return "PaLM"


def _architecture(config: PaLMConfig, seq_len: int | None) -> dict[str, object]:
    kinds = config.parameters_by_kind()
    return {
        "Parameters": f"{config.parameter_count():,} ({', '.join(f'{kind} {n:,}' for kind, n in kinds.items())})",
        "Layers": config.layers,
        "d_model": f"{config.d_model:,}",
        "Query heads": config.heads,
        "Key-value heads": config.kv_heads,
        "head_dim": config.head_dim,
        "d_ff": f"{config.d_ff:,}",
        "Vocabulary": f"{config.vocab_size:,} tokens",
        **({"Training sequence length": f"{seq_len:,} tokens"} if seq_len else {}),
        "Departures from PaLM": ", ".join(f"{k}={v}" for k, v in config.departures().items()) or "none",
    }


def _training(training: Training | None) -> list[str]:
    if training is None:
        return ["Unknown: the file that this model was made from does not record its training."]
    rows: dict[str, object] = {"Optimizer steps": f"{training.step:,}", "Tokens trained on": f"{training.tokens:,}"}
    if training.loss:
        rows["Training loss of the last step"] = f"{training.loss} nats/token"
    if training.base:
        rows["Fine-tuned from"] = f"weights with the identity `{training.base}`"
    rows |= {f"`{name}`": _cell(value) for name, value in training.settings.items()}
    texts = []
    for part in SPLITS:
        facts = training.corpus.get(part, {})
        sizes = ", ".join(f"{facts[unit]:,} {unit}" for unit in UNITS if unit in facts)
        texts.append((f"{part} text", sizes or "unknown", facts.get("sha256", "unknown")))
    texts.append(("tokenizer", "", training.corpus.get("tokenizer", "unknown")))
    digests = [f"| {name} | {sizes} | `{digest}` |" for name, sizes, digest in texts]
    data = "\n".join(["| Data | Size | SHA-256 |", "|---|---|---|", *digests])
    return [
        _table(rows),
        "Fingerprints of the data. That of a text covers all its tokens in order, or, in fine-tuning, its pairs:",
        data,
    ]


def _evaluation(training: Training | None) -> str:
    if training is None or training.held_out is None:
        return "No held-out loss is recorded with these weights."
    held_out, rows = training.held_out, {}
    rows["Held-out loss"] = f"{held_out.nats_per_token:.9g} nats/token"
    rows["Held-out loss per byte"] = f"{held_out.bits_per_byte:.9g} bits/byte"
    rows["Held-out tokens scored"] = f"{held_out.tokens:,}"
    if (gzip := training.corpus.get("gzip9_bits_per_byte")) is not None:
        rows["gzip -9 on the same text"] = f"{gzip:.9g} bits/byte"
    return _table(rows)


def _intended(training: Training | None) -> str:
    if training is not None and "finetune.lora_rank" in training.settings:
        return "Text that continues a prompt as the targets of its fine-tuning pairs do; research on language models."
    return "Text that continues a prompt as its training text would; research on language models."


def _limits(seq_len: int | None) -> str:
    limits = [
        "- Only the losses above were measured: nothing is known of its truthfulness, bias or safety.",
        "- The licence of these weights is not recorded, nor the language of their text. Their owner states both in "
        "the first lines of this file.",
    ]
    if seq_len:
        limits.append(f"- It was trained on sequences of {seq_len:,} tokens. How it does on longer ones is unknown.")
    return "\n".join(limits)


def _origin(training: Training | None) -> str:
    rows = {}
    if training is not None and training.versions:
        rows["Trained with"] = ", ".join(f"{name} {number}" for name, number in training.versions.items())
    rows["Written by"] = f"{PACKAGE} {version()}".strip()
    if revision := commit():
        rows["at commit"] = revision
    return _table(rows)


def _table(rows: dict[str, object] | dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _cell(value: object) -> str:
    """A setting in a cell of a table."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_cell, value))
    if isinstance(value, dict):
        return " ".join(f"{name} {_cell(entry)}" for name, entry in value.items())
    return str(value).replace("|", r"\|").replace("\n", " ")


def _sealed(text: str) -> str:
    return f"{text}\n<!-- written by mindspore_palm, sha256 of the text above: {_digest(text)} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
