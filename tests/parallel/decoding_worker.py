"""One worker that decodes: ``decoding_worker.py FOLDER`` reads FOLDER/mesh.json and writes FOLDER/RANK.npz."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
from mindspore import Tensor
from parallel.cases import MODEL, norm_scale

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.generate.decoder import CHUNK, Decoder
from mindspore_palm.parallel.axes import MODEL_AXES, Layout, layout
from mindspore_palm.parallel.context import join_workers, open_device
from mindspore_palm.parallel.mesh import Mesh

LENGTHS = (CHUNK + 3, 5)  # of two prompts: longer than a chunk, and short
STEPS = 12
HEADS = {"heads": 8, "head_dim": 8}  # one for each of at most eight devices
STANDARD = {
    "block": "serial",
    "mlp": "gelu",
    "norm": "layer_norm",
    "norm_scale": "around_one",
    "final_norm_scale": True,
}
VOCABULARIES = {"padded": {}, "even": {"vocab_size": 64, "vocab_multiple": 1, **STANDARD}}
"""Both kinds of vocabulary: of PaLM, and of a network with the standard Transformer's block."""


def decode(vocabulary: str) -> dict[str, np.ndarray]:
    """Greedy steps on the current layout: logits [steps, B, vocab_size], log(Z) [steps, B], tokens [steps, B]."""
    palm = PaLM(PaLMConfig(**{**MODEL, **HEADS, **VOCABULARIES[vocabulary]}), seed=3)
    for weight in palm.trainable_params():
        if weight.name.endswith("norm.scale"):
            weight.set_data(Tensor(norm_scale(weight.name)))
    draw, seen = np.random.default_rng(5), []
    prompts = [draw.integers(0, MODEL["vocab_size"], length).tolist() for length in LENGTHS]
    decoder, positions = Decoder(palm, len(prompts), CHUNK + 3 + STEPS), np.array(LENGTHS)
    results = decoder.read(prompts)
    for _ in range(STEPS):
        tokens = results[0].argmax(-1)
        seen.append((*results, tokens))
        results = decoder.write(tokens, positions)
        positions = positions + 1
    logits, log_z, tokens = map(np.stack, zip(*seen, strict=True))
    return {f"{vocabulary}/{name}": x for name, x in (("logits", logits), ("log_z", log_z), ("tokens", tokens))}


def main(folder: Path) -> None:
    group = folder / f"group_{os.getpgid(0)}"  # to kill it by
    group.touch()
    mesh = Mesh(*json.loads((folder / "mesh.json").read_text()))
    open_device("CPU")
    rank = join_workers(mesh.devices, "CPU")
    with layout(Layout(mesh, MODEL_AXES, "off")):
        results = decode("padded") | decode("even")
    np.savez(folder / f"{rank}.npz", **results)
    (folder / f"done_{rank}").touch()
    group.unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
