"""PyTorch files: tensors out and in, and never anything that a file could execute."""

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
# Modules around a network, whose names stand inside those of its tensors: torch.compile, FSDP, activation
# checkpointing, DeepSpeed, DistributedDataParallel.
AROUND = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "module")
# What PyTorch raises on files that are cut off or altered.
DAMAGED = (RuntimeError, EOFError, ValueError, LookupError, OSError, AttributeError, TypeError, AssertionError)
DEEPEST = 4  # dictionaries in dictionaries, in which training scripts put a state_dict


@dataclass(frozen=True)
class State:
    """The ``state_dict`` of a file, under the names that the network itself has."""

    tensors: Mapping[str, Any]
    """PyTorch's, as they were loaded, or NumPy's of a .safetensors."""
    arrays: Mapping[str, np.ndarray]
    """The same in NumPy; bfloat16, which NumPy lacks, as float32."""
    notes: tuple[str, ...]
    """What else the file holds, a sentence each."""


def need(package: str, pip_name: str) -> ModuleType:
    """An optional package.

    Raises:
        UserError: it is not installed; says how to.
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


def version_of(name: str) -> str:
    """A package with its version, for the user."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


def read_state(path: Path, anchor: str) -> State:
    """The tensors of a network from a .pt (opened weights-only) or a .safetensors, of one file or of several.

    Dictionaries and modules around the network are left away: those of training scripts, torch.compile,
    DistributedDataParallel, Lightning. Names that safetensors gave to tied weights are given back.

    Args:
        path: a file, an index of several, or a folder with either.
        anchor: the end of a name that every such network has.

    Raises:
        UserError: a file is missing, damaged, holds more than tensors, several networks, or tensors without numbers.
    """
    file, notes = find_files(path), []

    def read(part: Path) -> Mapping[str, Any]:
        if part.suffix == SUFFIX:
            return _with_tied(read_weights(part), part)
        content, left_out = _unwrap(_load(part), anchor, part)
        if left_out:
            notes.append(f"{part} also holds {', '.join(left_out)}, which no conversion takes")
        return content

    tensors = _own_names(read_files(file, read), anchor, path)
    arrays = {name: _array(value, f"{path}: {name}") for name, value in tensors.items()}
    loaded = {name: arrays[name] if isinstance(value, np.ndarray) else value for name, value in tensors.items()}
    return State(loaded, arrays, tuple(notes))


def write_tensors(path: Path, network: Any) -> None:
    """Writes a network's ``state_dict``."""
    torch = need("torch", "torch")
    if path.suffix == SUFFIX:
        raise UserError(f"{path}: this format is a PyTorch file; name it .pt")
    torch.save(network.state_dict(), path)


def fill(network: Any, tensors: Mapping[str, Any], where: str, caches: tuple[str, ...] = ()) -> Any:
    """Loads tensors into a network of another package, buffers included; it then is ready to compute.

    Args:
        network: of another package.
        tensors: by its names, PyTorch's or NumPy's; buffers, which the network computes itself, may be missing.
        where: what they come from, for the message.
        caches: ends of names that a network of another version has no place for, and computes itself.

    Raises:
        UserError: the network takes them no other way than with tensors missing, left over or of another shape.
    """
    torch = need("torch", "torch")
    state = {
        name: torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
        for name, value in tensors.items()
    }
    for name in state.keys() - network.state_dict().keys():  # a cache, for which the network has a place
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


def run(network: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits of a PyTorch network: int32 [B, S] to float32 [B, S, vocabulary]."""
    torch = need("torch", "torch")
    with torch.no_grad():
        return network(torch.from_numpy(tokens.astype(np.int64))).numpy()


def _load(file: Path) -> Any:
    torch = need("torch", "torch")
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{file} holds more than tensors, which could execute code when it is opened: refused, and nothing of it "
            "was run; save the network's state_dict() alone"
        ) from None
    except DAMAGED as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file}: this is not a whole PyTorch file ({first})") from None


def _unwrap(content: Any, anchor: str, file: Path) -> tuple[Mapping[str, Any], list[str]]:
    """The ``state_dict`` in what a training script saved, and the keys of what stands beside it."""
    torch, left_out = need("torch", "torch"), []

    def holds_network(value: Any, depth: int = DEEPEST) -> bool:
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
                f"{file} holds several networks, under {' and '.join(map(str, inner))}; save one of them alone: "
                f"torch.save(torch.load(...)[{inner[0]!r}], ...)"
            )
        if not inner:
            break
        left_out += [str(key) for key in content if key != inner[0]]
        content = content[inner[0]]
    if not isinstance(content, dict):
        raise UserError(f"{file}: this is no state_dict, a dictionary of tensors alone")
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"{file}: this is no state_dict, a dictionary of tensors alone; {name} is of type "
                f"{type(value).__name__}: save the network's state_dict() alone"
            )
    return {str(name): value for name, value in content.items()}, left_out


def _with_tied(tensors: dict[str, np.ndarray], file: Path) -> dict[str, np.ndarray]:
    """safetensors writes weights that are tied once, and under its metadata the names that it left out."""
    for name, kept in read_metadata(file).items():
        if name not in tensors and kept in tensors:
            tensors[name] = tensors[kept]
    return tensors


def _own_names(tensors: Mapping[str, Any], anchor: str, path: Path) -> dict[str, Any]:
    """Names without the modules around the network."""
    own: dict[str, Any] = {}
    for name, value in tensors.items():
        short = ".".join(part for part in name.split(".") if part not in AROUND)
        if short in own:
            raise UserError(f"{path} holds {short} twice, once inside of a wrapper; save one of them alone")
        own[short] = value
    ends = [name.removesuffix(anchor) for name in own if name.endswith(anchor)]
    prefixes = sorted(end for end in ends if not end or end.endswith("."))
    if len(prefixes) > 1:
        raise UserError(
            f"{path} holds several networks, under {' and '.join(repr(prefix) for prefix in prefixes)} in its names; "
            "save one of them alone"
        )
    prefix = prefixes[0] if prefixes else ""
    return {name.removeprefix(prefix): value for name, value in own.items()}


def _array(tensor: Any, where: str) -> np.ndarray:
    """A tensor in NumPy."""
    if isinstance(tensor, np.ndarray):
        return as_float32(tensor, where) if tensor.dtype.name == "bfloat16" else tensor
    torch = need("torch", "torch")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta:
        raise UserError(f"{where} is on the meta device: the file has no values for it; save a network that has them")
    if tensor.is_quantized:
        raise UserError(f"{where} is quantised ({dtype}); save its dequantize()")
    if tensor.is_nested or tensor.layout != torch.strided:
        raise UserError(f"{where} is sparse or nested, no dense tensor; save its to_dense()")
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type
        tensor = tensor.to(torch.float32)
    try:
        return tensor.detach().resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError):
        said = f"{where} is {dtype}, which NumPy lacks; save weights as float32, float16 or bfloat16"
        raise UserError(said) from None
