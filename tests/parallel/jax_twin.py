"""The JAX side of the parity suite, in a separate process: eight devices on one CPU must be requested at its start.

``jax_twin.py FOLDER`` reads FOLDER/NETWORK.npz (initial weights) and FOLDER/jobs.json, and writes FOLDER/JOB.npz.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from parallel.cases import MODEL, NETWORKS, batches
from reference import mesh as reference
from reference.palm import Shape

ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
# The settings of cases.OPTIMIZER_SETTINGS, as the reference names them: which of its optimizers, and how it is called.
SETTINGS = {
    "adafactor": ("adafactor", {}),
    "adamw": ("adamw", {"peak": 1e-3, "decay": 0.1, "eps": 1e-5}),
    "lion": ("lion", {"peak": 1e-4, "decay": 0.1}),
    "factored": ("adafactor", {"factored": True}),
}
MULTIPLE = MODEL["vocab_multiple"]
SHAPE = Shape(
    *(MODEL[name] for name in ("layers", "d_model", "heads", "head_dim", "d_ff", "vocab_size")),
    padded_vocab=-(-MODEL["vocab_size"] // MULTIPLE) * MULTIPLE,
)


Job = tuple[str, int, str, tuple[int, int, int] | None]  # optimizer, length, network, mesh


def job_name(optimizer: str, length: int, network: str, mesh: tuple[int, int, int] | None) -> str:
    """The file name of one curve."""
    return f"{optimizer}-{length}-{network}-{'x'.join(map(str, mesh)) if mesh else 'one'}"


def main(folder: Path) -> None:
    for optimizer, length, network, mesh in json.loads((folder / "jobs.json").read_text()):
        devices = reference.make_mesh(*mesh) if mesh else None
        weights, (name, settings) = dict(np.load(folder / f"{network}.npz")), SETTINGS[optimizer]
        departures = dict(NETWORKS[network])
        shape = replace(SHAPE, layers=departures.pop("layers", SHAPE.layers))
        curve, gradients, final = reference.train(
            weights, *batches(length), shape, name, devices, departures, **settings
        )
        seen = {f"gradient/{name}": gradient for name, gradient in gradients.items()}
        seen |= {f"final/{name}": weight for name, weight in final.items()}
        job = job_name(optimizer, length, network, mesh)
        np.savez(folder / f"{job}.npz", curve=curve, **seen)
        print(job, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
