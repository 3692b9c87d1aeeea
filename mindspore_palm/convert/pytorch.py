"""PyTorch files: tensors out and in, and never anything that a file could execute."""

from __future__ import annotations

import pickle
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mindspore_palm.convert.model import as_float32
from mindspore_palm.errors import UserError
from mindspore_palm.train.saved import read_weights

WRAPPERS = ("model", "state_dict", "module")  # keys under which training scripts put what a network holds
PREFIXES = ("module.", "net.")  # of DistributedDataParallel and of wrappers that generate


def need(package: str, pip_name: str) -> ModuleType:
    """An optional package.

    Raises:
        UserError: it is not installed; says how to.
    """
    try:
        return import_module(package)
    except ImportError:
        raise UserError(f"this needs {pip_name}; pip install {pip_name}") from None


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Name to array of a .pt (a ``state_dict``, opened weights-only) or a .safetensors, as float32.

    float16 and bfloat16 become the float32 of the same value.

    Raises:
        UserError: the file is missing, damaged, or holds more than tensors.
    """
    if path.suffix == ".safetensors":
        return {name: as_float32(array, f"{path}: {name}") for name, array in read_weights(path).items()}
    torch = need("torch", "torch")
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than tensors, which could execute code when it is opened: refused, and nothing of it "
            "was run; save the network's state_dict() alone"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, IndexError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: this is not a whole PyTorch file ({first})") from None
    for name in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path}: this is no state_dict, a dictionary of tensors alone")
    tensors = {str(name): _array(torch, value, f"{path}: {name}") for name, value in content.items()}
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): array for name, array in tensors.items()}
    return tensors


def write_tensors(path: Path, network: Any) -> None:
    """Writes a network's ``state_dict``."""
    torch = need("torch", "torch")
    if path.suffix == ".safetensors":
        raise UserError(f"{path}: this format is a PyTorch file; name it .pt")
    torch.save(network.state_dict(), path)


def fill(network: Any, tensors: dict[str, np.ndarray]) -> Any:
    """Gives a network of another package these weights; it then is ready to compute.

    Args:
        network: of another package.
        tensors: by its names; buffers, which the network computes itself, may be missing.
    """
    torch = need("torch", "torch")
    own = network.state_dict()
    buffers = {name for name, _ in network.named_buffers()}
    state = {
        name: value if name in buffers else torch.from_numpy(np.ascontiguousarray(tensors[name]))
        for name, value in own.items()
    }
    network.load_state_dict(state)
    return network.eval()


def run(network: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits of a PyTorch network: int32 [B, S] to float32 [B, S, vocabulary]."""
    torch = need("torch", "torch")
    with torch.no_grad():
        return network(torch.from_numpy(tokens.astype(np.int64))).numpy()


def _array(torch: ModuleType, tensor: Any, where: str) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type
        tensor = tensor.to(torch.float32)
    return as_float32(tensor.detach().numpy(), where)
