"""Google's flaxformer, as T5X keeps its parameters: one .safetensors of the tree, names joined by "/".

PaLM's own layer is flaxformer's parallel fused decoder, and its kernels have our order: ``q_wi_fused``
[D, H, K + 2F/H], ``kv_fused`` [D, 1, 2K], ``o_wo_fused`` [H, K + F/H, D]. Layers are trees of their own,
``decoder/layers_0/...``, or stacked along axis 1 under ``decoder/decoder/...``, as Google's inference code reads PaLM's
checkpoints. Both are read; the stacked one is written. T5X's own folders (zarr arrays beside a msgpack file) are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mindspore_palm.checkpoint.model_folder import read_weights
from mindspore_palm.checkpoint.safetensors_stream import write_tensors
from mindspore_palm.config import PaLMConfig
from mindspore_palm.convert.forward import NUMPY, logits
from mindspore_palm.convert.model import Computed, Model, Options, as_float32, check_scales, require, vocabulary
from mindspore_palm.errors import UserError
from mindspore_palm.files import write_atomically
from mindspore_palm.settings import model_config

WHO = "flaxformer's parallel fused decoder"
ROOTS = ("optimizer/target/", "target/", "")  # of T5X's trees, old and new, and of parameters alone
KERNELS = ("q_wi_fused/kernel", "kv_fused/kernel", "o_wo_fused/kernel")
NORM, FINAL, EMBEDDING = "layer_norm/scale", "decoder/decoder_norm/scale", "decoder/token_embedder/embedding"
SUPPORTED = ("norm_scale", "final_norm_scale")  # departures from PaLM that the tree holds


class Flaxformer:
    """See above."""

    is_read = True

    def read(self, path: Path, options: Options) -> Model:
        tree = self._tree(path)
        config = self._config(tree, path, options)
        d = config.d_model
        weights = {"embedding": tree[EMBEDDING]}
        if config.final_norm_scale:
            weights["final_norm.scale"] = tree[FINAL]
        for i, layer in enumerate(self._layers(tree, path)):
            weights[f"blocks.{i}.norm.scale"] = layer[NORM]
            weights[f"blocks.{i}.q_wi"] = layer["q_wi_fused/kernel"].reshape(d, -1)
            weights[f"blocks.{i}.kv"] = layer["kv_fused/kernel"].reshape(d, -1)
            weights[f"blocks.{i}.o_wo"] = layer["o_wo_fused/kernel"].reshape(-1, d)
        assumed = f"{path} says neither norms nor logits: PaLM's are taken, with an epsilon of {config.norm_epsilon:g}"
        return Model(config, weights, notes=(assumed,))

    def write(self, model: Model, path: Path, options: Options) -> None:
        config, weights = model.config, model.weights
        require(config, WHO, supported=SUPPORTED)
        d, h = config.d_model, config.heads
        shapes = {"q_wi": (d, h, -1), "kv": (d, 1, -1), "o_wo": (h, -1, d)}
        tree = {EMBEDDING: weights["embedding"]}
        if config.final_norm_scale:
            tree[FINAL] = weights["final_norm.scale"]
        blocks = range(config.layers)
        tree[f"decoder/decoder/{NORM}"] = np.stack([weights[f"blocks.{i}.norm.scale"] for i in blocks], axis=1)
        for kernel, shape in shapes.items():
            stacked = np.stack([weights[f"blocks.{i}.{kernel}"].reshape(shape) for i in blocks], axis=1)
            tree[f"decoder/decoder/{kernel}_fused/kernel"] = stacked
        with write_atomically(path) as file:
            write_tensors(file, {f"target/{name}": value for name, value in tree.items()}, {"format": "np"})

    def logits(self, path: Path, tokens: np.ndarray, options: Options) -> Computed:
        tree = self._tree(path)
        config = self._config(tree, path, options)
        found = logits(config, tokens, tree[EMBEDDING], self._blocks(tree, path, config), tree.get(FINAL))
        return Computed(found, f"{NUMPY} from the tree's kernels, as no package of flaxformer can be installed")

    def _blocks(self, tree: dict, path: Path, config: PaLMConfig) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Each layer as flaxformer's layer slices it: its output along the last axis, so the kernels'."""
        d, dh, m = config.d_model, config.head_dim, config.mlp_per_head
        for layer in self._layers(tree, path):
            q_wi, kv, o_wo = (layer[name] for name in KERNELS)
            inputs = {"q": q_wi[..., :dh], "gate": q_wi[..., dh : dh + m], "up": q_wi[..., dh + m :]}
            inputs |= {"k": kv[..., :dh], "v": kv[..., dh:]}
            outputs = {"o": o_wo[:, :dh], "down": o_wo[:, dh:]}
            kernels = {name: part.reshape(d, -1) for name, part in inputs.items()}
            yield layer[NORM], kernels | {name: part.reshape(-1, d) for name, part in outputs.items()}

    def _tree(self, path: Path) -> dict[str, np.ndarray]:
        if path.is_dir():
            raise UserError(
                f"{path} is a folder: T5X's own checkpoints are not read; restore it by T5X and save the flattened "
                'tree, names joined by "/", by safetensors.numpy.save_file'
            )
        tree = read_weights(path)
        root = next((root for root in ROOTS if f"{root}{EMBEDDING}" in tree), None)
        if root is None:
            raise UserError(f"{path}: there is no {EMBEDDING}, below 'target/' or not; this is no tree of {WHO}")
        tree = {name.removeprefix(root): array for name, array in tree.items() if name.startswith(root)}
        if tree[EMBEDDING].ndim != 2:
            raise UserError(f"{path}: {EMBEDDING} is {list(tree[EMBEDDING].shape)}, not [V, D]")
        return {name: as_float32(array, f"{path}: {name}") for name, array in tree.items()}

    def _layers(self, tree: dict[str, np.ndarray], path: Path) -> list[dict[str, np.ndarray]]:
        names, stacked = (NORM, *KERNELS), f"decoder/decoder/{NORM}"
        count = tree[stacked].shape[-1] if stacked in tree and tree[stacked].ndim else 0
        while stacked not in tree and f"decoder/layers_{count}/{NORM}" in tree:
            count += 1
        if stacked in tree:
            expected = {f"decoder/decoder/{name}" for name in names}
        else:
            expected = {f"decoder/layers_{i}/{name}" for i in range(count) for name in names}
        if not count or (missing := sorted(expected - tree.keys())):
            raise UserError(f"{path}: {missing[0] if count else stacked} is missing; this is no tree of {WHO}")
        if unknown := sorted(tree.keys() - expected - {EMBEDDING, FINAL}):
            raise UserError(f"{path}: there is no place for {unknown[0]} in a PaLM ({len(unknown)} such)")
        if stacked not in tree:
            return [{name: tree[f"decoder/layers_{i}/{name}"] for name in names} for i in range(count)]
        for name in expected:
            if tree[name].ndim < 2 or tree[name].shape[1] != count:
                raise UserError(f"{path}: {name} is {list(tree[name].shape)}; its axis 1 must be the {count} layers")
        return [{name: tree[f"decoder/decoder/{name}"][:, i] for name in names} for i in range(count)]

    def _config(self, tree: dict[str, np.ndarray], path: Path, options: Options) -> PaLMConfig:
        layers = self._layers(tree, path)
        vocab, d_model = tree[EMBEDDING].shape
        if any(layers[0][name].ndim != 3 for name in KERNELS):
            found = ", ".join(f"{name} {list(layers[0][name].shape)}" for name in KERNELS)
            raise UserError(f"{path}: a layer has {found}, not [D, H, K + 2F/H], [D, 1, 2K], [H, K + F/H, D]")
        q_wi, kv, o_wo = (layers[0][name] for name in KERNELS)
        head_dim, heads = kv.shape[-1] // 2, q_wi.shape[1]
        sizes = vocabulary(vocab, options, str(path)) | {
            "layers": len(layers),
            "d_model": d_model,
            "heads": heads,
            "head_dim": head_dim,
            "d_ff": (o_wo.shape[1] - head_dim) * heads,
            "norm_scale": check_scales([layer[NORM] for layer in layers], options.norm_scale, "around_zero", WHO),
            "final_norm_scale": FINAL in tree,
        }
        config = model_config(sizes, str(path))
        m = config.mlp_per_head
        shapes = [(d_model, heads, head_dim + 2 * m), (d_model, 1, 2 * head_dim), (heads, head_dim + m, d_model)]
        for i, layer in enumerate(layers):
            for name, shape in zip((*KERNELS, NORM), (*shapes, (d_model,)), strict=True):
                if layer[name].shape != shape:
                    raise UserError(f"{path}: {name} of layer {i} is {list(layer[name].shape)}, not {list(shape)}")
        return config
