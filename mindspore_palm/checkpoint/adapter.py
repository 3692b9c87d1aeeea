"""What LoRA has trained, alone: a small file that turns the model it was trained on into the fine-tuned one."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from mindspore_palm.checkpoint.format import Checkpoint
from mindspore_palm.checkpoint.identity import weights_identity
from mindspore_palm.checkpoint.safetensors_stream import write_tensors
from mindspore_palm.config import FinetuneConfig, PaLMConfig
from mindspore_palm.errors import UserError
from mindspore_palm.files import expanded, write_atomically
from mindspore_palm.model.lora import adapter_shapes, merged_palm
from mindspore_palm.model.palm import PaLM

ADAPTER = "adapter.safetensors"
ADAPTER_FORMAT = "mindspore_palm LoRA 1"


def save_adapter(checkpoint: Checkpoint, file: Path, config: PaLMConfig, finetune: FinetuneConfig) -> None:
    """Writes every A and B of a checkpoint; with rank, alpha and the identity of the frozen weights as metadata.

    Raises:
        OSError: the file could not be written; an earlier one is still there.
    """
    parts = {name: checkpoint.tensors[name] for name in adapter_shapes(config, finetune.lora_rank)}
    base = weights_identity({name: tensor.read for name, tensor in checkpoint.tensors.items()}, config)
    rank, alpha = str(finetune.lora_rank), repr(finetune.lora_alpha)
    about = {"format": ADAPTER_FORMAT, "base": base, "rank": rank, "alpha": alpha}
    with write_atomically(file) as content:
        write_tensors(content, parts, about)


def with_adapter(palm: PaLM, file: str | Path) -> PaLM:
    """A network and what LoRA has trained on it, merged: a new network.

    Raises:
        UserError: the file is no adapter, or one of another network or of other weights.
    """
    file = expanded(file)
    try:
        with safe_open(file, framework="numpy") as content:
            about = content.metadata() or {}
            parts = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a dictionary
        if about.get("format") != ADAPTER_FORMAT:
            raise UserError(f"{file}: this is not an adapter that fine-tuning has left")
        rank, alpha = int(about["rank"]), float(about["alpha"])
    except FileNotFoundError:
        raise UserError(f"there is no {file}") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{file}: this is not a whole adapter ({error})") from None
    wanted = adapter_shapes(palm.config, rank)
    if wrong := [name for name in wanted if name not in parts or parts[name].shape != wanted[name]]:
        raise UserError(f"{file}: {wrong[0]} is missing or of another shape; it was trained on another network")
    weights = {weight.name: weight.asnumpy() for weight in palm.get_parameters()}
    if about.get("base", "") not in ("", weights_identity(weights, palm.config)):
        raise UserError(
            f"{file}: it was trained on other weights than this network has; give it the model that "
            "finetune.checkpoint named then"
        )
    return merged_palm(palm.config, weights | parts, alpha / rank)
