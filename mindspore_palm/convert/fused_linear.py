"""The format of both PyTorch PaLMs: one linear layer for q, k, v, up and gate, layer norms, a tied table.

They are lucidrains' PaLM-pytorch and PaLM-rlhf-pytorch, with which conceptofmind's PaLMs are trained. Linear layers are
stored [out, in]; ``fused_attn_ff_proj`` has the rows q | k | v | up | gate, the gate last. Norms are PyTorch's layer
norm (mean subtracted, epsilon 1e-5) with a scale and no bias, also before the logits. Logits have no factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mindspore_palm.config import PaLMConfig
from mindspore_palm.convert.buffers import check_cache, check_decay, check_frequencies
from mindspore_palm.convert.forward import NUMPY, logits
from mindspore_palm.convert.model import Computed, Model, Options, as_float32, check_scales, require, vocabulary
from mindspore_palm.convert.parts import fuse_kernels, split_kernels
from mindspore_palm.convert.pytorch import (
    State,
    is_installed,
    load_into,
    package_version,
    read_state,
    run_network,
    write_tensors,
)
from mindspore_palm.errors import UserError
from mindspore_palm.settings import model_config

SWITCHES: dict[str, Any] = {
    "norm": "layer_norm",
    "norm_epsilon": 1e-5,
    "final_norm_scale": True,
    "scaled_logits": False,
}


INV_FREQ, DECAY = "rotary_emb.inv_freq", "rotary_emb.scale"
ROTATION = (f".{INV_FREQ}", f".{DECAY}")
CACHES, DECAY_CACHES = ("mask", "attend.mask", "pos_emb"), ("pos_emb_scale",)  # buffers that older versions saved
CACHE_ENDS = tuple(f".{name}" for name in (*CACHES, *DECAY_CACHES))
TABLE_AND_FINAL = (("embedding", ""), ("final_norm", ".gamma"))


@dataclass(frozen=True)
class Names:
    """Tensor names of a package: ``{i}`` is the block from 0, ``{n}`` i + 1, ``{last}`` L + 1, ``{logits}`` L + 2."""

    embedding: str
    block: str
    mlp_out: str
    """After the block's name."""
    final_norm: str
    logits: str


@dataclass(frozen=True)
class FusedLinear:
    """The format of one of the two packages."""

    who: str
    package: str
    """Import name."""
    pip_name: str
    names: Names
    make: Callable[..., Any]
    """Constructor of the package's network; takes sizes in the package's names."""
    norm_scale: str
    """Convention in which the current version of the package stores scales."""
    stored_both_ways: bool = False
    """Whether an older version stored scales the other way."""
    xpos_base: float = 0.0
    hint: str = ""
    """Text after the reason why the format cannot hold a model."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Substrings of names without a counterpart in PaLM, each with the reason."""
    is_read: ClassVar[bool] = True

    def read(self, path: Path, options: Options) -> Model:
        state = self._open(path)
        tensors = state.arrays
        for part, reason in self.refused.items():
            if matches := [name for name in tensors if part in name]:
                raise UserError(f"{path}: {matches[0]}: {reason}")
        config = self._config(tensors, path, options)
        names = self._names(config.layers)
        weights = {"embedding": self._tensor(tensors, names["embedding"], (config.padded_vocab, config.d_model), path)}
        if not np.array_equal(tensors[names["logits"]], tensors[names["embedding"]], equal_nan=True):
            raise UserError(f"{path}: {names['logits']} is another table than {names['embedding']}; PaLM has one")
        for norm in ("final_norm", *(f"blocks.{i}.norm" for i in range(config.layers))):
            weights[f"{norm}.scale"] = self._tensor(tensors, f"{names[norm]}.gamma", (config.d_model,), path)
            if np.any(tensors.get(f"{names[norm]}.beta", 0)):
                raise UserError(f"{path}: {names[norm]}.beta is not zero; PaLM's norms have no bias")
        for i in range(config.layers):
            weights |= fuse_kernels(config, self._parts(tensors, config, names[f"blocks.{i}"], path), i)
        rounded = self._check_buffers(tensors, config, path)
        known = {*names.values(), *(f"{name}.{part}" for name in names.values() for part in ("gamma", "beta"))}
        known |= {f"{names[f'blocks.{i}']}.{name}" for i in range(config.layers) for name in self._inside()}
        if unknown := [name for name in tensors if name not in known]:
            raise UserError(f"{path}: there is no place for {unknown[0]} in a PaLM ({len(unknown)} such)")
        return Model(config, weights, notes=(*state.notes, *self._notes(path, rounded)))

    def write(self, model: Model, path: Path, options: Options) -> None:
        self._require(model.config, self.norm_scale)
        self._check_ff(model.config.d_ff, model.config.d_model, "this model")
        tensors = self._tensors(model)
        tensors[self._names(model.config.layers)["logits"]] = model.weights["embedding"]
        write_tensors(path, load_into(self.make(**self._sizes(model.config)), tensors, "this model"))

    def logits(self, path: Path, tokens: np.ndarray, options: Options) -> Computed:
        state = self._open(path)
        config = self._config(state.arrays, path, options)
        rounded = self._check_buffers(state.arrays, config, path)
        arrays, loaded = dict(state.arrays), dict(state.tensors)
        if rounded:  # a note says so; both sides then compute the buffers in float32
            arrays, loaded = (
                {name: tensor for name, tensor in tensors.items() if not name.endswith(ROTATION)}
                for tensors in (arrays, loaded)
            )
        exception = f" except for {' and '.join(rounded)}" if rounded else ""
        if not is_installed(self.package):
            by = f"{NUMPY} from the file's tensors and inv_freq{exception}, as {self.pip_name} is not installed"
            return Computed(self._by_numpy(arrays, config, tokens, path), by)
        by = f"{package_version(self.pip_name)}, which loaded the file with its buffers{exception}"
        if config.norm_scale != self.norm_scale:  # an older version's file: shift to what the current code stores
            shift = np.float32(1 if self.norm_scale == "around_one" else -1)
            loaded |= {name: gamma + shift for name, gamma in state.arrays.items() if name.endswith(".gamma")}
            by += f" and {shift:+g} on every gamma"
        network = load_into(self.make(**self._sizes(config)), loaded, str(path), CACHE_ENDS)
        return Computed(run_network(network, tokens)[..., : config.vocab_size], by)

    def _open(self, path: Path) -> State:
        """Tensors by name. The table gets both of its names: it is tied, and a file may have only one of them."""
        state = read_state(path, f"{self._names(1)['blocks.0']}.attn_out.weight")
        names = self._names(self._layers(state.arrays))
        for name, twin in ((names["embedding"], names["logits"]), (names["logits"], names["embedding"])):
            if name not in state.arrays and twin in state.arrays:
                return replace(
                    state,
                    tensors={**state.tensors, name: state.tensors[twin]},
                    arrays={**state.arrays, name: state.arrays[twin]},
                )
        return state

    def _parts(self, tensors: Mapping[str, np.ndarray], config: PaLMConfig, block: str, path: Path) -> dict:
        """The kernels of a block, named as in ``parts``."""
        inner, f = config.heads * config.head_dim, config.d_ff
        rows = inner + 2 * config.head_dim + 2 * f
        fused = self._tensor(tensors, f"{block}.fused_attn_ff_proj.weight", (rows, config.d_model), path)
        ends = np.cumsum([inner, config.head_dim, config.head_dim, f])
        parts = dict(zip(("q", "k", "v", "up", "gate"), np.split(fused.T, ends, axis=1), strict=True))
        parts["o"] = self._tensor(tensors, f"{block}.attn_out.weight", (config.d_model, inner), path).T
        parts["down"] = self._tensor(tensors, f"{block}.{self.names.mlp_out}", (config.d_model, f), path).T
        return parts

    def _by_numpy(
        self, tensors: Mapping[str, np.ndarray], config: PaLMConfig, tokens: np.ndarray, path: Path
    ) -> np.ndarray:
        """Logits without the package: rows are split as its code does, and frequencies are those of the file."""
        names = self._names(config.layers)

        def blocks() -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
            inner, k, f = config.heads * config.head_dim, config.head_dim, config.d_ff
            for i in range(config.layers):
                block = names[f"blocks.{i}"]
                rows = self._tensor(tensors, f"{block}.fused_attn_ff_proj.weight", None, path)
                kernels = {"q": rows[:inner], "k": rows[inner : inner + k], "v": rows[inner + k : inner + 2 * k]}
                kernels |= {"up": rows[inner + 2 * k : inner + 2 * k + f], "gate": rows[-f:]}
                kernels["o"] = self._tensor(tensors, f"{block}.attn_out.weight", None, path)
                kernels["down"] = self._tensor(tensors, f"{block}.{self.names.mlp_out}", None, path)
                kernels = {name: rows.T for name, rows in kernels.items()}
                if (frequencies := tensors.get(f"{block}.{INV_FREQ}")) is not None:
                    kernels["frequencies"] = frequencies
                yield self._tensor(tensors, f"{block}.norm.gamma", None, path), kernels

        table, final = (self._tensor(tensors, f"{names[name]}{end}", None, path) for name, end in TABLE_AND_FINAL)
        return logits(config, tokens, table, blocks(), final)

    def _inside(self) -> tuple[str, ...]:
        """Names of all tensors that a block may hold."""
        weights = ("fused_attn_ff_proj.weight", "attn_out.weight", self.names.mlp_out)
        return (*weights, INV_FREQ, *CACHES, *((DECAY, *DECAY_CACHES) if self.xpos_base else ()))

    def _check_buffers(self, tensors: Mapping[str, np.ndarray], config: PaLMConfig, path: Path) -> list[str]:
        """Refuses buffers that are not PaLM's; returns a phrase for each kind that is rounded."""
        rounded = []
        for i in range(config.layers):
            block = self._names(config.layers)[f"blocks.{i}"]
            for leaf, check in ((INV_FREQ, check_frequencies), *(((DECAY, check_decay),) if self.xpos_base else ())):
                name = f"{block}.{leaf}"
                if name not in tensors:
                    continue
                if dtype := check(self._tensor(tensors, name, None, path), config.head_dim, f"{path}: {name}"):
                    rounded.append(f"{leaf.rpartition('.')[2]} rounded to {dtype}")
            for leaf in (*CACHES, *DECAY_CACHES):
                if (name := f"{block}.{leaf}") in tensors:
                    last = leaf.rpartition(".")[2]
                    check_cache(last, tensors[name], config.head_dim, config.xpos_base, f"{path}: {name}")
        return sorted(set(rounded))

    def _notes(self, path: Path, rounded: list[str]) -> Iterator[str]:
        """Notes for the user about what a file of this format leaves open."""
        if rounded:
            yield f"{path} has {' and '.join(rounded)}; both sides compute with those of float32"
        if self.xpos_base:
            yield f"{path} does not record xPos's base; {self.xpos_base:g}, the default of {self.pip_name}, is used"

    def _sizes(self, config: PaLMConfig) -> dict[str, int]:
        """Sizes in the package's names."""
        sizes = {"dim": config.d_model, "num_tokens": config.padded_vocab, "depth": config.layers}
        return sizes | {"dim_head": config.head_dim, "heads": config.heads, "ff_mult": config.d_ff // config.d_model}

    def _tensors(self, model: Model) -> dict[str, np.ndarray]:
        config, weights = model.config, model.weights
        names = self._names(config.layers)
        tensors = {names["embedding"]: weights["embedding"]}
        for norm in ("final_norm", *(f"blocks.{i}.norm" for i in range(config.layers))):
            tensors[f"{names[norm]}.gamma"] = weights[f"{norm}.scale"]
        for i in range(config.layers):
            block, parts = names[f"blocks.{i}"], split_kernels(config, weights, i)
            fused = [parts[name].T for name in ("q", "k", "v", "up", "gate")]
            tensors[f"{block}.fused_attn_ff_proj.weight"] = np.concatenate(fused)
            tensors[f"{block}.attn_out.weight"] = parts["o"].T
            tensors[f"{block}.{self.names.mlp_out}"] = parts["down"].T
        return tensors

    def _layers(self, tensors: Mapping[str, np.ndarray]) -> int:
        layers = 0
        while f"{self._names(layers + 1)[f'blocks.{layers}']}.attn_out.weight" in tensors:
            layers += 1
        return layers

    def _config(self, tensors: Mapping[str, np.ndarray], path: Path, options: Options) -> PaLMConfig:
        layers = self._layers(tensors)
        names = self._names(layers)
        if not layers or names["embedding"] not in tensors or tensors[names["embedding"]].ndim != 2:
            some = ", ".join(list(tensors)[:3])
            raise UserError(f"{path}: this is not a PaLM as {self.who} saves it; it holds {some}")
        block = names["blocks.0"]
        vocab, d_model = tensors[names["embedding"]].shape
        kernels = [f"{block}.{name}" for name in ("fused_attn_ff_proj.weight", "attn_out.weight", self.names.mlp_out)]
        shapes = [self._tensor(tensors, name, None, path).shape for name in kernels]
        if any(len(shape) != 2 for shape in shapes):
            raise UserError(
                f"{path}: the kernels of {block} are {', '.join(str(list(s)) for s in shapes)}, not matrices"
            )
        (rows, _), (_, inner), (_, d_ff) = shapes
        head_dim = (rows - inner - 2 * d_ff) // 2
        if head_dim < 1 or inner % head_dim:
            raise UserError(f"{path}: the {rows} rows of {kernels[0]} are not those of q, k, v, up and gate")
        self._check_ff(d_ff, d_model, str(path))
        gammas = [f"{names[f'blocks.{i}.norm']}.gamma" for i in range(layers)]
        norm_scale = options.norm_scale or self.norm_scale
        if self.stored_both_ways:
            scales = [self._tensor(tensors, gamma, (d_model,), path) for gamma in gammas]
            norm_scale = check_scales(scales, options.norm_scale, self.norm_scale, self.who)
        sizes = vocabulary(vocab, options, str(path)) | {
            "layers": layers,
            "d_model": d_model,
            "heads": inner // head_dim,
            "head_dim": head_dim,
            "d_ff": d_ff,
            "norm_scale": norm_scale,
            "xpos_base": self.xpos_base,
        }
        return model_config(SWITCHES | sizes, str(path))

    def _check_ff(self, d_ff: int, d_model: int, model: str) -> None:
        if d_ff % d_model:
            raise UserError(f"{model} has d_ff {d_ff}; {self.who} has only multiples of d_model, which is {d_model}")

    def _require(self, config: PaLMConfig, norm_scale: str) -> None:
        require(config, self.who, self.hint, **SWITCHES, norm_scale=norm_scale, xpos_base=self.xpos_base)

    def _names(self, layers: int) -> dict[str, str]:
        """The package's name of each tensor or block, by this package's name."""
        theirs = self.names
        names = {"embedding": theirs.embedding, "logits": theirs.logits.format(last=layers + 1, logits=layers + 2)}
        names["final_norm"] = theirs.final_norm.format(last=layers + 1)
        for i in range(layers):
            names[f"blocks.{i}"] = theirs.block.format(i=i, n=i + 1)
            names[f"blocks.{i}.norm"] = f"{names[f'blocks.{i}']}.norm"
        return names

    def _tensor(
        self, tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...] | None, path: Path
    ) -> np.ndarray:
        if name not in tensors:
            raise UserError(f"{path}: {name} is missing")
        if shape is not None and tensors[name].shape != shape:
            raise UserError(f"{path}: {name} is {list(tensors[name].shape)}; the other tensors imply {list(shape)}")
        return as_float32(tensors[name], f"{path}: {name}")
