"""The JAX side of the parity suite, in a separate process: eight devices on one CPU must be requested at its start.

``jax_twin.py FOLDER`` reads FOLDER/start.npz (initial weights) and FOLDER/jobs.json, and writes FOLDER/JOB.npz.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from parallel.cases import MODEL, batches
from reference import mesh as reference
from reference.palm import Shape

ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
# The settings of cases.OPTIMIZERS, as the reference names them.
SETTINGS = {"adafactor": {}, "adamw": {"peak": 1e-3, "decay": 0.1, "eps": 1e-5}, "lion": {"peak": 1e-4, "decay": 0.1}}
MULTIPLE = MODEL["vocab_multiple"]
SHAPE = Shape(
    *(MODEL[name] for name in ("layers", "d_model", "heads", "head_dim", "d_ff", "vocab_size")),
    padded_vocab=-(-MODEL["vocab_size"] // MULTIPLE) * MULTIPLE,
)


def job_name(optimizer: str, length: int, mesh: tuple[int, int, int] | None) -> str:
    """The file name of one curve."""
    return f"{optimizer}-{length}-{'x'.join(map(str, mesh)) if mesh else 'one'}"


def main(folder: Path) -> None:
    weights = dict(np.load(folder / "start.npz"))
    for optimizer, length, mesh in json.loads((folder / "jobs.json").read_text()):
        devices = reference.make_mesh(*mesh) if mesh else None
        curve, gradients, final = reference.train(
            weights, *batches(length), SHAPE, optimizer, devices, **SETTINGS[optimizer]
        )
        seen = {f"gradient/{name}": gradient for name, gradient in gradients.items()}
        seen |= {f"final/{name}": weight for name, weight in final.items()}
        np.savez(folder / f"{job_name(optimizer, length, mesh)}.npz", curve=curve, **seen)
        print(job_name(optimizer, length, mesh), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
