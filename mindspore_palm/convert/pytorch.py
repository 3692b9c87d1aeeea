"""PyTorch files: reads and writes tensors, and never runs code from a file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mindspore_palm.checkpoint.model_folder import read_metadata, read_weights
from mindspore_palm.convert.model import as_float32
from mindspore_palm.convert.shards import find_files, read_files
from mindspore_palm.errors import UserError

SUFFIX = ".safetensors"
# Wrappers around a network, which insert their names into those of its tensors: torch.compile, FSDP, activation
# checkpointing, DeepSpeed, DistributedDataParallel.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "module")
# Exceptions that PyTorch raises on files that are truncated or altered.
DAMAGED = (RuntimeError, EOFError, ValueError, LookupError, OSError, AttributeError, TypeError, AssertionError)
MAX_DEPTH = 4  # of nested dictionaries in which training scripts put a state_dict


@dataclass(frozen=True)
class State:
    """The ``state_dict`` of a file, with the names of the network itself."""

    tensors: Mapping[str, Any]
    """PyTorch tensors as loaded; NumPy arrays from a .safetensors."""
    arrays: Mapping[str, np.ndarray]
    """The same in NumPy; bfloat16, which NumPy lacks, as float32."""
    notes: tuple[str, ...]
    """Sentences for the user: what else the file holds."""


def optional_package(package: str, pip_name: str) -> ModuleType:
    """Imports an optional package.

    Raises:
        UserError: it is not installed; the message says how to install it.
    """
    try:
        return import_module(package)
    except ImportError:
        raise UserError(f"this needs {pip_name}; pip install {pip_name}") from None


def is_installed(package: str) -> bool:
    """Whether an optional package can be imported."""
    try:
        import_module(package)
    except ImportError:
        return False
    return True


def package_version(name: str) -> str:
    """Name and version of a package, for the user."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


def read_state(path: Path, anchor: str) -> State:
    """Reads the tensors of a network from .pt files (opened weights-only) or .safetensors.

    Dictionaries and modules around the network are removed: those of training scripts, torch.compile,
    DistributedDataParallel, Lightning. Tied weights that safetensors wrote once get both of their names.

    Args:
        path: a file, an index of shards, or a folder with either.
        anchor: end of a tensor name that every such network has.

    Raises:
        UserError: a file is missing, damaged, holds more than tensors, several networks, or tensors without values.
    """
    file, notes = find_files(path), []

    def read(part: Path) -> Mapping[str, Any]:
        if part.suffix == SUFFIX:
            return _restore_tied(read_weights(part), part)
        content, left_out = _unwrap(_load(part), anchor, part)
        if left_out:
            notes.append(f"{part} also holds {', '.join(left_out)}, which is not converted")
        return content

    tensors = _unwrapped_names(read_files(file, read), anchor, path)
    arrays = {name: _array(value, f"{path}: {name}") for name, value in tensors.items()}
    loaded = {name: arrays[name] if isinstance(value, np.ndarray) else value for name, value in tensors.items()}
    return State(loaded, arrays, tuple(notes))


def write_tensors(path: Path, network: Any) -> None:
    """Writes a network's ``state_dict``."""
    torch = optional_package("torch", "torch")
    if path.suffix == SUFFIX:
        raise UserError(f"{path}: this format is a PyTorch file; name it .pt")
    torch.save(network.state_dict(), path)


def load_into(network: Any, tensors: Mapping[str, Any], where: str, caches: tuple[str, ...] = ()) -> Any:
    """Loads tensors, buffers included, into a network of another package, in evaluation mode.

    Args:
        network: the other package's.
        tensors: by the network's names, PyTorch or NumPy; buffers may be missing, as the network computes them.
        where: their source, for the message.
        caches: ends of names of buffers that other versions of the network may not have.

    Raises:
        UserError: a tensor is missing, left over or of another shape.
    """
    torch = optional_package("torch", "torch")
    state = {
        name: torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
        for name, value in tensors.items()
    }
    for name in state.keys() - network.state_dict().keys():  # caches: the network may have an empty buffer for them
        module, _, leaf = name.rpartition(".")
        holder = dict(network.named_modules()).get(module)
        if holder is not None and leaf in holder._buffers:
            holder.register_buffer(leaf, state[name])
        elif name.endswith(caches):
            del state[name]
    try:
        missing = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"{where}: the package does not load it ({' '.join(str(error).split())})") from None
    weights = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    if refused := [*sorted(weights.intersection(missing.missing_keys)), *missing.unexpected_keys]:
        raise UserError(f"{where}: the package has no place for {refused[0]}, or it is missing ({len(refused)} such)")
    return network.eval()


def run_network(network: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits of a PyTorch network: int32 [B, S] to float32 [B, S, vocabulary]."""
    torch = optional_package("torch", "torch")
    with torch.no_grad():
        return network(torch.from_numpy(tokens.astype(np.int64))).numpy()


def _load(file: Path) -> Any:
    torch = optional_package("torch", "torch")
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{file} holds more than tensors, which could run code when it is opened: refused, and none of it was run; "
            "save only the network's state_dict()"
        ) from None
    except DAMAGED as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file}: this is not a complete PyTorch file ({first})") from None


def _unwrap(content: Any, anchor: str, file: Path) -> tuple[Mapping[str, Any], list[str]]:
    """The ``state_dict`` in a training script's file, and the keys of all else in the file."""
    torch, left_out = optional_package("torch", "torch"), []

    def holds_network(value: Any, depth: int = MAX_DEPTH) -> bool:
        if not isinstance(value, dict) or not depth:
            return False
        return any(
            (isinstance(inner, torch.Tensor) and str(key).endswith(anchor)) or holds_network(inner, depth - 1)
            for key, inner in value.items()
        )

    while isinstance(content, dict):
        inner = [key for key, value in content.items() if holds_network(value)]
        if len(inner) + any(str(key).endswith(anchor) for key in content) > 1:
            raise UserError(
                f"{file} holds several networks, under {' and '.join(map(str, inner))}; save only one of them: "
                f"torch.save(torch.load(...)[{inner[0]!r}], ...)"
            )
        if not inner:
            break
        left_out += [str(key) for key in content if key != inner[0]]
        content = content[inner[0]]
    if not isinstance(content, dict):
        raise UserError(f"{file}: this is not a state_dict, a dictionary of tensors")
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"{file}: this is not a state_dict, a dictionary of tensors; {name} is of type "
                f"{type(value).__name__}: save only the network's state_dict()"
            )
    return {str(name): value for name, value in content.items()}, left_out


def _restore_tied(tensors: dict[str, np.ndarray], file: Path) -> dict[str, np.ndarray]:
    """Adds tied weights that safetensors left out: it writes them once, and lists the other names in its metadata."""
    for name, written in read_metadata(file).items():
        if name not in tensors and written in tensors:
            tensors[name] = tensors[written]
    return tensors


def _unwrapped_names(tensors: Mapping[str, Any], anchor: str, path: Path) -> dict[str, Any]:
    """Tensors by their names without the modules around the network."""
    unwrapped: dict[str, Any] = {}
    for name, value in tensors.items():
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if short in unwrapped:
            raise UserError(f"{path} holds {short} twice, once inside a wrapper; save only one of them")
        unwrapped[short] = value
    starts = [name.removesuffix(anchor) for name in unwrapped if name.endswith(anchor)]
    prefixes = sorted(start for start in starts if not start or start.endswith("."))
    if len(prefixes) > 1:
        raise UserError(
            f"{path} holds several networks, under {' and '.join(repr(prefix) for prefix in prefixes)} in its names; "
            "save only one of them"
        )
    prefix = prefixes[0] if prefixes else ""
    return {name.removeprefix(prefix): value for name, value in unwrapped.items()}


def _array(tensor: Any, where: str) -> np.ndarray:
    """A tensor as a NumPy array."""
    if isinstance(tensor, np.ndarray):
        return as_float32(tensor, where) if tensor.dtype.name == "bfloat16" else tensor
    torch = optional_package("torch", "torch")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta:
        raise UserError(f"{where} is on the meta device: the file has no values for it; save a network that has them")
    if tensor.is_quantized:
        raise UserError(f"{where} is quantised ({dtype}); save its dequantize()")
    if tensor.is_nested or tensor.layout != torch.strided:
        raise UserError(f"{where} is sparse or nested, not a dense tensor; save its to_dense()")
    if tensor.dtype == torch.bfloat16:  # NumPy has no such dtype
        tensor = tensor.to(torch.float32)
    try:
        return tensor.detach().resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError):
        message = f"{where} is {dtype}, which NumPy lacks; save weights as float32, float16 or bfloat16"
        raise UserError(message) from None
