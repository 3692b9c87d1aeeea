"""A folder in Hugging Face style: config.json, model.safetensors in shards, and the index of their weights.

transformers has no PaLM, so names are those of its other models. Kernels are [out, in], as its linear layers store
them: ``model.embed_tokens.weight``, ``model.layers.0.input_layernorm.weight``, ``.self_attn.{q,k,v,o}_proj.weight``,
``.mlp.{gate,up,down}_proj.weight``. config.json has the usual fields, and all of ``PaLMConfig`` in a section
``mindspore_palm``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mindspore_palm.checkpoint.model_folder import read_weights
from mindspore_palm.checkpoint.safetensors_stream import write_tensors
from mindspore_palm.config import PaLMConfig
from mindspore_palm.convert.forward import NUMPY, logits
from mindspore_palm.convert.model import Computed, Model, Options, as_float32, require
from mindspore_palm.convert.parts import fuse_kernels, split_kernels
from mindspore_palm.convert.shards import read_files, read_json
from mindspore_palm.data.byte_level import is_tokenizer_json
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import TOKENIZER, TOKENIZER_JSON
from mindspore_palm.files import write_atomically, write_json
from mindspore_palm.settings import model_config

WHO = "a folder in Hugging Face style"
SUPPORTED = ("norm", "norm_epsilon", "norm_scale", "final_norm_scale", "scaled_logits")  # departures that it can hold
CONFIG, WEIGHTS, INDEX, SECTION = "config.json", "model.safetensors", "model.safetensors.index.json", "mindspore_palm"
EMBEDDING, FINAL, LOGITS = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
INFORMATIVE = ("architectures", "model_type", "torch_dtype")  # fields of config.json that change nothing
# Fields of config.json with which other models with the same weight names depart from PaLM.
FOREIGN = (
    "rope_scaling",
    "quantization_config",
    "attention_bias",
    "mlp_bias",
    "use_bias",
    "sliding_window",
    "logit_scale",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "use_qk_norm",
)
PROJECTIONS = {part: f"self_attn.{part}_proj.weight" for part in "qkvo"} | {
    part: f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")
}


class HuggingFace:
    """A folder in Hugging Face style, as the module's docstring says."""

    is_read = True

    def read(self, path: Path, options: Options) -> Model:
        config, tensors, seq_len = self._open(path)
        weights = {"embedding": tensors[EMBEDDING]}
        if config.final_norm_scale:
            weights["final_norm.scale"] = tensors[FINAL]
        for i in range(config.layers):
            prefix = f"model.layers.{i}"
            weights[f"blocks.{i}.norm.scale"] = tensors[f"{prefix}.input_layernorm.weight"]
            parts = {part: tensors[f"{prefix}.{name}"].T for part, name in PROJECTIONS.items()}
            weights |= fuse_kernels(config, parts, i)
        tokenizer = next((path / name for name in (TOKENIZER, TOKENIZER_JSON) if (path / name).exists()), None)
        return Model(config, weights, tokenizer.read_bytes() if tokenizer else None, seq_len)

    def write(self, model: Model, path: Path, options: Options) -> None:
        require(model.config, WHO, supported=SUPPORTED)
        path.mkdir(parents=True)
        shards = _shards(dict(self._tensors(model)), options.shard_bytes)
        names = [WEIGHTS] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
        for name, shard in zip(names, shards, strict=True):
            with write_atomically(path / name) as file:
                write_tensors(file, shard, {"format": "pt"})
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        size = sum(array.nbytes for shard in shards for array in shard.values())
        write_json(path / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))})
        write_json(path / CONFIG, _config_json(model))
        if model.tokenizer is not None:
            name = TOKENIZER_JSON if is_tokenizer_json(model.tokenizer) else TOKENIZER
            (path / name).write_bytes(model.tokenizer)

    def logits(self, path: Path, tokens: np.ndarray, options: Options) -> Computed:
        config, tensors, _ = self._open(path)

        def blocks() -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
            for i in range(config.layers):
                prefix = f"model.layers.{i}"
                kernels = {part: tensors[f"{prefix}.{name}"].T for part, name in PROJECTIONS.items()}
                yield tensors[f"{prefix}.input_layernorm.weight"], kernels

        by_numpy = logits(config, tokens, tensors[EMBEDDING], blocks(), tensors.get(FINAL))
        return Computed(by_numpy, f"{NUMPY} from the folder's kernels, as transformers has no PaLM")

    def _tensors(self, model: Model) -> Iterator[tuple[str, np.ndarray]]:
        yield EMBEDDING, model.weights["embedding"]
        for i in range(model.config.layers):
            yield f"model.layers.{i}.input_layernorm.weight", model.weights[f"blocks.{i}.norm.scale"]
            for part, kernel in split_kernels(model.config, model.weights, i).items():
                yield f"model.layers.{i}.{PROJECTIONS[part]}", kernel.T
        if model.config.final_norm_scale:
            yield FINAL, model.weights["final_norm.scale"]

    def _open(self, path: Path) -> tuple[PaLMConfig, dict[str, np.ndarray], int | None]:
        """Configuration, tensors by name, and training sequence length."""
        described = read_json(path / CONFIG)
        if not isinstance(described.get(SECTION), dict):
            raise UserError(f"{path / CONFIG}: there is no section {SECTION!r}; this package did not write the folder")
        config = model_config(described[SECTION], f"{path / CONFIG}, {SECTION}")
        require(config, f"{path / CONFIG}: {WHO}", supported=SUPPORTED)
        _check_described(described, config, path / CONFIG)
        has_index = (path / INDEX).exists() or not (path / WEIGHTS).exists()
        read = read_files(path / (INDEX if has_index else WEIGHTS), read_weights)
        tensors = {name: as_float32(array, f"{path}: {name}") for name, array in read.items()}
        if LOGITS in tensors and np.array_equal(tensors[LOGITS], tensors.get(EMBEDDING, 0)):
            del tensors[LOGITS]  # a tied table, which some tools write twice
        self._check(config, tensors, path)
        seq_len = described.get("max_position_embeddings")
        return config, tensors, seq_len if isinstance(seq_len, int) else None

    def _check(self, config: PaLMConfig, tensors: dict[str, np.ndarray], path: Path) -> None:
        d, f, inner, k = config.d_model, config.d_ff, config.heads * config.head_dim, config.head_dim
        kernels = {"q": (inner, d), "k": (k, d), "v": (k, d), "o": (d, inner)}
        kernels |= {"gate": (f, d), "up": (f, d), "down": (d, f)}
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.padded_vocab, d)}
        for i in range(config.layers):
            shapes[f"model.layers.{i}.input_layernorm.weight"] = (d,)
            shapes |= {f"model.layers.{i}.{PROJECTIONS[part]}": shape for part, shape in kernels.items()}
        if config.final_norm_scale:
            shapes[FINAL] = (d,)
        for name, shape in shapes.items():
            if name not in tensors:
                raise UserError(f"{path}: {name} is missing")
            if tensors[name].shape != shape:
                actual = f"{tensors[name].dtype} {list(tensors[name].shape)}"
                raise UserError(f"{path}: {name} is {actual}, and {CONFIG} wants float32 {list(shape)}")
        if unknown := sorted(tensors.keys() - shapes.keys()):
            raise UserError(f"{path}: there is no place for {unknown[0]} in a PaLM ({len(unknown)} such)")


def _check_described(described: dict[str, Any], config: PaLMConfig, file: Path) -> None:
    """Checks that the usual fields of config.json agree with the section of this package, and describe a PaLM.

    Raises:
        UserError: a size differs between the two, or a field describes what PaLM does not have.
    """
    for name, value in _config_json(Model(config, {})).items():
        if name not in (SECTION, *INFORMATIVE) and name in described and described[name] != value:
            raise UserError(f"{file}: {name} is {described[name]!r}, and section {SECTION!r} implies {value!r}")
    for name in FOREIGN:
        if described.get(name):
            raise UserError(f"{file}: {name} is {described[name]!r}, which PaLM does not have")


def _config_json(model: Model) -> dict[str, Any]:
    config = model.config
    return {
        "architectures": ["PaLMForCausalLM"],
        "model_type": "palm",
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        **({"max_position_embeddings": model.seq_len} if model.seq_len else {}),
        SECTION: config.model_dump(mode="json"),
    }


def _shards(tensors: dict[str, np.ndarray], max_bytes: int) -> list[dict[str, np.ndarray]]:
    """Tensors in order, grouped in shards of at most ``max_bytes``; a larger tensor is a shard of its own."""
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in tensors.items():
        if shards[-1] and size + array.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    return shards


def _shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05}-of-{count:05}.safetensors"
